"""The model families: how each differs from a plain Llama, in the network, in config.json and in the weight files.

A family is one row of `FAMILIES`, by its model_type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rl_likelihood.model.architecture import LocalLayers, ModelConfig


class Name(NamedTuple):
    """A parameter's name in Hugging Face and in GGUF files, and its layout there. `{}` is an expert's number.

    Files store the matrix of x @ w as [out, in]; ours is [in axes, out axes] with an axis of heads, and `inputs` is its
    number of input axes. 0: the file has our layout, heads and their width in one axis.
    """

    hf: str
    gguf: str
    inputs: int


NAMES = {
    "embed": Name("model.embed_tokens.weight", "token_embd.weight", 0),
    "final_norm": Name("model.norm.weight", "output_norm.weight", 0),
    "head": Name("lm_head.weight", "output.weight", 0),
    # Once per layer, after "model.layers.{i}." or "blk.{i}.".
    "attn_norm": Name("input_layernorm.weight", "attn_norm.weight", 0),
    "q": Name("self_attn.q_proj.weight", "attn_q.weight", 1),
    "k": Name("self_attn.k_proj.weight", "attn_k.weight", 1),
    "v": Name("self_attn.v_proj.weight", "attn_v.weight", 1),
    "o": Name("self_attn.o_proj.weight", "attn_output.weight", 2),
    "q_bias": Name("self_attn.q_proj.bias", "attn_q.bias", 0),
    "k_bias": Name("self_attn.k_proj.bias", "attn_k.bias", 0),
    "v_bias": Name("self_attn.v_proj.bias", "attn_v.bias", 0),
    "q_norm": Name("self_attn.q_norm.weight", "attn_q_norm.weight", 0),
    "k_norm": Name("self_attn.k_norm.weight", "attn_k_norm.weight", 0),
    "attn_out_norm": Name("post_attention_layernorm.weight", "post_attention_norm.weight", 0),
    "mlp_norm": Name("post_attention_layernorm.weight", "ffn_norm.weight", 0),
    "mlp_out_norm": Name("post_feedforward_layernorm.weight", "post_ffw_norm.weight", 0),
    "gate": Name("mlp.gate_proj.weight", "ffn_gate.weight", 1),
    "up": Name("mlp.up_proj.weight", "ffn_up.weight", 1),
    "down": Name("mlp.down_proj.weight", "ffn_down.weight", 1),
    "router": Name("mlp.gate.weight", "ffn_gate_inp.weight", 1),
}


HfConfig = dict[str, Any]
SLIDING, FULL = "sliding_attention", "full_attention"


def _no_local(config: HfConfig, layers: int) -> LocalLayers | None:
    return None


def _all_slide(config: HfConfig, layers: int) -> LocalLayers | None:
    window = config.get("sliding_window")
    return LocalLayers((True,) * layers, window) if window else None


def _listed(config: HfConfig, layers: int) -> tuple[bool, ...]:
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [FULL if (i + 1) % config["sliding_window_pattern"] == 0 else SLIDING for i in range(layers)]
    return tuple(kind == SLIDING for kind in kinds)


def _later_slide(config: HfConfig, layers: int) -> LocalLayers | None:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    if config.get("layer_types"):
        which = _listed(config, layers)
    else:
        which = tuple(i >= config["max_window_layers"] for i in range(layers))
    return LocalLayers(which, window) if window and any(which) else None


def _slide_by_theta(config: HfConfig, layers: int) -> LocalLayers | None:
    rope = (config.get("rope_parameters") or {}).get(SLIDING) or {}
    theta = rope.get("rope_theta") or config["rope_local_base_freq"]
    return LocalLayers(_listed(config, layers), config["sliding_window"], float(theta))


def _not_rotated(config: HfConfig, layers: int) -> LocalLayers | None:
    rotated = config.get("no_rope_layers")  # 1 where a layer rotates
    if rotated is None:
        rotated = [(i + 1) % config["no_rope_layer_interval"] for i in range(layers)]
    which = tuple(not r for r in rotated[:layers])
    return LocalLayers(which, theta=0.0) if any(which) else None


def _window(cfg: ModelConfig) -> HfConfig:
    return {"sliding_window": cfg.local.window if cfg.local else None}


def _kinds(cfg: ModelConfig) -> list[str]:
    return [SLIDING if local else FULL for local in cfg.are_local]


def _qwen(cfg: ModelConfig) -> HfConfig:
    if cfg.local is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "layer_types": _kinds(cfg), **_window(cfg)}


def _gemma(cfg: ModelConfig) -> HfConfig:
    return {
        "layer_types": _kinds(cfg),
        "rope_local_base_freq": cfg.local.theta,
        "query_pre_attn_scalar": cfg.query_width or cfg.head_dim,
        **_window(cfg),
    }


def _experts(cfg: ModelConfig) -> HfConfig:
    return {
        "num_experts": cfg.experts,
        "num_experts_per_tok": cfg.experts_per_token,
        "norm_topk_prob": cfg.norm_topk_prob,
        "moe_intermediate_size": cfg.mlp,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


# Of these families a file that asks for a window is refused.
NEVER_SLIDE = (_no_local, _not_rotated)


class Family(NamedTuple):
    """One family. Functions read the local layers from a config.json, and give the fields that only it writes there."""

    architecture: str  # its class in transformers
    switches: dict[str, Any] = {}  # fields of ModelConfig
    defaults: HfConfig = {}  # fields that its config.json may leave out
    local: Callable[[HfConfig, int], LocalLayers | None] = _no_local
    written: Callable[[ModelConfig], HfConfig] = lambda cfg: {}
    names: dict[str, str] = {}  # of tensors, where not those of `NAMES`
    fused: dict[str, tuple[str, ...]] = {}  # a tensor of a layer, and which matrices it holds one below the other
    activation: tuple[str, str] = ("hidden_act", "silu")  # a field, and the one value of it that is computed
    experts: bool = False  # whether every layer has experts
    gguf: bool = False  # whether GGUF files with this architecture can be read (Mistral's say llama)


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", written=lambda cfg: {"attention_bias": False, "mlp_bias": False}, gguf=True),
    "mistral": Family("MistralForCausalLM", defaults={"sliding_window": 4096}, local=_all_slide, written=_window),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}, {"max_window_layers": 28}, _later_slide, _qwen, gguf=True),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"qk_norm": True},
        {"max_window_layers": 28, "head_dim": 128},
        _later_slide,
        _qwen,
        gguf=True,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {"qk_norm": True},
        written=_experts,
        names={key: f"mlp.experts.{{}}.{key}_proj.weight" for key in ("gate", "up", "down")},
        experts=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {"qk_norm": True, "norms": "both", "norm_offset": 1.0, "activation": "gelu", "scaled_embedding": True},
        {
            "tie_word_embeddings": True,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        _slide_by_theta,
        _gemma,
        names={"mlp_norm": "pre_feedforward_layernorm.weight"},
        activation=("hidden_activation", "gelu_pytorch_tanh"),
    ),
    "olmo2": Family("Olmo2ForCausalLM", {"qk_norm": True, "qk_norm_joint": True, "norms": "after"}),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        defaults={"tie_word_embeddings": True, "no_rope_layer_interval": 4, "rope_theta": 2e6},
        local=_not_rotated,
        written=lambda cfg: {"no_rope_layers": [int(not local) for local in cfg.are_local]},
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        local=_all_slide,
        written=lambda cfg: _window(cfg) | {"original_max_position_embeddings": cfg.max_position},
        fused={"self_attn.qkv_proj.weight": ("q", "k", "v"), "mlp.gate_up_proj.weight": ("gate", "up")},
    ),
}


def named(family: str, key: str, style: str = "hf") -> str:
    """A parameter's name in a Hugging Face or GGUF file of this family."""
    own = FAMILIES[family].names if style == "hf" else {}
    return own.get(key, getattr(NAMES[key], style))
