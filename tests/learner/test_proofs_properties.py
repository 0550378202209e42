"""What may not matter to a step, and what may not break it: through the whole gradient of a small model.

Order, padding, dropped rows and what masks hide; groups that are empty, alone, equal or impossible.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.config import all_fields, apply_preset, build
from rl_likelihood.fields import choices
from rl_likelihood.learner import measures
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig, leave_one_out
from rl_likelihood.report.alarms import Alarms
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG
from rl_likelihood.tables import parse_reward
from tests.runs import small_config
from tests.small import random_batch, random_params, rewarded, tiny

P, G, S, T, V = 4, 3, 5, 10, 24
MODEL = tiny(layers=1)
PARAMS, REF, PROXY = (random_params(MODEL, seed) for seed in (0, 1, 2))
PROPERTY = settings(max_examples=8, deadline=None, derandomize=True, database=None)

# Together these have every likelihood reward, every kind of term, every switch of the loss.
CONFIGS = {
    "exact": ("log_prob + avg_log_prob + prob + avg_prob + geo_mean_prob + jepo + math", LossConfig(), {}),
    "grpo": (
        "log_prob/std + math/std + self_certainty/std + 0.9*rlpr",
        LossConfig(advantage="std", aggregation="token_mean", clip_low=0.2, clip_high=0.3, kl="k3", kl_coef=0.1),
        {"baseline": "frozen"},
    ),
    "jepo_tang": (
        "jepo + token_entropy_sum + 0.01*length + overlong",
        LossConfig(advantage="std_clip", aggregation="seq_mean", ratio="sequence", kl="reward_k1", kl_coef=0.1),
        {"truncated": "drop"},
    ),
    "nover": (
        "format + nover_rank + nover_efficiency + trajectory_sum + geo_mean_prob",
        LossConfig(advantage="mean", aggregation="const", max_tokens=20, ratio="token", kl="k2", kl_coef=0.1),
        {"truncated": "floor"},
    ),
    "weighted": (
        "nrt/std + r3 + weighted_log_prob + max_rl(math) + vr_cli + cer",
        LossConfig(aggregation="delta_l", mask_move=0.1, format_term=0.3),
        {"baseline": "frozen", "token_weights": "neg_log"},
    ),
    "delta_l_batch": (
        "avg_log_prob",
        LossConfig(aggregation="delta_l_batch", clip_per="sequence", clip_low=0.2, clip_high=0.3),
        {},
    ),
}


def cfg_of(name):
    text, loss, changes = CONFIGS[name]
    return rewarded(text, loss=loss, two_branches=True, policy_span="response", head_chunk=60, **changes)


@functools.partial(jax.jit, static_argnums=3)
def _run(params, models, batch, cfg):
    grads, sums, rows = gradients(params, models, batch, MODEL, cfg)
    return grads, measures.metrics(sums, rows, batch), rows


def run(batch, cfg, params=PARAMS):
    """(gradients, metrics, values of rows), as numpy."""
    models = (REF if cfg.with_reference else None, PROXY if cfg.needs("proxy") else None)
    return jax.device_get(_run(params, models, batch, cfg))


def batch_of(seed, p=P, g=G, t=T):
    rng = np.random.default_rng(seed)
    batch = random_batch(seed, p, g, S, t, sampled=True)
    form = rng.integers(0, 2, (p, g)).astype(np.float32)
    right = rng.integers(0, 2, (p, g)).astype(np.float32)
    return batch.replace(
        host_rewards={**batch.host_rewards, "format": form, "math": right},
        baseline=rng.uniform(0, 0.1, p).astype(np.float32),
        baseline_logp=-rng.exponential(2.0, (p, 3)).astype(np.float32),
    )


def rows_of(batch, change):
    """The batch with `change` made to every array that has an axis of rows."""
    fields = ("completion", "segment", "scored", "sampler_logp", "host_rewards", "truncated", "keep")
    return batch.replace(**{k: jax.tree.map(change, getattr(batch, k)) for k in fields})


def close(a, b, tolerance=1e-4):
    """Trees equal up to rounding of their own size."""
    size = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance * size + 1e-7), a, b)


seeds, masks = st.integers(0, 10**6), st.lists(st.booleans(), min_size=P * G, max_size=P * G)
keeps = masks.map(lambda x: np.array(x).reshape(P, G))

# ------------------------------------------------------------------ order, padding, masks, dropped rows


@pytest.mark.parametrize("name", CONFIGS)
@PROPERTY
@given(seed=seeds, keep=keeps, order=st.permutations(range(G)), prompts=st.permutations(range(P)))
def test_the_order_of_rows_and_of_prompts_does_not_matter(name, seed, keep, order, prompts):
    batch, cfg = batch_of(seed).replace(keep=keep), cfg_of(name)
    grads, _, rows = run(batch, cfg)
    moved, _, moved_rows = run(rows_of(batch, lambda x: x[:, order]), cfg)
    close(moved, grads)
    for k in ("reward", "advantage", "keep"):
        close(moved_rows[k], np.asarray(rows[k])[:, order])
    moved, _, _ = run(jax.tree.map(lambda x: x[prompts,], batch), cfg)
    close(moved, grads)


@pytest.mark.parametrize("name", CONFIGS)
@PROPERTY
@given(seed=seeds, keep=keeps, garbage=st.sampled_from([0.0, 50.0, -1e4]))
def test_what_padding_masks_and_dropped_rows_hold_does_not_matter(name, seed, keep, garbage):
    """Bit for bit: ids of padding, log-probs of what was not sampled, everything in a dropped row."""
    batch, cfg = batch_of(seed).replace(keep=keep), cfg_of(name)
    junk = np.random.default_rng(seed + 1).integers(0, V, batch.completion.shape).astype(np.int32)
    counted = keep & ~batch.truncated if cfg.reward.truncated == "drop" else keep
    hidden = (batch.segment == PAD) | ~counted[..., None]
    sampled = np.isin(batch.segment, (CHAIN, SAMPLED)) & counted[..., None]
    beyond = np.arange(S) >= batch.prompt_length[:, None]
    other = batch.replace(
        prompt=np.where(beyond, junk[:, 0, :S], batch.prompt),
        completion=np.where(hidden, junk, batch.completion),
        sampler_logp=np.where(sampled, batch.sampler_logp, np.float32(garbage)),
        host_rewards={k: np.where(counted, x, np.float32(garbage)) for k, x in batch.host_rewards.items()},
    )
    (grads, metrics, rows), (grads2, metrics2, rows2) = run(batch, cfg), run(other, cfg)
    jax.tree.map(np.testing.assert_array_equal, grads, grads2)
    for k in ("reward/mean", "reward/std", "advantage/abs_mean", "loss/policy", "loss/answer", "loss/kl", "ratio/ess"):
        assert metrics[k] == metrics2[k] or k == "ratio/ess", k
    np.testing.assert_array_equal(rows["advantage"], rows2["advantage"])
    assert (rows["advantage"][~counted] == 0).all()


def test_wider_padding_changes_nothing():
    batch, cfg = batch_of(3), cfg_of("exact")
    grow = lambda x: np.pad(x, [(0, 0), (0, 0), (0, 3)]) if np.ndim(x) == 3 else x
    wide = rows_of(batch, grow).replace(prompt=np.pad(batch.prompt, [(0, 0), (0, 2)], constant_values=7))
    (grads, metrics, _), (grads2, metrics2, _) = run(batch, cfg), run(wide, cfg)
    close(grads2, grads, 1e-5)
    close(metrics2, metrics, 1e-5)


@pytest.mark.parametrize("name", ["exact", "grpo"])
def test_a_dropped_row_is_an_absent_row(name):
    """Also with the standard deviations of /std and of GRPO, a mean over tokens, and a KL in the loss."""
    batch, cfg = batch_of(0), cfg_of(name)
    dropped = batch.replace(keep=np.arange(G) != np.full((P, 1), 1))
    grads, metrics, rows = run(dropped, cfg)
    without = lambda x: np.delete(x, 1, axis=1)
    grads2, metrics2, rows2 = run(rows_of(batch, without), cfg)
    close(grads2, grads)
    for k in ("reward/mean", "reward/std", "advantage/abs_mean", "loss/policy", "loss/answer", "loss/kl"):
        assert float(metrics2[k]) == pytest.approx(float(metrics[k]), rel=1e-4, abs=1e-6), k
    close(rows2["advantage"], without(rows["advantage"]))


# ------------------------------------------------------------------ shift, scale, sums


@PROPERTY
@given(
    seed=seeds,
    keep=keeps,
    shift=st.lists(st.floats(-8, 8, width=32), min_size=P, max_size=P),
    scale=st.floats(0.25, 4, width=32),
)
def test_rloo_is_blind_to_shifts_linear_in_scale_and_sums_to_zero(seed, keep, shift, scale):
    batch, cfg = batch_of(seed).replace(keep=keep), rewarded("math", two_branches=True, policy_span="response")
    reward = batch.host_rewards["math"]
    host_rewards = {
        "reward": reward,
        "shifted": reward + np.float32(shift)[:, None],
        "scaled": reward * np.float32(scale),
    }
    got = {k: run(batch.replace(host_rewards={"math": x.astype(np.float32)}), cfg) for k, x in host_rewards.items()}
    grads, _, rows = got["reward"]
    close(got["shifted"][0], grads)
    close(got["scaled"][0], jax.tree.map(lambda x: scale * x, grads))
    np.testing.assert_allclose(rows["advantage"].sum(-1), 0, atol=1e-5)
    assert (rows["advantage"][keep.sum(-1) < 2] == 0).all()


def test_the_ema_term_of_rlp_cancels_in_a_group():
    """Preset rlp with its clip, with and without a number that all chains of the prompt share subtracted."""

    def rlp(text, **loss):
        c = small_config(sampler__group_size=4)
        c.preset = "rlp"
        apply_preset(c, ["sampler.group_size"])
        c.reward.name = text
        c.loss.update(loss)
        return build(c).step

    batch = random_batch(5, p=1, g=4).replace(host_rewards={"math": np.full((1, 4), -7.25, np.float32)})
    grads, _, rows = run(batch, rlp("log_prob"))
    shifted, _, shifted_rows = run(batch, rlp("log_prob + -1*math"))
    np.testing.assert_allclose(shifted_rows["reward"], rows["reward"] + 7.25, rtol=1e-5)
    close(shifted, grads)
    size = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
    whole = run(batch, rlp("log_prob", clip_low=0.0, clip_high=0.0))[0]
    difference = jax.tree.map(np.subtract, whole, grads)
    assert size(grads) > 1e-3 and size(difference) > 0.1 * size(grads), "the clip acts on some tokens, not on all"


def test_log_prob_sums_to_zero_and_jepo_does_not():
    batch = batch_of(5)
    for name in ("log_prob", "jepo"):
        logp, mask = np.float32([[-1], [-3], [-7]]).reshape(1, 3, 1), np.ones((1, 3, 1), bool)
        d = leave_one_out(OBJECTIVES[name], logp, mask, np.ones((1, 3), bool))
        assert (abs(float(d.sum())) < 1e-6) == (name == "log_prob")
    assert batch.keep.all()


# ------------------------------------------------------------------ what must not break it


def unlikely(batch):
    """Weights so sharp that tokens of the answers have log-probs beyond -1e4."""
    return PARAMS | {"final_norm": PARAMS["final_norm"] * 3e3}, batch


def alone(batch):
    return PARAMS, batch.replace(keep=np.arange(G) == np.arange(P)[:, None] % G)


def alike(batch):
    same = lambda x: np.repeat(x[:, :1], G, 1)
    return PARAMS, rows_of(batch, same)


def no_chain(batch):
    """Rows that begin with their answer."""
    segment = np.where(np.isin(batch.segment, (CHAIN, SAMPLED)), TAG, batch.segment)
    return PARAMS, batch.replace(segment=segment.astype(np.int32))


CASES = {
    "unlikely": unlikely,
    "unlikely when sampled": lambda b: (PARAMS, b.replace(sampler_logp=np.full_like(b.sampler_logp, -1e4))),
    "certain when sampled": lambda b: (unlikely(b)[0], b.replace(sampler_logp=np.zeros_like(b.sampler_logp))),
    "empty answers": lambda b: (PARAMS, b.replace(scored=np.zeros_like(b.scored))),
    "no chains": no_chain,
    "all dropped": lambda b: (PARAMS, b.replace(keep=np.zeros_like(b.keep))),
    "all truncated": lambda b: (PARAMS, b.replace(truncated=np.ones_like(b.truncated))),
    "one valid row": alone,
    "rows alike": alike,
    "huge rewards": lambda b: (PARAMS, b.replace(host_rewards={k: x * 1e6 for k, x in b.host_rewards.items()})),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CONFIGS)
def test_no_degenerate_batch_gives_nan_or_infinity(name, case):
    params, batch = CASES[case](batch_of(8))
    cfg = cfg_of(name)
    grads, metrics, rows = run(batch, cfg, params)
    # A perplexity beyond float32 is infinite; metrics.jsonl has null for it.
    if (rows["reward/avg_log_prob"] < -88).any():
        metrics["answer/perplexity"] = 1.0
    for kind, tree in (("gradient", grads), ("metric", metrics), ("row", rows)):
        for path, x in jax.tree.leaves_with_path(tree):
            assert np.isfinite(x).all(), (kind, jax.tree_util.keystr(path))
    if case.startswith("unlikely") and params is not PARAMS:
        assert rows["answer_logp"][batch.scored].min() < -1e4
    if case == "all dropped" or (case == "all truncated" and cfg.reward.truncated == "drop"):
        assert all((x == 0).all() for x in jax.tree.leaves(grads))
    if case == "one valid row":
        assert (rows["advantage"] == 0).all()
    if case == "rows alike":
        # Sums of equal numbers round; over a standard deviation they are cut off.
        none_right = name == "weighted" and (batch.host_rewards["math"] == 0).all(-1, keepdims=True)
        # max_rl gives -1/N to each row of a group with none right, times N in units of loo.
        np.testing.assert_allclose(rows["advantage"], np.where(none_right, -1.0, 0.0) * np.ones((P, G)), atol=2e-5)


@pytest.mark.parametrize("name", ["exact", "grpo"])
def test_a_group_of_one_has_its_answer_term_and_nothing_else(name):
    batch, cfg = batch_of(9, g=1), cfg_of(name)
    grads, metrics, rows = run(batch, cfg)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, metrics, rows)))
    assert (rows["advantage"] == 0).all() and metrics["loss/policy"] == 0
    assert (metrics["grad/answer_share"] == 1) == (name == "exact")  # the other has its KL, on the chain


def test_prob_of_a_hundred_tokens_underflows_and_the_run_is_told_once():
    n, t = 100, 104
    segment = np.tile(np.repeat([CHAIN, REFERENCE, PAD], [2, n, t - n - 2]).astype(np.int32), (2, 2, 1))
    completion = np.random.default_rng(0).integers(0, V, segment.shape).astype(np.int32)
    scored = segment == REFERENCE
    scored[1, :, 4:] = False  # the other prompt's answer has two tokens
    batch = rows_of(batch_of(0, p=2, g=2), lambda x: x).replace(
        completion=completion,
        segment=segment,
        scored=scored,
        sampler_logp=np.zeros(segment.shape, np.float32),
        truncated=np.zeros((2, 2), bool),
    )
    cfg = rewarded("prob", head_chunk=120)
    grads, metrics, rows = run(batch, cfg)
    assert (rows["reward"][0] == 0).all() and (rows["reward"][1] > 0).all()
    assert np.isfinite(rows["reward/log_prob"]).all() and (rows["reward/geo_mean_prob"] > 0).all()
    assert metrics["reward/underflow"] == 0.5
    alarms = Alarms(parse_reward("prob"), "force_close")
    values = {"reward/underflow": float(metrics["reward/underflow"])}
    (sentence,) = alarms.check(1, values)
    assert "underflow is 50%" in sentence and "geo_mean_prob" in sentence
    assert alarms.check(2, values) == [] == Alarms(parse_reward("log_prob"), "force_close").check(1, values)


def test_the_switches_here_are_all_there_are():
    """A new kind of advantage, ratio, aggregation or KL must come into CONFIGS."""
    used = [loss for _, loss, _ in CONFIGS.values()]
    values = {name: set(choices(kind)) for name, (kind, _) in all_fields().items()}
    for field in ("advantage", "aggregation", "ratio"):
        assert {getattr(loss, field) for loss in used} == values[f"loss.{field}"], field
    assert {loss.kl for loss in used} | {"k1"} == values["loss.kl"]
    names = {t.name for text, _, _ in CONFIGS.values() for t in parse_reward(text)}
    assert names >= set(OBJECTIVES) | {"rlpr", "nover_rank", "nover_efficiency", "length", "overlong"}
    assert {f.name for f in dataclasses.fields(LossConfig)} == {
        "answer_term",
        "policy_term",
        "aggregation",
        "max_tokens",
        "advantage",
        "ratio",
        "ratio_cap",
        "clip_low",
        "clip_high",
        "clip_per",
        "mask_move",
        "format_term",
        "delta_l_alpha",
        "kl",
        "kl_coef",
        "reference_every",
        "reference_decay",
        "span",
    }
