"""Properties of advantages and sums of rewards by themselves, without a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.learner.surrogate import advantages, leave_one_out
from rl_likelihood.rewards import reward_sum, shaping
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.likelihood import OBJECTIVES, kept_mean
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.tables import parse_reward

V = 24
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
values = st.lists(st.floats(-20, 0, width=32), min_size=5, max_size=5).map(lambda x: np.float32([x]))
FIVE = np.ones((1, 5), bool)


@jax.jit
def reward_advantages(reward, keep):
    """Of given rewards [1, G], of each kind; the standard deviation without its eps."""
    f = lambda logp, mask, keep: kept_mean(reward, keep)
    d = leave_one_out(f, jnp.zeros((*reward.shape, 1)), jnp.ones((*reward.shape, 1), bool), keep)
    return {kind: advantages(d, keep, kind, eps=0.0) for kind in ("loo", "mean", "std", "std_clip")}


@PROPERTY
@given(values)
def test_the_weights_of_jepo_are_a_softmax_and_the_best_chain_has_its_share(logp):
    slope = jax.grad(lambda x: OBJECTIVES["jepo"](x, FIVE[..., None], FIVE).sum())(logp[..., None])[0, :, 0]
    assert float(slope.sum()) == pytest.approx(1, abs=1e-5)
    assert float(slope[logp[0].argmax()]) >= 1 / 5 - 1e-6


@PROPERTY
@given(values, st.integers(1, 12), st.floats(0, 0.5, width=32))
def test_what_a_standard_deviation_cancels_and_what_it_does_not(reward, tokens, baseline):
    """1/T_a and a baseline vanish in GRPO's advantage; under RLOO the first stays, behind the clip the second."""
    reward = np.exp(reward)  # mean token probabilities
    if np.ptp(reward) < 0.05:
        return
    per_token, shifted = reward / tokens, reward - baseline
    a, b, c = (reward_advantages(x, FIVE) for x in (reward, per_token, shifted))
    np.testing.assert_allclose(a["std"], b["std"], atol=2e-3)
    np.testing.assert_allclose(a["std"], c["std"], atol=2e-3)
    np.testing.assert_allclose(np.asarray(a["loo"]) / tokens, b["loo"], atol=1e-5)
    np.testing.assert_allclose(a["loo"], c["loo"], atol=1e-5)
    clipped = np.asarray(shaping.improvement(reward, np.float32([baseline])))
    if (shifted < -0.05).any() and np.ptp(clipped) > 0.05:
        assert np.abs(np.asarray(reward_advantages(clipped, FIVE)["loo"]) - a["loo"]).max() > 1e-3


def test_tangs_clip_of_the_fixture():
    logp = np.log(np.float32([0.5, 0.1, 0.1, 0.1])).reshape(1, 4, 1)
    keep = np.ones((1, 4), bool)
    d = leave_one_out(OBJECTIVES["jepo"], logp, logp < 0, keep)
    np.testing.assert_allclose(advantages(d, keep, "std_clip"), [[1, -0.3639, -0.3639, -0.3639]], atol=5e-5)
    both = reward_advantages(np.float32([[0.5, 0.1, 0.1, 0.1]]), keep)
    np.testing.assert_allclose(both["mean"], 0.75 * np.asarray(both["loo"]), rtol=1e-5)  # (G-1)/G


def test_the_published_group_of_rlpr_by_its_preset():
    """Scores .8 .6 .5 .3, baseline .45, formats 1 1 0 1, the last row repeats itself in a second group."""
    score = np.log(np.float32([[0.8, 0.6, 0.5, 0.3]] * 2))[..., None]
    ones = np.ones((2, 4), bool)
    observation = Observation(
        floored_logp=score,
        scored=ones[..., None],
        keep=ones,
        truncated=~ones,
        policy=PolicyStats(score, score, score, ones[..., None], V),
        chain_tokens=np.ones((2, 4), np.float32),
        host_rewards={
            "format": np.float32([[1, 1, 0, 1]] * 2),
            "repetition": np.float32([[0, 0, 0, 0], [0, 0, -1, -1]]),
        },
        baseline=np.float32([0.45, 0.45]),
    )
    cfg = RewardConfig(terms=parse_reward("0.9*rlpr + 0.1*format + repetition"))
    f, reward, rows = reward_sum.objective(observation, cfg)
    np.testing.assert_allclose(rows["rlpr"][0], [0.35, 0.15, 0.05, 0], atol=1e-6)
    np.testing.assert_allclose(reward[0], [0.415, 0.235, 0.045, 0.100], atol=1e-6)
    assert float(shaping.group_std(reward, ones)[0]) == pytest.approx(0.16479, abs=5e-6)
    # A penalty lands on every row that earned it, also where the reward would have been 0.
    np.testing.assert_allclose(reward[1] - reward[0], [0, 0, -1, -1], atol=1e-6)
    slope = jax.grad(lambda x: f(x, observation.scored, ones).sum())(jnp.asarray(score))
    assert (slope == 0).all(), "no gradient through the reward"
