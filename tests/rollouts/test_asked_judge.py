"""A run whose reward a second model says: a reward model on this machine, a judge behind an address, refusals."""

import math

import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.model.decoder import forward
from rl_likelihood.rollouts.asked_judge import judge_of
from rl_likelihood.rollouts.local_judge import HEAD, load_decoder, save_head
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.shapes import UserError
from rl_likelihood.task import load, random_model
from rl_likelihood.weights import files
from tests.runs import small_config
from tests.servers import serving
from tests.small import random_params

FEW = {"train__steps": 2, "eval__prompts": 0, "judge__max_prompt": 60, "judge__max_row": 40}


def few(**changes):
    return small_config(**{**FEW, **changes})


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """The folder of a reward model of random weights, over bytes."""
    folder, model = tmp_path_factory.mktemp("scorer"), random_model("nano")
    files.save(folder, model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(byte_tokenizer(), folder)
    head = ValueHead(np.random.default_rng(0).normal(size=model.width).astype(np.float32), np.float32(0.5))
    save_head(folder, head, 2.5)
    return folder


def judged_by(folder, **changes):
    c = build(few(reward__name="reward_model", judge__model=str(folder), **changes))
    devices = make_devices(c)
    return judge_of(load(c, mesh=devices.learner)[0], devices, folder)


def test_a_reward_model_scores_question_and_answer(scorer):
    """Against the plain sequence in the model's own template, in parts, divided by the spread if asked."""
    questions, answers = [f"{n}+1?" for n in range(9)], [[(str(n),), (f"no {n}",)] for n in range(9)]
    judge = judged_by(scorer)
    out = judge(questions, answers)
    assert out.keep.all() and out.cut == 0 and out.values.shape == (9, 2)
    model, params = load_decoder(str(scorer))
    text = byte_tokenizer()
    with np.load(scorer / HEAD) as head:
        for i, j in ((0, 0), (8, 1)):
            ids = np.array(text(f"<|user|>{questions[i]}<|assistant|>{answers[i][j][0]}<|end|>")["input_ids"], np.int32)
            state = forward(params, model, ids[None], np.array([len(ids)])).prompt[0, -1]
            assert out.values[i, j] == pytest.approx(float(state @ head["weight"] + head["bias"]), abs=1e-4)
    whitened = judged_by(scorer, judge__normalise="whiten")(questions, answers)
    np.testing.assert_allclose(whitened.values, out.values / 2.5, rtol=1e-5)
    assert judge(questions[:1], [[("x" * 90,), ("y",)]]).cut == 1


def metrics(workdir):
    return run_files.read(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def outside(scorer, tmp_path_factory):
    """The workdir of a run whose judge is computed before the step."""
    workdir = tmp_path_factory.mktemp("outside")
    train.run(build(few(reward__name="reward_model", judge__model=str(scorer))), workdir)
    return workdir


def test_a_run_on_a_reward_model(scorer, outside):
    rows, samples = metrics(outside), run_files.read(outside / "samples.jsonl")
    assert [row["judge/failures"] for row in rows] == [0, 0] and all("judge/cut" in row for row in rows)
    for row in rows:
        assert math.isfinite(row["reward/reward_model"]) and row["reward/mean"] == row["reward/reward_model"]
        assert "reward/exact_match" in row, "what is known to be right stands beside it"
    judge = judged_by(scorer)
    for s in samples[:3]:
        answer = s["sampled_answer"].removeprefix(">").partition("</answer")[0]
        if s["sampled_answer"].startswith(">") and "</answer" in s["sampled_answer"]:
            assert judge([s["prompt"]], [[(answer,)]]).values[0, 0] == pytest.approx(s["reward/reward_model"], abs=1e-3)


@pytest.mark.slow
def test_a_run_with_the_judge_in_the_step_is_that_with_it_outside(scorer, outside, tmp_path):
    train.run(build(few(reward__name="reward_model", judge__model=str(scorer), judge__where="step")), tmp_path)
    for a, b in zip(metrics(outside), metrics(tmp_path), strict=True):
        for name in ("reward/reward_model", "reward/mean", "judge/cut", "loss/policy", "grad/norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


def test_a_run_asks_an_address_and_a_resumed_one_asks_nothing_again(tmp_path, monkeypatch):
    def behave(handler, number, body):
        if number == 1:
            return handler.reply(400, b"")
        p = 0.5 + 0.4 * math.sin(len(body["messages"][0]["content"]))
        pairs = [{"token": "yes", "logprob": math.log(p)}, {"token": "no", "logprob": math.log(1 - p)}]
        return handler.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": pairs}]}}]})

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with serving(behave) as (url, requests):
        c = build(few(reward__name="judge", judge__model=url, judge__name="m"))
        train.run(c, tmp_path)
        rows = metrics(tmp_path)
        assert rows[0]["judge/failures"] >= 1 and rows[1]["judge/failures"] == 0
        assert 0 < rows[1]["reward/judge"] < 1 and (tmp_path / "judge.sqlite").exists()
        before = len(requests)
        (tmp_path / "again").mkdir()
        (tmp_path / "judge.sqlite").rename(tmp_path / "again" / "judge.sqlite")
        train.run(c, tmp_path / "again")
        assert len(requests) - before <= rows[0]["judge/failures"]
        assert metrics(tmp_path / "again")[1]["reward/judge"] >= 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward__name": "judge"}, "judge.model is empty"),
        ({"judge__model": "x"}, "no term of reward.name"),
        ({"reward__name": "judge + reward_model", "judge__model": "x"}, "one judge"),
        ({"reward__name": "reward_model", "judge__model": "http://h/v1", "judge__name": "m"}, "reward.name=judge"),
        ({"reward__name": "judge", "judge__model": "http://h/v1"}, "judge.name is empty"),
        ({"reward__name": "judge", "judge__model": "x", "judge__normalise": "whiten"}, "judge.normalise"),
        ({"reward__name": "judge", "judge__model": "initial"}, "set judge.where=step"),
        ({"reward__name": "judge", "judge__model": "initial", "judge__where": "step"}, "reference model; set loss.kl"),
        (
            {"reward__name": "judge", "judge__model": "http://h/v1", "judge__name": "m", "judge__where": "step"},
            "judge.where is 'step'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build(small_config(**changes))


def test_a_judge_that_does_not_fit_is_refused(scorer, tmp_path):
    with pytest.raises(UserError, match="judge.max_prompt is 5"):
        judged_by(scorer, judge__max_prompt=5)
    with pytest.raises(UserError, match="2048 positions"):
        judged_by(scorer, judge__max_row=2000)
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model))
    save_tokenizer(byte_tokenizer(), tmp_path)
    with pytest.raises(UserError, match="no reward model"):
        judged_by(tmp_path)
