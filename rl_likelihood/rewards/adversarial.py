"""What a critic that tells experts' answers from the policy's pays the policy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from rl_likelihood.shapes import AnyArray

Kind = Literal["gan", "gail", "relative"]


class Verdicts(NamedTuple):
    """How likely a critic picks the expert's answer of two, the policy's, or neither."""

    expert: Float[AnyArray, "P G"]
    policy: Float[AnyArray, "P G"]
    tie: Float[AnyArray, "P G"]


def verdicts_of(labels: Float[AnyArray, "P G 3"], expert_first: Bool[AnyArray, "P G"]) -> Verdicts:
    """From the probabilities of the labels: the first answer, the second, a tie."""
    first, second = labels[..., 0], labels[..., 1]
    at = jnp.asarray(expert_first)
    return Verdicts(jnp.where(at, first, second), jnp.where(at, second, first), labels[..., 2])


def policy_reward(kind: Kind, expert: Float[AnyArray, "P"], policy: Float[AnyArray, "P G"]) -> Float[AnyArray, "P G"]:
    """The policy's reward from the critic's scores of an expert's answer and of its own.

    A critic trained on such pairs (Bradley-Terry) has scores that differ by log p_expert / pi at its best. gan: the
    score, which is then AIRL's reward; its mean is -KL(pi || expert). gail: -log(1 - sigmoid(score)). relative: the
    log-probability that the policy's answer is taken for the expert's.
    """
    if kind == "gan":
        return policy
    if kind == "gail":
        return jax.nn.softplus(policy)
    return jnp.asarray(jax.nn.log_sigmoid(policy - expert[:, None]))
