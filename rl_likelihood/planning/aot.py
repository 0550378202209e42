"""Compile the learner's step and the sampler ahead of time, for devices that need not be here.

libtpu compiles for a TPU that is described by name, on any x86 machine, from shapes alone. What comes
out is what would run there: its memory is the compiler's own number, its collectives are read from its text.
"""

from __future__ import annotations

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

from rl_likelihood.planning import hlo
from rl_likelihood.planning.hlo import Collective
from rl_likelihood.shapes import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them (the two cores of v4 and v5p are one, of tpu7x two), by the vendor's data sheet."""

    memory: float  # bytes a program may use: what the compiler itself refuses to exceed
    flops: float  # dense bf16 a second at peak
    bandwidth: float  # bytes a second to its memory
    links: float  # bytes a second to its neighbours, all links together, one way
    dims: int  # of the torus
    clock: float  # cycles a second: those at which its matrix units make its peak
    devices_per_chip: int = 1
    network: float | None = None  # bytes a second to other slices; None: not on the sheet


CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 2, 1.5e9, network=3.125e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 448e9, 2, 1.75e9, network=12.5e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, 3, 1.75e9, network=6.25e9),
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 300e9, 3, 1.05e9),
    "tpu7x": Chip(94.75 * GIB, 1153e12, 3690e9, 600e9, 3, 2.2e9, 2),
}
SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
}
KNOWN = tuple(f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in SHAPES[chip.dims])


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. `chip` is None for those of this machine (cpu:N), of which no limit is known."""

    name: str
    devices: tuple[Any, ...] = dataclasses.field(repr=False)
    chip: Chip | None
    slices: int = 1


def chips_of(topology: str) -> int:
    """Number of chips in a name such as v5e:4x4."""
    return math.prod(int(n) for n in topology.partition(":")[2].split("x"))


def canonical(topology: str) -> str:
    """The topology of a name, v5e:4x4 or the vendor's v5litepod-16.

    UserError with the known one of that kind whose number of chips is nearest, of two the smaller.
    """
    name = topology.strip().lower().replace("v5litepod", "v5e")
    if name in KNOWN:
        return name
    size = re.search(r"([:-])([0-9]+(?:x[0-9]+)*)$", name)
    given = name[: size.start()] if size else name
    kind = difflib.get_close_matches(given, CHIPS, 1, 0.0)[0]
    count = math.prod(int(n) for n in size[2].split("x")) if size else 0
    plain = size is not None and size[1] == "-" and "x" not in size[2]  # the vendor's way, v5litepod-16
    each = 2 if plain and CHIPS[kind].dims == 3 else 1  # v5p-8 and v4-8 count cores, two a chip; the others count chips
    of_kind = [t for t in KNOWN if t.startswith(kind + ":")]  # from small to large, so that min takes the smaller
    near = min(of_kind, key=lambda t: abs(each * chips_of(t) - count))
    if plain and given == kind and each * chips_of(near) == count:
        return near
    raise UserError(
        f"--topology is {topology.strip()!r}, which is not known; the nearest is {near} ({', '.join(CHIPS)} with a "
        "shape, or cpu:N for N devices of this machine)"
    )


def target(topology: str, slices: int = 1) -> Target:
    """The devices of a topology, several slices of it if asked for. Nothing runs on them: they only exist by name."""
    if topology.startswith("cpu:"):
        return _cpu_target(topology)
    name = canonical(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} is compiled by libtpu, which is not installed: pip install '.[tpu]', "
            "or plan for --topology=cpu:8"
        )
    # A machine without a TPU has no metadata server to ask, and two plans may run at one time.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    # Eight chips of two dimensions are one machine, as is one; of all others a machine has four.
    one = {"1x1": [1, 1, 1], "2x4": [2, 4, 1]}.get(name.partition(":")[2])
    options: dict[str, Any] = {"chips_per_host_bounds": one} if one else {}
    if name.startswith("v4:"):  # a v4 runs its two cores as one device; the description splits them unless told so
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return Target(name, tuple(described.devices), CHIPS[name.partition(":")[0]], slices)


def _cpu_target(topology: str) -> Target:
    count = topology.removeprefix("cpu:")
    here = jax.devices("cpu")
    if not count.isdigit() or not 1 <= int(count) <= len(here):
        raise UserError(
            f"--topology is {topology!r}, but there are {len(here)} CPU devices here; "
            f"the nearest is cpu:{len(here)} (XLA_FLAGS=--xla_force_host_platform_device_count=N makes N)"
        )
    return Target(topology, tuple(here[: int(count)]), None)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; bytes are per device, `flops` are those of all devices together.

    `peak` includes the arguments. When the compiler refused for want of memory, `refused` is its sentence, `peak`
    what it says it would need (0 if it does not say), and the other sizes are 0.
    """

    name: str
    seconds: float
    arguments: int
    temporaries: int
    code: int
    peak: int
    flops: float
    kernel_flops: float = 0.0  # of those, in Pallas kernels
    collectives: tuple[Collective, ...] = ()
    cycles: int = 0  # the compiler's estimate, a device
    refused: str = ""


_OUT_OF_MEMORY = re.compile(r"([\d.]+)([KMGT])\)? (?:of|exceeds)")
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_program(name: str, traced: Any, mesh: Mesh, room: float | None = None, trips: int = 1):
    """(report, executable) of a `jitted.trace(...)`; the executable is None when it needs more than `room` bytes.

    A TPU's compiler is told to make do with `room` a device: where it can, it computes things twice or orders them
    otherwise to keep within it. `trips`: how often a loop runs at most whose end depends on data (decoding).
    Raises UserError when the compiler itself fails.
    """
    jaxpr = live(traced.jaxpr.jaxpr)
    flops, in_kernels = (count_flops(jaxpr, trips, only) for only in (False, True))
    lowered = traced.lower()
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    limit = {"xla_tpu_max_hbm_size_mib": str(max(1, int(room // 2**20)))} if on_tpu and room is not None else None
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=limit)
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if not text.startswith("RESOURCE_EXHAUSTED") or "memory space vmem" in text:  # not the memory that is counted
            raise UserError(
                f"{name}: the compiler of this topology failed, which is its fault and not the config's; another mesh, "
                f"train.micro_batch_prompts, model.scratch_kib=0 or report.no_chain may get past it ({text[:300]})"
            ) from error
        found = _OUT_OF_MEMORY.search(text)
        needs = int(float(found[1]) * _UNIT[found[2]]) if found else 0
        return Program(name, time.perf_counter() - start, 0, 0, 0, needs, flops, in_kernels, refused=text[:300]), None
    seconds = time.perf_counter() - start
    m = compiled.memory_analysis()
    peak = m.peak_memory_in_bytes
    if not on_tpu:  # the CPU's compiler knows no peak
        peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    text = compiled.as_text()
    report = Program(
        name,
        seconds,
        m.argument_size_in_bytes,
        m.temp_size_in_bytes,
        m.generated_code_size_in_bytes,
        peak,
        flops,
        in_kernels,
        hlo.collectives(text, mesh, trips),
        hlo.cycles(text, trips),
    )
    if room is not None and peak > room and not on_tpu:
        return dataclasses.replace(report, refused=f"needs {peak} of {int(room)} bytes"), None
    return report, compiled


def count_flops(jaxpr, trips: int = 1, only_kernels: bool = False) -> float:
    """Floating-point operations of the matrix products in a jaxpr, a multiplication and an addition being two.

    Loops count as often as they run; `trips` for a while loop. Of a conditional's branches the largest counts. What
    devices do each for themselves (shard_map) counts for all that have a part of the result. `only_kernels`: those
    in Pallas kernels.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and not only_kernels:
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
            continue
        kernel = eqn.primitive.name == "pallas_call"
        inner = [count_flops(j, trips, only_kernels and not kernel) for v in eqn.params.values() for j in _jaxprs(v)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif eqn.primitive.name == "while":
            total += trips * sum(inner)
        elif kernel:
            total += math.prod(eqn.params["grid_mapping"].grid) * sum(inner)
        elif eqn.primitive.name == "shard_map":
            split = {name for part in eqn.params["out_specs"][0] for name in np.atleast_1d(part) if name}
            total += math.prod(eqn.params["mesh"].shape[name] for name in split) * sum(inner)
        else:
            total += sum(inner)
    return total


def live(jaxpr):
    """The jaxpr without what its results do not need, which no compiler keeps."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _jaxprs(value: Any) -> list:
    """The jaxprs in a parameter of an equation."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [j for v in value for j in _jaxprs(v)] if isinstance(value, (tuple, list)) else []
