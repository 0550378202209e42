"""docs/rewards.md: every test that it calls a proof exists, every term and every preset is on it."""

import re
from pathlib import Path

import pytest

from configs import tiny
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.presets import PRESETS
from rl_likelihood.tables import reward_table

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "rewards.md").read_text()


def test_every_proof_that_is_named_exists():
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 30
    for path, name in named:
        assert f"\ndef {name}(" in (TESTS / path).read_text(), f"{path}::{name}"


def rows(section):
    """Names in code type in the first column of the section's table."""
    table = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return re.findall(r"`(\w+)`", " ".join(first))


def test_every_term_and_every_preset_has_its_row():
    assert sorted(rows("Terms")) == sorted(reward_table())
    assert sorted(rows("Presets")) == sorted(PRESETS)


@pytest.mark.parametrize("name", reward_table())
def test_a_term_needs_what_its_row_says(name):
    """With every other field at its default a term is refused if and only if its row names a field or a term."""
    cells = [re.split(r"(?<!\\)\|", line) for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    (needs,) = [row[3].strip() for row in cells if len(row) == 7]
    c = tiny.get_config()
    c.reward.name = name
    if needs and not needs.startswith("rows "):
        with pytest.raises(UserError, match="reward"):
            build(c)
    else:
        build(c)
