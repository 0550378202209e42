"""What a batch's shardings split."""

import pytest

from rl_likelihood.config import build
from rl_likelihood.mesh import AXES, WITH_CONTEXT, by_prompt, make_mesh
from rl_likelihood.runtime.devices import make_devices
from tests.runs import small_config
from tests.small import random_batch


@pytest.mark.parametrize("prompts, held", [(8, (1, 4)), (2, (1, 1)), (4, (2, 1))])
def test_too_few_prompts_for_the_mesh_are_split_by_their_rows(prompts, held):
    mesh, batch = make_mesh((2, 4, 1)), random_batch(0, p=prompts, g=4)
    at = by_prompt(mesh, batch)
    assert at.segment.shard_shape(batch.segment.shape)[:2] == held
    assert at.prompt.shard_shape(batch.prompt.shape)[0] == held[0], "rows share a prompt"


@pytest.mark.parametrize("context, axes, fsdp", [(1, AXES, 4), (2, WITH_CONTEXT, 2)])
def test_a_mesh_has_an_axis_of_context_only_if_it_is_asked_for(context, axes, fsdp):
    c = build(
        small_config(
            mesh__data=1,
            mesh__fsdp=0,
            mesh__context=context,
            mesh__tensor=2,
            sampler__tensor=2,
            train__prompts_per_step=4,
        )
    )
    devices = make_devices(c)
    assert devices.learner.axis_names == axes and devices.learner.shape["fsdp"] == fsdp
    assert devices.sampler.axis_names == AXES, "the sampler has more devices for rows instead"
    # The devices that share the sampler's weights are those that share the learner's.
    assert (devices.sampler.devices.reshape(-1, 2) == devices.learner.devices.reshape(-1, 2)).all()
