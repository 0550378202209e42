"""An exported folder of adapters, loaded by peft onto the model that they stand on, gives our logits."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import jax
from peft import PeftModel

from rl_likelihood.model.decoder import forward, head_matrix
from rl_likelihood.model.head import logits
from rl_likelihood.model.lora import MATRICES, LoraConfig, effective
from rl_likelihood.weights import files
from tests.model.test_lora import random_adapters
from tests.parity.make_golden import torch_logits, torch_model
from tests.weights.make_checkpoints import golden_ids, write


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name, targets", [("llama", MATRICES), ("qwen2", ("q", "o", "down"))])
def test_peft_computes_our_logits(name, targets, tmp_path):
    cfg, params = write(name, tmp_path / "base")
    lora = LoraConfig(rank=3, alpha=12.0, targets=targets)
    adapters = random_adapters(lora, cfg)
    files.save_adapters(tmp_path / "adapters", adapters, lora, str(tmp_path / "base"), cfg.family)
    ids, lengths = golden_ids()
    hidden = jax.jit(lambda p: forward(p, cfg, ids, lengths).prompt)
    ours, plain = (np.asarray(logits(hidden(p), head_matrix(p))) for p in (effective(params, adapters, lora), params))
    theirs = torch_logits(
        PeftModel.from_pretrained(torch_model(tmp_path / "base"), tmp_path / "adapters"), ids, lengths
    )
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(ours[valid], theirs[valid], atol=2e-3)
    assert np.abs(ours - plain)[valid].max() > 0.05
