"""Losses of a reward model: known numbers, identities, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.preference import bradley_terry, centring, listwise, loss

FOUR = np.array([[1.5, 0.5, -0.2, -0.2]], np.float32)


def all_of(scores):
    return np.ones(np.shape(scores), bool)


def two(right, wrong):
    return np.array([[right, wrong]], np.float32)


def test_known_numbers():
    assert bradley_terry(two(2.0, 2.0), all_of(two(0, 0))) == pytest.approx(0.693147, abs=1e-6)
    assert bradley_terry(two(1.5, 0.5), all_of(two(0, 0))) == pytest.approx(0.313262, abs=1e-6)
    assert bradley_terry(two(1.5, 0.5), all_of(two(0, 0)), two(0, 0.5)) == pytest.approx(0.474077, abs=1e-6)
    assert 0.01 * centring(two(1.5, 0.5), all_of(two(0, 0))) == pytest.approx(0.04, abs=1e-7)
    assert listwise(FOUR, all_of(FOUR)) == pytest.approx(0.549996, abs=1e-6)
    assert bradley_terry(FOUR, all_of(FOUR)) == pytest.approx(0.216278, abs=1e-6)
    gradient = jax.grad(lambda s: bradley_terry(s, all_of(s)).sum())(two(1.5, 0.5))
    assert gradient[0, 0] == pytest.approx(-0.268941, abs=1e-6)


def test_a_zero_head_and_two_options():
    zero = np.zeros((1, 4), np.float32)
    assert bradley_terry(zero, all_of(zero)) == pytest.approx(np.log(2), abs=1e-6)
    assert listwise(zero, all_of(zero)) == pytest.approx(np.log(4), abs=1e-6)
    scores = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    np.testing.assert_allclose(listwise(scores, all_of(scores)), bradley_terry(scores, all_of(scores)), atol=1e-6)


@pytest.mark.parametrize("kind", ["bradley_terry", "listwise"])
def test_only_differences_count_and_padding_does_not(kind):
    rng = np.random.default_rng(1)
    scores, none = rng.normal(size=(5, 4)).astype(np.float32), np.zeros((5, 4), np.float32)
    there = np.arange(4) < np.array([4, 3, 2, 1, 0])[:, None]

    def total(s):
        return loss(kind, s, there, none)

    gradient = jax.grad(lambda s: total(s).sum())(scores)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-6)
    assert not np.asarray(gradient)[~there].any() and (total(scores)[3:] == 0).all()
    np.testing.assert_allclose(total(scores + 3), total(scores), atol=1e-5)
    other = jnp.where(there, scores, 1e4)
    np.testing.assert_allclose(total(other), total(scores), atol=1e-6)
    np.testing.assert_allclose(
        total(scores)[1], loss(kind, scores[1:2, :3], there[1:2, :3], none[1:2, :3])[0], atol=1e-6
    )
    assert np.isfinite(jax.grad(lambda s: total(s).sum())(1e4 * scores)).all()
