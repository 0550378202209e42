"""Warm starts: what they teach. Of parameters that are not finite none are saved, and the message names the field."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rl_likelihood import progress, train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.checkpoint import INITIAL
from rl_likelihood.task import load
from rl_likelihood.training import warm_start
from tests.runs import run, small_config

ONE = {"eval__prompts": 0, "train__steps": 1}
WARM = {"warm_start__steps": 3, "warm_start__chains": "given", "warm_start__prompts": 8}
WARM |= {"warm_start__prompts_per_step": 8, "loss__kl": "k3", "loss__kl_coef": 0.1}


def test_a_warm_start_that_diverges_names_its_learning_rate_and_leaves_no_model(tmp_path):
    config = build(small_config(**ONE, **WARM))
    config = dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, lr=1e38))
    with pytest.raises(UserError, match=r"warm start: step 3.*not finite.*lower warm_start.lr \(1e\+38\)"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / INITIAL).exists() and checkpoint.latest_step(tmp_path / "run") is None


def test_given_chains_are_taught_with_the_answers_that_they_lead_to_and_rl_scores_the_references():
    task, _ = load(build(small_config(**WARM)))
    taught = warm_start.chains_to_learn(task, None, {}, Path())
    answers = [json.loads(row.example.check)["taught"] for row in task.train]
    for rows, expected in ((taught, answers), (task.train, [row.example.answer for row in task.train])):
        assert [task.tokenizer.decode(row.answer_ids) for row in rows] == [f">{a}</answer>" for a in expected]
    assert 0 < sum(row.example.answer != answer for row, answer in zip(task.train, answers, strict=True)) < len(answers)


def test_the_last_step_of_a_warm_start_is_checked_too_and_its_progress_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(warm_start, "all_finite", lambda _: False)
    with pytest.raises(UserError, match="warm start: step 1.*not finite.*lower warm_start.lr"):
        train.run(build(small_config(**ONE, **WARM | {"warm_start__steps": 1})), tmp_path / "run")
    assert "warm start: trained 0 of 1 steps, " in capsys.readouterr().out
    assert not (tmp_path / "run" / INITIAL).exists()


def test_a_model_that_is_not_finite_is_refused_before_anything_is_saved(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        task, params = load(*args, **kwargs)
        return task, jax.tree.map(lambda x: x * jnp.nan, params)

    monkeypatch.setattr(train, "load", broken)
    with pytest.raises(UserError, match="model.path is .*not finite"):
        train.run(build(small_config(**ONE, loss__kl="k3", loss__kl_coef=0.1)), tmp_path / "run")
    assert not (tmp_path / "run" / INITIAL).exists()


def test_own_chains_that_cannot_be_written_are_one_sentence(tmp_path):
    (tmp_path / "run" / "warm_start.jsonl.part").mkdir(parents=True)  # in the way, as a full disk is
    own = {"warm_start__steps": 2, "warm_start__prompts": 4, "warm_start__prompts_per_step": 4}
    with pytest.raises(UserError, match="warm_start.jsonl: cannot be written"):
        run(tmp_path / "run", warm_start__examples=0, **ONE, **own)


def test_a_warm_start_on_own_chains_says_when_there_are_none(tmp_path):
    with pytest.raises(UserError, match="there are only 0 chains .warm_start.chains='own'."):
        run(
            tmp_path / "run",
            warm_start__steps=2,
            warm_start__prompts=8,
            warm_start__prompts_per_step=4,
            warm_start__examples=0,
        )
