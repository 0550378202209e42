"""A model's architecture, and its parameters' shapes, shardings and initial values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rl_likelihood.mesh import sharding
from rl_likelihood.model.rope import LinearScaling, RopeScaling, Scaling, YarnScaling
from rl_likelihood.shapes import AnyArray

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LocalLayers:
    """The layers with local attention: a sliding window, or another rotary embedding than the other layers."""

    which: tuple[bool, ...]  # for each layer, whether it is local
    window: int = 0  # tokens that a token attends to, itself included; 0: all tokens up to itself
    theta: float | None = None  # theta of their unscaled rotary embedding; 0: no rotation; None: as in the other layers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture (first block of fields) and how to run it (second block)."""

    family: str  # a row of weights/families.py
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # with experts: of each
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None
    norm_eps: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_norm_joint: bool = False  # one norm over all heads together
    norms: Literal["before", "after", "both"] = "before"  # where norms are, relative to attention and to the MLP
    norm_offset: float = 0.0  # norms multiply by (this + their scale)
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; gelu is the tanh approximation
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(width)
    query_width: int = 0  # logits are divided by the square root of this; 0: of head_dim
    local: LocalLayers | None = None
    max_position: int = 8192
    experts: int = 0  # MLPs of each layer, of which a router chooses `experts_per_token`; 0: one MLP, no router
    experts_per_token: int = 0
    norm_topk_prob: bool = False  # the weights of a token's experts are divided by their sum

    compute_dtype: str = "float32"
    scan_layers: bool = True  # True: compile one layer and scan it; False: unroll (faster on CPU, slower to compile)
    attention: str = "dense"  # dense | splash (the TPU's kernel, model/splash.py)
    # What the backward pass does not recompute: none: everything is kept | dots: matrix products | attention: layer
    # inputs and the splash kernel's results | full: layer inputs.
    remat: str = "none"
    int8_decoding: bool = False  # the sampler's matrices are int8 (decoding.fuse_layer)
    scratch_kib: int = -1  # KiB of vector memory for an operation of the learner's step (mesh.compiler_options)

    @property
    def are_local(self) -> tuple[bool, ...]:
        """For each layer, whether it is one of the `local` layers."""
        return self.local.which if self.local else (False,) * self.layers


def from_values(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict`. It also accepts values that went through JSON."""
    values = dict(values)
    scaling, local = values.get("rope_scaling"), values.get("local")
    if scaling is not None:
        kind = YarnScaling if "beta_fast" in scaling else LinearScaling if "dynamic" in scaling else RopeScaling
        values["rope_scaling"] = kind(**scaling)
    if local is not None:
        values["local"] = LocalLayers(**local | {"which": tuple(local["which"])})
    return ModelConfig(**values)


class Spec(NamedTuple):
    """A parameter's shape, the logical axis of each dimension (`mesh.RULES`), and its initial values."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str  # normal | ones | zeros; uniform for adapters


def param_specs(cfg: ModelConfig) -> dict[str, Any]:
    """The parameter tree with one Spec per leaf. Shapes, initial values, shardings and file names come from it."""
    n, d, h, k, dh, f = cfg.layers, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp
    scale = "zeros" if cfg.norm_offset else "ones"
    layer = {
        "q": Spec((n, d, h, dh), (None, "width", "heads", None), "normal"),
        "k": Spec((n, d, k, dh), (None, "width", "kv_heads", None), "normal"),
        "v": Spec((n, d, k, dh), (None, "width", "kv_heads", None), "normal"),
        "o": Spec((n, h, dh, d), (None, "heads", None, "width"), "normal"),
    }
    if cfg.experts:
        e = cfg.experts
        layer["router"] = Spec((n, d, e), (None, "width", None), "normal")
        layer["gate"] = Spec((n, e, d, f), (None, "experts", "width", None), "normal")
        layer["up"] = Spec((n, e, d, f), (None, "experts", "width", None), "normal")
        layer["down"] = Spec((n, e, f, d), (None, "experts", None, "width"), "normal")
    else:
        layer["gate"] = Spec((n, d, f), (None, "width", "mlp"), "normal")
        layer["up"] = Spec((n, d, f), (None, "width", "mlp"), "normal")
        layer["down"] = Spec((n, f, d), (None, "mlp", "width"), "normal")
    for name in ("attn", "mlp"):
        if cfg.norms in ("before", "both"):
            layer[f"{name}_norm"] = Spec((n, d), (None, None), scale)
        if cfg.norms in ("after", "both"):
            layer[f"{name}_out_norm"] = Spec((n, d), (None, None), scale)
    if cfg.qkv_bias:
        layer["q_bias"] = Spec((n, h, dh), (None, "heads", None), "zeros")
        layer["k_bias"] = Spec((n, k, dh), (None, "kv_heads", None), "zeros")
        layer["v_bias"] = Spec((n, k, dh), (None, "kv_heads", None), "zeros")
    if cfg.qk_norm:
        for name, heads in (("q_norm", h), ("k_norm", k)):
            layer[name] = Spec((n, heads * dh if cfg.qk_norm_joint else dh), (None, None), scale)
    specs = {
        "embed": Spec((cfg.vocab_size, d), ("vocab", "width"), "normal"),
        "layers": layer,
        "final_norm": Spec((d,), (None,), scale),
    }
    if not cfg.tied:
        specs["head"] = Spec((cfg.vocab_size, d), ("vocab", "width"), "normal")
    return specs


def part_of_matrix(layers: dict[str, Spec], name: str, rank: int = 0) -> Spec:
    """The Spec of a part that goes with a layer's matrix, such as q: q_a or q_b of its adapter (model/lora.py), or the
    scales of its int8 outputs, q_scale."""
    matrix, _, part = name.rpartition("_")
    (n, *shape), (_, *axes), _ = layers[matrix]
    inputs = 2 if matrix == "o" else 1
    if part == "a":
        return Spec((n, *shape[:inputs], rank), (None, *axes[:inputs], None), "uniform")
    if part == "b":
        return Spec((n, rank, *shape[inputs:]), (None, None, *axes[inputs:]), "zeros")
    return Spec((n, *shape[inputs:]), (None, *axes[inputs:]), "ones")


def is_spec(x: Any) -> bool:
    """`is_leaf` for jax.tree functions: a Spec is a leaf, although it is a tuple."""
    return isinstance(x, Spec)


def abstract(specs: dict[str, Any]) -> Params:
    """The float32 shape of each parameter."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), specs, is_leaf=is_spec)


def shardings(specs: dict[str, Any], mesh: Mesh) -> Params:
    """The sharding of each parameter on the mesh."""
    return jax.tree.map(lambda s: sharding(mesh, s.axes, s.shape), specs, is_leaf=is_spec)


def init(key: Array, cfg: ModelConfig) -> Params:
    """Random parameters: normal with std 0.02, times 1/sqrt(2 L) for the residual outputs o and down; neutral norms and
    biases."""
    specs = param_specs(cfg)
    leaves, tree = jax.tree.flatten_with_path(specs, is_leaf=is_spec)

    def draw(i, path, spec):
        if spec.init == "normal":
            residual = path[-1].key in ("o", "down")
            scale = 0.02 / math.sqrt(2 * cfg.layers) if residual else 0.02
            return scale * jax.random.normal(jax.random.fold_in(key, i), spec.shape)
        return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape)

    return jax.tree.unflatten(tree, [draw(i, path, spec) for i, (path, spec) in enumerate(leaves)])


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def head_matrix(params: Params) -> Float[AnyArray, "V D"]:
    """The output matrix. For a tied model it is the embedding."""
    return params.get("head", params["embed"])
