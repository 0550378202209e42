"""Model weights on disk <-> parameter tree: Hugging Face folders (read, write) and GGUF files (read).

`families.NAMES` is the one table between our names and theirs. Files are read on the host in numpy, one tensor at a
time. Loading needs memory for the model and its largest tensor; onto a mesh, for one shard.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from rl_likelihood.errors import UserError
from rl_likelihood.files import gguf_of, replace
from rl_likelihood.model.architecture import ModelConfig, Params, Spec, is_spec, param_specs
from rl_likelihood.model.lora import LoraConfig
from rl_likelihood.weights import gguf_file, hugging_face
from rl_likelihood.weights.families import FAMILIES, NAMES, named
from rl_likelihood.weights.hugging_face import CONFIG, INDEX, SCORE, WEIGHTS, Source

ADAPTERS = "adapter_model.safetensors"  # of a folder for peft


class Tensor(NamedTuple):
    """One tensor of a file, its key in our tree, where it is in that array, and both its shapes."""

    name: str
    file_shape: tuple[int, ...]
    key: str
    at: tuple[int, ...]  # (): all of it; (layer,) or (layer, expert): a part
    shape: tuple[int, ...]  # ours, without the axes of `at`
    inputs: int


def tensors(cfg: ModelConfig, style: str = "hf") -> Iterator[Tensor]:
    """Every tensor of the model as a Hugging Face ("hf") or GGUF ("gguf") file holds it."""
    block = {"hf": "model.layers", "gguf": "blk"}[style]

    def of_layer(key: str, spec: Spec, layer: int) -> Iterator[Tensor]:
        name, n = named(cfg.family, key, style), NAMES[key].inputs
        for expert in np.ndindex(spec.shape[1:2] if "{}" in name else ()):
            shape = spec.shape[1 + len(expert) :]
            file_shape = (math.prod(shape[n:]), math.prod(shape[:n])) if n else (math.prod(shape),)
            yield Tensor(f"{block}.{layer}.{name.format(*expert)}", file_shape, key, (layer, *expert), shape, n)

    specs = param_specs(cfg)
    for key, spec in specs.items():
        if key != "layers":
            yield Tensor(named(cfg.family, key, style), spec.shape, key, (), spec.shape, NAMES[key].inputs)
    for layer in range(cfg.layers):
        for key, spec in specs["layers"].items():
            yield from of_layer(key, spec, layer)


def describe(path: str | os.PathLike) -> ModelConfig:
    """The architecture of what `load` reads. Reads no weights."""
    path = Path(path)
    gguf = gguf_of(path)
    return (gguf_file.open_gguf(gguf) if gguf else hugging_face.open_folder(path)).cfg


def score_of(path: str | os.PathLike) -> np.ndarray | None:
    """The value head [D] of a sequence classifier with one label; None for any other model."""
    path = Path(path)
    if gguf_of(path) or not (path / CONFIG).is_file():
        return None
    source = hugging_face.open_folder(path)
    if SCORE not in source.shapes:
        return None
    if source.shapes[SCORE] != (1, source.cfg.width):
        raise UserError(
            f"{source.files[SCORE]}: tensor {SCORE} has shape {list(source.shapes[SCORE])}, but a reward model's has "
            f"{[1, source.cfg.width]}; take a classifier with one label"
        )
    return source.read(SCORE)[0].astype(np.float32)


def load(
    path: str | os.PathLike,
    dtype: Any = np.float32,
    at: Callable[[ModelConfig], Any] | None = None,
    classifier: bool = False,
) -> tuple[ModelConfig, Params]:
    """Architecture and parameters (in `dtype`) of a Hugging Face folder or GGUF file.

    Numpy arrays on the host, or, with `at` (the shardings of a model's parameters), arrays on devices, of which each
    host reads only what its devices hold, one shard at a time (of GGUF files: one tensor).

    `path`: a folder with config.json and safetensors (one file or sharded; bf16, f16 or f32), a .gguf
    file, or a folder with exactly one .gguf. `classifier`: a sequence classifier will do; `score_of` reads its head.
    UserError for a file or tensor that is missing, truncated, of the wrong shape or unknown, and for an architecture
    that this decoder does not compute.
    """
    path = Path(path)
    gguf = gguf_of(path)
    source = gguf_file.open_gguf(gguf) if gguf else hugging_face.open_folder(path)
    wanted = list(tensors(source.cfg, "gguf" if gguf else "hf"))
    _check(path, source, wanted, {SCORE} if classifier else set())

    specs = param_specs(source.cfg)
    if at is not None:
        return source.cfg, _load_onto(source, specs, wanted, at(source.cfg), np.dtype(dtype))
    params = jax.tree.map(lambda spec: np.empty(spec.shape, dtype), specs, is_leaf=is_spec)
    for t in wanted:
        x = source.read(t.name)
        x = (x.T if t.inputs else x).reshape(t.shape)
        (params["layers"] if t.at else params)[t.key][t.at] = x
    return source.cfg, params


def _load_onto(source: Source, specs: Any, wanted: list[Tensor], at: Any, dtype: np.dtype) -> Params:
    """The parameters on devices, each shard read from the files separately."""
    of: dict[str, list[Tensor]] = {}
    for t in wanted:
        of.setdefault(t.key, []).append(t)  # layer by layer, expert by expert

    def one(path, spec: Spec, where: jax.sharding.Sharding) -> jax.Array:
        parts = of[path[-1].key]

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            lead = len(parts[0].at)
            if not lead:
                return _read_part(source, parts[0], index).astype(dtype, copy=False)
            numbers = np.arange(len(parts)).reshape(spec.shape[:lead])[index[:lead]]
            pieces = np.stack([_read_part(source, parts[i], index[lead:]) for i in numbers.flat])
            return pieces.reshape(*numbers.shape, *pieces.shape[1:]).astype(dtype, copy=False)

        known: dict[str, np.ndarray] = {}

        def once(index: tuple[slice, ...]) -> np.ndarray:  # a shard that several devices hold
            if str(index) not in known:
                known.clear()
                known[str(index)] = shard(index)
            return known[str(index)]

        out = jax.make_array_from_callback(spec.shape, where, once)
        return jax.block_until_ready(out)  # frees the copy on the host before the next one is read

    return jax.tree.map_with_path(one, specs, at, is_leaf=is_spec)


def _read_part(source: Source, t: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """A part of one tensor in our layout; of the file only the rows and columns that hold it."""
    n = t.inputs

    def together(x: tuple) -> tuple[tuple, ...]:
        """Grouped by axes of the file: out and in, all axes of a vector, or one by one."""
        if n:
            return x[n:], x[:n]
        return (x,) if len(t.file_shape) == 1 else tuple((i,) for i in x)

    groups, cuts = together(t.shape), together(index)
    ranges, shapes, inner_cuts = [], [], []
    for shape, cut in zip(groups, cuts, strict=True):
        # Of axes that the file joins, only the first is cut while reading; later ones are cut in memory.
        start, stop, _ = cut[0].indices(shape[0])
        inner = math.prod(shape[1:])
        ranges.append(slice(start * inner, stop * inner))
        shapes.append((stop - start, *shape[1:]))
        inner_cuts.append((slice(None), *cut[1:]))
    x = source.read(t.name, *ranges)
    if n:
        return x.T.reshape(*shapes[1], *shapes[0])[(*inner_cuts[1], *inner_cuts[0])]
    return x.reshape([s for shape in shapes for s in shape])[tuple(c for cut in inner_cuts for c in cut)]


def _check(path: Path, source: Source, wanted: list[Tensor], more: set[str]) -> None:
    """Refuses a source that does not hold exactly the wanted tensors in the right shapes. Reads no tensor."""
    family = source.cfg.family
    for t in wanted:
        if t.name not in source.shapes:
            raise UserError(
                f"{path}: tensor {t.name} of shape {list(t.file_shape)} is missing for this {family} model; "
                "download or export it again"
            )
        if source.shapes[t.name] != t.file_shape:
            raise UserError(
                f"{source.files[t.name]}: tensor {t.name} has shape {list(source.shapes[t.name])}, but the model's "
                f"configuration asks for {list(t.file_shape)}; take weights and configuration of the same model"
            )
    # Old Llama files keep the rotary frequencies, which follow from the configuration.
    known = {t.name for t in wanted} | more
    extra = sorted(n for n in source.shapes.keys() - known if not n.endswith("rotary_emb.inv_freq"))
    if extra:
        raise UserError(
            f"{source.files[extra[0]]}: tensor {extra[0]} (one of {len(extra)} such) does not belong to a plain "
            f"{family} model, so the outputs would be wrong; take a model of the plain architecture"
        )


def save(
    path: str | os.PathLike,
    cfg: ModelConfig,
    params: Params,
    dtype: str = "float32",
    generation: dict[str, Any] | None = None,
    shard_bytes: int = 4_000_000_000,
) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors (sharded with an index above `shard_bytes`).

    `params`: numpy or jax arrays, shapes of `param_specs(cfg)`, and with a value head [1, D] under "score" a sequence
    classifier; `dtype`: float32 or bfloat16; `generation`:
    contents of generation_config.json (eos_token_id and the like, also put into config.json), not written
    when None. config.json comes last, so an interrupted save leaves a folder that does not load. UserError
    when the folder holds other weights that would mix with these.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # slow to import

    want = {k: v.shape for k, v in flatten_dict(param_specs(cfg), sep=".").items()}
    have = {k: tuple(v.shape) for k, v in flatten_dict(params, sep=".").items()}
    wanted, classifier = _of_file(cfg), "score" in params
    if classifier:
        want["score"] = shape = (1, cfg.width)
        wanted = [(name, parts) for name, parts in wanted if parts[0].key != "head"]
        wanted.append((SCORE, [Tensor(SCORE, shape, "score", (), shape, 0)]))
    for key in want | have:
        if want.get(key) != have.get(key):
            raise UserError(
                f"{path}: parameter {key} has shape {have.get(key)}, but its configuration asks for {want.get(key)}; "
                "save parameters with the configuration they were made with"
            )
    path, to = Path(path), jax.numpy.dtype(dtype)
    tensors_of = dict(wanted)
    shards = split_state_dict_into_shards_factory(
        tensors_of,
        get_storage_size=lambda parts: sum(math.prod(t.shape) for t in parts) * to.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    _make_room(path, {*shards.filename_to_tensors, *([INDEX] if shards.is_sharded else [])})
    for file, names in shards.filename_to_tensors.items():
        part = path / f"{file}.part"
        arrays = {name: np.concatenate([_file_array(params, t, to) for t in tensors_of[name]]) for name in names}
        save_file(arrays, part, metadata={"format": "pt"})
        part.chmod(path.stat().st_mode & 0o666)  # safetensors makes it private to its user
        part.replace(path / file)
    if shards.is_sharded:
        _write_json(path / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
    config = hugging_face.config_to_hf(cfg, dtype, classifier)
    if generation is not None:
        _write_json(path / "generation_config.json", generation)
        config |= {k: v for k, v in generation.items() if k in config}
    _write_json(path / CONFIG, config)


def refuse_adapters(path: str | os.PathLike, family: str) -> None:
    """UserError if peft cannot adapt the matrices of this family one by one, or if the folder has a whole model."""
    for name in (WEIGHTS, INDEX):
        if (Path(path) / name).exists():
            raise UserError(f"{path}: already holds {name}, which would mix with the adapters; name an empty folder")
    if FAMILIES[family].fused:
        raise UserError(
            f"{path}: {family} files hold several matrices in one, of which peft cannot adapt each by its own; "
            "export the merged model"
        )


def save_adapters(
    path: str | os.PathLike, adapters: Params, lora: LoraConfig, base: str, dtype: str = "float32", commit: str = ""
) -> None:
    """Write a folder that peft loads onto the model `base`: a folder, or a name of the Hugging Face Hub with its
    commit."""
    path, arrays = Path(path), {}
    for name in lora.targets:
        a, b = (np.asarray(adapters["layers"][f"{name}_{part}"]).astype(jax.numpy.dtype(dtype)) for part in "ab")
        theirs = NAMES[name].hf.removesuffix(".weight")
        for i in range(len(a)):
            of = f"base_model.model.model.layers.{i}.{theirs}"
            arrays[f"{of}.lora_A.weight"] = np.ascontiguousarray(a[i].reshape(-1, lora.rank).T)
            arrays[f"{of}.lora_B.weight"] = np.ascontiguousarray(b[i].reshape(lora.rank, -1).T)
    path.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path / ADAPTERS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": commit or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [NAMES[name].hf.split(".")[1] for name in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    _write_json(path / "adapter_config.json", config)


def _of_file(cfg: ModelConfig) -> list[tuple[str, list[Tensor]]]:
    """The tensors of a file in order, each with those of ours that it holds one below the other: mostly one."""
    into = {key: name for name, keys in FAMILIES[cfg.family].fused.items() for key in keys}
    out: dict[str, list[Tensor]] = {}
    for t in tensors(cfg):
        out.setdefault(f"model.layers.{t.at[0]}.{into[t.key]}" if t.key in into else t.name, []).append(t)
    return list(out.items())


def _make_room(path: Path, names: set[str]) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; name a folder to write the model to")
    path.mkdir(parents=True, exist_ok=True)
    weights = (f.name for pattern in ("*.safetensors*", "pytorch_model*", "*.gguf") for f in path.glob(pattern))
    others = sorted({name.removesuffix(".part").removesuffix(".partial") for name in weights} - names)
    if others:
        raise UserError(f"{path}: already holds {others[0]}, which would mix with these weights; name an empty folder")
    (path / CONFIG).unlink(missing_ok=True)


def _file_array(params: Params, t: Tensor, dtype: np.dtype) -> np.ndarray:
    """One tensor in the file's layout, contiguous, fetched alone from the device."""
    x = params["layers"][t.key][t.at] if t.at else params[t.key]
    x = np.asarray(x).astype(dtype, copy=False)
    return np.ascontiguousarray(x.reshape(t.file_shape[::-1]).T if t.inputs else x.reshape(t.file_shape))


def _write_json(file: Path, value: dict[str, Any]) -> None:
    replace(file, (json.dumps(value, indent=2) + "\n").encode())
