"""What `plan` suggests when a run does not fit: which changes it tries, in which order, and what it then says."""

import pytest

from rl_likelihood import plan
from rl_likelihood.config import build
from rl_likelihood.planning import aot, programs, search
from rl_likelihood.planning.programs import Plan
from tests.runs import small_config


def planned(settings):
    """The plan on cpu:8, and its report without a memory limit."""
    where = aot.target("cpu:8")
    model = plan.model_shapes(settings)
    made = Plan(settings, model, search.devices_of(settings, where), len(where.devices))
    return made, plan.make_plan(settings, model, where, None, search=False)


def judged(report, memory, fits):
    """The report as if `memory` bytes were the limit and the named programs fitted."""
    rows = [{**row, "fits": row["name"] in fits} for row in report["programs"]]
    return {**report, "memory": memory, "programs": rows}


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_made_to_by_the_cheapest_change():
    overrides = {"train__prompts_per_step": 16, "sampler__group_size": 16, "sampler__max_chain": 4}
    made, whole = planned(build(small_config(**overrides, train__head_chunk=4096)))
    where = aot.target("cpu:8")
    step, _, sampling = whole["programs"]
    memory = sampling["total"] + (step["total"] - sampling["total"]) // 2
    assert step["total"] > memory > sampling["total"]
    short = judged(whole, memory, {row["name"] for row in whole["programs"] if row["total"] <= memory})
    named = search.advice(made, short, where, search=False)
    for name in ("train.micro_batch_prompts", "model.remat", "mesh.tensor"):
        assert name in named
    tried = search.advice(made, short, where, search=True)
    assert tried.startswith("it fits with --config.train.micro_batch_prompts=")
    smaller = build(small_config(**overrides, train__head_chunk=4096, train__micro_batch_prompts=int(tried[-1])))
    limit = memory - step["others"]
    program = programs.compile_step(made._replace(config=smaller, devices=search.devices_of(smaller, where)), limit)
    assert 0 < program.peak <= limit < step["peak"]


@pytest.mark.slow
def test_a_sampler_that_does_not_fit_gets_fewer_rows_at_once():
    overrides = {
        "train__prompts_per_step": 8,
        "sampler__group_size": 16,
        "sampler__max_chain": 512,
        "mesh__fsdp": 8,
        "mesh__tensor": 1,
        "train__micro_batch_prompts": 8,
        "prompt__max_answer": 4,
    }
    made, whole = planned(build(small_config(**overrides)))
    where = aot.target("cpu:8")
    short = judged(whole, whole["programs"][-1]["total"] - 1, {"learner step", "sampler weights"})
    assert search.advice(made, short, where, True).startswith("it fits with --config.sampler.slots=")
    assert "too large: learner step; no change" in search.advice(made, judged(whole, 1000, ()), where, True)
    both = search.advice(made, judged(whole, 2**40, ()), where, True)
    assert both == "it fits with --config.train.micro_batch_prompts=4 --config.sampler.slots=64"


WIDER = {"mesh.data": 1, "mesh.fsdp": 8}


@pytest.mark.parametrize(
    "stages, needs, helpful, stuck",
    [
        # The mesh that the step needs is enough for the sampler: no slots are added.
        (("step", "sampler"), {"step": 8, "sampler": 8}, WIDER, None),
        # The sampler fitted, and must still fit on the mesh that the step needs; and the other way round.
        (("step",), {"step": 8, "sampler": 1}, {}, "step"),
        (("sampler",), {"step": 1, "sampler": 8}, {}, "sampler"),
        (("step",), {"step": 8, "sampler": 8}, WIDER, None),
        # What helps the step is returned even if nothing helps the sampler.
        (("step", "sampler"), {"step": 8, "sampler": 9}, WIDER, "sampler"),
    ],
)
def test_the_search_judges_all_programs_of_another_mesh(stages, needs, helpful, stuck):
    sizes = {"train__prompts_per_step": 8, "sampler__group_size": 16, "sampler__slots": 8}  # one slot per device
    settings = build(small_config(mesh__data=8, mesh__fsdp=1, mesh__tensor=1, **sizes))
    by_name = {"step": search.changes, "sampler": search.sampler_changes}
    names = {stage: name for name, stage in by_name.items()}

    def fits(new, stage):
        return new.mesh.fsdp == needs[names[stage]]

    result = search.cheapest(settings, aot.target("cpu:8"), [by_name[name] for name in stages], fits)
    assert result == (helpful, stuck and by_name[stuck])


def test_the_order_of_changes_is_micro_batches_then_remat_then_the_mesh():
    settings = build(small_config(train__prompts_per_step=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2))
    assert search.changes(settings, aot.target("cpu:8")) == [
        {"train.micro_batch_prompts": 4},
        {"model.remat": "full"},
        {"model.remat": "full", "train.micro_batch_prompts": 4},
        {"mesh.data": 1, "mesh.fsdp": 4},
        {"mesh.data": 1, "mesh.fsdp": 4, "model.remat": "full", "train.micro_batch_prompts": 4},
    ]


def test_the_changes_for_a_sampler_are_fewer_rows_then_a_wider_mesh():
    sizes = {"train__prompts_per_step": 8, "sampler__group_size": 4}
    settings = build(small_config(mesh__data=2, mesh__fsdp=4, mesh__tensor=1, **sizes))
    assert search.sampler_changes(settings, aot.target("cpu:8")) == [
        {"sampler.slots": 16},
        {"sampler.slots": 8},
        {"mesh.data": 1, "mesh.fsdp": 8},
        {"mesh.data": 1, "mesh.fsdp": 8, "sampler.slots": 8},
    ]
