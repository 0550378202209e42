"""Between sampler and learner: versioned weights one way, a bounded queue of rollouts the other way.

    learner  --publish(version, weights)-->  WeightBox  --wait(at_least)-->  sampler thread
    learner  <--get(step)--  RolloutQueue  <--put(rollout)--  sampler thread

Rollout number i may be sampled from weights no older than version i - max_staleness. With 0 sampler and learner
alternate and a run is deterministic; with more the sampler runs ahead.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl_likelihood.shapes import Outcomes, Prompts, Rollout


class Closed(Exception):
    """The other side has stopped."""


class WeightBox:
    """The newest published weights, and their version: the number of updates behind them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version, self._weights, self._closed = -1, None, False

    def publish(self, version: int, weights: Any) -> None:
        """Replace the weights. Versions only grow."""
        with self._changed:
            if version <= self._version:
                raise ValueError(f"weights of version {version} published after version {self._version}")
            self._version, self._weights = version, weights
            self._changed.notify_all()

    def wait(self, at_least: int, take: bool = False) -> tuple[int, Any]:
        """(version, weights) once the version is `at_least`; raises Closed when the learner has stopped.

        With `take` the box keeps no reference, so each version can be taken once.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._version >= max(at_least, 0))
            if self._closed:
                raise Closed
            weights = self._weights
            self._weights = None if take else weights
            return self._version, weights

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class RolloutQueue:
    """A bounded first-in first-out queue of rollouts that enforces the staleness rule.

    `waiting` and `dropped` are those of a checkpoint (`contents`) to go on from.
    """

    def __init__(self, depth: int, max_staleness: int, waiting: Sequence[Rollout] = (), dropped: int = 0) -> None:
        self._items: collections.deque[Rollout] = collections.deque(waiting)
        self._changed = threading.Condition()
        self._depth, self._max_staleness = depth, max_staleness
        self._closed, self._error = False, None
        self.dropped = dropped  # rollouts too old to use

    def __len__(self) -> int:
        return len(self._items)

    def contents(self) -> tuple[list[Rollout], int]:
        """The waiting rollouts, the oldest first, and how many have been dropped so far."""
        with self._changed:
            return list(self._items), self.dropped

    def put(self, rollout: Rollout) -> None:
        """Append, once the queue is not full; raises Closed when the learner has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise Closed
            self._items.append(rollout)
            self._changed.notify_all()

    def get(self, step: int) -> tuple[Rollout, float]:
        """The oldest rollout that the update from version `step` may use, and the seconds waited for it.

        Rollouts older than max_staleness are dropped and counted. One from a later version is an error: this learner
        does not have its weights. An exception of the sampler is raised here.
        """
        start = time.perf_counter()
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._items)
                if self._error is not None:
                    raise self._error
                if not self._items:
                    raise Closed
                rollout = self._items.popleft()
                self._changed.notify_all()
                if rollout.version > step:
                    raise ValueError(
                        f"a rollout of policy version {rollout.version} reached a learner at version {step}: "
                        "the sampler is ahead of this checkpoint; restart both from the same one"
                    )
                if step - rollout.version <= self._max_staleness:
                    return rollout, time.perf_counter() - start
                self.dropped += 1

    def wait_for_drop(self, dropped: int) -> bool:
        """True once more than `dropped` rollouts have been dropped, False once the queue is empty without that."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self.dropped > dropped)
            return self.dropped > dropped

    def close(self, error: BaseException | None = None) -> None:
        """Wake all waiting threads. With `error`, the learner's next get raises it."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify_all()


def start_sampler(
    produce: Callable[[int, Any, int], Rollout],
    weights: WeightBox,
    queue: RolloutQueue,
    max_staleness: int,
    start: int,
    stop: int,
) -> threading.Thread:
    """Thread that puts rollouts start..stop-1: `produce(number, weights, version)`.

    An exception closes the queue, and the learner's next `get` raises it. For each rollout that the queue dropped,
    another is sampled after the last. With max_staleness=0 each version serves one rollout and is then freed, so that
    the learner's step has the memory.
    """

    def run() -> None:
        try:
            number = start
            while number < stop + queue.dropped or queue.wait_for_drop(number - stop):
                version, value = weights.wait(number - queue.dropped - max_staleness, take=max_staleness == 0)
                rollout = produce(number, value, version)
                del value  # before the learner has the rollout
                queue.put(rollout)
                number += 1
        except Closed:
            pass
        except BaseException as error:  # the learner's thread raises it
            queue.close(error)

    thread = threading.Thread(target=run, name="sampler", daemon=True)
    thread.start()
    return thread


NESTED = {"prompts": Prompts, "outcomes": Outcomes}  # fields of a Rollout that hold arrays by name


def to_bytes(rollouts: Sequence[Rollout]) -> bytes:
    """Rollouts as a checkpoint stores them."""
    arrays = {f"{i}.{name}": value for i, rollout in enumerate(rollouts) for name, value in _arrays(rollout).items()}
    file = io.BytesIO()
    np.savez_compressed(file, count=len(rollouts), **arrays)
    return file.getvalue()


def _arrays(rollout: Rollout) -> dict[str, np.ndarray]:
    out: dict[str, Any] = {}
    for name, value in vars(rollout).items():
        if name not in NESTED:
            out[name] = value
        elif value is not None:
            out |= {f"{name}.{part}": array for part, array in vars(value).items()}
    return {name: np.asarray(value) for name, value in out.items()}


def from_bytes(data: bytes) -> list[Rollout]:
    """The inverse of `to_bytes`; [] for rollouts of an older version, which lack a field: they are sampled anew."""
    kinds = {"version": int, "number": int, "seconds": float}
    with np.load(io.BytesIO(data)) as stored:
        out = []
        for i in range(int(stored["count"])):
            if f"{i}.number" not in stored:
                return []
            plain = [f.name for f in dataclasses.fields(Rollout) if f.name not in NESTED]
            fields: dict[str, Any] = {name: kinds.get(name, np.asarray)(stored[f"{i}.{name}"]) for name in plain}
            for name, kind in NESTED.items():
                parts = [f.name for f in dataclasses.fields(kind)]
                if f"{i}.{name}.{parts[0]}" in stored:
                    fields[name] = kind(**{part: stored[f"{i}.{name}.{part}"] for part in parts})
            out.append(Rollout(**fields))
    return out
