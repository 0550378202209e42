"""Bad model folders, each refused in one sentence that names the file and what is wrong."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl_likelihood.errors import UserError
from rl_likelihood.weights import files
from tests.weights.make_checkpoints import CONFIGS, random_params, write


def edit_config(folder: Path, **changes):
    """Change fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(file: Path, keep: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


def drop(name):
    return lambda folder: edit_tensors(folder, lambda t: t.pop(name))


def put(name, value):
    return lambda folder: edit_tensors(folder, lambda t: t.update({name: value}))


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    cfg = CONFIGS["llama"]
    files.save(folder, cfg, random_params(cfg, 0), shard_bytes=100_000)


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00004.safetensors").unlink()


def empty_shard(folder: Path) -> None:
    shard(folder)
    save_file({}, folder / "model-00002-of-00004.safetensors")


NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"
BAD_FOLDERS = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "no such file"]),
    "broken config": (lambda f: truncate(f / "config.json", 0.5), ["config.json", "not valid JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "list"]),
    "missing field": (config(num_hidden_layers=None), ["config.json", "num_hidden_layers"]),
    "architecture": (config(model_type="mamba"), ["model_type", "mamba", "llama, "]),
    "activation": (config(hidden_act="gelu"), ["hidden_act", "gelu"]),
    "attention bias": (config(attention_bias=True), ["attention_bias"]),
    "mlp bias": (config(mlp_bias=True), ["mlp_bias"]),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), ["quantization_config", "gptq"]),
    "rope type": (config(rope_parameters={"rope_type": "longrope", "factor": 4.0}), ["rope_type", "longrope"]),
    "old rope type": (config(rope_scaling={"type": "su", "factor": 4.0}), ["rope_type", "su"]),
    "linear rope without factor": (config(rope_scaling={"type": "linear"}), ["linear", "factor"]),
    "rope without factor": (config(rope_scaling={"rope_type": "llama3"}), ["llama3", "factor"]),
    "rope per layer": (config(rope_parameters={"full_attention": {"rope_theta": 1.0}}), ["rope_parameters"]),
    "partial rotary": (config(partial_rotary_factor=0.5), ["partial_rotary_factor", "0.5"]),
    "sliding layers": (config(layer_types=["full_attention", "sliding_attention"]), ["sliding_window"]),
    "sliding window": (config(use_sliding_window=True, sliding_window=8, max_window_layers=1), ["sliding_window", "8"]),
    "heads": (config(num_key_value_heads=3), ["num_attention_heads = 4", "num_key_value_heads = 3"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "no such weight file"]),
    "only bin": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ["model.safetensors", "convert the .bin"],
    ),
    "truncated": (lambda f: truncate(f / "model.safetensors", 0.7), ["model.safetensors", "truncated"]),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 0.0001), ["model.safetensors", "truncated"]),
    "missing tensor": (drop(GATE), [GATE, "[96, 64]", "missing"]),
    "missing norm": (drop(NORM), [NORM, "[64]", "missing"]),
    "wrong shape": (put(GATE, np.zeros((95, 64), np.float32)), ["model.safetensors", GATE, "[95, 64]", "[96, 64]"]),
    "transposed": (put(GATE, np.zeros((64, 96), np.float32)), ["model.safetensors", GATE, "[64, 96]", "[96, 64]"]),
    "wrong type": (put(GATE, np.zeros((96, 64), np.int8)), ["model.safetensors", GATE, "I8"]),
    "left over": (
        put("model.layers.0.self_attn.q_proj.bias", np.zeros(64, np.float32)),
        ["model.safetensors", "model.layers.0.self_attn.q_proj.bias", "does not belong"],
    ),
    "too many layers": (config(num_hidden_layers=1), ["model.layers.1", "does not belong"]),
    "lost shard": (lose_shard, ["model-00002-of-00004.safetensors", "no such weight file"]),
    "empty shard": (empty_shard, ["model-00002-of-00004.safetensors", "listed in model.safetensors.index.json"]),
}


def refusal(call, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    for part in parts:
        assert part in message, message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(case, tmp_path):
    spoil, parts = BAD_FOLDERS[case]
    write("llama", tmp_path)
    spoil(tmp_path)
    refusal(lambda: files.load(tmp_path), str(tmp_path), *parts)


def test_no_such_path(tmp_path):
    refusal(lambda: files.load(tmp_path / "nowhere"), "nowhere", "no such")
    refusal(lambda: files.load(tmp_path / "nowhere.gguf"), "nowhere.gguf", "no such")


def test_bad_save(tmp_path):
    cfg, params = CONFIGS["llama"], random_params(CONFIGS["llama"], 0)
    wrong = params | {"embed": params["embed"][:-1]}
    refusal(lambda: files.save(tmp_path / "a", cfg, wrong), "embed", "319", "320")
    refusal(lambda: files.save(tmp_path / "a", dataclasses.replace(cfg, tied=False), params), "head")
    assert not (tmp_path / "a").exists()
    files.save(tmp_path / "a", cfg, params, shard_bytes=100_000)
    refusal(lambda: files.save(tmp_path / "a", cfg, params), "already holds model-00001-of-")
    jax.tree.map(np.testing.assert_array_equal, files.load(tmp_path / "a")[1], params)
    (tmp_path / "file").write_text("")
    refusal(lambda: files.save(tmp_path / "file", cfg, params), "is a file")
