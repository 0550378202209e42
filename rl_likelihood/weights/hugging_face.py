"""Hugging Face folders: config.json <-> ModelConfig, and safetensors opened for reading by name."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.model.rope import LinearScaling, RopeScaling, Scaling, YarnScaling
from rl_likelihood.weights.families import FAMILIES, FULL, NEVER_SLIDE, SLIDING, Family, named

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ALL = slice(None)
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SCORE = "score.weight"  # of a sequence classifier, which has no lm_head


class Source(NamedTuple):
    """An opened checkpoint: architecture, file and shape of every tensor by name, and a reader of (part of) one."""

    cfg: ModelConfig
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[..., np.ndarray]  # (name, rows of it, columns of it); both are optional


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; UserError when it is missing or broken."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a model is a folder with {CONFIG} and {WEIGHTS}, or a .gguf") from None
    except ValueError as e:
        raise UserError(f"{file}: not valid JSON ({e}); download or export the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds a {type(value).__name__}, not a JSON object; download the model again")
    return value


def open_folder(path: Path) -> Source:
    """Open config.json and one or many safetensors files; they stay memory-mapped while the Source lives."""
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder or .gguf file")
    cfg = config_from_hf(read_json(path / CONFIG), path / CONFIG)
    index = read_json(path / INDEX).get("weight_map", {}) if (path / INDEX).exists() else {}
    handles, files, shapes = {}, {}, {}
    for name in sorted(set(index.values())) or [WEIGHTS]:
        file = path / name
        handle = _open(file)
        for tensor in handle.keys():  # noqa: SIM118  (a safe_open is not a dict)
            part = handle.get_slice(tensor)
            if part.get_dtype() not in ("F32", "F16", "BF16"):
                raise UserError(
                    f"{file}: tensor {tensor} has type {part.get_dtype()}, but only F32, F16 and BF16 can be read; "
                    "take the checkpoint that is not quantised"
                )
            handles[tensor], files[tensor], shapes[tensor] = handle, file, tuple(part.get_shape())
    for tensor, name in index.items():
        if tensor not in shapes:
            raise UserError(f"{path / name}: tensor {tensor} is listed in {INDEX} but not there; download it again")

    def read(tensor: str, *cuts: slice) -> np.ndarray:
        if all(cut == ALL for cut in cuts):
            return handles[tensor].get_tensor(tensor)
        return handles[tensor].get_slice(tensor)[cuts[: len(shapes_of_files[tensor])]]

    shapes_of_files = dict(shapes)
    read = _split(path, cfg, files, shapes, _split_experts(cfg, files, shapes, read))
    # The configuration says "tied", but there is an output matrix: believe the weights, as transformers does.
    if cfg.tied and HEAD in shapes:
        if shapes[HEAD] == shapes.get(EMBED) and np.array_equal(read(HEAD), read(EMBED)):
            del shapes[HEAD]
        else:
            cfg = dataclasses.replace(cfg, tied=False)
    if SCORE in shapes and HEAD not in shapes:
        cfg = dataclasses.replace(cfg, tied=True)
    return Source(cfg, files, shapes, read)


def is_bfloat16(path: Path) -> bool:
    """Whether every tensor of a folder is bfloat16."""
    handles = map(_open, path.glob("*.safetensors"))
    return all(handle.get_slice(name).get_dtype() == "BF16" for handle in handles for name in list(handle.keys()))


def _split(path: Path, cfg: ModelConfig, files: dict, shapes: dict, read: Callable) -> Callable:
    """Tensors that hold several matrices one below the other are replaced by these; returns how to read all."""
    attend, rows = cfg.head_dim * cfg.kv_heads, {}
    sizes = {"q": cfg.head_dim * cfg.heads, "k": attend, "v": attend, "gate": cfg.mlp, "up": cfg.mlp}
    for i, (name, keys) in itertools.product(range(cfg.layers), FAMILIES[cfg.family].fused.items()):
        whole, start = f"model.layers.{i}.{name}", 0
        shape, file = (sum(sizes[key] for key in keys), cfg.width), files.pop(whole, path)
        if shapes.pop(whole, None) != shape:
            raise UserError(f"{file}: tensor {whole} of shape {list(shape)} is missing; download or export it again")
        for key in keys:
            part, end = f"model.layers.{i}.{named(cfg.family, key)}", start + sizes[key]
            rows[part], files[part], shapes[part] = (whole, start, end), file, (sizes[key], cfg.width)
            start = end

    def read_part(tensor: str, part: slice = ALL, columns: slice = ALL) -> np.ndarray:
        if tensor not in rows:
            return read(tensor, part, columns)
        whole, start, end = rows[tensor]
        first, last, _ = part.indices(end - start)
        return read(whole, slice(start + first, start + last), columns)

    return read_part


def _split_experts(cfg: ModelConfig, files: dict, shapes: dict, read: Callable) -> Callable:
    """`_split` for the second layout of transformers 5, one tensor for the matrices of all experts of a layer."""
    inside: dict[str, tuple[str, int, int]] = {}
    for i, name in itertools.product(range(cfg.layers if cfg.experts else 0), ("gate_up_proj", "down_proj")):
        whole = f"model.layers.{i}.mlp.experts.{name}"
        keys, rows = (("gate", "up"), cfg.mlp) if name == "gate_up_proj" else (("down",), cfg.width)
        if shapes.get(whole) != (cfg.experts, rows * len(keys), cfg.width if len(keys) > 1 else cfg.mlp):
            continue  # files.load says what is missing or does not belong
        columns, file = shapes.pop(whole)[-1], files.pop(whole)
        for (j, key), expert in itertools.product(enumerate(keys), range(cfg.experts)):
            part = f"model.layers.{i}.{named(cfg.family, key).format(expert)}"
            inside[part], files[part], shapes[part] = (whole, expert, j * rows), file, (rows, columns)

    def read_part(tensor: str, part: slice = ALL, columns: slice = ALL) -> np.ndarray:
        if tensor not in inside:
            return read(tensor, part, columns)
        whole, expert, start = inside[tensor]
        first, last, _ = part.indices(shapes[tensor][0])
        return read(whole, slice(expert, expert + 1), slice(start + first, start + last), columns)[0]

    return read_part


def _open(file: Path):
    if not file.exists():
        advice = "convert the .bin files to safetensors" if list(file.parent.glob("*.bin")) else "download it again"
        raise UserError(f"{file}: no such weight file, the model folder is incomplete; {advice}")
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file}: truncated, or not a safetensors file ({e}); download it again") from None


def config_from_hf(config: dict[str, Any], file: Path) -> ModelConfig:
    """Architecture from a config.json; UserError naming the field for what this decoder does not compute."""

    def need(field: str) -> Any:
        if config.get(field) is None:
            raise UserError(f"{file}: field {field} is missing; take the {CONFIG} that came with the weights")
        return config[field]

    def refuse(field: str, value: Any, supported: str) -> None:
        raise UserError(f"{file}: {field} = {value!r} is not supported, only {supported}; take another model")

    family = need("model_type")
    if family not in FAMILIES:
        refuse("model_type", family, ", ".join(FAMILIES))
    row = FAMILIES[family]
    config = row.defaults | config
    _refuse_features(config, row, refuse)
    layers = need("num_hidden_layers")
    local = row.local(config, layers)
    slides = SLIDING in (config.get("layer_types") or []) or config.get("use_sliding_window")
    if slides and row.local in NEVER_SLIDE:
        refuse("sliding_window", config.get("sliding_window"), f"full attention in every layer of {family} models")
    if local and len(local.which) != layers:
        refuse("layer_types", len(local.which), f"one entry for each of num_hidden_layers = {layers}")

    heads, width = need("num_attention_heads"), need("hidden_size")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or width // heads
    query_width = config.get("query_pre_attn_scalar") or head_dim
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{file}: num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}, "
            f"and head_dim = {head_dim} must be even; take the {CONFIG} that came with the weights"
        )
    theta, scaling = _rope(config, file, refuse, row)
    positions = need("max_position_embeddings")
    if isinstance(scaling, YarnScaling):  # Qwen's cards add yarn and leave max_position_embeddings as it was
        positions = max(positions, int(scaling.factor * scaling.original_max_position))
    return ModelConfig(
        family=family,
        vocab_size=need("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=need("moe_intermediate_size" if row.experts else "intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(need("rms_norm_eps")),
        tied=bool(config.get("tie_word_embeddings", False)),
        query_width=0 if query_width == head_dim else query_width,
        local=local,
        max_position=positions,
        **_experts(config, row, need, refuse),
        **row.switches,
    )


def _experts(config: dict[str, Any], row: Family, need, refuse) -> dict[str, Any]:
    """What ModelConfig says about experts."""
    if not row.experts:
        return {}
    for field, value in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(field) not in (None, value):
            refuse(field, config[field], f"{value}, experts in every layer")
    # transformers 5 writes the number under a name of its own.
    count, each = config.get("num_local_experts") or need("num_experts"), need("num_experts_per_tok")
    if not 0 < each <= count:
        refuse("num_experts_per_tok", each, f"1 to num_experts = {count}")
    return {"experts": count, "experts_per_token": each, "norm_topk_prob": bool(need("norm_topk_prob"))}


def _refuse_features(config: dict[str, Any], row: Family, refuse) -> None:
    """Refuses what would change the outputs and is not computed here."""
    field, value = row.activation
    if config.get(field, value) != value:
        refuse(field, config[field], repr(value))
    if config.get("attention_bias") and not row.switches.get("qkv_bias"):
        refuse("attention_bias", True, "false")
    for field in ("mlp_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if config.get(field):
            refuse(field, config[field], "a model without it")
    if config.get("quantization_config"):
        refuse("quantization_config", config["quantization_config"], "weights in F32, F16 or BF16 (or a .gguf)")


def _rope(config: dict[str, Any], file: Path, refuse, row: Family) -> tuple[float, Scaling | None]:
    """Theta and scaling: under rope_parameters (transformers 5), or rope_theta beside rope_scaling (before)."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "rope_local_base_freq" in row.defaults and FULL in rope:  # one set for each kind of layer
        if (rope.get(SLIDING) or {}).get("rope_type", "default") != "default":
            refuse("rope_parameters", rope[SLIDING], f"a plain embedding of {SLIDING}")
        rope = rope[FULL]
    if any(isinstance(value, dict) for value in rope.values()):
        refuse("rope_parameters", rope, "one set of rotary parameters for all layers")
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if partial != 1.0:
        refuse("partial_rotary_factor", partial, "1.0")
    if kind == "default":
        return theta, None
    original = int(rope.get("original_max_position_embeddings") or config.get("max_position_embeddings") or 0)
    if kind == "yarn":
        return theta, _yarn(rope, original, file, refuse)
    if kind not in ("linear", "dynamic", "llama3"):
        refuse("rope_type", kind, "'default', 'linear', 'dynamic', 'llama3' and 'yarn'")
    for field in ("factor", "low_freq_factor", "high_freq_factor")[: 3 if kind == "llama3" else 1]:
        if rope.get(field) is None:
            raise UserError(f"{file}: rope type {kind} needs field {field}; take the {CONFIG} of the model")
    if kind != "llama3":
        return theta, LinearScaling(float(rope["factor"]), kind == "dynamic")
    return theta, RopeScaling(
        float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), original
    )


def _yarn(rope: dict[str, Any], original: int, file: Path, refuse) -> YarnScaling:
    if rope.get("factor") is None:
        raise UserError(f"{file}: rope type yarn needs field factor; take the {CONFIG} of the model")
    for field, plain in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if rope.get(field, plain) != plain:
            refuse(field, rope[field], "yarn without it")
    factor = float(rope["factor"])
    attention = rope.get("attention_factor") or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    fast, slow = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)
    return YarnScaling(factor, fast, slow, original, float(attention))


def config_to_hf(cfg: ModelConfig, dtype: str, classifier: bool = False) -> dict[str, Any]:
    """config.json of `cfg`, for transformers 5 (rope_parameters) and 4 (rope_theta, rope_scaling) alike. `classifier`:
    of a sequence classifier with one label, which is how a reward model is written."""
    rope, row = _rope_to_hf(cfg.rope_scaling), FAMILIES[cfg.family]
    field, activation = row.activation
    parameters: dict[str, Any] = {**rope, "rope_theta": cfg.rope_theta}
    if "rope_local_base_freq" in row.defaults:
        parameters = {FULL: parameters, SLIDING: {"rope_type": "default", "rope_theta": cfg.local.theta}}
    config = {
        "architectures": [row.architecture],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        field: activation,
        "max_position_embeddings": cfg.max_position,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None if cfg.rope_scaling is None else rope,
        "rope_parameters": parameters,
        "tie_word_embeddings": cfg.tied,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        # The tokenizer knows which ids end a text. If these were unset, transformers would use defaults of the class.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if classifier:
        config["architectures"] = [row.architecture.replace("ForCausalLM", "ForSequenceClassification")]
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    return config | row.written(cfg)


def _rope_to_hf(s: Scaling | None) -> dict[str, Any]:
    if s is None:
        return {"rope_type": "default"}
    fields = dataclasses.asdict(s)
    if isinstance(s, LinearScaling):
        return {"rope_type": "dynamic" if s.dynamic else "linear", "factor": s.factor}
    original = fields.pop("original_max_position")
    kind = "yarn" if isinstance(s, YarnScaling) else "llama3"
    return {"rope_type": kind, **fields, "original_max_position_embeddings": original}
