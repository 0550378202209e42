"""Batches of a process: which rows are trained on, what several processes log, what a resumed queue samples."""

import math

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.rollouts.batches import Batches, combined, means
from rl_likelihood.rollouts.host_rewards import HostRewards
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.sampler import decode
from rl_likelihood.task import EVALUATE, SAMPLE, load
from tests.runs import small_config


def loaded(**overrides):
    config = build(small_config(**overrides))
    devices = make_devices(config)
    task, params = load(config, mesh=devices.learner)
    return task, devices, params


def test_the_rows_trained_on_are_those_whose_rewards_are_taken(tmp_path):
    """Of the voters of a group the first are trained on."""
    vote = {"reward__name": "majority_vote", "sampler__group_size": 6, "reward__vote_train": 2}
    task, devices, params = loaded(**vote, mesh__fsdp=2, mesh__tensor=4)
    b = Batches(task, devices, tmp_path)
    try:
        rollout = b.sample(0, sampler_weights(params, task.model, devices), 0)
        numbers = np.arange(12, dtype=np.float32).reshape(2, 6)
        keep = numbers % 2 == 0
        batch, trained = b.batch(rollout, b.rows(0), HostRewards({"majority_vote": numbers}, keep, {}))
    finally:
        b.close()
    assert batch.host_rewards["majority_vote"].tolist() == [[0, 1], [6, 7]]
    assert batch.keep.tolist() == [[True, False], [True, False]]
    for made in (batch, trained):
        np.testing.assert_array_equal(made.completion, rollout.completion[:, :2])


def test_the_chains_of_training_have_the_keys_of_training(tmp_path):
    task, devices, params = loaded()
    weights, b = sampler_weights(params, task.model, devices), Batches(task, devices, tmp_path)
    try:
        rollout = b.sample(1, weights, 0)
        drawn = {p: decode.sample(weights, b.collate(1), task.key(p), task.sampler()) for p in (SAMPLE, EVALUATE)}
    finally:
        b.close()
    np.testing.assert_array_equal(rollout.completion, drawn[SAMPLE].completion)
    assert (rollout.completion != drawn[EVALUATE].completion).any()


def test_numbers_of_processes_are_averaged_and_counts_are_summed():
    parts = [{"reward/exact_match": 0.5, "grader/failures": 3.0}, {"reward/exact_match": 0.0, "grader/failures": 1.0}]
    assert combined(parts) == {"reward/exact_match": 0.25, "grader/failures": 4.0}
    parts = [{"env/turns": math.nan, "env/calls_f1": math.nan}, {"env/turns": 2.0, "env/calls_f1": math.nan}]
    assert combined(parts) == pytest.approx({"env/turns": 2.0, "env/calls_f1": math.nan}, nan_ok=True)
    assert means({"env/turns": math.nan, "grader/failures": 0.0}) == {"grader/failures": 0.0}


def test_a_resumed_queue_samples_no_waiting_rollout_again(tmp_path):
    task, devices, params = loaded(sampler__max_staleness=2, train__steps=6)
    first = make_source(task, devices, tmp_path, 0, None)
    try:
        assert first.next(0, params).rollout.number == 0
        with first.devices_free():
            while len(first.queue) < 2:
                first.thread.join(0.05)
        saved = first.state()
    finally:
        first.close()
    resumed = make_source(task, devices, tmp_path, 1, saved)
    try:
        assert [resumed.next(step, params).rollout.number for step in range(1, 6)] == [1, 2, 3, 4, 5]
    finally:
        resumed.close()
