"""How likely each reference answer is with no chain at all, under the policy of step 0.

avg_prob: RLPR's base score. As published (Yu et al. 2506.18254, sec. 3.2) the answer stands directly after the
          assistant's header, without think and answer tags.
logp:     of each scored token, after an empty chain: the very ids that are scored after a chain. Weights of tokens and
          gains are made of it (NRT, 2602.11549).

Both are computed once for each training question that the run will see, as far as its reward reads them, and kept in
the workdir. What is there is not computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.order import in_batches, order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.datasets import questions
from rl_likelihood.learner.batching import answers_after, to_batch
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.decoder import Params
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.runtime.progress import Progress
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


class Baseline(NamedTuple):
    """What the run's reward reads of it: avg_prob [P], and log-probs of the scored tokens [P, A]."""

    score: np.ndarray | None = None
    logp: np.ndarray | None = None


def write_baseline(task: Task, devices: Devices, params: Params, workdir: Path, between: Callable[[], None]) -> None:
    """What is read of every answer that the run will train on, into `workdir`/baseline.jsonl."""
    c, path = task.config, workdir / FILE
    rows_of = order(len(task.train), c.train.prompts_per_step, c.seed)
    known = {row["key"] for row in _written(path)}
    wanted = sorted({int(i) for step in range(c.train.steps * (1 + c.filter.resample)) for i in rows_of(step)})
    rows = [task.train[i] for i in wanted if key_of(task.train[i]) not in known]
    if not rows:
        return
    size = min(c.eval.batch_prompts, len(rows))
    bare = [without_chain(task, row) for row in rows] if c.reward.frozen_score else []
    alone = _scorer(task, devices, params, bare, ())
    after_none = _scorer(task, devices, params, rows if c.reward.frozen_tokens else [], task.fmt.close_think_ids)
    with Progress("baseline: scored", len(rows), "answers", say) as progress:
        for at, part in in_batches(rows, size):
            between()
            scores, tokens = alone(at, size), after_none(at, size)
            there = part[: len(rows) - at]
            for i, row in enumerate(there):
                value: dict[str, Any] = {"avg_prob": float(np.exp(scores[i]).mean(dtype=np.float32))} if scores else {}
                value |= {"logp": [round(float(x), 6) for x in tokens[i]]} if tokens else {}
                if distributed.first():
                    run_files.append(path, {"step": 0, "key": key_of(row), "id": row.example.id, **value})
            progress.advance(len(there))
    say(f"baseline: {len(rows)} answers scored without a chain, once, under the model of step 0")


def _scorer(
    task: Task, devices: Devices, params: Params, rows: list[EncodedExample], scaffold: tuple[int, ...]
) -> Callable[[int, int], list[np.ndarray]]:
    """(first row, how many at one time) -> log-probs of each answer's scored tokens, after the ids of `scaffold`."""
    if not rows:
        return lambda at, size: []
    s, a = (max(len(getattr(r, name)) for r in rows) for name in ("prompt_ids", "answer_ids"))
    score = make_score(task.model, StepConfig(head_chunk=task.config.train.head_chunk), devices.learner)

    def score_from(at: int, size: int) -> list[np.ndarray]:
        _, part = next(in_batches(rows[at : at + size], size))
        asked = prompts.collate(part, np.arange(at, at + size), s, a, task.fmt.pad_id)
        batch = to_batch(answers_after(asked, scaffold, task.fmt.pad_id))
        with using(devices.learner):
            logp = np.asarray(score(params, batch).stats.log_prob)
        return [x[there] for x, there in zip(logp[:, 0], batch.scored[:, 0], strict=True)]

    return score_from


def _written(path: Path) -> list[dict]:
    """The rows that are there, as process 0 sees the file."""
    return distributed.share(run_files.read(path) if path.exists() else [])


def read_baseline(workdir: Path, reward: RewardConfig, width: int) -> Callable[[list[EncodedExample]], Baseline]:
    """rows -> Baseline, from the file that `write_baseline` made; `width`: the most tokens of an answer."""
    known = {row["key"]: row for row in _written(workdir / FILE)}

    def read(rows: list[EncodedExample]) -> Baseline:
        there = [known[key_of(row)] for row in rows]
        score = np.asarray([row["avg_prob"] for row in there], np.float32) if reward.frozen_score else None
        logp = None
        if reward.frozen_tokens:
            logp = np.zeros((len(rows), width), np.float32)
            for values, row in zip(logp, there, strict=True):
                values[: len(row["logp"])] = row["logp"]
        return Baseline(score, logp)

    return read
