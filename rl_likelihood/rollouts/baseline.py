"""The likelihood of each reference answer without a chain, under the policy of step 0.

avg_prob: RLPR's base score. As published (Yu et al. 2506.18254, sec. 3.2), the answer follows the assistant's header
          directly, without think and answer tags.
logp:     the log-prob (nats) of each scored token after an empty chain. The ids are those that are scored after a
          chain. Token weights and gains are computed from it (NRT, 2602.11549).

The reward decides which of the two are needed. They are computed once for each training question that the run will use,
and stored in the workdir.
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
from rl_likelihood.errors import UserError
from rl_likelihood.learner.batching import answers_after, to_batch
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.architecture import Params
from rl_likelihood.progress import Progress
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.task import Task

FILE = "baseline.jsonl"


def key_of(row: EncodedExample) -> str:
    """A key of question and answer, which does not depend on the row's number."""
    text = f"{questions.example_key(row.example)}\n{row.example.answer}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_chain(task: Task, row: EncodedExample) -> EncodedExample:
    """The question with a prompt that ends after the assistant's header, and " answer" as its scored answer."""
    cfg, tokenizer = task.config.prompt, task.tokenizer
    text = prompts.render(row.example, tokenizer, cfg).rstrip().removesuffix(cfg.think_open)
    ids, answer = tokenizer([text, " " + row.example.answer.strip()], add_special_tokens=False)["input_ids"]
    return EncodedExample(
        row.example, np.asarray(ids, np.int32), np.asarray(answer, np.int32), np.ones(len(answer), bool)
    )


class Baseline(NamedTuple):
    """`score`: avg_prob [P]. `logp`: log-probs (nats) of the scored tokens [P, A]. None if the reward does not read
    it."""

    score: np.ndarray | None = None
    logp: np.ndarray | None = None


def write_baseline(task: Task, devices: Devices, params: Params, workdir: Path, between: Callable[[], None]) -> None:
    """Writes the baseline of every answer that the run will train on to `workdir`/baseline.jsonl. `between`: called
    before each batch; it may raise to stop."""
    c, path = task.config, workdir / FILE
    rows_of = order(len(task.train), c.train.prompts_per_step, c.seed)
    done = {row["key"] for row in _written(path)}
    needed = sorted({int(i) for step in range(c.train.steps * (1 + c.filter.resample)) for i in rows_of(step)})
    rows = [task.train[i] for i in needed if key_of(task.train[i]) not in done]
    if not rows:
        return
    size = min(c.eval.batch_prompts, len(rows))
    bare = [without_chain(task, row) for row in rows] if c.reward.frozen_score else []
    after_header = _scorer(task, devices, params, bare, ())
    after_none = _scorer(task, devices, params, rows if c.reward.frozen_tokens else [], task.fmt.close_think_ids)
    with Progress("baseline: scored", len(rows), "answers", say) as progress:
        for first, part in in_batches(rows, size):
            between()
            scores, tokens = after_header(first, size), after_none(first, size)
            real = part[: len(rows) - first]
            for i, row in enumerate(real):
                value: dict[str, Any] = {"avg_prob": float(np.exp(scores[i]).mean(dtype=np.float32))} if scores else {}
                value |= {"logp": [round(float(x), 6) for x in tokens[i]]} if tokens else {}
                if distributed.first():
                    run_files.append(path, {"step": 0, "key": key_of(row), "id": row.example.id, **value})
            progress.advance(len(real))
    say(f"baseline: {len(rows)} answers scored without a chain, once, under the model of step 0")


def _scorer(
    task: Task, devices: Devices, params: Params, rows: list[EncodedExample], scaffold: tuple[int, ...]
) -> Callable[[int, int], list[np.ndarray]]:
    """A function (first row, batch size) -> log-probs of each answer's scored tokens after the ids of `scaffold`."""
    if not rows:
        return lambda first, size: []
    s, a = (max(len(getattr(r, name)) for r in rows) for name in ("prompt_ids", "answer_ids"))
    score = make_score(task.model, StepConfig(head_chunk=task.config.train.head_chunk), devices.learner)

    def score_from(first: int, size: int) -> list[np.ndarray]:
        _, part = next(in_batches(rows[first : first + size], size))
        collated = prompts.collate(part, np.arange(first, first + size), s, a, task.fmt.pad_id)
        batch = to_batch(answers_after(collated, scaffold, task.fmt.pad_id))
        with using(devices.learner):
            logp = np.asarray(score(params, batch).stats.log_prob)
        return [x[scored] for x, scored in zip(logp[:, 0], batch.scored[:, 0], strict=True)]

    return score_from


def _written(path: Path) -> list[dict]:
    """The rows of the file, as process 0 sees it."""
    return distributed.share(run_files.read(path) if path.exists() else [])


def read_baseline(workdir: Path, reward: RewardConfig, width: int) -> Callable[[list[EncodedExample]], Baseline]:
    """A function rows -> Baseline, from the file of `write_baseline`. `width`: A, the maximum tokens of an answer."""
    by_key = {row["key"]: row for row in _written(workdir / FILE)}

    def stored(row: EncodedExample) -> dict:
        if key_of(row) not in by_key:
            raise UserError(
                f"{FILE} of the workdir has no line for question {row.example.id}: it was written for fewer steps or "
                "other data, or by an earlier version; set train.steps as it was, or choose another --workdir"
            )
        return by_key[key_of(row)]

    def read(rows: list[EncodedExample]) -> Baseline:
        entries = [stored(row) for row in rows]
        score = np.asarray([row["avg_prob"] for row in entries], np.float32) if reward.frozen_score else None
        logp = None
        if reward.frozen_tokens:
            logp = np.zeros((len(rows), width), np.float32)
            for values, row in zip(logp, entries, strict=True):
                values[: len(row["logp"])] = row["logp"]
        return Baseline(score, logp)

    return read
