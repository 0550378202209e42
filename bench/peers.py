"""One iteration here against one of TRL's GRPOTrainer and of Tunix's GRPOLearner, on the same work in turns.

    python bench/peers.py --trl=PYTHON --tunix=PYTHON [--model=W10] [--shape=short] [--rounds=5] [--micro=0]

PYTHON is the interpreter of an environment that holds the peer (`pip install trl torch`, `pip install google-tunix`).
An iteration samples, scores with a reference model, takes gradients and steps AdamW: 8 prompts, float32, temperature
1, no end of sequence, KL 0.04. Each peer is a process of its own; all take turns A B C A B C, and wait while another
works. ours+row: with the row without a chain that our groups have by default. --out=FILE has the table added to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LOGS: dict[str, str] = {}
# Prompts, chains of each, tokens of both: work.SHAPES, for a process that imports none of ours.
SIZES = {"short": (8, 4, 128, 128), "shared": (8, 16, 512, 64)}


def ours(args: argparse.Namespace) -> None:
    """Our own process."""
    sys.path.insert(0, str(HERE))
    from peer_protocol import Turns

    sys.path.insert(0, str(HERE.parent))
    from bench import work

    model, shape = work.MODELS[args.model], work.SHAPES[args.shape]
    made = work.workload(model, shape, args.micro, no_chain=args.role == "ours+row", wanted=("iteration",))
    turns = Turns()
    while True:
        turns.start()
        made.calls["iteration"]()
        turns.end()


def start(name: str, command: list[str]) -> subprocess.Popen:
    """A peer's process; what it says goes to a file."""
    handle, LOGS[name] = tempfile.mkstemp(suffix=f"-{name}.log")
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=handle, text=True, cwd=HERE)


def turn(name: str, child: subprocess.Popen) -> dict:
    """One iteration of a peer."""
    child.stdin.write("go\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        sys.exit(f"{name} ended; what it said is in {LOGS[name]}")
    return json.loads(line)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--trl", default="", help="interpreter of TRL's environment")
    arguments.add_argument("--tunix", default="", help="interpreter of Tunix's environment")
    arguments.add_argument("--model", default="W10")
    arguments.add_argument("--shape", default="short")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--micro", type=int, default=0, help="our prompts in a micro-batch; 0: as in a run")
    arguments.add_argument("--rows", type=int, default=8, help="TRL's rows in a micro-batch")
    arguments.add_argument("--prompts", type=int, default=2, help="Tunix's prompts in a micro-batch")
    arguments.add_argument("--no_row", action="store_true", help="without ours+row, where memory does not hold all")
    arguments.add_argument("--out", default="", help="a file that the table is added to")
    arguments.add_argument("--role", default="", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.role:
        ours(args)
        return
    shape = list(map(str, (args.model, *SIZES[args.shape])))
    own = [sys.executable, "peers.py", f"--model={args.model}", f"--shape={args.shape}", f"--micro={args.micro}"]
    children = {name: start(name, [*own, f"--role={name}"]) for name in ("ours", "ours+row")[: 1 if args.no_row else 2]}
    folder = tempfile.TemporaryDirectory()  # TRL's model; goes with this process, however that ends
    if args.trl:
        children["trl"] = start("trl", [args.trl, "peer_trl.py", *shape, str(args.rows), folder.name])
    if args.tunix:
        children["tunix"] = start("tunix", [args.tunix, "peer_tunix.py", *shape, str(args.prompts)])
    seen: dict[str, list[dict]] = {name: [] for name in children}
    for number in range(args.rounds + 1):
        for name, child in children.items():
            got = turn(name, child)
            if number:  # the first compiles and warms up
                seen[name].append(got)
            print(name, {k: round(v, 2) for k, v in got.items()}, "" if number else "(warm-up)", flush=True)
    for child in children.values():
        child.kill()
    lines = [
        f"\n{args.model} {args.shape}, {args.rounds} rounds\n",
        "| | median s | fastest s | slowest s | ratio to ours (median, fastest) | peak GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = [r["seconds"] for r in seen["ours"]]
    for name, rows in seen.items():
        t = [r["seconds"] for r in rows]
        ratio = f"{statistics.median(t) / statistics.median(base):.2f}, {min(t) / min(base):.2f}"
        peak = rows[-1]["peak_gib"]
        lines.append(f"| {name} | {statistics.median(t):.2f} | {min(t):.2f} | {max(t):.2f} | {ratio} | {peak:.2f} |")
    print("\n".join(lines))
    if args.out:
        with open(args.out, "a") as handle:
            handle.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
