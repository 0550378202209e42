"""Runs with LoRA: what they keep, resume and export."""

import json
import shutil

import jax
import numpy as np
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.export import export, export_adapters, refuse_workdir
from rl_likelihood.model.lora import LoraConfig, as_base, merged
from rl_likelihood.runtime import checkpoint, run_files
from tests.runs import rows, run

LORA = {"lora__rank": 2, "lora__targets": ("q", "v", "up"), "optim__lr": 1e-2, "train__steps": 3}
KL = {"loss__kl": "k3", "loss__kl_coef": 0.01}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("lora") / "run", **KL, **LORA)


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(unbroken, tmp_path):
    kl = [row["loss/kl"] for row in rows(unbroken, "metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-7, "the base is the reference"
    broken = shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "3")
    run(broken, **KL, **LORA)
    assert rows(broken, "metrics.jsonl") == rows(unbroken, "metrics.jsonl")
    again, once = (checkpoint.restore_params(folder)[1] for folder in (broken, unbroken))
    jax.tree.map(np.testing.assert_array_equal, again, once)


def test_a_checkpoint_holds_adapters_and_is_read_as_one_model(unbroken):
    cfg, whole, step, _ = checkpoint.restore_params(unbroken)
    adapters = checkpoint.restore_params(unbroken, alone=True)[1]
    base = checkpoint.restore_params(unbroken / "initial")[1]
    assert step == 3 and set(adapters["layers"]) == {f"{n}_{part}" for n in ("q", "v", "up") for part in "ab"}
    expected = merged(base, adapters, LoraConfig(2, targets=LORA["lora__targets"]))
    jax.tree.map(np.testing.assert_array_equal, whole, expected)
    assert np.abs(whole["layers"]["q"] - base["layers"]["q"]).max() > 1e-4
    np.testing.assert_array_equal(whole["layers"]["o"], base["layers"]["o"])
    last = run_files.read(unbroken / "eval.jsonl")[-1]
    assert last["stage"].startswith("after 3 steps")
    assert cfg.width == whole["embed"].shape[1]


def test_a_run_on_an_int8_base_resumes_and_is_read_as_the_model_that_was_trained(tmp_path):
    how = KL | LORA | {"lora__base_dtype": "int8"}
    once = run(tmp_path / "run", **how)
    broken = shutil.copytree(once, tmp_path / "again")
    shutil.rmtree(broken / "checkpoints" / "3")
    run(broken, **how)
    assert rows(broken, "metrics.jsonl") == rows(once, "metrics.jsonl")
    whole, stored = checkpoint.restore_params(once)[1], checkpoint.restore_params(once / "initial")[1]
    assert {x.dtype for x in jax.tree.leaves(stored)} == {np.dtype("bfloat16")}
    lora = LoraConfig(2, targets=LORA["lora__targets"], base_dtype="int8")
    o = np.asarray(as_base(stored, lora)["layers"]["o_scale"])[:, None, None]
    steps = np.asarray(whole["layers"]["o"]) / o
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_a_run_starts_from_the_model_of_another_s_adapters(unbroken, tmp_path):
    run(tmp_path / "next", model__preset="", model__path=str(unbroken), train__steps=1, eval__prompts=0)
    assert len(run_files.read(tmp_path / "next" / "metrics.jsonl")) == 1


def test_a_resumed_run_knows_the_folder_of_the_model_that_it_began_with(unbroken, tmp_path):
    folder, workdir, out = tmp_path / "model", tmp_path / "run", tmp_path / "out"
    cfg, params, _, path = checkpoint.restore_params(unbroken / "initial")
    export(cfg, params, path, folder)
    of_folder = {"model__preset": "", "model__path": str(folder), "eval__prompts": 0}
    run(workdir, **LORA, **of_folder)
    shutil.rmtree(workdir / "checkpoints" / "3")
    run(workdir, **LORA, **of_folder)
    cfg, adapters, step, path = checkpoint.restore_params(workdir, alone=True)
    assert step == 3 and path == str(folder)
    with pytest.raises(UserError, match="the folder that the run started from"):
        refuse_workdir(folder, workdir, path)
    export_adapters(workdir, cfg, adapters, out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert not (out / "base").exists()


def test_adapters_of_a_run_without_any_are_refused(tmp_path):
    plain = run(tmp_path / "run", train__steps=1, eval__prompts=0)
    with pytest.raises(UserError, match="lora.rank"):
        export_adapters(plain, *checkpoint.restore_params(plain)[:2], tmp_path / "out")
