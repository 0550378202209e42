"""The rules of style hold, but for known offenders. The lists may only shrink: `python -m bench.size` prints them."""

import pytest

from bench import size

LONG_FUNCTIONS: set[str] = set()
WIDE_FUNCTIONS = {"rl_likelihood/learner/surrogate.py policy_loss"}
LONG_FILES: set[str] = set()
MODULE_ALIASES: set[str] = set()
NOQA, FMT_SKIP = 20, 31  # at most so many


def named(offender: str) -> str:
    """The file and the function of an offender, without the line that changes with every edit."""
    path, _, words = offender.partition(":")
    return f"{path} {words.split()[1]}"


def file_of(offender: str) -> str:
    return offender.partition(":")[0]


@pytest.mark.parametrize(
    "offenders, name, known",
    [
        (size.long_functions, named, LONG_FUNCTIONS),
        (size.wide_functions, named, WIDE_FUNCTIONS),
        (size.long_files, file_of, LONG_FILES),
        (size.module_aliases, file_of, MODULE_ALIASES),
    ],
    ids=["long functions", "many parameters", "long files", "module aliases"],
)
def test_a_rule_has_no_new_offenders(offenders, name, known):
    assert [x for x in offenders() if name(x) not in known] == []


def test_exceptions_to_the_linter_do_not_grow():
    assert len(size.comments("noqa")) <= NOQA
    assert len(size.comments("fmt: skip")) <= FMT_SKIP


@pytest.mark.slow
def test_the_files_of_a_step_are_those_that_it_calls():
    names = size.step_window().files()
    for used in ("learner/step.py", "learner/surrogate.py", "rewards/likelihood.py", "sampler/decode.py", "mesh.py"):
        assert f"rl_likelihood/{used}" in names
    for unused in ("weights/files.py", "evaluation/evaluate.py", "config.py", "planning/aot.py"):
        assert f"rl_likelihood/{unused}" not in names
