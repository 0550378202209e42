"""Evaluation of conversations: for every question one greedy conversation and `eval.samples` sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_likelihood.data.order import in_batches
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.envs.protocol import ENDS
from rl_likelihood.rollouts.conversations import Conversations, messages_of
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.devices import batch_size, sampler_weights, share_of
from rl_likelihood.shapes import CHAIN, Rollout
from rl_likelihood.task import EVALUATE, Task

if TYPE_CHECKING:  # evaluate imports this module
    from rl_likelihood.evaluation.evaluate import Evaluation

Record = dict[str, Any]


def records(e: Evaluation, wanted: range, samples: int) -> Iterator[list[Record]]:
    """The records of the rows at `wanted`, a batch at a time. A row's conversations depend on no other row."""
    if not wanted:
        return
    task, rows, devices = e.task, e.rows[: wanted.stop], e.devices
    size = batch_size(min(task.config.eval.batch_prompts, len(wanted)), devices)
    width = max(task.config.prompt.max_prompt, *(len(row.prompt_ids) for row in rows))
    sampler = task.eval_sampler(samples, width_multiple=0)
    weights, conversations = sampler_weights(e.params, task.model, devices), Conversations(task)
    for done, batch in in_batches(rows[wanted.start :], size):
        e.between()
        start = wanted.start + done
        prompts = share_of(task.collate(batch, np.arange(start, start + size), width))
        own = [batch[i - start] for i in prompts.uid]
        rollout = conversations.sample(weights, prompts, own, task.key(EVALUATE), sampler)
        rollout = distributed.gather(rollout)
        yield [_record(task, row, rollout, i, start + i) for i, row in enumerate(batch[: wanted.stop - start])]


def _record(task: Task, row: EncodedExample, rollout: Rollout, i: int, index: int) -> Record:
    entries = [_entry(rollout, i, j) for j in range(rollout.segment.shape[1])]
    for j in range(min(2, len(entries))):  # the greedy one and the first sample, to read
        entries[j] = {"messages": messages_of(task, rollout, i, j), **entries[j]}
    return {
        "index": index,
        "id": row.example.id,
        "prompt": row.example.prompt,
        "start": task.tokenizer.decode(row.prompt_ids),
        "reference": row.example.answer,
        "kind": row.example.task,
        "conversation": True,
        "greedy": entries[0],
        "samples": entries[1:],
    }


def _entry(rollout: Rollout, i: int, j: int) -> Record:
    o = rollout.outcomes
    assert o is not None
    entry = {
        "right": bool(o.reward[i, j] >= 1),
        "reward": round(float(o.reward[i, j]), 6),
        "calls_f1": None if np.isnan(o.calls_f1[i, j]) else round(float(o.calls_f1[i, j]), 6),
        "end": ENDS[int(o.end[i, j])],
        "turns": int(o.turns[i, j]),
        "calls": int(o.calls[i, j]),
        "bad_calls": int(o.bad_calls[i, j]),
        "chain_tokens": int((rollout.segment[i, j] == CHAIN).sum()),
        "truncated": bool(rollout.truncated[i, j]),
    }
    return dict.fromkeys(entry) if o.failed[i, j] else entry  # all null where the environment failed
