"""Shapes of published models by name, for `plan` without the model's files."""

from __future__ import annotations

import difflib

from rl_likelihood.model.decoder import ModelConfig
from rl_likelihood.shapes import UserError
from rl_likelihood.weights import hugging_face

# Published shapes: family, vocabulary, width, layers, heads, key/value heads, head width, MLP width, tied.
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
    "smollm2-135m": ("llama", 49152, 576, 30, 9, 3, 64, 1536, True),
    "smollm2-360m": ("llama", 49152, 960, 32, 15, 5, 64, 2560, True),
    "smollm2-1.7b": ("llama", 49152, 2048, 24, 32, 32, 64, 8192, True),
}


def published(name: str) -> ModelConfig:
    """Shapes of a model by its name, with or without `-Instruct` and the publisher before it."""
    short = name.rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct")
    if short not in PUBLISHED:
        near = difflib.get_close_matches(short, PUBLISHED, 1, 0.0)[0]
        raise UserError(
            f"model {name!r} is neither an existing folder or file nor a name whose shapes are known; "
            f"the nearest is {near} (of {', '.join(PUBLISHED)})"
        )
    *sizes, tied = PUBLISHED[short]
    return ModelConfig(*sizes, tied=tied, **hugging_face.FAMILIES[sizes[0]][1])
