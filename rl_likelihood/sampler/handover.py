"""Weights from the learner's mesh to the sampler's: from device to device, never through the memory of a host.

On the learner's mesh they are gathered into the sampler's layout, each device then holding all of them or one
tensor-parallel part; that program runs on all hosts. What lies on a host's own devices is then all that its sampler
needs: no collective between hosts runs on the sampler's account after that.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_likelihood import mesh as meshes
from rl_likelihood.model.decoder import ModelConfig, Params, Spec, param_specs, unstack
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


@functools.lru_cache(maxsize=4)
def gather(model: ModelConfig, mesh: Mesh, tensor: int):
    """The jitted params -> the sampler's weights, still on the learner's mesh, whole or split over tensor."""
    if tensor not in (1, mesh.shape["tensor"]):
        raise UserError(f"sampler.tensor is {tensor}; it must be 1, or mesh.tensor = {mesh.shape['tensor']}")

    def at(path, x) -> NamedSharding:
        axis = SPLIT.get(path[-1].key) if tensor > 1 else None
        if axis is None or axis >= len(x.shape) or x.shape[axis] % tensor:
            return meshes.replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "tensor"))

    def prepare(params: Params) -> Params:
        return unstack(params, model)

    specs = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), param_specs(model), is_leaf=lambda x: isinstance(x, Spec)
    )
    return jax.jit(prepare, out_shardings=jax.tree.map_with_path(at, jax.eval_shape(prepare, specs)))


def hand_over(params: Params, model: ModelConfig, learner: Mesh, sampler: Mesh) -> Params:
    """The sampler's copy of the learner's parameters, in the decoding layout, on the sampler's mesh.

    Every process calls it at the same point of its program.
    """
    weights = gather(model, learner, sampler.shape["tensor"])(params)
    return meshes.settled(jax.tree.map(lambda x: _local(x, learner, sampler), weights))


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
