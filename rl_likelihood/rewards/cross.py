"""CER (2603.10624): how likely the reference answer is after the chains that lead to the sampled answer.

    rho_j = sum_s softmax_s(log pi(a_j | z_s)) pi(a* | z_s)

over the group's kept chains s. In expectation over answers this is the chance of a*. Constant for the gradient.
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
    """`answers` [p, j, s]: log-prob of answer j after chain s; `prob`: of the reference answer after chain s. 0 for a
    row without an answer and where no chain is kept."""
    share = jax.nn.softmax(jnp.asarray(answers), -1, where=jnp.asarray(keep)[:, None, :])
    share = jnp.where(jnp.asarray(keep)[:, None, :], share, 0.0)
    rho = jnp.where(share > 0, share * jnp.asarray(prob)[:, None, :], 0.0).sum(-1)
    return jnp.where(answered, rho, 0.0)
