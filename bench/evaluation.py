"""What evaluation costs beyond the sampling that it needs: greedy answers to 200 questions.

    make bench        (or: python -m bench.evaluation [--questions=200] [--batch=50] [--rounds=3] [--small])

`ratio` is the time of an evaluation over the time in which the sampler alone makes the same tokens: one call with all
questions and as many rows at once, alternating with the evaluations. Nothing is scored (eval.samples=0), unlike in an
evaluation with sampled chains. Evaluation also decodes texts, extracts and grades answers, fingerprints the weights,
writes records and computes intervals. The target is a ratio of at most 1.2. SmolLM2-135M-Instruct does sums with two
worked examples; its chains have 5 to 48 tokens, so waiting for the longest would show. --small uses two layers of
random weights, to check that it runs. cpu_ratio compares processor time, for machines that are busy with other work.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs.smollm2 import get_config
from rl_likelihood.config import build
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, SAMPLED
from rl_likelihood.task import EVALUATE, Task, load


def task_of(questions: int, batch: int, small: bool) -> tuple[Task, dict]:
    """Sums to ask, and a model."""
    c = get_config("task=chain_sum")
    c.update_from_flattened_dict(
        {
            "data.heldout_size": questions,
            "eval.prompts": questions,
            "eval.samples": 0,
            "eval.batch_prompts": batch,
            "model.compute_dtype": "float32",
        }
    )
    if small:
        c.update_from_flattened_dict({"model.path": "", "model.preset": "nano", "prompt.max_prompt": 900})
    task, params = load(build(c), training=False)
    return task, jax.tree.map(jnp.asarray, params)


def sampler_alone(task: Task, params) -> int:
    """Samples the tokens of the same evaluation, and does nothing else. Returns their number."""
    c = task.config
    rows = task.heldout[: c.eval.prompts]
    sampler = task.sampler(
        group_size=1,
        temperature=(0.0,),
        width_multiple=0,
        max_sampled_answer=task.config.eval_answer,
        slots=c.eval.batch_prompts,
    )
    weights = decode.prepare(params, task.model)
    out = decode.sample(weights, task.collate(rows, np.arange(len(rows))), task.key(EVALUATE), sampler)
    return int(np.isin(out.segment, (CHAIN, SAMPLED)).sum())


def evaluation(task: Task, params) -> None:
    """The whole evaluation, with records."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Evaluation(task, params, task.heldout, folder=Path(folder)))


def seconds(f, *args) -> np.ndarray:
    """(wall, processor) seconds. Processor time counts all threads of this process, and no other process."""
    start = np.array([time.perf_counter(), time.process_time()])
    f(*args)
    return np.array([time.perf_counter(), time.process_time()]) - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--questions", type=int, default=200)
    arguments.add_argument(
        "--batch", type=int, default=50, help="eval.batch_prompts; also the rows of the sampler alone"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--small", action="store_true")
    a = arguments.parse_args()
    task, params = task_of(a.questions, a.batch, a.small)
    tokens = sampler_alone(task, params)  # compiles
    evaluation(task, params)
    both = np.array(
        [(seconds(evaluation, task, params), seconds(sampler_alone, task, params)) for _ in range(a.rounds)]
    )
    ratios = both[:, 0] / both[:, 1]  # [rounds, (wall, processor)]
    medians = np.median(both, 0).round(2)
    print(
        json.dumps(
            {
                "bench": "evaluation",
                "questions": a.questions,
                "batch": a.batch,
                "tokens": tokens,
                "small": a.small,
                "evaluation_s": medians[0, 0],
                "sampler_s": medians[1, 0],
                "ratio": round(float(np.median(ratios[:, 0])), 3),
                "ratios": ratios[:, 0].round(3).tolist(),
                "target": 1.2,
                "cpu_ratio": round(float(np.median(ratios[:, 1])), 3),
                "cpu_ratios": ratios[:, 1].round(3).tolist(),
                "machine": f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device(s)",
            }
        )
    )


if __name__ == "__main__":
    main()
