"""Where batches come from, and what is written down of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from rl_likelihood.data import grading
from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.learner.batching import given_rollout
from rl_likelihood.model.decoder import Params
from rl_likelihood.run.console import say
from rl_likelihood.run.world import SAMPLE, World
from rl_likelihood.sampler import decode
from rl_likelihood.sampler.queue import RolloutQueue, WeightBox, start_sampler
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, Batch, Prompts, Rollout


class Source:
    """Where batches come from: the sampler's thread and queue, or the reference answers themselves (sft)."""

    def __init__(self, world: World, rows_of: Callable[[int], np.ndarray], start: int, steps: int) -> None:
        c = world.config
        self.world, self.rows_of = world, rows_of
        self.queue = RolloutQueue(c.sampler.queue_depth, c.sampler.max_staleness)
        self.box = WeightBox()
        self.thread = None
        if c.reward.name != "sft":
            self.thread = start_sampler(self.produce, self.box, self.queue, c.sampler.max_staleness, start, steps)

    def collate(self, number: int) -> Prompts:
        """The prompts of rollout `number`; a row's uid is its place in the stream of prompts."""
        index = self.rows_of(number)
        return self.world.collate([self.world.train[i] for i in index], number * len(index) + np.arange(len(index)))

    def produce(self, number: int, weights: Params, version: int) -> Rollout:
        """Rollout `number`, on the sampler's thread. One key for all: the uid makes each row's own."""
        start = time.perf_counter()
        rollout = decode.sample(weights, self.collate(number), self.world.key(SAMPLE), self.world.sampler(), version)
        return rollout.replace(seconds=time.perf_counter() - start)

    def publish(self, version: int, params: Params) -> None:
        """The sampler's copy of new weights."""
        if self.thread is not None:
            self.box.publish(version, decode.prepare(params, self.world.model))

    def get(self, step: int) -> tuple[Rollout, float]:
        """The rollout for the update from version `step`, and the seconds waited for it."""
        if self.thread is not None:
            return self.queue.get(step)
        w = self.world
        rows = [w.train[i] for i in self.rows_of(step)]
        targets = [completion_ids(row, None, w.tokenizer, w.fmt) for row in rows]
        width = len(w.fmt.close_think_ids) + w.config.prompt.max_answer
        return given_rollout(self.collate(step), targets, w.fmt.pad_id, width).replace(version=step), 0.0

    def close(self) -> None:
        """Ends the thread."""
        self.box.close()
        self.queue.close()
        if self.thread is not None:
            self.thread.join(timeout=60)


def rows_behind(world: World, rollout: Rollout, rows_of: Callable[[int], np.ndarray]) -> list[EncodedExample]:
    """The questions of a rollout, found by its uids."""
    uid = rollout.prompts.uid
    return [world.train[i] for i in rows_of(int(uid[0]) // len(uid))]


def outside_reward(world: World, rollout: Rollout, rows_of: Callable[[int], np.ndarray]) -> np.ndarray | None:
    """base_rl: the score of each sampled answer by exact match; None where no answer was sampled."""
    if not world.config.sampler.max_sampled_answer or world.config.reward.name == "sft":
        return None
    right, wrong, unreadable = world.config.reward.base_rl
    groups = zip(rows_behind(world, rollout, rows_of), world.sampled_answers(rollout), strict=True)

    def score(reference: str, answer: str | None) -> float:
        if answer is None:
            return unreadable
        return right if grading.exact_match(reference, answer) else wrong

    return np.asarray([[score(row.example.answer, a) for a in answers] for row, answers in groups], np.float32)


def write_samples(world: World, writer, step: int, rollout: Rollout, batch: Batch, per_row, rows_of) -> None:
    """samples.jsonl: every chain of the first few prompts, with all that it scored; now and then one to the console."""
    c = world.config.report
    to_file = bool(c.samples_every) and step % c.samples_every == 0
    to_console = bool(c.console_samples) and step % c.console_samples == 0
    if not to_file and not to_console:
        return
    rows = rows_behind(world, rollout, rows_of)[: max(c.sample_prompts if to_file else 0, int(to_console))]
    values = {k: np.asarray(v[: len(rows)]) for k, v in per_row.items()}
    text = world.tokenizer.decode
    for i, row in enumerate(rows):
        for j in range(rollout.segment.shape[1]):
            kinds, ids = rollout.segment[i, j], rollout.completion[i, j]
            answer = kinds == REFERENCE
            sample = {
                "id": row.example.id,
                "prompt": row.example.prompt,
                "chain": text(ids[kinds == CHAIN]),
                "forced": text(ids[kinds == TAG]),
                "sampled_answer": text(ids[kinds == SAMPLED]),
                "reference_answer": row.example.answer,
                "answer_tokens": [text([t]) for t in ids[answer]],
                "answer_logp": [round(float(x), 5) for x in values["answer_logp"][i, j][answer]],
                "scored": batch.scored[i, j][answer].astype(int),
                **{k: round(float(values[k][i, j]), 6) for k in values if k.startswith("reward")},
                "advantage": round(float(values["advantage"][i, j]), 6),
                "truncated": bool(rollout.truncated[i, j]),
                "version": rollout.version,
            }
            if to_file and i < c.sample_prompts:
                writer.sample(step, sample)
            if to_console and i == j == 0:
                chain = " ".join(sample["chain"].removesuffix(world.fmt.answer_open).split())
                chain = chain.removesuffix(world.fmt.think_close)
                say(f"    {row.example.prompt}  {chain}  [{row.example.answer}]  reward {sample['reward']:.2f}")
