"""A trace of some steps, which TensorBoard, XProf and Perfetto open, and one line on what the devices did in it."""

import heapq
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from rl_likelihood.runtime.console import say

FOLDER = "profile"  # of a workdir


class Profile:
    """Traces the steps first to last into the workdir; nothing for ()."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps, self.running, self.began = workdir / FOLDER, steps, False, 0.0

    def before(self, step: int) -> None:
        """Before step number `step`."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running, self.began = True, time.perf_counter()

    def after(self, step: int) -> None:
        """After it."""
        if self.running and step >= self.steps[1]:
            wall = time.perf_counter() - self.began
            self.close()
            say(f"profile  steps {self.steps[0]} to {step} in {self.folder}: tensorboard, xprof or ui.perfetto.dev")
            say(f"profile  {summary(self.folder, wall, step - self.steps[0] + 1)}")

    def close(self) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


# ---------------------------------------------------------------------------------------- what is in a trace

# Jitted functions of the sampler, and those of `learner/step.py` by what their operations are named after.
SAMPLING = (
    *("prefill", "decode_until", "fill", "longer", "empty_slots", "begin", "turn", "generate", "generate_spread"),
    *("prepare", "outer", "layer"),  # the sampler's copy of the weights
)
PARTS = ("sampling", "forward", "backward", "update", "other")
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{[^}]*?op_name="([^"]*)"', re.MULTILINE)


class Op(NamedTuple):
    """One operation on a device: nanoseconds from and to, its program and its name there."""

    start: float
    end: float
    program: str
    name: str


def part_of(program: str, origin: str) -> str:
    """Which part of a step an operation belongs to; `origin` is the path of jax functions that it was compiled from."""
    name = program.removeprefix("jit_")
    if name in SAMPLING:
        return "sampling"
    if name != "step":
        return "other"
    if "transpose(" in origin:
        return "backward"
    return "update" if "/update/" in origin else "forward"


def seconds(ops: Iterable[Op], origins: dict[tuple[str, str], str]) -> dict[str, float]:
    """Seconds of each part. Of operations at the same time the one that began last counts: it is inside the others."""
    ops = sorted(ops)
    edges = sorted({t for op in ops for t in (op.start, op.end)})
    out, i = dict.fromkeys(PARTS, 0.0), 0
    active: list[tuple[float, int]] = []
    for now, then in zip(edges, edges[1:], strict=False):
        while i < len(ops) and ops[i].start <= now:
            heapq.heappush(active, (-ops[i].start, i))
            i += 1
        while active and ops[active[0][1]].end <= now:
            heapq.heappop(active)
        if active:
            op = ops[active[0][1]]
            out[part_of(op.program, origins.get((op.program, op.name), ""))] += (then - now) / 1e9
    return out


def device_ops(data: jax.profiler.ProfileData) -> list[Op]:
    """The operations of one device: of the first accelerator, or of the CPU's threads."""
    planes = sorted((p for p in data.planes if p.name.startswith("/device:")), key=lambda p: p.name)
    planes = planes[:1] or [p for p in data.planes if p.name == "/host:CPU"]
    ops, programs = [], []
    for line in (line for plane in planes for line in plane.lines):
        if line.name == "XLA Modules":  # of a TPU, whose operations do not name their program
            programs += [Op(e.start_ns, e.end_ns, e.name.partition("(")[0], "") for e in line.events]
            continue
        for e in line.events:
            stats = dict(e.stats)
            if "hlo_op" in stats or line.name == "XLA Ops":
                name = str(stats.get("hlo_op", e.name.partition(" ")[0].lstrip("%")))
                ops.append(Op(e.start_ns, e.end_ns, str(stats.get("hlo_module", "")), name))
    return [op if op.program else op._replace(program=_program_at(programs, op.start)) for op in ops]


def _program_at(programs: list[Op], time: float) -> str:
    return next((p.program for p in programs if p.start <= time < p.end), "")


def origins() -> dict[tuple[str, str], str]:
    """Of each instruction of the programs in memory, by program and name, the path of jax functions it came from."""
    out: dict[tuple[str, str], str] = {}
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if module.name == "jit_step":
                out |= {(module.name, name): origin for name, origin in INSTRUCTION.findall(module.to_string())}
    return out


def summary(folder: Path, wall: float, steps: int) -> str:
    """One line on the newest trace in a folder, of some steps that took `wall` seconds in all."""
    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    parts = seconds(device_ops(jax.profiler.ProfileData.from_file(str(file))), origins())
    parts["host"] = max(0.0, wall - sum(parts.values()))
    text = ", ".join(f"{name} {value / steps:.3g} s" for name, value in parts.items())
    return f"{wall / steps:.3g} s a step on the first device: {text}"
