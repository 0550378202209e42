"""Groups with chains from both prompts: which prompt each is from, and that a resumed run samples the same."""

import dataclasses

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.batches import Batches
from rl_likelihood.rollouts.samples import sample_of
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN
from rl_likelihood.task import SAMPLE, load
from tests.rollouts.test_batches import loaded
from tests.runs import small_config
from tests.small import random_params

SHARED = {"posterior__share": 0.5, "sampler__group_size": 4, "posterior__prompt": " It is {answer}."}


def test_the_last_chains_are_sampled_after_the_prompt_with_the_answer(tmp_path):
    task, devices, params = loaded(**SHARED)
    weights, b = sampler_weights(params, task.model, devices), Batches(task, devices, tmp_path)
    try:
        rollout, rows, prompts = b.sample(1, weights, 0), b.rows(1), b.collate(1)
        shown = b.shown(rows, prompts.uid)
    finally:
        b.close()
    for i, row in enumerate(rows):
        text = task.tokenizer.decode(shown.tokens[i, : shown.length[i]])
        assert f"{row.example.prompt} It is {row.example.answer}." in text and text.endswith("<think>")
    np.testing.assert_array_equal(rollout.prompts.tokens, prompts.tokens)
    after = prompts.replace(tokens=shown.tokens, length=shown.length, common=0)
    for asked, own, cfg in (
        (prompts, slice(0, 2), task.sampler(group_size=2)),
        (after, slice(2, 4), task.sampler(group_size=2, first_chain=2)),
    ):
        alone = decode.sample(weights, asked, task.key(SAMPLE), cfg)
        for name in ("completion", "segment", "sampler_logp"):
            np.testing.assert_array_equal(getattr(rollout, name)[:, own], getattr(alone, name))


def test_what_only_the_plain_prompts_begin_with_is_not_the_beginning_of_those_with_the_answer(tmp_path):
    config = build(small_config(**SHARED, mesh__data=1, mesh__fsdp=1, mesh__tensor=1))
    devices = make_devices(config, jax.devices()[:1])  # which samples several prompts
    task, params = load(config, mesh=devices.learner)
    question = task.train[0].prompt_ids  # one question with several answers
    rows = [dataclasses.replace(row, prompt_ids=question) for row in task.train]
    task = dataclasses.replace(task, train=rows, common=question[:-1])
    large = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), random_params(task.model), params)
    weights, b = sampler_weights(large, task.model, devices), Batches(task, devices, tmp_path)
    try:
        rollout, prompts, shown = b.sample(0, weights, 0), b.collate(0), b.shown(b.rows(0), b.collate(0).uid)
    finally:
        b.close()
    assert prompts.common == len(question) - 1 and shown.common == 0
    alone = decode.sample(weights, shown, task.key(SAMPLE), task.sampler(group_size=2, first_chain=2))
    np.testing.assert_array_equal(rollout.completion[:, 2:], alone.completion)
    np.testing.assert_allclose(rollout.sampler_logp[:, 2:], alone.sampler_logp, atol=1e-5)


def test_a_logged_chain_says_which_prompt_it_is_from(tmp_path):
    task, devices, params = loaded(**SHARED)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        given = source.next(0, params)
    finally:
        source.close()
    rows, alone = given.rollout.segment.shape, given.batch.no_chain.segment.shape[-1]
    values = {"answer_logp": np.zeros(rows), "no_chain_answer_logp": np.zeros((2, alone))}
    values |= {name: np.zeros(rows[:2]) for name in ("reward", "advantage")}
    said = [sample_of(task, given, values, 1, j)["after_answer"] for j in range(4)]
    assert said == [False, False, True, True]


def test_a_resumed_run_goes_on_with_the_same_chains(tmp_path):
    task, devices, params = loaded(**SHARED)
    first, second = (make_source(task, devices, tmp_path, start, None) for start in (0, 1))
    try:
        first.next(0, params)
        one, two = first.next(1, params), second.next(1, params)
    finally:
        first.close()
        second.close()
    for name in ("completion", "sampler_logp"):
        np.testing.assert_array_equal(getattr(one.batch, name), getattr(two.batch, name))
    np.testing.assert_array_equal(one.batch.shown.tokens, two.batch.shown.tokens)
    assert (one.batch.segment == CHAIN).any(-1).all()


def test_a_prompt_with_the_answer_that_is_too_long_is_refused():
    with pytest.raises(UserError, match=r"posterior\.max_prompt=\d+"):
        loaded(**SHARED, posterior__max_prompt=20)
