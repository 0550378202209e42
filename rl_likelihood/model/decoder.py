"""One decoder for all model families of weights/families.py: its layers and its forward pass.

Parameters (`architecture.py`) are a nested dict of layer-stacked arrays, and all functions are pure. `forward` returns
hidden states; `head.py` computes log-probs from them, and `decoding.py` decodes token by token.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import (
    context_shards,
    flatten_tokens,
    gather_fsdp,
    row_shards,
    shard_prompt_tokens,
    split_tokens,
)
from rl_likelihood.model import splash
from rl_likelihood.model.architecture import ModelConfig, Params, param_specs, part_of_matrix
from rl_likelihood.model.attention import QUERIES, Kernel, attention, branch_mask, branch_positions, references
from rl_likelihood.model.experts import activated, experts_mlp
from rl_likelihood.model.pool import Layout, Places
from rl_likelihood.model.views import View, layer_views, of_layer, prompt_parts, prompt_views, whole_prompts
from rl_likelihood.shapes import AnyArray


def rms_norm(x: Float[AnyArray, "... D"], scale: Float[AnyArray, "D"], cfg: ModelConfig) -> Float[Array, "... D"]:
    """x / rms(x) * scale. The mean square is computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + cfg.norm_eps)
    if cfg.norm_offset:  # the sum in float32: bfloat16 has few numbers near 1
        return (y * (cfg.norm_offset + scale.astype(jnp.float32))).astype(x.dtype)
    return y.astype(x.dtype) * scale


def normed(x: Float[AnyArray, "*N D"], w: Params, name: str, cfg: ModelConfig) -> Float[Array, "*N D"]:
    """x after the layer's norm `name`; x itself if the family has no such norm."""
    return rms_norm(x, w[name], cfg) if name in w else x


def embedding(params: Params, cfg: ModelConfig, ids: Int[AnyArray, "*N"]) -> Float[Array, "*N D"]:
    """The embeddings of these ids, in the compute dtype."""
    x = jnp.asarray(params["embed"][ids], cfg.compute_dtype)
    return x * jnp.asarray(cfg.width**0.5, x.dtype) if cfg.scaled_embedding else x


def rotate(x: Float[AnyArray, "*N H Dh"], rope) -> Float[Array, "*N H Dh"]:
    """Rotary embedding on (first half, second half) pairs, the layout of Hugging Face files."""
    cos, sin = (t[..., None, :].astype(x.dtype) for t in rope)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def product(x: Float[AnyArray, "*N D"], w: Params, name: str) -> Float[Array, "*N E"]:
    """x W, with all output axes flattened. Applies the scales of an int8 matrix, and adds the adapter's product
    (model/lora.py)."""
    y = x @ w[name].reshape(x.shape[-1], -1)
    if f"{name}_scale" in w:
        y = (y * w[f"{name}_scale"].reshape(-1)).astype(x.dtype)
    if f"{name}_a" in w:
        a, b = w[f"{name}_a"], w[f"{name}_b"]
        y = y + (x @ a.reshape(x.shape[-1], -1)) @ b.reshape(a.shape[-1], -1)
    return y


def qkv(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, rope):
    """Queries [*N, H, Dh], keys and values [*N, K, Dh], with the family's biases, norms and rotation."""
    lead = x.shape[:-1]
    h, k, dh = cfg.heads, cfg.kv_heads, cfg.head_dim
    x = flatten_tokens(x)
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
    if cfg.query_width:  # `attention` divides by sqrt(head_dim); this corrects it
        q = q * (dh / cfg.query_width) ** 0.5
    return rotate(q, rope), rotate(key, rope), v


def mlp(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig) -> Float[Array, "*N D"]:
    """(act(x gate) * x up) down, where act is silu or gelu, or that of each token's experts."""
    if cfg.experts:
        return experts_mlp(x, w, cfg)
    y = flatten_tokens(x)
    if "gate_up" in w:
        gate, up = jnp.split(product(y, w, "gate_up"), 2, -1)
    else:
        gate, up = product(y, w, "gate"), product(y, w, "up")
    return product(activated(gate, cfg) * up, w, "down").reshape(x.shape)


def block(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, rope, attend) -> tuple[Float[Array, "*N D"], Any]:
    """One layer. `attend` maps q [*N, H, Dh] and k, v [*N, K, Dh] to ([*N, H, Dh], any second result)."""
    out, second = attend(*qkv(normed(x, w, "attn_norm", cfg), w, cfg, rope))
    out = product(flatten_tokens(out.reshape(*x.shape[:-1], -1)), w, "o").reshape(x.shape)
    x = x + normed(out, w, "attn_out_norm", cfg)
    return x + normed(mlp(normed(x, w, "mlp_norm", cfg), w, cfg), w, "mlp_out_norm", cfg), second


def by_head(x: Float[AnyArray, "*N T K Dh"]) -> Float[Array, "*N K T Dh"]:
    """Keys or values with the head axis before the token axis, as attention takes them."""
    return jnp.swapaxes(x, -3, -2)


def attend_prompt(q, k, v, mask: Bool[AnyArray, "P 1 S S"], kernel: Kernel | None = None):
    """`block`'s `attend` for prompts. Its second result is (keys, values), each [P, K, S, Dh]."""
    k, v = by_head(k), by_head(v)
    out = attention(q[:, None], (k[:, None], v[:, None]), mask, kernel=kernel, queries=QUERIES)
    return out[:, 0], (k, v)


def attend_after(q, k, v, common: tuple[Array, Array], view: View):
    """`block`'s `attend` for the rest of prompts after their common ids, whose keys and values are `common`
    [1, K, C, Dh]. Its second result is that of whole prompts."""
    k, v = by_head(k), by_head(v)
    before = tuple(jnp.broadcast_to(x, (len(q), *x.shape[1:])) for x in common)
    out = attention(q[:, None], (k[:, None], v[:, None]), view.own, (*before, view.prompt), queries=QUERIES)
    return out[:, 0], tuple(jnp.concatenate(parts, 2) for parts in zip(before, (k, v), strict=True))


def attend_prompts(q, k, v, views: Sequence[View], kernel: Kernel | None = None):
    """Attention of `prompt_parts`: (the outputs of the parts, (keys, values) of whole prompts, each [P, K, S, Dh])."""
    out, keys = attend_prompt(q[0], k[0], v[0], views[0].own, kernel)
    if len(q) == 1:
        return (out,), keys
    rest, keys = attend_after(q[1], k[1], v[1], keys, views[1])
    return (out, rest), keys


def prompt_block(states: Sequence[Array], w: Params, cfg: ModelConfig, views: Sequence[View], kernel=None):
    """One layer of `prompt_parts`: (their states, (keys, values) of whole prompts)."""
    first = functools.partial(attend_prompt, mask=views[0].own, kernel=kernel)
    x, keys = block(states[0], w, cfg, views[0].rope, first)
    if len(states) == 1:
        return (x,), keys
    after = functools.partial(attend_after, common=keys, view=views[1])
    rest, keys = block(states[1], w, cfg, views[1].rope, after)
    return (x, rest), keys


class Completions(NamedTuple):
    """The G completions of each prompt. `segment`: whether a token is chain, tag or answer (shapes.py).

    `no_chain`: (ids, segment) of one more row per prompt, of another width. `references`, for the splash kernel: 0 if
    rows have at most one answer, at their end; else the most reference answers of a row, of up to `reference_tokens`
    tokens (0: any). `layout`: if given, ids and states have the shape [U, N] of its pool (model/pool.py). `pooled`: on
    one device, a weight is multiplied with all tokens at once; the larger products are 10 % faster on a CPU.
    """

    ids: Int[AnyArray, "*N"]
    segment: Int[AnyArray, "P G T"]
    no_chain: tuple[Int[AnyArray, "P 1 W"], Int[AnyArray, "P 1 W"]] | None = None
    references: int = 1
    reference_tokens: int = 0
    layout: Layout | None = None
    pooled: bool = True


class Hidden(NamedTuple):
    """Final hidden states of the prompts, of the completions, and of the rows without a chain (None if not given)."""

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
    common: int = 0,
) -> Hidden:
    """Hidden states of P right-padded prompts, each computed once, and of their completions.

    Example: log-probs [B, T-1] of right-padded ids [B, T], each token given the tokens before it:

        hidden = forward(params, cfg, ids, lengths).prompt
        stats = token_stats(hidden[:, :-1], head_matrix(params), ids[:, 1:], chunk=512)
        logp = jnp.where(jnp.arange(1, ids.shape[1]) < lengths[:, None], stats.log_prob, 0.0)

    The two answers of a completion both follow its chain and do not attend to each other. `common`: all prompts begin
    with the same `common` ids, and every prompt is longer; with dense attention these ids are computed once.
    """
    no_chain, layout = rows and rows.no_chain, rows and rows.layout
    in_prompt = jnp.arange(prompt.shape[1]) < prompt_length[:, None]
    modes = _modes(cfg, rows)
    common = 0 if cfg.attention == "splash" else common
    views = functools.partial(_row_views, cfg, prompt_length, in_prompt)
    tables = [*prompt_views(cfg, in_prompt, common), rows and views(rows.segment, layout)]
    of_no_chain = no_chain and views(no_chain[1])
    if context_shards() > 1:  # split over fsdp alone ("rows"); otherwise a device has only a part of each vector
        params = params | {"embed": gather_fsdp(params["embed"], ("vocab", "rows"))}
    embedded = functools.partial(embedding, params, cfg)
    enter = _pooled if rows is not None and rows.pooled and row_shards() == 1 else _separate
    states, tables, through, leave = enter(
        embedded, cfg, prompt_parts(prompt, common), rows and rows.ids, tables, modes
    )
    z = None if no_chain is None else embedded(no_chain[0])

    def layer(carry, w, is_local):
        states, z = carry
        w = gathered({k: a if k.endswith("_scale") else a.astype(cfg.compute_dtype) for k, a in w.items()}, cfg)
        states, keys = through(states, w, *(views and of_layer(views, is_local) for views in tables))
        if z is not None:
            z = _row_block(z, w, keys, cfg, of_layer(of_no_chain, is_local), AttentionMode())
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
    *prompts, completions = leave(states)
    return Hidden(*(None if x is None else rms_norm(x, scale, cfg) for x in (whole_prompts(prompts), completions, z)))


def gathered(w: Params, cfg: ModelConfig) -> Params:
    """The weights of one layer, with adapters and scales, gathered over fsdp and context if tokens are split over
    context. Left to itself, the compiler would rather move the tokens, which are split over both axes."""
    if context_shards() == 1:
        return w
    specs = param_specs(cfg)["layers"]
    specs |= {name: part_of_matrix(specs, name) for name in w.keys() - specs.keys()}
    return {name: gather_fsdp(x, specs[name].axes[1:]) for name, x in w.items()}


class AttentionMode(NamedTuple):
    """`kernel`: by the splash kernel (None: densely). `places`: attention rows of a pool's tokens (None: no pool)."""

    kernel: Kernel | None = None
    places: Places | None = None


def _modes(cfg: ModelConfig, rows: Completions | None) -> tuple[AttentionMode, AttentionMode]:
    """How attention is computed for prompts, and for completions."""
    places = (layout := rows and rows.layout) and layout.rows
    if cfg.attention != "splash":
        return AttentionMode(), AttentionMode(places=places)
    branches = None  # causality hides what follows a prompt, or an answer
    if rows is not None and rows.references:
        kinds = rows.segment, references(jnp.asarray(rows.segment))
        kinds = kinds if layout is None else map(layout.in_rows, kinds)
        branches = splash.Branches(*kinds, rows.references, rows.reference_tokens)
    return AttentionMode(Kernel()), AttentionMode(Kernel(branches), places)


def _row_views(cfg: ModelConfig, prompt_length, in_prompt, segment, layout: Layout | None = None) -> tuple[View, ...]:
    """The views of completions. With a layout, rotary tables are in the order of the pool, and masks are those of the
    attention rows."""
    position = branch_positions(segment, prompt_length)
    if layout is None:
        return layer_views(cfg, position, branch_mask(segment), in_prompt)
    row_views = layer_views(cfg, layout.in_rows(position), layout.mask(), in_prompt)
    pool_views = layer_views(cfg, layout.completions.pool(position), None)
    return tuple(
        row_view._replace(rope=pool_view.rope) for row_view, pool_view in zip(row_views, pool_views, strict=True)
    )


def _attend_rows(q, k, v, keys, view: View, mode: AttentionMode):
    if mode.places is not None:
        q, k, v = map(mode.places.spread, (q, k, v))
    k, v = split_tokens(k, False), split_tokens(v, False)  # each device of context has its queries, and all keys
    out = attention(q, (by_head(k), by_head(v)), view.own, (*keys, view.prompt), mode.kernel, QUERIES)
    return out if mode.places is None else mode.places.pool(out)


def _row_block(y, w: Params, keys, cfg: ModelConfig, view: View, mode: AttentionMode):
    """One layer of rows that follow prompts. `keys`: the prompts' keys and values."""
    return block(y, w, cfg, view.rope, lambda q, k, v: (_attend_rows(q, k, v, keys, view, mode), None))[0]


def _separate(embedded, cfg: ModelConfig, prompts, ids, tables, modes):
    """The parts of the prompts and the completions as arrays of their own. Returns (initial states, their views, the
    function of one layer, the function that gives all arrays)."""

    def through(states, w, *views: View | None):
        *parts, y = states
        parts, keys = prompt_block(parts, w, cfg, views[:-1], modes[0].kernel)
        parts = map(shard_prompt_tokens, parts)
        return (*parts, None if y is None else split_tokens(_row_block(y, w, keys, cfg, views[-1], modes[1]))), keys

    states = (
        *(shard_prompt_tokens(embedded(x)) for x in prompts),
        None if ids is None else embedded(split_tokens(ids)),
    )
    return states, tables, through, lambda states: states


def _pooled(embedded, cfg: ModelConfig, prompts, ids, tables, modes):
    """`_separate` with all tokens in one array. The first view gets the rotary tables of all."""
    shapes = [*(x.shape for x in prompts), ids.shape]
    join, part = pool(*shapes)

    def joined(*ropes):
        return join(*(jnp.broadcast_to(x, (*shape, x.shape[-1])) for x, shape in zip(ropes, shapes, strict=True)))

    of_all = tuple(
        first._replace(rope=tuple(map(joined, first.rope, *(view.rope for view in others))))
        for first, *others in zip(*tables, strict=True)
    )

    def through(states, w, *views: View):
        def attend(q, k, v):
            (*q, q_own), (*k, k_own), (*v, v_own) = map(part, (q, k, v))
            out, keys = attend_prompts(q, k, v, views[:-1], modes[0].kernel)
            return join(*out, _attend_rows(q_own, k_own, v_own, keys, views[-1], modes[1])), keys

        return block(states, w, cfg, views[0].rope, attend)

    return embedded(join(*prompts, ids)), [of_all, *tables[1:]], through, part


def pool(*leads: tuple[int, ...]):
    """(join, part). join maps arrays [*lead, ...], one per lead, to one array [N, ...] of all tokens; part is its
    inverse."""
    ends = list(itertools.accumulate(map(math.prod, leads)))

    def join(*parts):
        return jnp.concatenate([x.reshape(-1, *x.shape[len(lead) :]) for x, lead in zip(parts, leads, strict=True)])

    def part(x):
        pieces = jnp.split(x, ends[:-1])
        return tuple(piece.reshape(*lead, *x.shape[1:]) for piece, lead in zip(pieces, leads, strict=True))

    return join, part


def unstack_layers(params: Params, cfg: ModelConfig) -> Params:
    """Parameters with the layers as a tuple. Slicing a layer out of the stack copies it, so do this once, before a loop
    over `forward`."""
    if isinstance(params["layers"], tuple):
        return params
    layers = tuple({k: v[i] for k, v in params["layers"].items()} for i in range(cfg.layers))
    return params | {"layers": layers}


def stack_layers(params: Params) -> Params:
    """The inverse of `unstack_layers`."""
    return params | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}
