"""RLPR's base score: how likely the reference answer is with no chain at all, under the policy of step 0.

As published (Yu et al. 2506.18254, sec. 3.2) the answer stands directly after the assistant's header, without
think and answer tags. It is computed once for each training question that the run will see, and kept in the
workdir; what is there is not computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.order import in_batches, order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.datasets import questions
from rl_likelihood.learner.batching import answers_after, to_batch
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.decoder import Params
from rl_likelihood.rewards import likelihood
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.task import Task

FILE = "baseline.jsonl"


def key_of(row: EncodedExample) -> str:
    """Names a question for good, whatever its row number."""
    return hashlib.sha256(questions.example_key(row.example).encode()).hexdigest()[:16]


def without_chain(task: Task, row: EncodedExample) -> EncodedExample:
    """The question with its prompt ending in the assistant's header, and " answer", all of it scored."""
    cfg, tokenizer = task.config.prompt, task.tokenizer
    text = prompts.render(row.example, tokenizer, cfg).rstrip().removesuffix(cfg.think_open)
    ids, answer = tokenizer([text, " " + row.example.answer.strip()], add_special_tokens=False)["input_ids"]
    return EncodedExample(
        row.example, np.asarray(ids, np.int32), np.asarray(answer, np.int32), np.ones(len(answer), bool)
    )


def write_baseline(task: Task, devices: Devices, params: Params, workdir: Path, between: Callable[[], None]) -> None:
    """avg_prob of every answer that the run will train on, into `workdir`/baseline.jsonl."""
    c, path = task.config, workdir / FILE
    rows_of = order(len(task.train), c.train.prompts_per_step, c.seed)
    known = {row["key"] for row in _written(path)}
    wanted = sorted({int(i) for step in range(c.train.steps) for i in rows_of(step)})
    rows = [task.train[i] for i in wanted if key_of(task.train[i]) not in known]
    if not rows:
        return
    encoded = [without_chain(task, row) for row in rows]
    size = min(c.eval.batch_prompts, len(rows))
    s, a = (max(len(getattr(r, name)) for r in encoded) for name in ("prompt_ids", "answer_ids"))
    mesh = devices.learner
    score = make_score(task.model, StepConfig(head_chunk=c.train.head_chunk), mesh)
    for at, part in in_batches(encoded, size):
        between()
        asked = prompts.collate(part, np.arange(at, at + size), s, a, task.fmt.pad_id)
        batch = to_batch(answers_after(asked, (), task.fmt.pad_id))
        with using(mesh):
            values = np.asarray(likelihood.avg_prob(score(params, batch).stats.log_prob, batch.scored))[:, 0]
        for row, value in zip(rows[at : at + size], values, strict=False):
            if distributed.first():
                run_files.append(path, {"step": 0, "key": key_of(row), "id": row.example.id, "avg_prob": value})
    say(f"baseline: {len(rows)} answers scored without a chain, once, under the model of step 0")


def _written(path: Path) -> list[dict]:
    """The rows that are there, as process 0 sees the file."""
    return distributed.share(run_files.read(path) if path.exists() else [])


def read_baseline(workdir: Path) -> Callable[[list[EncodedExample]], np.ndarray]:
    """rows -> [P] float32, from the file that `write_baseline` made."""
    known = {row["key"]: row["avg_prob"] for row in _written(workdir / FILE)}
    return lambda rows: np.asarray([known[key_of(row)] for row in rows], np.float32)
