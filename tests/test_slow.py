"""The list of slow tests names tests that exist."""

from pathlib import Path

import pytest

from tests.conftest import SLOW

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted({name.partition("::")[0] for name in SLOW}))
def test_every_test_of_the_list_exists(path):
    text = (ROOT / path).read_text()
    for name in (name for name in SLOW if name.startswith(path + "::")):
        assert f"def {name.partition('::')[2].partition('[')[0]}(" in text, name
