"""Length, improvement and NOVER's ranks: published numbers, ties, dropped rows, extremes."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.rewards import shaping

P, G = 2, 4
PROPERTY = settings(max_examples=30, deadline=None, derandomize=True, database=None)
LENGTH = functools.cache(lambda least: jax.jit(functools.partial(shaping.length, least=least)))
OVERLONG = functools.cache(lambda *limits: jax.jit(lambda z, cut: shaping.overlong(z, cut, *limits)))
improvement, perplexity = jax.jit(shaping.improvement), jax.jit(shaping.perplexity)
perplexity_rank, efficiency = jax.jit(shaping.perplexity_rank), jax.jit(shaping.efficiency)
group_std = jax.jit(shaping.group_std)


def row(*values, dtype=np.float32):
    return np.array([values], dtype)


def test_length_costs_each_missing_token():
    for z in (row(40, 150, 100, 0, dtype=np.int32), row(40, 150, 100, 0)):
        np.testing.assert_allclose(0.01 * LENGTH(100)(z), [[-0.6, 0, 0, -1]], rtol=1e-6)
    assert (np.asarray(LENGTH(0)(row(0, 7))) == 0).all()


def test_overlong_is_dapos():
    z = row(0, 16384, 17408, 18432, 20480, 20481, 10**6, dtype=np.int32)
    whole = np.zeros(z.shape, bool)
    np.testing.assert_allclose(OVERLONG(20480, 4096)(z, whole), [[0, 0, -0.25, -0.5, -1, -1, -1]], rtol=1e-6)
    # Without a cache it is a step.
    np.testing.assert_array_equal(OVERLONG(8, 0)(row(0, 8, 9, dtype=np.int32), whole[:, :3]), [[0, 0, -1]])


@pytest.mark.parametrize("max_chain", [8, 64, 1024])
@pytest.mark.parametrize("max_answer", [0, 8, 64, 2048])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_no_row_that_finishes_is_worth_less_than_one_that_is_cut_off(max_chain, max_answer, share):
    room = max_chain + max_answer
    finished = np.arange(1, room)[None]
    values = np.asarray(OVERLONG(room, share * room)(finished, np.zeros(finished.shape, bool)))
    cut = np.asarray(OVERLONG(room, share * room)(row(1, max_chain), row(True, True, dtype=bool)))
    assert (cut == -1).all() and values.min() > -1
    assert (np.diff(values) <= 0).all(), "longer is never worth more"


def test_the_published_group_of_rlpr():
    better = np.asarray(improvement(row(0.8, 0.6, 0.5, 0.3), np.float32([0.45])))
    np.testing.assert_allclose(better, [[0.35, 0.15, 0.05, 0]], atol=1e-6)
    reward = 0.9 * better + 0.1 * row(1, 1, 0, 1)
    np.testing.assert_allclose(reward, [[0.415, 0.235, 0.045, 0.100]], atol=1e-6)
    assert group_std(reward.astype(np.float32), np.ones((1, 4), bool))[0] == pytest.approx(0.16479, abs=5e-6)
    np.testing.assert_array_equal(improvement(row(5.0, -5.0), np.float32([0.0])), [[1, 0]])  # both ends clip


def test_improvement_is_against_the_own_prompt():
    got = improvement(np.float32([[0.5, 0.6], [0.5, 0.6]]), np.float32([0.1, 0.55]))
    np.testing.assert_allclose(got, [[0.4, 0.5], [0, 0.05]], atol=1e-6)


def test_perplexity_discounts_by_the_digits_of_the_length():
    nll = row(*[2.0] * 5)
    got = perplexity(nll, row(0, 1, 10, 100, 1000, dtype=np.int32))
    np.testing.assert_allclose(got, np.exp([[2, 2, 1, 2 / 3, 0.5]]), rtol=1e-5)


PPL, LENGTHS = row(1.2, 1.5, 1.1, 2.0), row(30, 40, 80, 50, dtype=np.int32)
ALL = np.ones((1, 4), bool)


def test_the_published_group_of_nover():
    np.testing.assert_allclose(perplexity_rank(PPL, ALL), [[0.75, 0.5, 1, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(efficiency(PPL, LENGTHS, ALL), [[2 / 3, 1 / 3, 0, 0]], rtol=1e-6)


def test_the_rank_sees_only_the_order():
    for f in (np.log, np.sqrt, lambda x: 1e4 * x, lambda x: x**3 - 7):
        np.testing.assert_array_equal(perplexity_rank(f(PPL), ALL), perplexity_rank(PPL, ALL))
        np.testing.assert_array_equal(efficiency(f(PPL), LENGTHS, ALL), efficiency(PPL, LENGTHS, ALL))


def test_equal_perplexities_get_equal_rank_and_no_efficiency_over_each_other():
    np.testing.assert_allclose(perplexity_rank(row(2, 1, 2, 3), ALL), [[0.75, 1, 0.75, 0.25]])
    np.testing.assert_array_equal(perplexity_rank(row(2, 2, 2, 2), ALL), [[1, 1, 1, 1]])
    np.testing.assert_array_equal(efficiency(row(2, 2, 2, 2), LENGTHS, ALL), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(efficiency(PPL, row(9, 9, 9, 9), ALL), [[0, 0, 0, 0]])


def test_invalid_rows_get_nothing_and_are_nobodys_rival():
    valid = row(True, False, True, True, dtype=bool)
    np.testing.assert_allclose(perplexity_rank(PPL, valid), [[2 / 3, 0, 1, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(efficiency(PPL, LENGTHS, valid), [[1 / 2, 0, 0, 0]], rtol=1e-6)
    one = row(False, True, False, False, dtype=bool)
    np.testing.assert_array_equal(perplexity_rank(PPL, one), [[0, 1, 0, 0]])
    np.testing.assert_array_equal(efficiency(PPL, LENGTHS, one), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(perplexity_rank(PPL, ~ALL), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(efficiency(PPL, LENGTHS, ~ALL), [[0, 0, 0, 0]])


def nover_by_hand(ppl, tokens, valid):
    """NOVER's two rewards by sorting and by counting, for distinct perplexities: (rank, efficiency)."""
    rank, saved = np.zeros(ppl.shape), np.zeros(ppl.shape)
    for p in range(len(ppl)):
        order = sorted(np.flatnonzero(valid[p]), key=ppl[p].item)
        for k, i in enumerate(order):
            rank[p, i] = (len(order) - k) / len(order)
            longer = [j for j in order if tokens[p, i] < tokens[p, j] and ppl[p, i] < ppl[p, j]]
            saved[p, i] = len(longer) / (len(order) - 1) if len(order) > 1 else 0
    return rank, saved


def std_by_hand(reward, keep):
    rows = [np.float64(r[k]) for r, k in zip(reward, keep, strict=True)]
    return [r.std(ddof=1) if len(r) > 1 else 0.0 for r in rows]


N = P * G
masks = st.lists(st.booleans(), min_size=N, max_size=N).map(lambda x: np.array(x).reshape(P, G))
distinct = st.permutations(range(1, N + 1)).map(lambda x: np.float32(x).reshape(P, G) / 4)
lengths = st.lists(st.integers(0, 6), min_size=N, max_size=N).map(lambda x: np.int32(x).reshape(P, G))
rewards = st.lists(st.floats(-1e4, 1e4, width=32), min_size=N, max_size=N).map(lambda x: np.float32(x).reshape(P, G))


@PROPERTY
@given(distinct, lengths, rewards, masks, st.permutations(range(G)), st.sampled_from([0, 10**4]))
def test_groups_by_hand_and_what_order_and_dropped_rows_may_not_do(ppl, tokens, reward, keep, order, garbage):
    rank, saved = nover_by_hand(ppl, tokens, keep)
    np.testing.assert_allclose(perplexity_rank(ppl, keep), rank, rtol=1e-6)
    np.testing.assert_allclose(efficiency(ppl, tokens, keep), saved, rtol=1e-6)
    np.testing.assert_allclose(group_std(reward, keep), std_by_hand(reward, keep), rtol=2e-5, atol=1e-37)

    args = (ppl, tokens, reward, keep)
    moved = [x[:, order] for x in args]
    dirty = [np.where(keep, x, garbage).astype(x.dtype) for x in args[:3]]
    for f, pick in ((perplexity_rank, (0,)), (efficiency, (0, 1)), (group_std, (2,))):
        value = np.asarray(f(*(args[i] for i in pick), keep))
        after = np.asarray(f(*(moved[i] for i in pick), moved[3]))
        np.testing.assert_allclose(after, value[:, order] if value.ndim == 2 else value, rtol=1e-5)
        np.testing.assert_array_equal(f(*(dirty[i] for i in pick), keep), value)
        # One more row that nobody keeps: padding of a group.
        padded = [np.pad(args[i], [(0, 0), (0, 1)], constant_values=3) for i in pick]
        grown = np.asarray(f(*padded, np.pad(keep, [(0, 0), (0, 1)])))
        np.testing.assert_allclose(grown[:, :G] if value.ndim == 2 else grown, value, rtol=1e-5)


def test_std_of_equal_rewards_is_exactly_zero():
    # 0.1 summed three times and divided by three is not 0.1 in binary.
    for x in (0.1, -0.3, 1e4 / 3, 1e-20, 3e38):
        for n in (2, 3, 7):
            assert group_std(np.full((1, n), x, np.float32), np.ones((1, n), bool))[0] == 0
    # Large rewards that hardly differ, and small ones: no square vanishes or overflows.
    close, small = np.float32([[-1e4, -1e4 - 0.0625]]), np.float32([[1e-25, 3e-25]])
    for r in (close, small, np.float32([[1e25, 3e25]])):
        np.testing.assert_allclose(group_std(r, np.ones((1, 2), bool)), np.float64(r).std(ddof=1), rtol=1e-5)


def test_a_batched_call_is_the_calls_one_by_one():
    rng = np.random.default_rng(5)
    x, y = rng.random((2, 3, P, G)).astype(np.float32)
    keep, base = rng.random((3, P, G)) < 0.6, rng.random((3, P)).astype(np.float32)
    for f, args in (
        (LENGTH(1), (x * 2,)),
        (OVERLONG(2, 1), (x * 3, keep)),
        (improvement, (x, base)),
        (perplexity, (x, y * 50)),
        (perplexity_rank, (x, keep)),
        (efficiency, (x, y, keep)),
        (group_std, (x, keep)),
    ):
        one_by_one = [f(*(a[i] for a in args)) for i in range(3)]
        np.testing.assert_allclose(jax.vmap(f)(*args), one_by_one, rtol=1e-6)


def test_no_finite_input_gives_nan_or_infinity():
    rng = np.random.default_rng(6)
    extremes = np.float32([0.0, 1.0, -1e-30, 1e4, -1e4, 1e30, -3e38, 3e38])
    draws = [np.full((P, G), x) for x in extremes] + [rng.choice(extremes, (P, G)) for _ in range(20)]
    keeps = [np.ones((P, G), bool), np.zeros((P, G), bool), np.arange(G) + np.zeros((P, 1)) == 1]
    keeps.append(rng.random((P, G)) < 0.5)
    for x in draws:
        other = rng.choice(extremes, (P, G))
        ppl = perplexity(x, other)
        everything = [LENGTH(100)(x), improvement(x, other[:, 0]), ppl]
        everything += [OVERLONG(20, cache)(x, keeps[-1]) for cache in (0, 5)]
        for keep in keeps:
            everything += [perplexity_rank(ppl, keep), perplexity_rank(x, keep), efficiency(x, other, keep)]
            std = group_std(x, keep)
            everything.append(std)
            assert (np.asarray(std)[keep.sum(-1) < 2] == 0).all()
        assert all(np.isfinite(v).all() and v.dtype == np.float32 for v in everything), (x, other)


def test_empty_groups_and_batches():
    for shape in ((0, G), (P, 0)):
        x, keep = np.zeros(shape, np.float32), np.zeros(shape, bool)
        assert group_std(x, keep).shape == shape[:1] and not np.asarray(group_std(x, keep)).any()
        assert perplexity_rank(x, keep).shape == efficiency(x, x, keep).shape == perplexity(x, x).shape == shape
    assert math.isfinite(perplexity(row(1e4), row(1))[0, 0])
