"""The device mesh, and the table from the logical axes of arrays to the axes of the mesh."""

from __future__ import annotations

import math
import os

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rl_likelihood.errors import UserError

AXES = ("data", "fsdp", "tensor")
WITH_CONTEXT = ("data", "fsdp", "context", "tensor")  # the learner's mesh, if mesh.context is above 1

# Logical axis of a parameter or batch array -> mesh axes, if the mesh has them. Names not listed are replicated.
RULES: dict[str, tuple[str, ...]] = {
    "prompts": ("data", "fsdp"),
    "data": ("data",),  # with "rows": prompts over data and their rows over fsdp, if there are few prompts
    "rows": ("fsdp",),
    "width": ("fsdp", "context"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("tensor",),
}


def make_mesh(shape: tuple[int, ...] | None = None, devices: list | None = None) -> Mesh:
    """A mesh with AXES (or WITH_CONTEXT, for four sizes) over `devices`; by default all devices are on fsdp.

    Neighbours in the mesh are neighbours on a TPU's torus. Only data runs across slices. `Mesh` makes Auto axes: the
    compiler propagates shardings, and a mismatch is not an error. (`jax.make_mesh` would make Explicit axes.)
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (1, len(devices), 1) if shape is None else tuple(shape)
    axes = AXES if len(shape) == len(AXES) else WITH_CONTEXT
    if int(np.prod(shape)) != len(devices):
        raise UserError(
            f"mesh: {' x '.join(axes)} = {' x '.join(map(str, shape))} = {int(np.prod(shape))} devices, "
            f"but there are {len(devices)}; the nearest that fits is fsdp = {len(devices)} with the others 1"
        )
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if on_tpu else 1
    if shape[0] % slices:
        raise UserError(
            f"mesh.data is {shape[0]}, which the {slices} slices do not divide: only data runs across "
            f"slices; the nearest that they do is {max(1, round(shape[0] / slices)) * slices}"
        )
    if not on_tpu or len(devices) == 1:
        return Mesh(np.asarray(devices).reshape(shape), axes)
    inner = (shape[0] // slices, *shape[1:])
    try:
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                inner, (slices, *[1] * (len(shape) - 1)), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):  # a part of a slice is not a torus
        by_slice = sorted(devices, key=lambda d: getattr(d, "slice_index", 0))  # stable: order within a slice stays
        grid = np.asarray(by_slice).reshape(shape)
    return Mesh(grid, axes)


def shapes(n: int, data: int, fsdp: int, inner: tuple[int, ...], slices: int = 1) -> list[tuple[int, ...]]:
    """The shapes of meshes of n devices with these settings (0: any). The first one splits parameters the most.
    `inner`: (tensor,) or (context, tensor)."""
    product = max(1, n // math.prod(inner))  # data x fsdp
    if fsdp:
        return [(data or max(1, product // fsdp), fsdp, *inner)]
    if data:
        return [(data, max(1, product // data), *inner)]
    return [(d, product // d, *inner) for d in range(slices, product + 1, slices) if product % d == 0] or [
        (1, product, *inner)
    ]


def sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array with these logical axes. A dimension that does not divide evenly is replicated."""
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in RULES.get(axis, ()) if name in mesh.shape)
        divides = size % int(np.prod([mesh.shape[n] for n in names])) == 0
        spec.append(names if names and divides else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and of arrays that every device needs completely."""
    return NamedSharding(mesh, PartitionSpec())


def ready(tree):
    """On a CPU, waits until `tree` is computed. Returns `tree`. Call it before another thread launches programs.

    An accelerator runs programs in the order of their launches. CPU devices share one thread pool, in which two
    programs may wait for each other for ever.
    """
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    if leaves and next(iter(leaves[0].devices())).platform == "cpu":
        jax.block_until_ready(leaves)
    return tree


# Fields of a Batch (or of a judge's inputs) that have one entry per prompt, not per row.
_OF_PROMPTS = ("prompt", "prompt_length", "baseline", "baseline_logp", "counted", "alternatives", "shown")


def divides(mesh_shape, prompts: int, rows: int) -> bool:
    """Whether `prompts` groups of `rows` rows divide evenly: prompts over data and fsdp, or prompts over data and the
    rows of each group over fsdp."""
    data, fsdp = mesh_shape["data"], mesh_shape["fsdp"]
    return prompts % (data * fsdp) == 0 or (prompts % data == 0 and rows % fsdp == 0)


def by_prompt(mesh: Mesh, batch):
    """Shardings of a Batch or of a judge's inputs: prompts over data and fsdp. If there are too few prompts, they are
    split over data, and the rows of each group over fsdp."""
    p = batch.prompt.shape[0]
    grouped = p % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0

    def sharding_of(path, x):
        axes = ("prompts",)
        if not grouped:
            of_prompts = any(getattr(key, "name", "") in _OF_PROMPTS for key in path)
            axes = ("data", "rows" if np.ndim(x) > 1 and not of_prompts else None)
        axes = axes[: np.ndim(x)]
        return sharding(mesh, axes + (None,) * (np.ndim(x) - len(axes)), np.shape(x))

    return jax.tree.map_with_path(sharding_of, batch)


def gather_fsdp(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Gathers a parameter with these logical axes over fsdp, under the mesh in use.

    Otherwise the compiler may multiply with each part and add the products. For the output matrix, these are logits, a
    hundred times as large as the matrix.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes = tuple(None if axis == "width" else axis for axis in axes)
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape))


def row_shards() -> int:
    """The number of devices over which rows and their tokens are split, under the mesh in use. It is 1 without a mesh,
    and in a program for one device (shard_map)."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = ("data", "fsdp", "context")
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in axes if name in mesh.auto_axes)


def context_shards() -> int:
    """The number of devices over which the tokens of each row are split, under the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape["context"] if not mesh.empty and "context" in mesh.auto_axes else 1


def split_tokens(x: jax.Array, split: bool = True) -> jax.Array:
    """Splits an array of tokens [P, G, T, ...] over context, or gathers it, if context is on the mesh in use.

    If context does not divide T, nothing is split; `rows.row_stats` pads its rows so that it does.
    """
    if context_shards() == 1:
        return x
    spec = [*_row_axes(x.shape), "context" if split and x.shape[2] % context_shards() == 0 else None]
    spec += [PartitionSpec.UNCONSTRAINED] * (x.ndim - 3)
    return jax.lax.with_sharding_constraint(x, NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(*spec)))


def shard_units(x: jax.Array) -> jax.Array:
    """Shards an array [U, ...] with one entry for each of the U = `row_shards` devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if row_shards() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


# KiB of a TPU's vector memory that one operation of the learner's step may use. More than the compiler's default, so
# that large products have larger tiles. Estimated, never run (docs/pods.md).
SCRATCH = {
    "TPU v5 lite": 32768,
    "TPU v5e": 32768,
    "TPU v5": 32768,
    "TPU v5p": 32768,
    "TPU v6 lite": 98304,
    "TPU v6e": 98304,
}


def compiler_options(mesh: Mesh, scratch_kib: int = -1) -> dict[str, str]:
    """Compiler options of the learner's step for the devices of a mesh. `scratch_kib`: KiB of a TPU's vector memory for
    one operation; -1: from SCRATCH, 0: the compiler's default."""
    device = mesh.devices.flat[0]
    scratch = SCRATCH.get(device.device_kind, 0) if scratch_kib < 0 else scratch_kib
    return {"xla_tpu_scoped_vmem_limit_kib": str(scratch)} if scratch and device.platform == "tpu" else {}


def jitted(step, mesh: Mesh, scratch_kib: int, arguments_at: tuple, replicated_outputs: int = 2):
    """Compiles step(state, ...) -> (state, `replicated_outputs` more outputs, replicated). The state is donated."""
    return jax.jit(
        step,
        in_shardings=arguments_at,
        out_shardings=(arguments_at[0], *[replicated(mesh)] * replicated_outputs),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, scratch_kib),
    )


def cores() -> int:
    """The CPU cores that this process may use, or, if the system does not tell, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_cpu() -> bool:
    """Whether the program being traced is for a CPU: by the mesh in use, or else by the default device."""
    mesh = jax.sharding.get_abstract_mesh()
    return (jax.default_backend() if mesh.empty else mesh.abstract_device.platform) == "cpu"


def flatten_tokens(x: jax.Array) -> jax.Array:
    """Reshapes tokens [..., D] to [N, D] for a matrix product, unless they are split over devices.

    The gradient of the product then contracts one axis. With several axes, XLA's CPU compiler first writes a transposed
    copy of one operand. Split axes cannot be merged without moving data.
    """
    return x.reshape(-1, x.shape[-1]) if row_shards() == 1 else x


def axis_shards(axis: str, size: int) -> int:
    """The number of parts into which the mesh in use splits a dimension of this logical axis and size."""
    mesh = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else math.prod(mesh.shape[name] for name in RULES.get(axis, ()) if name in mesh.shape)
    return count if size % count == 0 else 1


def token_axes(shape: tuple[int, ...]) -> PartitionSpec:
    """How tokens [P, ..., D] are split under the mesh in use: as `by_prompt` and `along_prompt` have it."""
    split = len(shape) > 3 and context_shards() > 1 and shape[2] % context_shards() == 0
    return PartitionSpec(*_row_axes(shape), *["context"] * split)


def _row_axes(shape: tuple[int, ...]) -> tuple:
    """How prompts and rows of tokens [P, G, ...] are split, or prompts alone [P, D]."""
    size = jax.sharding.get_abstract_mesh().shape
    data, fsdp = size["data"], size["fsdp"]
    if shape[0] % (data * fsdp) == 0:
        return ("data", "fsdp"), None
    return "data" if shape[0] % data == 0 else None, "fsdp" if len(shape) > 2 and shape[1] % fsdp == 0 else None


def prompt_tokens_split(mesh, prompts: int, tokens: int) -> bool:
    """Whether the tokens of P prompts of S tokens are split over fsdp. They are if there are too few prompts for that
    axis, because otherwise each of its devices would compute all prompts."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    return fsdp > 1 and prompts % (data * fsdp) > 0 and prompts % data == 0 and tokens % fsdp == 0


def shard_prompt_tokens(x: jax.Array) -> jax.Array:
    """Splits states [P, S, ...] of prompts over fsdp by tokens, if `prompt_tokens_split` under the mesh in use. The
    devices of context all compute the same prompts."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.empty or mesh.size == 1) and prompt_tokens_split(mesh, *x.shape[:2]):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", "fsdp")))
    if context_shards() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(_row_axes(x.shape)[0])))


def put(tree, shardings):
    """Puts host arrays, which are equal on every host, on the mesh. Each host copies the parts of its own devices."""

    def put_array(x, sharding):
        if isinstance(x, jax.Array) and (sharding.is_fully_addressable or not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_array, tree, shardings)


def local_bytes(tree, shardings) -> int:
    """Bytes of arrays (or shapes) on one device, under these shardings."""
    local = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(local))


def rows_by_process(mesh: Mesh, prompts: int, rows: int) -> dict[int, tuple[np.ndarray, slice]]:
    """{process: (its prompts, its rows of each group)} for P prompts with G rows each.

    UserError, the same in every process, unless all processes have equally many prompts and rows.
    """
    processes = sorted({d.process_index for d in mesh.devices.flat})
    if len(processes) == 1:
        return {processes[0]: (np.arange(prompts), slice(0, rows))}
    grouped = prompts % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    at = sharding(mesh, ("prompts", None) if grouped else ("data", "rows"), (prompts, rows))
    owner = np.full((prompts, rows), -1)
    for device, index in at.devices_indices_map((prompts, rows)).items():
        part = owner[index]
        if ((part >= 0) & (part != device.process_index)).any():
            raise UserError(
                "mesh: two processes would hold the same chains; mesh.context x mesh.tensor must divide the devices of "
                "a process, mesh.data the prompts, and mesh.fsdp the prompts of a data part or the chains of a prompt"
            )
        part[...] = device.process_index
    by_process = {}
    for process in processes:
        owned = owner == process
        own_prompts, columns = np.flatnonzero(owned.any(1)), np.flatnonzero(owned.any(0))
        if (
            not len(own_prompts)
            or owned.sum() != len(own_prompts) * len(columns)
            or columns[-1] - columns[0] + 1 != len(columns)
        ):
            raise UserError("mesh: a process would hold different chains of different prompts; choose other sizes")
        by_process[process] = own_prompts, slice(int(columns[0]), int(columns[-1]) + 1)
    if len({(len(own_prompts), columns.stop - columns.start) for own_prompts, columns in by_process.values()}) > 1:
        raise UserError("mesh: some processes would hold more chains than others; choose other sizes")
    return by_process


def global_batch(mesh: Mesh, batch, own_prompts: np.ndarray, prompts: int):
    """A Batch of global arrays [P, ...] from this process's Batch. `own`: the global indices of its prompts."""
    local_row = {int(p): i for i, p in enumerate(own_prompts)}

    def global_array(x, at, shape):
        def local_part(index):
            return x[[local_row[p] for p in range(prompts)[index[0]]]][(slice(None), *index[1:])]

        return jax.make_array_from_callback(shape, at, local_part)

    batch = jax.tree.map(np.asarray, batch)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((prompts, *x.shape[1:]), x.dtype), batch)
    return jax.tree.map(lambda x, at, s: global_array(x, at, s.shape), batch, by_prompt(mesh, shapes), shapes)
