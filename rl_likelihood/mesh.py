"""The device mesh, and the one table from logical axes of arrays to axes of the mesh."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_likelihood.shapes import UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or batch array -> mesh axes. Names not listed are replicated.
RULES: dict[str, tuple[str, ...]] = {
    "prompts": ("data", "fsdp"),
    "width": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(shape: tuple[int, int, int] | None = None, devices: list | None = None) -> Mesh:
    """Mesh with axes (data, fsdp, tensor) over `devices`; by default all of them on fsdp.

    `Mesh` makes Auto axes: the compiler propagates shardings, a mismatch is not an error
    (`jax.make_mesh` would make Explicit ones).
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (1, len(devices), 1) if shape is None else tuple(shape)
    if int(np.prod(shape)) != len(devices):
        raise UserError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, shape))} = {int(np.prod(shape))} devices, "
            f"but there are {len(devices)}; the nearest that fits is fsdp = {len(devices)} with the others 1"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """NamedSharding of an array with these logical axes; a dimension that does not divide is replicated."""
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        names = RULES.get(axis, ())
        divides = size % int(np.prod([mesh.shape[n] for n in names])) == 0
        spec.append(names if names and divides else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and of whatever every device needs whole."""
    return NamedSharding(mesh, PartitionSpec())


def settled(tree):
    """`tree`, on CPU once it is all there: what a thread hands over its turn with (`run.source.Source.turn`).

    An accelerator's devices run programs in the order of their launches. CPU devices share one pool of threads, in
    which the programs of two threads may each wait for the other's for ever.
    """
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    if leaves and next(iter(leaves[0].devices())).platform == "cpu":
        jax.block_until_ready(leaves)
    return tree


def by_prompt(mesh: Mesh, tree):
    """Shardings for a pytree whose arrays all lead with P (a Batch): groups are split over data and fsdp."""
    return jax.tree.map(lambda x: sharding(mesh, ("prompts",) + (None,) * (np.ndim(x) - 1), np.shape(x)), tree)
