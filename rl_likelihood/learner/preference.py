"""Losses of a reward model over the answers to a question. The first answer is the right one.

All answers to a question come from one forward. A loss averages over a question's pairs of a right and a wrong answer.
`present` [P, Q] is False for padding rows, which are in no loss. Everything is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.shapes import AnyArray


def differences(
    scores: Float[AnyArray, "P Q"], present: Bool[AnyArray, "P Q"], margins: Float[AnyArray, "P Q"] | float = 0.0
) -> tuple[Float[AnyArray, "P W"], Bool[AnyArray, "P W"]]:
    """(score of the right answer - score of a wrong answer - its margin, which of these pairs exist); W = Q - 1."""
    margins = jnp.broadcast_to(jnp.asarray(margins), jnp.shape(scores))
    return scores[:, :1] - scores[:, 1:] - margins[:, 1:], present[:, :1] & present[:, 1:]


def _mean(values: Float[AnyArray, "P W"], present: Bool[AnyArray, "P W"]) -> Float[Array, "P"]:
    """Mean over a question's pairs; 0 for a question without pairs."""
    return jnp.where(present, values, 0.0).sum(-1) / jnp.maximum(present.sum(-1), 1)


def bradley_terry(
    scores: Float[AnyArray, "P Q"], present: Bool[AnyArray, "P Q"], margins: Float[AnyArray, "P Q"] | float = 0.0
) -> Float[Array, "P"]:
    """Mean over a question's pairs of -log sigmoid(difference)."""
    d, pairs = differences(scores, present, margins)
    return _mean(jax.nn.softplus(-d), pairs)


def listwise(scores: Float[AnyArray, "P Q"], present: Bool[AnyArray, "P Q"]) -> Float[Array, "P"]:
    """-log softmax of the right answer among the question's answers; 0 for a question without a wrong answer."""
    scores, masked = jnp.asarray(scores), jnp.where(present, scores, -jnp.inf)
    masked = jnp.where(present[:, :1], masked, 0.0)
    return jnp.where((present.sum(-1) > 1) & present[:, 0], jax.nn.logsumexp(masked, axis=-1) - scores[:, 0], 0.0)


def centring(scores: Float[AnyArray, "P Q"], present: Bool[AnyArray, "P Q"]) -> Float[Array, "P"]:
    """A penalty that keeps scores near 0: the mean over a question's pairs of (right + wrong)^2 (2312.09244)."""
    pairs = present[:, :1] & present[:, 1:]
    return _mean((scores[:, :1] + scores[:, 1:]) ** 2, pairs)


LOSSES = {"bradley_terry": bradley_terry, "listwise": lambda scores, present, margins=0.0: listwise(scores, present)}


def loss(
    kind: str,
    scores: Float[AnyArray, "P Q"],
    present: Bool[AnyArray, "P Q"],
    margins: Float[AnyArray, "P Q"] | float,
    centre: float = 0.0,
) -> Float[Array, "P"]:
    """The loss of each question: LOSSES[kind] plus `centre` times the penalty `centring`."""
    total = LOSSES[kind](scores, present, margins)
    return total + centre * centring(scores, present) if centre else total
