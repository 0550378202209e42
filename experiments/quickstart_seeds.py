"""The quickstart with three seeds, and its table.

    python -m experiments.quickstart_seeds [--seeds=0,1,2] [--only_table]

All seeds have the same held-out questions; sampling and the order of the training questions differ. Writes
experiments/results/quickstart_seeds.json and prints the table of docs/results.md. Four minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ("greedy_success", "sampled_success", "perplexity", "perplexity_no_chain", "chain_length", "truncated")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--only_table", action="store_true", help="of runs that are there")
    a = arguments.parse_args()
    results = {}
    for seed in a.seeds.split(","):
        workdir = ROOT / "runs" / f"quickstart_seed_{seed}"
        command = ["-m", "rl_likelihood.train", "--config=configs/quickstart.py", f"--config.seed={seed}"]
        if not a.only_table:
            subprocess.run([sys.executable, *command, f"--workdir={workdir}"], check=True, cwd=ROOT)
        evals = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
        results[seed] = [{k: e[k] for k in ("stage", "questions", *ROWS)} for e in evals if "stage" in e]
    out = ROOT / "experiments" / "results" / "quickstart_seeds.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print("| | " + " | ".join(e["stage"] for e in next(iter(results.values()))) + " |\n|---|" + "---:|" * 2)
    for name in ROWS:
        cells = []
        for stage in range(len(next(iter(results.values())))):
            values = [r[stage][name] for r in results.values()]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
