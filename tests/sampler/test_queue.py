"""The queue between sampler and learner: order, bound, staleness, and that nobody waits for ever."""

import dataclasses
import io
import threading
import time
import weakref
import zlib

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from rl_likelihood.sampler.queue import Closed, RolloutQueue, WeightBox, from_bytes, start_sampler, to_bytes
from rl_likelihood.shapes import Outcomes, Prompts, Rollout

SOON = 10.0  # seconds after which something hangs


def rollout(number, version):
    """A rollout that carries its number where the prompts would be."""
    empty = np.zeros((1, 1, 1))
    return Rollout(number, empty, empty, empty, empty[..., 0], version)


def in_thread(f):
    """Runs f elsewhere; `.result()` is its value or raises its exception, and fails if it hangs."""
    out = []

    def run():
        try:
            out.append((f(), None))
        except BaseException as e:
            out.append((None, e))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(SOON)
        assert not thread.is_alive(), "still waiting"
        value, error = out[0]
        if error is not None:
            raise error
        return value

    result.waiting = lambda: (thread.join(0.05), thread.is_alive())[1]
    return result


def test_first_in_first_out_and_the_time_waited():
    queue = RolloutQueue(depth=3, max_staleness=0)
    late = in_thread(lambda: queue.get(0))
    assert late.waiting()
    queue.put(rollout("a", 0))
    got, waited = late()
    assert got.prompts == "a" and 0 <= waited < SOON
    for name in "bcd":
        queue.put(rollout(name, 0))
    assert len(queue) == 3
    assert [queue.get(0)[0].prompts for _ in range(3)] == list("bcd")
    assert len(queue) == 0


def test_put_waits_while_the_queue_is_full():
    queue = RolloutQueue(depth=2, max_staleness=0)
    for i in range(2):
        queue.put(rollout(i, 0))
    third = in_thread(lambda: queue.put(rollout(2, 0)))
    assert third.waiting() and len(queue) == 2
    assert queue.get(0)[0].prompts == 0
    third()
    assert [queue.get(0)[0].prompts for _ in range(2)] == [1, 2]


def test_too_old_is_dropped_and_counted_and_the_next_is_taken():
    queue = RolloutQueue(depth=4, max_staleness=1)
    for number, version in enumerate([0, 2, 3, 4]):
        queue.put(rollout(number, version))
    got, _ = queue.get(4)
    assert (got.prompts, got.version, queue.dropped) == (2, 3, 2)
    assert queue.get(4)[0].version == 4 and queue.dropped == 2


def test_a_rollout_from_the_future_is_refused_by_name():
    queue = RolloutQueue(depth=1, max_staleness=3)
    queue.put(rollout(0, 5))
    with pytest.raises(ValueError, match="version 5 reached a learner at version 4"):
        queue.get(4)


def test_close_wakes_everybody():
    queue, box = RolloutQueue(depth=1, max_staleness=0), WeightBox()
    queue.put(rollout(0, 0))
    full, weights = in_thread(lambda: queue.put(rollout(1, 0))), in_thread(lambda: box.wait(3))
    empty = RolloutQueue(depth=1, max_staleness=0)
    starved = in_thread(lambda: empty.get(0))
    assert full.waiting() and weights.waiting() and starved.waiting()
    for x in (queue, empty, box):
        x.close()
    for waiter in (full, weights, starved):
        with pytest.raises(Closed):
            waiter()
    # What was there before stays usable, and then there is no more.
    assert queue.get(0)[0].prompts == 0
    with pytest.raises(Closed):
        queue.get(0)


def test_weights_are_the_newest_and_versions_only_grow():
    box = WeightBox()
    early = in_thread(lambda: box.wait(1))
    box.publish(0, "zero")
    assert early.waiting()
    box.publish(2, "two")
    assert early() == (2, "two") == box.wait(0)
    assert box.wait(2, take=True) == (2, "two") and box.wait(2) == (2, None)
    for version in (2, 1):
        with pytest.raises(ValueError, match=f"version {version} published after version 2"):
            box.publish(version, "old")


def test_no_weights_yet_is_waited_for_however_stale_they_may_be():
    box = WeightBox()
    first = in_thread(lambda: box.wait(-3))
    assert first.waiting()
    box.publish(0, "zero")
    assert first() == (0, "zero")


def until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.002)


def learn(max_staleness, steps=12, depth=4, start=0):
    """A learner slower than its sampler, both only passing versions; (rollout number, lag) of each step, and more."""
    box, queue = WeightBox(), RolloutQueue(depth, max_staleness)
    produced = []

    def produce(number, weights, version):
        assert weights == f"weights {version}"
        produced.append((number, version))
        return rollout(number, version)

    thread = start_sampler(produce, box, queue, max_staleness, start, start + steps)
    used = []
    for step in range(start, start + steps):
        box.publish(step, f"weights {step}")
        until(lambda step=step: len(produced) >= min(step - start + 1 + max_staleness, steps))
        got, _ = in_thread(lambda step=step: queue.get(step))()
        used.append((got.prompts, step - got.version))
    box.close()
    queue.close()
    thread.join(SOON)
    assert not thread.is_alive()
    return used, produced, queue


@pytest.mark.parametrize("start", [0, 7])
def test_staleness_zero_takes_turns(start):
    used, produced, queue = learn(0, start=start)
    assert used == [(start + i, 0) for i in range(12)]
    assert produced == [(start + i, start + i) for i in range(12)] and queue.dropped == 0


def test_in_turns_the_sampler_has_let_its_weights_go_when_the_rollout_is_had():
    class Weights:
        pass

    box, queue = WeightBox(), RolloutQueue(depth=1, max_staleness=0)
    thread = start_sampler(lambda n, w, v: rollout(n, v), box, queue, 0, 0, 1)
    weights = Weights()
    held = weakref.ref(weights)
    box.publish(0, weights)
    del weights
    in_thread(lambda: queue.get(0))()
    assert held() is None
    thread.join(SOON)


def test_the_sampler_runs_ahead_but_never_further_than_allowed():
    used, produced, queue = learn(2)
    assert [number for number, _ in used] == list(range(12)) and queue.dropped == 0
    assert all(0 <= lag <= 2 for _, lag in used) and max(lag for _, lag in used) == 2
    assert all(number - version <= 2 for number, version in produced) and len(produced) == 12


def test_a_full_queue_holds_the_sampler_back():
    box, queue = WeightBox(), RolloutQueue(depth=2, max_staleness=100)
    started = []
    thread = start_sampler(lambda n, w, v: started.append(n) or rollout(n, v), box, queue, 100, 0, 50)
    box.publish(0, None)
    until(lambda: len(started) >= 3)
    time.sleep(0.05)
    assert started == [0, 1, 2] and len(queue) == 2, "two wait in the queue, the third to be put there"
    box.close()
    queue.close()
    thread.join(SOON)
    assert not thread.is_alive()


@pytest.mark.parametrize("dropped_at", [1, 3])
def test_dropped_rollouts_are_made_up_for_even_after_the_last(dropped_at):
    # Four rollouts of version 0 are wanted; the learner's version jumps ahead, so those still queued are too old.
    box, queue = WeightBox(), RolloutQueue(depth=8, max_staleness=4)
    thread = start_sampler(lambda n, w, v: rollout(n, v), box, queue, 4, 0, 4)
    box.publish(0, None)
    until(lambda: len(queue) == 4)
    for _ in range(dropped_at):
        assert queue.get(0)[0].version == 0
    box.publish(50, None)
    versions = [in_thread(lambda: queue.get(50))()[0].version for _ in range(4 - dropped_at)]
    assert versions == [50] * (4 - dropped_at) and queue.dropped == 4 - dropped_at
    thread.join(SOON)
    assert not thread.is_alive(), "four were used: the sampler is done"


def test_the_samplers_own_exception_reaches_the_learner():
    box, queue = WeightBox(), RolloutQueue(depth=2, max_staleness=0)

    def produce(number, weights, version):
        if number == 1:
            raise ZeroDivisionError("the dragon at number 1")
        return rollout(number, version)

    thread = start_sampler(produce, box, queue, 0, 0, 5)
    box.publish(0, None)
    assert queue.get(0)[0].prompts == 0
    box.publish(1, None)
    with pytest.raises(ZeroDivisionError, match="the dragon at number 1"):
        in_thread(lambda: queue.get(1))()
    thread.join(SOON)
    assert not thread.is_alive()
    queue.close()  # the learner's own end does not hide the cause
    with pytest.raises(ZeroDivisionError):
        queue.get(2)


def test_rollouts_are_stored_whole_and_those_of_an_older_program_are_sampled_again():
    ids, length, scored = np.arange(6, dtype=np.int32).reshape(2, 3), np.array([3, 2], np.int32), np.eye(2, 3) > 0
    prompts = Prompts(ids, length, ids, length, scored, length, common=2)
    wide, logp = ids[:, None], -np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    waiting = [Rollout(prompts, wide, wide, logp, scored[:, :1], number, number + 1, 0.25) for number in (11, 3)]
    of_turns = Outcomes(*[logp[..., 0]] * 3, *[wide[..., 0]] * 3, scored[:, :1])
    waiting[1] = waiting[1].replace(outcomes=of_turns)
    back = from_bytes(to_bytes(waiting))
    assert len(back) == 2 and from_bytes(to_bytes([])) == []
    for one, other in zip(waiting, back, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)  # compares version, number, seconds and common
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    fields = dataclasses.asdict(waiting[0])
    del fields["completion"]
    file = io.BytesIO()
    np.savez(file, count=0)
    assert from_bytes(zlib.compress(msgpack_serialize({"0": fields}))) == [] == from_bytes(file.getvalue())
