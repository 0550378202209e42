"""Filters of groups: a group counts if its reward's std reaches a threshold.

The modes of `FilterConfig` differ in the threshold. Mode `ema` has a state, which is part of the training state and its
checkpoints. `step` is `TrainState.step`, the number of finished steps: 0 in the first step.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.fields import field
from rl_likelihood.rewards.likelihood import LOWEST
from rl_likelihood.shapes import AnyArray

# A group with a smaller std counts as having equal rewards. RLPR gives such groups no advantage.
ZERO_STD = 1e-6


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Which groups count: those whose reward's std reaches a threshold. The defaults are RLPR's."""

    mode: Literal["none", "std_zero", "std_below", "ema", "token_spread"] = field(
        "none",
        "leaves out groups. std_zero: all rewards equal (DAPO); std_below: standard deviation below filter.threshold; "
        "ema: below filter.beta times its running mean (RLPR); token_spread: no answer token's log-prob has a standard "
        "deviation of filter.threshold (DRO)",
    )
    threshold: float = field(0.0, "std_below, token_spread: the smallest standard deviation that is kept", least=0)
    beta: float = field(
        0.5, "ema: the smallest standard deviation that is kept, as a share of the running mean", least=0
    )
    resample: int = field(
        0,
        "extra batches of fresh prompts that a step may sample to replace groups left out (DAPO, RLPR); 0: none",
        least=0,
    )
    start: int = 10  # mode ema: the number of first steps without a filter
    record_from: int = 6  # mode ema: the step, counted from 1, from which the mean std is recorded
    decay: float = 0.99  # mode ema: of the moving average


class FilterState(NamedTuple):
    """The state of mode `ema`: float32 and int32 scalars.

    `total` and `count`: sum and number of the mean stds recorded before filtering starts. `ema`: their mean until then,
    and a moving average afterwards.
    """

    ema: Float[Array, ""]
    total: Float[Array, ""]
    count: Int[Array, ""]


def init_filter() -> FilterState:
    """The state before the first step."""
    return FilterState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def threshold(state: FilterState, step: Int[AnyArray, ""] | int, cfg: FilterConfig) -> Float[Array, ""]:
    """The least std with which a group counts in this step. `state` is the state after the previous step.

    none: 0. std_zero: ZERO_STD. std_below, token_spread: cfg.threshold. ema: beta * ema (RLPR), but 0 during the first
    cfg.start steps. With 0 every group counts.
    """
    if cfg.mode == "ema":
        return jnp.where(jnp.asarray(step) >= cfg.start, cfg.beta * state.ema, 0.0).astype(jnp.float32)
    constant = {"none": 0.0, "std_zero": ZERO_STD, "std_below": cfg.threshold, "token_spread": cfg.threshold}
    return jnp.asarray(constant[cfg.mode], jnp.float32)


def filter_groups(
    std: Float[AnyArray, "P"], cfg: FilterConfig, state: FilterState, step: Int[AnyArray, ""] | int
) -> Bool[Array, "P"]:
    """Which groups count in this step: std >= threshold. `std`: each group's `group_std` of the rewards, or in mode
    token_spread its `weighted.largest_spread`."""
    return jnp.asarray(std) >= threshold(state, step, cfg)


def update(
    state: FilterState, step: Int[AnyArray, ""] | int, mean_std: Float[AnyArray, ""] | int | float, cfg: FilterConfig
) -> FilterState:
    """The next state: ema <- decay * ema + (1 - decay) * mean_std. Until filtering starts, ema is the mean of the
    recorded values (RLPR).

    Call it once per step, after `filter_groups`, with the same `step` and the mean of `std` over all prompts, filtered
    or not. If nothing was recorded before filtering starts, ema becomes the first value.
    """
    step, mean_std = jnp.asarray(step), jnp.clip(jnp.asarray(mean_std, jnp.float32), 0.0, -LOWEST)
    recording = (step + 1 >= cfg.record_from) & ((step < cfg.start) | (state.count == 0))
    total = state.total + jnp.where(recording, mean_std, 0.0)
    count = state.count + recording
    moved = jnp.where(step >= cfg.start, cfg.decay * state.ema + (1 - cfg.decay) * mean_std, state.ema)
    ema = jnp.where(recording, total / jnp.maximum(count, 1), moved)
    return FilterState(ema.astype(jnp.float32), total.astype(jnp.float32), count.astype(jnp.int32))
