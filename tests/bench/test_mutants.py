"""The list of mutants follows the code."""

import pytest

from bench.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file} {m.old[:40]}")
def test_the_text_that_a_mutant_changes_is_once_in_its_file_and_its_tests_are_there(mutant):
    assert (ROOT / "rl_likelihood" / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((ROOT / "tests" / name).exists() for name in mutant.tests.partition(" -k ")[0].split())
