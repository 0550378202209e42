"""The policy as its own critic: what a batch holds, what it pays, and that a resumed run is the unbroken one."""

import json
import shutil
import zlib

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rollouts import raro
from rl_likelihood.rollouts.judges import judge_of
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import abstract_batch, load
from tests.runs import small_config

G, Q = 2, 4  # chains; pairs of a question, the last two with earlier answers
SMALL = {
    "reward__name": "adversarial",
    "adversarial__form": "raro",
    "adversarial__replay": 3,
    "judge__max_prompt": 160,
    "judge__max_row": 220,
    "prompt__max_answer": 14,
    "eval__prompts": 0,
    "sampler__group_size": G,
}
ONE_DEVICE = {"mesh__fsdp": 1, "mesh__tensor": 1}


def small(**changes):
    return build(small_config(**{**SMALL, **changes}))


@pytest.fixture
def talkative(monkeypatch):
    """Random weights write no verdicts: then every text is an answer, and three texts of four are a verdict."""
    monkeypatch.setattr(graders, "extract_answer", lambda text, fmt: text)
    monkeypatch.setattr(raro, "verdict_of", lambda answer: zlib.crc32(answer.encode()) % 4)


def test_a_question_is_followed_by_its_pairs_and_both_are_paid(talkative, tmp_path):
    c = small(**ONE_DEVICE)
    devices = make_devices(c, jax.devices()[:1])
    task, params = load(c, mesh=devices.learner)
    judge = judge_of(task, devices, tmp_path)
    source = make_source(task, devices, tmp_path, 0, None, judge)
    for step in range(2):
        before = list(judge.seen)
        given = source.next(step, params)
        assert before or np.isnan(given.measured()["critic/accuracy_replay"])
        batch, planned, text = given.batch, abstract_batch(c, task.fmt), byte_tokenizer()
        same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), batch.replace(common=0), planned)
        assert all(jax.tree.leaves(same))
        assert batch.critic.reshape(2, 1 + Q).tolist() == [[False] + [True] * Q] * 2
        np.testing.assert_allclose(batch.weight.reshape(2, 1 + Q), [[5 / 9] + [10 / 9] * Q] * 2, rtol=1e-6)
        prompts = [text.decode(ids[:n]) for ids, n in zip(batch.prompt, batch.prompt_length, strict=True)]
        rewards, keep = batch.host_rewards["adversarial"], batch.keep
        for i in range(2):
            row = i * (1 + Q)
            answers = [text.decode(x, skip_special_tokens=True) for x in given.rollout.completion[row]]
            for j in range(Q):
                example = given.rows[row + 1 + j].example
                parts = [x.partition("\n>>>")[0] for x in prompts[row + 1 + j].split("<<<\n")[1:]]
                expert, other = parts if example.answer == "1" else parts[::-1]
                if j < G:
                    assert expert == given.rows[row].example.answer and (other in answers[j] or not other)
                elif before:
                    assert any(expert == e and other == a.strip() for _, e, a in before)
                assert prompts[row + 1 + j].endswith("<think>")
            fresh = rewards[row + 1 : row + 1 + G], keep[row + 1 : row + 1 + G]
            paid = np.where(fresh[0] == 1, 0.0, np.where(fresh[0] == 0, 1.0, 0.6))
            count = fresh[1].sum(-1)
            assert (keep[row] == (count > 0)).all()
            mean = np.where(count > 0, np.where(fresh[1], paid, 0).sum(-1) / np.maximum(count, 1), 0)
            np.testing.assert_allclose(rewards[row], mean, atol=1e-6)
    measured = given.measured()
    assert not unknown(measured) and 0 < measured["critic/unparsable"] < 1
    assert measured["critic/unparsable"] == pytest.approx(1 - keep[batch.critic].mean())
    assert np.isfinite(measured["critic/accuracy_replay"])
    source.close()


def test_a_resumed_run_is_the_unbroken_one(talkative, tmp_path):
    train.run(small(), tmp_path / "a")
    whole = run_files.read(tmp_path / "a" / "metrics.jsonl")
    assert len(whole) == 4 and all(row["grad/norm"] > 0 for row in whole)
    assert ["critic/accuracy_replay" in row for row in whole] == [False, True, True, True]
    for step in (3, 4):
        shutil.rmtree(tmp_path / "a" / "checkpoints" / str(step))
    train.run(small(), tmp_path / "a")
    again = run_files.read(tmp_path / "a" / "metrics.jsonl")
    times = ("time/", "tokens_per_second")
    known = [{k: v for k, v in row.items() if not k.startswith(times)} for row in (*whole, *again)]
    assert json.dumps(known[4:]) == json.dumps(known[:4])


def test_verdicts_that_are_missing_equal_or_ties_are_measured():
    verdict, expert = np.zeros((1, Q, G), int), np.ones((1, Q), int)
    told = raro.measured(verdict, expert, G)
    assert told["critic/unparsable"] == 1 and np.isnan(told["critic/accuracy"]) and np.isnan(told["critic/tie"])
    assert raro.measured(verdict + 1, expert, G)["critic/first_bias"] == 1
    assert raro.measured(verdict + 3, expert, G)["critic/accuracy_replay"] == 0.5


@pytest.mark.parametrize(
    "replay, share, weights", [(0, 0.5, [1, 1, 1]), (3, 0.5, [1] * 5), (3, 0.25, [1, 1.5, 1.5, 0.5, 0.5])]
)
def test_weights_are_shares_of_the_loss(replay, share, weights):
    n = len(weights)
    c = small(adversarial__replay=replay, adversarial__replay_share=share, adversarial__critic_share=(n - 1) / n)
    np.testing.assert_allclose(raro.roles(c, 2)["weight"], weights * 2, rtol=1e-6)


def test_an_answer_too_short_for_a_verdict_is_refused(tmp_path):
    c = small(prompt__max_answer=7, **ONE_DEVICE)
    devices = make_devices(c, jax.devices()[:1])
    with pytest.raises(UserError, match=r"prompt.max_answer is 7.* 8 tokens"):
        judge_of(load(c, mesh=devices.learner)[0], devices, tmp_path)
