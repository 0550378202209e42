"""A batch in parts: what a loop over forwards needs before it and after it."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from rl_likelihood.model.decoder import ModelConfig, Params, unstack_layers

MaybeParams = TypeVar("MaybeParams", bound=Params | None)


def unstacked(model: ModelConfig, *params: MaybeParams) -> tuple[MaybeParams, ...]:
    """Parameters for a loop over `forward`. Slicing an unrolled layer out of the stack copies it, so that is done once,
    before the loop."""
    return params if model.scan_layers else tuple(x if x is None else unstack_layers(x, model) for x in params)


def split(batch, size: int):
    """Micro-batches of `size` prompts on a new leading axis. Prompt i goes to number i mod k, so each micro-batch has
    prompts of every device."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(size, -1, *x.shape[1:]), 0, 1), batch)


def whole(parts):
    """The inverse of `split`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
