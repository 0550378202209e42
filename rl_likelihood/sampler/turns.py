"""Multi-turn sampling: rows continue after the environment's tokens; earlier keys and values stay in the cache.

`begin` computes the prompts, once per group. Each `take_turn` appends given ids to every row (the environment's reply,
in one product) and samples until the message ends. Between turns the caches are packed: unused positions of the last
turn are freed. A row's random numbers come from its own key and from how many
tokens it has sampled, so its ids depend on no other row.
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

# Widths of caches and of replies are 0, this, twice this, four times this ...: each is another program.
WIDTH = 64


class Rows(NamedTuple):
    """Rows between two turns, on the device. Caches have C positions for a row's own tokens."""

    cache: Cache  # leading with P (the prompts') and P, G (the rows' own)
    used: Bool[Array, "P G C"]  # positions that hold one of the row's tokens, in order
    hidden: Float[Array, "P G D"]  # after the row's last token: the next one is drawn from it
    prompt_length: Int[Array, "P"]
    keys: Array  # [P, G]
    sampled: Int[Array, "P G"]  # tokens sampled so far


class Given(NamedTuple):
    """What the rows of a turn begin with: `count` of the ids each. Rows that are not `going` stay as they are."""

    ids: Int[AnyArray, "P G E"]
    count: Int[AnyArray, "P G"]
    going: Bool[AnyArray, "P G"]


class Turn(NamedTuple):
    """What the policy wrote in one turn, the end-of-sequence id included where it wrote one."""

    ids: Int[Array, "P G N"]
    logp: Float[Array, "P G N"]  # nats, at the row's temperature
    length: Int[Array, "P G"]


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"))
def begin(weights: Params, cfg: ModelConfig, request: Request, mesh: Mesh | None = None) -> Rows:
    """Rows that have their prompts and nothing else. `mesh`: prompts are split over its data, rows over its fsdp."""
    p_axis, g_axis = _axes(request, mesh)

    def part(weights: Params, request: Request) -> Rows:
        p, g = request.prompt.shape[0], request.temperature.shape[0]
        first = request.first_chain + (jax.lax.axis_index(g_axis) * g if g_axis and _shards(mesh) else 0)
        hidden, shared = prefill(weights, cfg, request.prompt, request.prompt_length)
        return Rows(
            cache=Cache(shared, _split_rows(empty_cache(cfg, p * g, 0), p)),
            used=jnp.zeros((p, g, 0), bool),
            hidden=jnp.broadcast_to(hidden[:, None], (p, g, hidden.shape[-1])),
            prompt_length=jnp.asarray(request.prompt_length),
            keys=row_keys(request.key, request.uid, jnp.full_like(request.uid, first), g),
            sampled=jnp.zeros((p, g), jnp.int32),
        )

    return _spread(part, mesh, (request_specs(p_axis, g_axis),), _of_rows(p_axis, g_axis))(weights, request)


class How(NamedTuple):
    """The model, the most ids that a message may have, and the mesh whose devices sample (None: one device)."""

    model: ModelConfig
    max_tokens: int
    mesh: Mesh | None = None


def take_turn(weights: Params, rows: Rows, given: Given, request: Request, how: How) -> tuple[Rows, Turn]:
    """One turn: the given ids, then what each row samples, at most `how.max_tokens`, up to an end-of-sequence id."""
    width = padded(int(np.asarray(rows.used.sum(-1)).max()))
    more = padded(given.ids.shape[-1]) - given.ids.shape[-1]
    given = given._replace(
        ids=np.pad(given.ids, [(0, 0), (0, 0), (0, more)], constant_values=int(request.pad_id)),
        count=np.where(given.going, given.count, 0),
    )
    return turn(weights, rows, given, request, how, width)


def padded(n: int) -> int:
    """The smallest width that holds n."""
    return 0 if n == 0 else max(WIDTH, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("how", "width"))
def turn(weights: Params, rows: Rows, given: Given, request: Request, how: How, width: int) -> tuple[Rows, Turn]:
    """`take_turn` as one program. The rows' earlier tokens go into the first `width` positions of their caches."""
    axes = _axes(request, how.mesh)
    by_row, at = PartitionSpec(*axes), _of_rows(*axes)

    def part(weights: Params, rows: Rows, given: Given, request: Request) -> tuple[Rows, Turn]:
        return _turn(weights, rows, given, request, how, width)

    return _spread(part, how.mesh, (at, by_row, request_specs(*axes)), (at, by_row))(weights, rows, given, request)


def _turn(weights: Params, rows: Rows, given: Given, request: Request, how: How, width: int) -> tuple[Rows, Turn]:
    """A turn of one device's rows."""
    cfg, max_tokens = how.model, how.max_tokens
    p, g, e = given.ids.shape
    own, used = _packed(rows, width, e + max_tokens)
    cache, hidden = Cache(rows.cache.prompt, own), rows.hidden
    in_prompt = jnp.arange(cache.prompt[0][0].shape[-1]) < rows.prompt_length[:, None]
    position = rows.prompt_length[:, None] + used.sum(-1)
    index = jnp.arange(used.shape[-1]) - width
    if e:
        at = Positions(jnp.int32(width), position, used, in_prompt)
        states, cache = extend(weights, cfg, given.ids, at, cache)
        last = jnp.take_along_axis(states, jnp.maximum(given.count - 1, 0)[..., None, None], 2)[:, :, 0]
        hidden = jnp.where((given.count > 0)[..., None], last, hidden)
        used = used | ((index >= 0) & (index < given.count[..., None]))
        position = position + given.count
    head = head_matrix(weights)

    def going_on(carry):
        i, _, _, _, running, _ = carry
        return (i < max_tokens) & running.any()

    def body(carry):
        i, cache, used, hidden, running, turn = carry
        token, logp = choose(
            hidden, head, rows.keys, rows.sampled + turn.length, request.temperature[None], request.cut
        )
        used = used | ((index == e + i) & running[..., None])
        # The last token too is computed: what follows it is given later.
        state, cache = decode_step(weights, cfg, token, Positions(width + e + i, position + i, used, in_prompt), cache)
        hidden = jnp.where(running[..., None], state, hidden)
        new = (jnp.arange(max_tokens) == i) & running[..., None]
        turn = Turn(
            jnp.where(new, token[..., None], turn.ids),
            jnp.where(new, logp[..., None], turn.logp),
            turn.length + running,
        )
        return i + 1, cache, used, hidden, running & ~(token[..., None] == request.ends.eos).any(-1), turn

    nothing = Turn(
        jnp.full((p, g, max_tokens), request.pad_id, jnp.int32),
        jnp.zeros((p, g, max_tokens), jnp.float32),
        jnp.zeros((p, g), jnp.int32),
    )
    start = (jnp.int32(0), cache, used, hidden, jnp.asarray(given.going), nothing)
    _, cache, used, hidden, _, written = jax.lax.while_loop(going_on, body, start)
    cache = Cache(cache.prompt, _split_rows(cache.own, p))
    return rows._replace(cache=cache, used=used, hidden=hidden, sampled=rows.sampled + written.length), written


def _packed(rows: Rows, width: int, more: int) -> tuple[tuple, Bool[Array, "P G C"]]:
    """The rows' own caches [P x G, ...] with their tokens in the first `width` positions, and `more` free ones."""
    p, g, c = rows.used.shape
    keep = min(width, c)
    order = jnp.argsort(~rows.used, axis=-1, stable=True)[..., :keep].reshape(p * g, keep)
    free = (0, width - keep + more)
    own = []
    for keys, values in rows.cache.own:
        k, v = (x.reshape(p * g, *x.shape[2:]) for x in (keys, values))
        k = jnp.take_along_axis(k, order[:, None, None, :], 3)
        v = jnp.take_along_axis(v, order[:, None, :, None], 2)
        own.append((jnp.pad(k, [(0, 0)] * 3 + [free]), jnp.pad(v, [(0, 0), (0, 0), free, (0, 0)])))
    return tuple(own), jnp.arange(width + more) < rows.used.sum(-1, keepdims=True)


def _split_rows(own: tuple, p: int) -> tuple:
    """Caches [P x G, ...] as [P, G, ...]: both axes may be split over devices."""
    return jax.tree.map(lambda x: x.reshape(p, len(x) // p, *x.shape[1:]), own)


# ------------------------------------------------------------------------------------------- several devices


def _shards(mesh: Mesh | None) -> bool:
    """Whether each device samples its own rows. Weights that are split over tensor need one program for all."""
    return mesh is not None and mesh.size > 1 and mesh.shape["tensor"] == 1


def _axes(request: Request, mesh: Mesh | None) -> tuple[str | None, str | None]:
    """The mesh's axes over which prompts and the rows of a group are split; None where they do not divide."""
    if mesh is None:
        return None, None
    p = "data" if len(request.uid) % mesh.shape["data"] == 0 else None
    return p, "fsdp" if len(request.temperature) % mesh.shape["fsdp"] == 0 else None


def _of_rows(p: str | None, g: str | None) -> Rows:
    prompts, rows = PartitionSpec(p), PartitionSpec(p, g)
    return Rows(Cache(prompts, rows), rows, rows, prompts, rows, rows)


def _spread(function, mesh: Mesh | None, given, results):
    """`function(weights, ...)` with arguments and results split over the mesh as the specs say; weights are not."""
    if mesh is None or mesh.size == 1:
        return function
    if _shards(mesh):
        specs = (PartitionSpec(), *given)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)

    def at(specs, values):
        leaves = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part), specs, values)
        return jax.lax.with_sharding_constraint(values, leaves)

    return lambda weights, *arguments: function(weights, *map(at, given, arguments))
