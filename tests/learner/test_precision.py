"""Differences keep their digits where log-probs are large: rewards with constants of the step, alone and over their
standard deviation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.surrogate import leave_one_out
from rl_likelihood.rewards import reward_sum
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.tables import parse_reward
from tests.learner.test_surrogate import unlikely


def neg_log(base):
    return base / base.sum(-1, keepdims=True)


def mean_prob(logp, base):
    return np.exp(logp).mean(-1)


def gain(logp, base):
    return ((np.exp(logp) - np.exp(base)) * neg_log(base)).sum(-1)


# The rows' values in float64, from log-probs [P, G, A] and those without a chain [P, 1, A].
ROWS = {
    "weighted_log_prob": lambda logp, base: logp.shape[-1] * (logp * neg_log(base)).sum(-1),
    "weighted_avg_prob": lambda logp, base: (np.exp(logp) * neg_log(base)).sum(-1),
    "likelihood_gain": lambda logp, base: (logp - base).mean(-1),
    "log_prob_any": lambda logp, base: logp.sum(-1),
    "nrt": lambda logp, base: np.maximum(gain(logp, base), 0),
    "rlpr": lambda logp, base: np.maximum(mean_prob(logp, base) - np.float32(mean_prob(base, base)), 0),
}


def objective(text, logp, base):
    """f, and the rows' values."""
    mask = jnp.ones(logp.shape, bool)
    keep = mask[..., 0]
    observation = Observation(
        floored_logp=logp,
        scored=mask,
        keep=keep,
        truncated=~keep,
        policy=PolicyStats(logp, logp, logp, mask, 3),
        chain_tokens=jnp.zeros(keep.shape),
        host_rewards={},
        baseline=jnp.exp(base).mean(-1),
        no_chain_logp=base,
    )
    cfg = RewardConfig(terms=parse_reward(text), baseline="frozen", token_weights="neg_log")
    return reward_sum.objective(observation, cfg)[:2]


def differences(text, logp, base):
    mask = jnp.ones(logp.shape, bool)
    return leave_one_out(objective(text, logp, base)[0], logp, mask, mask[..., 0])


@pytest.mark.parametrize("over_std", (False, True))
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("without_chain", (-0.5, 0.0))  # against the mean row: no row is clipped at 0, half of them are
def test_differences_keep_four_digits_where_log_probs_are_large(name, over_std, without_chain):
    if name == "rlpr" and not without_chain:
        pytest.skip("a baseline of one float32 number has too few digits where rows are clipped (docs/rewards.md)")
    of = jax.jit(lambda *a: differences(name + "/std" * over_std, *a))
    for level, spread in itertools.product((-2, -1100, -3000), (0.01, 1.0)):
        logp, _ = unlikely(level, spread, 40, 8)
        base = np.minimum(logp.mean(1) + without_chain, -1e-6).astype(np.float32)
        rows = ROWS[name](logp.astype(np.float64), base[:, None].astype(np.float64))
        std = rows.std(-1, ddof=1, keepdims=True)
        want = (rows - rows.mean(-1, keepdims=True)) / 7
        if over_std:
            want = np.where(std > 1e-6, want / std, 0)
        size = np.abs(want).max(-1, keepdims=True)
        assert (np.abs(of(logp, base) - want) <= 1e-5 * size + 1e-35).all(), f"{level} {spread}"


def test_weights_that_differ_between_rows_are_in_the_standard_deviation():
    logp = jnp.asarray(unlikely(-3000, 1.0, 40, 8)[0])
    base = logp.mean(1)
    std = np.asarray(objective("r3", logp, base)[1], np.float64).std(-1, ddof=1, keepdims=True)
    plain, divided = (np.asarray(differences(text, logp, base)) for text in ("r3", "r3/std"))
    np.testing.assert_allclose(plain, divided * std, rtol=1e-4)
