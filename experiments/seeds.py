"""One config with several seeds, and its table: the quickstart, or countdown with a calculator.

    python -m experiments.seeds [--config=quickstart|calculator] [--seeds=0,1,2] [--only_table]

All seeds have the same held-out questions; sampling and the order of the training questions differ. Writes
experiments/results/CONFIG_seeds.json and prints a table like that of docs/results.md. A seed takes four minutes on two
cores (quickstart) or under 50 minutes (calculator). The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = {
    "quickstart": (
        "greedy_success",
        "sampled_success",
        "perplexity",
        "perplexity_no_chain",
        "chain_length",
        "truncated",
    ),
    "calculator": ("greedy_success", "sampled_success", "env_reward", "turns", "calls", "bad_calls", "out_of_turns"),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--config", choices=sorted(ROWS), default="quickstart")
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--only_table", action="store_true", help="of runs that are there")
    a = arguments.parse_args()
    results = {}
    for seed in a.seeds.split(","):
        workdir = ROOT / "runs" / f"{a.config}_seed_{seed}"
        command = ["-m", "rl_likelihood.train", f"--config=configs/{a.config}.py:seed={seed}"]
        if not a.only_table:
            subprocess.run([sys.executable, *command, f"--workdir={workdir}"], check=True, cwd=ROOT)
        evals = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
        kept = [e for e in evals if not e.get("stage", "step").startswith("step")]  # before and after
        results[seed] = [{k: e[k] for k in ("stage", "questions", *ROWS[a.config])} for e in kept]
    out = ROOT / "experiments" / "results" / f"{a.config}_seeds.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    stages = [e["stage"] for e in next(iter(results.values()))]
    print("| | " + " | ".join(stages) + " |\n|---|" + "---:|" * len(stages))
    for name in ROWS[a.config]:
        cells = []
        for stage in range(len(stages)):
            values = [r[stage][name] for r in results.values()]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
