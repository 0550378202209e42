"""Between sampler and learner: versioned weights one way, a bounded queue of rollouts the other way.

    learner  --publish(version, weights)-->  WeightBox  --wait(at_least)-->  sampler thread
    learner  <--get(step)--  RolloutQueue  <--put(rollout)--  sampler thread

Rollout number i may be sampled from weights of version i - max_staleness or newer. With max_staleness = 0, sampler and
learner alternate, and a run is deterministic. With more, the sampler runs ahead.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from flax.serialization import msgpack_restore, msgpack_serialize

from rl_likelihood.shapes import Outcomes, Prompts, Rollout


class Closed(Exception):
    """The other side has stopped."""


class WeightBox:
    """The newest published weights and their version, the number of updates that made them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version, self._weights, self._closed = -1, None, False

    def publish(self, version: int, weights: Any) -> None:
        """Replaces the weights. Each version must be higher than the last."""
        with self._changed:
            if version <= self._version:
                raise ValueError(f"weights of version {version} published after version {self._version}")
            self._version, self._weights = version, weights
            self._changed.notify_all()

    def wait(self, at_least: int, take: bool = False) -> tuple[int, Any]:
        """Waits for version `at_least` or newer; returns (version, weights). Raises Closed if the learner has stopped.

        With `take` the box drops its reference, so each version can be taken only once.
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

    `waiting` and `dropped`: the `contents` in the checkpoint of a resumed run.
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
        """Waits until the queue is not full, then appends. Raises Closed if the learner has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise Closed
            self._items.append(rollout)
            self._changed.notify_all()

    def get(self, step: int) -> tuple[Rollout, float]:
        """(the oldest rollout that the update of version `step` may use, the seconds waited for it).

        Rollouts that are older than max_staleness are dropped and counted. A rollout of a version later than `step` is
        an error. An exception of the sampler is raised here.
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
        """Waits until the queue is empty or more than `dropped` rollouts have been dropped; True for the latter."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self.dropped > dropped)
            return self.dropped > dropped

    def close(self, error: BaseException | None = None) -> None:
        """Wakes all waiting threads. With `error`, the learner's next `get` raises it."""
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
    """Starts the thread that puts rollouts start..stop-1 into the queue. `produce(number, weights, version)` makes one.

    For each rollout that the queue dropped, one more is sampled at the end. An exception closes the queue, and the
    learner's next `get` raises it. With max_staleness=0 the weights of a version are freed after their one rollout, so
    that the learner's step has the memory.
    """

    def run() -> None:
        try:
            number = start
            while number < stop or queue.wait_for_drop(number - stop):
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


def to_bytes(rollouts: Sequence[Rollout]) -> bytes:
    """Rollouts as a checkpoint stores them."""
    return zlib.compress(msgpack_serialize({str(i): dataclasses.asdict(r) for i, r in enumerate(rollouts)}))


def from_bytes(data: bytes) -> list[Rollout]:
    """The inverse of `to_bytes`. Returns [] for rollouts that an older program stored otherwise; they are resampled."""

    def restored(prompts: dict, outcomes: dict | None, **fields) -> Rollout:
        return Rollout(prompts=Prompts(**prompts), outcomes=outcomes and Outcomes(**outcomes), **fields)

    try:
        return [restored(**stored) for stored in msgpack_restore(zlib.decompress(data)).values()]
    except (TypeError, zlib.error):
        return []
