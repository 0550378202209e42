"""The table of rewards: hand-computed values, identities between them, and what padding and dropping may not do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.rewards.likelihood import OBJECTIVES, SCORES

P, G, A = 2, 4, 3
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@functools.cache
def compiled(name):
    """(value [P], gradient of their sum [P, G, A])."""

    def f(logp, mask, keep):
        value, vjp = jax.vjp(lambda x: OBJECTIVES[name](x, mask, keep), logp)
        return value, vjp(jnp.ones_like(value))[0]

    return jax.jit(f)


def value(name, *args):
    return np.asarray(compiled(name)(*args)[0])


# With rows (each the log-probs of one answer's tokens), their sums and lengths.
TABLE = {
    "log_prob": lambda rows, total, n: np.mean(total),
    "avg_log_prob": lambda rows, total, n: np.mean(total / n),
    "prob": lambda rows, total, n: np.mean(np.exp(total)),
    "avg_prob": lambda rows, total, n: np.mean([np.exp(x).sum() for x in rows] / n),
    "geo_mean_prob": lambda rows, total, n: np.mean(np.exp(total / n)),
    "jepo": lambda rows, total, n: np.log(np.mean(np.exp(total - total.max()))) + total.max(),
}


def by_hand(name, logp, mask, keep):
    """The table of the design, group by group in float64, over the kept rows and the unmasked tokens alone."""
    out = []
    for rows, masked, kept_rows in zip(np.asarray(logp, np.float64), mask, keep, strict=True):
        rows = [row[s] for row, s, k in zip(rows, masked, kept_rows, strict=True) if k]
        sums, lengths = np.array([x.sum() for x in rows]), np.array([max(len(x), 1) for x in rows])
        out.append(TABLE[name](rows, sums, lengths) if rows else 0.0)
    return np.array(out)


ALL = np.ones((1, 2, 3), bool)
TWO_ANSWERS = np.log([[[0.01, 0.7, 0.9], [0.05, 0.7, 0.9]]]).astype(np.float32)


def test_hand_computed_values():
    # Products 0.0063 and 0.0315, geometric means 0.1847 and 0.3158, arithmetic means 0.5367 and 0.55.
    kept_rows = np.ones((1, 2), bool)
    expected = {
        "log_prob": (math.log(0.0063) + math.log(0.0315)) / 2,
        "avg_log_prob": (math.log(0.0063) + math.log(0.0315)) / 6,
        "prob": 0.0189,
        "avg_prob": (0.53666667 + 0.55) / 2,
        "geo_mean_prob": (0.18469 + 0.31582) / 2,
        "jepo": math.log(0.0189),
    }
    assert set(expected) == set(OBJECTIVES)
    for name, x in expected.items():
        assert value(name, TWO_ANSWERS, ALL, kept_rows)[0] == pytest.approx(x, abs=1e-5), name
    rows = {name: np.asarray(score(TWO_ANSWERS, ALL))[0] for name, score in SCORES.items()}
    np.testing.assert_allclose(rows["prob"], [0.0063, 0.0315], rtol=1e-5)
    np.testing.assert_allclose(rows["geo_mean_prob"], [0.1847, 0.3158], atol=1e-4)
    np.testing.assert_allclose(rows["avg_prob"], [0.5367, 0.5500], atol=1e-4)
    np.testing.assert_allclose(rows["avg_log_prob"], np.log([0.1847, 0.3158]), atol=1e-3)


def test_the_metrics_fixture_with_its_two_answer_lengths():
    # Two items, answers of 2 and 4 tokens, probabilities per chain (.5, .1) and (.2, .2): per-answer MC1 and MC2.
    n = np.array([2, 4])
    total = np.log([[0.5, 0.1], [0.2, 0.2]])
    mask = np.broadcast_to(np.arange(4) < n[:, None, None], (2, 2, 4))
    logp = np.where(mask, (total / n[:, None])[..., None], -3.0).astype(np.float32)
    keep = np.ones((2, 2), bool)
    mc1 = value("avg_log_prob", logp, mask, keep).mean()
    assert mc1 == pytest.approx(-0.575646, abs=1e-6) and math.exp(-mc1) == pytest.approx(1.778279, abs=1e-5)
    jepo = value("jepo", logp, mask, keep)
    assert (jepo / n).mean() == pytest.approx(-0.502173, abs=1e-6)
    assert jepo.sum() / n.sum() == pytest.approx(-0.468902, abs=1e-6)


finite = st.floats(-30, 0, width=32)
groups = st.tuples(
    st.lists(finite, min_size=P * G * A, max_size=P * G * A).map(lambda x: np.float32(x).reshape(P, G, A)),
    st.lists(st.booleans(), min_size=P * G * A, max_size=P * G * A).map(lambda x: np.array(x).reshape(P, G, A)),
    st.lists(st.booleans(), min_size=P * G, max_size=P * G).map(lambda x: np.array(x).reshape(P, G)),
)


@PROPERTY
@given(groups)
def test_every_group_is_scored_by_the_table(group):
    for name in OBJECTIVES:
        np.testing.assert_allclose(value(name, *group), by_hand(name, *group), rtol=2e-6, atol=1e-5, err_msg=name)


@PROPERTY
@given(groups, st.permutations(range(G)), st.sampled_from([0.0, 3.0, -1e4, -1e30]))
def test_order_padding_and_dropped_rows_do_not_matter(group, order, garbage):
    logp, mask, keep = group
    counted = mask & keep[..., None]
    for name in OBJECTIVES:
        before, slope = compiled(name)(logp, mask, keep)
        moved, moved_slope = compiled(name)(logp[:, order], mask[:, order], keep[:, order])
        np.testing.assert_allclose(moved, before, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moved_slope, np.asarray(slope)[:, order], rtol=1e-5, atol=1e-6)
        # What is masked or dropped may hold anything: neither value nor gradient sees it.
        other, other_slope = compiled(name)(np.where(counted, logp, np.float32(garbage)), mask, keep)
        np.testing.assert_array_equal(other, before)
        np.testing.assert_array_equal(other_slope, slope)
        assert (np.asarray(slope)[~counted] == 0).all()


@PROPERTY
@given(groups)
def test_identities_between_rewards(group):
    logp, mask, _ = group
    mask = mask | (np.arange(A) == 0)  # no empty answer: it has no token to average
    rows = {name: np.asarray(score(logp, mask), np.float64) for name, score in SCORES.items()}
    slack = 1e-5
    # Geometric <= arithmetic mean; the product <= the mean <= the largest token probability.
    assert (np.exp(rows["avg_log_prob"]) <= rows["avg_prob"] * (1 + slack)).all()
    assert (rows["prob"] <= rows["avg_prob"] * (1 + slack)).all()
    assert (rows["avg_prob"] <= np.where(mask, np.exp(logp), 0).max(-1) * (1 + slack)).all()
    # Jensen: the bound with more chains is higher, and below the best of them.
    keep = np.ones((P, G), bool)
    jepo = value("jepo", logp, mask, keep)
    assert (jepo >= rows["log_prob"].mean(-1) - 1e-4).all() and (jepo <= rows["log_prob"].max(-1) + 1e-4).all()
    # One token: sum, mean and product agree.
    first = np.broadcast_to(np.arange(A) == 0, mask.shape)
    one = {name: value(name, logp, first, keep) for name in OBJECTIVES}
    for a, b in (("avg_prob", "prob"), ("geo_mean_prob", "prob"), ("avg_log_prob", "log_prob")):
        np.testing.assert_allclose(one[a], one[b], rtol=1e-6)
    # One kept chain: jepo is log_prob, in value and gradient.
    alone = np.broadcast_to(np.arange(G) == 1, keep.shape)
    for a, b in zip(compiled("jepo")(logp, mask, alone), compiled("log_prob")(logp, mask, alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_gradients_are_the_exact_answer_weights():
    rng = np.random.default_rng(0)
    logp = -rng.exponential(1.0, (P, G, A)).astype(np.float32)
    mask = np.broadcast_to(np.arange(A) < np.array([3, 2])[:, None, None], logp.shape)
    keep = np.array([[True] * 4, [True, True, False, True]])
    total = np.where(mask, logp, 0.0).sum(-1)
    n, kept_rows = mask.sum(-1), keep.sum(-1, keepdims=True)
    softmax = np.where(keep, np.exp(total), 0)
    weights = {
        "log_prob": np.ones_like(total) / kept_rows,
        "avg_log_prob": 1 / n / kept_rows,
        "prob": np.exp(total) / kept_rows,
        "avg_prob": (np.exp(logp) / (n * kept_rows)[..., None]),
        "geo_mean_prob": np.exp(total / n) / n / kept_rows,
        "jepo": softmax / softmax.sum(-1, keepdims=True),
    }
    for name, w in weights.items():
        expected = np.where(mask & keep[..., None], w if w.ndim == 3 else w[..., None], 0)
        np.testing.assert_allclose(compiled(name)(logp, mask, keep)[1], expected, rtol=2e-6, atol=1e-7, err_msg=name)


def test_equal_chains_share_the_jepo_gradient():
    logp = np.full((P, G, A), -2.5, np.float32)
    _, slope = compiled("jepo")(logp, np.ones_like(logp, bool), np.ones((P, G), bool))
    np.testing.assert_allclose(slope, 1 / G, rtol=1e-6)


EXTREMES = [0.0, -1e-30, -90.0, -1e4, -1e30, -3e38]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_finite_input_gives_nan_or_infinity(name):
    rng = np.random.default_rng(1)
    draws = [np.full((P, G, A), x) for x in EXTREMES] + [rng.choice(EXTREMES, (P, G, A)) for _ in range(30)]
    masks = [np.ones((P, G, A), bool), np.zeros((P, G, A), bool), rng.random((P, G, A)) < 0.5]
    some = rng.random((P, G)) < 0.5
    keeps = [np.ones((P, G), bool), np.zeros((P, G), bool), np.arange(G) + np.zeros((P, 1)) == 1, some]
    for logp in draws:
        for mask in masks:
            for keep in keeps:
                got, slope = compiled(name)(logp.astype(np.float32), mask, keep)
                assert np.isfinite(got).all() and np.isfinite(slope).all(), (name, logp, mask, keep)
                assert (np.asarray(got)[~keep.any(-1)] == 0).all(), "nothing kept is 0"


def test_a_very_unlikely_group_keeps_its_jepo_value_and_gradient():
    logp = np.array([[[-1e4], [-1e4 - 1.0]]], np.float32)
    got, slope = compiled("jepo")(logp, np.ones_like(logp, bool), np.ones((1, 2), bool))
    assert got[0] == pytest.approx(-1e4 + math.log((1 + math.exp(-1)) / 2), abs=2e-3)
    np.testing.assert_allclose(slope[0, :, 0], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rtol=1e-5)


def test_an_empty_answer_and_a_group_of_one():
    keep = np.ones((P, G), bool)
    logp, none = np.full((P, G, A), -1.0, np.float32), np.zeros((P, G, A), bool)
    # The empty product is certain; the mean over no token is 0.
    certain = {"log_prob": 0, "avg_log_prob": 0, "prob": 1, "avg_prob": 0, "geo_mean_prob": 1, "jepo": 0}
    for name, x in certain.items():
        got, slope = compiled(name)(logp, none, keep)
        assert (np.asarray(got) == x).all() and (np.asarray(slope) == 0).all(), name
    one = -np.arange(1.0, 4.0, dtype=np.float32).reshape(1, 1, 3)
    for name in OBJECTIVES:
        args = one, np.ones((1, 1, 3), bool), np.ones((1, 1), bool)
        np.testing.assert_allclose(value(name, *args), by_hand(name, *args), rtol=1e-6)
