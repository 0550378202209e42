"""Splits a batch into micro-batches, and joins their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from rl_likelihood.mesh import by_prompt
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.model.decoder import stack_layers, unstack_layers
from rl_likelihood.shapes import Batch

MaybeParams = TypeVar("MaybeParams", bound=Params | None)


def unstacked(model: ModelConfig, *params: MaybeParams) -> tuple[MaybeParams, ...]:
    """Parameters for a loop over `forward`: unless layers are scanned, the layer stack becomes a tuple of layers.

    Slicing a layer out of the stack copies it. So that is done once, before the loop.
    """
    return params if model.scan_layers else tuple(x if x is None else unstack_layers(x, model) for x in params)


def split(batch, size: int):
    """[P, ...] -> [k, size, ...]: k micro-batches of `size` prompts. Prompt i goes to micro-batch i mod k, so each
    micro-batch has prompts of every device."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(size, -1, *x.shape[1:]), 0, 1), batch)


def whole(parts):
    """The inverse of `split`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def in_parts(run: Callable[[Params, Any], Any], model: ModelConfig, params: Params, rows: Any, size: int) -> Any:
    """`run(params, rows)`, computed for `size` prompts at a time."""
    if size >= rows.prompt.shape[0]:
        return run(params, rows)
    layers = unstacked(model, params)[0]
    return whole(jax.lax.map(lambda part: run(layers, part), split(rows, size)))


def accumulate(micro_batch: Callable, model: ModelConfig, trained: tuple, parts: Any) -> tuple[tuple, Any]:
    """(the sum of the gradients of micro-batches, their other results [k, ...]).

    `micro_batch(trained, part)` returns (gradients, other results). `trained`: the model's parameters, then others,
    such as a value head.
    """
    layers = (*unstacked(model, trained[0]), *trained[1:])

    def body(total, part):
        grads, out = micro_batch(layers, part)
        return jax.tree.map(jnp.add, total, grads), out

    (grads, *others), outs = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, layers), parts)
    return (grads if model.scan_layers else stack_layers(grads), *others), outs


def ordered(batch: Batch) -> Batch:
    """The batch in the order of its packing, in which devices and micro-batches have about equally many tokens."""
    if batch.packing is None or batch.packing.order is None:
        return batch
    order = batch.packing.order
    out = jax.tree.map(lambda x: x[order], batch.replace(packing=batch.packing.replace(order=None)))
    mesh = jax.sharding.get_abstract_mesh()
    return out if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(out, by_prompt(mesh, out))


def as_given(tree, batch: Batch):
    """The inverse of `ordered`: per-prompt values in the order of the original batch."""
    if batch.packing is None or batch.packing.order is None:
        return tree
    back = jnp.argsort(batch.packing.order)
    return jax.tree.map(lambda x: x[back], tree)
