"""Terms that shape a reward. |z| is the number of tokens of a chain.

The caller multiplies by coefficients and stops the gradient. No finite input gives NaN or inf. Rows outside `keep` or
`valid` may have any value and change no other row.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from rl_likelihood.rewards.likelihood import LOWEST, Keep, bounded, kept_mean
from rl_likelihood.shapes import AnyArray

Tokens = Real[AnyArray, "P G"]  # lengths: counts of tokens, as integers or floats
Rows = Float[AnyArray, "P G"]

# Exponentials of values clipped to it stay finite in float32.
_HIGHEST_EXP = 80.0


def length(tokens: Tokens, least: int | float) -> Float[Array, "P G"]:
    """min(|z| - l0, 0), in tokens: 0 for chains of at least l0 = `least`, -1 per missing token.

    Kwiatkowski et al. (2602.03979, sec. 3.4) weight it with r = (gain in reward) / (loss in length) over a run's
    initial drop.
    """
    return jnp.minimum(jnp.asarray(tokens, jnp.float32) - least, 0.0)


def overlong(tokens: Tokens, cut: Keep, limit: int | float, cache: int | float) -> Float[Array, "P G"]:
    """0 up to `limit` - `cache` tokens, then linear down to -1 at `limit`, and -1 above, in tokens (DAPO, 2503.14476).

    A row that was `cut` off before its answer gets -1 at any length, so that no finished row earns less. With cache 0
    the penalty is a step function: 0 up to `limit`, -1 above.
    """
    spare = (limit - cache) - jnp.asarray(tokens, jnp.float32)
    penalty = jnp.where(spare < 0, -1.0, 0.0) if cache == 0 else jnp.clip(spare / cache, -1.0, 0.0)
    return jnp.where(cut, -1.0, penalty)


def improvement(score: Rows, baseline: Float[AnyArray, "P"]) -> Float[Array, "P G"]:
    """clip(score - baseline, 0, 1): how much a chain raises its prompt's score without a chain (RLPR, 2506.18254)."""
    return jnp.clip(bounded(score) - bounded(baseline)[:, None], 0.0, 1.0)


def perplexity(nll_mean: Rows, tokens: Tokens) -> Float[Array, "P G"]:
    """exp(nll / max(1, 1 + log10 |z|)), NOVER (2505.16022): the answer's perplexity, discounted for longer chains.

    `nll_mean` is minus the mean log-prob of the answer's tokens, in nats. The divisor is 1 for a chain of 0 or 1
    tokens, 2 for 10 tokens, 3 for 100 tokens. The result is at most exp(80).
    """
    digits = jnp.log10(jnp.maximum(jnp.asarray(tokens, jnp.float32), 1.0))
    return jnp.exp(jnp.minimum(bounded(nll_mean) / (1.0 + digits), _HIGHEST_EXP))


# VR-CLI's reward: (least reduction of perplexity in percent, reward).
VR_CLI = ((0.05, 0.5), (1.0, 0.9), (2.0, 1.0))


def vr_cli(nll_mean: Rows, without_chain: Float[AnyArray, "P"]) -> Float[Array, "P G"]:
    """0, 0.5, 0.9 or 1, by the percentage I = 100 (1 - PPL with the chain / PPL without it) (VR-CLI, 2503.22828).

    Both arguments are mean negative log-probs per token of the reference answer, in nats.
    """
    more = bounded(nll_mean) - bounded(without_chain)[:, None]
    percent = -100.0 * jnp.expm1(jnp.minimum(more, _HIGHEST_EXP))
    reward = jnp.zeros_like(percent)
    for least, value in VR_CLI:
        reward = jnp.where(percent >= least, value, reward)
    return reward


def _pairs(values: Real[AnyArray, "P G"]) -> Bool[Array, "P G G"]:
    """Entry [p, i, j] is whether values[p, i] < values[p, j]."""
    return jnp.asarray(values)[:, :, None] < jnp.asarray(values)[:, None, :]


def perplexity_rank(ppl: Rows, valid: Keep) -> Float[Array, "P G"]:
    """(m - k) / m, with m the number of valid rows and k the number of valid rows with strictly lower perplexity.

    The best row of a group gets 1, an invalid row 0. Equal perplexities get equal rewards. (NOVER sorts, so that the
    order of the samples decides.)
    """
    m = valid.sum(-1, keepdims=True)
    better = (_pairs(ppl) & valid[:, :, None]).sum(-2)  # over i, the better one of each pair
    return jnp.where(valid, (m - better) / jnp.maximum(m, 1), 0.0).astype(jnp.float32)


def efficiency(ppl: Rows, tokens: Tokens, valid: Keep) -> Float[Array, "P G"]:
    """#{j valid: |z_i| < |z_j| and ppl_i < ppl_j} / (m - 1), NOVER: the share of the other valid rows that are longer
    and have a higher perplexity. It is 0 for an invalid row, and in a group with m < 2 valid rows."""
    m = valid.sum(-1, keepdims=True)
    beaten = (_pairs(tokens) & _pairs(ppl) & valid[:, None, :]).sum(-1)
    return jnp.where(valid, beaten / jnp.maximum(m - 1, 1), 0.0).astype(jnp.float32)


def group_std(reward: Rows, keep: Keep) -> Float[Array, "P"]:
    """sqrt(sum_i (R_i - mean R)^2 / (n - 1)) over the n kept rows; 0 if n < 2.

    Equal rewards give exactly 0, because the group's highest reward is subtracted before the mean is computed.
    """
    reward = bounded(reward)
    below = reward - jnp.where(keep, reward, LOWEST).max(-1, keepdims=True, initial=LOWEST)
    centred = jnp.where(keep, below - kept_mean(below, keep)[:, None], 0.0)
    # In units of the largest deviation, so that no square overflows or underflows.
    unit = jnp.maximum(jnp.abs(centred).max(-1, keepdims=True, initial=0.0), -1.0 / LOWEST)
    variance = ((centred / unit) ** 2).sum(-1) / jnp.maximum(keep.sum(-1) - 1, 1)
    return unit[:, 0] * jnp.sqrt(variance)
