"""The micro-batch size that a run measures: one that divides, kept in the workdir, taken by whoever goes on there."""

import dataclasses
import json

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.learner.step import gradients, init_reference
from rl_likelihood.mesh import cores
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import abstract_batch, load
from rl_likelihood.training import micro_batch
from tests.runs import small_config


@pytest.fixture(scope="module")
def loaded():
    c = build(
        small_config(
            train__micro_batch_prompts=-1,
            train__prompts_per_step=4,
            sampler__group_size=2,
            loss__kl="k3",
            loss__kl_coef=0.1,
            model__layers="unroll",
        )
    )
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    reference = init_reference(params, devices.learner, task.model, task.config.step)
    assert isinstance(reference["layers"], tuple), "as a run with unrolled layers holds it"
    return task, devices, params, (reference, None)


def test_the_measured_batch_is_the_longest_that_the_run_may_meet(loaded):
    task, *_ = loaded
    batch, shapes = micro_batch.longest_batch(task), abstract_batch(task.config, task.fmt)
    assert (batch.completion.shape, batch.no_chain.segment.shape) == (
        shapes.completion.shape,
        shapes.no_chain.segment.shape,
    )
    assert batch.scored.any(-1).all() and batch.keep.all() and (batch.prompt_length == shapes.prompt.shape[1]).all()
    assert batch.host_rewards.keys() == shapes.host_rewards.keys()


JUDGE = {"reward__name": "judge", "judge__model": "initial", "judge__where": "step", "loss__kl": "k3"}
CRITIC = {"reward__name": "adversarial", "adversarial__form": "head", "adversarial__replay": 4}


@pytest.mark.parametrize("changes", [{**JUDGE, "loss__kl_coef": 0.1}, CRITIC])
def test_a_judge_or_a_critic_in_the_step_is_not_measured_but_its_numbers_are_there(changes):
    c = build(small_config(train__micro_batch_prompts=-1, **changes))
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    reference = init_reference(params, devices.learner, task.model, c.step) if c.step.with_reference else None
    batch = micro_batch.longest_batch(task)
    assert batch.host_rewards[c.reward.judged].shape == batch.keep.shape
    assert batch.judged is batch.compared is batch.replayed is None
    assert list(micro_batch.measured(task, devices, params, (reference, None))) == [2]


def test_it_is_measured_once_and_kept(loaded, tmp_path, capsys):
    task, devices, params, models = loaded
    assert task.config.step.micro_batch_prompts == 0
    first = micro_batch.with_micro_batch(task, devices, params, models, tmp_path).config.step.micro_batch_prompts
    kept = json.loads((tmp_path / micro_batch.FILE).read_text())
    seconds = {int(k): t for k, t in kept["seconds_per_prompt"].items()}
    assert first == kept["prompts"] == min(seconds, key=seconds.get)
    assert {1} <= set(seconds) <= {1, 2, 4} and np.all(np.array(list(seconds.values())) > 0)
    assert f"micro-batch {first} prompts at a time" in capsys.readouterr().out
    other = 4 if first == 2 else 2
    (tmp_path / micro_batch.FILE).write_text(json.dumps({**kept, "prompts": other}))
    again = micro_batch.with_micro_batch(task, devices, params, models, tmp_path)
    assert again.config.step.micro_batch_prompts == other and "micro-batch" not in capsys.readouterr().out


def test_two_micro_batches_are_timed_in_the_step_s_loop_and_a_whole_step_as_one(loaded, monkeypatch):
    task, devices, params, models = loaded
    timed = []

    def seen(params, models, batch, model, cfg):
        timed.append((len(batch.prompt), cfg.micro_batch_prompts))
        return gradients(params, models, batch, model, cfg)

    monkeypatch.setattr(micro_batch, "gradients", seen)
    found = micro_batch.measured(task, devices, params, models)
    assert timed == [(min(2 * k, 4), k) for k in found] and list(found)[:2] == [1, 2][: len(found)]


def test_other_devices_measure_anew_and_say_so(loaded, tmp_path, capsys):
    task, devices, params, models = loaded
    kept = {"prompts": 3, "seconds_per_prompt": {"3": 1.0}, "conditions": "TPU v5e, data 1 x fsdp 16 x tensor 1"}
    (tmp_path / micro_batch.FILE).write_text(json.dumps(kept))
    chosen = micro_batch.with_micro_batch(task, devices, params, models, tmp_path).config.step.micro_batch_prompts
    assert chosen in (1, 2, 4) and json.loads((tmp_path / micro_batch.FILE).read_text())["prompts"] == chosen
    said = "3 prompts at a time were fastest on TPU v5e, data 1 x fsdp 16 x tensor 1; this is cpu of"
    assert f"{said} {cores()} cores, data 1 x fsdp 2" in capsys.readouterr().out


def test_a_packed_run_tries_only_sizes_with_whole_groups_on_every_device(tmp_path, monkeypatch):
    changes = {
        "train__packing": True,
        "mesh__data": 1,
        "mesh__fsdp": 8,
        "mesh__tensor": 1,
        "train__prompts_per_step": 16,
    }
    c = build(small_config(train__micro_batch_prompts=-1, sampler__group_size=8, **changes))
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    timed = []

    def seen(params, models, batch, model, cfg):
        timed.append((cfg.micro_batch_prompts, batch.packing.prompts))
        return gradients(params, models, batch, model, cfg)

    monkeypatch.setattr(micro_batch, "gradients", seen)
    monkeypatch.setattr(micro_batch, "WORSE", np.inf)
    chosen = micro_batch.with_micro_batch(task, devices, params, (None, None), tmp_path).config.train
    assert timed == [(8, 8), (16, 16)] and chosen.micro_batch_prompts in (8, 16)
    unpacked = dataclasses.replace(
        task, config=dataclasses.replace(c, train=dataclasses.replace(c.train, packing=False))
    )
    assert micro_batch.conditions(task, devices) == micro_batch.conditions(unpacked, devices) + ", packed"
