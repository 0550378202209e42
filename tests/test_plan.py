"""`plan`: the shapes it takes, that they are the run's, what it reports on cpu:8, what it says if it won't fit."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rl_likelihood import plan
from rl_likelihood.config import build, flatten
from rl_likelihood.model.decoder import Spec, param_specs
from rl_likelihood.model.decoding import empty_cache
from rl_likelihood.planning import aot, programs
from rl_likelihood.planning.text import table
from rl_likelihood.shapes import UserError
from rl_likelihood.task import abstract_batch, load
from rl_likelihood.weights import hugging_face
from rl_likelihood.weights.published import PUBLISHED, published
from tests.runs import config_file, small_config

# Parameters in thousands, as the publishers' cards and files have them.
COUNTS = {
    "llama-3.2-1b": 1_235_814,
    "llama-3.2-3b": 3_212_750,
    "llama-3.1-8b": 8_030_261,
    "qwen2.5-0.5b": 494_033,
    "qwen2.5-1.5b": 1_543_714,
    "qwen2.5-3b": 3_085_939,
    "qwen2.5-7b": 7_615_617,
    "qwen2.5-14b": 14_770_034,
    "qwen3-0.6b": 596_050,
    "qwen3-1.7b": 1_720_575,
    "qwen3-4b": 4_022_468,
    "qwen3-8b": 8_190_735,
    "smollm2-135m": 134_515,
    "smollm2-360m": 361_821,
    "smollm2-1.7b": 1_711_376,
}


def small_plan(memory=None, search=False, topology="cpu:8", **overrides):
    settings = build(small_config(**overrides))
    model = plan.model_shapes(settings)
    return plan.make_plan(settings, model, aot.target(topology), memory, search)


@pytest.fixture(scope="module")
def planned():
    return small_plan()


def test_published_shapes_have_the_published_numbers_of_parameters():
    leaves = lambda m: jax.tree.leaves(param_specs(m), is_leaf=lambda x: isinstance(x, Spec))
    count = lambda name: sum(math.prod(s.shape) for s in leaves(published(name)))
    assert {name: round(count(name) / 1000) for name in PUBLISHED} == COUNTS


def test_names_may_have_a_publisher_and_instruct():
    assert published("HuggingFaceTB/SmolLM2-135M-Instruct") == published("smollm2-135m")
    with pytest.raises(UserError, match=r"model 'org/Qwen2.5-4B-Instruct'.*nearest is qwen2.5-(3b|14b)"):
        published("org/Qwen2.5-4B-Instruct")


def test_shapes_of_a_folder_need_only_its_config(tmp_path):
    model = published("qwen2.5-0.5b")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.config_to_hf(model, "bfloat16")))
    found = plan.model_shapes(small_config(model__preset="", model__path=str(tmp_path), model__remat="full"))
    assert found == dataclasses.replace(model, remat="full")


def test_a_run_s_workdir_stands_for_the_model_it_started_from(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(flatten(small_config())))
    found = plan.model_shapes(small_config(model__preset="", model__path=str(tmp_path)))
    assert found == plan.model_shapes(small_config())


@pytest.mark.parametrize(
    "changes", [{}, {"reward__name": "sft"}, {"reward__name": "exact_match"}, {"report__no_chain": False}]
)
def test_the_planned_batch_is_the_run_s(changes):
    """But for the tags, whose ids only a tokenizer knows: as many as their bytes are enough."""
    settings = build(small_config(**changes))
    task, params = load(settings)
    shapes = programs.shape_world(settings, plan.model_shapes(settings))
    for name in ("close_think_ids", "open_answer_ids"):
        assert len(getattr(shapes.fmt, name)) >= len(getattr(task.fmt, name)) > 0
    assert abstract_batch(dataclasses.replace(shapes, fmt=task.fmt)) == abstract_batch(task.config, task.fmt)
    assert dataclasses.replace(shapes.model, max_position=task.model.max_position) == task.model
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(
        lambda x: x.shape, programs.abstract_params(shapes.model)
    )


def test_every_program_is_compiled_and_accounted_for(planned):
    assert [row["name"] for row in planned["programs"]] == ["learner step", "sampler weights", "sampling"]
    assert planned["mesh"] == {"data": 1, "fsdp": 2, "tensor": 4} and planned["devices"] == 8
    step, prepare, sampling = planned["programs"]
    held = planned["held"]
    # Two moments, and some counters; the batch on top.
    assert 2 * held["parameters"] < held["optimizer"] < 2 * held["parameters"] + 1000
    assert step["arguments"] > held["parameters"] + held["optimizer"]
    assert step["peak"] > step["arguments"] and step["collectives"] and step["flops"] > 0
    assert step["others"] == 0 and 0 < prepare["peak"] < step["peak"]  # in turns the sampler lets its weights go
    assert held["optimizer"] < prepare["others"] < sum(held.values()) + sampling["arguments"]
    assert sampling["others"] == held["parameters"] + held["optimizer"]
    assert planned["fits"] is None and planned["floors"] is None


def test_a_reference_model_of_unrolled_layers_is_planned_as_a_run_holds_it():
    found = small_plan(model__layers="unroll", loss__kl="k3", loss__kl_coef=0.1)
    step, held = found["programs"][0], found["held"]
    assert held["reference"] == held["parameters"] > 0
    assert sum(held.values()) < step["arguments"] < 1.1 * sum(held.values())


def test_flops_follow_what_is_asked_for(planned):
    one = planned["model_flops"]
    settings = build(small_config(loss__kl="k3", loss__kl_coef=0.1))
    with_reference = plan.model_shapes(settings)
    mesh = plan.plan_mesh(settings, aot.target("cpu:8"))
    batch = abstract_batch(programs.shape_world(settings, with_reference))
    more = aot.count_flops(programs.trace_step(settings, with_reference, mesh, batch).jaxpr.jaxpr)
    # A reference is one more forward; forward and backward are three, the head's being computed again one more.
    assert 1.2 < more / one < 1.4


def test_the_table_says_it_all(planned):
    text = table(planned)
    for words in ("learner step", "sampling", "fsdp 2", "no limit is known", "nothing ran", "flops"):
        assert words in text
    assert "learner step: all-" in text


def test_the_cache_is_counted_as_the_sampler_holds_it():
    """Prompts on the devices that share their chains, chains on one device each."""
    c = small_config(mesh__fsdp=1, mesh__tensor=1, train__prompts_per_step=2, sampler__group_size=4)
    model = plan.model_shapes(c)
    bytes_of = lambda rows, length: sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: empty_cache(model, rows, length)))
    )
    for devices, prompts, rows in ((1, 2, 8), (2, 1, 4), (4, 1, 2)):
        c.mesh.fsdp = devices
        task, places = programs.shape_world(build(c), model), plan.plan_places(c, aot.target(f"cpu:{devices}"))
        of_prompts, of_rows = bytes_of(prompts, c.prompt.max_prompt), bytes_of(rows, task.sampler().max_sampled)
        assert programs.cache_bytes(task, places, 8) == {"prompts": of_prompts, "rows": of_rows}, devices
    c.sampler.slots = 4  # one row on each of the four devices, with its prompt
    task = programs.shape_world(build(c), model)
    wanted = {"prompts": bytes_of(1, c.prompt.max_prompt), "rows": bytes_of(1, task.sampler().max_sampled)}
    assert programs.cache_bytes(task, places, 8) == wanted
    assert programs.sampling_steps(task, places, 8) == 2 * task.sampler().max_sampled


def test_streams_are_planned_as_the_engine_runs_them():
    """Slots: prefill and decoding are programs of one device, whose memory counts the caches once."""
    found = small_plan(mesh__fsdp=4, mesh__tensor=2, train__prompts_per_step=4, sampler__slots=4)
    names = [row["name"] for row in found["programs"]]
    assert names == ["learner step", "sampler weights", "prefill", "sampling"] and found["sampler_streams"]
    prefill, sampling = found["programs"][2:]
    caches = sum(found["cache"].values())
    assert prefill["others"] == sampling["others"] + caches
    assert sampling["arguments"] > caches and not sampling["collectives"] and not prefill["collectives"]
    assert sampling["temporaries"] < caches + 2**20
    assert "sampling" in table(found)


@pytest.mark.parametrize(
    "topology, group, mesh",
    [("v5e:2x2", 2, {"data": 1, "fsdp": 4, "tensor": 1}), ("v5e:8x8", 32, {"data": 4, "fsdp": 16, "tensor": 1})],
    ids=["one host", "a host is a part of the slice"],
)
def test_the_real_programs_compile_for_a_described_tpu(topology, group, mesh):
    """With the splash kernel, bf16 and remat: two layers of SmolLM2. Of the large slice each host's sampler has half
    of a prompt's chains on four devices, for which that slice's compiler takes no program of several devices."""
    pytest.importorskip("libtpu")
    c = small_config(
        mesh__data=0,
        mesh__fsdp=0,
        mesh__tensor=1,
        train__prompts_per_step=4,
        sampler__group_size=group,
        model__preset="",
    )
    c.model.path, c.model.remat = "smollm2-135m", "full"
    where = aot.target(topology)
    model = dataclasses.replace(plan.model_shapes(c, "tpu"), layers=2)
    assert model.attention == "splash" and model.compute_dtype == "bfloat16"
    found = plan.make_plan(build(c), model, where, where.chip.memory, search=False)
    assert found["fits"] is True and {row["refused"] for row in found["programs"]} == {""} and found["mesh"] == mesh
    assert found["sampler_streams"] == (len(where.devices) > 4)
    assert all(row["cycles"] > 0 for row in found["programs"]) and found["programs"][0]["kernel_flops"] > 0
    assert found["estimates"]["step_over_floor"] > 1 and found["estimates"]["sampling_over_floor"] > 1
    assert "of its floor" in table(found)
    assert found["floors"]["step_traffic"] > 0 and "fsdp" in found["programs"][0]["collectives"][0]["axes"]


def test_memory_is_judged_to_the_byte(planned):
    total = max(row["total"] for row in planned["programs"])
    fits = small_plan(memory=total)
    assert fits["fits"] is True and fits["short"] == 0 and "advice" not in fits
    assert "verdict  fits, 0.00 GiB to spare" in table(fits)
    short = small_plan(memory=total - 1)
    assert short["fits"] is False and short["short"] == 1
    assert f"verdict  does not fit, 0.00 GiB short; {short['advice']}" in table(short)


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_made_to_by_the_cheapest_change():
    overrides = {"train__prompts_per_step": 16, "sampler__group_size": 16, "sampler__max_chain": 4}
    settings = build(small_config(**overrides, train__head_chunk=4096))
    model, where = plan.model_shapes(settings), aot.target("cpu:8")
    whole = plan.make_plan(settings, model, where, None, search=False)
    step, _, sampling = whole["programs"]
    memory = sampling["total"] + (step["total"] - sampling["total"]) // 2
    assert step["total"] > memory > sampling["total"]
    judged = [{**row, "fits": row["total"] <= memory} for row in whole["programs"]]
    short = {**whole, "memory": memory, "programs": judged}
    named = plan.advice(settings, model, where, short, search=False)
    for name in ("train.micro_batch_prompts", "model.remat", "mesh.tensor"):
        assert name in named
    tried = plan.advice(settings, model, where, short, search=True)
    assert tried.startswith("it fits with --config.train.micro_batch_prompts=")
    size = int(tried.rpartition("=")[2])
    c = small_config(**overrides, train__head_chunk=4096, train__micro_batch_prompts=size)
    room = memory - step["others"]
    program = programs.compile_step(build(c), model, plan.plan_mesh(c, where), room)
    assert 0 < program.peak <= room < step["peak"]


@pytest.mark.slow
def test_a_sampler_that_does_not_fit_gets_fewer_rows_at_one_time():
    overrides = {
        "train__prompts_per_step": 8,
        "sampler__group_size": 16,
        "sampler__max_chain": 512,
        "mesh__fsdp": 8,
        "mesh__tensor": 1,
        "train__micro_batch_prompts": 8,
        "prompt__max_answer": 4,
    }
    settings = build(small_config(**overrides))
    model, where = plan.model_shapes(settings), aot.target("cpu:8")
    whole = plan.make_plan(settings, model, where, None, search=False)
    sampling = whole["programs"][-1]
    memory = sampling["total"] - 1
    short = {**whole, "memory": memory, "programs": [{**r, "fits": r is not sampling} for r in whole["programs"]]}
    assert plan.advice(settings, model, where, short, search=True).startswith("it fits with --config.sampler.slots=")
    nothing = {**short, "memory": 1000, "programs": [{**r, "fits": False} for r in whole["programs"]]}
    assert "too large: learner step; no change that was tried" in plan.advice(settings, model, where, nothing, True)
    roomy = {**short, "memory": 2**40, "programs": [{**r, "fits": False} for r in whole["programs"]]}
    both = plan.advice(settings, model, where, roomy, search=True)
    assert both == "it fits with --config.train.micro_batch_prompts=4 --config.sampler.slots=64"


WIDER = {"mesh.data": 1, "mesh.fsdp": 8}


@pytest.mark.parametrize(
    "stages, needs, found, stuck",
    [
        # The mesh that the step needs is enough for the sampler: no slots beside it.
        (("step", "sampler"), {"step": 8, "sampler": 8}, WIDER, None),
        # A mesh that the step needs must leave the sampler, which did fit, its room, and the other way round.
        (("step",), {"step": 8, "sampler": 1}, {}, "step"),
        (("sampler",), {"step": 1, "sampler": 8}, {}, "sampler"),
        (("step",), {"step": 8, "sampler": 8}, WIDER, None),
        # What the step needs is said where the sampler cannot be helped.
        (("step", "sampler"), {"step": 8, "sampler": 9}, WIDER, "sampler"),
    ],
)
def test_the_search_judges_all_programs_of_another_mesh(stages, needs, found, stuck):
    c = small_config(train__prompts_per_step=8, sampler__group_size=16, mesh__data=8, mesh__fsdp=1, mesh__tensor=1)
    c.sampler.slots = 8  # of which no device has one to spare
    by_name = {"step": plan.changes, "sampler": plan.sampler_changes}
    names = {stage: name for name, stage in by_name.items()}
    result = plan.cheapest(
        c,
        aot.target("cpu:8"),
        [by_name[name] for name in stages],
        lambda new, stage: new.mesh.fsdp == needs[names[stage]],
    )
    assert result == (found, stuck and by_name[stuck])


def test_a_sampler_that_does_not_fit_names_its_own_settings():
    short = small_plan(memory=1000)
    assert short["fits"] is False and "sampler.group_size" in short["advice"]


def test_the_order_of_changes_is_micro_batches_then_remat_then_the_mesh():
    c = small_config(train__prompts_per_step=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    found = plan.changes(c, aot.target("cpu:8"))
    assert found == [
        {"train.micro_batch_prompts": 4},
        {"model.remat": "full"},
        {"model.remat": "full", "train.micro_batch_prompts": 4},
        {"mesh.data": 1, "mesh.fsdp": 4},
        {"mesh.data": 1, "mesh.fsdp": 4, "model.remat": "full", "train.micro_batch_prompts": 4},
    ]


def test_what_a_sampler_may_try_is_fewer_rows_then_a_wider_mesh():
    c = small_config(train__prompts_per_step=8, sampler__group_size=4, mesh__data=2, mesh__fsdp=4, mesh__tensor=1)
    assert plan.sampler_changes(c, aot.target("cpu:8")) == [
        {"sampler.slots": 16},
        {"sampler.slots": 8},
        {"mesh.data": 1, "mesh.fsdp": 8},
        {"mesh.data": 1, "mesh.fsdp": 8, "sampler.slots": 8},
    ]


def test_prompts_that_the_mesh_does_not_divide_are_refused():
    with pytest.raises(UserError, match=r"train.prompts_per_step is 2, which .* = 8 does not divide"):
        small_plan(mesh__fsdp=8, mesh__tensor=1)


def test_the_command_prints_one_object_and_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "rl_likelihood.plan", f"--config={config_file(tmp_path)}"]
    run = lambda *more: subprocess.run(
        [*command, *more], capture_output=True, text=True, cwd=Path(plan.__file__).parent.parent
    )
    done = run("--topology=cpu:8", "--json", "--memory_gib=4")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["topology"] == "cpu:8" and out["fits"] is True and out["memory"] == 4 * 2**30
    done = run("--topology=v5e:4x5")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "the nearest is v5e:4x" in done.stderr
