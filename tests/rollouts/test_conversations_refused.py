"""Settings and rows with which no conversation can be held are refused in words."""

import json

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.task import load
from tests.rollouts.calculator import config

REFUSED = (
    ({"env__name": "calculater"}, ["env.name", "did you mean 'calculator'?"]),
    ({"reward__name": "exact_match"}, ["reward.name", "exact_match", "environment"]),
    ({"reward__name": "environment + 0.1*format"}, ["format"]),
    ({"env__name": "none"}, ["environment", "env.name is none"]),
    ({"loss__span": "response"}, ["loss.span", "auto"]),
    ({"env__credit": "turn", "loss__advantage": "std"}, ["env.credit", "loss.advantage"]),
    ({"env__name": "telecom"}, ["env.path"]),
    ({"env__name": "calculator", "env__path": "tau2"}, ["env.path", "tau2"]),
    ({"reward__name": "log_prob"}, ["log_prob", "avg_log_prob"]),
    ({"reward__name": "max_rl(exact_match)"}, ["max_rl"]),
    ({"reward__name": "r3"}, ["r3"]),
    ({"filter__mode": "token_spread", "filter__threshold": 0.1}, ["filter.mode", "std_zero"]),
    ({"reward__truncated": "floor"}, ["reward.truncated", "force_close"]),
    ({"env__name": "none", "reward__name": "log_prob", "env__credit": "turn"}, ["env.credit", "outcome"]),
    ({"env__credit": "turn", "sampler__max_turns": 1}, ["env.credit", "sampler.max_turns is 1"]),
    ({"env__credit": "turn", "filter__mode": "std_zero"}, ["filter.mode", "std_zero", "env.credit"]),
    ({"prompt__examples": 1}, ["prompt.examples"]),
    ({"env__file": "nowhere.py"}, ["env.file", "nowhere.py"]),
    ({"reward__name": "sft"}, ["reward.sft_chain", "both"]),
    ({"warm_start__steps": 1, "warm_start__chains": "own"}, ["warm_start.chains is 'own'", "must be given"]),
    ({"reward__name": "calls_f1"}, ["reward.name", "calls_f1(state)", "calculator"]),
    ({"sampler__max_turns": 200}, ["sampler.max_turns", "positions"]),
    ({"prompt__max_prompt": 20}, ["prompt.max_prompt", "20"]),
)


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_does_not_go_together_is_refused_in_words(changes, words):
    with pytest.raises(UserError) as e:
        load(config(**changes))
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


def test_a_row_without_a_task_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": "a"}) + "\n" for i in range(4)))
    changes = {
        "data__train_size": 0,
        "eval__prompts": 1,
        "data__source": "files",
        "data__train_path": str(path),
        "data__heldout_size": 1,
    }
    with pytest.raises(UserError, match="has no field 'environment'"):
        load(config(**changes))


def test_a_task_that_the_environment_refuses_is_named(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": "a", "environment": {"numbers": [i]}} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data__source": "files", "data__train_path": str(path), "data__train_size": 0, "data__heldout_size": 1}
    with pytest.raises(UserError, match="row .* cannot begin with .*numbers.*KeyError"):
        load(config(**changes, eval__prompts=1))


def test_long_rows_are_left_out_where_that_is_asked_for():
    c = config(data__skip_bad_rows=True)
    longest = max(len(row.prompt_ids) for row in load(c)[0].train)
    shorter = config(data__skip_bad_rows=True, prompt__max_prompt=longest - 1, eval__prompts=0, data__heldout_size=0)
    assert 0 < len(load(shorter)[0].train) < 8
