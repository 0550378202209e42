"""Between sampler and learner: versioned weights one way, a bounded queue of rollouts the other way.

    learner  --publish(version, weights)-->  WeightBox  --wait(at_least)-->  sampler thread
    learner  <--get(step)--  RolloutQueue  <--put(rollout)--  sampler thread

Rollout number i may be sampled from weights no older than version i - max_staleness. With 0 the two
take turns and a run is deterministic; with more the sampler runs ahead.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

from rl_likelihood.shapes import Rollout


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

    def wait(self, at_least: int) -> tuple[int, Any]:
        """(version, weights) once the version is `at_least`; raises Closed when the learner has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._version >= max(at_least, 0))
            if self._closed:
                raise Closed
            return self._version, self._weights

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class RolloutQueue:
    """A bounded first-in first-out queue of rollouts that enforces the staleness rule."""

    def __init__(self, depth: int, max_staleness: int) -> None:
        self._items: collections.deque[Rollout] = collections.deque()
        self._changed = threading.Condition()
        self._depth, self._max_staleness = depth, max_staleness
        self._closed, self._error = False, None
        self.dropped = 0  # rollouts too old to use

    def __len__(self) -> int:
        return len(self._items)

    def put(self, rollout: Rollout) -> None:
        """Append, waiting for room; raises Closed when the learner has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise Closed
            self._items.append(rollout)
            self._changed.notify_all()

    def get(self, step: int) -> tuple[Rollout, float]:
        """The oldest rollout fit for the update from version `step`, and the seconds waited for it.

        Rollouts older than max_staleness are dropped and counted; one from the future is an error: it
        was sampled by weights this learner does not have. A sampler's own exception is raised here.
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
        """True once more than `dropped` rollouts were too old, False once all were taken without that."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self.dropped > dropped)
            return self.dropped > dropped

    def close(self, error: BaseException | None = None) -> None:
        """Wake everybody. With `error`, the learner's next get raises it."""
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

    An exception closes the queue and reaches the learner's next `get`. Rollouts that the queue drops
    as too old are made up for after the last.
    """

    def run() -> None:
        try:
            number = start
            while number < stop + queue.dropped or queue.wait_for_drop(number - stop):
                version, value = weights.wait(number - queue.dropped - max_staleness)
                queue.put(produce(number, value, version))
                number += 1
        except Closed:
            pass
        except BaseException as error:  # noqa: BLE001 (handed to the learner's thread, which raises it)
            queue.close(error)

    thread = threading.Thread(target=run, name="sampler", daemon=True)
    thread.start()
    return thread
