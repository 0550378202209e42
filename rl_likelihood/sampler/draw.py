"""One id per row from its hidden state: exact, reproducible row by row, and cheap beside the head's product."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rl_likelihood.model.head import logits
from rl_likelihood.shapes import AnyArray

# Vocabulary block of the two-level draw.
BLOCK = 256


class Ends(NamedTuple):
    """Where a row stops: after the id that completes a stop string (`stop.stop_table`), or an end-of-sequence id."""

    table: Int[AnyArray, "V states"]
    eos: Int[AnyArray, "E"]


class Cut(NamedTuple):
    """Which ids may be drawn: the `top_k` likeliest (0: all); of these the fewest that hold `top_p` of their mass;
    none less likely than `min_p` times the likeliest. Ids as likely as the last one that may be drawn may be too."""

    top_p: Float[AnyArray, ""]
    top_k: Int[AnyArray, ""]
    min_p: Float[AnyArray, ""]


class Request(NamedTuple):
    """What is sampled: G rows of each prompt, row j at temperature[j] (0 is greedy). `uid` and `key` name its keys.

    `first_chain`: the index in its group of the first row, where another process samples the rows before it.
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


def request_specs(p: str | None, g: str | None) -> Request:
    """How a request is split where a mesh's axis `p` has the prompts and `g` the rows of a group."""
    everywhere, prompts = PartitionSpec(), PartitionSpec(p)
    ends = Ends(everywhere, everywhere)
    return Request(prompts, prompts, prompts, everywhere, PartitionSpec(g), ends, everywhere, everywhere, everywhere)


def row_keys(key: Array, uid: Int[AnyArray, "P"], first: Int[AnyArray, "P"], g: int) -> Array:
    """Random keys [P, g] of rows first, first + 1, ... of the prompts named `uid`."""
    of_row = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda i, j: of_row(jax.random.fold_in(key, i), j + jnp.arange(g)))(uid, first)


def choose(
    hidden: Float[AnyArray, "P G D"],
    head: Float[AnyArray, "V D"],
    keys: Array,
    index: Int[AnyArray, "P #G"],
    temperature: Float[AnyArray, "#P G"],
    cut: Cut | None = None,
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """Token number `index` of each row, and its log-prob at the row's temperature (1 for greedy rows, temperature 0),
    among the ids of the cut.

    `keys` are the rows' own; a token's uniforms depend on its row's key and its index alone.
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
    # A pass over the vocabulary that only greedy rows need.
    best = jax.lax.cond(greedy.any(), lambda: z.argmax(-1), lambda: jnp.zeros_like(token))
    token = jnp.where(greedy, best, token).astype(jnp.int32)
    return token, (scale * (jnp.take_along_axis(z, token[..., None], -1) - top))[..., 0] - jnp.log(total)


def kept_mass(e: Float[AnyArray, "... V"], cut: Cut) -> Float[Array, "... V"]:
    """e, 1 at its largest, with 0 for the ids that the cut leaves out."""
    v = e.shape[-1]
    ordered = jnp.sort(e, -1, descending=True)
    last = jnp.where(cut.top_k > 0, jnp.minimum(cut.top_k, v), v) - 1
    least = jnp.take(ordered, last, -1)[..., None]
    mass = jnp.where(ordered >= least, ordered, 0.0)
    before = jnp.cumsum(mass, -1) - mass
    nucleus = (before < cut.top_p * mass.sum(-1, keepdims=True)) & (mass > 0)
    least = jnp.where(nucleus, ordered, 1.0).min(-1, keepdims=True)
    return jnp.where(e >= jnp.maximum(least, cut.min_p), e, 0.0)


def invert_cumulative(mass: Float[AnyArray, "... N"], u: Float[AnyArray, "..."]) -> Int[Array, "..."]:
    """First index whose cumulative mass exceeds u (in [0, 1)) times the total; never one of mass 0.

    A cumulative sum computed in parallel is not monotone to the last bit: it can step at an index of mass
    0, hence the mask, and end below an earlier value, hence the maximum for the total.
    """
    total = jnp.where(mass > 0, jnp.cumsum(mass, -1), 0.0)
    return (total > u[..., None] * total.max(-1, keepdims=True)).argmax(-1)


def draw(z: Float[AnyArray, "... V"], u: Float[AnyArray, "... 2"]) -> Int[Array, "..."]:
    """Exact draw from softmax(z). `u` holds two uniforms in [0, 1) a row. A token of probability 0 is never drawn."""
    return draw_mass(jnp.exp(z - z.max(-1, keepdims=True)), u)[0]


def draw_mass(
    e: Float[AnyArray, "... V"], u: Float[AnyArray, "... 2"]
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Exact draw in proportion to e, by inverting the cumulative sum, first over blocks of ids, then inside one;
    and the sum of e."""
    v = e.shape[-1]
    e = jnp.pad(e, [(0, 0)] * (e.ndim - 1) + [(0, -v % BLOCK)]).reshape(*e.shape[:-1], -1, BLOCK)
    blocks = e.sum(-1)
    block = invert_cumulative(blocks, u[..., 0])
    inside = jnp.take_along_axis(e, block[..., None, None], -2)[..., 0, :]
    return block * BLOCK + invert_cumulative(inside, u[..., 1]), blocks.sum(-1)
