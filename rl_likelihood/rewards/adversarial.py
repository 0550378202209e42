"""The policy's reward from a critic that tells expert answers (the references) from the policy's answers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

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


VERDICTS = ("1", "2", "tie")  # what a critic that writes a chain may answer


def verdict_of(answer: str | None) -> int:
    """The verdict as a number: 1 (the first answer), 2 (the second), 3 (a tie), or 0 for any other text."""
    said = (answer or "").strip().lower()
    return VERDICTS.index(said) + 1 if said in VERDICTS else 0


def verdict_rewards(
    verdict: Int[np.ndarray, "P Q G"], expert: Int[np.ndarray, "P Q"], tau_critic: float, tau_policy: float
) -> tuple[Float[np.ndarray, "P Q G"], Float[np.ndarray, "P Q"]]:
    """Returns (the critic's reward for each verdict, the policy's mean reward for each pair).

    `verdict` has the numbers of `verdict_of`, and `expert` says which answer is the expert's, 1 or 2. A verdict for the
    expert's answer pays the critic 1. A verdict for the policy's answer pays the policy 1. A tie pays tau_critic and
    tau_policy. A reward is NaN if there is no verdict to take it from.
    """
    right, tie, read = verdict == expert[..., None], verdict == 3, verdict > 0
    critic = np.where(read, right + tau_critic * tie, np.nan)
    policy = np.where(read, ~right & ~tie, 0) + tau_policy * tie
    count = read.sum(-1)
    return critic, np.where(count > 0, policy.sum(-1) / np.maximum(count, 1), np.nan)
