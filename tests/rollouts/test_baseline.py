"""The answer without a chain under the initial model, per token, kept in the workdir as the source of weights."""

import hashlib
import json

import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.baseline import FILE, key_of, read_baseline
from rl_likelihood.runtime import run_files
from rl_likelihood.shapes import Example
from tests.runs import small_config

# Rows may be narrower than prompt.max_answer, which is the width of the kept log-probs.
NARROW = {"prompt__max_answer": 200, "sampler__width_multiple": 8}


@pytest.mark.parametrize(
    "kind, changes",
    [("inverse", {}), ("neg_log", {}), ("neg_log", NARROW), ("neg_log", {**NARROW, "train__packing": True})],
)
def test_weights_of_tokens_are_those_of_the_frozen_file(kind, changes, tmp_path):
    extra = changes | {
        "reward__name": "nrt",
        "reward__baseline": "frozen",
        "reward__token_weights": kind,
        "train__steps": 3,
    }
    train.run(build(small_config(**extra, eval__prompts=0, optim__lr=0.03)), tmp_path / "run")
    kept = {row["id"]: row for row in run_files.read(tmp_path / "run" / "baseline.jsonl")}
    assert len(kept) == 6 and all("avg_prob" not in row for row in kept.values()), "only what the reward reads"
    samples = run_files.read(tmp_path / "run" / "samples.jsonl")
    moved = False
    for row in samples:
        base, scored = np.asarray(kept[row["id"]]["logp"]), np.asarray(row["scored"], bool)
        now = np.asarray(row["answer_logp_no_chain"])[scored]
        if row["step"] == 1:  # before any update the current model is the initial one
            np.testing.assert_allclose(base, now, atol=1e-4)
        moved |= bool(np.abs(base - now).max() > 1e-3)
        share = np.exp(-base) if kind == "inverse" else -base
        weights = np.asarray(row["answer_weights"])
        np.testing.assert_allclose(weights[scored], share / share.sum(), atol=1e-4)
        assert (weights[~scored] == 0).all() and len(weights) == len(row["answer_tokens"])
        gain = (np.exp(np.asarray(row["answer_logp"])[scored]) - np.exp(base)) @ weights[scored]
        assert row["reward"] == pytest.approx(max(gain, 0), abs=1e-4)
    assert moved, "the policy has moved on, the weights have not"


def test_questions_that_differ_in_spaces_have_their_own_baselines(tmp_path):
    texts = ("a b?", "1"), ("a  b?", "2")
    rows = [EncodedExample(Example(a, q, a), np.zeros(1, int), np.zeros(1, int), np.ones(1, bool)) for q, a in texts]
    reward = build(small_config(reward__name="rlpr", reward__baseline="frozen", prompt__score_delims="none")).reward
    for row, value in zip(rows, (0.25, 0.5), strict=True):
        run_files.append(tmp_path / FILE, {"step": 0, "key": key_of(row), "avg_prob": value})
    assert read_baseline(tmp_path, reward, 1)(rows).score.tolist() == [0.25, 0.5]
    old = {"step": 0, "key": hashlib.sha256(b"a b?").hexdigest()[:16], "id": "1", "avg_prob": 0.75}
    (tmp_path / FILE).write_text(json.dumps(old) + "\n")
    with pytest.raises(UserError, match="no line for question 1.*earlier version.*train.steps"):
        read_baseline(tmp_path, reward, 1)(rows)
