"""Decoding by the decoder: its weights laid out for it, the prompts' keys and values, and one token of every row."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.model.attention import decode_attention
from rl_likelihood.model.decoder import (
    ModelConfig,
    Params,
    attend_prompt,
    block,
    by_head,
    prompt_mask,
    rms_norm,
    rope_tables,
    unstack_layers,
)


def decoding_layout(params: Params, cfg: ModelConfig) -> Params:
    """Decoding layout, made once per weight version: layers as a tuple, qkv and gate-up products fused.

    A decode step then copies no weight and makes four large products a layer instead of seven.
    """
    return {
        **without_layers(params, cfg),
        "layers": tuple(fuse_layer(w, cfg) for w in unstack_layers(params, cfg)["layers"]),
    }


def fuse_layer(w: Params, cfg: ModelConfig) -> Params:
    """One layer in the decoding layout."""
    w = {k: v.astype(cfg.compute_dtype) for k, v in w.items()}
    w["qkv"] = jnp.concatenate([w.pop(name).reshape(cfg.width, -1) for name in "qkv"], -1)
    w["gate_up"] = jnp.concatenate([w.pop("gate"), w.pop("up")], -1)
    return w


def without_layers(params: Params, cfg: ModelConfig) -> Params:
    """What belongs to no layer, in the decoding layout: copies even where nothing changes, as the learner donates its
    parameters while the sampler still reads these."""
    return {k: jnp.array(v, cfg.compute_dtype, copy=True) for k, v in params.items() if k != "layers"}


def prefill(
    weights: Params, cfg: ModelConfig, prompt: Int[Array, "P S"], prompt_length: Int[Array, "P"]
) -> tuple[Float[Array, "P D"], tuple]:
    """Hidden state of each prompt's last token, and the prompts' keys and values, one pair a layer as in `Cache`.

    `weights` are `decoding_layout(params, cfg)`. A prompt is computed once, whatever the group size.
    """
    at = jnp.arange(prompt.shape[1])
    attend = functools.partial(attend_prompt, mask=prompt_mask(at < prompt_length[:, None]))
    rope = rope_tables(cfg, at)
    x = weights["embed"][prompt]
    cache = []
    for w in weights["layers"]:
        x, (keys, values) = block(x, w, cfg, rope, attend)
        cache.append((keys.swapaxes(2, 3), values))
    x = jnp.take_along_axis(x, (prompt_length - 1)[:, None, None], 1)[:, 0]
    return rms_norm(x, weights["final_norm"], cfg.norm_eps), tuple(cache)


def empty_cache(cfg: ModelConfig, rows: int, length: int) -> tuple:
    """Own keys and values of `rows` rows of at most `length` completion tokens, zero."""
    keys = jnp.zeros((rows, cfg.kv_heads, cfg.head_dim, length), cfg.compute_dtype)
    return tuple((keys, keys.swapaxes(2, 3)) for _ in range(cfg.layers))


class Cache(NamedTuple):
    """Keys [.., K, Dh, positions] and values [.., K, positions, Dh] while decoding, one pair a layer: those of the
    prompts, leading with P, and the rows' own, leading with P x G."""

    prompt: tuple[tuple[Array, Array], ...]
    own: tuple[tuple[Array, Array], ...]


def decode_step(
    weights: Params,
    cfg: ModelConfig,
    token: Int[Array, "P G"],
    index: Int[Array, ""],
    prompt_length: Int[Array, "P"],
    in_prompt: Bool[Array, "P S"],
    cache: Cache,
) -> tuple[Float[Array, "P G D"], Cache]:
    """Hidden state after completion token number `index` (the same for every row), and the cache with it.

    `weights` are `decoding_layout(params, cfg)`. Own keys beyond `index` are not seen.
    """
    length = cache.own[0][0].shape[-1]
    own_mask = jnp.broadcast_to(jnp.arange(length) <= index, (*token.shape, length))
    return decode_rows(weights, cfg, token, index, (prompt_length + index)[:, None], own_mask, in_prompt, cache)


def decode_rows(
    weights: Params,
    cfg: ModelConfig,
    token: Int[Array, "P G"],
    write: Int[Array, ""],
    position: Int[Array, "P #G"],
    own_mask: Bool[Array, "P G T"],
    in_prompt: Bool[Array, "P S"],
    cache: Cache,
) -> tuple[Float[Array, "P G D"], Cache]:
    """`decode_step` for rows of different ages: all write at place `write` of their own caches, wherever they are.

    Keys are rotated by `position` before they are kept, so their order in the cache means nothing: `own_mask` says
    which of them (that of this token included) a row sees.
    """
    p, g = token.shape
    rope = rope_tables(cfg, jnp.broadcast_to(position, (p, g)).reshape(-1, 1))
    own_mask = own_mask.reshape(p * g, -1)
    x = weights["embed"][token.reshape(-1)][:, None]  # [P x G, 1, D]
    own = []
    for w, shared, (keys, values) in zip(weights["layers"], cache.prompt, cache.own, strict=True):

        def attend(q, k, v, shared=shared, keys=keys, values=values):
            k, v = by_head(k), by_head(v)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, k.swapaxes(2, 3), write, 3)
            values = jax.lax.dynamic_update_slice_in_dim(values, v, write, 2)
            out = decode_attention(q[:, 0], (keys, values), own_mask, shared, in_prompt)
            return out[:, None], (keys, values)

        x, kept = block(x, w, cfg, rope, attend)
        own.append(kept)
    x = rms_norm(x, weights["final_norm"], cfg.norm_eps)
    return x.reshape(p, g, -1), Cache(cache.prompt, tuple(own))
