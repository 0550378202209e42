"""The list of mutants follows the code."""

import os
import re
import subprocess
import sys

import pytest

from bench.mutants import EVALUATE, MUTANTS, ROOT, selection


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file} {m.old[:40]}")
def test_the_text_that_a_mutant_changes_is_once_in_its_file_and_its_tests_are_there(mutant):
    assert (ROOT / "rl_likelihood" / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    files, _, names = mutant.tests.partition(" -k ")
    there = [name for f in files.split() for name in re.findall(r"\ndef (test_\w+)", (ROOT / "tests" / f).read_text())]
    assert all(any(word in name for name in there) for word in names.strip("'").split(" or "))


def test_a_named_test_is_run_even_if_it_is_slow():
    mutant = next(m for m in MUTANTS if m.tests == f"{EVALUATE} -k keys")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *selection(mutant)]
    # CI asks for another layout of the output.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    collected = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "::test_the_keys_of_evaluation_are_never_those_of_training" in collected.stdout, collected.stdout
