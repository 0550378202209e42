"""What the untouched SmolLM2-135M-Instruct can do: base rates, before anything is trained.

    python -m rl_likelihood.datasets.prepare --dataset=gsm8k --out=data
    python -m experiments.base_rates [--gsm8k=data/gsm8k] [--questions=64] [--only='chain_sum;...']

Each question has two worked examples, one greedy answer with a chain and one without, and four chains at temperature 1.

    chain_sum         two or three terms of one or two digits
    basic_arithmetic  two or three numbers up to 10, with + - *; once more with the two examples in the other order,
                      which changes the result a lot
    leg_counting      one kind of animal, up to nine of it
    gsm8k             24 test questions, greedy only, chains of up to 120 tokens; left out, with a message, where its
                      folder does not exist

Writes experiments/results/base_rates.json and prints the tables of docs/results.md. Hardware: two CPU cores, 3 GB,
about 10 minutes when they do nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from configs.smollm2 import get_config
from rl_likelihood.config import build
from rl_likelihood.data import prompts
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.datasets.questions import variant_key
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.task import load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "base_rates.json"
SAMPLES = 4
LEGS = (
    (
        "Your task is to count how many legs there are in total when given a list of animals.\n\nNow, how many legs "
        "are there in total if you have 3 cows?",
        "A cow has 4 legs. 3 * 4 = 12.",
        "12",
    ),
    (
        "Your task is to count how many legs there are in total when given a list of animals.\n\nNow, how many legs "
        "are there in total if you have 2 chickens?",
        "A chicken has 2 legs. 2 * 2 = 4.",
        "4",
    ),
)
WORD_PROBLEMS = (
    (
        "Rosa has 3 boxes with 4 pens in each. She gives away 5 pens. How many pens has she left?",
        "3 boxes of 4 pens are 3 * 4 = 12 pens. 12 - 5 = 7 are left.",
        "7",
    ),
    (
        "A ticket costs 6 dollars and a drink 2 dollars. What do 2 tickets and 3 drinks cost?",
        "2 tickets cost 2 * 6 = 12 dollars, 3 drinks cost 3 * 2 = 6 dollars. Together 12 + 6 = 18.",
        "18",
    ),
)
# Task -> its worked examples, and what differs from configs/smollm2.py.
TASKS = {
    "chain_sum": (WORKED_EXAMPLES["chain_sum"][:2], {"data.tasks": ("chain_sum",), "prompt.max_prompt": 224}),
    "basic_arithmetic": (WORKED_EXAMPLES["basic_arithmetic"][:2], {"data.tasks": ("basic_arithmetic",)}),
    "basic_arithmetic, two steps first": (
        WORKED_EXAMPLES["basic_arithmetic"][1::-1],
        {"data.tasks": ("basic_arithmetic",)},
    ),
    "leg_counting": (
        LEGS,
        {
            "data.tasks": ("leg_counting(min_animals=1, max_animals=1, min_instances=1, max_instances=9)",),
            "prompt.max_prompt": 320,
        },
    ),
    "gsm8k": (
        WORD_PROBLEMS,
        {
            "data.source": "prepared",
            "data.train_size": 0,
            "data.heldout_split": "test",
            "data.heldout_size": 24,
            "prompt.max_prompt": 448,
            "prompt.max_answer": 16,
            "sampler.max_chain": 120,
            "eval.prompts": 24,
            "eval.samples": 0,
            "eval.grader": "numeric",
        },
    ),
}


def measure(task: str, questions: int, gsm8k: str) -> dict:
    """The numbers of one task, with their intervals."""
    shots, changes = TASKS[task]
    c = get_config()
    c.update_from_flattened_dict(
        {
            "data.heldout_size": questions,
            "eval.prompts": questions,
            "eval.samples": SAMPLES,
            "eval.batch_prompts": 16,
            "eval.grader": "exact_match",
            "prompt.examples": 0,
            "prompt.max_prompt": 192,
            "prompt.score_delims": "none",
            **changes,
        }
    )
    if task == "gsm8k":
        c.data.train_path = gsm8k
    settings = build(c)
    task, params = load(settings, training=False)
    shown = {variant_key(question) for question, _, _ in shots}
    examples = [row.example for row in task.heldout if variant_key(row.example.prompt) not in shown]
    rows = prompts.encode_all(examples, task.tokenizer, settings.prompt, task.fmt, shots)
    with tempfile.TemporaryDirectory() as folder:
        out = evaluate(
            Evaluation(task, params, rows, folder=folder, say=lambda text: print(text, file=sys.stderr, flush=True))
        )
        records = statistics.read_records(str(Path(folder) / out["records"]))[1]
    keep = (
        "greedy_success",
        "greedy_success_no_chain",
        "greedy_truncated",
        "greedy_chain_length",
        "sampled_success",
        "pass@4",
        "truncated",
        "answer_log_prob_no_chain",
        "answer_log_prob_greedy",
        "answer_tokens",
    )
    numbers = {k: [out[k], *out["ci95"].get(k, ())] for k in keep if k in out}
    if out["samples"]:
        right = np.asarray([[s["right"] for s in r["samples"]] for r in records], float)
        logp = np.asarray([[s["log_prob"] for s in r["samples"]] for r in records])
        helps = [r["greedy"]["log_prob"] > r["no_chain"]["log_prob"] for r in records]
        numbers |= {
            "greedy_chain_helps": [float(np.mean(helps))],
            "mixed_groups": [float(np.mean(right.min(1) < right.max(1)))],
            "std_in_group": [float(logp.std(1, ddof=1).mean())],
        }
    return {"questions": out["questions"], "seconds": out["seconds"], **numbers}


# name, key of the results, form; of the table of answers, and of that of likelihoods
ANSWERS = (
    ("greedy right, with chain", "greedy_success", "{:.0%}"),
    ("without", "greedy_success_no_chain", "{:.0%}"),
    ("opens the answer", "greedy_truncated", "{:.0%}"),
    ("chain, tokens", "greedy_chain_length", "{:.0f}"),
    ("right at T = 1", "sampled_success", "{:.0%}"),
    ("pass@4", "pass@4", "{:.0%}"),
    ("mixed groups", "mixed_groups", "{:.0%}"),
)
LIKELIHOODS = (
    ("log P(a*) without chain", "answer_log_prob_no_chain", "{:.2f}"),
    ("after chain", "answer_log_prob_greedy", "{:.2f}"),
    ("chain helps", "greedy_chain_helps", "{:.0%}"),
    ("std of log P in a group", "std_in_group", "{:.2f}"),
    ("answer tokens", "answer_tokens", "{:.1f}"),
)
Columns = tuple[tuple[str, str, str], ...]


def tables(results: dict[str, dict]) -> str:
    """Markdown of both tables. The second leaves out tasks without likelihoods."""
    scored = {task: row for task, row in results.items() if any(key in row for _, key, _ in LIKELIHOODS)}
    return f"Answers:\n\n{table(results, ANSWERS)}\n\nLikelihood of the reference:\n\n{table(scored, LIKELIHOODS)}"


def table(results: dict[str, dict], columns: Columns) -> str:
    """Markdown, 95 % intervals in brackets."""
    lines = ["| task | n | " + " | ".join(name for name, _, _ in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for task, row in results.items():
        cells = []
        for name, key, form in columns:
            values = row.get(key)
            if values is not None and name == "opens the answer":
                values = [1 - values[0], *(1 - v for v in values[:0:-1])]
            cells.append(
                "-"
                if values is None
                else " to ".join(form.format(v) for v in values[1:3]).join((form.format(values[0]) + " (", ")"))
                if len(values) == 3
                else form.format(values[0])
            )
        lines.append(f"| {task} | {row['questions']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gsm8k", default="data/gsm8k", help="folder that prepare wrote")
    arguments.add_argument("--questions", type=int, default=64, help="of each procedural task")
    arguments.add_argument("--only", default=";".join(TASKS), help="tasks, with semicolons")
    a = arguments.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in a.only.split(";"):
        if task == "gsm8k" and not Path(a.gsm8k).is_dir():
            print(f"gsm8k is left out: {a.gsm8k} is no folder; prepare it, or name it with --gsm8k", file=sys.stderr)
            continue
        results[task] = measure(task, a.questions, a.gsm8k)
        print(task, json.dumps(results[task]), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(tables({task: results[task] for task in TASKS if task in results}))


if __name__ == "__main__":
    main()
