"""Rewards from the likelihood of the reference answer: f(group) of the one equation (`learner.surrogate`).

Each objective maps the reference-answer token log-probs of a group to one number per prompt,

    f(logp [P, G, A], mask [P, G, A], keep [P, G]) -> [P],

differentiable; the surrogate (`learner.surrogate`) turns it into advantages and the answer term.
With l_i = sum_t logp[i, t], n = number of answer tokens, mean_i over the kept rows:

    log_prob        mean_i l_i                   Kwiatkowski et al. 2602.03979, sec. 2
    avg_log_prob    mean_i l_i / n               same
    prob            mean_i exp(l_i)              VeriFree, 2505.21493, eq. 4
    avg_prob        mean_i mean_t exp(logp_it)   the likelihood part of RLPR, 2506.18254
    geo_mean_prob   mean_i exp(l_i / n)
    jepo            log mean_i exp(l_i)          Tang et al. 2503.19618, eq. 6

A masked token counts as certain (log-prob 0), a dropped row as absent; nothing kept gives 0. No finite
input gives NaN or inf, in value or gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = Array | np.ndarray
LogProbs = Float[AnyArray, "P G A"]
TokenMask = Bool[AnyArray, "P G A"]
Keep = Bool[AnyArray, "P G"]
Objective = Callable[[LogProbs, TokenMask, Keep], Float[Array, "P"]]
Score = Callable[[LogProbs, TokenMask], Float[Array, "P G"]]

# Bounds far outside any log-prob: sums of clipped values stay finite in float32, exponentials too.
_LOWEST, _HIGHEST_EXP = -1e30, 80.0


def sequence_log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i = sum_t logp[i, t] over the answer's tokens, nats."""
    return jnp.where(mask, jnp.clip(logp, _LOWEST, -_LOWEST), 0.0).sum(-1)


def answer_tokens(mask: TokenMask) -> Float[Array, "P G"]:
    """n, at least 1 so that an empty answer divides by 1."""
    return jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)


def _exp(x):
    return jnp.exp(jnp.minimum(x, _HIGHEST_EXP))


def log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i."""
    return sequence_log_prob(logp, mask)


def avg_log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i / n: minus the log of the answer's perplexity."""
    return sequence_log_prob(logp, mask) / answer_tokens(mask)


def prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """exp(l_i); exactly 0 in float32 below about -87 nats."""
    return _exp(sequence_log_prob(logp, mask))


def avg_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """mean_t exp(logp_it). An empty answer scores 0."""
    return jnp.where(mask, _exp(jnp.where(mask, logp, 0.0)), 0.0).sum(-1) / answer_tokens(mask)


def geo_mean_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """exp(l_i / n): one over the answer's perplexity."""
    return _exp(avg_log_prob(logp, mask))


def kept_mean(values: Float[AnyArray, "P G"], keep: Keep) -> Float[Array, "P"]:
    """Mean over the kept rows of each group, 0 where none is."""
    return jnp.where(keep, values, 0.0).sum(-1) / jnp.maximum(keep.sum(-1), 1)


def mean_of(score: Score) -> Objective:
    """The objective whose group value is the mean of a per-row score."""

    def objective(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
        return kept_mean(score(logp, mask), keep)

    return objective


def jepo(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
    """log mean_i exp(l_i), by logsumexp over the kept rows."""
    l = sequence_log_prob(logp, mask)  # noqa: E741 (the paper's letter)
    top = jax.lax.stop_gradient(jnp.where(keep, l, -jnp.inf).max(-1, keepdims=True))
    top = jnp.where(keep.any(-1, keepdims=True), top, 0.0)
    total = jnp.where(keep, jnp.exp(jnp.where(keep, l - top, 0.0)), 0.0).sum(-1)
    some = keep.any(-1)
    log_total = jnp.log(jnp.where(some, total, 1.0)) - jnp.log(jnp.maximum(keep.sum(-1), 1))
    return jnp.where(some, log_total + top[:, 0], 0.0)


# Per-row value of each reward, for logs and for rewards that are means.
SCORES: dict[str, Score] = {
    "log_prob": log_prob,
    "avg_log_prob": avg_log_prob,
    "prob": prob,
    "avg_prob": avg_prob,
    "geo_mean_prob": geo_mean_prob,
}

# Adding a reward is adding a function and its row here.
OBJECTIVES: dict[str, Objective] = {**{name: mean_of(score) for name, score in SCORES.items()}, "jepo": jepo}
