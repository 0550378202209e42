"""What asynchronous sampling gains on this machine: the next step's chains are sampled while this step learns.

    python -m bench.overlap [--config=configs/quickstart.py] [--steps=8] [--rounds=2]

Runs alternate between `sampler.max_staleness` 0 (sample, then learn) and 1 (the sampler runs one step ahead, in its own
thread); each run is a process. Seconds per step are the time that the learner waited plus the time that it learned. The
first two steps compile and are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARM_UP = 2


def run(config: str, steps: int, staleness: int) -> dict[str, float]:
    """Medians over the steps of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "rl_likelihood.train",
            f"--config={config}",
            f"--workdir={folder}",
            f"--config.train.steps={steps}",
            f"--config.sampler.max_staleness={staleness}",
            "--config.train.eval_first=False",
            "--config.train.eval_every=0",
            "--config.eval.prompts=1",
            "--config.warm_start.steps=0",
            f"--config.train.checkpoint_every={steps}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-1000:])
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/learn" in row and row["step"] > WARM_UP]
    medians = {key: statistics.median(row[f"time/{key}"] for row in rows) for key in ("wait", "learn", "sample")}
    return {"step": statistics.median(row["time/wait"] + row["time/learn"] for row in rows), **medians}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--config", default="configs/quickstart.py")
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=2)
    args = arguments.parse_args()
    measured: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(args.rounds):
        for staleness, times in measured.items():
            got = run(args.config, args.steps, staleness)
            times.append(got["step"])
            print(f"max_staleness {staleness}", json.dumps({k: round(v, 3) for k, v in got.items()}), flush=True)
    first, ahead = (min(times) for times in measured.values())
    print(f"alternating {first:.2f} s per step, one step ahead {ahead:.2f} s: {first / ahead:.2f} times as fast")


if __name__ == "__main__":
    main()
