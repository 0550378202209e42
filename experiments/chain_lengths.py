"""The tables of chain lengths in docs/results.md and docs/writing.md, from the runs of one task and seed.

    python -m experiments.chain_lengths --runs=runs/writing --task=verse --seed=0
    python -m experiments.chain_lengths --task=verse --seed=0 --only_table

Reads each run's eval.jsonl and metrics.jsonl and writes experiments/results/NAME_TASK_SEED.json, where NAME is the
folder's. Rewards whose runs are not in the folder keep the numbers that the file has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.runtime import run_files

RESULTS = Path(__file__).parent / "results"
NUMBERS = ("stage", "questions", "samples", "greedy_chain_length", "chain_length", "chain_length_no_tags", "truncated")
NUMBERS += ("perplexity", "perplexity_no_chain", "perplexity_swapped", "chain_gain", "chain_swap_drop")
NUMBERS += ("trace@0", "trace@25", "trace@50", "trace@75", "trace@100", "trace_area")
NUMBERS += ("no_chain/answered", "no_chain/answer_words", "no_chain/distinct_2", "no_chain/self_bleu")
NUMBERS += ("no_chain/copied",)
LENGTHS = "chain/length of each step"  # in training
COLUMNS = {  # field: (head, scale, digits)
    "chain_length": ("sampled chain, tokens", 1, 0),
    "greedy_chain_length": ("greedy chain, tokens", 1, 0),
    "truncated": ("never open the answer, %", 100, 0),
    "perplexity": ("perplexity", 1, 1),
    "perplexity_no_chain": ("without a chain", 1, 1),
    "perplexity_swapped": ("after another's chain", 1, 1),
    "chain_gain": ("own less none, nats an answer", 1, 1),
    "chain_swap_drop": ("own less another's, nats an answer", 1, 1),
    "trace_area": ("parts of the chain add, nats", 1, 3),
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each reward, with 95 % intervals."""
    columns = {k: v for k, v in COLUMNS.items() if all(k in row for row in results.values())}
    lines = ["| reward | " + " | ".join(head for head, _, _ in columns.values()) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, row in results.items():
        cells = ["untouched" if name == "untouched" else f"`{name}`"]
        for field, (_, scale, digits) in columns.items():
            value, (low, high) = row[field], row["ci95"][field]
            cells.append(f"{value * scale:.{digits}f} ({low * scale:.{digits}f} to {high * scale:.{digits}f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def collected(runs: Path, task: str, seed: int) -> dict[str, dict[str, Any]]:
    """The last evaluation of each run, by reward, and that of the untouched model."""
    results: dict[str, dict[str, Any]] = {}
    for path in sorted(runs.glob(f"*seed={seed},task={task}-*/eval.jsonl")):
        reward = path.parent.name.partition(",")[0].removeprefix("reward=")
        lines = run_files.read(path)
        for name, row in (("untouched", lines[0]), (reward, lines[-1])):
            if (row["stage"] == "untouched") == (name == "untouched"):
                numbers = {k: row[k] for k in NUMBERS if row.get(k) is not None}
                of = {key: {k: row[key][k] for k in numbers if k in row[key]} for key in ("ci95", "questions_of")}
                results[name] = numbers | of
        steps = run_files.read(path.with_name(run_files.METRICS))
        if reward in results and any("chain/length" in step for step in steps):
            results[reward][LENGTHS] = [step["chain/length"] for step in steps]
    return results


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=Path, default=Path("runs/writing"))
    arguments.add_argument("--task", default="verse")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only_table", action="store_true", help="of the file that is there")
    a = arguments.parse_args(argv)
    out = RESULTS / f"{a.runs.name}_{a.task}_seed_{a.seed}.json"
    if not a.only_table:
        kept = json.loads(out.read_text()) if out.exists() else {}
        results = kept | collected(a.runs, a.task, a.seed)
        order = sorted(results, key=lambda name: (name != "untouched", name))
        out.write_text(json.dumps({name: results[name] for name in order}, indent=1) + "\n")
    print(table(json.loads(out.read_text())), end="")


if __name__ == "__main__":
    main()
