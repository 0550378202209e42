"""Does a policy rise above its start on experts' answers alone? Tiny models, on two tasks.

    python -m experiments.adversarial [--task=losses|countdown3] [--seed=0] [--steps=40] [--only_table]
    python -m experiments.adversarial --task=countdown3 --form=head|label|raro [--steps=60]

The reward is a critic's, which reads the data's answers and the policy's. No grader is in the training; the evaluations
are graded. Writes experiments/results/adversarial.json. The same command resumes.

losses: the task of configs/tiny.py, 25 thousand parameters that a teacher has made forgetful. Form head.

countdown3: targets from three numbers. The start is a supervised warm start on chains that repeat the numbers of the
question: 1.6 M parameters know the format and little else. With --form=raro the policy is also the critic. So a first
run, of 27 thousand parameters, in runs/raro_format_SEED, also teaches the format of a verdict, on pairs of answers to
random questions with random verdicts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

from rl_likelihood.data.judged_text import CRITIQUE, filled
from rl_likelihood.datasets.countdown import solve
from rl_likelihood.rewards.adversarial import VERDICTS

ROOT = Path(__file__).parents[1]
HELDOUT = 256
NUMBERS = ("step", "stage", "greedy_success", "sampled_success", "perplexity", "questions")
CONFIG = {
    "data.source": "files",
    "data.train_size": 0,
    "data.heldout_size": 0,
    "prompt.instruction": "Make.",
    "prompt.max_prompt": 40,
    "prompt.max_answer": 16,
    "sampler.max_chain": 12,
    "eval.grader": "countdown",
    "train.eval_every": 0,
    # The settings of an earlier configs/tiny.py.
    "model.preset": "tiny",
    "reward.truncated": "force_close",
    "loss.answer_term": 1.0,
    "train.prompts_per_step": 8,
    "warm_start.steps": 240,
    "warm_start.lr": 3e-3,
    "optim.lr": 1e-4,
    "optim.clip_norm": 1.0,
    "adversarial.lr": 1e-4,
    "adversarial.replay": 512,
    "model.layers": "scan",
}
# A critic that is slower than the policy is exploited: configs/tiny.py's rate and the critic's defaults took greedy
# success from 11 to 0 %.
LOSSES = {
    "reward.truncated": "force_close",
    "optim.lr": 5e-4,
    "adversarial.lr": 3e-3,
    "adversarial.head_lr": 1e-2,
    "adversarial.steps": 4,
    "adversarial.replay": 512,
    "judge.max_prompt": 48,
    "judge.max_row": 24,
}
READS = {"head": (40, 40), "label": (300, 200), "raro": (140, 220)}  # judge.max_prompt, judge.max_row
FORMAT = {  # the supervised run before form raro, and what its reinforcement learning changes
    "model.preset": "nano",
    "prompt.max_prompt": 360,
    "prompt.score_delims": "both",  # it has to write them
    "reward.name": "sft",
    "eval.prompts": 0,
    "reward.sft_chain": "both",
    "train.prompts_per_step": 16,
    "warm_start.steps": 0,
    "optim.lr": 1e-2,
}
RARO = {
    "model.preset": "",
    "warm_start.steps": 0,
    "optim.lr": 1e-3,
    "sampler.group_size": 4,
    "report.sample_prompts": 5,
}


def rows() -> list[dict[str, str]]:
    """Every target up to 99 that three different numbers up to 9 make, in a fixed order."""
    asked = list(itertools.product(itertools.combinations(range(1, 10), 3), range(1, 100)))
    random.Random(0).shuffle(asked)
    out = []
    for numbers, target in asked:
        answer, shown = solve(list(numbers), target), " ".join(map(str, numbers))
        if answer is not None:
            out.append({"id": f"{len(out)}", "prompt": f"{shown} = {target}", "answer": answer, "chain": shown})
    return out


def prepare(folder: Path) -> None:
    """The two files of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    every = rows()
    for name, part in (("train", every[HELDOUT:]), ("heldout", every[:HELDOUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def verdict_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Two rows for each pair of rows: the first question, and both answers to it with a random verdict."""
    rng, out = random.Random(0), []
    for one, other in itertools.pairwise(rows):
        pair = rng.sample([one["answer"], other["answer"]], 2)
        verdict = {"id": f"pair{one['id']}", "prompt": filled(CRITIQUE, one["prompt"], pair)}
        out += [one, verdict | {"answer": rng.choice(VERDICTS), "chain": one["prompt"].partition("= ")[2]}]
    return out


def train(config: str, workdir: Path, values: dict[str, object]) -> None:
    """Runs the training command."""
    fields = [f"--config.{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "rl_likelihood.train", config, f"--workdir={workdir}", *fields]
    subprocess.run(command, check=True, cwd=ROOT)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--task", choices=("losses", "countdown3"), default="losses")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--form", choices=sorted(READS), default="head")
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--format_steps", type=int, default=400, help="of the supervised run before form raro")
    arguments.add_argument("--only_table", action="store_true", help="of a run that is there")
    a = arguments.parse_args()
    name = f"{a.task}, {a.form}, seed {a.seed}"
    data, workdir = ROOT / "runs" / "countdown3_answers", ROOT / "runs" / f"adversarial_{a.task}_{a.form}_{a.seed}"
    config = f"--config=configs/tiny.py:reward=adversarial,steps={a.steps},seed={a.seed}"
    if a.task == "losses" and not a.only_table:
        train(config, workdir, LOSSES)
    elif not a.only_table:
        prepare(data)
        files = {f"data.{name}_path": str(data / f"{name}.jsonl") for name in ("train", "heldout")}
        reads = dict(zip(("judge.max_prompt", "judge.max_row"), READS[a.form], strict=True))
        values = {**CONFIG, **files, **reads, "adversarial.form": a.form}
        if a.form == "raro":
            start, mixed = ROOT / "runs" / f"raro_format_{a.seed}", data / "with_verdicts.jsonl"
            mixed.write_text("".join(json.dumps(row) + "\n" for row in verdict_rows(rows()[HELDOUT:])))
            taught = f"--config=configs/tiny.py:reward=log_prob,steps={a.format_steps},seed={a.seed}"
            train(taught, start, {**CONFIG, **files, "data.train_path": str(mixed), **FORMAT})
            values |= {**RARO, "model.path": str(start)}
        train(config, workdir, values)
    out = ROOT / "experiments" / "results" / "adversarial.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    lines = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    results[name] = [{k: row[k] for k in NUMBERS if k in row} for row in lines]
    out.write_text(json.dumps(results, indent=1) + "\n")
    for row in lines:
        print(f"step {row['step']}: greedy success {row['greedy_success']:.1%} of {row['questions']} questions")


if __name__ == "__main__":
    main()
