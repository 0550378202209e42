"""Loading and saving: golden outputs of transformers, bit-equal round trips, GGUF, and refusals."""

import dataclasses
import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from safetensors.numpy import load_file, save_file

from rl_likelihood.model import weights
from rl_likelihood.model.assets import cached
from rl_likelihood.model.decoder import (
    Cache,
    ModelConfig,
    RopeScaling,
    decode_step,
    empty_cache,
    forward,
    head_matrix,
    prefill,
    unstack,
)
from rl_likelihood.model.head import logits
from rl_likelihood.shapes import UserError
from tests.model.make_checkpoints import BASE, CONFIGS, golden_ids, random_params, write

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(CONFIGS)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def all_logits(params, cfg, ids, lengths):
    return np.asarray(logits(forward(params, cfg, ids, lengths).prompt, head_matrix(params)))


def log_probs(z, ids):
    return np.take_along_axis(np.asarray(jax.nn.log_softmax(z[:, :-1])), ids[:, 1:, None], -1)[..., 0]


# Parity with transformers, by its committed outputs.


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_transformers(name, tmp_path):
    write(name, tmp_path)
    cfg, params = weights.load(tmp_path)
    assert cfg == CONFIGS[name]
    ids, lengths = golden_ids()
    z = all_logits(params, cfg, ids, lengths)
    golden = np.load(GOLDEN / "tiny.npz")
    np.testing.assert_allclose(z[np.arange(2), lengths - 1], golden[f"{name}/last_logits"], atol=1e-3)
    valid = np.arange(1, ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(np.where(valid, log_probs(z, ids), 0), golden[f"{name}/log_probs"], atol=1e-4)


def test_smollm2_equals_transformers():
    path = cached("smollm2-135m-instruct")
    if path is None:
        pytest.skip("SmolLM2 is not in the cache: python -m rl_likelihood.model.assets smollm2-135m-instruct")
    cfg, params = weights.load(path)
    golden = json.loads((GOLDEN / "smollm2.json").read_text())
    for text in golden["texts"]:
        ids = np.array([text["ids"]])
        z = all_logits(params, cfg, ids, np.array([ids.shape[1]]))
        np.testing.assert_allclose(log_probs(z, ids)[0], text["log_probs"], atol=1e-4)
    # One forward over prompt and greedy ids: each must be the arg-max where transformers chose it.
    ids = np.array([golden["prompt"] + golden["greedy"]])
    z = all_logits(params, cfg, ids, np.array([ids.shape[1]]))[0]
    chosen = z[len(golden["prompt"]) - 1 : -1].argmax(-1)
    assert chosen.tolist() == golden["greedy"]


@pytest.mark.parametrize("name", NAMES)
def test_decoding_equals_one_forward(name):
    """Every family's biases, norms and rotary scaling in `unstack`, `prefill` and `decode_step` too."""
    cfg = CONFIGS[name]
    params = random_params(cfg, 3)
    ids, lengths = golden_ids()
    cut = 20
    hidden = forward(params, cfg, ids[:1], lengths[:1]).prompt[0]
    stacked = jax.jit(unstack, static_argnums=1)(params, cfg)
    prompt, length = ids[:1, :cut], np.array([cut])
    last, shared = jax.jit(prefill, static_argnums=1)(stacked, cfg, prompt, length)
    np.testing.assert_allclose(last[0], hidden[cut - 1], atol=1e-4)
    cache = Cache(shared, empty_cache(cfg, 1, 1, 8))
    step = jax.jit(decode_step, static_argnums=1)
    for i in range(8):
        token = ids[:1, cut + i : cut + i + 1]
        h, cache = step(stacked, cfg, token, jnp.int32(i), length, np.ones((1, cut), bool), cache)
        np.testing.assert_allclose(h[0, 0], hidden[cut + i], atol=1e-4)


# Round trips.


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_equal(name, tmp_path):
    cfg, params = write(name, tmp_path)
    loaded_cfg, loaded = weights.load(tmp_path)
    assert loaded_cfg == cfg
    assert_same(loaded, params)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_device_arrays_are_saved(tmp_path):
    cfg, params = CONFIGS["qwen3"], random_params(CONFIGS["qwen3"], 1)
    weights.save(tmp_path, cfg, jax.tree.map(jnp.asarray, params))
    assert_same(weights.load(tmp_path)[1], params)


def test_shards_with_index(tmp_path):
    cfg, params = CONFIGS["llama3"], random_params(CONFIGS["llama3"], 1)
    weights.save(tmp_path, cfg, params, shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files == sorted(f.name for f in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert max((tmp_path / f).stat().st_size for f in files) < 100_000 + 10_000
    assert_same(weights.load(tmp_path)[1], params)


def test_bfloat16(tmp_path):
    cfg, params = CONFIGS["qwen2"], random_params(CONFIGS["qwen2"], 1)
    weights.save(tmp_path, cfg, params, "bfloat16")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    assert_same(weights.load(tmp_path, ml_dtypes.bfloat16)[1], half)
    assert_same(weights.load(tmp_path)[1], jax.tree.map(lambda x: x.astype(np.float32), half))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_saving_again_replaces(tmp_path):
    cfg, _ = write("llama", tmp_path)
    params = random_params(cfg, 99)
    weights.save(tmp_path, cfg, params)
    assert_same(weights.load(tmp_path)[1], params)
    assert not list(tmp_path.glob("*.partial"))


def test_stop_ids_are_written(tmp_path):
    cfg, params = CONFIGS["llama"], random_params(CONFIGS["llama"], 1)
    weights.save(tmp_path, cfg, params, generation={"eos_token_id": [2, 5], "pad_token_id": 0})
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [2, 5], "pad_token_id": 0}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == [2, 5] and config["pad_token_id"] == 0


def edit_config(folder: Path, **changes):
    """Change fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("remove", ["rope_parameters", "rope_scaling"])
def test_rope_fields_of_transformers_4_and_5(remove, tmp_path):
    write("llama3", tmp_path)
    changes = {remove: None} | ({"rope_theta": None} if remove == "rope_scaling" else {})
    edit_config(tmp_path, **changes)
    assert weights.load(tmp_path)[0] == CONFIGS["llama3"]


def test_unused_sliding_window_is_fine(tmp_path):
    write("qwen2", tmp_path)
    edit_config(tmp_path, sliding_window=16, use_sliding_window=False)
    assert weights.load(tmp_path)[0] == CONFIGS["qwen2"]


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_tied_configuration_with_an_output_matrix(tmp_path):
    """As transformers does: an equal one is the embedding, another one is believed."""
    cfg, params = write("llama", tmp_path)
    embed = params["embed"]
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": embed}))
    assert weights.load(tmp_path)[0] == cfg
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": embed + 1}))
    loaded_cfg, loaded = weights.load(tmp_path)
    assert not loaded_cfg.tied
    np.testing.assert_array_equal(loaded["head"], embed + 1)


# GGUF, written as llama.cpp writes it.

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
    weights.save(folder, cfg, params)
    expected = load_file(folder / "model.safetensors")
    names = {t.name: g.name for t, g in zip(weights.tensors(cfg), weights.tensors(cfg, "gguf"), strict=True)}
    for name, x in expected.items():
        q = Quant.F32 if x.ndim == 1 else quant
        stored = x
        heads = {"q_proj.weight": cfg.heads, "k_proj.weight": cfg.kv_heads}.get(".".join(name.split(".")[-2:]))
        if cfg.family == "llama" and heads:  # llama.cpp's order: the two halves of a head interleaved
            stored = x.reshape(heads, 2, cfg.head_dim // 2, -1).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(names[name], gguf.quantize(stored, q), raw_dtype=q)
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
    return weights.load(folder)[1]


@pytest.mark.parametrize("name", NAMES)
def test_gguf_of_every_family(name, tmp_path):
    cfg = GGUF_CONFIGS[name]
    params = random_params(cfg, 5)
    write_gguf(tmp_path / "model.gguf", cfg, params)
    for path in (tmp_path / "model.gguf", tmp_path):
        loaded_cfg, loaded = weights.load(path)
        assert loaded_cfg == cfg
        assert_same(loaded, params)


@pytest.mark.parametrize("quant", [Quant.F16, Quant.BF16, Quant.Q8_0, Quant.Q4_0, Quant.Q4_1, Quant.Q5_1])
def test_gguf_quantisations(quant, tmp_path):
    cfg = CONFIGS["llama"]
    params = random_params(cfg, 5)
    expected = write_gguf(tmp_path / "model.gguf", cfg, params, quant)
    loaded = weights.load(tmp_path / "model.gguf")[1]
    assert_same(loaded, expected)
    assert not np.array_equal(loaded["layers"]["q"], params["layers"]["q"])


# Refusals: each names the file and what is wrong.


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
    weights.save(folder, cfg, random_params(cfg, 0), shard_bytes=100_000)


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
    "architecture": (config(model_type="mamba"), ["model_type", "mamba", "llama, qwen2, qwen3"]),
    "activation": (config(hidden_act="gelu"), ["hidden_act", "gelu"]),
    "attention bias": (config(attention_bias=True), ["attention_bias"]),
    "mlp bias": (config(mlp_bias=True), ["mlp_bias"]),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), ["quantization_config", "gptq"]),
    "rope type": (config(rope_parameters={"rope_type": "yarn", "factor": 4.0}), ["rope_type", "yarn"]),
    "old rope type": (config(rope_scaling={"type": "linear", "factor": 4.0}), ["rope_type", "linear"]),
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
        ["model.safetensors", "model.layers.0.self_attn.q_proj.bias", "no place"],
    ),
    "too many layers": (config(num_hidden_layers=1), ["model.layers.1", "no place"]),
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
    refusal(lambda: weights.load(tmp_path), str(tmp_path), *parts)


def test_no_such_path(tmp_path):
    refusal(lambda: weights.load(tmp_path / "nowhere"), "nowhere", "no such")
    refusal(lambda: weights.load(tmp_path / "nowhere.gguf"), "nowhere.gguf", "no such")


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.001, 0.5, 0.95])
def test_truncated_gguf(keep, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, CONFIGS["llama"], random_params(CONFIGS["llama"], 0))
    truncate(file, keep)
    refusal(lambda: weights.load(file), "model.gguf", "truncated")


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
        refusal(lambda name=name: weights.load(tmp_path / f"{name}.gguf"), f"{name}.gguf", *parts)
    refusal(lambda: weights.load(tmp_path), "3 .gguf files")

    write_gguf(tmp_path / "rope.gguf", GGUF_CONFIGS["llama3"], random_params(GGUF_CONFIGS["llama3"], 0), rope_error=0.1)
    refusal(lambda: weights.load(tmp_path / "rope.gguf"), "rope.gguf", "rope_freqs.weight")

    other = ModelConfig(family="llama", kv_heads=2, **{**BASE, "mlp": 64})
    write_gguf(tmp_path / "shape.gguf", dataclasses.replace(other, mlp=64), random_params(other, 0))
    data = (tmp_path / "shape.gguf").read_bytes()
    key = b"llama.feed_forward_length"
    at = data.index(key) + len(key) + 4  # a uint32 after the name and its type
    (tmp_path / "shape.gguf").write_bytes(data[:at] + (96).to_bytes(4, "little") + data[at + 4 :])
    refusal(lambda: weights.load(tmp_path / "shape.gguf"), "blk.0.ffn_gate.weight", "[64, 64]", "[96, 64]")


def test_bad_save(tmp_path):
    cfg, params = CONFIGS["llama"], random_params(CONFIGS["llama"], 0)
    refusal(lambda: weights.save(tmp_path / "a", cfg, params, "int8"), "dtype", "int8")
    wrong = params | {"embed": params["embed"][:-1]}
    refusal(lambda: weights.save(tmp_path / "a", cfg, wrong), "embed", "319", "320")
    refusal(lambda: weights.save(tmp_path / "a", dataclasses.replace(cfg, tied=False), params), "head")
    assert not (tmp_path / "a").exists()
    weights.save(tmp_path / "a", cfg, params, shard_bytes=100_000)
    refusal(lambda: weights.save(tmp_path / "a", cfg, params), "already holds model-00001-of-")
    assert_same(weights.load(tmp_path / "a")[1], params)
    (tmp_path / "file").write_text("")
    refusal(lambda: weights.save(tmp_path / "file", cfg, params), "is a file")
