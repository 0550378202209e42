"""Families and rotary embeddings beside those of the golden files: transformers on torch against ours."""

import pytest

pytest.importorskip("torch")

from rl_likelihood.weights import files
from tests.parity.test_parity import assert_equal_outputs
from tests.weights.make_checkpoints import random_params
from tests.weights.test_families import CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_same_outputs(name, tmp_path):
    cfg = CONFIGS[name]
    params = random_params(cfg, seed=7)
    files.save(tmp_path, cfg, params)
    loaded, again = files.load(tmp_path)
    assert loaded == cfg
    assert_equal_outputs(tmp_path, loaded, again)
