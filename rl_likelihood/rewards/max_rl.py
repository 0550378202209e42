"""MaxRL (2602.02710): an objective of 0/1 numbers from outside the graph that is no mean.

    f(group) = H_K - H_N      K right of N kept rows, H the harmonic numbers

E f = -sum_{k=1..N} (1 - p)^k / k for the chance p of a right row, which tends to log p: jepo for graders. The
difference f(group) - f(group without i) is 1/K - 1/N for a right row and -1/N for a wrong one. In a group with none
right each row has -1/N: with that the estimator is unbiased. The published codes give such groups 0.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_likelihood.rewards.likelihood import Keep, LogProbs, Objective, TokenMask
from rl_likelihood.shapes import AnyArray


def max_rl(right: Float[AnyArray, "P G"]) -> Objective:
    """H_K - H_N of the K right of a group's N rows, by a reward that gives 0 or 1: max_rl(exact_match)."""
    size = right.shape[-1]
    harmonic = jnp.cumsum(jnp.concatenate([jnp.zeros(1), 1 / jnp.arange(1, size + 1, dtype=jnp.float32)]))

    def counts(keep: Keep):
        """(which rows are right, K, N)."""
        hits = keep & (jnp.asarray(right) > 0.5)
        return hits, hits.sum(-1), keep.sum(-1)

    def value(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
        _, k, n = counts(keep)
        return harmonic[k] - harmonic[n]

    def difference(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        hits, k, n = counts(keep)
        return jnp.where(hits, 1 / jnp.maximum(k, 1)[:, None], 0.0) - 1 / jnp.maximum(n, 1)[:, None]

    def score(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
        return jnp.asarray(right, jnp.float32)

    return Objective(value, difference, score)
