"""Losses of a reward model over the answers to one question, of which the first is the right one.

One question is one unit: all its answers come from one forward, and its pairs of right and wrong are averaged. Rows
that are padding (`there` False) are in no loss. Everything is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.shapes import AnyArray


def differences(
    scores: Float[AnyArray, "P Q"], there: Bool[AnyArray, "P Q"], margins: Float[AnyArray, "P Q"] | float = 0.0
) -> tuple[Float[AnyArray, "P W"], Bool[AnyArray, "P W"]]:
    """The right answer's score minus each wrong one's and its margin, [P, Q - 1], and which of these pairs exist."""
    margins = jnp.broadcast_to(jnp.asarray(margins), jnp.shape(scores))
    return scores[:, :1] - scores[:, 1:] - margins[:, 1:], there[:, :1] & there[:, 1:]


def _mean(values: Float[AnyArray, "P W"], there: Bool[AnyArray, "P W"]) -> Float[Array, "P"]:
    """Mean over a question's pairs; 0 of a question without any."""
    return jnp.where(there, values, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1)


def bradley_terry(
    scores: Float[AnyArray, "P Q"], there: Bool[AnyArray, "P Q"], margins: Float[AnyArray, "P Q"] | float = 0.0
) -> Float[Array, "P"]:
    """Mean over a question's pairs of -log sigmoid(difference)."""
    d, pairs = differences(scores, there, margins)
    return _mean(jax.nn.softplus(-d), pairs)


def listwise(scores: Float[AnyArray, "P Q"], there: Bool[AnyArray, "P Q"]) -> Float[Array, "P"]:
    """-log softmax over the question's answers at the right one; 0 of a question without a wrong one."""
    scores, masked = jnp.asarray(scores), jnp.where(there, scores, -jnp.inf)
    masked = jnp.where(there[:, :1], masked, 0.0)
    return jnp.where((there.sum(-1) > 1) & there[:, 0], jax.nn.logsumexp(masked, axis=-1) - scores[:, 0], 0.0)


def centring(scores: Float[AnyArray, "P Q"], there: Bool[AnyArray, "P Q"]) -> Float[Array, "P"]:
    """Mean over a question's pairs of (right + wrong)^2, which keeps scores near 0 (2312.09244)."""
    pairs = there[:, :1] & there[:, 1:]
    return _mean((scores[:, :1] + scores[:, 1:]) ** 2, pairs)


LOSSES = {"bradley_terry": bradley_terry, "listwise": lambda scores, there, margins=0.0: listwise(scores, there)}


def loss(
    kind: str,
    scores: Float[AnyArray, "P Q"],
    there: Bool[AnyArray, "P Q"],
    margins: Float[AnyArray, "P Q"] | float,
    centre: float = 0.0,
) -> Float[Array, "P"]:
    """The loss of each question: `kind` of LOSSES, and `centre` times the penalty that keeps scores near 0."""
    total = LOSSES[kind](scores, there, margins)
    return total + centre * centring(scores, there) if centre else total
