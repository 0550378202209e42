"""What the tokens of a layer see: rotary tables, and masks over their own keys and their prompt's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.model.rope import YarnScaling, frequencies
from rl_likelihood.shapes import AnyArray


def rope_tables(
    cfg: ModelConfig, position: Int[AnyArray, "*N"], local: bool = False
) -> tuple[Float[Array, "*N i"], Float[Array, "*N i"]]:
    """cos and sin of position * frequency, in float32. `local`: for the layers of `cfg.local`."""
    theta, scaling = cfg.rope_theta, cfg.rope_scaling
    if local and cfg.local.theta is not None:
        theta, scaling = cfg.local.theta, None
    angle = position[..., None].astype(jnp.float32) * frequencies(cfg.head_dim, theta, scaling)
    if isinstance(scaling, YarnScaling):
        return scaling.attention_factor * jnp.cos(angle), scaling.attention_factor * jnp.sin(angle)
    return jnp.cos(angle), jnp.sin(angle)


class View(NamedTuple):
    """The rotary tables of some tokens, and their masks over the row's own tokens and over the prompt's tokens."""

    rope: tuple[Array, Array]
    own: Bool[Array, "P #G T U"]
    prompt: Bool[Array, "P S"] | Bool[Array, "P #G #T S"] | None


def layer_views(cfg: ModelConfig, position, own, in_prompt=None, ago=None) -> tuple[View, ...]:
    """The views of tokens at these positions: (in ordinary layers,) or (in ordinary layers, in local layers).

    `ago`: for each query, how many tokens ago its own keys were; None: keys and queries are the same tokens.
    """
    view = View(rope_tables(cfg, position), own, in_prompt)
    if cfg.local is None:
        return (view,)
    local, window = view._replace(rope=rope_tables(cfg, position, True)), cfg.local.window
    if window and own is not None:
        ago = position[..., :, None] - position[..., None, :] if ago is None else ago
        local = local._replace(own=own & (ago < window))
    if window and in_prompt is not None:
        view, key_position = view._replace(prompt=in_prompt[:, None, None]), jnp.arange(in_prompt.shape[-1])
        local = local._replace(prompt=view.prompt & (position[..., None] - key_position < window))
    return view, local


def of_layer(views: tuple[View, ...], is_local: bool | Bool[Array, ""] | None) -> View:
    """The view in one layer. When layers are scanned, the program selects it at run time."""
    if len(views) == 1 or isinstance(is_local, bool):
        return views[bool(is_local and len(views) > 1)]
    return jax.tree.map(functools.partial(jnp.where, is_local), views[1], views[0])


def prompt_mask(in_prompt: Bool[AnyArray, "P S"]) -> Bool[Array, "P 1 S S"]:
    """The mask [query, key] of prompts: causal, without padding."""
    s = in_prompt.shape[-1]
    return jnp.tril(jnp.ones((s, s), bool)) & in_prompt[:, None, None, :]


def prompt_parts(x: Shaped[AnyArray, "P S"], common: int) -> tuple[Shaped[AnyArray, "_ _"], ...]:
    """Prompts (whole,), or as (the ids with which all begin [1, C], the rest of each [P, S - C])."""
    return (x[:1, :common], x[:, common:]) if common else (x,)


def whole_prompts(parts: Sequence[Float[AnyArray, "_ _ D"]]) -> Float[Array, "P S D"]:
    """States of `prompt_parts` as states of whole prompts."""
    *common, rest = parts
    return jnp.concatenate([*(jnp.broadcast_to(x, (len(rest), *x.shape[1:])) for x in common), rest], 1)


def prompt_views(cfg: ModelConfig, in_prompt: Bool[AnyArray, "P S"], common: int) -> tuple[tuple[View, ...], ...]:
    """The views of each of `prompt_parts`."""
    index = jnp.arange(in_prompt.shape[1])
    if not common:
        return (layer_views(cfg, index, prompt_mask(in_prompt)),)
    rest = layer_views(cfg, index[common:], prompt_mask(in_prompt[:, common:]), in_prompt[:, :common])
    return layer_views(cfg, index[:common], prompt_mask(in_prompt[:1, :common])), rest
