"""One decoder for all families of weights/families.py: layers and forward. Decoding is in `decoding.py`.

Parameters (`architecture.py`) are a nested dict of layer-stacked arrays; everything here is a function of them. The
head (vocabulary) lives in `head.py`: `forward` returns hidden states.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import along_prompt, merged, row_shards
from rl_likelihood.model import splash
from rl_likelihood.model.architecture import (
    LocalLayers,
    ModelConfig,
    Params,
    Spec,
    count,
    head_matrix,
    init,
    is_spec,
    param_specs,
    shardings,
)
from rl_likelihood.model.attention import QUERIES, Kernel, attention, branch_mask, branch_positions
from rl_likelihood.model.experts import activated, experts_mlp
from rl_likelihood.model.pool import Layout, Places
from rl_likelihood.model.rope import YarnScaling, frequencies
from rl_likelihood.shapes import CHAIN, AnyArray

__all__ = [
    "Completions",
    "Hidden",
    "LocalLayers",
    "ModelConfig",
    "Params",
    "Spec",
    "count",
    "forward",
    "head_matrix",
    "init",
    "is_spec",
    "param_specs",
    "shardings",
]


def rms_norm(x: Float[AnyArray, "... D"], scale: Float[AnyArray, "D"], cfg: ModelConfig) -> Float[Array, "... D"]:
    """x / rms(x) * scale, the mean square in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + cfg.norm_eps)
    if cfg.norm_offset:  # the sum in float32: bfloat16 has few numbers near 1
        return (y * (cfg.norm_offset + scale.astype(jnp.float32))).astype(x.dtype)
    return y.astype(x.dtype) * scale


def normed(x: Float[AnyArray, "*N D"], w: Params, name: str, cfg: ModelConfig) -> Float[Array, "*N D"]:
    """x by the layer's norm of this name; x itself where the family has none."""
    return rms_norm(x, w[name], cfg) if name in w else x


def embedding(params: Params, cfg: ModelConfig, ids: Int[AnyArray, "*N"]) -> Float[Array, "*N D"]:
    """The first states of these ids, in the type that the network computes in."""
    x = jnp.asarray(params["embed"][ids], cfg.compute_dtype)
    return x * jnp.asarray(cfg.width**0.5, x.dtype) if cfg.scaled_embedding else x


def rope_tables(
    cfg: ModelConfig, position: Int[AnyArray, "*N"], local: bool = False
) -> tuple[Float[Array, "*N i"], Float[Array, "*N i"]]:
    """cos and sin of position * frequency, in float32; `local`: those of `cfg.local`."""
    theta, scaling = cfg.rope_theta, cfg.rope_scaling
    if local and cfg.local.theta is not None:
        theta, scaling = cfg.local.theta, None
    angle = position[..., None].astype(jnp.float32) * frequencies(cfg.head_dim, theta, scaling)
    if isinstance(scaling, YarnScaling):
        return scaling.attention_factor * jnp.cos(angle), scaling.attention_factor * jnp.sin(angle)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[AnyArray, "*N H Dh"], rope) -> Float[Array, "*N H Dh"]:
    """Rotary embedding on (first half, second half) pairs, the layout of Hugging Face files."""
    cos, sin = (t[..., None, :].astype(x.dtype) for t in rope)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def product(x: Float[AnyArray, "*N D"], w: Params, name: str) -> Float[Array, "*N E"]:
    """x W, all output axes in one, with the scales of an int8 matrix and what an adapter adds (model/lora.py)."""
    y = x @ w[name].reshape(x.shape[-1], -1)
    if f"{name}_scale" in w:
        y = (y * w[f"{name}_scale"].reshape(-1)).astype(x.dtype)
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
        parts = jnp.split(product(x, w, "qkv"), [h * dh, (h + k) * dh], -1)
    else:
        parts = [product(x, w, name) for name in "qkv"]
    if cfg.qkv_bias:
        parts = [y + w[f"{name}_bias"].reshape(-1) for name, y in zip("qkv", parts, strict=True)]
    if cfg.qk_norm and cfg.qk_norm_joint:
        parts = [rms_norm(parts[0], w["q_norm"], cfg), rms_norm(parts[1], w["k_norm"], cfg), parts[2]]
    q, key, v = (y.reshape(*lead, n, dh) for y, n in zip(parts, (h, k, k), strict=True))
    if cfg.qk_norm and not cfg.qk_norm_joint:
        q, key = rms_norm(q, w["q_norm"], cfg), rms_norm(key, w["k_norm"], cfg)
    if cfg.query_width:  # attention divides by the root of the heads' own width
        q = q * (dh / cfg.query_width) ** 0.5
    return rotate(q, rope), rotate(key, rope), v


def mlp(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig) -> Float[Array, "*N D"]:
    """(silu(x gate) * x up) down, or that of the experts of each token."""
    if cfg.experts:
        return experts_mlp(x, w, cfg)
    y = merged(x)
    if "gate_up" in w:
        gate, up = jnp.split(product(y, w, "gate_up"), 2, -1)
    else:
        gate, up = product(y, w, "gate"), product(y, w, "up")
    return product(activated(gate, cfg) * up, w, "down").reshape(x.shape)


def block(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, rope, attend) -> tuple[Float[Array, "*N D"], Any]:
    """One layer. `attend` takes q [*N, H, Dh] and k, v [*N, K, Dh] and returns ([*N, H, Dh], a second result)."""
    out, extra = attend(*qkv(normed(x, w, "attn_norm", cfg), w, cfg, rope))
    out = product(merged(out.reshape(*x.shape[:-1], -1)), w, "o").reshape(x.shape)
    x = x + normed(out, w, "attn_out_norm", cfg)
    return x + normed(mlp(normed(x, w, "mlp_norm", cfg), w, cfg), w, "mlp_out_norm", cfg), extra


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

    `no_chain`: (ids, segment) of further rows of another width. With `two_branches` False there is no sampled answer,
    which saves the splash kernel a pass. `layout`: ids and states are those of its pool, [U, N] (model/pool.py);
    segments stay as they are.
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
    index, no_chain = jnp.arange(prompt.shape[1]), rows and rows.no_chain
    in_prompt, layout = index < prompt_length[:, None], rows and rows.layout
    ways = Way(), Way(places=layout and layout.rows)
    if cfg.attention == "splash":  # causality hides what comes after a prompt
        first = Kernel(jnp.full((len(prompt), 1, prompt.shape[1]), CHAIN), False)
        segment = rows and (rows.segment if layout is None else layout.in_rows(rows.segment))
        ways = Way(first), ways[1]._replace(kernel=rows and Kernel(segment, rows.two_branches))

    views = functools.partial(_row_views, cfg, prompt_length, in_prompt)
    tables = [layer_views(cfg, index, prompt_mask(in_prompt)), rows and views(rows.segment, layout)]
    of_no_chain = no_chain and views(no_chain[1])
    embedded = functools.partial(embedding, params, cfg)
    enter = _pooled if pooled and rows is not None and row_shards() == 1 else _separate
    states, through, leave = enter(embedded, cfg, prompt, rows and rows.ids, tables, ways)
    z = None if no_chain is None else embedded(no_chain[0])

    def layer(carry, w, is_local):
        states, z = carry
        w = jax.tree.map(lambda a: a.astype(cfg.compute_dtype), w)
        states, keys = through(states, w, *(views and of_layer(views, is_local) for views in tables))
        if z is not None:
            z = _row_block(z, w, keys, cfg, of_layer(of_no_chain, is_local), Way())
        return (states, z), None

    def remat(layer):
        policy = _REMAT.get(cfg.remat)
        return jax.checkpoint(layer, policy=policy, prevent_cse=not cfg.scan_layers) if policy else layer

    if cfg.scan_layers:
        flags = jnp.array(cfg.are_local) if cfg.local else None
        step = remat(lambda carry, x: layer(carry, *x))
        (states, z), _ = jax.lax.scan(step, (states, z), (params["layers"], flags))
    else:
        steps = {flag: remat(functools.partial(layer, is_local=flag)) for flag in {*cfg.are_local}}
        for w, flag in zip(unstack_layers(params, cfg)["layers"], cfg.are_local, strict=True):
            (states, z), _ = steps[flag]((states, z), w)
    scale = params["final_norm"].astype(cfg.compute_dtype)
    return Hidden(*(None if x is None else rms_norm(x, scale, cfg) for x in (*leave(states), z)))


class View(NamedTuple):
    """Rotary tables of some tokens, and which of their own and of their prompt's tokens each attends to."""

    rope: tuple[Array, Array]
    own: Bool[Array, "P #G T U"]
    prompt: Bool[Array, "P S"] | Bool[Array, "P #G #T S"] | None


class Way(NamedTuple):
    """How attention is computed: by the splash kernel or densely (None); of a pool's tokens in the rows of `places`."""

    kernel: Kernel | None = None
    places: Places | None = None


def layer_views(cfg: ModelConfig, position, own, in_prompt=None, ago=None) -> tuple[View, ...]:
    """The view of tokens at these positions in the ordinary layers, and in the local layers if there are any.

    `ago`: how many tokens before each query its own keys are; None: the keys are those of the queries.
    """
    view = View(rope_tables(cfg, position), own, in_prompt)
    if cfg.local is None:
        return (view,)
    local, window = view._replace(rope=rope_tables(cfg, position, True)), cfg.local.window
    if window and own is not None:
        ago = position[..., :, None] - position[..., None, :] if ago is None else ago
        local = local._replace(own=own & (ago < window))
    if window and in_prompt is not None:
        view, within = view._replace(prompt=in_prompt[:, None, None]), jnp.arange(in_prompt.shape[-1])
        local = local._replace(prompt=view.prompt & (position[..., None] - within < window))
    return view, local


def _row_views(cfg: ModelConfig, prompt_length, in_prompt, segment, layout: Layout | None = None) -> tuple[View, ...]:
    """The views of completions. Of a pool's tokens the rotary tables are in its order, masks in that of its rows."""
    position = branch_positions(segment, prompt_length)
    if layout is None:
        return layer_views(cfg, position, branch_mask(segment), in_prompt)
    of_rows = layer_views(cfg, layout.in_rows(position), layout.mask(), in_prompt)
    of_pool = layer_views(cfg, layout.completions.pool(position), None)
    return tuple(one._replace(rope=other.rope) for one, other in zip(of_rows, of_pool, strict=True))


def of_layer(views: tuple[View, ...], is_local: bool | Bool[Array, ""] | None) -> View:
    """The view in one layer; where layers are scanned it is chosen in the program."""
    if len(views) == 1 or isinstance(is_local, bool):
        return views[bool(is_local and len(views) > 1)]
    return jax.tree.map(functools.partial(jnp.where, is_local), views[1], views[0])


def _attend_rows(q, k, v, keys, view: View, way: Way):
    if way.places is not None:
        q, k, v = map(way.places.spread, (q, k, v))
    out = attention(q, (by_head(k), by_head(v)), view.own, (*keys, view.prompt), way.kernel, QUERIES)
    return out if way.places is None else way.places.pool(out)


def _row_block(y, w: Params, keys, cfg: ModelConfig, view: View, way: Way):
    """One layer of rows that come after prompts with these keys and values."""
    return block(y, w, cfg, view.rope, lambda q, k, v: (_attend_rows(q, k, v, keys, view, way), None))[0]


def _separate(embedded, cfg: ModelConfig, prompt, ids, tables, ways):
    """Prompts and completions as two arrays: their states, one layer of them, and how to get both arrays."""

    def through(states, w, of_prompt: View, of_rows: View | None):
        x, y = states
        attend = functools.partial(attend_prompt, mask=of_prompt.own, kernel=ways[0].kernel)
        x, keys = block(x, w, cfg, of_prompt.rope, attend)
        return (along_prompt(x), None if y is None else _row_block(y, w, keys, cfg, of_rows, ways[1])), keys

    return (along_prompt(embedded(prompt)), None if ids is None else embedded(ids)), through, lambda states: states


def _pooled(embedded, cfg: ModelConfig, prompt, ids, tables, ways):
    """`_separate`, with the tokens of both in one array, and of their rotary tables in those of the prompt's view."""
    join, part = pool(prompt.shape, ids.shape)

    def both(one, other):
        return join(jnp.broadcast_to(one, (*prompt.shape, one.shape[-1])), other)

    tables[0] = tuple(p._replace(rope=tuple(map(both, p.rope, r.rope))) for p, r in zip(*tables, strict=True))

    def through(states, w, of_prompt: View, of_rows: View):
        def attend(q, k, v):
            (q, q_own), (k, k_own), (v, v_own) = map(part, (q, k, v))
            out, keys = attend_prompt(q, k, v, of_prompt.own, ways[0].kernel)
            return join(out, _attend_rows(q_own, k_own, v_own, keys, of_rows, ways[1])), keys

        return block(states, w, cfg, of_prompt.rope, attend)

    return embedded(join(prompt, ids)), through, part


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
