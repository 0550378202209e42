"""The policy term's switches: aggregation over lengths, clipping, importance ratios; and estimates of the KL."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.surrogate import Counts, LossConfig, aggregate, kl_estimate, policy_loss

ROW = np.arange(4) < np.array([[[2], [4]]])  # one prompt, rows of 2 and 4 tokens
BOTH = np.ones((1, 2), bool)
SIGN = np.array([[1.0, -1.0]], np.float32)
COUNTS = Counts(jnp.float32(1), jnp.float32(6))


@pytest.mark.parametrize(
    "aggregation, expected", [("seq_mean", 0.0), ("token_mean", 1 / 3), ("const", 0.125), ("seq_sum", 1.0)]
)
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_length_aggregation_of_the_loss(aggregation, expected, clip):
    # GRPO, DAPO, Dr.GRPO with L = 8, and the sequence sum's mean: -sum A ratio on lengths (2, 4), A = (1, -1).
    cfg = LossConfig(aggregation=aggregation, max_tokens=8, clip_low=clip, clip_high=clip)
    logp = np.ones((1, 2, 4), np.float32)  # A * 1 a token; with clipping the ratio is 1
    assert float(policy_loss(logp, logp, SIGN, ROW, BOTH, cfg, COUNTS)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["seq_sum", "seq_mean", "const", "token_mean"])
def test_global_counts_make_parts_add_up_and_dropped_rows_vanish(aggregation):
    rng = np.random.default_rng(2)
    values, mask = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.random((4, 3, 5)) < 0.7
    keep = rng.random((4, 3)) < 0.7
    cfg = LossConfig(aggregation=aggregation, max_tokens=7)
    counts = Counts(jnp.float32(4), jnp.float32((mask & keep[..., None]).sum()))
    whole = float(aggregate(values, mask, keep, cfg, counts))
    parts = [float(aggregate(values[i : i + 1], mask[i : i + 1], keep[i : i + 1], cfg, counts)) for i in range(4)]
    assert sum(parts) == pytest.approx(whole, abs=1e-6)
    sums = np.where(mask, values, 0).sum(-1)
    if aggregation == "token_mean":
        expected = sums[keep].sum() / (mask & keep[..., None]).sum()
    else:
        divide = {"seq_sum": 1, "const": 7, "seq_mean": np.maximum(mask.sum(-1), 1)}[aggregation]
        rows = np.where(keep, sums / divide, 0)
        expected = (rows.sum(-1) / np.maximum(keep.sum(-1), 1)).mean()
    assert whole == pytest.approx(expected, abs=1e-5)
    garbage = np.where(mask & keep[..., None], values, np.nan)
    assert float(aggregate(garbage, mask, keep, cfg, counts)) == whole


def policy_gradient(cfg, logp, sampler_logp, advantage=SIGN):
    gradient = jax.jit(jax.grad(policy_loss), static_argnames="cfg")
    return np.asarray(gradient(logp, sampler_logp, advantage, ROW, BOTH, cfg=cfg, counts=COUNTS))


@pytest.mark.parametrize(
    "cfg",
    [
        LossConfig(),
        LossConfig(clip_low=0.2, clip_high=0.28),
        LossConfig(clip_high=0.2),
        LossConfig(ratio="token"),
        LossConfig(ratio="sequence"),
    ],
)
def test_on_policy_every_switch_is_reinforce(cfg):
    logp = -np.random.default_rng(3).exponential(1.0, (1, 2, 4)).astype(np.float32)
    expected = -np.where(ROW, SIGN[..., None], 0) / 2  # mean over the two rows of A grad logp
    np.testing.assert_allclose(policy_gradient(cfg, logp, logp), expected, atol=1e-6)


@pytest.mark.parametrize(
    "low, high, ratio, advantage, acts",
    [
        (0.2, 0.28, 1.27, 1, False),
        (0.2, 0.28, 1.29, 1, True),
        (0.2, 0.28, 1.29, -1, False),
        (0.2, 0.28, 0.81, -1, False),
        (0.2, 0.28, 0.79, -1, True),
        (0.2, 0.28, 0.79, 1, False),
        (0.0, 0.28, 0.01, -1, False),
        (0.2, 0.0, 50.0, 1, False),
        (0.2, 0.0, 0.5, -1, True),
    ],
)
def test_the_clip_acts_only_where_it_must(low, high, ratio, advantage, acts):
    logp = np.full((1, 2, 4), -1.0, np.float32)
    got = policy_gradient(LossConfig(clip_low=low, clip_high=high), logp, logp - math.log(ratio), SIGN * 0 + advantage)
    expected = 0 if acts else -advantage * ratio / 2
    np.testing.assert_allclose(got, np.where(ROW, expected, 0), rtol=1e-5)


def test_importance_ratios_are_truncated_and_constant():
    logp = np.full((1, 2, 4), -1.0, np.float32)
    stale = logp - np.log(np.float32([[[1.5, 3.0, 9.0, 9.0], [0.5, 1.0, 0.5, 8.0]]]))
    token = policy_gradient(LossConfig(ratio="token", ratio_cap=2.0), logp, stale)
    np.testing.assert_allclose(token, -np.float32([[[1.5, 2.0, 0, 0], [-0.5, -1.0, -0.5, -2.0]]]) / 2, rtol=1e-5)
    # The row's product: 4.5 cut at 4, and .5 x 1 x .5 x 8 = 2; tokens beyond the row do not count.
    row = policy_gradient(LossConfig(ratio="sequence", ratio_cap=4.0), logp, stale)
    np.testing.assert_allclose(row, -np.float32([[[4, 4, 0, 0], [-2, -2, -2, -2]]]) / 2, rtol=1e-5)
    for cfg in (LossConfig(ratio="token"), LossConfig(ratio="sequence"), LossConfig(clip_low=0.2)):
        assert np.isfinite(policy_gradient(cfg, logp, logp - 1e4)).all()


@pytest.mark.parametrize("cfg", [LossConfig(), LossConfig(ratio="token"), LossConfig(clip_low=0.2, clip_high=0.2)])
def test_nothing_flows_through_the_advantage(cfg):
    logp = -np.ones((1, 2, 4), np.float32)

    def loss(advantage):
        return policy_loss(logp, logp - 0.1, advantage, ROW, BOTH, cfg, COUNTS)

    assert float(loss(jnp.asarray(2 * SIGN))) != pytest.approx(float(loss(jnp.asarray(SIGN))))
    assert (jax.grad(loss)(jnp.asarray(SIGN)) == 0).all()


# ------------------------------------------------------------------ KL estimates

PI, REF = np.array([0.6, 0.3, 0.1]), np.array([0.5, 0.25, 0.25])


def test_kl_estimates_in_expectation():
    expected = {"k1": 0.072460, "k2": 0.056938, "k3": 0.072460}
    for kind, x in expected.items():
        per_token = np.asarray(kl_estimate(kind, np.log(PI), np.log(REF)))
        assert PI @ per_token == pytest.approx(x, abs=1e-6)
    assert (np.asarray(kl_estimate("k3", np.log(PI), np.log(REF))) > 0).all()


def test_kl_gradients_in_expectation():
    logits = jnp.asarray(np.log(PI))

    def expectation(kind):  # sampled from pi, the sampling not differentiated: what a loss does
        return lambda z: PI @ kl_estimate(kind, jax.nn.log_softmax(z), np.log(REF))

    forward = lambda z: jax.nn.softmax(z) @ (jax.nn.log_softmax(z) - np.log(REF))
    backward = lambda z: REF @ (np.log(REF) - jax.nn.log_softmax(z))
    grads = {kind: jax.grad(expectation(kind))(logits) for kind in ("k1", "k2", "k3")}
    np.testing.assert_allclose(grads["k1"], 0, atol=1e-6)
    np.testing.assert_allclose(grads["k2"], jax.grad(forward)(logits), atol=1e-6)
    np.testing.assert_allclose(grads["k3"], jax.grad(backward)(logits), atol=1e-6)
    assert np.abs(grads["k2"] - grads["k3"]).max() > 0.01


def test_kl_edges():
    same = jnp.float32([-1.0, -50.0])
    for kind in ("k1", "k2", "k3"):
        assert (kl_estimate(kind, same, same) == 0).all()
        assert np.isfinite(kl_estimate(kind, same, same + 1000.0)).all()
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate("k4", same, same)
