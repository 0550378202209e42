"""log_prob_any: how likely the model gives any of several answers that are as good. option_prob: the reference among
wrong answers."""

import jax
import numpy as np
import pytest

from rl_likelihood.learner.batching import alternatives_of
from rl_likelihood.rewards.alternatives import log_prob_any, option_prob
from rl_likelihood.rewards.likelihood import log_prob, mean_of
from rl_likelihood.rewards.shaping import group_std
from tests.learner.test_precision import objective

IDS, SCORED = np.arange(3), np.array([False, True, True])
TWO = alternatives_of([[(IDS, SCORED), (IDS[:2], SCORED[1:])], []], 2, 7, 0)
MASK = np.array([[[False, True, True]], [[True, True, False]]]).repeat(4, 1)


def log_probs(mean=-1.0, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [(mean + spread * rng.normal(size=(2, 4, n))).astype(np.float32) for n in (3, 7)]


def by_hand(logp, others):
    logp, others = logp.astype(np.float64), others.astype(np.float64)
    reference = np.where(MASK, logp, 0).sum(-1)
    first, second = others[0][:, 2:4].sum(-1), others[0][:, 5:7].sum(-1)  # gap, three tokens, gap, two
    return np.stack([np.logaddexp(reference[0], np.logaddexp(first, second)), reference[1]])


def test_the_score_is_the_log_of_the_sum_over_the_answers_there_are():
    logp, others = log_probs()
    np.testing.assert_allclose(log_prob_any(others, TWO).score(logp, MASK), by_hand(logp, others), rtol=1e-5)


def test_the_reference_among_its_options():
    logp, others = log_probs()
    reference = np.where(MASK, logp, 0).sum(-1)
    options = option_prob(others, TWO)
    np.testing.assert_allclose(options.score(logp, MASK), reference - by_hand(logp, others), atol=1e-5)
    np.testing.assert_allclose(options.score(logp - 9, MASK)[1], 0, atol=1e-5)
    keep = np.array([[True, True, False, True], [False] * 4])
    mean = (reference - by_hand(logp, others))[0, keep[0]].mean()
    np.testing.assert_allclose(options(logp, MASK, keep), [mean, 0], atol=1e-5)


@pytest.mark.parametrize("of", (log_prob_any, option_prob))
@pytest.mark.parametrize("mean", (-1.0, -1000.0))
def test_differences_are_those_of_leaving_one_out(mean, of):
    logp, others = log_probs(mean, 0.01)
    keep = np.array([[True, True, False, True], [True] * 4])
    rows = by_hand(logp, others)
    rows = rows if of is log_prob_any else np.where(MASK, logp.astype(np.float64), 0).sum(-1) - rows
    want = np.zeros((2, 4))
    for p, g in zip(*np.nonzero(keep), strict=True):
        kept = keep[p].copy()
        kept[g] = False
        want[p, g] = rows[p, keep[p]].mean() - rows[p, kept].mean()
    got = np.asarray(of(others, TWO).difference(logp, MASK, keep))
    np.testing.assert_allclose(got[keep], want[keep], rtol=1e-3, atol=1e-5)


def test_chains_that_make_all_options_more_likely_cost_no_digits():
    """Answers near -3,000 nats, 0.01 between their tokens, 100 nats between chains."""
    logp, others = log_probs(-1500.0, 0.01)
    shift = 50 * np.random.default_rng(1).normal(size=(2, 4, 1)).astype(np.float32)
    logp, others, keep = logp + shift, others + shift, np.ones((2, 4), bool)
    rows = np.where(MASK, logp.astype(np.float64), 0).sum(-1) - by_hand(logp, others)
    want = (rows - rows.mean(-1, keepdims=True)) / 3
    got = np.asarray(option_prob(others, TWO).difference(logp, MASK, keep))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    assert (got[1] == 0).all(), "without wrong answers"


@pytest.mark.parametrize("of", (log_prob_any, option_prob))
def test_the_standard_deviation_of_a_group_keeps_its_digits(of):
    logp, others = log_probs(-1000.0, 0.01)
    rows = by_hand(logp, others)
    rows = rows if of is log_prob_any else np.where(MASK, logp.astype(np.float64), 0).sum(-1) - rows
    keep = np.ones((2, 4), bool)
    got = group_std(of(others, TWO).above(logp, MASK, keep), keep)
    np.testing.assert_allclose(got, rows.std(-1, ddof=1), rtol=1e-4)


def test_equal_rows_have_a_difference_of_exactly_zero():
    logp, others = (np.repeat(x[:, :1], 4, 1) for x in log_probs(-300.0))
    assert (np.asarray(log_prob_any(others, TWO).difference(logp, MASK, np.ones((2, 4), bool))) == 0).all()


def test_with_one_answer_it_is_log_prob():
    logp, others = log_probs()
    none = alternatives_of([[], []], 2, 7, 0)
    keep = np.ones((2, 4), bool)
    np.testing.assert_allclose(option_prob(others, none)(logp, MASK, keep), 0, atol=1e-5)
    ours, plain = log_prob_any(others, none), mean_of(log_prob)
    np.testing.assert_allclose(ours(logp, MASK, keep), plain(logp, MASK, keep), rtol=1e-6)
    np.testing.assert_allclose(ours.difference(logp, MASK, keep), plain.difference(logp, MASK, keep), atol=1e-6)


def test_nothing_kept_and_impossible_answers_give_no_nan():
    logp, others = np.full((2, 4, 3), -1e38, np.float32), np.full((2, 4, 7), -1e38, np.float32)
    f = lambda logp, others: log_prob_any(others, TWO)(logp, MASK, np.zeros((2, 4), bool)).sum()
    grads = jax.grad(f, (0, 1))(logp, others)
    assert f(logp, others) == 0 and all((np.asarray(g) == 0).all() for g in grads)
    f = lambda logp, others: log_prob_any(others, TWO)(logp, MASK, np.ones((2, 4), bool)).sum()
    assert np.isfinite(f(logp, others)) and all(np.isfinite(g).all() for g in jax.grad(f, (0, 1))(logp, others))


def test_without_wrong_answers_in_the_data_the_reference_is_the_only_option():
    logp = log_probs()[0]
    rows = objective("option_prob", logp, logp.mean(1))[1]
    assert (np.asarray(rows) == 0).all()
