"""Frequencies of rotary embeddings, and their scaling to longer contexts."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling: long wavelengths are stretched by `factor`, short ones are unchanged."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN scaling. Pairs with more than `beta_fast` rotations in the original context keep their frequency; pairs with
    fewer than `beta_slow` have it divided by `factor`; between them it is interpolated. cos and sin are multiplied by
    `attention_factor`."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    attention_factor: float


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies are divided by `factor`. With `dynamic`, only in texts longer than the model's positions; such
    texts are refused, so nothing is scaled."""

    factor: float
    dynamic: bool = False


Scaling = RopeScaling | YarnScaling | LinearScaling


def frequencies(head_dim: int, theta: float, s: Scaling | None) -> Float[Array, "N"]:
    """The frequency of each pair of dimensions, in radians per position, float32. theta = 0: no rotation."""
    half = head_dim // 2
    if theta == 0:
        return jnp.zeros(half)
    freq = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if isinstance(s, RopeScaling):
        periods = s.original_max_position * freq / (2 * math.pi)  # within the original context
        smooth = jnp.clip((periods - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
        freq = freq * (smooth + (1 - smooth) / s.factor)
    if isinstance(s, LinearScaling) and not s.dynamic:
        freq = freq / s.factor
    if isinstance(s, YarnScaling):

        def dimension(turns: float) -> float:
            """The (fractional) index of the pair with this many rotations in the original context."""
            return head_dim * math.log(s.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dimension(s.beta_fast)), 0)
        high = min(math.ceil(dimension(s.beta_slow)), head_dim - 1)
        ramp = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 0.001), 0, 1)
        freq = freq * (1 - ramp) + freq / s.factor * ramp
    return freq
