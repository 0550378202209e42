"""Terms that are added to a reward, and filters of groups. With |z| the number of tokens of a chain:

    length           min(|z| - l0, 0)                              Kwiatkowski et al. 2602.03979, sec. 3.4
    overlong         clip((most - cache - |z|) / cache, -1, 0)     DAPO, 2503.14476, soft overlong punishment
    improvement      clip(r - r', 0, 1)                            RLPR, 2506.18254
    perplexity       exp(nll / max(1, 1 + log10 |z|))              NOVER, 2505.16022
    perplexity_rank  (m - k) / m                                   same
    efficiency       #{j: |z_i| < |z_j|, ppl_i < ppl_j} / (m - 1)  same
    group_std        sqrt(sum_i (R_i - mean R)^2 / (n - 1))        RLPR's filter

The caller multiplies with coefficients and stops the gradient. No finite input gives NaN or inf. Rows that are not in
`keep` or `valid` may have any value: they change no other row.

Filters: a group counts if its reward's std reaches a threshold; the modes of `FilterConfig` differ in that number. Mode
`ema` has a state, which a run keeps through all its steps and in its checkpoints. `step` is always the number of steps
already done, `TrainState.step`: 0 in the first.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from rl_likelihood.fields import field
from rl_likelihood.rewards.likelihood import Keep, kept_mean
from rl_likelihood.shapes import AnyArray

Tokens = Real[AnyArray, "P G"]  # lengths: counts of tokens, as integers or floats
Rows = Float[AnyArray, "P G"]

# Bounds far outside any reward or mean log-prob: sums, differences and exponentials stay finite in float32.
_LARGEST, _HIGHEST_EXP = 1e30, 80.0

# Rewards whose std is below this count as equal; RLPR's bound for giving a group no advantage.
ZERO_STD = 1e-6


def _bounded(values: Rows) -> Float[Array, "P G"]:
    return jnp.clip(jnp.asarray(values, jnp.float32), -_LARGEST, _LARGEST)


def length(tokens: Tokens, least: int | float) -> Float[Array, "P G"]:
    """min(|z| - l0, 0), in tokens: 0 for chains of at least l0 = `least`, -1 per missing token.

    Kwiatkowski et al. weight it with r = (gain in reward) / (loss in length) over a run's initial drop.
    """
    return jnp.minimum(jnp.asarray(tokens, jnp.float32) - least, 0.0)


def overlong(tokens: Tokens, cut: Keep, most: int | float, cache: int | float) -> Float[Array, "P G"]:
    """0 up to most - cache tokens, then linear to -1 at `most`, -1 above (DAPO). A row that was `cut` off before its
    answer gets -1 whatever its length, so that no finished row is worth less.

    With a cache of 0 it is a step: 0 up to `most`, -1 above.
    """
    spare = (most - cache) - jnp.asarray(tokens, jnp.float32)
    penalty = jnp.where(spare < 0, -1.0, 0.0) if cache == 0 else jnp.clip(spare / cache, -1.0, 0.0)
    return jnp.where(cut, -1.0, penalty)


def improvement(score: Rows, baseline: Float[AnyArray, "P"]) -> Float[Array, "P G"]:
    """clip(score - baseline, 0, 1): what a chain adds to the score of its prompt without a chain (RLPR)."""
    without = jnp.asarray(baseline, jnp.float32)[:, None]
    return jnp.clip(_bounded(score) - jnp.clip(without, -_LARGEST, _LARGEST), 0.0, 1.0)


def perplexity(nll_mean: Rows, tokens: Tokens) -> Float[Array, "P G"]:
    """exp(nll / max(1, 1 + log10 |z|)), NOVER: the answer's perplexity, with a discount for longer chains.

    `nll_mean` is minus the mean log-prob of the answer's tokens, nats; the divisor is 1 for chains of 0 or 1
    token, 2 for 10, 3 for 100. Bounded at exp(80), where all that is less likely still is equal.
    """
    digits = jnp.log10(jnp.maximum(jnp.asarray(tokens, jnp.float32), 1.0))
    return jnp.exp(jnp.minimum(_bounded(nll_mean) / (1.0 + digits), _HIGHEST_EXP))


# VR-CLI's reward: from so many percent less perplexity on, so much.
VR_CLI = ((0.05, 0.5), (1.0, 0.9), (2.0, 1.0))


def vr_cli(nll_mean: Rows, without_chain: Float[AnyArray, "P"]) -> Float[Array, "P G"]:
    """0, 0.5, 0.9 or 1 by I = 100 (1 - PPL with the chain / PPL without), VR-CLI 2503.22828."""
    more = _bounded(nll_mean) - jnp.clip(jnp.asarray(without_chain, jnp.float32), -_LARGEST, _LARGEST)[:, None]
    percent = -100.0 * jnp.expm1(jnp.minimum(more, _HIGHEST_EXP))
    reward = jnp.zeros_like(percent)
    for least, value in VR_CLI:
        reward = jnp.where(percent >= least, value, reward)
    return reward


def _pairs(values: Real[AnyArray, "P G"]) -> Bool[Array, "P G G"]:
    """[p, i, j]: values[p, i] < values[p, j]."""
    return jnp.asarray(values)[:, :, None] < jnp.asarray(values)[:, None, :]


def perplexity_rank(ppl: Rows, valid: Keep) -> Float[Array, "P G"]:
    """(m - k) / m, with m the number of valid rows and k the number of them whose perplexity is strictly lower.

    1 for the best of a group. Equal perplexities get equal rewards (NOVER sorts, so there the order of the samples
    decides). 0 for an invalid row.
    """
    m = valid.sum(-1, keepdims=True)
    better = (_pairs(ppl) & valid[:, :, None]).sum(-2)  # over i, the better one of each pair
    return jnp.where(valid, (m - better) / jnp.maximum(m, 1), 0.0).astype(jnp.float32)


def efficiency(ppl: Rows, tokens: Tokens, valid: Keep) -> Float[Array, "P G"]:
    """#{j valid: |z_i| < |z_j| and ppl_i < ppl_j} / (m - 1), NOVER: the share of the other valid rows that are
    both longer and worse. 0 for an invalid row and where fewer than m = 2 are valid."""
    m = valid.sum(-1, keepdims=True)
    beaten = (_pairs(tokens) & _pairs(ppl) & valid[:, None, :]).sum(-1)
    return jnp.where(valid, beaten / jnp.maximum(m - 1, 1), 0.0).astype(jnp.float32)


def group_std(reward: Rows, keep: Keep) -> Float[Array, "P"]:
    """sqrt(sum_i (R_i - mean R)^2 / (n - 1)) over the n kept rows; 0 where fewer than two are kept.

    Exactly 0 for equal rewards: they are taken relative to the group's highest before the mean is formed.
    """
    reward = _bounded(reward)
    below = reward - jnp.where(keep, reward, -_LARGEST).max(-1, keepdims=True, initial=-_LARGEST)
    centred = jnp.where(keep, below - kept_mean(below, keep)[:, None], 0.0)
    # In units of the largest deviation, so that no square overflows or vanishes.
    unit = jnp.maximum(jnp.abs(centred).max(-1, keepdims=True, initial=0.0), 1.0 / _LARGEST)
    variance = ((centred / unit) ** 2).sum(-1) / jnp.maximum(keep.sum(-1) - 1, 1)
    return unit[:, 0] * jnp.sqrt(variance)


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Which groups count: those whose reward's std reaches a threshold. The defaults are RLPR's."""

    mode: Literal["none", "std_zero", "std_below", "ema", "token_spread"] = field(
        "none",
        "leave out groups whose rewards have a standard deviation of 0 (DAPO), below filter.threshold, or below "
        "filter.beta times a running mean (ema, RLPR); token_spread: that of the answer token that varies most (DRO)",
    )
    threshold: float = field(0.0, "std_below, token_spread: the smallest standard deviation that is kept", least=0)
    beta: float = field(
        0.5, "ema: the smallest standard deviation that is kept, as a share of the running mean", least=0
    )
    resample: int = field(
        0,
        "extra batches of fresh prompts that a step may sample to replace groups left out (DAPO); 0: none",
        least=0,
    )
    start: int = 10  # mode ema: steps that pass unfiltered
    record_from: int = 6  # mode ema: the first of them, counted from 1, whose mean std is recorded
    decay: float = 0.99


class FilterState(NamedTuple):
    """The state of mode `ema`: scalars, float32 and int32.

    `total` and `count` are the sum and number of the mean stds recorded before filtering starts. `ema` is their mean
    until then, and the moving average after.
    """

    ema: Float[Array, ""]
    total: Float[Array, ""]
    count: Int[Array, ""]


def init_filter() -> FilterState:
    """The state before the first step."""
    return FilterState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def threshold(state: FilterState, step: Int[AnyArray, ""] | int, cfg: FilterConfig) -> Float[Array, ""]:
    """The least std that counts in this step, from the state after the step before.

    none: 0; std_zero: ZERO_STD; std_below, token_spread: cfg.threshold; ema: beta * ema (RLPR), 0 during the first
    cfg.start steps. At 0 every group counts.
    """
    if cfg.mode == "ema":
        return jnp.where(jnp.asarray(step) >= cfg.start, cfg.beta * state.ema, 0.0).astype(jnp.float32)
    constant = {"none": 0.0, "std_zero": ZERO_STD, "std_below": cfg.threshold, "token_spread": cfg.threshold}
    return jnp.asarray(constant[cfg.mode], jnp.float32)


def filter_groups(
    std: Float[AnyArray, "P"], cfg: FilterConfig, state: FilterState, step: Int[AnyArray, ""] | int
) -> Bool[Array, "P"]:
    """std >= threshold: which groups count in this step. `std` is `group_std` of the rewards."""
    return jnp.asarray(std) >= threshold(state, step, cfg)


def update(
    state: FilterState, step: Int[AnyArray, ""] | int, mean_std: Float[AnyArray, ""] | int | float, cfg: FilterConfig
) -> FilterState:
    """ema <- decay * ema + (1 - decay) * mean_std; the mean of the recorded ones until filtering starts (RLPR).

    To be called once per step, after `filter_groups`, with the same `step` and the mean of `group_std` over all its
    prompts, filtered or not. A run that recorded nothing before filtering starts takes the first value it gets.
    """
    step, mean_std = jnp.asarray(step), jnp.clip(jnp.asarray(mean_std, jnp.float32), 0.0, _LARGEST)
    recording = (step + 1 >= cfg.record_from) & ((step < cfg.start) | (state.count == 0))
    total = state.total + jnp.where(recording, mean_std, 0.0)
    count = state.count + recording
    moved = jnp.where(step >= cfg.start, cfg.decay * state.ema + (1 - cfg.decay) * mean_std, state.ema)
    ema = jnp.where(recording, total / jnp.maximum(count, 1), moved)
    return FilterState(ema.astype(jnp.float32), total.astype(jnp.float32), count.astype(jnp.int32))
