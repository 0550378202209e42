"""What a batch's shardings split."""

import pytest

from rl_likelihood.mesh import by_prompt, make_mesh
from tests.small import random_batch


@pytest.mark.parametrize("prompts, held", [(8, (1, 4)), (2, (1, 1)), (4, (2, 1))])
def test_too_few_prompts_for_the_mesh_are_split_by_their_rows(prompts, held):
    mesh, batch = make_mesh((2, 4, 1)), random_batch(0, p=prompts, g=4)
    at = by_prompt(mesh, batch)
    assert at.segment.shard_shape(batch.segment.shape)[:2] == held
    assert at.prompt.shard_shape(batch.prompt.shape)[0] == held[0], "rows share a prompt"
