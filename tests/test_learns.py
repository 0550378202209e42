"""Does it learn? These tests take a minute or two each: `make test` leaves them out, and `make learn` runs them."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.tiny import get_config
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.rubrics import Criterion, Rubric, write_rubrics
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.datasets import sources
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.model.architecture import Spec, param_specs
from rl_likelihood.rollouts.local_judge import save_head
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import run_files
from rl_likelihood.weights import files
from tests.servers import serving, tokens


def train(workdir, *arguments):
    """Trains configs/tiny.py in its own process: the flags of these tests make compiling fast and running slow."""
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.startswith("JAX_")}
    command = [sys.executable, "-m", "rl_likelihood.train", "--config=configs/tiny.py", f"--workdir={workdir}"]
    subprocess.run([*command, *arguments], check=True, cwd=Path(__file__).parents[1], env=plain)


@pytest.mark.slow
def test_rl_raises_the_success_on_held_out_questions(tmp_path):
    train(tmp_path / "run")
    before, after = (
        next(row for row in run_files.read(tmp_path / "run" / "eval.jsonl") if row["stage"].startswith(stage))
        for stage in ("after warm start", "after 40 steps")
    )
    # 128 questions that were never trained on: five standard errors.
    for name in ("greedy_success", "sampled_success"):
        assert after[name] > before[name] + 5 * before[f"{name}_se"], name
    assert after["log_prob_mc1"] > before["log_prob_mc1"]


def odd_digits(folder):
    """Writes a reward model whose score rises with the share of odd digits: attention is uniform, and one value says
    whether a token is an odd digit."""
    model, text = random_model("nano"), byte_tokenizer()
    zeros = jax.tree.map(
        lambda s: np.zeros(s.shape, np.float32), param_specs(model), is_leaf=lambda x: isinstance(x, Spec)
    )
    layers = zeros["layers"]
    params = {**zeros, "final_norm": np.ones_like(zeros["final_norm"])}
    layers["attn_norm"] += 1
    odd = np.isin(np.arange(model.vocab_size), text.convert_tokens_to_ids(list("13579")))
    params["embed"][odd, 0], params["embed"][~odd, 1] = 1, 1
    layers["v"][0, 0, 0, 0], layers["o"][0, 0, 0, 2] = 1, 1
    files.save(folder, model, params)
    save_tokenizer(text, folder)
    save_head(folder, ValueHead(3 * np.eye(model.width, dtype=np.float32)[2], np.float32(0)), 1.0)


@pytest.mark.slow
def test_a_policy_learns_what_a_reward_model_prefers(tmp_path):
    """The warm start writes n or n-1, of which one is odd."""
    odd_digits(tmp_path / "rm")
    settings = {"reward.name": "reward_model", "judge.model": tmp_path / "rm", "train.steps": 20, "eval.prompts": 0}
    settings |= {"judge.max_prompt": 80, "judge.max_row": 40, "reward.truncated": "force_close", "train.eval_every": 0}
    train(tmp_path / "run", *(f"--config.{k}={v}" for k, v in settings.items()))
    rewards = [row["reward/reward_model"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl") if row["step"]]
    assert len(rewards) == 20 and np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.3, rewards


def odd_ones(handler, number, body):
    """A judge of the criterion that the answer is odd, by the last digit between the marks."""
    digits = re.findall(r"\d", body["messages"][0]["content"].partition("<<<")[2].partition(">>>")[0])
    p = 0.9 if digits and int(digits[-1]) % 2 else 0.1
    handler.reply(200, {"choices": [tokens(("yes", math.log(p)), ("no", math.log(1 - p)))]})


@pytest.mark.slow
def test_a_policy_learns_to_meet_a_rubric(tmp_path, monkeypatch):
    """The warm start writes n or n-1, of which one is odd."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    questions, criteria = sources.load(build(get_config()).data)[0], (Criterion("It is odd", 5),)
    write_rubrics(tmp_path / "rubrics.jsonl", [Rubric(e.prompt, e.id, criteria) for e in questions])
    with serving(odd_ones) as (url, _):
        settings = {"reward.name": "rubric", "judge.model": url, "judge.name": "m", "train.steps": 20}
        settings |= {"rubric.path": tmp_path / "rubrics.jsonl", "eval.prompts": 0, "train.eval_every": 0}
        train(tmp_path / "run", *(f"--config.{k}={v}" for k, v in settings.items()))
    rewards = [row["reward/rubric"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl") if row["step"]]
    assert len(rewards) == 20 and np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1, rewards
