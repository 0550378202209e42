"""Tiny random checkpoints of every family, the same on every machine, without torch.

    python -m tests.weights.make_checkpoints DIR     writes DIR/llama, DIR/llama3, DIR/qwen2, DIR/qwen3

Golden outputs (tests/weights/golden) belong to exactly these weights and ids; tests/parity/make_golden.py
writes them. Weights come from RandomState, whose stream numpy promises never to change.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl_likelihood.data.tokenizer import PRE_TOKENIZERS, save_tokenizer
from rl_likelihood.model.architecture import ModelConfig, Params, Spec, param_specs
from rl_likelihood.model.rope import RopeScaling
from rl_likelihood.weights import files

VOCAB = 320  # more than the tokenizer has, as in real models
BASE = dict(vocab_size=VOCAB, width=64, layers=2, heads=4, head_dim=16, mlp=96, max_position=256)

CONFIGS = {
    # grouped queries, tied, a head width that is not width / heads
    "llama": ModelConfig(family="llama", kv_heads=2, **{**BASE, "head_dim": 24}, tied=True, norm_eps=1e-5),
    # an original context so short that every wavelength is kept, mixed or stretched within the tested ids
    "llama3": ModelConfig(
        family="llama", kv_heads=1, **BASE, tied=False, rope_theta=500.0, rope_scaling=RopeScaling(4.0, 1.0, 4.0, 32)
    ),
    "qwen2": ModelConfig(
        family="qwen2", kv_heads=2, **BASE, tied=True, qkv_bias=True, norm_eps=1e-6, rope_theta=1_000_000.0
    ),
    "qwen3": ModelConfig(
        family="qwen3", kv_heads=2, **{**BASE, "head_dim": 32}, tied=False, qk_norm=True, norm_eps=1e-6
    ),
}

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PRE = {"llama": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
MERGES = "t h|th e|i n|a n|e r|r e|o n|in g|an d|s w|sw er|an swer|Ġ the|Ġ a|Ġ =|Ġ +|< /|Ċ Ċ|1 0|Ã ©"


def random_params(cfg: ModelConfig, seed: int) -> Params:
    """Weights that make every part count: attention far from uniform, biases and norm scales far from 0 and 1."""
    rng = np.random.RandomState(seed)

    def draw(spec: Spec) -> np.ndarray:
        x = rng.standard_normal(spec.shape)
        if spec.init == "ones":
            return (1 + 0.3 * x).astype(np.float32)
        if spec.init == "zeros":
            return (0.5 * x).astype(np.float32)
        return (0.15 * x).astype(np.float32)

    return jax.tree.map(draw, param_specs(cfg), is_leaf=lambda x: isinstance(x, Spec))


def golden_ids() -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids [2, 48] and lengths [2] that the golden outputs are for."""
    ids = np.random.RandomState(7).randint(0, VOCAB, (2, 48)).astype(np.int32)
    return ids, np.array([48, 31], np.int32)


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE cut as the family of checkpoint `name` cuts text: 256 bytes, a few merges, ChatML."""
    normalizer, cut, whole_words = PRE_TOKENIZERS[PRE[name]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m.split(" ")) for m in MERGES.split("|")]
    entries = [*alphabet, *("".join(m) for m in merges)]
    vocab = {t: i for i, t in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def write(name: str, path: Path, dtype: str = "float32") -> tuple[ModelConfig, Params]:
    """Write the checkpoint `name` with its tokenizer to `path`; returns what was written."""
    cfg = CONFIGS[name]
    params = random_params(cfg, seed=sorted(CONFIGS).index(name))
    files.save(path, cfg, params, dtype)
    save_tokenizer(make_tokenizer(name), path)
    return cfg, params


if __name__ == "__main__":
    for name in CONFIGS:
        write(name, Path(sys.argv[1]) / name)
