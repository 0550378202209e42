"""One iteration of ours compared with TRL's GRPOTrainer and Tunix's GRPOLearner on the same work, alternating.

    python -m bench.peers --trl=PYTHON --tunix=PYTHON [--model=W10] [--shape=short] [--rounds=5] [--micro=0]

PYTHON is the interpreter of an environment with the peer (`pip install trl torch`, `pip install google-tunix`). An
iteration samples, scores with a reference model, takes gradients and steps AdamW: 8 prompts, float32, temperature 1, no
end of sequence, KL 0.04. Each peer is a process; while one works, the others wait. ours+row also scores each answer
without a chain, as our runs do by default. --out=FILE appends the table to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Prompts, chains of each, tokens of both: work.SHAPES, for this process, which imports none of our code.
SIZES = {"short": (8, 4, 128, 128), "shared": (8, 16, 512, 64)}
ENVIRONMENT = {
    "trl": {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    },
    "tunix": {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "SKIP_JAX_PRECOMPILE": "1"},
}
LOGS: dict[str, str] = {}  # file of what a peer prints


def ours(args: argparse.Namespace) -> None:
    """Our own process."""
    from bench import work
    from bench.peer_protocol import Iteration

    case = work.Case(work.MODELS[args.model], work.SHAPES[args.shape], args.micro, args.role == "ours+row")
    call, iteration = work.workload(case, ("iteration",)).calls["iteration"], Iteration()
    while True:
        iteration.start()
        call()
        iteration.end()


def start(name: str, command: list[str]) -> subprocess.Popen:
    """The process of a peer."""
    handle, LOGS[name] = tempfile.mkstemp(suffix=f"-{name}.log")
    pipe, env = subprocess.PIPE, os.environ | ENVIRONMENT.get(name, {})
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=handle, text=True, cwd=ROOT, env=env)


def iterate(name: str, child: subprocess.Popen) -> dict[str, float]:
    """One iteration of a peer."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        sys.exit(f"{name} ended; what it printed is in {LOGS[name]}")
    return json.loads(line)


def peers(args: argparse.Namespace, folder: str) -> dict[str, subprocess.Popen]:
    """The processes of all peers, started. `folder`: for TRL's model."""
    shape = [args.model, *map(str, SIZES[args.shape])]
    own = [sys.executable, "-m", "bench.peers", f"--model={args.model}", f"--shape={args.shape}"]
    own.append(f"--micro={args.micro}")
    names = ["ours"] if args.no_row else ["ours", "ours+row"]
    children = {name: start(name, [*own, f"--role={name}"]) for name in names}
    if args.trl:
        children["trl"] = start("trl", [args.trl, "bench/peer_trl.py", *shape, str(args.rows), folder])
    if args.tunix:
        children["tunix"] = start("tunix", [args.tunix, "bench/peer_tunix.py", *shape, str(args.prompts)])
    return children


def measure(children: dict[str, subprocess.Popen], rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each peer answered in each round, after one round that compiles."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for number in range(rounds + 1):
        for name, child in children.items():
            answer = iterate(name, child)
            if number:
                answers[name].append(answer)
            print(name, {k: round(v, 2) for k, v in answer.items()}, "" if number else "(warm-up)", flush=True)
    for child in children.values():
        child.kill()
    return answers


def table(title: str, answers: dict[str, list[dict[str, float]]]) -> str:
    """Markdown."""
    lines = [
        f"\n{title}\n",
        "| | median s | fastest s | slowest s | ratio to ours (median, fastest) | peak GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = [r["seconds"] for r in answers["ours"]]
    for name, rows in answers.items():
        t = [r["seconds"] for r in rows]
        ratio = f"{statistics.median(t) / statistics.median(base):.2f}, {min(t) / min(base):.2f}"
        peak = rows[-1]["peak_gib"]
        lines.append(f"| {name} | {statistics.median(t):.2f} | {min(t):.2f} | {max(t):.2f} | {ratio} | {peak:.2f} |")
    return "\n".join(lines)


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
    arguments.add_argument("--no_row", action="store_true", help="without ours+row, if memory cannot hold all")
    arguments.add_argument("--out", default="", help="a file that the table is appended to")
    arguments.add_argument("--role", default="", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.role:
        ours(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        answers = measure(peers(args, folder), args.rounds)
    text = table(f"{args.model} {args.shape}, {args.rounds} rounds", answers)
    print(text)
    if args.out:
        with open(args.out, "a") as handle:
            handle.write(text + "\n")


if __name__ == "__main__":
    main()
