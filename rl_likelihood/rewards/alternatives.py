"""The likelihood of a reference answer and other answers, where l_ik is the log-prob of answer k after chain i.

log_prob_any    log sum_k exp(l_ik): any of several right answers. With one answer it is log_prob. Probability that
                moves from one right answer to another does not change the reward.
option_prob     l_i0 - log sum_k exp(l_ik): the reference among wrong answers. With one answer it is 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.rewards.likelihood import (
    LOWEST,
    Keep,
    LogProbs,
    Objective,
    TokenMask,
    above_best,
    log_prob,
    mean_of,
    quotients_above_best,
)
from rl_likelihood.shapes import Alternatives, AnyArray


def log_prob_any(alternatives_logp: Float[AnyArray, "P G B"], alternatives: Alternatives) -> Objective:
    """mean_i log sum_k exp(l_ik), where k runs over the reference answer (whose log-probs f gets as its argument) and
    the `alternatives`.

    `alternatives_logp`: log-probs (nats) of the alternatives' tokens after each chain, differentiable.
    """
    present = _present(alternatives)

    def score(logp: LogProbs, mask: TokenMask) -> Float[Array, "P G"]:
        log_probs = _tokens(logp, mask, alternatives_logp, alternatives).sum(-1)
        return jax.nn.logsumexp(jnp.moveaxis(log_probs, 0, -1), -1, where=present)

    def above(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        tokens = jax.lax.stop_gradient(_tokens(logp, mask, alternatives_logp, alternatives))
        return above_best(_log_sums(tokens, present, keep), keep)

    return mean_of(score, above)


def option_prob(alternatives_logp: Float[AnyArray, "P G B"], alternatives: Alternatives) -> Objective:
    """mean_i log softmax_k(l_ik) at the reference. The `alternatives` are wrong answers."""
    any_option = log_prob_any(alternatives_logp, alternatives)

    def above(logp: LogProbs, mask: TokenMask, keep: Keep) -> Float[Array, "P G"]:
        # -log sum_k exp(l_ik - l_i0): a chain that makes all options more likely changes no term.
        tokens = jax.lax.stop_gradient(_tokens(logp, mask, alternatives_logp, alternatives))
        rows = -_log_sums(tokens - tokens[0], _present(alternatives), keep)
        return above_best(rows, keep)

    return mean_of(lambda logp, mask: log_prob(logp, mask) - any_option.score(logp, mask), above)


def _present(alternatives: Alternatives) -> Bool[Array, "P 1 K"]:
    """Which answers there are, the reference first."""
    return jnp.pad(alternatives.present, ((0, 0), (1, 0)), constant_values=True)[:, None]


def _tokens(
    logp: LogProbs, mask: TokenMask, alternatives_logp: Float[AnyArray, "P G B"], alternatives: Alternatives
) -> Float[Array, "K P G T"]:
    """For each answer the log-probs of its tokens, and 0 for every other token. T = A + B: the row's tokens, then
    those of the alternatives."""
    log_probs = jnp.clip(jnp.concatenate([logp, alternatives_logp], -1), LOWEST, -LOWEST)
    of_alternative = jnp.where(alternatives.scored, alternatives.answer, -1)[:, None]
    of_alternative = jnp.broadcast_to(of_alternative, alternatives_logp.shape)
    answer = jnp.concatenate([jnp.where(mask, 0, -1), of_alternative], -1)  # the number of the token's answer
    numbers = jnp.arange(1 + alternatives.present.shape[-1])[:, None, None, None]
    return jnp.where(answer == numbers, log_probs, 0.0)


def _log_sums(tokens: Float[Array, "K P G T"], present: Bool[Array, "P 1 K"], keep: Keep) -> Float[Array, "P G"]:
    """log sum_k exp(sum_t tokens_kt) of each row, minus a number that all rows of a group share.

    Each sum is taken relative to its best row, so that small differences between rows survive the rounding of large
    sums.
    """
    n = jnp.ones(keep.shape, jnp.float32)
    best, above = (jnp.moveaxis(x, 0, -1) for x in jax.vmap(lambda t: quotients_above_best(t, n, keep))(tokens))
    best = jnp.where(present, best, -jnp.inf)
    return jax.nn.logsumexp(best - best.max(-1, keepdims=True) + above, -1, where=present)
