"""LoRA: trains small adapters of the layers' matrices instead of all parameters.

A matrix W [in, out] becomes W + (alpha / rank) A B, with A [in, rank] random and B [rank, out] zero at the start. The
learner computes x W + (x A) B, so W needs no gradient. The sampler's copy of the weights has the adapters added in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from rl_likelihood.errors import UserError
from rl_likelihood.fields import field, one_of
from rl_likelihood.model.architecture import ModelConfig, Params, Spec, is_spec, param_specs, part_of_matrix
from rl_likelihood.shapes import AnyArray

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
SCALES = tuple(f"{name}_scale" for name in MATRICES)  # of an int8 base


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters, trained instead of all parameters."""

    rank: int = field(0, "rank of the adapters; 0: no LoRA, all parameters are trained", least=0)
    alpha: float = field(32.0, "adapters are scaled by alpha / rank", above=0, most=1e6)
    targets: tuple[str, ...] = field(MATRICES, "matrices of each layer that get an adapter: q k v o gate up down")
    base_dtype: Literal["float32", "bfloat16", "int8"] = field(
        "float32", "type of the parameters that are not trained; int8: matrices in 8 bits, all else bfloat16"
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def stored_dtype(self) -> str:
        """The dtype in which the base is read and stored in the workdir. An int8 base is quantised from bfloat16."""
        return "bfloat16" if self.base_dtype == "int8" else self.base_dtype


def check_lora(cfg: LoraConfig) -> None:
    """Refuses targets that are no matrices, and settings of adapters where there are none."""
    for target in cfg.targets or ("",):
        one_of("lora.targets", target, MATRICES)
    for name in ("alpha", "targets", "base_dtype"):
        value = getattr(cfg, name)
        if not cfg.rank and value != getattr(LoraConfig, name):
            raise UserError(f"lora.{name} is {value!r}, but lora.rank is 0: all parameters are trained; set lora.rank")


def adapter_specs(model: ModelConfig, cfg: LoraConfig) -> dict[str, Any]:
    """`param_specs` of the adapters: A and B of each target, named q_a and q_b."""
    layers = param_specs(model)["layers"]
    names = [f"{target}_{part}" for target in cfg.targets for part in "ab"]
    return {"layers": {name: part_of_matrix(layers, name, cfg.rank) for name in names}}


def trained_specs(model: ModelConfig, cfg: LoraConfig) -> dict[str, Any]:
    """`param_specs` of what is trained: the adapters, or all parameters."""
    return adapter_specs(model, cfg) if cfg.rank else param_specs(model)


def as_base(params: Params, cfg: LoraConfig) -> Params:
    """Parameters in the base's dtype. An int8 matrix q has one float32 scale per output, named q_scale."""
    stored = jax.tree.map(lambda x: x.astype(cfg.stored_dtype), params)
    if cfg.base_dtype != "int8":
        return stored
    layers = dict(stored["layers"])
    for name in MATRICES:
        layers[name], layers[f"{name}_scale"] = to_int8(layers[name], (1, 2) if name == "o" else (1,))
    return stored | {"layers": layers}


def to_int8(matrix: Float[AnyArray, "..."], inputs: tuple[int, ...]) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Rounded to 8 bits, and a float32 scale for each output: the largest of its weights is 127. `inputs`: the axes
    over which a product sums."""
    whole = matrix.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(whole).max(inputs, keepdims=True), 1e-30) / 127
    return jnp.round(whole / scale).astype(jnp.int8), scale.squeeze(inputs)


def base_specs(model: ModelConfig, cfg: LoraConfig) -> dict[str, Any]:
    """`param_specs` of the base."""
    specs = param_specs(model)
    if cfg.base_dtype != "int8":
        return specs
    layers = specs["layers"]
    return specs | {"layers": layers | {name: part_of_matrix(layers, name) for name in SCALES}}


def init_adapters(key: Array, model: ModelConfig, cfg: LoraConfig) -> Params:
    """New adapters: A uniform in ±1 / sqrt(in), as in PEFT; B zero."""
    specs = adapter_specs(model, cfg)
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)

    def draw(i: int, spec: Spec):
        if spec.init == "zeros":
            return jnp.zeros(spec.shape, jnp.float32)
        bound = 1 / math.sqrt(math.prod(spec.shape[1:-1]))
        return jax.random.uniform(jax.random.fold_in(key, i), spec.shape, jnp.float32, -bound, bound)

    return jax.tree.unflatten(tree, [draw(i, spec) for i, spec in enumerate(leaves)])


def effective(base: Params, adapters: Params, cfg: LoraConfig) -> Params:
    """The parameters with which `forward` computes the adapted model: the base, with scaled adapters in its layers."""

    def scaled(w: Params) -> Params:
        return {k: v * cfg.scale if k.endswith("_b") else v for k, v in w.items()}

    layers, added = base["layers"], adapters["layers"]
    if not isinstance(layers, tuple):
        return base | {"layers": layers | scaled(added)}
    if not isinstance(added, tuple):
        added = [{k: v[i] for k, v in added.items()} for i in range(len(layers))]
    return base | {"layers": tuple(w | scaled(a) for w, a in zip(layers, added, strict=True))}


def added_up(w: Params, lead: int = 0) -> Params:
    """Plain matrices: multiplies int8 matrices by their scales, and adds each effective adapter to its matrix. `w`: one
    layer's parameters, or with `lead` 1 a stack of layers."""
    w = dict(w)
    for name in [k.removesuffix("_scale") for k in w if k.endswith("_scale")]:
        scale = w.pop(f"{name}_scale")
        inputs = range(lead, lead + w[name].ndim - scale.ndim)
        w[name] = w[name].astype(jnp.float32) * jnp.expand_dims(scale, tuple(inputs))
    out = {k: v for k, v in w.items() if f"{k[:-2]}_a" not in w}
    for name in [k[:-2] for k in w if k.endswith("_a")]:
        a, b, whole = w[f"{name}_a"], w[f"{name}_b"], w[name]
        stack = a.shape[:lead]
        update = a.reshape(*stack, -1, a.shape[-1]) @ b.reshape(*stack, a.shape[-1], -1)
        out[name] = whole.astype(jnp.float32) + update.reshape(whole.shape)
    return out


def merged(base: Params, adapters: Params, cfg: LoraConfig) -> Params:
    """Plain float32 parameters of the adapted model."""
    whole = effective(base, adapters, cfg)
    plain = whole | {"layers": added_up(whole["layers"], lead=1)}
    return jax.tree.map(lambda x: x.astype(jnp.float32), plain)
