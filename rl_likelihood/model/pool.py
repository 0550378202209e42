"""Completions without their padding: the real tokens of many rows in one array, a pool.

    completions [P, G, T]  --pool-->  tokens [U, N]  <--pool, spread-->  attention rows [P, R, W]

Operations on single tokens (matrix products, norms, the vocabulary) work on the pool. It has N positions for the real
tokens of a unit, and padding only because N is rounded up. A unit is the prompts of one device; there are U units.

Only attention needs rows. Several chains share an attention row of W tokens, and a token attends to the prompt and to
its own chain. Rotary positions, branches and predecessors are looked up from the completions. So no other code depends
on packing: rewards, losses and metrics see chains. The layout follows from `Packing`, which learner/packing.py makes on
the host, and from the padding of the completions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import row_shards, shard_units
from rl_likelihood.model.attention import branches, trunk
from rl_likelihood.shapes import PAD, AnyArray, Packing


class Places(NamedTuple):
    """Maps between the N positions of a pool and the M places of some rows, in both directions.

    A position without a token, or a place without one, reads as 0.
    """

    place: Int[Array, "U N"]  # the place of each token of the pool
    is_token: Bool[Array, "U N"]  # positions of the pool that hold a token
    token: Int[Array, "U M"]  # the pool's position of the token at each place
    filled: Bool[Array, "P G T"]  # places that hold a token, in the shape of the rows, with U M = P G T

    def pool(self, x: Array) -> Array:
        """[P, G, T, ...] -> [U, N, ...]."""
        flat = x.reshape(*self.token.shape, *x.shape[3:])
        return shard_units(_looked_up(flat, self.place, self.is_token, self.token, self._filled))

    def spread(self, x: Array) -> Array:
        """[U, N, ...] -> [P, G, T, ...]."""
        rows = _looked_up(x, self.token, self._filled, self.place, self.is_token)
        return rows.reshape(*self.filled.shape, *x.shape[2:])

    @property
    def _filled(self) -> Bool[Array, "U M"]:
        return self.filled.reshape(self.token.shape)


@jax.custom_vjp
def _looked_up(x, index, valid, back, back_valid):
    """x[u, index[u]] where `valid`, else 0. `back` is the inverse map, so that the gradient is a lookup, not a
    scatter."""
    out = jax.vmap(lambda row, at: row[at])(x, index)
    return jnp.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), out, jnp.zeros((), x.dtype))


def _looked_up_fwd(x, *maps):
    return _looked_up(x, *maps), maps


def _looked_up_bwd(maps, grad):
    index, valid, back, back_valid = maps
    return _looked_up(grad, back, back_valid, index, valid), None, None, None, None


_looked_up.defvjp(_looked_up_fwd, _looked_up_bwd)


class Layout(NamedTuple):
    """The maps between a pool, the completions and the attention rows, and the inputs of the attention mask."""

    completions: Places
    rows: Places
    branch: Int[Array, "P R W"]  # branch of the token at each place; -1 on the trunk (attention.branches)
    chain: Int[Array, "P R W"]  # chain of the token at each place, as its index in the group

    def in_rows(self, x: Array) -> Array:
        """Moves values of completion tokens [P, G, T, ...] to the attention rows [P, R, W, ...]."""
        return self.rows.spread(self.completions.pool(x))

    def mask(self) -> Bool[Array, "P R W W"]:
        """The mask [query, key] of the attention rows: `attention.branch_mask` within each chain."""
        w = self.chain.shape[-1]
        visible = jnp.tril(jnp.ones((w, w), bool)) & self.rows.filled[..., None, :]
        visible &= self.chain[..., :, None] == self.chain[..., None, :]
        return visible & ((self.branch[..., None, :] < 0) | (self.branch[..., :, None] == self.branch[..., None, :]))

    def predicting(
        self, last: Float[AnyArray, "P D"], states: Float[AnyArray, "U N D"], before: Int[AnyArray, "P G T"]
    ) -> Float[Array, "U N D"]:
        """The state that predicts each token. `last`: the states of the prompts' last tokens; `before`: the result of
        `attention.predecessor`."""
        places = self.completions
        u, (p, g, t) = places.place.shape[0], places.filled.shape
        prompts_per_unit = p // u
        token = places.token.reshape(p, g, t)
        prompt = jnp.broadcast_to((jnp.arange(p) % prompts_per_unit)[:, None, None], before.shape)
        earlier = jnp.take_along_axis(token, jnp.maximum(before - 1, 0), 2)
        position = places.pool(jnp.where(before == 0, prompt, prompts_per_unit + earlier))
        return jax.vmap(lambda row, position: row[position])(
            jnp.concatenate([last.reshape(u, prompts_per_unit, -1), states], 1), position
        )


def layout(segment: Int[AnyArray, "P G T"], packing: Packing) -> Layout:
    """The layout of these completions. Padding in the middle of a row is left out too."""
    segment = jnp.asarray(segment)
    (p, g, t), u, r, w = segment.shape, row_shards(), packing.rows, packing.width
    real = segment != PAD
    # Token n of a unit (from 0) is at the first place up to which n + 1 places are real.
    count = jnp.cumsum(real.reshape(u, -1), 1)
    number = jnp.arange(packing.tokens)
    place = jax.vmap(lambda c: jnp.searchsorted(c, number + 1))(count)
    is_token = number < count[:, -1:]
    place = jnp.where(is_token, place, 0)
    completions = Places(place, is_token, jnp.maximum(count - 1, 0), real)
    # A chain's tokens are contiguous in the pool, from `first` on, and in the attention rows, from `start` on.
    length = real.sum(-1)
    unit_lengths = length.reshape(u, -1)
    first = jnp.cumsum(unit_lengths, 1) - unit_lengths
    start = packing.start
    in_unit = (start + (jnp.arange(p) % (p // u) * r * w)[:, None]).reshape(u, -1)
    row_place = jnp.take_along_axis(in_unit - first, place // t, 1) + number
    spot = jnp.arange(r * w)
    inside = (spot >= start[..., None]) & (spot < (start + length)[..., None])  # [P, G, R W]
    chain, filled = inside.argmax(1), inside.any(1)
    token = jnp.take_along_axis(first.reshape(p, g) - start, chain, 1) + spot
    rows = Places(
        jnp.where(is_token, row_place, 0),
        is_token,
        jnp.where(filled, token, 0).reshape(u, -1),
        filled.reshape(p, r, w),
    )
    branch = branches(segment, trunk(segment))
    return Layout(completions, rows, rows.spread(completions.pool(branch)), chain.reshape(p, r, w))
