"""The programs that `plan` compiles: their batch, parameters and caches have the shapes of a run."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from rl_likelihood import plan
from rl_likelihood.config import build
from rl_likelihood.learner.packing import pack
from rl_likelihood.model.architecture import is_spec
from rl_likelihood.model.decoding import empty_cache
from rl_likelihood.model.lora import MATRICES, LoraConfig, trained_specs
from rl_likelihood.planning import aot, lengths, programs
from rl_likelihood.planning.judges import texts_of_step
from rl_likelihood.planning.programs import Plan, byte_format
from rl_likelihood.planning.search import devices_of
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime.devices import using
from rl_likelihood.sampler import decode, turns
from rl_likelihood.shapes import CHAIN, PAD
from rl_likelihood.task import abstract_batch, load
from rl_likelihood.weights import files
from tests.rollouts import calculator
from tests.runs import small_config
from tests.small import random_batch, random_params


@pytest.mark.parametrize(
    "changes", [{}, {"reward__name": "sft"}, {"reward__name": "exact_match"}, {"report__no_chain": False}]
)
def test_the_planned_batch_is_the_run_s(changes):
    """Except for the tags: only a tokenizer knows their ids. A plan assumes one id for each of their bytes."""
    settings = build(small_config(**changes))
    task, params = load(settings)
    model, fmt = plan.model_shapes(settings), byte_format(settings)
    for name in ("close_think_ids", "open_answer_ids"):
        assert len(getattr(fmt, name)) >= len(getattr(task.fmt, name)) > 0
    assert abstract_batch(settings, task.fmt) == abstract_batch(task.config, task.fmt)
    assert dataclasses.replace(model, max_position=task.model.max_position) == task.model
    planned = programs.abstract_params(model)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, planned)


def cache_of(model, rows, length):
    """Bytes of the sampler's own cache."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(model, rows, length)))
    return sum(x.size * x.dtype.itemsize for x in leaves)


def plan_on(devices, **overrides):
    sizes = {"mesh__tensor": 1, "train__prompts_per_step": 2, "sampler__group_size": 4}
    settings = build(small_config(mesh__fsdp=devices, **sizes, **overrides))
    where = devices_of(settings, aot.target(f"cpu:{devices}"))
    return Plan(settings, plan.model_shapes(settings), where, 8)


@pytest.mark.parametrize("devices, prompts, rows", [(1, 2, 8), (2, 1, 4), (4, 1, 2)])
def test_the_cache_is_counted_as_the_sampler_holds_it(devices, prompts, rows):
    """A prompt is on every device that has chains of it; a chain is on one."""
    p = plan_on(devices)
    expected = {
        "prompts": cache_of(p.model, prompts, p.config.prompt.max_prompt),
        "rows": cache_of(p.model, rows, p.sampler.max_sampled),
    }
    assert programs.cache_bytes(p) == expected


def test_with_slots_each_device_holds_its_rows_and_their_prompts():
    p = plan_on(4, sampler__slots=4)  # one row on each device, with its prompt
    expected = {
        "prompts": cache_of(p.model, 1, p.config.prompt.max_prompt),
        "rows": cache_of(p.model, 1, p.sampler.max_sampled),
    }
    assert programs.cache_bytes(p) == expected
    assert programs.sampling_steps(p) == 2 * p.sampler.max_sampled  # eight rows, four at once


def test_conversations_hold_only_the_rows_that_run_at_the_same_time():
    def planned(**changes):
        sizes = {"mesh__tensor": 1, "train__prompts_per_step": 4, "sampler__group_size": 4}
        settings = calculator.config(**sizes, **changes)
        return Plan(settings, plan.model_shapes(settings), devices_of(settings, aot.target("cpu:2")), 2)

    whole, few = planned(), planned(sampler__slots=4)  # of 16 rows on two devices
    assert [programs.at_once(p) for p in (whole, few)] == [(4, 4), (2, 2)]
    assert programs.cache_bytes(whole)["rows"] == 4 * programs.cache_bytes(few)["rows"]
    assert programs.cache_bytes(whole)["prompts"] == 2 * programs.cache_bytes(few)["prompts"]
    assert programs.sampling_steps(few) == 4 * programs.sampling_steps(whole)
    weights = jax.eval_shape(lambda p: decode.decoding_layout(p, few.model), programs.abstract_params(few.model))
    (_, rows, own, given, _), _ = (turn := programs.trace_turn(few, weights)).args_info
    c = few.config.sampler
    # Of three messages and two replies, what precedes the last.
    width = turns.padded(2 * c.max_chain + c.max_env_tokens)
    assert own[0][0].shape[-1] == rows.used.shape[-1] == width + given.ids.shape[-1] + c.max_chain
    assert given.ids.shape[-1] == turns.padded(c.max_env_tokens)
    out, written = turn.out_info
    assert written.length.shape == (2, 2)
    assert jax.tree.map(lambda x: x.shape, own) == jax.tree.map(lambda x: x.shape, out.cache.own), "the same memory"
    assert all(x.donated for x in jax.tree.leaves(own)) and not rows.used.donated
    at_once = planned(sampler__max_turns=1)
    own, given = programs.trace_turn(at_once, weights).args_info[0][2:4]
    assert (own[0][0].shape[-1], given.ids.shape[-1]) == (c.max_chain, 0)


@pytest.mark.parametrize("form", ["head", "label"])
def test_a_critic_is_counted_and_its_step_is_traced(form):
    of_critic = {"reward__name": "adversarial", "adversarial__form": form, "adversarial__replay": 4}
    p = plan_on(1, **of_critic, judge__max_prompt=60, judge__max_row=40)
    assert plan.judge_shapes(p.config, p.model) is None, "the critic is no judge"
    size = sum(x.nbytes for x in jax.tree.leaves(random_params(p.model)))
    assert 3 * size <= programs.held_bytes(p)["critic"] < 3.1 * size, "parameters and Adam's two averages"
    assert programs.trace_step(p).jaxpr


def test_a_judge_is_counted_in_the_step_or_as_a_program_of_its_own(tmp_path):
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model))
    size = sum(x.nbytes for x in jax.tree.leaves(random_params(model)))
    judged = {"reward__name": "judge", "judge__model": str(tmp_path), "judge__max_prompt": 60, "judge__max_row": 40}

    def planned(**changes):
        settings = build(small_config(mesh__fsdp=1, mesh__tensor=1, **changes))
        policy, where = plan.model_shapes(settings), devices_of(settings, aot.target("cpu:1"))
        return Plan(settings, policy, where, 1, plan.judge_shapes(settings, policy))

    alone, outside, step = (
        planned(reward__name="exact_match"),
        planned(**judged),
        planned(**judged, judge__where="step"),
    )
    assert "judge" not in programs.held_bytes(alone) and programs.compile_judge(alone, 0, None) == []
    assert programs.held_bytes(outside)["judge"] == programs.held_bytes(step)["judge"] == size
    penalty = {"loss__kl": "k3", "loss__kl_coef": 0.1}
    initial = planned(**judged | penalty | {"judge__model": "initial", "judge__where": "step"})
    without = programs.held_bytes(planned(reward__name="exact_match", **penalty))
    assert without["reference"] == size and programs.held_bytes(initial) == without | {"judge": 0}
    assert programs.compile_judge(step, 0, None) == []
    (own,) = programs.compile_judge(outside, 5, None)
    assert own.program.name == "judge" and own.program.arguments > size and own.others == 5
    # 2 prompts of 60 and 3 rows of 40 tokens pass the layers' matrices; the rest is attention.
    tokens = 2 * (60 + 3 * 40)
    matrices = sum(x.size for x in jax.tree.leaves(random_params(model)["layers"]) if x.ndim == 3)
    assert 1 < own.program.flops / (2 * tokens * matrices) < 3
    chains = dataclasses.replace(outside.devices, chains=slice(0, 1))  # the others are another process's
    (same,) = programs.compile_judge(outside._replace(devices=chains), 5, None)
    assert same.program.flops == own.program.flops, "it judges all chains of its prompts"
    flops = [plan.model_flops(x) for x in (alone, outside, step)]
    assert flops[0] == flops[1] == flops[2] - own.program.flops


def report_on(devices, **overrides):
    settings = build(small_config(mesh__tensor=1, **overrides))
    return plan.make_plan(settings, plan.model_shapes(settings), aot.target(f"cpu:{devices}"), None, search=False)


@pytest.mark.parametrize("form", ["head", "raro"])
def test_an_adversarial_run_is_planned(form):
    report = report_on(2, reward__name="adversarial", adversarial__form=form, judge__max_prompt=60, judge__max_row=40)
    assert report["programs"][0]["name"] == "learner step" and "judge" not in report["held"]
    assert {row["refused"] for row in report["programs"]} == {""}


def test_a_rubric_s_judge_reads_a_text_for_each_criterion(tmp_path):
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model))
    rubric = {"reward__name": "rubric", "judge__model": str(tmp_path), "rubric__path": "r", "rubric__items": 12}
    report = report_on(2, **rubric, judge__max_prompt=60, judge__max_row=40)
    assert report["judge_calls"] == 3, "2 questions of 12 criteria, 8 at once"
    tokens = 8 * (60 + 3 * 40)
    matrices = sum(x.size for x in jax.tree.leaves(random_params(model)["layers"]) if x.ndim == 3)
    assert 1 < report["programs"][-1]["flops"] / (2 * tokens * matrices) < 3
    for changes, texts in (({"rubric__aggregate": "implicit"}, 2), ({"rubric__items": 1}, 2), ({}, 24)):
        assert texts_of_step(build(small_config(**{**rubric, **changes})), 2) == texts


@pytest.mark.parametrize("base_dtype, share", [("float32", 1), ("bfloat16", 1 / 2), ("int8", 1 / 4)])
def test_a_planned_base_is_as_large_as_it_is_stored(base_dtype, share):
    """Of an int8 base only the matrices are rounded to 8 bits; the rest is in bfloat16."""
    whole, base = (
        programs.held_bytes(plan_on(1, lora__rank=2, lora__base_dtype=kind))["reference"]
        for kind in ("float32", base_dtype)
    )
    params = random_params(random_model("nano"))
    matrices = sum(params["layers"][name].size for name in MATRICES)
    scales = 2 * (64 + 128 + 32 + 32) * (base_dtype == "int8")  # outputs of q, k and v, of gate and up, of o, of down
    in_bytes = 4 * share * matrices + max(4 * share, 2) * (whole / 4 - matrices) + 4 * scales
    assert base == in_bytes


def test_an_int8_sampler_reads_fewer_bytes():
    """Its matrices, of bfloat16, are rounded to 8 bits; the head and the norms are not."""
    whole, rounded = (
        {row["name"]: row for row in report_on(2, model__compute_dtype="bfloat16", sampler__weights=kind)["programs"]}
        for kind in ("compute", "int8")
    )
    params = random_params(random_model("nano"))
    matrices = sum(params["layers"][name].size for name in MATRICES)
    scales = 2 * (64 + 128 + 32 + 32)  # as above, in float32
    saved = whole["sampling"]["arguments"] - rounded["sampling"]["arguments"]
    assert saved == pytest.approx(matrices - 4 * scales, rel=0.01)


def test_a_planned_reference_model_is_as_large_as_it_is_stored():
    """In the type of the products."""
    kl = {"loss__kl": "k3", "loss__kl_coef": 0.1}
    float32, bfloat16 = (report_on(2, model__compute_dtype=kind, **kl) for kind in ("float32", "bfloat16"))
    assert float32["held"]["reference"] == float32["held"]["parameters"] == 2 * bfloat16["held"]["reference"]
    steps = [row for report in (float32, bfloat16) for row in report["programs"] if row["name"] == "learner step"]
    assert steps[0]["arguments"] - steps[1]["arguments"] == bfloat16["held"]["reference"]


def test_a_plan_with_adapters_holds_one_base_and_moments_of_adapters_alone():
    full, lora = report_on(2), report_on(2, lora__rank=2)
    model, held = random_model("nano"), lora["held"]
    specs = trained_specs(model, LoraConfig(2))
    size = 4 * sum(math.prod(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))
    assert size / 2 < held["parameters"] < size < full["held"]["parameters"] / 6, (
        "not all can be split over two devices"
    )
    assert 2 * held["parameters"] < held["optimizer"] < 2 * held["parameters"] + 100
    assert held["reference"] == full["held"]["parameters"], "the base"
    steps = [{row["name"]: row for row in report["programs"]}["learner step"] for report in (full, lora)]
    saved = sum(full["held"].values()) - sum(held.values())
    assert steps[0]["arguments"] - steps[1]["arguments"] == pytest.approx(saved, abs=100)
    # The gradients of the base's matrices, a third of the work at most, are not computed.
    assert 2 / 3 < lora["model_flops"] / full["model_flops"] < 1
    assert lora["cache"] == full["cache"] and lora["programs"][-1]["flops"] == full["programs"][-1]["flops"]
    assert lora["disk"]["training"] < full["disk"]["training"] / 5


def test_a_plan_with_context_splits_rows_by_tokens():
    one, two = report_on(2), report_on(4, mesh__context=2)
    assert two["mesh"] == {"data": 1, "fsdp": 2, "context": 2, "tensor": 1}
    assert two["model_flops"] == one["model_flops"] and two["batch"] == one["batch"]
    step, of_one = two["programs"][0], one["programs"][0]
    assert any("context" in c["axes"] for c in step["collectives"])
    assert step["temporaries"] < 0.6 * of_one["temporaries"], "each device holds half of the tokens"
    assert two["held"]["parameters"] == pytest.approx(one["held"]["parameters"] / 2, rel=0.05)


def test_a_plan_of_packed_rows_has_the_sizes_of_a_run_with_such_lengths():
    settings = build(small_config(train__packing=True, sampler__group_size=4, sampler__max_chain=200, mesh__tensor=1))
    devices = devices_of(settings, aot.target("cpu:2"))
    longest = Plan(settings, plan.model_shapes(settings), devices, 2)
    planned = longest._replace(mean_tokens=60).batch
    tokens = lengths.lengths_of(longest.batch, 60)
    with using(devices.learner):
        rows = random_batch(3, *longest.batch.completion.shape[:2], t=longest.batch.completion.shape[-1])
        real = np.arange(rows.segment.shape[-1]) < tokens[..., None]
        run = pack(rows.replace(segment=np.where(real, CHAIN, PAD)), settings.step)
    assert run.packing.replace(start=0, order=0) == planned.packing.replace(start=0, order=0)
    assert planned.completion.shape == run.completion.shape
    assert 0 < planned.packing.tokens < longest.batch.packing.tokens
    many = lengths.log_normal_lengths(np.random.default_rng(0), 100, 100, 300)
    assert many.mean() == pytest.approx(300, rel=0.02) and np.log(many).std() == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("reward", ["log_prob_any", "option_prob"])
def test_a_plan_of_packed_rows_has_tokens_of_alternative_answers(reward):
    changes = {"sampler__group_size": 4, "sampler__max_chain": 200, "mesh__tensor": 1, "reward__name": reward}
    settings = build(small_config(train__packing=True, **changes))
    longest = Plan(settings, plan.model_shapes(settings), devices_of(settings, aot.target("cpu:2")), 2)
    planned = longest._replace(mean_tokens=60).batch
    tokens = lengths.lengths_of(longest.batch, 60) + planned.alternatives.tokens.shape[-1]
    needed = tokens.sum(-1).max()  # each device has one prompt
    assert needed <= planned.packing.tokens < 1.15 * needed
