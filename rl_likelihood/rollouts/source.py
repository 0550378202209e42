"""Sources of batches. `learn` takes the next batch and does not know which source it has.

Synchronous    samples on demand from the current parameters: on-policy, without a thread or a queue
Asynchronous   a thread samples ahead into a bounded queue (`rollouts.asynchronous`)
Given          supervised training: the reference answers, with or without the data's chains
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rl_likelihood.errors import UserError
from rl_likelihood.learner.batching import answers_after, given_rollout
from rl_likelihood.model.architecture import Params
from rl_likelihood.rollouts.asynchronous import Asynchronous
from rl_likelihood.rollouts.batches import Batches, SamplerFailed, StepInput
from rl_likelihood.rollouts.conversations import say_longer, targets_of
from rl_likelihood.rollouts.experts import Experts
from rl_likelihood.rollouts.host_rewards import HostRewards
from rl_likelihood.rollouts.judges import AnyJudge
from rl_likelihood.rollouts.raro import roles, with_critic
from rl_likelihood.rollouts.resample import Drawn, Groups, LearnerFilter, by_host, host_groups, merge_drawn
from rl_likelihood.run_model import rollout_model
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.devices import Devices, sampler_weights
from rl_likelihood.task import Task


class Source(Protocol):
    """A stream of batches. All processes call every method at the same points."""

    def next(self, step: int, params: Params, by_learner: LearnerFilter | None = None) -> StepInput:
        """The batch for the next update. `params`: the current parameters, after `step` updates. `by_learner`: the
        learner's filter of drawn groups, for filter.resample."""

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON, so that a resumed run continues with the same batches."""

    def close(self) -> None:
        """Stops threads and processes."""


def make_source(
    task: Task,
    devices: Devices,
    workdir: Path,
    start: int,
    saved: dict[str, Any] | None,
    judge: AnyJudge | None = None,
) -> Source:
    """The source of the config's batches, from update `start` on. `saved`: the source's `state` in that checkpoint.
    `judge`: the run's judge, if its reward needs one."""
    batches = Batches(task, devices, workdir, judge)
    if task.config.reward.supervised:
        return Given(batches)
    if task.config.sampler.max_staleness:
        return Asynchronous(batches, start, saved)
    return Synchronous(batches, start, saved)


class Synchronous:
    """Samples on demand. `drawn`: the number of batches drawn from the stream of prompts so far."""

    def __init__(self, batches: Batches, start: int, saved: dict[str, Any] | None) -> None:
        self.batches = batches
        self.drawn = (saved or {}).get("drawn", start)
        if isinstance(batches.judge, Experts) and saved:
            batches.judge.restore(saved["experts"])

    def next(self, step: int, params: Params, by_learner: LearnerFilter | None = None) -> StepInput:
        b, c = self.batches, self.batches.task.config
        weights = sampler_weights(params, rollout_model(b.task.config, b.task.model), b.devices)
        drawn_before, waited = self.drawn, -b.device_seconds
        try:
            drawn = self._draw(weights, step)
            if c.filter.resample:
                drawn = self._filled(drawn, weights, step, by_learner)
        except SamplerFailed:
            self.drawn = drawn_before  # this state is saved, and the resumed run draws all batches of the step again
            raise
        del weights  # frees memory for the learner's step
        batch, rollout = b.batch(drawn.rollout, drawn.rows, drawn.graded)
        counted, spread = drawn.groups or (None, None)
        batch = batch.replace(
            counted=counted, **(roles(c, len(drawn.rows) // c.prompts_per_question) if c.raro else {})
        )
        measured = functools.partial(b.metrics, drawn.graded, drawn.rollout, drawn.rows, drawn.texts)
        queue = {"queue/lag": 0, "queue/depth": 0, "queue/dropped": 0}
        times = {"time/sample": rollout.seconds, "time/wait": 0.0}
        verdicts = drawn.graded.verdicts
        waited += rollout.seconds + b.device_seconds
        return StepInput(batch, rollout, drawn.rows, queue | times, verdicts, measured, waited, spread)

    def _filled(self, drawn: Drawn, weights: Params, step: int, by_learner: LearnerFilter | None) -> Drawn:
        """The groups that the filter accepts, from `drawn` and from at most filter.resample more batches."""
        b, c = self.batches, self.batches.task.config

        def groups(part: Drawn) -> Groups:
            if by_host(c):
                return host_groups(part, c)
            assert by_learner is not None, "train.py passes it"
            batch = b.batch(part.rollout, part.rows, part.graded)[0]
            start = time.perf_counter()
            accepted = by_learner(batch)
            b.device_seconds += time.perf_counter() - start
            return accepted

        parts, filtered, wanted = [drawn], [groups(drawn)], len(drawn.rows)
        while len(parts) <= c.filter.resample and distributed.any_of(sum(g.accepted.sum() for g in filtered) < wanted):
            parts.append(self._draw(weights, step))
            filtered.append(groups(parts[-1]))
        return merge_drawn(parts, filtered, b.task.fmt.pad_id)

    def _draw(self, weights: Params, step: int) -> Drawn:
        """The next batch of the stream of prompts, sampled and graded."""
        b = self.batches
        try:
            with distributed.failing_together():
                rollout = b.sample(self.drawn, weights, step)
        except Exception as error:
            raise SamplerFailed from error
        rollout, rows = b.align(rollout), b.rows(self.drawn)
        self.drawn += 1
        with distributed.failing_together():  # a judge may fail in one process alone
            drawn = Drawn(rollout, rows, *b.grade(rollout, rows))
        return with_critic(b, drawn, weights) if b.task.config.raro else drawn

    def state(self) -> dict[str, Any]:
        if isinstance(self.batches.judge, Experts):
            return {"experts": self.batches.judge.state()}
        return {"drawn": self.drawn} if self.batches.task.config.filter.resample else {}

    def close(self) -> None:
        self.batches.close()


class Given:
    """One row per question: its reference answer, after the data's chain if reward.sft_chain asks for it."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        task = batches.task
        self.chains = task.config.reward.sft_chain != "none"
        self.width = len(task.fmt.close_think_ids) + task.config.prompt.max_answer
        if self.chains:
            refuse_missing_chains(task)
            self.width += task.longest_chain or 0
        if task.config.converses:
            self.width = task.config.spoken_tokens
            say_longer(task, task.train)

    def next(self, step: int, params: Params, by_learner: LearnerFilter | None = None) -> StepInput:
        start, b = time.perf_counter(), self.batches
        rows, fmt = b.rows(step), b.task.fmt
        if self.chains:
            targets = targets_of(b.task, rows, b.conversations, b.task.config.step.supervise_chain)
            rollout = given_rollout(b.collate(step), targets, fmt.pad_id, self.width)
        else:
            rollout = answers_after(b.collate(step), fmt.close_think_ids, fmt.pad_id, self.width)
        rollout = rollout.replace(version=step)
        nothing = HostRewards({}, np.ones(rollout.segment.shape[:2], bool), {})
        batch, rollout = b.batch(b.align(rollout), rows, nothing)
        return StepInput(batch, rollout, rows, {"time/sample": 0.0, "time/wait": time.perf_counter() - start})

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.batches.close()


def refuse_missing_chains(task: Task) -> None:
    """UserError if a training row has no chain."""
    missing = [row.example.id for row in task.train if not row.example.chain]
    if missing:
        raise UserError(
            f"reward.sft_chain is {task.config.reward.sft_chain!r}, but {len(missing)} of {len(task.train)} training "
            f"rows have no chain (the first is {missing[0]}); give them one or set reward.sft_chain=none"
        )
