"""What the text of a compiled program says: its traffic between devices, and the compiler's own cycles."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same axes of the mesh. `sent`: bytes a device sends, by ring algorithms."""

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

    A loop's body counts as often as it runs at most; `trips` for a loop whose end depends on data. The parts into which
    the TPU's compiler cuts one collective, to hide it behind arithmetic, carry one channel id and count once.
    """
    bodies, entry = computations(hlo)
    found: dict[tuple[str, str], list[int]] = {}

    def walk(name: str, times: int, seen: set[str], scatter: bool) -> None:
        for line in bodies.get(name, ()):
            if " while(" in line:
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                walk(body, times * trips_of(line, bodies, unknown=trips), set(), False)
                continue
            match = _COLLECTIVE.search(line)
            if match:
                channel = re.search(r"channel_id=(\d+)", line)
                label = channel[1] if channel else line
                if label not in seen:
                    seen.add(label)
                    kind = "reduce-scatter" if scatter and match[2] == "all-reduce" else match[2]
                    axes, n = _group(line, mesh)
                    size = _bytes(match[1], started=bool(match[3]))
                    if scatter and match[2] == "all-reduce":  # the whole operand; the fusion keeps a part of it
                        size //= n
                    row = found.setdefault((kind, axes), [0, 0])
                    row[0] += times
                    row[1] += times * _sent(kind, size, n)
                continue
            for callee in called(line):
                walk(callee, times, seen, "all-reduce-scatter" in callee)

    walk(entry, 1, set(), False)
    rows = (Collective(kind, axes, count, sent) for (kind, axes), (count, sent) in found.items())
    return tuple(sorted(rows, key=lambda c: -c.sent))


def called(line: str) -> list[str]:
    """The computations that an instruction calls."""
    return [name for text in _CALLED.findall(line) for name in re.findall(r"[\w.\-]+", text)]


def trips_of(line: str, bodies: dict[str, list[str]], unknown: int = 1) -> int:
    """How often a loop runs: as the compiler says, or by the bound in its condition (jax's loops count from 0)."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", line)
    if known:
        return int(known[1])
    condition = bodies.get(re.search(r"condition=%?([\w.\-]+)", line)[1], [])
    fused = [name for text in condition for name in re.findall(r"calls=%?([\w.\-]+)", text)]
    lines = condition + [text for name in fused for text in bodies.get(name, ())]
    return max((int(n) for text in lines for n in re.findall(r"constant\((\d+)\)", text)), default=unknown)


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by name, and the name of the one that runs first."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # not startswith: the text of a Pallas kernel has lines that begin with it
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _bytes(types: str, started: bool) -> int:
    """Bytes of the result of a collective; the started ones show their operands too."""
    sizes = []
    for kind, dims in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", types)):  # without the layouts
        width = re.match(r"[a-z]+(\d+)", kind)  # pred has none, and is a byte
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * (int(width[1]) if width else 8) // 8)
    return max(sizes, default=0) if started else sum(sizes)


def _sent(kind: str, size: int, n: int) -> int:
    """Bytes that each of n devices sends in a ring, for a result of `size` bytes on each."""
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
    return int(size * share.get(kind, (n - 1) / n))


def _group(line: str, mesh: Mesh) -> tuple[str, int]:
    """Axes of the mesh along which a collective talks, joined by +, and how many devices are in a group."""
    shape = mesh.devices.shape
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", line)
    mesh_groups = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*)\))? ?\{([^}]*)\}", line)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    numbers = lambda text: [int(n) for n in text.split(",") if n.strip()]
    if pairs:
        groups = [numbers(g) for g in re.findall(r"\{([\d, ]*)\}", pairs[1])]
        groups = [g for g in groups if g[0] != g[1]] or groups
    elif mesh_groups:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh_groups[1]))
        names, inside = list(sizes), re.findall(r"'([^']+)'", mesh_groups[3])
        ids = np.arange(math.prod(map(int, sizes.values()))).reshape([int(n) for n in sizes.values()])
        groups = [ids[tuple(slice(None) if n in inside else 0 for n in names)].ravel().tolist()]
    elif iota:
        ids = np.arange(math.prod(numbers(iota[2]))).reshape(numbers(iota[2]))
        ids = ids.transpose(numbers(iota[3])) if iota[3] else ids
        groups = ids.reshape(numbers(iota[1])).tolist()
    else:
        groups = [numbers(g) for g in re.findall(r"\{([\d, ]*)\}", listed[1])] if listed else []
    groups = [g for g in groups if g] or [list(range(mesh.size))]
    axes: set[int] = set()
    for group in groups if pairs else groups[:1]:
        places = np.array(np.unravel_index(group, shape))
        axes |= set(np.flatnonzero((places != places[:, :1]).any(1)).tolist())
    return "+".join(mesh.axis_names[i] for i in sorted(axes)) or "none", len(groups[0])


_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def cycles(hlo: str, trips: int = 1) -> int:
    """The compiler's estimate of a program's cycles on one device of a TPU; 0 for other devices.

    A loop's body counts as often as it runs; `trips` for a loop whose end depends on data. Of a conditional's branches
    the longest counts. Pallas kernels and transfers between devices have no cycles.
    """
    bodies, entry = computations(hlo)

    @functools.cache
    def walk(name: str) -> int:
        total = 0
        for line in bodies.get(name, ()):
            found = _CYCLES.search(line)
            if " while(" in line:
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                total += trips_of(line, bodies, unknown=trips) * walk(body)
            elif " conditional(" in line:
                total += max(map(walk, called(line)), default=0)
            elif found:  # of a fusion as a whole
                total += int(found[1])
            elif " call(" in line or " async-start(" in line:
                total += sum(map(walk, called(line)))
        return total

    return walk(entry)
