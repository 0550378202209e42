"""A request for rows, how its rows are split over devices, and the draw of one id per row from its hidden state.

Draws are exact, reproducible for each row, and cheap compared with the head's matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rl_likelihood.model.head import logits
from rl_likelihood.shapes import AnyArray

Axes = tuple[str | None, str | None]  # the mesh axes of prompts and of a group's rows

# Ids per block: a draw first chooses a block, then an id in it.
BLOCK = 256


class Ends(NamedTuple):
    """When a row stops: after the id that completes a stop string (`table`, from `stop.stop_table`), after an
    end-of-sequence id (`eos`), or after `limit` ids, if there is room for so many."""

    table: Int[AnyArray, "V states"]
    eos: Int[AnyArray, "E"]
    limit: Int[AnyArray, ""] = np.int32(np.iinfo(np.int32).max)


class Cut(NamedTuple):
    """Which ids may be drawn: the `top_k` likeliest (0: all); of these, the fewest that hold `top_p` of their mass; and
    none less likely than `min_p` times the likeliest id. Ids that tie with the last allowed id are allowed too."""

    top_p: Float[AnyArray, ""]
    top_k: Int[AnyArray, ""]
    min_p: Float[AnyArray, ""]


class Request(NamedTuple):
    """A request for G rows of each prompt, row j at temperature[j] (0 is greedy). A row's random numbers come from
    `key`, its prompt's `uid` and its index in the group.

    `first_chain`: the index in the group of the first row; another process samples the rows before it.
    """

    prompt: Int[AnyArray, "P S"]
    prompt_length: Int[AnyArray, "P"]
    uid: Int[AnyArray, "P"]
    key: Array
    temperature: Float[AnyArray, "G"]
    ends: Ends
    pad_id: Int[AnyArray, ""]
    first_chain: Int[AnyArray, ""]
    cut: Cut | None = None
    common: Int[AnyArray, "C"] | None = None  # ids with which all prompts begin; they are computed once

    @property
    def common_length(self) -> int:
        """C, which is fixed in a program."""
        return 0 if self.common is None else len(self.common)


def request_specs(p: str | None, g: str | None) -> Request:
    """Partition specs of a request whose prompts are split over mesh axis `p` and whose rows over axis `g`."""
    everywhere, prompts = PartitionSpec(), PartitionSpec(p)
    ends = Ends(everywhere, everywhere, everywhere)
    return Request(prompts, prompts, prompts, everywhere, PartitionSpec(g), ends, *[everywhere] * 4)


def own_rows(mesh: Mesh | None) -> bool:
    """Whether each device samples its own rows. With weights split over tensor, one program samples all rows."""
    return mesh is not None and mesh.size > 1 and mesh.shape["tensor"] == 1


def split_axes(request: Request, mesh: Mesh | None) -> Axes:
    """The mesh axes over which (prompts, the rows of a group) are split; None where they do not divide evenly."""
    if mesh is None:
        return None, None
    p = "data" if len(request.uid) % mesh.shape["data"] == 0 else None
    return p, "fsdp" if len(request.temperature) % mesh.shape["fsdp"] == 0 else None


def spread(function, mesh: Mesh | None, argument_specs, result_specs):
    """`function(weights, ...)`, with its other arguments and its results split over the mesh by the specs."""
    if mesh is None or mesh.size == 1:
        return function
    if own_rows(mesh):
        specs = (PartitionSpec(), *argument_specs)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=result_specs, check_vma=False)

    def constrained(specs, values):
        leaves = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part), specs, values)
        return jax.lax.with_sharding_constraint(values, leaves)

    return lambda weights, *arguments: function(weights, *map(constrained, argument_specs, arguments))


def row_keys(key: Array, uid: Int[AnyArray, "P"], first: Int[AnyArray, "P"], g: int) -> Array:
    """Random keys [P, g] of rows first, first + 1, ..., first + g - 1 of each prompt."""
    fold_row = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda i, j: fold_row(jax.random.fold_in(key, i), j + jnp.arange(g)))(uid, first)


def choose(
    hidden: Float[AnyArray, "P G D"],
    head: Float[AnyArray, "V D"],
    keys: Array,
    index: Int[AnyArray, "P #G"],
    temperature: Float[AnyArray, "#P G"],
    cut: Cut | None = None,
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """(the next token of each row, its log-prob in nats) among the ids that `cut` allows.

    The log-prob is at the row's temperature, or at 1 for greedy rows (temperature 0). `index`: the token's number in
    its row. Its random numbers depend only on its row's key and `index`.
    """
    greedy = temperature == 0
    scale = 1 / jnp.where(greedy, 1.0, temperature)[..., None]
    z = logits(hidden, head)
    top = z.max(-1, keepdims=True)
    e = jnp.exp(scale * (z - top))
    if cut is not None:
        e = kept_mass(e, cut)
    index = jnp.broadcast_to(index, hidden.shape[:2])
    u = jax.vmap(jax.vmap(lambda k, i: jax.random.uniform(jax.random.fold_in(k, i), (2,))))(keys, index)
    token, total = draw_mass(e, u)
    # Only greedy rows need this extra pass over the vocabulary.
    best = jax.lax.cond(greedy.any(), lambda: z.argmax(-1), lambda: jnp.zeros_like(token))
    token = jnp.where(greedy, best, token).astype(jnp.int32)
    return token, (scale * (jnp.take_along_axis(z, token[..., None], -1) - top))[..., 0] - jnp.log(total)


def kept_mass(e: Float[AnyArray, "... V"], cut: Cut) -> Float[Array, "... V"]:
    """The probabilities `e`, scaled to a maximum of 1, with 0 for the ids that `cut` excludes."""
    v = e.shape[-1]
    ordered = jnp.sort(e, -1, descending=True)
    last = jnp.where(cut.top_k > 0, jnp.minimum(cut.top_k, v), v) - 1
    threshold = jnp.take(ordered, last, -1)[..., None]
    mass = jnp.where(ordered >= threshold, ordered, 0.0)
    mass_before = jnp.cumsum(mass, -1) - mass
    nucleus = (mass_before < cut.top_p * mass.sum(-1, keepdims=True)) & (mass > 0)
    threshold = jnp.where(nucleus, ordered, 1.0).min(-1, keepdims=True)
    return jnp.where(e >= jnp.maximum(threshold, cut.min_p), e, 0.0)


def invert_cumulative(mass: Float[AnyArray, "... N"], u: Float[AnyArray, "..."]) -> Int[Array, "..."]:
    """The first index whose cumulative mass exceeds u (in [0, 1)) times the total; never an index of mass 0.

    Rounding makes a parallel cumulative sum slightly non-monotone. It can rise at an index of mass 0, so such indices
    are masked. It can end below an earlier value, so the total is its maximum.
    """
    total = jnp.where(mass > 0, jnp.cumsum(mass, -1), 0.0)
    return (total > u[..., None] * total.max(-1, keepdims=True)).argmax(-1)


def draw(z: Float[AnyArray, "... V"], u: Float[AnyArray, "... 2"]) -> Int[Array, "..."]:
    """An exact draw from softmax(z). `u`: two uniforms in [0, 1) per row. A token of probability 0 is never drawn."""
    return draw_mass(jnp.exp(z - z.max(-1, keepdims=True)), u)[0]


def draw_mass(
    e: Float[AnyArray, "... V"], u: Float[AnyArray, "... 2"]
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """(an exact draw in proportion to `e`, the sum of `e`). It inverts the cumulative sum, first over blocks of ids,
    then over the ids of the chosen block."""
    v = e.shape[-1]
    e = jnp.pad(e, [(0, 0)] * (e.ndim - 1) + [(0, -v % BLOCK)]).reshape(*e.shape[:-1], -1, BLOCK)
    blocks = e.sum(-1)
    block = invert_cumulative(blocks, u[..., 0])
    inside = jnp.take_along_axis(e, block[..., None, None], -2)[..., 0, :]
    return block * BLOCK + invert_cumulative(inside, u[..., 1]), blocks.sum(-1)
