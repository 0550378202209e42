"""Shapes of published models by name, for `plan` without the model's files."""

import difflib
from pathlib import Path

from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.weights import hugging_face

# What makes the shapes, in the words of config.json; the family says the rest (families.py).
FIELDS = """model_type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    intermediate_size tie_word_embeddings""".split()
PUBLISHED: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "llama-3.2-1b": ("llama", 128256, 2048, 16, 32, 8, 64, 8192, True),
    "llama-3.2-3b": ("llama", 128256, 3072, 28, 24, 8, 128, 8192, True),
    "llama-3.1-8b": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, False),
    "qwen2.5-0.5b": ("qwen2", 151936, 896, 24, 14, 2, 64, 4864, True),
    "qwen2.5-1.5b": ("qwen2", 151936, 1536, 28, 12, 2, 128, 8960, True),
    "qwen2.5-3b": ("qwen2", 151936, 2048, 36, 16, 2, 128, 11008, True),
    "qwen2.5-7b": ("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, False),
    "qwen2.5-14b": ("qwen2", 152064, 5120, 48, 40, 8, 128, 13824, False),
    "qwen3-0.6b": ("qwen3", 151936, 1024, 28, 16, 8, 128, 3072, True),
    "qwen3-1.7b": ("qwen3", 151936, 2048, 28, 16, 8, 128, 6144, True),
    "qwen3-4b": ("qwen3", 151936, 2560, 36, 32, 8, 128, 9728, True),
    "qwen3-8b": ("qwen3", 151936, 4096, 36, 32, 8, 128, 12288, False),
    "qwen3-14b": ("qwen3", 151936, 5120, 40, 40, 8, 128, 17408, False),
    "qwen3-32b": ("qwen3", 151936, 5120, 64, 64, 8, 128, 25600, False),
    "qwen3-30b-a3b": ("qwen3_moe", 151936, 2048, 48, 32, 4, 128, 6144, False),
    "gemma-3-270m": ("gemma3_text", 262144, 640, 18, 4, 1, 256, 2048, True),
    "gemma-3-1b": ("gemma3_text", 262144, 1152, 26, 4, 1, 256, 6912, True),
    "mistral-7b-v0.3": ("mistral", 32768, 4096, 32, 32, 8, 128, 14336, False),
    "olmo-2-0425-1b": ("olmo2", 100352, 2048, 16, 16, 16, 128, 8192, False),
    "olmo-2-1124-7b": ("olmo2", 100352, 4096, 32, 32, 32, 128, 11008, False),
    "phi-4": ("phi3", 100352, 5120, 40, 40, 10, 128, 17920, False),
    "smollm2-135m": ("llama", 49152, 576, 30, 9, 3, 64, 1536, True),
    "smollm2-360m": ("llama", 49152, 960, 32, 15, 5, 64, 2560, True),
    "smollm2-1.7b": ("llama", 49152, 2048, 24, 32, 32, 64, 8192, True),
    "smollm3-3b": ("smollm3", 128256, 2048, 36, 16, 4, 128, 11008, True),
}
MORE = {  # fields that only some have
    "qwen3-30b-a3b": {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    },
    "gemma-3-270m": {"sliding_window": 512},
    "gemma-3-1b": {"sliding_window": 512},
    "mistral-7b-v0.3": {"sliding_window": None},
}
REST = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5}  # what shapes do not depend on


def published(name: str) -> ModelConfig:
    """Shapes of a model by its name, with or without `-Instruct` and the publisher before it."""
    short = name.rstrip("/").rpartition("/")[2].lower().replace("-instruct", "").removesuffix("-it")
    if short not in PUBLISHED:
        near = difflib.get_close_matches(short, PUBLISHED, 1, 0.0)[0]
        raise UserError(
            f"model {name!r} is neither an existing folder or file nor a name whose shapes are known; "
            f"the nearest is {near} (of {', '.join(PUBLISHED)})"
        )
    sizes = dict(zip(FIELDS, PUBLISHED[short], strict=True))
    return hugging_face.config_from_hf(REST | sizes | MORE.get(short, {}), Path(short))
