"""Samples conversations: rows continue after the environment's tokens, and earlier keys and values stay in the cache.

`start_rows` computes each prompt once for its group. `take_turn` appends the environment's reply to every row, in one
forward, and samples the model's next message. Between turns the caches are packed, which frees the unused positions of
the last turn. A row's random numbers come from its own key and the number of tokens that it has sampled, so its ids do
not depend on other rows.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.model.decoder import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, Positions, decode_step, empty_cache, extend, prefill
from rl_likelihood.sampler.draw import Request, choose, request_specs, row_keys
from rl_likelihood.shapes import AnyArray

# Widths of caches and replies are rounded up to 0, this, twice this, four times this, ... Each width is compiled once.
WIDTH = 64


class Rows(NamedTuple):
    """The rows between two turns, on the device. C: positions in the cache for a row's own tokens."""

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
    p_axis, g_axis = _axes(request, mesh)

    def part(weights: Params, request: Request) -> Rows:
        p, g = request.prompt.shape[0], request.temperature.shape[0]
        first = request.first_chain + (jax.lax.axis_index(g_axis) * g if g_axis and _shards(mesh) else 0)
        hidden, shared = prefill(weights, cfg, request.prompt, request.prompt_length, request.common_length)
        return Rows(
            cache=Cache(shared, _split_rows(empty_cache(cfg, p * g, 0), p)),
            used=jnp.zeros((p, g, 0), bool),
            hidden=jnp.broadcast_to(hidden[:, None], (p, g, hidden.shape[-1])),
            prompt_length=jnp.asarray(request.prompt_length),
            keys=row_keys(request.key, request.uid, jnp.full_like(request.uid, first), g),
            sampled=jnp.zeros((p, g), jnp.int32),
        )

    return _spread(part, mesh, (request_specs(p_axis, g_axis),), _row_specs(p_axis, g_axis))(weights, request)


class TurnSettings(NamedTuple):
    """The model, the maximum ids of a message, and the mesh whose devices sample (None: one device)."""

    model: ModelConfig
    max_tokens: int
    mesh: Mesh | None = None


def take_turn(
    weights: Params, rows: Rows, prefix: TurnPrefix, request: Request, settings: TurnSettings
) -> tuple[Rows, Turn]:
    """One turn: appends the given ids, then samples at most `settings.max_tokens` ids, up to an end-of-sequence id."""
    width = padded(int(np.asarray(rows.used.sum(-1)).max()))
    padding = padded(prefix.ids.shape[-1]) - prefix.ids.shape[-1]
    prefix = prefix._replace(
        ids=np.pad(prefix.ids, [(0, 0), (0, 0), (0, padding)], constant_values=int(request.pad_id)),
        count=np.where(prefix.going, prefix.count, 0),
    )
    return turn(weights, rows, prefix, request, settings, width)


def padded(n: int) -> int:
    """The smallest allowed width of at least n."""
    return 0 if n == 0 else max(WIDTH, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("settings", "width"))
def turn(
    weights: Params, rows: Rows, prefix: TurnPrefix, request: Request, settings: TurnSettings, width: int
) -> tuple[Rows, Turn]:
    """`take_turn` as one program. `width`: the cache positions into which the rows' earlier tokens are packed."""
    axes = _axes(request, settings.mesh)
    leading, row_specs = PartitionSpec(*axes), _row_specs(*axes)

    def part(weights: Params, rows: Rows, prefix: TurnPrefix, request: Request) -> tuple[Rows, Turn]:
        return _turn(weights, rows, prefix, request, settings, width)

    return _spread(part, settings.mesh, (row_specs, leading, request_specs(*axes)), (row_specs, leading))(
        weights, rows, prefix, request
    )


def _turn(
    weights: Params, rows: Rows, prefix: TurnPrefix, request: Request, settings: TurnSettings, width: int
) -> tuple[Rows, Turn]:
    """One turn of the rows of one device."""
    cfg, max_tokens = settings.model, settings.max_tokens
    p, g, e = prefix.ids.shape
    own, used = _packed(rows, width, e + max_tokens)
    cache, hidden = Cache(rows.cache.prompt, own), rows.hidden
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


def _packed(rows: Rows, width: int, extra: int) -> tuple[tuple, Bool[Array, "P G C"]]:
    """(the rows' own caches [P x G, ...], positions in use). Their tokens move to the first `width` positions; `extra`
    free positions follow."""
    p, g, c = rows.used.shape
    kept_width = min(width, c)
    order = jnp.argsort(~rows.used, axis=-1, stable=True)[..., :kept_width].reshape(p * g, kept_width)
    padding = (0, width - kept_width + extra)
    own = []
    for keys, values in rows.cache.own:
        k, v = (x.reshape(p * g, *x.shape[2:]) for x in (keys, values))
        k = jnp.take_along_axis(k, order[:, None, None, :], 3)
        v = jnp.take_along_axis(v, order[:, None, :, None], 2)
        own.append((jnp.pad(k, [(0, 0)] * 3 + [padding]), jnp.pad(v, [(0, 0), (0, 0), padding, (0, 0)])))
    return tuple(own), jnp.arange(width + extra) < rows.used.sum(-1, keepdims=True)


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


def _shards(mesh: Mesh | None) -> bool:
    """Whether each device samples its own rows. With weights split over tensor, one program samples all rows."""
    return mesh is not None and mesh.size > 1 and mesh.shape["tensor"] == 1


def _axes(request: Request, mesh: Mesh | None) -> tuple[str | None, str | None]:
    """The mesh axes over which (prompts, the rows of a group) are split; None where they do not divide evenly."""
    if mesh is None:
        return None, None
    p = "data" if len(request.uid) % mesh.shape["data"] == 0 else None
    return p, "fsdp" if len(request.temperature) % mesh.shape["fsdp"] == 0 else None


def _row_specs(p: str | None, g: str | None) -> Rows:
    prompts, rows = PartitionSpec(p), PartitionSpec(p, g)
    return Rows(Cache(prompts, rows), rows, rows, prompts, rows, rows)


def _spread(function, mesh: Mesh | None, argument_specs, result_specs):
    """`function(weights, ...)`, with its other arguments and its results split over the mesh by the specs."""
    if mesh is None or mesh.size == 1:
        return function
    if _shards(mesh):
        specs = (PartitionSpec(), *argument_specs)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=result_specs, check_vma=False)

    def constrained(specs, values):
        leaves = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part), specs, values)
        return jax.lax.with_sharding_constraint(values, leaves)

    return lambda weights, *arguments: function(weights, *map(constrained, argument_specs, arguments))
