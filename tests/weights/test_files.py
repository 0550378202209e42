"""Loading and saving: golden outputs of transformers, and round trips that are equal bit for bit."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.decoding import Cache, aligned_positions, decode_step, decoding_layout, empty_cache, prefill
from rl_likelihood.model.head import logits
from rl_likelihood.weights import files
from rl_likelihood.weights.assets import cache_path
from tests.weights.make_checkpoints import CONFIGS, golden_ids, random_params, write
from tests.weights.test_refused import edit_config, edit_tensors

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
    cfg, params = files.load(tmp_path)
    assert cfg == CONFIGS[name]
    ids, lengths = golden_ids()
    z = all_logits(params, cfg, ids, lengths)
    golden = np.load(GOLDEN / "tiny.npz")
    np.testing.assert_allclose(z[np.arange(2), lengths - 1], golden[f"{name}/last_logits"], atol=1e-3)
    valid = np.arange(1, ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(np.where(valid, log_probs(z, ids), 0), golden[f"{name}/log_probs"], atol=1e-4)


def test_smollm2_equals_transformers():
    path = cache_path("smollm2-135m-instruct")
    if not path.is_file():
        pytest.skip("SmolLM2 is not in the cache: python -m rl_likelihood.weights.assets smollm2-135m-instruct")
    cfg, params = files.load(path)
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
    """Every family's biases, norms and rotary scaling in `decoding_layout`, `prefill` and `decode_step` too."""
    cfg = CONFIGS[name]
    params = random_params(cfg, 3)
    ids, lengths = golden_ids()
    cut = 20
    hidden = forward(params, cfg, ids[:1], lengths[:1]).prompt[0]
    stacked = jax.jit(decoding_layout, static_argnums=1)(params, cfg)
    prompt, length = ids[:1, :cut], np.array([cut])
    last, shared = jax.jit(prefill, static_argnums=1)(stacked, cfg, prompt, length)
    np.testing.assert_allclose(last[0], hidden[cut - 1], atol=1e-4)
    cache = Cache(shared, empty_cache(cfg, 1, 8))
    step = jax.jit(decode_step, static_argnums=1)
    for i in range(8):
        token = ids[:1, cut + i : cut + i + 1]
        h, cache = step(stacked, cfg, token, aligned_positions(token, jnp.int32(i), length, cache), cache)
        np.testing.assert_allclose(h[0, 0], hidden[cut + i], atol=1e-4)


# Files.


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_file_holds_the_names_and_layout_of_transformers(name, tmp_path):
    """Spelt out here: reading back what we wrote would not notice two names or axes exchanged in the table."""
    cfg, params = write(name, tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    expected = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["final_norm"]}
    if not cfg.tied:
        expected["lm_head.weight"] = params["head"]
    for i in range(cfg.layers):
        w = {k: v[i] for k, v in params["layers"].items()}
        block = {
            "input_layernorm.weight": w["attn_norm"],
            "self_attn.q_proj.weight": w["q"].reshape(cfg.width, -1).T,
            "self_attn.k_proj.weight": w["k"].reshape(cfg.width, -1).T,
            "self_attn.v_proj.weight": w["v"].reshape(cfg.width, -1).T,
            "self_attn.o_proj.weight": w["o"].reshape(-1, cfg.width).T,
            "post_attention_layernorm.weight": w["mlp_norm"],
            "mlp.gate_proj.weight": w["gate"].T,
            "mlp.up_proj.weight": w["up"].T,
            "mlp.down_proj.weight": w["down"].T,
        }
        if cfg.qk_norm:
            block |= {"self_attn.q_norm.weight": w["q_norm"], "self_attn.k_norm.weight": w["k_norm"]}
        if cfg.qkv_bias:
            block |= {f"self_attn.{x}_proj.bias": w[f"{x}_bias"].reshape(-1) for x in "qkv"}
        expected |= {f"model.layers.{i}.{k}": v for k, v in block.items()}
    assert_same(file, expected)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_equal(name, tmp_path):
    cfg, params = write(name, tmp_path)
    loaded_cfg, loaded = files.load(tmp_path)
    assert loaded_cfg == cfg
    assert_same(loaded, params)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_device_arrays_are_saved(tmp_path):
    cfg, params = CONFIGS["qwen3"], random_params(CONFIGS["qwen3"], 1)
    files.save(tmp_path, cfg, jax.tree.map(jnp.asarray, params))
    assert_same(files.load(tmp_path)[1], params)


def test_shards_with_index(tmp_path):
    cfg, params = CONFIGS["llama3"], random_params(CONFIGS["llama3"], 1)
    files.save(tmp_path, cfg, params, shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2 and names == sorted(f.name for f in tmp_path.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert max((tmp_path / f).stat().st_size for f in names) < 100_000 + 10_000
    assert_same(files.load(tmp_path)[1], params)


def test_bfloat16(tmp_path):
    cfg, params = CONFIGS["qwen2"], random_params(CONFIGS["qwen2"], 1)
    files.save(tmp_path, cfg, params, "bfloat16")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    assert_same(files.load(tmp_path, ml_dtypes.bfloat16)[1], half)
    assert_same(files.load(tmp_path)[1], jax.tree.map(lambda x: x.astype(np.float32), half))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_saving_again_replaces(tmp_path):
    cfg, _ = write("llama", tmp_path)
    params = random_params(cfg, 99)
    files.save(tmp_path, cfg, params)
    assert_same(files.load(tmp_path)[1], params)
    assert not list(tmp_path.glob("*.part"))


def test_stop_ids_are_written(tmp_path):
    cfg, params = CONFIGS["llama"], random_params(CONFIGS["llama"], 1)
    files.save(tmp_path, cfg, params, generation={"eos_token_id": [2, 5], "pad_token_id": 0})
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [2, 5], "pad_token_id": 0}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == [2, 5] and config["pad_token_id"] == 0


@pytest.mark.parametrize("remove", ["rope_parameters", "rope_scaling"])
def test_rope_fields_of_transformers_4_and_5(remove, tmp_path):
    write("llama3", tmp_path)
    changes = {remove: None} | ({"rope_theta": None} if remove == "rope_scaling" else {})
    edit_config(tmp_path, **changes)
    assert files.load(tmp_path)[0] == CONFIGS["llama3"]


def test_unused_sliding_window_is_fine(tmp_path):
    write("qwen2", tmp_path)
    edit_config(tmp_path, sliding_window=16, use_sliding_window=False)
    assert files.load(tmp_path)[0] == CONFIGS["qwen2"]


def test_tied_configuration_with_an_output_matrix(tmp_path):
    """As transformers does: an equal one is the embedding, another one is believed."""
    cfg, params = write("llama", tmp_path)
    embed = params["embed"]
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": embed}))
    assert files.load(tmp_path)[0] == cfg
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": embed + 1}))
    loaded_cfg, loaded = files.load(tmp_path)
    assert not loaded_cfg.tied
    np.testing.assert_array_equal(loaded["head"], embed + 1)
