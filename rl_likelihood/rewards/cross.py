"""CER (2603.10624): the probability of the reference answer a*, averaged over the group's chains.

    rho_j = sum_s softmax_s(log pi(a_j | z_s)) pi(a* | z_s)

s runs over the group's kept chains. A chain z_s weighs more if it makes row j's sampled answer a_j likelier. The
expectation of rho over sampled answers is the probability of a*. It has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.rewards.likelihood import Keep
from rl_likelihood.shapes import AnyArray


def cer(
    answers: Float[AnyArray, "P G G"],
    prob: Float[AnyArray, "P G"],
    answered: Bool[AnyArray, "P G"],
    keep: Keep,
) -> Float[Array, "P G"]:
    """rho_j. `answers` [p, j, s]: log-prob (nats) of answer j after chain s. `prob` [p, s]: probability of the
    reference answer after chain s. It is 0 for a row without an answer, and in a group without kept chains."""
    share = jax.nn.softmax(jnp.asarray(answers), -1, where=jnp.asarray(keep)[:, None, :])
    share = jnp.where(jnp.asarray(keep)[:, None, :], share, 0.0)
    rho = jnp.where(share > 0, share * jnp.asarray(prob)[:, None, :], 0.0).sum(-1)
    return jnp.where(answered, rho, 0.0)
