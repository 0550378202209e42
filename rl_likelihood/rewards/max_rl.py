"""MaxRL (2602.02710): an objective over 0/1 rewards that is not a mean.

    f(group) = H_K - H_N      K right rows among N kept rows, H the harmonic numbers

If a row is right with probability p, then E f = -sum_{k=1..N} (1 - p)^k / k, which tends to log p as N grows. So it is
the counterpart of jepo for graders. The difference f(group) - f(group without i) is 1/K - 1/N for a right row and -1/N
for a wrong row. In a group without right rows every row has -1/N, which the unbiased estimator requires. Published code
gives such groups 0.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_likelihood.rewards.likelihood import Keep, LogProbs, Objective, TokenMask
from rl_likelihood.shapes import AnyArray


def max_rl(right: Float[AnyArray, "P G"]) -> Objective:
    """H_K - H_N for K right rows among N, judged by a reward of 0 or 1: max_rl(exact_match)."""
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
