"""Compiles programs ahead of time, for devices that this machine need not have.

libtpu compiles for a named TPU on any x86 machine, from shapes alone. The result is the program that would run there:
the compiler says how much memory it needs, and its text shows the collectives.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from rl_likelihood.errors import UserError
from rl_likelihood.planning import hlo
from rl_likelihood.planning.hlo import Collective

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of jax, from the vendor's data sheet. The two cores of v4 and v5p are one device; of tpu7x, two."""

    memory: float  # bytes that a program may use: the limit that the compiler enforces
    flops: float  # dense bf16 operations per second, at peak
    bandwidth: float  # bytes per second to its memory
    links: float  # bytes per second to its neighbours, over all links, in one direction
    dims: int  # of the torus
    clock: float  # cycles per second at which its matrix units reach the peak
    network: float | None = None  # bytes per second to other slices; None: the sheet does not say


CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 2, 1.5e9, network=3.125e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 448e9, 2, 1.75e9, network=12.5e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, 3, 1.75e9, network=6.25e9),
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 300e9, 3, 1.05e9),
    "tpu7x": Chip(94.75 * GIB, 1153e12, 3690e9, 600e9, 3, 2.2e9),
}
SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
}
KNOWN = tuple(f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in SHAPES[chip.dims])


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. `chip` is None for CPU devices (cpu:N), which have no known limit."""

    name: str
    devices: tuple[Any, ...] = dataclasses.field(repr=False)
    chip: Chip | None
    slices: int = 1


def chips_of(topology: str) -> int:
    """Number of chips in a name such as v5e:4x4."""
    return math.prod(int(n) for n in topology.partition(":")[2].split("x"))


def canonical(topology: str) -> str:
    """The topology of a name: v5e:4x4, or the vendor's v5litepod-16.

    An unknown name is a UserError, which suggests the topology of that kind with the nearest number of chips.
    """
    name = topology.strip().lower().replace("v5litepod", "v5e")
    if name in KNOWN:
        return name
    size = re.search(r"([:-])([0-9]+(?:x[0-9]+)*)$", name)
    given = name[: size.start()] if size else name
    kind = difflib.get_close_matches(given, CHIPS, 1, 0.0)[0]
    count = math.prod(int(n) for n in size[2].split("x")) if size else 0
    vendor = size is not None and size[1] == "-" and "x" not in size[2]  # as in v5litepod-16
    per_chip = 2 if vendor and CHIPS[kind].dims == 3 else 1  # v5p-8 and v4-8 count cores, two per chip
    of_kind = [t for t in KNOWN if t.startswith(kind + ":")]  # ascending, so min takes the smaller of two
    nearest = min(of_kind, key=lambda t: abs(per_chip * chips_of(t) - count))
    if vendor and given == kind and per_chip * chips_of(nearest) == count:
        return nearest
    raise UserError(
        f"--topology is {topology.strip()!r}, which is not known; the nearest is {nearest} ({', '.join(CHIPS)} with a "
        "shape, or cpu:N for N CPU devices)"
    )


def target(topology: str, slices: int = 1) -> Target:
    """The devices of a topology, of one slice or several. They are descriptions: nothing can run on them."""
    if topology.startswith("cpu:"):
        return _cpu_target(topology)
    name = canonical(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} is compiled by libtpu, which is not installed: run make .venv/libtpu and set "
            "PYTHONPATH=.venv/libtpu, or plan for --topology=cpu:8"
        )
    # Without a TPU there is no metadata server to ask. Two plans may run at once.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    # One chip is one host, and so are eight in two dimensions. In every other shape a host has four.
    host = {"1x1": [1, 1, 1], "2x4": [2, 4, 1]}.get(name.partition(":")[2])
    options: dict[str, Any] = {"chips_per_host_bounds": host} if host else {}
    if name.startswith("v4:"):  # two cores are one device; without this option the description splits them
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return Target(name, tuple(described.devices), CHIPS[name.partition(":")[0]], slices)


def _cpu_target(topology: str) -> Target:
    count = topology.removeprefix("cpu:")
    devices = jax.devices("cpu")
    if not count.isdecimal() or not 1 <= int(count) <= len(devices):
        raise UserError(
            f"--topology is {topology!r}, but this process has {len(devices)} CPU devices; "
            f"the nearest is cpu:{len(devices)} (XLA_FLAGS=--xla_force_host_platform_device_count=N makes N)"
        )
    return Target(topology, tuple(devices[: int(count)]), None)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program. Bytes are per device; `flops` are of all devices together.

    `peak` includes the arguments. If the compiler refused the program because it needs too much memory, `refused` is
    what the compiler said, `peak` is the memory it asked for (0 if it did not say), and the other sizes are 0.
    """

    name: str
    seconds: float
    arguments: int
    temporaries: int
    code: int
    peak: int
    flops: float
    kernel_flops: float = 0.0  # the part of `flops` that is in Pallas kernels
    collectives: tuple[Collective, ...] = ()
    cycles: int = 0  # per device, by the compiler's estimate
    refused: str = ""


def compile_program(name: str, traced: Any, mesh: Mesh, limit: float | None = None, trips: int = 1):
    """(report, executable) of a `jitted.trace(...)`. The executable is None if it needs more than `limit` bytes.

    A TPU's compiler is told the limit: it then computes values twice, or in another order, to stay within it.
    `trips`: the most iterations of a loop whose end depends on data (decoding). UserError if the compiler itself fails.
    """
    jaxpr = live(traced.jaxpr.jaxpr)
    flops, in_kernels = (count_flops(jaxpr, trips, only) for only in (False, True))
    lowered = traced.lower()
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    options = {"xla_tpu_max_hbm_size_mib": str(max(1, int(limit // 2**20)))} if on_tpu and limit is not None else None
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        text, needed = out_of_memory(name, error)
        return Program(name, time.perf_counter() - start, 0, 0, 0, needed, flops, in_kernels, refused=text), None
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes
    if not on_tpu:  # the CPU's compiler reports no peak
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    text = compiled.as_text()
    report = Program(
        name,
        seconds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        peak,
        flops,
        in_kernels,
        hlo.collectives(text, mesh, trips),
        hlo.cycles(text, trips),
    )
    if limit is not None and peak > limit and not on_tpu:
        return dataclasses.replace(report, refused=f"needs {peak} of {int(limit)} bytes"), None
    return report, compiled


_OUT_OF_MEMORY = re.compile(r"([\d.]+)([KMGT])\)? (?:of|exceeds)")
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(name: str, error: Exception) -> tuple[str, int]:
    """What the compiler said, and the bytes that the program needs. UserError if it failed for another reason."""
    text = " ".join(str(error).split())
    if not text.startswith("RESOURCE_EXHAUSTED") or "memory space vmem" in text:  # vmem: not the memory in question
        raise UserError(
            f"{name}: the compiler of this topology failed, which is its fault and not the config's; another mesh, "
            f"train.micro_batch_prompts, model.scratch_kib=0 or report.no_chain may avoid it ({text[:300]})"
        ) from error
    size = _OUT_OF_MEMORY.search(text)
    return text[:300], int(float(size[1]) * _UNIT[size[2]]) if size else 0


def count_flops(jaxpr, trips: int = 1, only_kernels: bool = False) -> float:
    """Floating-point operations of a jaxpr's matrix products; a multiplication and an addition are two.

    A loop's body counts once for each iteration. A while loop has as many as its condition allows, or else `trips`. The
    largest branch of a conditional counts. Inside shard_map the work of one device counts once for each device that has
    a part of the result. `only_kernels`: only what is in Pallas kernels.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and not only_kernels:
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
            continue
        if eqn.primitive.name == "ragged_dot_general" and not only_kernels:  # each row with the matrix of its group
            total += 2.0 * math.prod(eqn.invars[0].aval.shape) * eqn.outvars[0].aval.shape[-1]
            continue
        kernel = eqn.primitive.name == "pallas_call"
        inner = [count_flops(j, trips, only_kernels and not kernel) for v in eqn.params.values() for j in _jaxprs(v)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif eqn.primitive.name == "while":
            total += bound(eqn.params["cond_jaxpr"].jaxpr, trips) * sum(inner)
        elif kernel:
            total += math.prod(eqn.params["grid_mapping"].grid) * sum(inner)
        elif eqn.primitive.name == "shard_map":
            split = {name for part in eqn.params["out_specs"][0] for name in np.atleast_1d(part) if name}
            total += math.prod(eqn.params["mesh"].shape[name] for name in split) * sum(inner)
        else:
            total += sum(inner)
    return total


def bound(condition, unknown: int) -> int:
    """The most iterations of a while loop: the bound of its counter, which starts at 0, or `unknown` if it has none."""
    limits = [
        int(eqn.invars[1].val)
        for eqn in condition.eqns
        if eqn.primitive.name == "lt"
        and hasattr(eqn.invars[1], "val")
        and np.issubdtype(eqn.invars[1].aval.dtype, np.integer)
    ]
    return max(limits, default=unknown)


def live(jaxpr):
    """The jaxpr without equations that no result needs. Every compiler drops those."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _jaxprs(value: Any) -> list:
    """The jaxprs in one parameter of an equation."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [j for v in value for j in _jaxprs(v)] if isinstance(value, (tuple, list)) else []
