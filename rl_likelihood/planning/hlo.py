"""Reads the text of a compiled program: its traffic between devices, and the compiler's estimate of its cycles."""

import dataclasses
import functools
import math
import re

import numpy as np
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes. `sent`: bytes that a device sends, by ring algorithms."""

    kind: str
    axes: str
    count: int
    sent: int


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|called_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)")


def collectives(hlo: str, mesh: Mesh, trips: int = 1) -> tuple[Collective, ...]:
    """The collectives that a device takes part in when the compiled program `hlo` runs once.

    A loop's body counts once for each iteration; a loop whose end depends on data has `trips`. The TPU's compiler cuts
    a collective into parts, to run it while it computes. The parts share a channel id and count once.
    """
    bodies, entry = computations(hlo)
    totals: dict[tuple[str, str], list[int]] = {}

    def walk(name: str, times: int, counted: set[str], scatter: bool) -> None:
        for line in bodies.get(name, ()):
            if " while(" in line:
                walk(_named("body", line), times * trips_of(line, bodies, unknown=trips), set(), False)
                continue
            match = _COLLECTIVE.search(line)
            if match:
                channel = re.search(r"channel_id=(\d+)", line)
                label = channel[1] if channel else line
                if label not in counted:
                    counted.add(label)
                    kind, axes, sent = _traffic(line, match, mesh, scatter)
                    total = totals.setdefault((kind, axes), [0, 0])
                    total[0] += times
                    total[1] += times * sent
                continue
            for callee in called(line):
                walk(callee, times, counted, "all-reduce-scatter" in callee)

    walk(entry, 1, set(), False)
    rows = (Collective(kind, axes, count, sent) for (kind, axes), (count, sent) in totals.items())
    return tuple(sorted(rows, key=lambda c: -c.sent))


def _traffic(line: str, match: re.Match[str], mesh: Mesh, scatter: bool) -> tuple[str, str, int]:
    """(kind, axes, bytes sent) of one collective. `scatter`: it is in a fusion that keeps one part of an all-reduce."""
    kind = match[2]
    axes, n = _group(line, mesh)
    size = _bytes(match[1], started=bool(match[3]))
    if scatter and kind == "all-reduce":
        kind, size = "reduce-scatter", size // n  # the text gives the whole operand
    return kind, axes, _sent(kind, size, n)


def called(line: str) -> list[str]:
    return [name for text in _CALLED.findall(line) for name in re.findall(r"[\w.\-]+", text)]


def _named(attribute: str, line: str) -> str:
    match = re.search(rf"{attribute}=%?([\w.\-]+)", line)
    return match[1] if match else ""


def trips_of(line: str, bodies: dict[str, list[str]], unknown: int = 1) -> int:
    """Iterations of a loop: as the compiler says, else the bound in its condition (jax's loops count from 0)."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", line)
    if known:
        return int(known[1])
    condition = bodies.get(_named("condition", line), [])
    fused = [name for text in condition for name in re.findall(r"calls=%?([\w.\-]+)", text)]
    lines = condition + [text for name in fused for text in bodies.get(name, ())]
    return max((int(n) for text in lines for n in re.findall(r"constant\((\d+)\)", text)), default=unknown)


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the one that runs first."""
    bodies: dict[str, list[str]] = {}
    entry = ""
    current: list[str] | None = None
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # not startswith: lines of a Pallas kernel's text may begin with it
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _bytes(types: str, started: bool) -> int:
    """Bytes of a collective's result. The text of a started one lists its operand too; the larger of them counts."""
    sizes = []
    for kind, dims in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", types)):  # without the layouts
        width = re.match(r"[a-z]+(\d+)", kind)  # pred has no number and is one byte
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * (int(width[1]) if width else 8) // 8)
    return max(sizes, default=0) if started else sum(sizes)


def _sent(kind: str, size: int, n: int) -> int:
    """Bytes that each of n devices sends around a ring, for a result of `size` bytes on each."""
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
    return int(size * share.get(kind, (n - 1) / n))


def _group(line: str, mesh: Mesh) -> tuple[str, int]:
    """The mesh axes along which a collective communicates, joined by +, and how many devices are in a group."""
    groups, pairs = _groups(line)
    groups = [g for g in groups if g] or [list(range(mesh.size))]
    axes: set[int] = set()
    for group in groups if pairs else groups[:1]:
        coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
        axes |= set(np.flatnonzero((coordinates != coordinates[:, :1]).any(1)).tolist())
    return "+".join(mesh.axis_names[i] for i in sorted(axes)) or "none", len(groups[0])


def _groups(line: str) -> tuple[list[list[int]], bool]:
    """The groups of devices in a collective's text, in any of its notations; and whether they are (from, to) pairs."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", line)
    if pairs:
        groups = _braced(pairs[1])
        return [g for g in groups if g[0] != g[1]] or groups, True
    on_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*)\))? ?\{([^}]*)\}", line)
    if on_mesh:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", on_mesh[1])}
        along = re.findall(r"'([^']+)'", on_mesh[3])
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return [ids[tuple(slice(None) if name in along else 0 for name in sizes)].ravel().tolist()], False
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        ids = np.arange(math.prod(_numbers(iota[2]))).reshape(_numbers(iota[2]))
        ids = ids.transpose(_numbers(iota[3])) if iota[3] else ids
        return ids.reshape(_numbers(iota[1])).tolist(), False
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    return _braced(listed[1]) if listed else [], False


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n.strip()]


def _braced(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", text)]


_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def cycles(hlo: str, trips: int = 1) -> int:
    """The compiler's estimate of a program's cycles on one TPU device; 0 for other devices.

    A loop's body counts once for each iteration; a loop whose end depends on data has `trips`. Of a conditional the
    longest branch counts. Pallas kernels and transfers between devices have no cycles.
    """
    bodies, entry = computations(hlo)

    @functools.cache
    def walk(name: str) -> int:
        total = 0
        for line in bodies.get(name, ()):
            estimate = _CYCLES.search(line)
            if " while(" in line:
                total += trips_of(line, bodies, unknown=trips) * walk(_named("body", line))
            elif " conditional(" in line:
                total += max(map(walk, called(line)), default=0)
            elif estimate:  # of a whole fusion
                total += int(estimate[1])
            elif " call(" in line or " async-start(" in line:
                total += sum(map(walk, called(line)))
        return total

    return walk(entry)
