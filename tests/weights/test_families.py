"""Every family's files: what is written reads back, config.json of published models, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import LocalLayers, ModelConfig, from_values, param_specs, shardings
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.decoding import Cache, aligned_positions, decode_step, decoding_layout, empty_cache, prefill
from rl_likelihood.model.rope import LinearScaling, YarnScaling
from rl_likelihood.weights import files
from rl_likelihood.weights.families import FAMILIES
from rl_likelihood.weights.hugging_face import config_from_hf
from tests.weights.make_checkpoints import BASE, golden_ids, random_params
from tests.weights.test_refused import edit_config, edit_tensors, refusal

CONFIGS = {
    "mistral": ModelConfig("mistral", kv_heads=2, **BASE, tied=False),
    "mistral-window": ModelConfig("mistral", kv_heads=2, **BASE, tied=False, local=LocalLayers((True, True), window=9)),
    "qwen3-window": ModelConfig("qwen3", kv_heads=2, **BASE, qk_norm=True, local=LocalLayers((False, True), window=9)),
    # An original context so short that some pairs turn often in it, some seldom and some in between.
    "yarn": ModelConfig(
        "mistral", kv_heads=2, **BASE, tied=False, rope_theta=50.0, rope_scaling=YarnScaling(4.0, 4.0, 0.5, 32, 1.2)
    ),
    "linear": ModelConfig("llama", kv_heads=2, **BASE, rope_scaling=LinearScaling(3.0)),
    "dynamic": ModelConfig("llama", kv_heads=2, **BASE, rope_scaling=LinearScaling(3.0, dynamic=True)),
    "gemma3": ModelConfig(
        "gemma3_text",
        kv_heads=1,
        **BASE,
        **FAMILIES["gemma3_text"].switches,
        rope_theta=500.0,
        rope_scaling=LinearScaling(2.0),
        query_width=24,
        local=LocalLayers((True, False), window=9, theta=30.0),
    ),
    "olmo2": ModelConfig("olmo2", kv_heads=2, **BASE, tied=False, **FAMILIES["olmo2"].switches),
    "smollm3": ModelConfig("smollm3", kv_heads=2, **BASE, local=LocalLayers((True, False), theta=0.0)),
    "phi3": ModelConfig("phi3", kv_heads=2, **BASE, tied=False),
    "phi3-window": ModelConfig("phi3", kv_heads=2, **BASE, local=LocalLayers((True, True), window=9)),
    "qwen3_moe": ModelConfig(
        "qwen3_moe", kv_heads=2, **BASE, tied=False, qk_norm=True, experts=4, experts_per_token=2, norm_topk_prob=True
    ),
    "qwen3_moe-plain": ModelConfig("qwen3_moe", kv_heads=2, **BASE, qk_norm=True, experts=4, experts_per_token=3),
}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_equal(name, tmp_path):
    cfg = CONFIGS[name]
    params = random_params(cfg, 1)
    files.save(tmp_path, cfg, params)
    loaded, again = files.load(tmp_path)
    assert loaded == cfg
    assert_same(again, params)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_the_same_after_json(name):
    assert from_values(json.loads(json.dumps(dataclasses.asdict(CONFIGS[name])))) == CONFIGS[name]


def test_matrices_that_share_a_tensor_are_read_shard_by_shard_and_written_in_shards(tmp_path):
    cfg, mesh = CONFIGS["phi3"], make_mesh((1, 2, 2), jax.devices()[:4])
    params = random_params(cfg, 2)
    files.save(tmp_path, cfg, params, shard_bytes=60_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.layers.1.self_attn.qkv_proj.weight" in index and not any("q_proj" in name for name in index)
    _, spread = files.load(tmp_path, at=lambda cfg: shardings(param_specs(cfg), mesh))
    assert_same(jax.device_get(spread), params)


def experts_in_one(folder, cfg):
    """The file's experts in the other layout of transformers 5: one tensor a layer for gates and ups, one for downs."""

    def change(tensors):
        for i in range(cfg.layers):
            block = f"model.layers.{i}.mlp.experts"
            gate, up, down = (
                np.stack([tensors.pop(f"{block}.{e}.{name}_proj.weight") for e in range(cfg.experts)])
                for name in ("gate", "up", "down")
            )
            tensors |= {f"{block}.gate_up_proj": np.concatenate([gate, up], 1), f"{block}.down_proj": down}

    edit_tensors(folder, change)


def test_experts_are_read_from_both_layouts_whole_and_shard_by_shard(tmp_path):
    cfg, mesh = CONFIGS["qwen3_moe"], make_mesh((1, 2, 2), jax.devices()[:4])
    params = random_params(cfg, 2)
    files.save(tmp_path, cfg, params, shard_bytes=10_000_000)
    at = lambda cfg: shardings(param_specs(cfg), mesh)
    assert_same(jax.device_get(files.load(tmp_path, at=at)[1]), params)
    experts_in_one(tmp_path, cfg)
    loaded, again = files.load(tmp_path)
    assert loaded == cfg
    assert_same(again, params)
    spread = files.load(tmp_path, at=at)[1]
    assert_same(jax.device_get(spread), params)
    assert spread["layers"]["gate"].addressable_shards[0].data.shape == (2, 2, 32, 96)
    edit_tensors(tmp_path, lambda t: t.pop("model.layers.1.mlp.experts.down_proj"))
    refusal(lambda: files.load(tmp_path), "model.layers.1.mlp.experts.0.down_proj.weight", "[64, 96]")


def test_the_names_and_layout_of_transformers(tmp_path):
    """Spelt out: the order of matrices in a tensor, and which norm has which name."""
    phi, gemma, olmo = CONFIGS["phi3"], CONFIGS["gemma3"], CONFIGS["olmo2"]
    read = {}
    for cfg in (phi, gemma, olmo):
        params = random_params(cfg, 3)
        files.save(tmp_path / cfg.family, cfg, params)
        w = {key: value[1] for key, value in params["layers"].items()}
        read[cfg.family] = load_file(tmp_path / cfg.family / "model.safetensors"), w
    file, w = read["phi3"]
    qkv = np.concatenate([w[x].reshape(phi.width, -1).T for x in "qkv"])
    np.testing.assert_array_equal(file["model.layers.1.self_attn.qkv_proj.weight"], qkv)
    gate_up = np.concatenate([w["gate"].T, w["up"].T])
    np.testing.assert_array_equal(file["model.layers.1.mlp.gate_up_proj.weight"], gate_up)
    ours = {
        "gemma3_text": {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "attn_out_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_out_norm",
        },
        "olmo2": {"post_attention_layernorm": "attn_out_norm", "post_feedforward_layernorm": "mlp_out_norm"},
    }
    for family, names in ours.items():
        file, w = read[family]
        norms = {n.split(".")[3] for n in file if n.startswith("model.layers.1.") and "layernorm" in n}
        assert norms == set(names)
        for theirs, key in names.items():
            np.testing.assert_array_equal(file[f"model.layers.1.{theirs}.weight"], w[key])


# As the files of the Hugging Face Hub have them, before transformers 5.
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
SMOLLM3 = MISTRAL_7B | {"model_type": "smollm3", "num_hidden_layers": 8, "rope_theta": 5e6}


def test_config_files_of_published_models():
    file = Path("config.json")
    gemma = config_from_hf(GEMMA_3_1B, file)
    assert gemma.tied and gemma.query_width == 0 and gemma.rope_theta == 1e6
    assert (gemma.local.window, gemma.local.theta, sum(gemma.are_local)) == (512, 1e4, 22)
    assert [i for i, local in enumerate(gemma.are_local) if not local] == [5, 11, 17, 23]
    assert config_from_hf(MISTRAL_7B | {"sliding_window": 4096}, file).local == LocalLayers((True,) * 32, 4096)
    assert config_from_hf(MISTRAL_7B | {"sliding_window": None}, file).local is None
    smollm = config_from_hf(SMOLLM3 | {"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]}, file)
    assert smollm.local == LocalLayers((False, False, False, True) * 2, theta=0.0)
    assert config_from_hf(SMOLLM3, file) == smollm, "every fourth, where the file does not say it"
    qwen = MISTRAL_7B | {"model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 30}
    assert config_from_hf(qwen | {"use_sliding_window": False}, file).local is None
    assert config_from_hf(qwen | {"use_sliding_window": True}, file).local.which == (False,) * 30 + (True,) * 2


def test_yarn_extends_a_model_whose_file_has_the_positions_before_it():
    """Qwen2.5's card tells users to add these three fields and no other."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    qwen, file = MISTRAL_7B | {"model_type": "qwen2"}, Path("config.json")
    assert config_from_hf(qwen | {"rope_scaling": yarn}, file).max_position == 131072
    extended = {"max_position_embeddings": 163840, "rope_scaling": yarn}
    assert config_from_hf(qwen | extended, file).max_position == 163840, "the file may say more"
    dynamic = {"rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert config_from_hf(qwen | dynamic, file).max_position == 32768


REFUSED = {
    "gelu": ("gemma3", {"hidden_activation": "gelu"}, ["hidden_activation", "'gelu'"]),
    "capped": ("gemma3", {"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
    "short list": ("gemma3", {"layer_types": ["full_attention"]}, ["layer_types", "num_hidden_layers = 2"]),
    "a window in NoPE layers": ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, ["sliding_window", "8"]),
    "two rotations": ("phi3", {"rope_scaling": {"rope_type": "longrope"}}, ["rope_type", "longrope"]),
    "dense layers": ("qwen3_moe", {"decoder_sparse_step": 2}, ["decoder_sparse_step = 2"]),
    "a dense layer": ("qwen3_moe", {"mlp_only_layers": [0]}, ["mlp_only_layers = [0]"]),
    "experts": ("qwen3_moe", {"num_experts_per_tok": 5}, ["num_experts_per_tok = 5", "4"]),
    "no experts": ("qwen3_moe", {"num_experts": None}, ["num_experts"]),
    "part of a head": ("phi3", {"partial_rotary_factor": 0.75}, ["partial_rotary_factor", "0.75"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused(case, tmp_path):
    name, changes, parts = REFUSED[case]
    files.save(tmp_path, CONFIGS[name], random_params(CONFIGS[name], 1))
    edit_config(tmp_path, **changes)
    refusal(lambda: files.load(tmp_path), "config.json", *parts)


def test_a_tensor_of_several_matrices_that_is_missing_or_too_small_is_named(tmp_path):
    name = "model.layers.1.mlp.gate_up_proj.weight"
    for i, change in enumerate((lambda t: t.pop(name), lambda t: t.update({name: t[name][:-1]}))):
        files.save(tmp_path / str(i), CONFIGS["phi3"], random_params(CONFIGS["phi3"], 1))
        edit_tensors(tmp_path / str(i), change)
        refusal(lambda i=i: files.load(tmp_path / str(i)), name, "[192, 64]")


def test_adapters_of_matrices_that_share_a_tensor_are_refused(tmp_path):
    refusal(lambda: files.refuse_adapters(tmp_path, "phi3"), "phi3", "merged")


def test_decoding_equals_one_forward():
    """Norms, scales and windows in `decoding_layout`, `prefill` and `decode_step` too."""
    cfg, cut = CONFIGS["gemma3"], 20
    params = random_params(cfg, 3)
    ids, lengths = golden_ids()
    hidden = forward(params, cfg, ids[:1], lengths[:1]).prompt[0]
    stacked = jax.jit(decoding_layout, static_argnums=1)(params, cfg)
    length = np.array([cut])
    last, shared = jax.jit(prefill, static_argnums=1)(stacked, cfg, ids[:1, :cut], length)
    np.testing.assert_allclose(last[0], hidden[cut - 1], atol=1e-3)
    cache, step = Cache(shared, empty_cache(cfg, 1, 12)), jax.jit(decode_step, static_argnums=1)
    for i in range(12):  # more tokens than the window has
        token = ids[:1, cut + i : cut + i + 1]
        h, cache = step(stacked, cfg, token, aligned_positions(token, jnp.int32(i), length, cache), cache)
        np.testing.assert_allclose(h[0, 0], hidden[cut + i], atol=1e-3)
