"""A batch of rows with the lengths that runs have, for plans with train.packing."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float, Int

from rl_likelihood.learner.packing import pack
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.shapes import CHAIN, PAD, Batch

SIGMA = 0.6  # of the lengths' logarithms


def log_normal_lengths(rng: np.random.Generator, p: int, g: int, mean: int) -> Float[np.ndarray, "P G"]:
    """Independent lengths with this mean, before they are cut."""
    return np.exp(rng.normal(np.log(mean) - SIGMA**2 / 2, SIGMA, (p, g)))


def lengths_of(batch: Batch, mean: int) -> Int[np.ndarray, "P G"]:
    """Tokens of each row of this batch: log-normal with this mean, at most the batch's width."""
    p, g, t = batch.completion.shape
    return np.clip(log_normal_lengths(np.random.default_rng(0), p, g, mean), 1, t).astype(int)


def packed(batch: Batch, mean: int, cfg: StepConfig, shared: bool) -> Batch:
    """The batch of shapes as a run packs it if its rows have `lengths_of` tokens, as shapes, for the mesh in use.
    Alternative answers have their full length. `shared` as for `pack`."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch.replace(packing=None))
    real = np.arange(batch.completion.shape[-1]) < lengths_of(batch, mean)[..., None]
    rows = zeros.replace(segment=np.where(real, CHAIN, PAD))
    if (alternatives := rows.alternatives) is not None:
        rows = rows.replace(alternatives=alternatives.replace(answer=np.ones_like(alternatives.answer)))
    run = pack(rows, cfg, shared)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run)
