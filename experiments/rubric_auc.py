"""Can a small model tell whether an answer meets a criterion? Its P(yes) against rules that know.

    python -m experiments.rubric_auc --data=FOLDER/self_instruct_seed_tasks.jsonl

The data: yizhongw/self-instruct, data/seed_tasks.jsonl (Apache-2.0). The first 100 tasks with a short text and a short
reference answer. Each answer is judged by three criteria that a rule can check, through the judge of the reward
`rubric`. The AUC is how often an answer that meets the criterion has a higher P(yes) than one that does not; 0.5 is
chance. Its 95 % interval is over the tasks. Beside it is the AUC of the answer's length alone. Writes
results/rubric_auc.json and prints the table of docs/judges.md.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from rl_likelihood.data.judged_text import MEETS
from rl_likelihood.data.rubrics import Criterion, Rubric
from rl_likelihood.evaluation.statistics import interval
from rl_likelihood.rollouts.local_judge import local_judge
from rl_likelihood.rollouts.rubric_judge import RubricJudge

OUT = Path(__file__).parent / "results" / "rubric_auc.json"
NAMES = ("contains the task's longest word", "fewer than 40 words", "ends with a question mark")
LONGEST = 450  # characters of a task and of an answer


def read(path: str, count: int) -> list[tuple[str, str]]:
    """The first tasks with their reference answers."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    first = [(row["instruction"], row["instances"][0]) for row in rows]
    tasks = [(f"{text}\n{one['input']}".strip(), one["output"].strip()) for text, one in first]
    return [x for x in tasks if max(map(len, x)) <= LONGEST][:count]


def criteria(question: str, answer: str) -> tuple[list[str], list[bool]]:
    """(the criteria in the order of NAMES, whether the answer meets them)."""
    word = max(re.findall(r"[A-Za-z]+", question), key=len)
    texts = [f'The answer contains the word "{word}".', "The answer has fewer than 40 words."]
    met = [re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None, len(answer.split()) < 40, answer.endswith("?")]
    return [*texts, "The answer ends with a question mark."], met


def auc(scores: np.ndarray, met: np.ndarray) -> float:
    """P(a score of what is met > one of what is not), ties count half; NaN if all or none are met."""
    yes = int(met.sum())
    pairs = yes * (len(met) - yes)
    return float((rankdata(scores)[met].sum() - yes * (yes + 1) / 2) / pairs) if pairs else float("nan")


def with_interval(scores: np.ndarray, met: np.ndarray) -> dict:
    """The AUC and its interval over resampled tasks."""
    draws = np.random.default_rng(0).integers(0, len(met), (1000, len(met)))
    values = np.array([auc(scores[i], met[i]) for i in draws])
    return {"auc": auc(scores, met), "ci95": interval(values[np.isfinite(values)])}


def table(rows: dict[str, dict]) -> str:
    """The table of docs/judges.md."""
    lines = ["| criterion | met by | AUC of P(yes) | AUC of length alone |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        cells = [f"{x['auc']:.2f} ({x['ci95'][0]:.2f} to {x['ci95'][1]:.2f})" for x in (row["p_yes"], row["length"])]
        lines.append(f"| {name} | {row['met']} of {row['tasks']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", required=True, help="seed_tasks.jsonl of self-instruct")
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--tasks", type=int, default=100)
    a = arguments.parse_args()
    tasks = sorted(read(a.data, a.tasks), key=lambda x: sum(map(len, x)))  # by length: batches with little padding
    texts, met = zip(*(criteria(*x) for x in tasks), strict=True)
    rubrics = {q: Rubric(q, "", tuple(Criterion(t, 1) for t in own)) for (q, _), own in zip(tasks, texts, strict=True)}
    judge = RubricJudge(local_judge(a.model, MEETS, 512, 256), rubrics, "signed")
    verdicts, p_yes = judge([q for q, _ in tasks], [[answer] for _, answer in tasks])
    p, met, length = np.concatenate(p_yes), np.array(met), np.array([len(answer) for _, answer in tasks])
    rows = {
        name: {
            "tasks": len(tasks),
            "met": int(met[:, i].sum()),
            "mean_p_yes": float(p[:, i].mean()),
            "p_yes": with_interval(p[:, i], met[:, i]),
            "length": with_interval(length, met[:, i]),
        }
        for i, name in enumerate(NAMES)
    }
    OUT.write_text(json.dumps({"model": a.model, "cut": verdicts.cut, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
