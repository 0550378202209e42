"""Traces some steps for TensorBoard, XProf and Perfetto, and prints one line about the trace."""

import heapq
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say

FOLDER = "profile"  # in a workdir


class Profile:
    """Traces steps into the workdir. `steps`: (first, last), or () for no trace. A run that resumes between them traces
    what is left of them; `done` is its last step. Of several processes only process 0 traces, because they share the
    workdir."""

    def __init__(self, workdir: Path, steps: tuple[int, ...], done: int = 0) -> None:
        self.folder, self.running, self.began = workdir / FOLDER, False, (0, 0.0)
        self.steps = steps if steps and distributed.first() else (0, 0)
        if steps and done >= steps[1]:
            say(f"profile  nothing is traced: step {steps[1]}, the last of report.profile, is already done")

    def before(self, step: int) -> None:
        if not self.running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running, self.began = True, (step, time.perf_counter())

    def after(self, step: int) -> None:
        if self.running and step >= self.steps[1]:
            first, wall = self.began[0], time.perf_counter() - self.began[1]
            self._stop()
            say(f"profile  steps {first} to {step} in {self.folder}: tensorboard, xprof or ui.perfetto.dev")
            say(f"profile  {summary(self.folder, wall, step - first + 1)}")

    def close(self) -> None:
        """Stops a trace that still runs, at the end of a run."""
        if self.running:
            self._stop()
            say(f"profile  ended before step {self.steps[1]}, so without a summary; the trace is in {self.folder}")

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.running = False


# ---------------------------------------------------------------------------------------- what is in a trace

# Names of the sampler's jitted functions, and the parts of a step.
SAMPLING = (
    *("prefill", "decode_until", "fill", "longer", "empty_slots", "start_rows", "turn", "generate", "generate_spread"),
    *("packing_order", "packed_layer"),  # the caches before a turn
    *("prepare", "outer", "layer"),  # the sampler's copy of the weights
)
PARTS = ("sampling", "forward", "backward", "update", "other")
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{[^}]*?op_name="([^"]*)"', re.MULTILINE)


class Op(NamedTuple):
    """One operation on a device: start and end in nanoseconds, its program, and its name in the program."""

    start: float
    end: float
    program: str
    name: str


def part_of(program: str, origin: str) -> str:
    """The part of a step to which an operation belongs. `origin`: the path of jax functions that it came from."""
    name = program.removeprefix("jit_")
    if name in SAMPLING:
        return "sampling"
    if name != "step":
        return "other"
    if "transpose(" in origin:
        return "backward"
    return "update" if "/update/" in origin else "forward"


def seconds(ops: Iterable[Op], origins: dict[tuple[str, str], str]) -> dict[str, float]:
    """Seconds of each part. Of overlapping operations, the one that began last counts: it is nested in the others."""
    ops = sorted(ops)
    edges = sorted({t for op in ops for t in (op.start, op.end)})
    out, i = dict.fromkeys(PARTS, 0.0), 0
    active: list[tuple[float, int]] = []
    for now, next_edge in zip(edges, edges[1:], strict=False):
        while i < len(ops) and ops[i].start <= now:
            heapq.heappush(active, (-ops[i].start, i))
            i += 1
        while active and ops[active[0][1]].end <= now:
            heapq.heappop(active)
        if active:
            op = ops[active[0][1]]
            out[part_of(op.program, origins.get((op.program, op.name), ""))] += (next_edge - now) / 1e9
    return out


def device_ops(data: jax.profiler.ProfileData) -> list[Op]:
    """The operations of the first accelerator, or of the CPU's threads."""
    planes = sorted((p for p in data.planes if p.name.startswith("/device:")), key=lambda p: p.name)
    planes = planes[:1] or [p for p in data.planes if p.name == "/host:CPU"]
    ops, programs = [], []
    for line in (line for plane in planes for line in plane.lines):
        if line.name == "XLA Modules":  # a TPU, whose operations do not name their program
            programs += [Op(e.start_ns, e.end_ns, e.name.partition("(")[0], "") for e in line.events]
            continue
        for e in line.events:
            stats = dict(e.stats)
            if "hlo_op" in stats or line.name == "XLA Ops":
                name = str(stats.get("hlo_op", e.name.partition(" ")[0].lstrip("%")))
                ops.append(Op(e.start_ns, e.end_ns, str(stats.get("hlo_module", "")), name))
    program_at = lambda time: next((p.program for p in programs if p.start <= time < p.end), "")
    return [op._replace(program=op.program or program_at(op.start)) for op in ops]


def origins() -> dict[tuple[str, str], str]:
    """{(program, instruction): the path of jax functions that it came from}, for the step's programs in memory."""
    out: dict[tuple[str, str], str] = {}
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if module.name == "jit_step":
                out |= {(module.name, name): origin for name, origin in INSTRUCTION.findall(module.to_string())}
    return out


def summary(folder: Path, wall: float, steps: int) -> str:
    """One line about the newest trace in a folder. `wall`: seconds of all `steps` together."""
    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    parts = seconds(device_ops(jax.profiler.ProfileData.from_file(str(file))), origins())
    parts["host"] = max(0.0, wall - sum(parts.values()))
    text = ", ".join(f"{name} {value / steps:.3g} s" for name, value in parts.items())
    return f"{wall / steps:.3g} s a step on the first device: {text}"
