"""Samples a policy's answers to questions, outside of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rl_likelihood.data.order import in_batches
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.model.architecture import Params
from rl_likelihood.rollouts.host_rewards import sampled_texts
from rl_likelihood.runtime.devices import Devices, batch_size, sample_all, sampler_weights
from rl_likelihood.task import EVALUATE, Task

Answers = list[list[str | None]]


def policy_answers(
    task: Task, params: Params, devices: Devices, rows: list[EncodedExample], count: int
) -> Iterator[tuple[list[EncodedExample], Answers]]:
    """Yields batches of (questions, `count` answers to each). An answer is None if the reply has none."""
    c = task.config
    size = batch_size(min(c.eval.batch_prompts, len(rows)), devices)
    sampler = task.sampler(group_size=count, max_sampled_answer=c.eval_answer, width_multiple=0)
    weights = sampler_weights(params, task.model, devices)
    for start, part in in_batches(rows, size):
        rollout = sample_all(weights, task.collate(part, np.arange(start, start + size)), task.key(EVALUATE), sampler)
        texts = sampled_texts(task, rollout)[: len(rows) - start]
        yield part[: len(texts)], [[graders.extract_answer(text, task.fmt) for text in group] for group in texts]
