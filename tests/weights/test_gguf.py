"""GGUF files, written here as llama.cpp writes them, and read back."""

import dataclasses
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from safetensors.numpy import load_file, save_file

from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.model.rope import RopeScaling
from rl_likelihood.weights import files
from rl_likelihood.weights.families import FAMILIES
from tests.weights.make_checkpoints import BASE, CONFIGS, random_params
from tests.weights.test_refused import refusal, truncate

GGUF_CONFIGS = CONFIGS | {
    # The divisors in GGUF files are those of Llama 3.1 and later only.
    "llama3": dataclasses.replace(
        CONFIGS["llama3"], rope_theta=500_000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192)
    )
}


def write_gguf(file: Path, cfg: ModelConfig, params, quant: Quant = Quant.F32, **changes):
    """A GGUF file of `params`, and the parameters that survive the quantisation of its matrices."""
    arch = changes.get("arch", cfg.family)
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(cfg.layers)
    writer.add_context_length(cfg.max_position)
    writer.add_embedding_length(cfg.width)
    writer.add_feed_forward_length(cfg.mlp)
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    for key, value in changes.get("metadata", {}).items():
        writer.add_uint32(f"{arch}.{key}", value)

    folder = file.parent / f"{file.stem}-hf"
    files.save(folder, cfg, params)
    expected = load_file(folder / "model.safetensors")
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[cfg.family.upper()], cfg.layers)  # not our own table
    for name, x in expected.items():
        q = Quant.F32 if x.ndim == 1 else quant
        stored = x
        heads = {"q_proj.weight": cfg.heads, "k_proj.weight": cfg.kv_heads}.get(".".join(name.split(".")[-2:]))
        if cfg.family == "llama" and heads:  # llama.cpp's order: the two halves of a head interleaved
            stored = x.reshape(heads, 2, cfg.head_dim // 2, -1).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(theirs.get_name(name, (".weight", ".bias")), gguf.quantize(stored, q), raw_dtype=q)
        expected[name] = gguf.dequantize(gguf.quantize(x, q), q)
    if cfg.rope_scaling is not None:
        s = cfg.rope_scaling
        freq = cfg.rope_theta ** (-np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        wave = 2 * np.pi / freq
        smooth = (s.original_max_position / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        middle = 1 / ((1 - smooth) / s.factor + smooth)
        long, short = s.original_max_position / s.low_freq_factor, s.original_max_position / s.high_freq_factor
        divisors = np.where(wave > long, s.factor, np.where(wave < short, 1.0, middle)) + changes.get("rope_error", 0)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, folder / "model.safetensors", metadata={"format": "pt"})
    return files.load(folder)[1]


def test_families_of_gguf_files_are_architectures_of_llama_cpp():
    readable = {name for name, family in FAMILIES.items() if family.gguf}
    assert readable == {"llama", "qwen2", "qwen3"} and readable <= set(gguf.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize("name", GGUF_CONFIGS)
def test_gguf_of_every_family(name, tmp_path):
    cfg = GGUF_CONFIGS[name]
    params = random_params(cfg, 5)
    write_gguf(tmp_path / "model.gguf", cfg, params)
    for path in (tmp_path / "model.gguf", tmp_path):
        loaded_cfg, loaded = files.load(path)
        assert loaded_cfg == cfg
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("quant", [Quant.F16, Quant.BF16, Quant.Q8_0, Quant.Q4_0, Quant.Q4_1, Quant.Q5_1])
def test_gguf_quantisations(quant, tmp_path):
    cfg = CONFIGS["llama"]
    params = random_params(cfg, 5)
    expected = write_gguf(tmp_path / "model.gguf", cfg, params, quant)
    loaded = files.load(tmp_path / "model.gguf")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert not np.array_equal(loaded["layers"]["q"], params["layers"]["q"])


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.001, 0.5, 0.95])
def test_truncated_gguf(keep, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, CONFIGS["llama"], random_params(CONFIGS["llama"], 0))
    truncate(file, keep)
    refusal(lambda: files.load(file), "model.gguf", "truncated")


def test_bad_gguf(tmp_path):
    cfg = CONFIGS["llama"]
    params = random_params(cfg, 0)
    cases = {
        "arch": ({"arch": "falcon"}, ["general.architecture", "falcon"]),
        "layers": ({"metadata": {"expert_count": 8}}, ["expert_count", "8"]),
        "window": ({"metadata": {"attention.sliding_window": 64}}, ["sliding_window", "64"]),
    }
    for name, (changes, parts) in cases.items():
        write_gguf(tmp_path / f"{name}.gguf", cfg, params, **changes)
        refusal(lambda name=name: files.load(tmp_path / f"{name}.gguf"), f"{name}.gguf", *parts)
    refusal(lambda: files.load(tmp_path), "3 .gguf files")

    write_gguf(tmp_path / "rope.gguf", GGUF_CONFIGS["llama3"], random_params(GGUF_CONFIGS["llama3"], 0), rope_error=0.1)
    refusal(lambda: files.load(tmp_path / "rope.gguf"), "rope.gguf", "rope_freqs.weight")

    other = ModelConfig(family="llama", kv_heads=2, **{**BASE, "mlp": 64})
    write_gguf(tmp_path / "shape.gguf", dataclasses.replace(other, mlp=64), random_params(other, 0))
    data = (tmp_path / "shape.gguf").read_bytes()
    key = b"llama.feed_forward_length"
    at = data.index(key) + len(key) + 4  # a uint32 after the name and its type
    (tmp_path / "shape.gguf").write_bytes(data[:at] + (96).to_bytes(4, "little") + data[at + 4 :])
    refusal(lambda: files.load(tmp_path / "shape.gguf"), "blk.0.ffn_gate.weight", "[64, 64]", "[96, 64]")
