"""Families and rotary embeddings beside those of the golden files: transformers on torch against ours."""

import pytest

pytest.importorskip("torch")

from rl_likelihood.model.decoder import ModelConfig
from rl_likelihood.model.rope import YarnScaling
from rl_likelihood.weights import files
from tests.parity.test_parity import assert_equal_outputs
from tests.weights.make_checkpoints import BASE, random_params

CONFIGS = {
    "mistral": ModelConfig("mistral", kv_heads=2, **BASE, tied=False),
    # An original context so short that some pairs turn often in it, some seldom and some in between.
    "yarn": ModelConfig(
        "mistral", kv_heads=2, **BASE, tied=False, rope_theta=50.0, rope_scaling=YarnScaling(4.0, 4.0, 0.5, 32, 1.2)
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_same_outputs(name, tmp_path):
    cfg = CONFIGS[name]
    params = random_params(cfg, seed=7)
    files.save(tmp_path, cfg, params)
    loaded, again = files.load(tmp_path)
    assert loaded == cfg
    assert_equal_outputs(tmp_path, loaded, again)
