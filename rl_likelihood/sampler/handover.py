"""Copies weights from the learner's mesh to the sampler's, from device to device and never through host memory.

A program on all hosts gathers them on the learner's mesh, in the sampler's layout. Each device then holds all weights
or one tensor-parallel part. So each host's devices hold everything that its sampler needs, and the sampler never runs
a collective between hosts.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_likelihood.errors import UserError
from rl_likelihood.mesh import AXES, ready, replicated
from rl_likelihood.model.architecture import ModelConfig, Params, abstract, param_specs
from rl_likelihood.model.decoding import fuse_layer, without_layers

# For each array of the decoding layout: the dimension that is split over tensor. Other arrays are replicated.
SPLIT = {"embed": 0, "head": 0, "qkv": 1, "gate_up": 1, "qkv_scale": 0, "gate_up_scale": 0, "o": 0, "down": 0}


def sampler_mesh(devices: list, prompts: int, group: int, tensor: int) -> Mesh:
    """The mesh of a process's sampler: `prompts` prompts are split over data, the `group` rows of each over fsdp, and
    weights over `tensor` devices."""
    if len(devices) % tensor:
        raise UserError(
            f"sampler.tensor is {tensor}, which does not divide the {len(devices)} devices of a process's sampler"
        )
    n = len(devices) // tensor
    parts = math.gcd(prompts, n)
    return Mesh(np.asarray(devices).reshape(parts, n // parts, tensor), AXES)


class Gather(NamedTuple):
    """Jitted programs that compute the sampler's weights on the learner's mesh, replicated or split over tensor.

    outer: (params) -> (weights outside layers, 0). layer: (params["layers"], number) -> (one layer's weights,
    number + 1). One program for all layers would hold the gathered weights twice. `number` stays on the devices.
    """

    outer: Any
    layer: Any


@functools.lru_cache(maxsize=4)
def gather(model: ModelConfig, mesh: Mesh, tensor: int) -> Gather:
    """The programs for a sampler in which `tensor` devices share one copy of the weights."""
    if tensor not in (1, mesh.shape["tensor"]):
        of_mesh = mesh.shape["tensor"]
        raise UserError(f"sampler.tensor is {tensor}; it must be 1 or equal mesh.tensor, which is {of_mesh}")

    def sharding_of(path, x) -> NamedSharding:
        name = getattr(path[-1], "key", "")
        axis = SPLIT.get(name) if tensor > 1 else None
        axis = 0 if axis is not None and model.experts and name in ("gate_up", "down") else axis  # experts
        if axis is None or axis >= len(x.shape) or x.shape[axis] % tensor:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "tensor"))

    def outer(params: Params):
        return without_layers(params, model), jnp.int32(0)

    def layer(layers: Params, number):
        weights = {k: jax.lax.dynamic_index_in_dim(v, number, 0, keepdims=False) for k, v in layers.items()}
        return fuse_layer(weights, model), number + 1

    def jitted(f, *arguments):
        return jax.jit(f, out_shardings=jax.tree.map_with_path(sharding_of, jax.eval_shape(f, *arguments)))

    shapes = abstract(param_specs(model))
    unstacked = {k: v for k, v in shapes.items() if k != "layers"}
    return Gather(jitted(outer, unstacked), jitted(layer, shapes["layers"], np.int32(0)))


def hand_over(params: Params, model: ModelConfig, learner: Mesh, sampler: Mesh) -> Params:
    """The sampler's copy of the learner's parameters, in the decoding layout, on the sampler's mesh.

    Every process must call it at the same point of its program.
    """
    programs = gather(model, learner, sampler.shape["tensor"])

    def on_sampler(tree):
        return ready(jax.tree.map(lambda x: _local(x, learner, sampler), tree))

    outer, number = programs.outer({k: v for k, v in params.items() if k != "layers"})
    weights, layers = on_sampler(outer), []
    for _ in range(model.layers):
        layer, number = programs.layer(params["layers"], number)
        layers.append(on_sampler(layer))
    return {**weights, "layers": tuple(layers)}


def _local(x: jax.Array, learner: Mesh, sampler: Mesh) -> jax.Array:
    """Copies one array from the learner's mesh to the sampler's."""
    spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
    target = NamedSharding(sampler, spec)
    shards = {shard.device: shard.data for shard in x.addressable_shards}
    if set(sampler.devices.flat) <= shards.keys():  # the sampler uses the same buffers
        return _assembled(x.shape, target, shards)
    # The sampler has other devices of this host: make an array of this host's shards, then copy device to device.
    local_devices = np.asarray([d for d in learner.devices.flat if d in shards])
    source = Mesh(local_devices.reshape(1, -1, sampler.shape["tensor"]), AXES)
    return jax.device_put(_assembled(x.shape, NamedSharding(source, spec), shards), target)


def _assembled(shape: tuple[int, ...], sharding: NamedSharding, shards: dict) -> jax.Array:
    return jax.make_array_from_single_device_arrays(shape, sharding, [shards[d] for d in sharding.mesh.devices.flat])
