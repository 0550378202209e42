"""Decoding: the weights in a layout for it, the prompts' keys and values, and one token of every row."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.model.attention import attention, decode_attention
from rl_likelihood.model.decoder import (
    ModelConfig,
    Params,
    attend_prompt,
    block,
    by_head,
    embedding,
    layer_views,
    of_layer,
    prompt_mask,
    rms_norm,
    unstack_layers,
)
from rl_likelihood.model.lora import added_up, to_int8
from rl_likelihood.shapes import AnyArray


def decoding_layout(params: Params, cfg: ModelConfig) -> Params:
    """The decoding layout, made once per weight version: layers as a tuple, qkv and gate-up products fused.

    A decode step then copies no weight and makes four large products a layer instead of seven.
    """
    return {
        **without_layers(params, cfg),
        "layers": tuple(fuse_layer(w, cfg) for w in unstack_layers(params, cfg)["layers"]),
    }


def fuse_layer(w: Params, cfg: ModelConfig) -> Params:
    """One layer in the decoding layout. With `cfg.int8_decoding` its matrices are int8, with a float32 scale for each
    output, which halves what a decode step reads in bfloat16."""
    w = added_up(w)
    w["qkv"] = jnp.concatenate([w.pop(name).reshape(cfg.width, -1) for name in "qkv"], -1)
    w["gate_up"] = jnp.concatenate([w.pop("gate"), w.pop("up")], -1)
    w = {k: v.astype(cfg.compute_dtype) for k, v in w.items()}
    if cfg.int8_decoding:
        for name, inputs in (("qkv", (0,)), ("gate_up", (0,)), ("o", (0, 1)), ("down", (0,))):
            w[name], w[f"{name}_scale"] = to_int8(w[name], inputs)
    return w


def without_layers(params: Params, cfg: ModelConfig) -> Params:
    """What belongs to no layer, in the decoding layout. Always copies: the learner donates its parameters while the
    sampler still reads these."""
    return {k: jnp.array(v, cfg.compute_dtype, copy=True) for k, v in params.items() if k != "layers"}


def prefill(
    weights: Params, cfg: ModelConfig, prompt: Int[AnyArray, "P S"], prompt_length: Int[AnyArray, "P"]
) -> tuple[Float[Array, "P D"], tuple]:
    """Hidden state of each prompt's last token, and the prompts' keys and values, one pair a layer as in `Cache`.

    `weights` are `decoding_layout(params, cfg)`. A prompt is computed once, whatever the group size.
    """
    index = jnp.arange(prompt.shape[1])
    views = layer_views(cfg, index, prompt_mask(index < prompt_length[:, None]))
    x = embedding(weights, cfg, prompt)
    cache = []
    for w, is_local in zip(weights["layers"], cfg.are_local, strict=True):
        view = of_layer(views, is_local)
        x, (keys, values) = block(x, w, cfg, view.rope, functools.partial(attend_prompt, mask=view.own))
        cache.append((keys.swapaxes(2, 3), values))
    x = jnp.take_along_axis(x, (prompt_length - 1)[:, None, None], 1)[:, 0]
    return rms_norm(x, weights["final_norm"], cfg), tuple(cache)


def empty_cache(cfg: ModelConfig, rows: int, length: int) -> tuple:
    """Own keys and values of `rows` rows of at most `length` completion tokens, zero."""
    keys = jnp.zeros((rows, cfg.kv_heads, cfg.head_dim, length), cfg.compute_dtype)
    return tuple((keys, keys.swapaxes(2, 3)) for _ in range(cfg.layers))


class Cache(NamedTuple):
    """Keys [.., K, Dh, positions] and values [.., K, positions, Dh] while decoding, one pair a layer: those of the
    prompts, leading with P, and the rows' own, leading with P x G."""

    prompt: tuple[tuple[Array, Array], ...]
    own: tuple[tuple[Array, Array], ...]


class Positions(NamedTuple):
    """Where a decode step writes in the rows' own caches, and what each row attends to.

    Keys are rotated by `position` before they are stored, so their order in the cache means nothing.
    """

    write: Int[Array, ""]  # index in every row's own cache
    position: Int[Array, "P #G"]  # of the token in its sequence
    own_mask: Bool[Array, "P G T"]  # entries of its own cache that a row attends to, that of this token included
    in_prompt: Bool[Array, "P S"]


def aligned_positions(
    token: Int[AnyArray, "P G"], index: Int[AnyArray, ""], prompt_length: Int[AnyArray, "P"], cache: Cache
) -> Positions:
    """Those of completion token number `index` of every row. Own keys beyond `index` are masked."""
    keys = cache.own[0][0]
    own_mask = jnp.broadcast_to(jnp.arange(keys.shape[-1]) <= index, (*token.shape, keys.shape[-1]))
    in_prompt = jnp.arange(cache.prompt[0][0].shape[-1]) < prompt_length[:, None]
    return Positions(index, (prompt_length + index)[:, None], own_mask, in_prompt)


def _ago(cfg: ModelConfig, own_mask: Bool[AnyArray, "P G T"], write: Int[AnyArray, ""]) -> Int[Array, "P G 1 T"] | None:
    """How many tokens ago each of its own keys was, of those that a row attends to. A cache may be a ring."""
    if cfg.local is None:
        return None
    count = jnp.cumsum(own_mask, -1)
    after = jnp.where(jnp.arange(count.shape[-1]) > write, count[..., -1:], 0)  # the ring's older part
    return (after + jnp.take(count, write, axis=-1)[..., None] - count)[:, :, None]


def decode_step(
    weights: Params, cfg: ModelConfig, token: Int[AnyArray, "P G"], at: Positions, cache: Cache
) -> tuple[Float[Array, "P G D"], Cache]:
    """Hidden state after one more token of each row, and the cache with it. `weights`: `decoding_layout(params, cfg)`.

    Rows of different ages all write at the same index of their own caches.
    """
    p, g = token.shape
    position = jnp.broadcast_to(at.position, (p, g))[..., None]
    views = layer_views(cfg, position, at.own_mask[:, :, None], at.in_prompt, _ago(cfg, at.own_mask, at.write))
    x = embedding(weights, cfg, token.reshape(-1))[:, None]  # [P x G, 1, D]
    own = []
    for i, (w, shared, before) in enumerate(zip(weights["layers"], cache.prompt, cache.own, strict=True)):
        view = of_layer(views, cfg.are_local[i])
        masks = [mask.reshape(-1, mask.shape[-1]) for mask in (view.own, view.prompt)]
        rope = tuple(table.reshape(p * g, 1, -1) for table in view.rope)

        def attend(q, k, v, shared=shared, before=before, masks=masks):
            k, v = by_head(k), by_head(v)
            keys = jax.lax.dynamic_update_slice_in_dim(before[0], k.swapaxes(2, 3), at.write, 3)
            values = jax.lax.dynamic_update_slice_in_dim(before[1], v, at.write, 2)
            out = decode_attention(q[:, 0], (keys, values), masks[0], shared, masks[1])
            return out[:, None], (keys, values)

        x, pair = block(x, w, cfg, rope, attend)
        own.append(pair)
    x = rms_norm(x, weights["final_norm"], cfg)
    return x.reshape(p, g, -1), Cache(cache.prompt, tuple(own))


def extend(
    weights: Params, cfg: ModelConfig, tokens: Int[AnyArray, "P G E"], at: Positions, cache: Cache
) -> tuple[Float[Array, "P G E D"], Cache]:
    """`decode_step` of E tokens of each row, which stand at `at.write` and after it in the rows' own caches.

    `at.position` is that of the first of them; `at.own_mask` says which entries before them a row attends to.
    """
    p, g, e = tokens.shape
    length = at.own_mask.shape[-1]
    index = jnp.arange(length) - at.write
    among = (index >= 0) & (index <= jnp.arange(e)[:, None])  # [E, T]
    mask = (at.own_mask[:, :, None] & (index < 0)) | among
    ago = mask.sum(-1, keepdims=True) - jnp.cumsum(mask, -1)
    views = layer_views(cfg, at.position[..., None] + jnp.arange(e), mask, at.in_prompt, ago)
    x = embedding(weights, cfg, tokens)
    own = []
    for i, (w, shared, before) in enumerate(zip(weights["layers"], cache.prompt, cache.own, strict=True)):
        view = of_layer(views, cfg.are_local[i])
        prompt = shared[0].swapaxes(2, 3), shared[1], view.prompt

        def attend(q, k, v, prompt=prompt, before=before, mask=view.own):
            k, v = (by_head(x).reshape(p * g, cfg.kv_heads, e, -1) for x in (k, v))
            keys = jax.lax.dynamic_update_slice_in_dim(before[0], k.swapaxes(2, 3), at.write, 3)
            values = jax.lax.dynamic_update_slice_in_dim(before[1], v, at.write, 2)
            whole = (x.reshape(p, g, cfg.kv_heads, length, -1) for x in (keys.swapaxes(2, 3), values))
            return attention(q, tuple(whole), mask, prompt), (keys, values)

        x, pair = block(x, w, cfg, view.rope, attend)
        own.append(pair)
    return rms_norm(x, weights["final_norm"], cfg), Cache(cache.prompt, tuple(own))
