"""The policy's reward from a critic that tells expert answers (the references) from the policy's answers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from rl_likelihood.shapes import AnyArray

Kind = Literal["gan", "gail", "relative"]


class Verdicts(NamedTuple):
    """The probabilities that a critic picks the expert's answer of a pair, the policy's answer, or neither."""

    expert: Float[AnyArray, "P G"]
    policy: Float[AnyArray, "P G"]
    tie: Float[AnyArray, "P G"]


def verdicts_of(labels: Float[AnyArray, "P G 3"], expert_first: Bool[AnyArray, "P G"]) -> Verdicts:
    """Verdicts from the probabilities of the labels "the first answer", "the second answer", "a tie"."""
    first, second = labels[..., 0], labels[..., 1]
    expert_is_first = jnp.asarray(expert_first)
    return Verdicts(
        jnp.where(expert_is_first, first, second), jnp.where(expert_is_first, second, first), labels[..., 2]
    )


def policy_reward(kind: Kind, expert: Float[AnyArray, "P"], policy: Float[AnyArray, "P G"]) -> Float[AnyArray, "P G"]:
    """The policy's reward from the critic's scores of the expert's answer and of the policy's answers.

    Scores of the optimal critic (Bradley-Terry on such pairs) equal log(p_expert / pi), up to a constant of the
    question. gan: the score itself, which is then AIRL's reward with mean -KL(pi || expert). gail:
    -log(1 - sigmoid(score)). relative: the log-probability that the critic takes the policy's answer for the expert's.
    """
    if kind == "gan":
        return policy
    if kind == "gail":
        return jax.nn.softplus(policy)
    return jnp.asarray(jax.nn.log_sigmoid(policy - expert[:, None]))
