"""Rewards without a reference answer, from the policy's own token distributions.

Each reward maps the statistics of a group's sampled tokens to one number per row,

    f(PolicyStats) -> [P, G],

the R_i of the surrogate. The caller stops the gradient. p_t is the distribution from which token t was sampled, V the
size of the vocabulary; means and sums are over the sampled tokens of row i. A sum favours short rows, a mean of
log-probs long ones. A row without tokens scores 0. No finite input gives NaN or inf. Masked tokens may have any value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.rewards.likelihood import bounded
from rl_likelihood.shapes import AnyArray


class PolicyStats(NamedTuple):
    """Per-token statistics of the tokens of the policy term, float32, in nats.

    log_prob: log p_t(y_t). entropy: H(p_t). self_certainty: KL(uniform || p_t) = logsumexp - mean logit - log V. All
    describe the distribution from which token t was sampled (the model's output one position earlier). So one `mask`
    marks the tokens that count in all three. `in_base` converts the first two to bits.
    """

    log_prob: Float[AnyArray, "P G T"]
    entropy: Float[AnyArray, "P G T"]
    self_certainty: Float[AnyArray, "P G T"]
    mask: Bool[AnyArray, "P G T"]
    vocab_size: int


def _sum(values: Float[AnyArray, "P G T"], mask: Bool[AnyArray, "P G T"]) -> Float[Array, "P G"]:
    return jnp.where(mask, bounded(values), 0.0).sum(-1)


def _mean(values: Float[AnyArray, "P G T"], mask: Bool[AnyArray, "P G T"]) -> Float[Array, "P G"]:
    return _sum(values, mask) / jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)


def in_base(stats: PolicyStats, base: Literal["e", "2"]) -> PolicyStats:
    """Entropies and log-probs in nats (base "e") or bits (base "2"), as RLIF reports them. Self-certainty stays in
    nats."""
    scale = 1.0 if base == "e" else math.log(2)
    return stats._replace(log_prob=bounded(stats.log_prob) / scale, entropy=bounded(stats.entropy) / scale)


def self_certainty(stats: PolicyStats) -> Float[Array, "P G"]:
    """(1/n) sum_t KL(uniform || p_t), Intuitor (2505.19590). 0 for uniform distributions, else positive."""
    # Eq. 1 of the paper, in nats: mean_t [-log V - (1/V) sum_v log p_t(v)]. It grows without bound as the probability
    # of any token goes to 0.
    return _mean(stats.self_certainty, stats.mask)


def self_certainty_raw(stats: PolicyStats) -> Float[Array, "P G"]:
    """self_certainty + log V = (1/n) sum_t -(1/V) sum_v log p_t(v), as in Intuitor's released code."""
    # The constant cancels in every group-relative advantage, so it changes only the logged values.
    raw = self_certainty(stats) + jnp.log(jnp.float32(stats.vocab_size))
    return jnp.where(stats.mask.any(-1), raw, 0.0)


def token_entropy(stats: PolicyStats) -> Float[Array, "P G"]:
    """-(1/n) sum_t H(p_t), RLIF (2506.17219)."""
    return _mean(-stats.entropy, stats.mask)


def token_entropy_sum(stats: PolicyStats) -> Float[Array, "P G"]:
    """-sum_t H(p_t), EM-RL-token (2505.15134). It favours short rows."""
    return _sum(-stats.entropy, stats.mask)


def trajectory(stats: PolicyStats) -> Float[Array, "P G"]:
    """(1/n) sum_t log p_t(y_t), RLIF. It favours long rows of easy tokens."""
    return _mean(stats.log_prob, stats.mask)


def trajectory_sum(stats: PolicyStats) -> Float[Array, "P G"]:
    """sum_t log p_t(y_t) = log pi(y | x), EM-RL-sequence (2505.15134). It favours short rows."""
    return _sum(stats.log_prob, stats.mask)


# Adding a reward is adding a function and its row here.
INTRINSIC: dict[str, Callable[[PolicyStats], Float[Array, "P G"]]] = {
    "self_certainty": self_certainty,
    "self_certainty_raw": self_certainty_raw,
    "token_entropy": token_entropy,
    "token_entropy_sum": token_entropy_sum,
    "trajectory": trajectory,
    "trajectory_sum": trajectory_sum,
}
