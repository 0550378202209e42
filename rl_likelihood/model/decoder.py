"""One decoder for Llama 2/3, Mistral, Qwen2/2.5, Qwen3 and SmolLM2: specs, init, forward. Decoding is in `decoding.py`.

Parameters are a nested dict of layer-stacked arrays; everything here is a function of them. The head
(vocabulary) lives in `head.py`: `forward` returns hidden states.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import along_prompt, merged, row_shards, sharding
from rl_likelihood.model import splash
from rl_likelihood.model.attention import QUERIES, Kernel, PromptKeys, attention, branch_mask, branch_positions
from rl_likelihood.model.pool import Layout, Places
from rl_likelihood.model.rope import Scaling, YarnScaling, frequencies
from rl_likelihood.shapes import CHAIN, AnyArray

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture (first block) and how to run it (second block)."""

    family: str  # llama | mistral | qwen2 | qwen3
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None
    norm_eps: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_position: int = 8192

    compute_dtype: str = "float32"
    scan_layers: bool = True  # compile one layer, or all of them (faster on CPU, slower to compile)
    attention: str = "dense"  # dense | splash (the TPU's kernel, model/splash.py)
    # none | dots (keep matrix products) | attention (keep layer inputs and the splash kernel's results) | full (inputs)
    remat: str = "none"
    scratch_kib: int = -1  # vector memory that the compiler of the learner's step may use (mesh.compiler_options)


class Spec(NamedTuple):
    """Shape of a parameter, the logical axis of each dimension (`mesh.RULES`), and its initial scale."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str  # normal | ones | zeros


def param_specs(cfg: ModelConfig) -> dict[str, Any]:
    """The parameter tree, one Spec per leaf. Shapes, initial values, shardings and file names all come from it."""
    n, d, h, k, dh, f = cfg.layers, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp
    layer = {
        "attn_norm": Spec((n, d), (None, None), "ones"),
        "q": Spec((n, d, h, dh), (None, "width", "heads", None), "normal"),
        "k": Spec((n, d, k, dh), (None, "width", "kv_heads", None), "normal"),
        "v": Spec((n, d, k, dh), (None, "width", "kv_heads", None), "normal"),
        "o": Spec((n, h, dh, d), (None, "heads", None, "width"), "normal"),
        "mlp_norm": Spec((n, d), (None, None), "ones"),
        "gate": Spec((n, d, f), (None, "width", "mlp"), "normal"),
        "up": Spec((n, d, f), (None, "width", "mlp"), "normal"),
        "down": Spec((n, f, d), (None, "mlp", "width"), "normal"),
    }
    if cfg.qkv_bias:
        layer["q_bias"] = Spec((n, h, dh), (None, "heads", None), "zeros")
        layer["k_bias"] = Spec((n, k, dh), (None, "kv_heads", None), "zeros")
        layer["v_bias"] = Spec((n, k, dh), (None, "kv_heads", None), "zeros")
    if cfg.qk_norm:
        layer["q_norm"] = Spec((n, dh), (None, None), "ones")
        layer["k_norm"] = Spec((n, dh), (None, None), "ones")
    specs = {
        "embed": Spec((cfg.vocab_size, d), ("vocab", "width"), "normal"),
        "layers": layer,
        "final_norm": Spec((d,), (None,), "ones"),
    }
    if not cfg.tied:
        specs["head"] = Spec((cfg.vocab_size, d), ("vocab", "width"), "normal")
    return specs


def is_spec(x: Any) -> bool:
    """For jax.tree: a Spec is a leaf, although it is a tuple."""
    return isinstance(x, Spec)


def shardings(specs: dict[str, Any], mesh: Mesh) -> Params:
    """The sharding of each of these parameters on the mesh."""
    return jax.tree.map(lambda s: sharding(mesh, s.axes, s.shape), specs, is_leaf=is_spec)


def init(key: Array, cfg: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal(0.02), residual outputs scaled by 1/sqrt(2 L), norms 1, biases 0."""
    specs = param_specs(cfg)
    leaves, tree = jax.tree.flatten_with_path(specs, is_leaf=is_spec)

    def draw(i, path, spec):
        if spec.init == "normal":
            residual = path[-1].key in ("o", "down")
            scale = 0.02 / math.sqrt(2 * cfg.layers) if residual else 0.02
            return scale * jax.random.normal(jax.random.fold_in(key, i), spec.shape, dtype)
        return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape, dtype)

    return jax.tree.unflatten(tree, [draw(i, path, spec) for i, (path, spec) in enumerate(leaves)])


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def head_matrix(params: Params) -> Float[AnyArray, "V D"]:
    """The output matrix: the embedding when tied."""
    return params.get("head", params["embed"])


def rms_norm(x: Float[AnyArray, "... D"], scale: Float[AnyArray, "D"], eps: float) -> Float[Array, "... D"]:
    """x / rms(x) * scale, the mean square in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale


def rope_tables(cfg: ModelConfig, position: Int[AnyArray, "*N"]) -> tuple[Float[Array, "*N i"], Float[Array, "*N i"]]:
    """cos and sin of position * frequency, in float32."""
    freq = frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    angle = position[..., None].astype(jnp.float32) * freq
    if isinstance(cfg.rope_scaling, YarnScaling):
        return cfg.rope_scaling.attention_factor * jnp.cos(angle), cfg.rope_scaling.attention_factor * jnp.sin(angle)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[AnyArray, "*N H Dh"], rope) -> Float[Array, "*N H Dh"]:
    """Rotary embedding on (first half, second half) pairs, the layout of Hugging Face files."""
    cos, sin = (t[..., None, :].astype(x.dtype) for t in rope)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def product(x: Float[AnyArray, "*N D"], w: Params, name: str) -> Float[Array, "*N E"]:
    """x W, all output axes in one, with what an adapter of the matrix adds (model/lora.py)."""
    y = x @ w[name].reshape(x.shape[-1], -1)
    if f"{name}_a" in w:
        a, b = w[f"{name}_a"], w[f"{name}_b"]
        y = y + (x @ a.reshape(x.shape[-1], -1)) @ b.reshape(a.shape[-1], -1)
    return y


def qkv(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, rope):
    """Queries [*N, H, Dh] and keys, values [*N, K, Dh], biased, normalised and rotated as the family asks."""
    lead = x.shape[:-1]
    h, k, dh = cfg.heads, cfg.kv_heads, cfg.head_dim
    x = merged(x)
    if "qkv" in w:  # fused by `decoding.decoding_layout`
        parts = jnp.split(x @ w["qkv"], [h * dh, (h + k) * dh], -1)
    else:
        parts = [product(x, w, name) for name in "qkv"]
    if cfg.qkv_bias:
        parts = [y + w[f"{name}_bias"].reshape(-1) for name, y in zip("qkv", parts, strict=True)]
    q, key, v = (y.reshape(*lead, n, dh) for y, n in zip(parts, (h, k, k), strict=True))
    if cfg.qk_norm:
        q, key = rms_norm(q, w["q_norm"], cfg.norm_eps), rms_norm(key, w["k_norm"], cfg.norm_eps)
    return rotate(q, rope), rotate(key, rope), v


def mlp(x: Float[AnyArray, "*N D"], w: Params) -> Float[Array, "*N D"]:
    """(silu(x gate) * x up) down."""
    y = merged(x)
    if "gate_up" in w:
        gate, up = jnp.split(y @ w["gate_up"], 2, -1)
    else:
        gate, up = product(y, w, "gate"), product(y, w, "up")
    return product(jax.nn.silu(gate) * up, w, "down").reshape(x.shape)


def block(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, rope, attend) -> tuple[Float[Array, "*N D"], Any]:
    """One layer. `attend` takes q [*N, H, Dh] and k, v [*N, K, Dh] and returns ([*N, H, Dh], a second result)."""
    out, extra = attend(*qkv(rms_norm(x, w["attn_norm"], cfg.norm_eps), w, cfg, rope))
    x = x + product(merged(out.reshape(*x.shape[:-1], -1)), w, "o").reshape(x.shape)
    return x + mlp(rms_norm(x, w["mlp_norm"], cfg.norm_eps), w), extra


def by_head(x: Float[AnyArray, "*N T K Dh"]) -> Float[Array, "*N K T Dh"]:
    """Keys or values in the layout of attention and the caches."""
    return jnp.swapaxes(x, -3, -2)


def prompt_mask(in_prompt: Bool[AnyArray, "P S"]) -> Bool[Array, "P 1 S S"]:
    """[query, key]: which of its own tokens each token of a prompt attends to."""
    s = in_prompt.shape[-1]
    return jnp.tril(jnp.ones((s, s), bool)) & in_prompt[:, None, None, :]


def attend_prompt(q, k, v, mask: Bool[AnyArray, "P 1 S S"], kernel: Kernel | None = None):
    """`block`'s `attend` for prompts, each a group of one with no prompt before it; returns [P, K, S, Dh] of both."""
    k, v = by_head(k), by_head(v)
    out = attention(q[:, None], (k[:, None], v[:, None]), mask, kernel=kernel, queries=QUERIES)
    return out[:, 0], (k, v)


class Completions(NamedTuple):
    """The G completions of each prompt. `segment` (shapes.py) says which tokens are chain, tag and answers.

    `no_chain`: (ids, segment) of further rows of another width, through whose states no gradient runs. With
    `two_branches` False there is no sampled answer, which saves the splash kernel a pass. `layout`: ids and states are
    those of its pool, [U, N] (model/pool.py); segments stay as they are.
    """

    ids: Int[AnyArray, "*N"]
    segment: Int[AnyArray, "P G T"]
    no_chain: tuple[Int[AnyArray, "P 1 W"], Int[AnyArray, "P 1 W"]] | None = None
    two_branches: bool = True
    layout: Layout | None = None


class Hidden(NamedTuple):
    """Final hidden states of the prompt, of the completions and of the rows without a chain (None without them)."""

    prompt: Float[Array, "P S D"]
    completion: Float[Array, "*N D"] | None
    no_chain: Float[Array, "P 1 W D"] | None


_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(splash.RESULTS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def forward(
    params: Params,
    cfg: ModelConfig,
    prompt: Int[AnyArray, "P S"],
    prompt_length: Int[AnyArray, "P"],
    rows: Completions | None = None,
    pooled: bool = True,
) -> Hidden:
    """Hidden states of P right-padded prompts, each computed once, and of their completions.

    Log-probs [B, T-1] of plain right-padded ids [B, T] (each token given those before it):

        hidden = forward(params, cfg, ids, lengths).prompt
        stats = token_stats(hidden[:, :-1], head_matrix(params), ids[:, 1:], chunk=512)
        logp = jnp.where(jnp.arange(1, ids.shape[1]) < lengths[:, None], stats.log_prob, 0.0)

    Both answers of a completion continue its chain and do not attend to each other. `pooled`: on one device the tokens
    of prompts and completions are multiplied with each weight together: fewer, larger products, 10 % faster on a CPU.
    """
    dtype = jnp.dtype(cfg.compute_dtype)
    in_prompt = jnp.arange(prompt.shape[1]) < prompt_length[:, None]
    mask, kernel, own, no_chain = prompt_mask(in_prompt), None, None, rows and rows.no_chain
    if rows is not None:
        two_branches = rows.two_branches if cfg.attention == "splash" else None
        own = _view(cfg, rows.segment, prompt_length, two_branches, rows.layout)
    if cfg.attention == "splash":  # causality hides what comes after a prompt
        kernel = Kernel(jnp.full((len(prompt), 1, prompt.shape[1]), CHAIN), False)

    def embedded(ids):
        return params["embed"][ids].astype(dtype)

    def attend_first(q, k, v):
        out, keys = attend_prompt(q, k, v, mask, kernel)
        return out, (*keys, in_prompt)

    enter = _pooled if pooled and rows is not None and row_shards() == 1 else _separate
    states, through, leave = enter(embedded, cfg, prompt, rows and rows.ids, own, attend_first)
    z = None
    if no_chain is not None:
        z, of_z = jax.lax.stop_gradient(embedded(no_chain[0])), _view(cfg, no_chain[1], prompt_length)

    def layer(carry, w):
        states, z = carry
        w = jax.tree.map(lambda a: a.astype(dtype), w)
        states, keys = through(states, w)
        if z is not None:  # made of nothing that has a tangent, so the backward pass has no trace of it
            z = _row_block(z, *jax.lax.stop_gradient((w, keys)), cfg, of_z)
        return (states, z), None

    if cfg.remat != "none":
        layer = jax.checkpoint(layer, policy=_REMAT[cfg.remat], prevent_cse=not cfg.scan_layers)
    if cfg.scan_layers:
        (states, z), _ = jax.lax.scan(layer, (states, z), params["layers"])
    else:
        for w in unstack_layers(params, cfg)["layers"]:
            (states, z), _ = layer((states, z), w)
    scale = params["final_norm"].astype(dtype)
    return Hidden(*(None if x is None else rms_norm(x, scale, cfg.norm_eps) for x in (*leave(states), z)))


class _View(NamedTuple):
    """Rotary tables of some rows, and which of their own tokens each token attends to. `rows`: of a pool's tokens, in
    attention."""

    rope: tuple[Array, Array]
    mask: Bool[Array, "P G T T"]
    kernel: Kernel | None
    rows: Places | None = None


def _view(
    cfg: ModelConfig, segment, prompt_length, two_branches: bool | None = None, layout: Layout | None = None
) -> _View:
    """`two_branches`: for the splash kernel; None is the dense attention."""
    positions = branch_positions(segment, prompt_length)
    rope = rope_tables(cfg, positions if layout is None else layout.completions.pool(positions))
    if layout is None:
        mask = branch_mask(segment)
    else:
        mask, segment = layout.mask(), layout.rows.spread(layout.completions.pool(segment))
    kernel = None if two_branches is None else Kernel(segment, two_branches)
    return _View(rope, mask, kernel, layout and layout.rows)


def _attend_rows(q, k, v, prompt: PromptKeys, view: _View):
    if view.rows is not None:
        q, k, v = map(view.rows.spread, (q, k, v))
    out = attention(q, (by_head(k), by_head(v)), view.mask, prompt, view.kernel, QUERIES)
    return out if view.rows is None else view.rows.pool(out)


def _row_block(y, w: Params, prompt: PromptKeys, cfg: ModelConfig, view: _View):
    """One layer of rows that come after prompts."""
    return block(y, w, cfg, view.rope, lambda q, k, v: (_attend_rows(q, k, v, prompt, view), None))[0]


def _separate(embedded, cfg: ModelConfig, prompt, ids, view: _View | None, attend_first):
    """Prompts and completions as two arrays: their states, one layer of them, and how to get both arrays."""
    rope = rope_tables(cfg, jnp.arange(prompt.shape[1]))

    def through(states, w):
        x, y = states
        x, keys = block(x, w, cfg, rope, attend_first)
        return (along_prompt(x), None if y is None else _row_block(y, w, keys, cfg, view)), keys

    return (along_prompt(embedded(prompt)), None if ids is None else embedded(ids)), through, lambda states: states


def _pooled(embedded, cfg: ModelConfig, prompt, ids, view: _View, attend_first):
    """`_separate`, with the tokens of both in one array."""
    join, part = pool(prompt.shape, ids.shape)
    positions = jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape)
    rope = tuple(map(join, rope_tables(cfg, positions), view.rope))

    def attend(q, k, v):
        (q, q_own), (k, k_own), (v, v_own) = map(part, (q, k, v))
        out, keys = attend_first(q, k, v)
        return join(out, _attend_rows(q_own, k_own, v_own, keys, view)), keys

    return embedded(join(prompt, ids)), lambda states, w: block(states, w, cfg, rope, attend), part


def pool(*leads: tuple[int, ...]):
    """join(arrays [*lead, ...], one per lead) -> [N, ...], all their tokens in one axis; and its inverse."""
    ends = list(itertools.accumulate(map(math.prod, leads)))

    def join(*parts):
        return jnp.concatenate([x.reshape(-1, *x.shape[len(lead) :]) for x, lead in zip(parts, leads, strict=True)])

    def part(x):
        pieces = jnp.split(x, ends[:-1])
        return tuple(piece.reshape(*lead, *x.shape[1:]) for piece, lead in zip(pieces, leads, strict=True))

    return join, part


def unstack_layers(params: Params, cfg: ModelConfig) -> Params:
    """Layers as a tuple. Slicing a layer out of the stack copies it, so a loop over `forward` does it once, before."""
    if isinstance(params["layers"], tuple):
        return params
    layers = tuple({k: v[i] for k, v in params["layers"].items()} for i in range(cfg.layers))
    return params | {"layers": layers}


def stack_layers(params: Params) -> Params:
    """The inverse of `unstack_layers`."""
    return params | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}
