"""Runs with train.packing: the numbers of the run without it, and the sizes that are planned."""

import json
import math

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.learner.packing import abstract_packing, pack
from rl_likelihood.mesh import make_mesh
from rl_likelihood.runtime.devices import make_devices, using
from rl_likelihood.shapes import CHAIN
from rl_likelihood.task import load, step_batch
from rl_likelihood.train import run
from tests.runs import small_config
from tests.small import random_batch, rewarded

FOUR = {"train__prompts_per_step": 4, "mesh__fsdp": 2, "mesh__tensor": 1, "mesh__data": 1, "eval__prompts": 0}


@pytest.mark.parametrize("shape, micro", [((1, 1, 1), 0), ((1, 1, 1), 2), ((2, 2, 2), 4)])
def test_what_is_planned_is_the_batch_of_full_rows(shape, micro):
    batch, cfg = random_batch(3, 8, 4, t=12), rewarded("log_prob", micro_batch_prompts=micro)
    full = batch.replace(segment=np.full(batch.segment.shape, CHAIN))
    with using(make_mesh(shape, jax.devices()[: int(np.prod(shape))])):
        planned, packed = abstract_packing(batch, cfg), pack(full, cfg).packing
    assert jax.tree.structure(planned) == jax.tree.structure(packed), "sizes included"
    assert [x.shape for x in jax.tree.leaves(planned)] == [x.shape for x in jax.tree.leaves(packed)]


def test_the_planned_step_is_packed_where_the_run_s_is():
    for packing in (False, True):
        config = build(small_config(**FOUR, train__packing=packing))
        task, _ = load(config)
        batch = step_batch(config, task.fmt, make_devices(config, jax.devices()[:2]).learner)
        assert (batch.packing is not None) == packing
    assert batch.packing.tokens == 2 * math.prod(batch.completion.shape[1:]), "two prompts on each of two devices"


def test_a_packed_run_has_the_numbers_of_the_padded_one(tmp_path, capsys):
    with jax.default_device(jax.devices()[0]):
        for packing in (False, True):
            changes = {"mesh__fsdp": 4, "mesh__data": 2, "mesh__tensor": 1, "train__prompts_per_step": 8}
            c = small_config(**FOUR | changes, train__steps=2, train__packing=packing, loss__kl="k3", loss__kl_coef=0.1)
            run(build(c), tmp_path / str(packing))
    padded, packed = (
        [json.loads(line) for line in (tmp_path / str(x) / "metrics.jsonl").read_text().splitlines()]
        for x in (False, True)
    )
    for a, b in zip(padded, packed, strict=True):
        for name in ("reward/mean", "loss/answer", "loss/kl", "grad/norm", "policy/entropy", "chain/length"):
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-6), (a["step"], name)


def test_prompts_that_do_not_divide_are_refused():
    config = build(
        small_config(**FOUR | {"train__prompts_per_step": 1, "sampler__group_size": 4, "train__packing": True})
    )
    with pytest.raises(UserError, match=r"train\.packing.*train\.micro_batch_prompts"):
        make_devices(config, jax.devices()[:2])
