"""Rows split by tokens over mesh.context: gradients, metrics and values of rows are those of one device."""

import jax
import pytest

from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.lora import LoraConfig
from rl_likelihood.runtime.devices import using
from tests.learner.test_packing import BOTH, CASES, KL, MODEL, ONE, TWO, assert_close, results
from tests.model.test_experts import MOE
from tests.small import rewarded

INT8 = LoraConfig(rank=2, alpha=4.0, targets=("q", "o", "down"), base_dtype="int8")
SPLIT = {
    "adapters": (*CASES["adapters"], MODEL),
    "adapters of an int8 base": (ONE, rewarded("log_prob", lora=INT8), MODEL),
    "experts": (TWO, rewarded("jepo", loss=KL, **BOTH), MOE),
    "other answers": (*CASES["other answers"], MODEL),
    "environment": (*CASES["environment"], MODEL),
}


@pytest.mark.parametrize("name", SPLIT)
def test_tokens_on_many_devices_are_tokens_on_one(name):
    """24 tokens, or 31 with other answers, over context 2, with prompts over fsdp and heads or experts over tensor."""
    batch, cfg, model = SPLIT[name]
    mesh = make_mesh((1, 2, 2, 2), jax.devices())
    with using(mesh):
        split = results(batch, cfg, model, mesh)
    assert_close(results(batch, cfg, model), split)
