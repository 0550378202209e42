"""The rules of style hold, but for known offenders. The lists may only shrink: `python -m bench.size` prints them."""

import pytest

from bench import size

LONG_FUNCTIONS = {
    "rl_likelihood/cli/command.py run_main",
    "rl_likelihood/grading/countdown.py evaluate",
    "rl_likelihood/model/decoder.py forward",
    "rl_likelihood/report/page.py write",
    "rl_likelihood/train.py learn",
}
WIDE_FUNCTIONS = {
    "rl_likelihood/learner/step.py _loss",
    "rl_likelihood/learner/step.py filtered",
    "rl_likelihood/learner/surrogate.py policy_loss",
    "rl_likelihood/model/attention.py attention",
    "rl_likelihood/model/decoder.py forward",
    "rl_likelihood/model/decoding.py decode_step",
    "rl_likelihood/model/decoding.py decode_rows",
    "rl_likelihood/model/splash.py attention",
    "rl_likelihood/model/splash.py _local",
    "rl_likelihood/report/page.py write",
    "rl_likelihood/sampler/decode.py generate",
    "rl_likelihood/sampler/decode.py generate_spread",
    "rl_likelihood/sampler/decode.py keep",
    "rl_likelihood/sampler/engine.py sample_rows",
    "rl_likelihood/sampler/engine.py fill",
    "rl_likelihood/sampler/engine.py segment",
    "rl_likelihood/sampler/engine.py __init__",
}
LONG_FILES = {"rl_likelihood/data/prompts.py", "rl_likelihood/report/table.py"}
MODULE_ALIASES = {
    "experiments/claims.py",
    "rl_likelihood/export.py",
    "rl_likelihood/learner/step.py",
    "rl_likelihood/model/attention.py",
    "rl_likelihood/model/decoder.py",
    "rl_likelihood/model/head.py",
    "rl_likelihood/model/splash.py",
    "rl_likelihood/report/page.py",
    "rl_likelihood/runtime/devices.py",
    "rl_likelihood/sampler/engine.py",
    "rl_likelihood/sampler/handover.py",
    "rl_likelihood/sweeps/grid.py",
    "tests/evaluation/test_evaluate.py",
    "tests/grading/test_pool.py",
    "tests/model/test_decoder.py",
    "tests/model/test_head.py",
    "tests/model/test_splash.py",
    "tests/runtime/test_lock.py",
}
NOQA = 60  # at most so many


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
    assert size.comments("fmt: skip") == []


@pytest.mark.slow
def test_the_files_of_a_step_are_those_that_it_calls():
    names = size.step_window().files()
    for used in ("learner/step.py", "learner/surrogate.py", "rewards/likelihood.py", "sampler/decode.py", "mesh.py"):
        assert f"rl_likelihood/{used}" in names
    for unused in ("weights/files.py", "evaluation/evaluate.py", "config.py", "planning/aot.py"):
        assert f"rl_likelihood/{unused}" not in names
