"""GSPO's clip, DPPO's mask, Delta-L's weights, NRT's format term and VR-CLI's scorer, by their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.rows import row_stats
from rl_likelihood.learner.step import filtered, gradients
from rl_likelihood.learner.surrogate import Counts, LossConfig, aggregate, length_weights, policy_loss
from rl_likelihood.rewards import group_filter, shaping
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.shapes import TAG, TrainState
from tests.small import random_batch, random_params, rewarded, tiny

ROW = np.arange(4) < np.array([[[2], [4]]])  # one prompt, rows of 2 and 4 tokens
BOTH = np.ones((1, 2), bool)
COUNTS = Counts(jnp.float32(1), jnp.float32(6))
LOGP = np.log(np.float32([[[0.5, 0.4, 0.3, 0.2], [0.6, 0.5, 0.4, 0.9]]]))
THEN = np.log(np.float32([[[0.1, 0.4, 0.9, 0.9], [0.5, 0.9, 0.4, 0.2]]]))
MODEL = tiny(layers=1)
PARAMS, INITIAL = random_params(MODEL), random_params(MODEL, 1)


def slope(cfg, advantage, counts=COUNTS):
    return np.asarray(jax.grad(policy_loss)(LOGP, THEN, np.float32([advantage]), ROW, BOTH, cfg, counts))


@pytest.mark.parametrize("advantage", [(1.0, 1.0), (-1.0, -1.0)])
def test_gspo_clips_the_geometric_mean_of_a_row(advantage):
    """Ratios of the rows sqrt(5) and (1.2 / 1.8 * 4.5)^(1/4), both above 1.28: with a positive advantage both stop."""
    mean = np.exp(np.where(ROW, LOGP - THEN, 0).sum(-1) / ROW.sum(-1))
    assert (mean > 1.28).all()
    cfg = LossConfig(clip_low=0.2, clip_high=0.28, clip_per="sequence", aggregation="seq_mean")
    stops = advantage[0] > 0
    each = -np.asarray(advantage) * mean[0] / ROW.sum(-1)[0] / 2  # A ratio grad of the row's mean log-prob
    expected = np.where(ROW, 0.0 if stops else each[:, None], 0.0)
    np.testing.assert_allclose(slope(cfg, advantage), expected, rtol=1e-5)


@pytest.mark.parametrize("advantage", [(1.0, -1.0), (-1.0, 1.0)])
def test_dppo_leaves_out_what_moved_far_the_way_it_is_pushed(advantage):
    cfg = LossConfig(ratio="token", ratio_cap=1e6, mask_move=0.2)
    a, move, ratio = np.float32(advantage)[:, None], np.exp(LOGP) - np.exp(THEN), np.exp(LOGP - THEN)
    out = a * move > 0.2
    assert (out & ROW).any() and (~out & ROW & (np.abs(move) > 0.2)).any()
    np.testing.assert_allclose(slope(cfg, advantage), np.where(ROW & ~out, -a * ratio / 2, 0), rtol=1e-5)
    on_policy = jax.grad(policy_loss)(LOGP, LOGP, np.float32([advantage]), ROW, BOTH, cfg, COUNTS)
    np.testing.assert_allclose(on_policy, np.where(ROW, -a / 2, 0), rtol=1e-6)


@pytest.mark.parametrize("name", ["delta_l", "delta_l_batch"])
def test_delta_l_weighs_rows_by_their_length(name):
    rng = np.random.default_rng(0)
    values, keep = rng.normal(size=(4, 3, 6)).astype(np.float32), rng.random((4, 3)) < 0.8
    mask = np.arange(6) < rng.integers(1, 7, (4, 3, 1))
    cfg = LossConfig(aggregation=name, delta_l_alpha=0.75)
    counts = Counts(jnp.float32(4), jnp.float32(0))
    if name == "delta_l_batch":
        counts = counts._replace(row_weights=length_weights(mask, keep, cfg).sum())
    whole = float(aggregate(values, mask, keep, cfg, counts))
    rows, weight = np.where(mask, values, 0).sum(-1), np.where(keep, mask.sum(-1) ** -0.75, 0)
    if name == "delta_l":
        expected = np.mean([(w * r).sum() / w.sum() if w.any() else 0 for w, r in zip(weight, rows, strict=True)])
    else:
        expected = (weight * rows).sum() / weight.sum()
    assert whole == pytest.approx(expected, abs=1e-5)
    parts = [float(aggregate(values[i : i + 1], mask[i : i + 1], keep[i : i + 1], cfg, counts)) for i in range(4)]
    assert sum(parts) == pytest.approx(whole, abs=1e-5)


def test_equal_lengths_make_delta_l_the_mean_over_rows():
    values, mask, keep = np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), bool), np.ones((2, 3), bool)
    for name in ("delta_l", "seq_sum"):
        counts = Counts(jnp.float32(2), jnp.float32(24))
        assert float(aggregate(values, mask, keep, LossConfig(aggregation=name), counts)) == pytest.approx(4)


def test_the_format_term_is_the_forced_tags_alone():
    batch = random_batch(3)
    tags = batch.segment == TAG
    assert tags.any() and not tags.any(-1).all()
    run = jax.jit(gradients, static_argnums=(3, 4))
    parts = []
    for term in (0.0, 0.3):
        loss = LossConfig(policy_term=0.0, answer_term=0.0, format_term=term)
        parts.append(run(PARAMS, (None, None), batch, MODEL, rewarded("log_prob", loss=loss, head_chunk=40)))
    (none, sums, _), (with_term, more, _) = parts
    assert "loss/format" not in sums and all((np.asarray(x) == 0).all() for x in jax.tree.leaves(none))

    def by_hand(params):
        logp = row_stats(params, MODEL, batch, rewarded("log_prob", head_chunk=40)).stats.log_prob
        return 0.3 * -(jnp.where(tags, logp, 0).sum(-1) / np.maximum(tags.sum(-1), 1)).mean()

    value, grads = jax.jit(jax.value_and_grad(by_hand))(PARAMS)
    assert 0.3 * float(more["loss/format"]) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), with_term, grads)


def test_dro_leaves_out_groups_in_which_no_answer_token_moves():
    batch, cfg = random_batch(3), rewarded("log_prob", head_chunk=40)
    logp = np.asarray(row_stats(PARAMS, MODEL, batch, cfg).stats.log_prob)
    spread = [
        np.stack([row[there] for row, there in zip(rows, scored, strict=True)]).std(0, ddof=1).max()
        for rows, scored in zip(logp, batch.scored, strict=True)
    ]
    threshold = float(np.median(spread))
    cfg = dataclasses.replace(cfg, filter=FilterConfig(mode="token_spread", threshold=threshold))
    state = TrainState(step=jnp.int32(0), params=PARAMS, opt_state=(), filter=group_filter.init_filter())
    counted = jax.jit(lambda state: filtered(state, (None, None), batch, MODEL, cfg)[0].counted)(state)
    assert np.asarray(counted).tolist() == [s >= threshold for s in spread] and 0 < np.asarray(counted).sum() < 4


def test_the_steps_of_vr_cli():
    """Perplexity 10 without a chain; 9.999, 9.99, 9.85, 9.79, 10.2 after one."""
    after = np.log(np.float32([[9.999, 9.99, 9.85, 9.79, 10.2]]))
    np.testing.assert_allclose(shaping.vr_cli(after, np.log(np.float32([10.0]))), [[0, 0.5, 0.9, 1, 0]])


def test_vr_cli_is_scored_by_the_model_that_does_not_move():
    """A chain that never opened its answer also gets the score of the floor."""
    batch, cfg = random_batch(3), rewarded("vr_cli", baseline="frozen", truncated="floor", floor=-99.0, head_chunk=40)
    assert cfg.with_reference and cfg.loss.kl == "none"
    logp = np.asarray(row_stats(INITIAL, MODEL, batch, cfg).stats.log_prob)
    n = batch.scored.sum(-1)
    nll = -np.where(batch.scored, logp, 0).sum(-1) / n
    base = np.zeros((4, 5), np.float32)
    for row, tokens, values in zip(base, n[:, 0], nll, strict=True):  # near the chains' own, so that all steps occur
        row[:tokens] = -np.sort(values)[1] * 1.001
    got = jax.jit(gradients, static_argnums=(3, 4))(
        PARAMS, (INITIAL, None), batch.replace(baseline_logp=base), MODEL, cfg
    )
    percent = 100 * (1 - np.exp(nll - np.array([-row[0] for row in base])[:, None]))
    expected = np.select([percent >= 2, percent >= 1, percent >= 0.05], [1, 0.9, 0.5], 0)
    assert expected[batch.truncated].any()
    expected = np.where(batch.truncated, 0, expected)
    np.testing.assert_allclose(got[2]["reward"], expected, atol=1e-6)
    assert len(np.unique(expected)) > 1 and float(got[1]["loss/kl"]) == 0
