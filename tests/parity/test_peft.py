"""An exported folder of adapters, loaded by peft onto the model that they stand on, gives our logits."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import jax
from peft import PeftModel

from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.head import logits
from rl_likelihood.model.lora import MATRICES, LoraConfig, effective
from rl_likelihood.runtime import checkpoint
from rl_likelihood.weights import files
from tests.commands import run_each
from tests.model.test_lora import random_adapters
from tests.parity.make_golden import torch_logits, torch_model
from tests.runs import run
from tests.weights.make_checkpoints import golden_ids, write


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name, targets", [("llama", MATRICES), ("qwen2", ("q", "o", "down"))])
def test_peft_computes_our_logits(name, targets, tmp_path):
    cfg, params = write(name, tmp_path / "base")
    lora = LoraConfig(rank=3, alpha=12.0, targets=targets)
    adapters = random_adapters(lora, cfg)
    files.save_adapters(tmp_path / "adapters", adapters, lora, str(tmp_path / "base"))
    ids, lengths = golden_ids()
    hidden = jax.jit(lambda p: forward(p, cfg, ids, lengths).prompt)
    ours, plain = (np.asarray(logits(hidden(p), head_matrix(p))) for p in (effective(params, adapters, lora), params))
    theirs = torch_logits(
        PeftModel.from_pretrained(torch_model(tmp_path / "base"), tmp_path / "adapters"), ids, lengths
    )
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(ours[valid], theirs[valid], atol=2e-3)
    assert np.abs(ours - plain)[valid].max() > 0.05


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_peft_loads_what_the_command_wrote(base_dtype, tmp_path):
    """A run from random weights, so that the command writes their base too, rounded as in training."""
    lora = {"lora__rank": 2, "lora__targets": ("q", "v", "up"), "optim__lr": 1e-2, "train__steps": 3}
    folder = run(tmp_path / "run", eval__prompts=0, lora__base_dtype=base_dtype, **lora)
    out = tmp_path / "out"
    (done,) = run_each("export", [[f"--workdir={folder}", f"--out={out}", "--adapters"]])
    assert done.returncode == 0 and "adapters of" in done.stdout, done.stderr
    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((out / "base").resolve())
    cfg, trained = checkpoint.restore_params(folder)[:2]
    plain = checkpoint.restore_params(folder / checkpoint.INITIAL)[1]
    lengths = np.array([12, 7])
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 12)).astype(np.int32)
    hidden = jax.jit(lambda p: forward(p, cfg, ids, lengths).prompt)
    ours, before = (np.asarray(logits(hidden(p), head_matrix(p))) for p in (trained, plain))
    theirs = torch_logits(PeftModel.from_pretrained(torch_model(base), out), ids, lengths)
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(ours[valid], theirs[valid], atol=1e-4)
    assert np.abs(ours - before)[valid].max() > 1e-2
