"""Decoding: the weight layout for it, the prompts' keys and values (prefill), and one step for every row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.model.attention import attention, decode_attention
from rl_likelihood.model.decoder import block, by_head, embedding, prompt_block, rms_norm, unstack_layers
from rl_likelihood.model.lora import added_up, to_int8
from rl_likelihood.model.views import layer_views, of_layer, prompt_parts, prompt_views
from rl_likelihood.shapes import AnyArray


def decoding_layout(params: Params, cfg: ModelConfig) -> Params:
    """The weights in the decoding layout: layers as a tuple, with fused qkv and gate-up matrices.

    A decode step then copies no weight, and each layer has four large products instead of seven.
    """
    return {
        **without_layers(params, cfg),
        "layers": tuple(fuse_layer(w, cfg) for w in unstack_layers(params, cfg)["layers"]),
    }


def fuse_layer(w: Params, cfg: ModelConfig) -> Params:
    """One layer in the decoding layout. With `cfg.int8_decoding` its matrices are int8, with a float32 scale for each
    output, which halves what a decode step reads in bfloat16."""
    w = {k: v.astype(cfg.compute_dtype) for k, v in added_up(w).items()}
    w["qkv"] = jnp.concatenate([w.pop(name).reshape(cfg.width, -1) for name in "qkv"], -1)
    w["gate_up"] = jnp.concatenate([w.pop("gate"), w.pop("up")], -1)
    if cfg.int8_decoding:
        for name, inputs in (("qkv", (0,)), ("gate_up", (0,)), ("o", (0, 1)), ("down", (0,))):
            w[name], w[f"{name}_scale"] = to_int8(w[name], inputs)
    return w


def without_layers(params: Params, cfg: ModelConfig) -> Params:
    """The weights outside the layers, in the decoding layout. Always copies, because the learner donates its parameters
    while the sampler still reads these."""
    return {k: jnp.array(v, cfg.compute_dtype, copy=True) for k, v in params.items() if k != "layers"}


def prefill(
    weights: Params, cfg: ModelConfig, prompt: Int[AnyArray, "P S"], prompt_length: Int[AnyArray, "P"], common: int = 0
) -> tuple[Float[Array, "P D"], tuple]:
    """(the hidden state of each prompt's last token; the prompts' keys and values for each layer, as in `Cache`).

    `weights` are `decoding_layout(params, cfg)`. Each prompt is computed once for its whole group, and the first
    `common` ids, with which all prompts begin, once for all.
    """
    views = prompt_views(cfg, jnp.arange(prompt.shape[1]) < prompt_length[:, None], common)
    states = tuple(embedding(weights, cfg, ids) for ids in prompt_parts(prompt, common))
    cache = []
    for w, is_local in zip(weights["layers"], cfg.are_local, strict=True):
        states, (keys, values) = prompt_block(states, w, cfg, [of_layer(view, is_local) for view in views])
        cache.append((keys.swapaxes(2, 3), values))
    last = jnp.take_along_axis(states[-1], (prompt_length - common - 1)[:, None, None], 1)[:, 0]
    return rms_norm(last, weights["final_norm"], cfg), tuple(cache)


def empty_cache(cfg: ModelConfig, rows: int, length: int) -> tuple:
    """Zero keys and values for `rows` rows of at most `length` completion tokens."""
    keys = jnp.zeros((rows, cfg.kv_heads, cfg.head_dim, length), cfg.compute_dtype)
    return tuple((keys, keys.swapaxes(2, 3)) for _ in range(cfg.layers))


class Cache(NamedTuple):
    """The (keys, values) of each layer while decoding. Keys are [.., K, Dh, positions], values [.., K, positions, Dh].
    The leading axis of `prompt` is P; that of `own`, the rows' own keys and values, is P x G."""

    prompt: tuple[tuple[Array, Array], ...]
    own: tuple[tuple[Array, Array], ...]


class Positions(NamedTuple):
    """Where a decode step writes in the rows' own caches, and what each row attends to.

    Keys are rotated by `position` before they are stored, so their order in the cache does not matter.
    """

    write: Int[Array, ""]  # index in every row's own cache
    position: Int[Array, "P #G"]  # position of the token in its sequence
    own_mask: Bool[Array, "P G T"]  # entries of its own cache that a row attends to, including this token's entry
    in_prompt: Bool[Array, "P S"]


def aligned_positions(
    token: Int[AnyArray, "P G"], index: Int[AnyArray, ""], prompt_length: Int[AnyArray, "P"], cache: Cache
) -> Positions:
    """The positions of completion token number `index` of every row. Own keys beyond `index` are masked."""
    keys = cache.own[0][0]
    own_mask = jnp.broadcast_to(jnp.arange(keys.shape[-1]) <= index, (*token.shape, keys.shape[-1]))
    in_prompt = jnp.arange(cache.prompt[0][0].shape[-1]) < prompt_length[:, None]
    return Positions(index, (prompt_length + index)[:, None], own_mask, in_prompt)


def _ago(cfg: ModelConfig, own_mask: Bool[AnyArray, "P G T"], write: Int[AnyArray, ""]) -> Int[Array, "P G 1 T"] | None:
    """How many tokens ago each own key of a row was, counting only keys that the row attends to. The cache may be a
    ring. None for a model without local layers."""
    if cfg.local is None:
        return None
    count = jnp.cumsum(own_mask, -1)
    older = jnp.where(jnp.arange(count.shape[-1]) > write, count[..., -1:], 0)  # the ring's older part
    return (older + jnp.take(count, write, axis=-1)[..., None] - count)[:, :, None]


def decode_step(
    weights: Params, cfg: ModelConfig, token: Int[AnyArray, "P G"], positions: Positions, cache: Cache
) -> tuple[Float[Array, "P G D"], Cache]:
    """(the hidden state after one more token of each row, the cache with it). `weights`: in the decoding layout.

    Rows of different ages all write at the same index of their own caches.
    """
    p, g = token.shape
    position = jnp.broadcast_to(positions.position, (p, g))[..., None]
    views = layer_views(
        cfg,
        position,
        positions.own_mask[:, :, None],
        positions.in_prompt,
        _ago(cfg, positions.own_mask, positions.write),
    )
    x = embedding(weights, cfg, token.reshape(-1))[:, None]  # [P x G, 1, D]
    own = []
    for i, (w, shared, old) in enumerate(zip(weights["layers"], cache.prompt, cache.own, strict=True)):
        view = of_layer(views, cfg.are_local[i])
        masks = [mask.reshape(-1, mask.shape[-1]) for mask in (view.own, view.prompt)]
        rope = tuple(table.reshape(p * g, 1, -1) for table in view.rope)

        def attend(q, k, v, shared=shared, old=old, masks=masks):
            k, v = by_head(k), by_head(v)
            keys = jax.lax.dynamic_update_slice_in_dim(old[0], k.swapaxes(2, 3), positions.write, 3)
            values = jax.lax.dynamic_update_slice_in_dim(old[1], v, positions.write, 2)
            out = decode_attention(q[:, 0], (keys, values), masks[0], shared, masks[1])
            return out[:, None], (keys, values)

        x, pair = block(x, w, cfg, rope, attend)
        own.append(pair)
    x = rms_norm(x, weights["final_norm"], cfg)
    return x.reshape(p, g, -1), Cache(cache.prompt, tuple(own))


def extend(
    weights: Params, cfg: ModelConfig, tokens: Int[AnyArray, "P G E"], positions: Positions, cache: Cache
) -> tuple[Float[Array, "P G E D"], Cache]:
    """`decode_step` for E tokens of each row. They are stored from `positions.write` on in the rows' own caches.

    `positions.position`: of the first of them. `positions.own_mask`: the earlier entries that a row attends to.
    """
    p, g, e = tokens.shape
    length = positions.own_mask.shape[-1]
    index = jnp.arange(length) - positions.write
    among_new = (index >= 0) & (index <= jnp.arange(e)[:, None])  # [E, T]
    mask = (positions.own_mask[:, :, None] & (index < 0)) | among_new
    tokens_ago = mask.sum(-1, keepdims=True) - jnp.cumsum(mask, -1)
    views = layer_views(cfg, positions.position[..., None] + jnp.arange(e), mask, positions.in_prompt, tokens_ago)
    x = embedding(weights, cfg, tokens)
    own = []
    for i, (w, shared, old) in enumerate(zip(weights["layers"], cache.prompt, cache.own, strict=True)):
        view = of_layer(views, cfg.are_local[i])
        prompt = shared[0].swapaxes(2, 3), shared[1], view.prompt

        def attend(q, k, v, prompt=prompt, old=old, mask=view.own):
            k, v = (by_head(x).reshape(p * g, cfg.kv_heads, e, -1) for x in (k, v))
            keys = jax.lax.dynamic_update_slice_in_dim(old[0], k.swapaxes(2, 3), positions.write, 3)
            values = jax.lax.dynamic_update_slice_in_dim(old[1], v, positions.write, 2)
            whole = (x.reshape(p, g, cfg.kv_heads, length, -1) for x in (keys.swapaxes(2, 3), values))
            return attention(q, tuple(whole), mask, prompt), (keys, values)

        x, pair = block(x, w, cfg, view.rope, attend)
        own.append(pair)
    return rms_norm(x, weights["final_norm"], cfg), Cache(cache.prompt, tuple(own))
