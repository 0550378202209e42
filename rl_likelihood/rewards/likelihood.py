"""Rewards from the likelihood of the reference answer: f(group) of the one equation (`learner.surrogate`).

Each objective maps the log-probs (nats) of a group's reference-answer tokens to one number per prompt,

    f(logp [P, G, A], mask [P, G, A], keep [P, G]) -> [P].

It is differentiable. The surrogate turns it into advantages and the answer term. Let l_i = sum_t logp[i, t], n the
number of answer tokens, and mean_i the mean over the kept rows:

    log_prob        mean_i l_i                   Kwiatkowski et al. 2602.03979, sec. 2
    avg_log_prob    mean_i l_i / n               same
    prob            mean_i exp(l_i)              VeriFree, 2505.21493, eq. 4
    avg_prob        mean_i mean_t exp(logp_it)   the likelihood part of RLPR, 2506.18254
    geo_mean_prob   mean_i exp(l_i / n)
    jepo            log mean_i exp(l_i)          Tang et al. 2503.19618, eq. 6

A token outside `mask` counts as certain (log-prob 0). A row outside `keep` is left out. A group without kept rows
gives 0. No finite input gives NaN or inf, in value or gradient.

The policy is trained by differences between rows. Subtracting two float32 values near -3,000 nats would lose small
differences. So each `Objective` also computes the differences itself, from rows relative to the group's best row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.shapes import AnyArray

LogProbs = Float[AnyArray, "P G A"]
TokenMask = Bool[AnyArray, "P G A"]
Keep = Bool[AnyArray, "P G"]
GroupValue = Callable[[LogProbs, TokenMask, Keep], Float[Array, "P"]]
RowDifference = Callable[[LogProbs, TokenMask, Keep], Float[Array, "P G"]]
Score = Callable[[LogProbs, TokenMask], Float[Array, "P G"]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """`value`: f(group). `difference`: f(group) - f(group without i), for each kept row of a group with at least two.

    `score`: the number of each row in logs; None: its log-prob. `above`: these numbers, less one that the rows of a
    group share; it keeps small differences of large numbers. None: by subtracting the numbers. `weights`: the weights
    of the answer's scored tokens, in order; None: there are none.
    """

    value: GroupValue
    difference: RowDifference
    score: Score | None = None
    above: RowDifference | None = None
    weights: Float[Array, "P #G A"] | None = None

    def __call__(self, logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
        return self.value(logp, mask, keep)


# Far beyond any real log-prob. Sums and exponentials of values clipped to these stay finite in float32.
LOWEST, _HIGHEST_EXP = -1e30, 80.0
_NO_PROBABILITY = -200.0  # its exponential is 0 in float32


def bounded(values: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """The values in float32, clipped so that their sums stay finite."""
    return jnp.clip(jnp.asarray(values, jnp.float32), LOWEST, -LOWEST)


def sequence_log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i = sum_t logp[i, t] over the answer's tokens, nats."""
    return jnp.where(mask, jnp.clip(logp, LOWEST, -LOWEST), 0.0).sum(-1)


def answer_tokens(mask: TokenMask) -> Float[Array, "P G"]:
    """n, the number of answer tokens; 1 for an empty answer, so that it can be a divisor."""
    return jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)


def probability(logp: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """exp(logp), bounded so that it cannot overflow."""
    return jnp.exp(jnp.minimum(logp, _HIGHEST_EXP))


def log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i, the log-prob of the answer."""
    return sequence_log_prob(logp, mask)


def avg_log_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """l_i / n: minus the log of the answer's perplexity."""
    return sequence_log_prob(logp, mask) / answer_tokens(mask)


def prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """exp(l_i); exactly 0 in float32 below about -87 nats."""
    return probability(sequence_log_prob(logp, mask))


def avg_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """mean_t exp(logp_it). An empty answer scores 0."""
    return jnp.where(mask, probability(jnp.where(mask, logp, 0.0)), 0.0).sum(-1) / answer_tokens(mask)


def geo_mean_prob(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
    """exp(l_i / n): one over the answer's perplexity."""
    return probability(avg_log_prob(logp, mask))


def kept_mean(values: Float[AnyArray, "P G"], keep: Keep) -> Float[Array, "P"]:
    """Mean over the kept rows of each group; 0 for a group without kept rows."""
    return jnp.where(keep, values, 0.0).sum(-1) / jnp.maximum(keep.sum(-1), 1)


def _row(values: Float[AnyArray, "P G"], index: Int[Array, "P 1"]) -> Float[Array, "P 1"]:
    return jnp.take_along_axis(jnp.asarray(values), index, -1)


def _best_row(values: Float[AnyArray, "P G"], keep: Keep) -> Int[Array, "P 1"]:
    """The index of the kept row with the highest value; 0 if no row is kept."""
    return jnp.where(keep, values, -jnp.inf).argmax(-1, keepdims=True)


def above_best(values: Float[AnyArray, "P G"], keep: Keep) -> Float[Array, "P G"]:
    """values_i - values_best, exactly 0 for equal rows."""
    values = jnp.where(keep, values, 0.0)
    return values - _row(values, _best_row(values, keep))


def quotients_above_best(
    tokens: Float[Array, "P G A"], n: Float[Array, "P G"], keep: Keep
) -> tuple[Float[Array, "P 1"], Float[Array, "P G"]]:
    """x_best and x_i - x_best of x = (sum over tokens) / n. The rounding error is relative to the difference, not to x.

    Each number is split into a multiple of `unit` and a small remainder. `unit` is so coarse that sums of multiples
    are exact.
    """
    tokens = jnp.where(keep[..., None], tokens, 0.0)
    _, exponent = jnp.frexp(jnp.abs(tokens).sum(-1).max(-1))
    unit = jnp.ldexp(jnp.ones_like(tokens[:, 0, 0]), jnp.maximum(exponent, -60) - 22)[:, None, None]
    multiples = jnp.round(tokens / unit) * unit
    coarse, fine = multiples.sum(-1), (tokens - multiples).sum(-1)
    x = (coarse + fine) / n
    best = _best_row(x, keep)
    above = (coarse - _row(coarse, best)) + (fine - _row(fine, best))
    return _row(x, best), (above + _row(x, best) * (_row(n, best) - n)) / n


def probability_difference(x: Float[AnyArray, "..."], y: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """exp(x) - exp(y). If x is near y, it comes from expm1, which keeps the digits of small differences."""
    x, y = (jnp.clip(v, _NO_PROBABILITY, _HIGHEST_EXP) for v in (x, y))
    near = jnp.exp(y) * jnp.expm1(jnp.minimum(x - y, 1.0))
    return jnp.where(x - y < 1, near, jnp.exp(x) - jnp.exp(y))


def clipped_above(values: Float[AnyArray, "P G"], above: Float[AnyArray, "P G"], keep: Keep) -> Float[Array, "P G"]:
    """max(0, values_i) - max(0, values_best). `above`: the values, less a number that the rows of a group share."""
    best = jnp.where(keep, values, -jnp.inf).max(-1, keepdims=True)
    return jnp.where(best > 0, jnp.maximum(above_best(above, keep), -best), 0.0)


def _mean_probs_above_best(
    tokens: Float[Array, "P G A"], mask: TokenMask, n: Float[Array, "P G"], keep: Keep
) -> Float[Array, "P G"]:
    """x_i - x_best of x = mean_t exp(tokens_it), computed from each token's difference of log-probs."""
    usable = jnp.asarray(mask) & keep[..., None]
    tokens = jnp.where(usable, jnp.clip(tokens, _NO_PROBABILITY, _HIGHEST_EXP), _NO_PROBABILITY)
    x = jnp.exp(tokens).sum(-1) / n
    best = _best_row(x, keep)
    above = probability_difference(tokens, jnp.take_along_axis(tokens, best[..., None], 1)).sum(-1)
    return (above + _row(x, best) * (_row(n, best) - n)) / n


def relative(score: Score, logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
    """score_i - score_best for the kept rows; exactly 0 for equal rows.

    Scores in SCORES are precise: near -3,000 nats, a difference of 0.01 keeps four digits. Any other score is computed
    for each row and then subtracted.
    """
    if score not in SCORES.values():
        return above_best(score(logp, mask), keep)
    tokens = jnp.where(mask, jnp.clip(logp, LOWEST, -LOWEST), 0.0)
    if score is avg_prob:
        return _mean_probs_above_best(tokens, mask, answer_tokens(mask), keep)
    n = jnp.ones(keep.shape, jnp.float32) if score in (log_prob, prob) else answer_tokens(mask)
    best, above = quotients_above_best(tokens, n, keep)
    return probability(best) * jnp.expm1(above) if score in (prob, geo_mean_prob) else above


def mean_difference(values: Float[AnyArray, "P G"], keep: Keep) -> Float[Array, "P G"]:
    """(mean over all n kept rows) - (mean without row i) = (R_i - mean R) / (n - 1)."""
    others_count = jnp.maximum(keep.sum(-1, keepdims=True) - 1, 1)
    return (values - kept_mean(values, keep)[:, None]) / others_count


def mean_of(score: Score, above: RowDifference | None = None) -> Objective:
    """The objective f = mean over the kept rows of a per-row score. `above`: see Objective; by default `relative`."""
    of_rows = above or functools.partial(relative, score)

    def value(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
        return kept_mean(score(logp, mask), keep)

    def difference(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        return mean_difference(of_rows(logp, mask, keep), keep)

    return Objective(value, difference, score, of_rows)


def log_mean_exp(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
    """log mean_i exp(l_i) over the kept rows."""
    total = jax.nn.logsumexp(sequence_log_prob(logp, mask), -1, where=keep)
    return jnp.where(keep.any(-1), total - jnp.log(jnp.maximum(keep.sum(-1), 1)), 0.0)


def _log_mean_exp_difference(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
    """log((e_i + (n - 1) m) / (n m)). `top` is the highest l of the other rows, e_i = exp(l_i - top), and m is the mean
    of e over the other rows.

    Two formulas: if row i is not much above the others, e_i - m comes from expm1, which keeps its digits; if row i
    dominates, e_i would overflow.
    """
    above = relative(log_prob, logp, mask, keep)
    n = jnp.maximum(keep.sum(-1, keepdims=True), 2)
    is_other = keep[:, None, :] & ~jnp.eye(keep.shape[-1], dtype=bool)
    top = jnp.where(is_other, above[:, None, :], -jnp.inf).max(-1)
    top = jnp.where(is_other.any(-1), top, 0.0)
    x = above - top
    below = jnp.where(is_other, jnp.expm1(above[:, None, :] - top[..., None]), 0.0).sum(-1) / (n - 1)  # m - 1
    near = jnp.log1p((jnp.expm1(jnp.minimum(x, 1.0)) - below) / (n * (1 + below)))
    far = x + jnp.log1p((n - 1) * (1 + below) * jnp.exp(-jnp.maximum(x, 1.0))) - jnp.log(n * (1 + below))
    return jnp.where(x < 1, near, far)


jepo = Objective(log_mean_exp, _log_mean_exp_difference, log_prob, functools.partial(relative, log_prob))


def difference(f: Objective | GroupValue, logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
    """f(group) - f(group without i). A plain function f is evaluated on both groups and subtracted."""
    if isinstance(f, Objective):
        return f.difference(logp, mask, keep)
    rows = jnp.arange(keep.shape[-1])
    without = jax.vmap(lambda i: f(logp, mask, keep & (rows != i)), out_axes=-1)(rows)
    return f(logp, mask, keep)[:, None] - without


def weighted_sum(
    constant: Float[Array, "P G"],
    above: Float[Array, "P G"],
    terms: Sequence[tuple[Objective | GroupValue, Float[Array, "P"]]],
) -> Objective:
    """The objective mean_i constant_i + sum over terms of (the group's weight * f). `above`: the constants, less a
    number that the rows of a group share."""

    def value(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P"]:
        return kept_mean(constant, keep) + sum(weight * f(logp, mask, keep) for f, weight in terms)

    def differences(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        out = mean_difference(above_best(above, keep), keep)
        return out + sum(weight[:, None] * difference(f, logp, mask, keep) for f, weight in terms)

    return Objective(value, differences)


# To add a likelihood reward, write a function of a chain and add it here. Its values are logged, and their mean over
# the group is an objective.
SCORES: dict[str, Score] = {
    "log_prob": log_prob,
    "avg_log_prob": avg_log_prob,
    "prob": prob,
    "avg_prob": avg_prob,
    "geo_mean_prob": geo_mean_prob,
}

OBJECTIVES: dict[str, Objective] = {**{name: mean_of(score) for name, score in SCORES.items()}, "jepo": jepo}
