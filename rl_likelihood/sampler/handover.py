"""Weights from the learner's mesh to the sampler's: from device to device, never through the memory of a host.

On the learner's mesh they are gathered into the sampler's layout, each device then holding all of them or one
tensor-parallel part; that program runs on all hosts. What lies on a host's own devices is then all that its sampler
needs: no collective between hosts runs on the sampler's account after that.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_likelihood import mesh as meshes
from rl_likelihood.model.decoder import ModelConfig, Params, is_spec, param_specs
from rl_likelihood.model.decoding import fuse_layer, without_layers
from rl_likelihood.shapes import UserError

# Which dimension of an array of the decoding layout is split over tensor; the rest is on every device.
SPLIT = {"embed": 0, "head": 0, "qkv": 1, "gate_up": 1, "o": 0, "down": 0}


def sampler_mesh(devices: list, prompts: int, group: int, tensor: int) -> Mesh:
    """The mesh of a process's sampler, for `prompts` prompts of `group` rows; `tensor` devices share one copy of the
    weights."""
    if len(devices) % tensor:
        raise UserError(
            f"sampler.tensor is {tensor}, which does not divide the {len(devices)} devices of a process's sampler"
        )
    return meshes.rows_mesh(devices, prompts, group, tensor)


class Gather(NamedTuple):
    """Jitted programs that leave the sampler's weights on the learner's mesh, whole or split over tensor: of what
    belongs to no layer, (params) -> (weights, 0); of one layer, (params["layers"], number) -> (weights, number + 1).

    One layer at a time: a program for all of them holds what it gathers a second time. The number stays on the
    devices, as all else does.
    """

    rest: Any
    layer: Any


@functools.lru_cache(maxsize=4)
def gather(model: ModelConfig, mesh: Mesh, tensor: int) -> Gather:
    """The programs for a sampler of which `tensor` devices share one copy."""
    if tensor not in (1, mesh.shape["tensor"]):
        raise UserError(f"sampler.tensor is {tensor}; it must be 1, or mesh.tensor = {mesh.shape['tensor']}")

    def at(path, x) -> NamedSharding:
        axis = SPLIT.get(getattr(path[-1], "key", "")) if tensor > 1 else None
        if axis is None or axis >= len(x.shape) or x.shape[axis] % tensor:
            return meshes.replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "tensor"))

    def rest(params: Params):
        return without_layers(params, model), jnp.int32(0)

    def layer(layers: Params, number):
        cut = {k: jax.lax.dynamic_index_in_dim(v, number, 0, keepdims=False) for k, v in layers.items()}
        return fuse_layer(cut, model), number + 1

    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), param_specs(model), is_leaf=is_spec)
    unstacked = {k: v for k, v in shapes.items() if k != "layers"}
    placed = lambda f, *of: jax.jit(f, out_shardings=jax.tree.map_with_path(at, jax.eval_shape(f, *of)))
    return Gather(placed(rest, unstacked), placed(layer, shapes["layers"], np.int32(0)))


def hand_over(params: Params, model: ModelConfig, learner: Mesh, sampler: Mesh) -> Params:
    """The sampler's copy of the learner's parameters, in the decoding layout, on the sampler's mesh.

    Every process calls it at the same point of its program.
    """
    programs = gather(model, learner, sampler.shape["tensor"])
    here = lambda tree: meshes.ready(jax.tree.map(lambda x: _local(x, learner, sampler), tree))
    rest, number = programs.rest({k: v for k, v in params.items() if k != "layers"})
    weights, layers = here(rest), []
    for _ in range(model.layers):
        layer, number = programs.layer(params["layers"], number)
        layers.append(here(layer))
    return {**weights, "layers": tuple(layers)}


def _local(x: jax.Array, learner: Mesh, sampler: Mesh) -> jax.Array:
    """One array from the learner's mesh to the sampler's."""
    spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
    target = NamedSharding(sampler, spec)
    held = {shard.device: shard.data for shard in x.addressable_shards}
    if set(sampler.devices.flat) <= held.keys():  # the very buffers
        return _assembled(x.shape, target, held)
    # Another mesh of the same hosts: first what is here as an array of its own, then a copy device to device.
    t = sampler.shape["tensor"]
    here = [d for d in learner.devices.flat if d in held]
    home = Mesh(np.asarray(here).reshape(1, -1, t), meshes.AXES)
    return jax.device_put(_assembled(x.shape, NamedSharding(home, spec), held), target)


def _assembled(shape: tuple[int, ...], at: NamedSharding, held: dict) -> jax.Array:
    return jax.make_array_from_single_device_arrays(shape, at, [held[d] for d in at.mesh.devices.flat])
