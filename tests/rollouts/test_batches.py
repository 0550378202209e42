"""Batches of a process: which rows are trained on, how wide, what processes log, what a resumed queue samples."""

import dataclasses
import json
import math

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.rollouts.batches import Batches, combined, means, widened
from rl_likelihood.rollouts.host_rewards import HostRewards
from rl_likelihood.rollouts.local_judge import Verdicts
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, PAD, SAMPLED, Prompts, Rollout
from rl_likelihood.task import EVALUATE, SAMPLE, load
from tests.runs import rows, run, small_config


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


def test_answers_that_several_processes_judge_are_counted_once(tmp_path):
    """Two processes have the same two prompts, and half of the four chains each. Both judge all of them."""
    task, devices, params = loaded(reward__name="judge", judge__model="x", sampler__group_size=4)
    keep = np.array([[True, True, False, True], [True, False, True, True]])
    judge = lambda questions, answers: Verdicts(np.ones((2, 4)), keep, 3)
    parts = [devices, *(dataclasses.replace(devices, chains=slice(i, i + 2)) for i in (0, 2))]
    logged = []
    for own in parts:
        b = Batches(task, own, tmp_path, judge)
        try:
            if own is devices:
                rollout = b.sample(0, sampler_weights(params, task.model, devices), 0)
            logged.append(b.grade(rollout, b.rows(0))[0].logged)
        finally:
            b.close()
    assert logged[0]["judge/failures"] == 2 and logged[0]["judge/cut"] == 3
    assert combined(logged[1:]) == logged[0]


@pytest.mark.parametrize(
    "changes", [{}, {"reward__name": "log_prob + numeric"}, {"filter__mode": "std_zero", "filter__resample": 1}]
)
def test_a_grade_that_is_only_logged_is_computed_while_the_step_runs(changes, tmp_path):
    task, devices, params = loaded(sampler__max_sampled_answer=10, **changes)
    b = Batches(task, devices, tmp_path)
    try:
        rollout, rows = b.sample(0, sampler_weights(params, task.model, devices), 0), b.rows(0)
        reference = task.tokenizer(f">{rows[1].example.answer}</answer", add_special_tokens=False)["input_ids"]
        opened = task.tokenizer("1</think>\n<answer", add_special_tokens=False)["input_ids"]
        ids = [*opened, *reference]
        rollout.completion[1, 0, : len(ids)] = ids
        rollout.segment[1, 0] = (
            [CHAIN] * len(opened) + [SAMPLED] * len(reference) + [PAD] * (rollout.segment.shape[-1] - len(ids))
        )
        graded, texts = b.grade(rollout, rows)
        metrics = b.metrics(graded, rollout, rows, texts)
    finally:
        b.close()
    assert metrics["reward/exact_match"] == pytest.approx(1 / 6), "one of six rows"
    assert ("reward/exact_match" in graded.logged) == (texts is not None) == bool(changes)
    assert metrics["grader/failures"] == 0 and graded.keep.all()


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


def test_a_rollout_is_widened_by_padding_that_no_row_sees():
    ids = np.arange(1, 7).reshape(1, 2, 3)
    two, one = np.array([2]), np.array([1])
    asked = Prompts(np.array([[5, 6]]), two, np.array([[7]]), one, np.array([[True]]), np.array([0]))
    rollout = Rollout(asked, ids, np.full(ids.shape, CHAIN), -1.0 * ids, np.zeros((1, 2), bool))
    wide = widened(rollout, 5, 4, pad_id=9)
    assert wide.prompts.tokens.tolist() == [[5, 6, 9, 9]] and wide.prompts.length.tolist() == [2]
    assert wide.completion.tolist() == [[[1, 2, 3, 9, 9], [4, 5, 6, 9, 9]]]
    assert (wide.segment[..., 3:] == PAD).all() and (wide.sampler_logp[..., 3:] == 0).all()
    assert widened(wide, 5, 4, pad_id=9).completion.shape == wide.completion.shape


@pytest.mark.parametrize(
    "packing, multiple, widths",
    [(False, 1, {22, 24, 26, 28, 30, 32}), (False, 0, {40}), (True, 1, {24, 32}), (True, 0, {24, 32})],
)
def test_packed_prompts_have_few_widths(tmp_path, packing, multiple, widths):
    """Prompts of 20 to 32 tokens, two a step, to what fsdp = 2 divides. Packed, a number and its double have two."""
    task, devices, _ = loaded(
        train__packing=packing, train__prompts_per_step=2, mesh__fsdp=2, mesh__tensor=4, prompt__width_multiple=multiple
    )
    of_length = [dataclasses.replace(task.train[0], prompt_ids=np.ones(n, np.int32)) for n in range(20, 33)]
    b = Batches(dataclasses.replace(task, train=of_length, common=np.zeros(0, np.int32)), devices, tmp_path)
    try:
        assert {b.collate(number).tokens.shape[1] for number in range(40)} == widths
    finally:
        b.close()


def test_prompts_as_wide_as_their_batch_needs_give_the_same_run(tmp_path, capsys, monkeypatch):
    lines = [{"prompt": "1" * (1 + i % 7) + "+1", "answer": str(i), "id": i} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    widths = []

    class Recording(Batches):
        def collate(self, number):
            prompts = super().collate(number)
            widths.append((prompts.tokens.shape[1], int(prompts.length.max())))
            return prompts

    monkeypatch.setattr("rl_likelihood.rollouts.source.Batches", Recording)
    data = {
        "data__source": "jsonl",
        "data__train_path": str(tmp_path / "train.jsonl"),
        "data__tasks": (),
        "data__train_size": 0,
        "data__heldout_size": 4,
        "eval__prompts": 0,
    }
    whole, cut = (run(tmp_path / str(n), prompt__width_multiple=n, **data) for n in (0, 1))
    assert {width for width, _ in widths[:4]} == {40}
    # Up to what fsdp = 2 divides.
    assert all(width == longest + longest % 2 < 40 for width, longest in widths[4:]) and len(set(widths[4:])) > 1
    said = capsys.readouterr().out
    assert all(f"compiles the {what} for prompts of " in said for what in ("step", "sampler"))
    for a, b in zip(rows(whole, "metrics.jsonl"), rows(cut, "metrics.jsonl"), strict=True):
        for name in ("reward/mean", "loss/answer", "grad/norm", "chain/length"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)
