"""The rules of style hold; `python -m bench.size` prints the offenders."""

import pytest

from bench import size

POLICY_LOSS = "rl_likelihood/learner/surrogate.py"  # seven parameters: a contract of the design
NOQA, FMT_SKIP = 4, 25  # at most so many


def test_the_rules_of_style_have_no_offenders():
    assert size.long_functions() == size.long_files() == size.module_aliases() == []
    assert [offender.partition(":")[0] for offender in size.wide_functions()] == [POLICY_LOSS]


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
