"""Samples conversations: rows continue after the environment's tokens, and earlier keys and values stay in the cache.

`start_rows` computes each prompt once for its group. `take_turn` appends the environment's reply to every row, in one
forward, and samples the model's next message. Before each turn the caches are packed, layer by layer, which frees the
unused positions of the turn before. A row's random numbers come from its own key and the number of tokens that it has
sampled, so its ids do not depend on other rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, Positions, decode_step, empty_cache, extend, prefill
from rl_likelihood.sampler.draw import Axes, Request, choose, own_rows, request_specs, row_keys, split_axes, spread
from rl_likelihood.shapes import AnyArray

# Widths of packed tokens and of replies are rounded up to 0, this, twice this, four times this, ... A turn is compiled
# once for each pair of them and each shape of a batch: those of training and of evaluation.
WIDTH = 64


class Rows(NamedTuple):
    """The rows between two turns, on the device. A turn deletes their caches. C: positions for a row's own tokens."""

    cache: Cache  # leading axes: [P] for the prompts, [P, G] for the rows' own keys and values
    used: Bool[Array, "P G C"]  # positions that hold one of the row's tokens; these are in order
    hidden: Float[Array, "P G D"]  # state after the row's last token, from which the next token is drawn
    prompt_length: Int[Array, "P"]
    keys: Array  # [P, G]
    sampled: Int[Array, "P G"]  # tokens sampled so far


class TurnPrefix(NamedTuple):
    """The ids to append to each row before it samples: the first `count` of `ids`. Rows that are not `going` do not
    change."""

    ids: Int[AnyArray, "P G E"]
    count: Int[AnyArray, "P G"]
    going: Bool[AnyArray, "P G"]


class Turn(NamedTuple):
    """The model's messages in one turn, with their end-of-sequence ids if they have one."""

    ids: Int[Array, "P G N"]
    logp: Float[Array, "P G N"]  # nats, at the row's temperature
    length: Int[Array, "P G"]


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"))
def start_rows(weights: Params, cfg: ModelConfig, request: Request, mesh: Mesh | None = None) -> Rows:
    """Rows with only their prompts. `mesh`: prompts are split over its data axis, the rows of a group over fsdp."""
    p_axis, g_axis = split_axes(request, mesh)

    def part(weights: Params, request: Request) -> Rows:
        p, g = request.prompt.shape[0], request.temperature.shape[0]
        first = request.first_chain + (jax.lax.axis_index(g_axis) * g if g_axis and own_rows(mesh) else 0)
        hidden, shared = prefill(weights, cfg, request.prompt, request.prompt_length, request.common_length)
        return Rows(
            cache=Cache(shared, _split_rows(empty_cache(cfg, p * g, 0), p)),
            used=jnp.zeros((p, g, 0), bool),
            hidden=jnp.broadcast_to(hidden[:, None], (p, g, hidden.shape[-1])),
            prompt_length=jnp.asarray(request.prompt_length),
            keys=row_keys(request.key, request.uid, jnp.full_like(request.uid, first), g),
            sampled=jnp.zeros((p, g), jnp.int32),
        )

    return spread(part, mesh, (request_specs(p_axis, g_axis),), _row_specs(p_axis, g_axis))(weights, request)


class TurnSettings(NamedTuple):
    """The model, the maximum ids of a message, and the mesh whose devices sample (None: one device)."""

    model: ModelConfig
    max_tokens: int
    mesh: Mesh | None = None


def take_turn(
    weights: Params,
    rows: Rows,
    prefix: TurnPrefix,
    request: Request,
    settings: TurnSettings,
    announce: Callable[[int, int, int, Hashable], None] = lambda earlier, reply, sampled, shape: None,
) -> tuple[Rows, Turn]:
    """One turn: appends the given ids, then samples at most `settings.max_tokens` ids, up to an end-of-sequence id.

    Before a turn after the first, `announce` gets a row's positions (those of earlier tokens, of the given ids, of the
    sampled ones) and the shape for which the turn is compiled.
    """
    width = padded(int(np.asarray(rows.used.sum(-1)).max()))
    padding = padded(prefix.ids.shape[-1]) - prefix.ids.shape[-1]
    prefix = prefix._replace(
        ids=np.pad(prefix.ids, [(0, 0), (0, 0), (0, padding)], constant_values=int(request.pad_id)),
        count=np.where(prefix.going, prefix.count, 0),
    )
    given = prefix.ids.shape[-1]
    if width:
        announce(width, given, settings.max_tokens, (prefix.ids.shape, request.prompt.shape, settings))
    rows = packed(rows, width, width + given + settings.max_tokens, split_axes(request, settings.mesh), settings.mesh)
    return turn(weights, rows._replace(cache=Cache(rows.cache.prompt, ())), rows.cache.own, prefix, request, settings)


def padded(n: int) -> int:
    """The smallest allowed width of at least n."""
    return 0 if n == 0 else max(WIDTH, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("settings",), donate_argnames=("own",))
def turn(
    weights: Params, rows: Rows, own: tuple, prefix: TurnPrefix, request: Request, settings: TurnSettings
) -> tuple[Rows, Turn]:
    """`take_turn` on packed rows, as one program. `own`: the rows' own caches, which are changed in place."""
    axes = split_axes(request, settings.mesh)
    leading, row_specs = PartitionSpec(*axes), _row_specs(*axes)

    def part(weights: Params, rows: Rows, own: tuple, prefix: TurnPrefix, request: Request) -> tuple[Rows, Turn]:
        return _turn(weights, rows, own, prefix, request, settings)

    specs = (row_specs, leading, leading, request_specs(*axes))
    return spread(part, settings.mesh, specs, (row_specs, leading))(weights, rows, own, prefix, request)


def _turn(
    weights: Params, rows: Rows, own: tuple, prefix: TurnPrefix, request: Request, settings: TurnSettings
) -> tuple[Rows, Turn]:
    """One turn of the rows of one device."""
    cfg, max_tokens = settings.model, settings.max_tokens
    p, g, e = prefix.ids.shape
    used, hidden = rows.used, rows.hidden
    width = used.shape[-1] - e - max_tokens  # the positions of earlier tokens
    cache = Cache(rows.cache.prompt, jax.tree.map(lambda x: x.reshape(p * g, *x.shape[2:]), own))
    in_prompt = jnp.arange(cache.prompt[0][0].shape[-1]) < rows.prompt_length[:, None]
    position = rows.prompt_length[:, None] + used.sum(-1)
    index = jnp.arange(used.shape[-1]) - width
    if e:
        positions = Positions(jnp.int32(width), position, used, in_prompt)
        states, cache = extend(weights, cfg, prefix.ids, positions, cache)
        last = jnp.take_along_axis(states, jnp.maximum(prefix.count - 1, 0)[..., None, None], 2)[:, :, 0]
        hidden = jnp.where((prefix.count > 0)[..., None], last, hidden)
        used = used | ((index >= 0) & (index < prefix.count[..., None]))
        position = position + prefix.count
    head = head_matrix(weights)

    def running_rows(carry):
        i, _, _, _, running, _ = carry
        return (i < max_tokens) & running.any()

    def body(carry):
        i, cache, used, hidden, running, turn = carry
        token, logp = choose(
            hidden, head, rows.keys, rows.sampled + turn.length, request.temperature[None], request.cut
        )
        used = used | ((index == e + i) & running[..., None])
        # The last token is computed too, because the next turn continues after it.
        state, cache = decode_step(weights, cfg, token, Positions(width + e + i, position + i, used, in_prompt), cache)
        hidden = jnp.where(running[..., None], state, hidden)
        new = (jnp.arange(max_tokens) == i) & running[..., None]
        turn = Turn(
            jnp.where(new, token[..., None], turn.ids),
            jnp.where(new, logp[..., None], turn.logp),
            turn.length + running,
        )
        return i + 1, cache, used, hidden, running & ~(token[..., None] == request.ends.eos).any(-1), turn

    empty = Turn(
        jnp.full((p, g, max_tokens), request.pad_id, jnp.int32),
        jnp.zeros((p, g, max_tokens), jnp.float32),
        jnp.zeros((p, g), jnp.int32),
    )
    start = (jnp.int32(0), cache, used, hidden, jnp.asarray(prefix.going), empty)
    _, cache, used, hidden, _, written = jax.lax.while_loop(running_rows, body, start)
    cache = Cache(cache.prompt, _split_rows(cache.own, p))
    return rows._replace(cache=cache, used=used, hidden=hidden, sampled=rows.sampled + written.length), written


def packed(rows: Rows, width: int, positions: int, axes: Axes, mesh: Mesh | None) -> Rows:
    """The rows with their tokens in the first `width` of `positions` positions. The old caches are deleted."""
    order, used = packing_order(rows.used, width, positions, axes, mesh)
    own = []
    for layer in rows.cache.own:
        own.append(packed_layer(layer, order, positions, axes, mesh))
        jax.tree.map(lambda x: x.delete(), layer)  # so that only one layer is held twice
    return rows._replace(cache=Cache(rows.cache.prompt, tuple(own)), used=used)


@functools.partial(jax.jit, static_argnames=("width", "positions", "axes", "mesh"))
def packing_order(
    used: Bool[Array, "P G C"], width: int, positions: int, axes: Axes, mesh: Mesh | None
) -> tuple[Int[Array, "P G K"], Bool[Array, "P G N"]]:
    """(where the first tokens are, the positions in use once they are packed)."""
    leading = PartitionSpec(*axes)

    def part(_, used):
        order = jnp.argsort(~used, axis=-1, stable=True)[..., :width]
        return order, jnp.arange(positions) < used.sum(-1, keepdims=True)

    return spread(part, mesh, (leading,), (leading, leading))((), used)


@functools.partial(jax.jit, static_argnames=("positions", "axes", "mesh"))
def packed_layer(
    layer: tuple[Array, Array], order: Int[Array, "P G K"], positions: int, axes: Axes, mesh: Mesh | None
) -> tuple[Array, Array]:
    """The keys and values of one layer at the positions in `order`, then free positions."""
    leading = PartitionSpec(*axes)

    def part(_, layer, order):
        k = jnp.take_along_axis(layer[0], order[:, :, None, None, :], 4)
        v = jnp.take_along_axis(layer[1], order[:, :, None, :, None], 3)
        free = (0, positions - order.shape[-1])
        return jnp.pad(k, [(0, 0)] * 4 + [free]), jnp.pad(v, [(0, 0)] * 3 + [free, (0, 0)])

    return spread(part, mesh, (leading, leading), (leading, leading))((), layer, order)


def _split_rows(own: tuple, p: int) -> tuple:
    """Reshapes caches [P x G, ...] to [P, G, ...], so that both axes can be split over devices."""
    return jax.tree.map(lambda x: x.reshape(p, len(x) // p, *x.shape[1:]), own)


# ------------------------------------------------------------------------------------------- several devices


def at_once(p: int, g: int, slots: int, mesh: Mesh | None) -> tuple[int, int]:
    """(prompts, rows of each) that are sampled at the same time: at most `slots` rows (0: all) of P prompts of G rows.

    They divide over the mesh as P and G do, and groups are whole if `slots` allows that. Every device has at least one
    row, even if `slots` is less.
    """
    if not slots or slots >= p * g:
        return p, g
    data, fsdp = (1, 1) if mesh is None else (mesh.shape["data"], mesh.shape["fsdp"])
    prompts = min(p, max(data, slots // g // data * data))
    rows = slots // prompts
    return prompts, g if rows >= g else min(g, max(fsdp, rows // fsdp * fsdp))


def _row_specs(p: str | None, g: str | None) -> Rows:
    prompts, rows = PartitionSpec(p), PartitionSpec(p, g)
    return Rows(Cache(prompts, rows), rows, rows, prompts, rows, rows)
