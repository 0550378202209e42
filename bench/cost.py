"""Time and memory as work grows: group, prompt, completion and vocabulary, one at a time.

    python -m bench.cost [--rounds=5] [--out=docs/cost] [--read=docs/cost.json]

A model of 6 layers and width 256, two prompts. The base is 4 chains, prompts and completions of 256 tokens, and a
vocabulary of 49,152; one size changes at a time. Timed are sampling and the learner's step, with a reference model and
micro-batches of one prompt. All sizes of one kind alternate in one process, because the machine's speed drifts by more
than the differences in question. Peak memory is measured in a process that does nothing else. Writes OUT.json, OUT.png
and a table: from one size to the next, the growth of the fastest time over the growth of the operations that must be
computed (bench/flops.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from bench import flops, work

ROOT = Path(__file__).parents[1]
BASE = {"group": 4, "prompt": 256, "completion": 256, "vocabulary": 49152}
SIZES = {
    "group": (1, 4, 16, 32),
    "prompt": (64, 256, 1024),
    "completion": (64, 256, 1024),
    "vocabulary": (4096, 49152, 151936),
}
CALLS = ("sampling", "learner")
PROMPTS = 2


def point(axis: str, size: int) -> tuple[work.ModelConfig, flops.Shape]:
    """The model and the shape with one size of the base changed."""
    p = BASE | {axis: size}
    model = dataclasses.replace(work.MODELS["W10"], vocab_size=p["vocabulary"])
    return model, flops.Shape(PROMPTS, p["group"], p["prompt"], p["completion"])


def calls(axis: str, size: int) -> dict:
    return work.workload(work.Case(*point(axis, size), micro=1), CALLS).calls


def times(axis: str, rounds: int) -> list[dict]:
    """A row for each size: seconds of the fastest call, and the operations that it must do."""
    made = {(size, call): run for size in SIZES[axis] for call, run in calls(axis, size).items()}
    measured, rows = work.rounds(made, rounds), []
    for size in SIZES[axis]:
        model, shape = point(axis, size)
        useful = {"sampling": flops.sampling(model, shape), "learner": flops.learner(model, shape, True)}
        row = {"axis": axis, "size": size}
        for call in CALLS:
            row |= {f"{call}_s": min(measured[size, call]), f"{call}_flops": useful[call]}
        rows.append(row)
    return rows


def memory(axis: str, size: int) -> float:
    """GiB that this process has held at most, after both calls."""
    work.rounds(calls(axis, size), 1)
    return work.peak_memory()


def alone(*arguments: str):
    """The last line that this program prints when it runs in another process with these arguments."""
    command = [sys.executable, "-m", "bench.cost", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int) -> list[dict]:
    """All rows. Each is printed on standard error as soon as it is known."""
    rows, peak = [], {}  # memory by point: the base occurs four times and is measured once
    for axis in SIZES:
        for row in alone(f"--times={axis}", f"--rounds={rounds}"):
            at = point(axis, row["size"])
            if at not in peak:
                peak[at] = alone(f"--memory={axis}", f"--size={row['size']}")
            rows.append(row | {"memory": peak[at]})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def growth(a: dict, b: dict, call: str) -> float:
    """Growth of the time from a to b, over the growth of the operations."""
    return b[f"{call}_s"] / a[f"{call}_s"] / (b[f"{call}_flops"] / a[f"{call}_flops"])


def table(rows: list[dict]) -> str:
    """Markdown: one line a size."""
    lines = [
        "| size | sampling s | growth over operations | learner s | growth over operations | GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    before = rows[0]
    for row in rows:
        cells = [f"{row['axis']} {row['size']:,}"]
        first = row is before or before["axis"] != row["axis"]
        for call in CALLS:
            cells += [f"{row[f'{call}_s']:.2f}", "" if first else f"{growth(before, row, call):.2f}"]
        lines.append(f"| {' | '.join(cells)} | {row['memory']:.2f} |")
        before = row
    return "\n".join(lines)


def figure(rows: list[dict], path: Path) -> None:
    """A panel for each kind of size: time, operations and memory as multiples of those of the smallest size."""
    fig, axes = plt.subplots(1, len(SIZES), figsize=(15, 3.6), layout="constrained", sharey=True)
    for ax, axis in zip(axes, SIZES, strict=True):
        some = [r for r in rows if r["axis"] == axis]
        sizes = [r["size"] for r in some]
        for call, colour in zip(CALLS, ("#0b6fa4", "#b3481d"), strict=True):
            for kind, style in (("s", "-o"), ("flops", "--")):
                values = [r[f"{call}_{kind}"] / some[0][f"{call}_{kind}"] for r in some]
                label = f"{call}: {'time' if kind == 's' else 'operations'}"
                ax.plot(sizes, values, style, color=colour, label=label, markersize=4)
        ax.plot(sizes, [r["memory"] / some[0]["memory"] for r in some], ":", color="#666666", label="peak memory")
        ax.set(xscale="log", yscale="log", title=axis, xticks=sizes, xticklabels=[f"{s:,}" for s in sizes])
        ax.set_yticks((1, 2, 5, 10, 20), (1, 2, 5, 10, 20))
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("times the smallest")
    axes[0].legend(fontsize=8)
    fig.savefig(path, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--out", default="cost", help="OUT.json and OUT.png are written")
    arguments.add_argument("--read", default="", help="an OUT.json: make its table and figure, measure nothing")
    for name in ("--times", "--memory", "--size"):  # what `alone` asks of another process
        arguments.add_argument(name, default="", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.times or args.memory:
        print(json.dumps(times(args.times, args.rounds) if args.times else memory(args.memory, int(args.size))))
        return
    rows = json.loads(Path(args.read).read_text()) if args.read else measure(args.rounds)
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(rows, indent=0) + "\n")
    figure(rows, out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
