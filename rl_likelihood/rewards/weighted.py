"""Likelihood rewards with token weights, which are constant for the gradient. w_it is the weight of answer token t in
row i:

    weighted_log_prob   sum_t w_it log p_it                       w of mean 1
    weighted_avg_prob   sum_t w_it p_it                           w of sum 1
    nrt                 max(0, sum_t w_t (p_it - base_t))         NRT, 2602.11549; w of sum 1
    r3                  sum_t w_it (log p_it - log base_t)        DRO, 2506.13351; w of mean 1
    likelihood_gain     sum_t (log p_it - log base_t) / n         equal weights of sum 1

base_t is the token's probability without a chain. Weights either come from base_t, the same for all rows of a group:

    inverse   w_t proportional to 1 / base_t          neg_log   w_t proportional to -log base_t

or from the group's spread: w_it is proportional to the standard deviation (ddof 1) of log p_t over the *other* rows.
Then w_i does not depend on what row i sampled, so the estimator stays unbiased: its expectation is the gradient of
sum_t w_t E[log p_t], with w the mean weight, held constant. With the standard deviation over all rows it would be
biased. tests/learner/test_weighted.py shows both by enumeration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.rewards.likelihood import (
    LOWEST,
    Keep,
    LogProbs,
    Objective,
    TokenMask,
    clipped_above,
    mean_of,
    probability_difference,
)
from rl_likelihood.shapes import AnyArray

Tokens = Float[Array, "P G A"]
# Of two tokens' log-probs: their difference (jnp.subtract), or that of the probabilities (probability_difference).
Minus = Callable[[Float[AnyArray, "..."], Float[AnyArray, "..."]], Float[Array, "..."]]


def answers_first(
    logp: LogProbs, mask: TokenMask, width: int = 0
) -> tuple[Float[Array, "P G W"], Bool[Array, "P G W"]]:
    """Moves the tokens in `mask` to the front of each row, in their order, so that answer token t is at position t in
    every row. Returns (log-probs, 0 after the answer's end; the mask of the moved tokens).

    `width`: W, the number of positions to return; 0: all.
    """
    order = jnp.argsort(~jnp.asarray(mask), -1, stable=True)[..., : width or None]
    first = jnp.take_along_axis(jnp.asarray(mask), order, -1)
    values = jnp.take_along_axis(jnp.asarray(logp), order, -1)
    return jnp.where(first, jnp.clip(values, LOWEST, -LOWEST), 0.0), first


def shares(values: Float[AnyArray, "*N A"], mask: Bool[AnyArray, "*N A"]) -> Float[Array, "*N A"]:
    """Non-negative values divided by their sum; all 0 if the sum is 0."""
    values = jnp.where(mask, jnp.asarray(values, jnp.float32), 0.0)
    largest = values.max(-1, keepdims=True, initial=0.0)
    values = values / jnp.where(largest > 0, largest, 1.0)  # so that no sum overflows
    return values / jnp.maximum(values.sum(-1, keepdims=True), 1.0)


def base_weights(kind: str, base: Float[AnyArray, "P A"], mask: Bool[AnyArray, "P A"]) -> Float[Array, "P A"]:
    """Weights of sum 1 from the log-probs `base` (nats) without a chain. If every token is certain, all are equal."""
    base = jnp.where(mask, jnp.clip(base, LOWEST, 0.0), 0.0)
    if kind == "inverse":
        lowest = base.min(-1, keepdims=True, initial=0.0)
        return shares(jnp.exp(lowest - base), mask)
    certain = (base == 0).all(-1, keepdims=True)
    return shares(jnp.where(certain, 1.0, -base), mask)


def _spread(values: Tokens, mask: Bool[Array, "P G A"], keep: Keep) -> Float[Array, "P A"]:
    """Standard deviation (ddof 1) of each token over the kept rows. It is 0 with fewer than two rows, and exactly 0 for
    equal values."""
    counts = mask & keep[..., None]
    highest = jnp.where(counts, values, LOWEST).max(1, keepdims=True)
    below = jnp.where(counts, values - highest, 0.0)
    n = jnp.maximum(counts.sum(1), 1)
    centred = jnp.where(counts, below - (below.sum(1) / n)[:, None], 0.0)
    return jnp.sqrt((centred**2).sum(1) / jnp.maximum(n - 1, 1))


def spread_of_others(values: Tokens, mask: Bool[Array, "P G A"], keep: Keep) -> Tokens:
    """For each row i the standard deviation of each token's log-prob over the other kept rows."""
    rows = jnp.arange(values.shape[1])
    spreads = jax.lax.map(lambda i: _spread(values, mask, keep & (rows != i)), rows)
    return jnp.moveaxis(spreads, 0, 1)


def largest_spread(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
    """max_t of the standard deviation over the group of answer token t's log-prob (nats), for DRO's filter."""
    return _spread(*answers_first(logp, mask), keep).max(-1, initial=0.0)


def weighted(minus: Minus, weights: Float[AnyArray, "P #G A"], base: Float[AnyArray, "P A"]) -> Objective:
    """mean_i sum_t w_it minus(log p_it, base_t), with `base` in nats. The difference of row i applies row i's weights
    to all rows:

    sum_t w_it (x_it - mean over the others of x_jt) / n,      x = minus(log p, base)
    """
    weights, base = jax.lax.stop_gradient((jnp.asarray(weights), jnp.asarray(base)[:, None]))

    def tokens_of(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G W"]:
        tokens, first = answers_first(logp, mask, weights.shape[-1])
        return jnp.where(first, tokens, base)

    def score(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
        return (weights * minus(tokens_of(logp, mask), base)).sum(-1)

    def first_row(tokens: Tokens, keep: Keep) -> Float[Array, "P 1 A"]:
        return jnp.take_along_axis(tokens, keep.argmax(-1)[:, None, None], 1)

    def from_first(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G W"]:
        tokens = tokens_of(logp, mask)  # differences from a row of the group are exactly 0 for equal rows
        return jnp.where(keep[..., None], minus(tokens, first_row(tokens, keep)), 0.0)

    def above(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        # w_i x_i - w_1 x_1 = w_i (x_i - x_1) + (w_i - w_1) x_1
        w = jnp.broadcast_to(weights, (*keep.shape, weights.shape[-1]))
        x = minus(first_row(tokens_of(logp, mask), keep), base)
        return (w * from_first(logp, mask, keep)).sum(-1) + ((w - first_row(w, keep)) * x).sum(-1)

    def difference(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        x = from_first(logp, mask, keep)
        n = keep.sum(-1)[:, None, None]
        centred = x - x.sum(1, keepdims=True) / jnp.maximum(n, 1)
        return (weights * centred).sum(-1) / jnp.maximum(n[..., 0] - 1, 1)

    return Objective(mean_of(score).value, difference, score, above, weights)


def over_others(minus: Minus, weights: Tokens, keep: Keep) -> Objective:
    """mean_i sum_t w_it x_it, x = log p or p, with weights of each row's own. The rows' numbers are

    sum_t w_it (x_it - mean over the others of x_jt)

    because sums with different weights cannot be compared.
    """
    plain = weighted(minus, weights, jnp.full_like(weights[:, 0], LOWEST if minus is probability_difference else 0.0))

    def score(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
        return plain.difference(logp, mask, keep) * keep.sum(-1, keepdims=True)

    return dataclasses.replace(plain, score=score, above=None)


def gain(weights: Float[AnyArray, "P A"], base: Float[AnyArray, "P A"], clip: bool) -> Objective:
    """mean_i of sum_t w_t (p_it - exp(base_t)); with `clip`, of max(0, that) (NRT). A clipped row has no gradient."""
    plain = weighted(probability_difference, weights[:, None], base)
    if not clip:
        return plain

    def score(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
        return jnp.maximum(plain.score(logp, mask), 0.0)

    def above(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        return clipped_above(plain.score(logp, mask), plain.above(logp, mask, keep), keep)

    return dataclasses.replace(mean_of(score, above), weights=plain.weights)
