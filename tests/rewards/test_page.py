"""docs/rewards.md: every test that it calls a proof exists, every term and every preset is on it."""

import re
from pathlib import Path

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
