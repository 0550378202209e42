"""Where a run's batches come from: sampled in turn, sampled ahead, or given."""

import contextlib
import threading
import time

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.order import order
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.grading import graders
from rl_likelihood.rollouts.asynchronous import Asynchronous
from rl_likelihood.rollouts.judges import judge_of
from rl_likelihood.rollouts.source import Given, Synchronous, make_source
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.task import load
from rl_likelihood.weights import files
from tests.runs import run, small_config
from tests.servers import serving, verdict
from tests.small import random_params


@contextlib.contextmanager
def made_source(workdir, **changes):
    """(the source of a run's batches, the task, its parameters); it is closed in the end."""
    config = build(small_config(**changes))
    devices = make_devices(config)
    task, params = load(config, mesh=devices.learner)
    judge = judge_of(task, devices, workdir) if config.reward.judged else None
    source = make_source(task, devices, workdir, 0, None, judge)
    try:
        yield source, task, params
    finally:
        source.close()


def test_a_sampler_that_runs_ahead_stays_within_its_bound(tmp_path):
    run(tmp_path / "run", sampler__max_staleness=2, train__steps=6, eval__prompts=0)
    lags = [row["queue/lag"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")]
    assert len(lags) == 6 and min(lags) >= 0 and 1 <= max(lags) <= 2


def test_the_sampler_of_a_shared_device_computes_only_while_the_learner_waits(tmp_path):
    """Two programs with collectives, started by two threads on the same devices, would wait for each other."""
    with made_source(tmp_path, sampler__max_staleness=2) as (source, task, params):
        source.box.publish(0, sampler_weights(params, task.model, source.batches.devices))
        time.sleep(0.5)
        assert len(source.queue) == 0, "the learner's thread owns the devices"
        with source.devices_free():
            assert source.queue.get(0)[0].version == 0
    assert not source.thread.is_alive()


CHARACTERS = """
from rl_likelihood.rewards.reward import Reward

REWARDS = {"characters": Reward(lambda text, tags: len(text), "text", "the length of the text")}
"""


def ahead_of_learner(folder, staleness):
    """Settings of a run whose sampler is ahead, with a reward that differs from row to row."""
    (folder / "own.py").write_text(CHARACTERS)
    own = {"reward__name": "characters", "reward__file": str(folder / "own.py")}
    return {"sampler__max_staleness": staleness, **own}


def assert_own_grades(source, given):
    graded, _ = source.batches.grade(given.rollout, given.rows)
    np.testing.assert_array_equal(given.batch.host_rewards["characters"], graded.values["characters"])
    assert len(np.unique(graded.values["characters"])) > 1


@pytest.mark.parametrize("resumed", [False, True])
def test_a_rollout_is_graded_as_soon_as_it_is_sampled(resumed, tmp_path):
    """A resumed run grades those of its checkpoint first."""
    with made_source(tmp_path, **ahead_of_learner(tmp_path, 2)) as (source, task, params):
        source.next(0, params)
        with source.devices_free():
            while len(source.queue) < 2:
                time.sleep(0.01)
        saved, devices = source.state(), source.batches.devices
        assert [number for number, _ in source.grades][:2] == [1, 2], "before the learner has asked for them"
        if not resumed:
            given = source.next(1, params)
            assert source.grades[0][0] == 2 and given.rollout.number == 1
            assert_own_grades(source, given)
            return
    again = make_source(task, devices, tmp_path, 1, saved)
    try:
        assert [number for number, _ in again.grades][:2] == [1, 2]
        given = again.next(1, params)
        assert given.rollout.number == 1
        assert_own_grades(again, given)
    finally:
        again.close()


def test_grades_of_dropped_rollouts_are_given_to_no_other(tmp_path):
    with made_source(tmp_path, **ahead_of_learner(tmp_path, 1)) as (source, _, params):
        source.next(0, params)
        with source.devices_free():
            while not len(source.queue):
                time.sleep(0.01)
        first = source.grades[0][0]
        given = source.next(5, params)  # what was sampled before is too old
        assert given.rollout.number > first and source.queue.dropped
        assert_own_grades(source, given)


def test_a_server_judges_ahead_of_the_learner_and_is_not_waited_for_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(graders, "extract_answer", lambda text, fmt: text)  # random weights write no answer
    hangs, release = threading.Event(), threading.Event()

    def behave(handler, number, body):
        if hangs.is_set():
            release.wait(60)
        handler.reply(200, verdict(body))

    with serving(behave) as (url, requests):
        asked = {"reward__name": "judge", "judge__model": url, "judge__name": "m", "judge__timeout": 60.0}
        with made_source(tmp_path, sampler__max_staleness=1, **asked) as (source, _, params):
            source.next(0, params)
            with source.devices_free():
                while not source.grades or not source.grades[0][1].done():
                    time.sleep(0.01)
            hangs.set()
            before = len(requests)
            source.next(1, params)  # its verdicts were there
            with source.devices_free():
                while len(requests) == before:
                    time.sleep(0.01)
            start = time.monotonic()
        assert time.monotonic() - start < 20
        release.set()


class SlowLock:
    """Takes at least 0.2 seconds to acquire."""

    def __init__(self, lock):
        self.lock, self.release = lock, lock.release

    def acquire(self):
        time.sleep(0.2)
        self.lock.acquire()

    __enter__, __exit__ = acquire, lambda self, *_: self.release()


def test_waiting_for_shared_devices_is_waiting_for_the_sampler(tmp_path):
    with made_source(tmp_path, sampler__max_staleness=2) as (source, _, params):
        source.next(0, params)
        with source.devices_free():
            while not len(source.queue):
                time.sleep(0.01)
        source.lock = SlowLock(source.lock)
        assert source.next(1, params).waited >= 0.4, "after the queue and after grading"


def test_a_judge_on_the_samplers_device_is_waited_for_once(tmp_path):
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(byte_tokenizer(), tmp_path)
    about = {"reward__name": "similar_share", "judge__model": str(tmp_path), "sampler__max_staleness": 1}
    with made_source(tmp_path, **about) as (source, _, params):
        for step in range(2):
            before = source.batches.device_seconds
            given = source.next(step, params)
            judging = source.batches.device_seconds - before
            assert judging > 0, "of this step alone"
            assert given.waited == pytest.approx(given.logged["time/wait"] + judging)


@pytest.mark.parametrize(
    "overrides, kind",
    [({}, Synchronous), ({"sampler__max_staleness": 1}, Asynchronous), ({"reward__name": "sft"}, Given)],
)
def test_every_source_gives_the_batch_of_its_step(overrides, kind, tmp_path):
    with made_source(tmp_path, **overrides) as (source, task, params):
        assert isinstance(source, kind)
        for step in range(2):
            given = source.next(step, params)
            index = order(len(task.train), 2, 0)(step)
            assert [row.example.id for row in given.rows] == [task.train[i].example.id for i in index]
            assert given.batch.completion.shape[:2] == (2, task.config.rows_per_prompt)
