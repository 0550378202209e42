"""Every likelihood reward, every reward from text and every preset trains a very small model; some policies do too."""

import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import apply_preset, build
from rl_likelihood.presets import PRESETS
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.runtime import run_files
from rl_likelihood.tables import reward_table
from tests.runs import run, small_config

# A judge and an environment have runs of their own (tests/rollouts/test_judges.py, test_conversation_runs.py).
ON_HOST = [
    name for name, r in reward_table().items() if r.on_host and r.kind != "judge" and "conversation" not in r.needs
]


@pytest.mark.parametrize("reward", [*OBJECTIVES, "base_rl", "sft"])
def test_every_reward_trains(reward, tmp_path):
    run(tmp_path / "run", reward__name=reward, train__steps=2, eval__prompts=0)
    one, two = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([one["grad/norm"], two["grad/norm"]]).all()
    if reward != "base_rl":  # an untrained model never writes an answer, so its 0/1 reward has no gradient
        assert one["grad/norm"] > 0
    # sft samples nothing: what is made of sampled tokens is absent, and not 0.
    assert [name in one for name in ("policy/entropy", "chain/closed", "ratio/ess")] == [reward != "sft"] * 3
    if reward == "sft":
        assert one["loss/answer"] == pytest.approx(-one["answer/log_prob"], rel=1e-5)


# An untrained model never writes an answer, so these have no gradient yet.
NEED_AN_ANSWER = """kw_base_rl verifree jepo_tang rlpr nover ttrl grpo rloo dr_grpo dapo empo cer gspo cispo dppo
    delta_l gdpo rpt""".split()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train(name, tmp_path):
    few = {"sampler__group_size": 4, "reward__vote_train": 2 if name == "ttrl" else 0}
    c = small_config(train__steps=1, eval__prompts=0, **few)
    c.preset = name
    apply_preset(c, [key.replace("__", ".") for key in few])
    train.run(build(c), tmp_path / "run")
    (last,) = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([last["grad/norm"], last["reward/mean"]]).all()
    assert (last["grad/norm"] > 0) == (name not in NEED_AN_ANSWER)
    samples = run_files.read(tmp_path / "run" / "samples.jsonl")
    terms = {"rlpr": ["rlpr", "format", "repetition"], "nover": ["format", "nover_rank"], "ttrl": ["majority_vote"]}
    assert all(f"reward/{term}" in samples[-1] for term in terms.get(name, []))
    assert len(samples) == 2 * (2 if name == "ttrl" else 4), "of two questions; four vote, two are trained on"


def test_rewards_from_text_are_computed_side_by_side(tmp_path):
    run(tmp_path / "run", reward__name=" + ".join(ON_HOST), train__steps=1, eval__prompts=0)
    (row,) = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(row[f"reward/{name}"]) for name in ON_HOST) and row["grader/failures"] == 0
    assert row["reward/mean"] == pytest.approx(sum(row[f"reward/{name}"] for name in ON_HOST), abs=1e-5)
    assert {"vote/label_accuracy", "chain/transition_words"} <= set(row)


def test_base_scores_are_of_the_initial_model_and_kept_by_question(tmp_path):
    extra = {"reward__name": "rlpr", "reward__baseline": "frozen", "prompt__score_delims": "none"}
    one = run(tmp_path / "one", **extra, train__steps=3, eval__prompts=0)
    rows = run_files.read(one / "baseline.jsonl")
    assert len(rows) == len({row["key"] for row in rows}) == 6 and all(0 < row["avg_prob"] < 1 for row in rows)
    samples = run_files.read(one / "samples.jsonl")
    base = {row["id"]: row["avg_prob"] for row in rows}
    for s in samples:
        assert s["reward"] == pytest.approx(min(max(s["reward/avg_prob"] - base[s["id"]], 0), 1), abs=1e-5)


@pytest.mark.parametrize("on", ["answer", "both"])
def test_sft_on_given_chains(on, tmp_path):
    run(tmp_path / "run", reward__name="sft", reward__sft_chain=on, train__steps=3, eval__prompts=0, optim__lr=1e-2)
    one, *_, last = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert last["loss/answer"] < one["loss/answer"]
    tokens = -one["answer/log_prob"] < one["loss/answer"]
    assert tokens == (on == "both"), "the chain's tokens are in the loss, or not"
    sample = run_files.read(tmp_path / "run" / "samples.jsonl")[0]
    assert "=" in sample["chain"]


@pytest.mark.parametrize(
    "extra",
    [
        {"reward__truncated": "drop"},
        {"reward__truncated": "floor", "reward__floor": -3.0},
        {"model__compute_dtype": "bfloat16", "sampler__temperature": 0.8},
        {"report__no_chain": False, "model__remat": "full"},
    ],
    ids=["drop", "floor", "bfloat16", "remat"],
)
def test_policies_and_precisions_train(extra, tmp_path):
    run(tmp_path / "run", train__steps=2, eval__prompts=0, **extra)
    last = run_files.read(tmp_path / "run" / "metrics.jsonl")[-1]
    assert np.isfinite(last["loss/policy"]) and np.isfinite(last["grad/norm"])
    # A model that never learned the tags leaves every chain open: all dropped, or all at the floor.
    assert last["chain/truncated"] == 1
    if extra.get("reward__truncated") == "drop":
        assert last["keep/fraction"] == 0 and last["grad/norm"] == 0
    if extra.get("reward__truncated") == "floor":
        assert last["reward/std"] == 0 and last["reward/mean"] < -3
    assert ("answer/chain_gain" in last) == extra.get("report__no_chain", True)


def test_kl_to_the_initial_model_starts_at_zero_and_grows(tmp_path):
    run(tmp_path / "run", loss__kl="k3", loss__kl_coef=0.1, train__steps=3, eval__prompts=0)
    kl = [row["loss/kl"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-5
