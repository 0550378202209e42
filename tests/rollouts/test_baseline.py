"""The answer without a chain under the initial model, per token, kept in the workdir as the source of weights."""

import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.runtime import run_files
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
