"""The asynchronous source: a thread samples ahead of the learner into a bounded queue of rollouts."""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from rl_likelihood.model.architecture import Params
from rl_likelihood.rollouts import judges
from rl_likelihood.rollouts.batches import Batches, Rows, SamplerFailed, StepInput
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.rollouts.resample import LearnerFilter
from rl_likelihood.run_model import rollout_model
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.devices import sampler_weights
from rl_likelihood.sampler.queue import RolloutQueue, WeightBox, from_bytes, start_sampler, to_bytes
from rl_likelihood.shapes import Rollout


class Asynchronous:
    """Batches from a sampler thread that is up to sampler.max_staleness updates ahead.

    If learner and sampler share several devices, their programs must start in the same order on all of them. Otherwise
    each waits for ever for the other's collectives. So the learner's thread holds a lock, except while it waits or
    grades in `next`. The sampler's thread takes the lock for each rollout.

    A third thread grades each rollout as soon as it is sampled. Not with several processes, which first exchange the
    chains of a group, and not with a judge on the sampler's devices. `next` grades then.
    """

    def __init__(self, batches: Batches, start: int, saved: dict[str, Any] | None) -> None:
        task = batches.task
        c = task.config
        self.batches = batches
        shared = jax.local_device_count() > 1 and not batches.devices.separate
        self.lock = threading.Lock() if shared else None
        self.locked_out = 0.0  # seconds that the learner's thread has waited for the lock
        ahead = jax.process_count() == 1 and not judges.computes_on_sampler(batches.judge)
        self.grader = ThreadPoolExecutor(1, "grader") if ahead else None
        self.grades: collections.deque[tuple[int, Future]] = collections.deque()  # (number of a rollout, its grades)
        waiting, dropped = restored(saved, self._rows())
        for rollout in waiting:
            self._grade_ahead(rollout)
        self.queue = RolloutQueue(c.sampler.queue_depth, c.sampler.max_staleness, waiting, dropped)
        self.box = WeightBox()
        self._acquire()
        first_number = start + dropped + len(waiting)
        self.thread = start_sampler(
            self._produce, self.box, self.queue, c.sampler.max_staleness, first_number, c.train.steps
        )

    def _acquire(self) -> None:
        start = time.perf_counter()
        if self.lock is not None:
            self.lock.acquire()
        self.locked_out += time.perf_counter() - start

    def _release(self) -> None:
        if self.lock is not None:
            self.lock.release()

    @contextlib.contextmanager
    def devices_free(self) -> Iterator[None]:
        """Inside this context the sampler's thread may start programs."""
        self._release()
        try:
            yield
        finally:
            self._acquire()

    def _produce(self, number: int, weights: Params, version: int) -> Rollout:
        b = self.batches
        with self.lock or contextlib.nullcontext():
            rollout = b.sample(number, weights, version)
        self._grade_ahead(rollout)
        return rollout

    def _grade_ahead(self, rollout: Rollout) -> None:
        b, number = self.batches, rollout.number
        if self.grader is not None:
            self.grades.append((number, self.grader.submit(b.grade, rollout, b.rows(number))))

    def _graded(self, rollout: Rollout, rows: Rows) -> tuple[HostRewards, Texts | None]:
        """`Batches.grade` of the rollout. A judge is only ever called by one thread."""
        if self.grader is None:
            return self.batches.grade(rollout, rows)
        while self.grades[0][0] < rollout.number:
            self.grades.popleft()[1].cancel()  # of rollouts that the queue dropped
        return self.grades.popleft()[1].result()

    def next(self, step: int, params: Params, by_learner: LearnerFilter | None = None) -> StepInput:
        b, judging = self.batches, -self.batches.device_seconds
        waited = -self.locked_out
        self.box.publish(step, sampler_weights(params, rollout_model(b.task.config, b.task.model), b.devices))
        try:
            with distributed.failing_together(), self.devices_free():
                rollout, seconds = self.queue.get(step)
                waited += seconds
        except Exception as error:  # raised by the sampler's thread
            raise SamplerFailed from error
        rollout = b.align(rollout)
        rows = b.rows(rollout.number)
        # The lock stays held for a judge on these devices: its programs must not overlap with the sampler's.
        sampled = rollout
        free = contextlib.nullcontext() if judges.computes_on_sampler(b.judge) else self.devices_free()
        with distributed.failing_together(), free:  # a judge may fail in one process alone
            graded, texts = self._graded(rollout, rows)
            batch, rollout = b.batch(rollout, rows, graded)
        waited += self.locked_out
        measured = functools.partial(b.metrics, graded, sampled, rows, texts)
        queue = {
            "queue/lag": step - rollout.version,
            "queue/depth": len(self.queue),
            "queue/dropped": self.queue.dropped,
        }
        times = {"time/sample": rollout.seconds, "time/wait": waited}
        judging += b.device_seconds
        return StepInput(batch, rollout, rows, queue | times, graded.verdicts, measured, waited + judging)

    def _rows(self) -> list[int]:
        """[first chain, last chain + 1, prompts ...]: which rows of a step belong to this process."""
        devices = self.batches.devices
        return [devices.chains.start, devices.chains.stop, *map(int, devices.prompts)]

    def state(self) -> dict[str, Any]:
        """The queues of all processes, as JSON."""
        waiting, dropped = self.queue.contents()
        rollouts = distributed.gather_bytes(to_bytes(waiting))
        numbers = distributed.gather(np.asarray([[dropped, len(waiting)]]))
        rows = distributed.gather_bytes(json.dumps(self._rows()).encode())
        return {
            "rows": [json.loads(x) for x in rows],
            "dropped": numbers[:, 0].tolist(),
            "waiting": [base64.b64encode(x).decode() if n else "" for x, (_, n) in zip(rollouts, numbers, strict=True)],
        }

    def close(self) -> None:
        self.box.close()
        self.queue.close()
        self._release()
        self.thread.join(timeout=60)
        if self.grader is not None:
            judges.cancel(self.batches.judge)  # nobody needs its verdicts any more
            self.grader.shutdown(cancel_futures=True)
        self.batches.close()


def restored(saved: dict[str, Any] | None, rows: list[int]) -> tuple[list[Rollout], int]:
    """(the saved rollouts of this process's queue, the number of rollouts dropped so far).

    If the number of processes has changed, or the `rows` of any process have, all queues start empty, and the rollouts
    are resampled.
    """
    if not saved:
        return [], 0
    process = jax.process_index()
    same_processes = len(saved["waiting"]) == jax.process_count()
    if not same_processes or distributed.any_of(saved.get("rows", {process: None})[process] != rows):
        return [], max(saved["dropped"])
    data = base64.b64decode(saved["waiting"][process])
    return from_bytes(data) if data else [], saved["dropped"][process]
