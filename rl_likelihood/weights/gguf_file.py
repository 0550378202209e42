"""GGUF files opened for reading: metadata -> ModelConfig, any quantisation -> float32 in Hugging Face layout."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize

from rl_likelihood.errors import UserError
from rl_likelihood.files import gguf_reader
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.model.rope import RopeScaling
from rl_likelihood.weights.families import FAMILIES
from rl_likelihood.weights.hugging_face import ALL, Source

ROPE_FREQS = "rope_freqs.weight"  # Llama 3's frequency divisors; the scaling itself is not in the metadata


def open_gguf(file: Path) -> Source:
    """Open a GGUF file of family llama, qwen2 or qwen3 as a Source with GGUF tensor names.

    Shapes and arrays are in Hugging Face layout: [out, in], and query and key rows in the (first half,
    second half) rotary order. UserError for a missing or truncated file and for an unsupported model.
    """
    reader = gguf_reader(file)
    by_name = {t.name: t for t in reader.tensors}
    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in by_name.items()}
    cfg = _config(reader, shapes, file)
    # Llama-architecture files interleave the two halves of every query and key head.
    heads = {"attn_q.weight": cfg.heads, "attn_k.weight": cfg.kv_heads} if cfg.family == "llama" else {}

    @functools.lru_cache(maxsize=1)  # the parts of one tensor are asked for one after the other
    def whole(name: str) -> np.ndarray:
        x = _float(by_name[name], file)
        n = heads.get(name.split(".", 2)[-1])
        if n is not None:
            x = x.reshape(n, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        return x

    def read(name: str, rows: slice = ALL, columns: slice = ALL) -> np.ndarray:
        x = whole(name)
        return x[rows, columns] if x.ndim > 1 else x[rows]

    if ROPE_FREQS in by_name:
        scaling = _llama3_scaling(cfg, _float(by_name[ROPE_FREQS], file), file)
        cfg = dataclasses.replace(cfg, rope_scaling=scaling)
        del shapes[ROPE_FREQS]
    return Source(cfg, dict.fromkeys(by_name, file), shapes, read)


def _float(tensor, file: Path) -> np.ndarray:
    try:
        return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(
            f"{file}: tensor {tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf package "
            "cannot decode; take another quantisation, such as Q8_0"
        ) from None


def _config(reader: GGUFReader, shapes: dict[str, tuple[int, ...]], file: Path) -> ModelConfig:
    def get(key: str, default: Any = None) -> Any:
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    family = get("general.architecture")
    readable = [name for name, row in FAMILIES.items() if row.gguf]
    if family not in readable:
        raise UserError(
            f"{file}: general.architecture = {family!r} is not supported, only {', '.join(readable)}; "
            "take another model, or a folder with safetensors"
        )

    def need(key: str, default: Any = None) -> Any:
        value = get(f"{family}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:  # one value a layer
            value = value[0]
        if value is None or isinstance(value, list):
            raise UserError(f"{file}: metadata {family}.{key} = {value} cannot be used; download it again")
        return value

    def refuse_unless(key: str, values: tuple) -> None:
        if get(key) not in (None, *values):
            raise UserError(f"{file}: {key} = {get(key)!r} is not supported, only {values[0]!r}; take another model")

    width, heads = need("embedding_length"), need("attention.head_count")
    head_dim = get(f"{family}.attention.key_length", width // heads)
    refuse_unless(f"{family}.attention.value_length", (head_dim,))
    refuse_unless(f"{family}.rope.dimension_count", (head_dim,))
    refuse_unless(f"{family}.rope.scaling.type", ("none",))
    refuse_unless(f"{family}.attention.sliding_window", (0,))
    refuse_unless(f"{family}.expert_count", (0,))
    refuse_unless("split.count", (1, 0))
    embed = shapes.get("token_embd.weight")
    if embed is None:
        raise UserError(f"{file}: tensor token_embd.weight is missing; the file is incomplete, download it again")
    return ModelConfig(
        family=family,
        vocab_size=embed[0],
        width=width,
        layers=need("block_count"),
        heads=heads,
        kv_heads=need("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=need("feed_forward_length"),
        rope_theta=_decimal(get(f"{family}.rope.freq_base", 10_000.0)),
        norm_eps=_decimal(need("attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in shapes,
        max_position=need("context_length"),
        **FAMILIES[family].switches,
    )


def _decimal(x: float) -> float:
    """The decimal number that a float32 stands for: 9.9999997e-06 -> 1e-05."""
    return float(str(np.float32(x)))


def _llama3_scaling(cfg: ModelConfig, divisors: np.ndarray, file: Path) -> RopeScaling:
    """The scaling that gives these divisors of the frequencies; Llama 3.1 to 3.3 differ only in the factor."""
    scaling = RopeScaling(_decimal(divisors.max()), 1.0, 4.0, 8192)
    half = cfg.head_dim // 2
    freq = cfg.rope_theta ** (-np.arange(half) / half)
    smooth = np.clip((8192 * freq / (2 * math.pi) - 1.0) / 3.0, 0, 1)
    expected = 1 / (smooth + (1 - smooth) / scaling.factor)
    if divisors.shape != (half,) or not np.allclose(divisors, expected, rtol=1e-3):
        raise UserError(
            f"{file}: tensor {ROPE_FREQS} is not Llama 3's frequency scaling (low 1, high 4, original context 8192); "
            "take the Hugging Face folder of this model"
        )
    return scaling
