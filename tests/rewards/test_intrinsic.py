"""Rewards without a reference: published numbers, alignment of statistics and tokens, length preferences, masks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.model.head import token_stats
from rl_likelihood.rewards.intrinsic import INTRINSIC, PolicyStats, in_base, self_certainty, self_certainty_raw

P, G, T, V = 2, 3, 4, 4
PROPERTY = settings(max_examples=30, deadline=None, derandomize=True, database=None)
PEAKED = np.log([0.7, 0.1, 0.1, 0.1])
SHARP = np.log([0.97, 0.01, 0.01, 0.01])


@functools.cache
def compiled(name):
    return jax.jit(INTRINSIC[name])


def value(name, stats):
    return np.asarray(compiled(name)(stats))


@jax.jit
def _head_stats(logits, tokens):
    return token_stats(logits, jnp.eye(V), tokens)


def from_logits(logits, tokens, mask):
    """The statistics as a step makes them: by the fused head (here with W = 1), one distribution per sampled token."""
    stats = _head_stats(np.float32(logits), tokens)
    return PolicyStats(stats.log_prob, stats.entropy, stats.self_certainty, mask, V)


def constant(logits, token=0, n=T):
    """One row whose first n tokens all come from the same distribution."""
    mask = (np.arange(T) < n)[None, None]
    return from_logits(np.broadcast_to(logits, (1, 1, T, V)), np.full((1, 1, T), token), mask)


@pytest.mark.parametrize(
    ("logits", "certainty", "raw"),
    [(PEAKED, 0.429813, 1.816108), (SHARP, 2.075198, 3.461492), (np.zeros(4), 0, 1.386294)],
)
def test_self_certainty_of_published_distributions(logits, certainty, raw):
    for n in (1, T):
        assert value("self_certainty", constant(logits, n=n))[0, 0] == pytest.approx(certainty, abs=2e-6)
        assert value("self_certainty_raw", constant(logits, n=n))[0, 0] == pytest.approx(raw, abs=2e-6)


def test_self_certainty_is_not_the_other_divergence():
    # KL(p || uniform) = log V - H.
    stats = constant(PEAKED)
    assert math.log(V) + value("token_entropy", stats)[0, 0] == pytest.approx(0.4458, abs=5e-5)
    assert value("self_certainty", stats)[0, 0] == pytest.approx(0.4298, abs=5e-5)


def test_entropy_and_trajectory_by_hand():
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
    expected = {
        "token_entropy": -entropy,
        "token_entropy_sum": -3 * entropy,
        "trajectory": math.log(0.1),
        "trajectory_sum": 3 * math.log(0.1),
    }
    stats = constant(PEAKED, token=2, n=3)
    bits = in_base(stats, "2")
    for name, x in expected.items():
        assert value(name, stats)[0, 0] == pytest.approx(x, rel=1e-6), name
        assert value(name, bits)[0, 0] == pytest.approx(x * 1.442695, rel=1e-6), name
    for name in ("self_certainty", "self_certainty_raw"):
        np.testing.assert_array_equal(value(name, bits), value(name, stats))
    np.testing.assert_array_equal(in_base(stats, "e").entropy, stats.entropy)
    assert value("token_entropy", in_base(constant(np.zeros(V)), "2"))[0, 0] == pytest.approx(-2.0, abs=1e-6)


def test_the_constant_is_only_the_constant():
    stats = from_logits(
        np.random.default_rng(0).normal(size=(P, G, T, V)), np.zeros((P, G, T), int), np.ones((P, G, T), bool)
    )
    u, raw = self_certainty(stats), self_certainty_raw(stats)
    np.testing.assert_allclose(raw - u, math.log(V), rtol=1e-5)
    # The vocabulary's size may be a traced number (a PolicyStats handed to jit) or a Python one.
    np.testing.assert_allclose(value("self_certainty_raw", stats), raw, rtol=1e-6)


def test_logit_shift_moves_nothing():
    rng = np.random.default_rng(1)
    logits, tokens = rng.normal(size=(P, G, T, V)), rng.integers(V, size=(P, G, T))
    mask = rng.random((P, G, T)) < 0.7
    shifted = logits + rng.integers(-50, 50, size=(P, G, T, 1))
    for name in INTRINSIC:
        a, b = (value(name, from_logits(x, tokens, mask)) for x in (logits, shifted))
        np.testing.assert_allclose(a, b, atol=5e-5, err_msg=name)


def test_token_t_is_scored_by_the_distribution_that_produced_it():
    # Two tokens: distributions 0 and 1 produced them, distribution 2 is what would have come next.
    tokens, n = np.array([[[2, 1, 0, 0]]]), 2
    mask = (np.arange(T) < n)[None, None]
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(1, 1, T, V))
    for name in INTRINSIC:
        before = value(name, from_logits(logits, tokens, mask))
        for t in range(T):
            other = logits.copy()
            other[..., t, :] = SHARP
            after = value(name, from_logits(other, tokens, mask))
            assert (after != before).all() == (t < n), (name, t)


def test_a_token_that_becomes_impossible_is_felt_by_self_certainty_and_not_by_entropy():
    rare = constant([0.0, 0.0, 0.0, -20.0]), constant([0.0, 0.0, 0.0, -2000.0])
    certainty, entropy = ([value(name, s)[0, 0] for s in rare] for name in ("self_certainty", "token_entropy"))
    assert certainty[1] - certainty[0] == pytest.approx(1980 / V, rel=1e-5)
    assert entropy[1] == pytest.approx(entropy[0], abs=1e-6)


def test_sums_prefer_short_rows_and_means_of_log_probs_long_ones():
    # The long row is the short one and then easier tokens.
    logits = np.stack([PEAKED, PEAKED, SHARP, SHARP])[None, None].repeat(2, 1)
    mask = np.arange(T) < np.array([[2], [4]])
    stats = from_logits(logits, np.zeros((1, 2, T), int), mask[None])
    for name, prefers_short in (
        ("trajectory_sum", True),
        ("token_entropy_sum", True),
        ("trajectory", False),
        ("token_entropy", False),
        ("self_certainty", False),
    ):
        short, long = value(name, stats)[0]
        assert (short > long) == prefers_short, name


def by_hand(name, stats):
    """The module's table row by row in float64, over the tokens that count alone."""
    out = np.zeros(stats.mask.shape[:2])
    for at in np.ndindex(out.shape):
        counted = stats.mask[at]
        lp, h, u = (np.float64(x[at][counted]) for x in stats[:3])
        if counted.any():
            out[at] = {
                "self_certainty": u.mean(),
                "self_certainty_raw": u.mean() + math.log(stats.vocab_size),
                "token_entropy": -h.mean(),
                "token_entropy_sum": -h.sum(),
                "trajectory": lp.mean(),
                "trajectory_sum": lp.sum(),
            }[name]
    return out


N = P * G * T
floats = st.lists(st.floats(0, 30, width=32), min_size=3 * N, max_size=3 * N)
groups = st.tuples(floats, st.lists(st.booleans(), min_size=N, max_size=N)).map(
    lambda x: PolicyStats(
        *(np.float32(x[0]).reshape(3, P, G, T) * np.float32([-1, 1, 1]).reshape(3, 1, 1, 1)),
        np.array(x[1]).reshape(P, G, T),
        V,
    )
)


@PROPERTY
@given(groups, st.permutations(range(G)), st.sampled_from([0.0, 3.0, -1e4, 3e38, math.nan]))
def test_the_table_and_what_order_and_masked_tokens_may_not_do(stats, order, garbage):
    moved = PolicyStats(*(x[:, order] for x in stats[:4]), V)
    dirty = PolicyStats(*(np.where(stats.mask, x, np.float32(garbage)) for x in stats[:3]), stats.mask, V)
    for name in INTRINSIC:
        got = value(name, stats)
        np.testing.assert_allclose(got, by_hand(name, stats), rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(value(name, moved), got[:, order])
        np.testing.assert_array_equal(value(name, dirty), got)
        assert (got[~stats.mask.any(-1)] == 0).all(), "a row without tokens scores 0"


def test_more_padding_and_a_batched_call_change_nothing():
    rng = np.random.default_rng(3)
    stats = PolicyStats(*rng.normal(size=(3, P, G, T)).astype(np.float32), rng.random((P, G, T)) < 0.6, V)
    longer = PolicyStats(*(np.pad(x, [(0, 0), (0, 0), (0, 3)]) for x in stats[:4]), V)
    twice = PolicyStats(*(np.stack([x, x[::-1]]) for x in stats[:4]), V)
    for name, f in INTRINSIC.items():
        once = value(name, stats)
        np.testing.assert_allclose(value(name, longer), once, rtol=1e-6, atol=1e-7)
        both = jax.vmap(f, in_axes=(PolicyStats(0, 0, 0, 0, None),))(twice)
        np.testing.assert_allclose(both, [once, once[::-1]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", INTRINSIC)
def test_no_finite_input_gives_nan_or_infinity(name):
    rng = np.random.default_rng(4)
    extremes = [0.0, -1e-30, 1e4, -1e4, 1e30, -3e38, 3e38]
    for x in [*extremes, None]:
        draw = rng.choice(extremes, (3, P, G, T)) if x is None else np.full((3, P, G, T), x)
        for mask in (np.ones((P, G, T), bool), np.zeros((P, G, T), bool), rng.random((P, G, T)) < 0.5):
            stats = PolicyStats(*draw.astype(np.float32), mask, V)
            for base in ("e", "2"):
                got = value(name, in_base(stats, base))
                assert got.dtype == np.float32 and np.isfinite(got).all()
                assert (got[~mask.any(-1)] == 0).all()
    nothing = PolicyStats(*np.zeros((3, P, G, 0), np.float32), np.zeros((P, G, 0), bool), V)
    np.testing.assert_array_equal(value(name, nothing), np.zeros((P, G)))
