"""The programs that `plan` compiles: their batch, parameters and caches have the shapes of a run."""

import dataclasses

import jax
import pytest

from rl_likelihood import plan
from rl_likelihood.config import build
from rl_likelihood.model.decoding import empty_cache
from rl_likelihood.planning import aot, programs
from rl_likelihood.planning.programs import Plan, byte_format
from rl_likelihood.planning.search import devices_of
from rl_likelihood.task import abstract_batch, load
from tests.runs import small_config


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
