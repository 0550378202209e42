"""Time and memory as work grows: group, prompt, completion and vocabulary, one at a time.

    python bench/cost.py [--rounds=3] [--out=docs/cost] [--read=docs/cost.json]

A model of 6 layers and width 256, two prompts; from 4 chains, a prompt and completions of 256 tokens and 49,152 words
one size changes at a time. Each point runs in a process of its own, whose peak memory is its own; sampling and the
learner's step (with a reference model, one prompt at a time) alternate with a large matrix product, and times are
counted in it, so that a machine that slows down for a while does not bend a curve. Writes OUT.json, OUT.png, and a
table: from one size to the next, time's growth over that of the operations that must be computed (bench/flops.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import flops, machine, work  # noqa: E402

BASE = {"group": 4, "prompt": 256, "completion": 256, "vocabulary": 49152}
SIZES = {
    "group": (1, 4, 16, 32), "prompt": (64, 256, 1024), "completion": (64, 256, 1024),
    "vocabulary": (4096, 49152, 151936),
}  # fmt: skip
CALLS = ("sampling", "learner")
PROMPTS = 2


def measure(point: dict[str, int], rounds: int) -> dict[str, float]:
    """Times in seconds and in matrix products, operations, and the process's peak memory in GiB."""
    model = dataclasses.replace(work.MODELS["W10"], vocab_size=point["vocabulary"])
    shape = flops.Shape(PROMPTS, point["group"], point["prompt"], point["completion"])
    made = work.workload(model, shape, 1, wanted=CALLS)
    times = work.rounds({"matrix": machine.limits()["matrix"]} | made.calls, rounds)
    useful = {"sampling": flops.sampling(model, shape), "learner": flops.learner(model, shape, True)}
    out = {**point, "memory": work.peak_memory()}
    for call in CALLS:
        fastest = min(times[call])
        out |= {f"{call}_s": fastest, f"{call}_products": fastest / min(times["matrix"]), f"{call}_flops": useful[call]}
    return out


def points() -> list[dict[str, int]]:
    """Every size of every axis, the common point once."""
    found = [{**BASE, axis: size} for axis, sizes in SIZES.items() for size in sizes]
    return [p for i, p in enumerate(found) if p not in found[:i]]


def along(rows: list[dict], axis: str) -> list[dict]:
    """The rows in which only this size differs from the base, the smallest first."""
    others = {k: v for k, v in BASE.items() if k != axis}
    return sorted((r for r in rows if all(r[k] == v for k, v in others.items())), key=lambda r: r[axis])


def table(rows: list[dict]) -> str:
    """Markdown: one line a size."""
    lines = [
        "| size | sampling s | growth over operations | learner s | growth over operations | GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for axis in SIZES:
        before = None
        for row in along(rows, axis):
            cells = [f"{axis} {row[axis]}"]
            for call in CALLS:
                grown = "" if before is None else f"{growth(before, row, call):.2f}"
                cells += [f"{row[f'{call}_s']:.2f}", grown]
            lines.append(f"| {' | '.join(cells)} | {row['memory']:.2f} |")
            before = row
    return "\n".join(lines)


def growth(a: dict, b: dict, call: str) -> float:
    """Time's growth from a to b over that of the operations."""
    return b[f"{call}_products"] / a[f"{call}_products"] / (b[f"{call}_flops"] / a[f"{call}_flops"])


def figure(rows: list[dict], path: Path) -> None:
    """A panel for each size: time, operations and memory as multiples of the smallest point's."""
    fig, axes = plt.subplots(1, len(SIZES), figsize=(15, 3.6), layout="constrained")
    for ax, axis in zip(axes, SIZES, strict=True):
        some = along(rows, axis)
        sizes = [r[axis] for r in some]
        for call, colour in zip(CALLS, ("#0b6fa4", "#b3481d"), strict=True):
            for kind, style in (("products", "-o"), ("flops", "--")):
                values = [r[f"{call}_{kind}"] / some[0][f"{call}_{kind}"] for r in some]
                label = f"{call}: {'time' if kind == 'products' else 'operations'}"
                ax.plot(sizes, values, style, color=colour, label=label, markersize=4)
        ax.plot(sizes, [r["memory"] / some[0]["memory"] for r in some], ":", color="#666666", label="peak memory")
        ax.set(xscale="log", yscale="log", title=axis, xticks=sizes, xticklabels=[f"{s:,}" for s in sizes])
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("times the smallest")
    axes[0].legend(fontsize=8)
    fig.savefig(path, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--out", default="cost", help="OUT.json and OUT.png are written")
    arguments.add_argument("--read", default="", help="a written OUT.json: table and figure again, nothing measured")
    arguments.add_argument("--point", default="", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.point:
        print(json.dumps(measure(json.loads(args.point), args.rounds)))
        return
    rows = json.loads(Path(args.read).read_text()) if args.read else []
    for point in () if args.read else points():
        command = [sys.executable, __file__, f"--rounds={args.rounds}", f"--point={json.dumps(point)}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps({k: round(v, 3) for k, v in rows[-1].items()}), file=sys.stderr, flush=True)
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(rows, indent=0) + "\n")
    figure(rows, out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
