"""Completions without their padding: the tokens of many rows as one array, a pool.

    completions [P, G, T]  --pool-->  tokens [U, N]  <--pool, spread-->  attention's rows [P, R, W]

Everything that treats tokens one by one (matrix products, norms, the vocabulary) works on the pool, which has N places
for the real tokens of a unit and no padding but what rounds N up. A unit is the prompts of one device; there are U.
Attention alone needs rows. There, several chains share a row of W tokens, and a token attends to the prompt and to its
own chain. Rotary positions, branches and predecessors are those of the completions, looked up for each token, so
nothing else knows about it: rewards, losses and metrics see chains. All of it follows from `Packing`
(learner/packing.py makes it on the host) and from which tokens are padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import by_unit, row_shards
from rl_likelihood.model.attention import branches, trunk
from rl_likelihood.shapes import PAD, AnyArray, Packing


class Places(NamedTuple):
    """Where the tokens of a pool are among M places of some rows, and which token each place has.

    A place or a token of the pool that has no counterpart reads as 0.
    """

    place: Int[Array, "U N"]
    is_token: Bool[Array, "U N"]
    token: Int[Array, "U M"]
    filled: Bool[Array, "P G T"]  # of the rows' shape, with U M = P G T

    def pool(self, x: Array) -> Array:
        """[P, G, T, ...] -> [U, N, ...]."""
        flat = x.reshape(*self.token.shape, *x.shape[3:])
        return by_unit(_looked_up(flat, self.place, self.is_token, self.token, self._filled))

    def spread(self, x: Array) -> Array:
        """[U, N, ...] -> [P, G, T, ...]."""
        rows = _looked_up(x, self.token, self._filled, self.place, self.is_token)
        return rows.reshape(*self.filled.shape, *x.shape[2:])

    @property
    def _filled(self) -> Bool[Array, "U M"]:
        return self.filled.reshape(self.token.shape)


@jax.custom_vjp
def _looked_up(x, index, there, back, back_there):
    """x[u, index[u]] where `there`, else 0. `back` is the inverse, so the gradient is a lookup too, and no scatter."""
    out = jax.vmap(lambda row, at: row[at])(x, index)
    return jnp.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), out, jnp.zeros((), x.dtype))


def _looked_up_fwd(x, *maps):
    return _looked_up(x, *maps), maps


def _looked_up_bwd(maps, grad):
    index, there, back, back_there = maps
    return _looked_up(grad, back, back_there, index, there), None, None, None, None


_looked_up.defvjp(_looked_up_fwd, _looked_up_bwd)


class Layout(NamedTuple):
    """A pool's tokens in the completions and in attention's rows; and what attention's mask is made of."""

    completions: Places
    rows: Places
    branch: Int[Array, "P R W"]  # of the token at each place: -1 on the trunk (attention.branches)
    chain: Int[Array, "P R W"]

    def in_rows(self, x: Array) -> Array:
        """Of each completion's token [P, G, T, ...], in attention's rows [P, R, W, ...]."""
        return self.rows.spread(self.completions.pool(x))

    def mask(self) -> Bool[Array, "P R W W"]:
        """[query, key] of attention's rows: `attention.branch_mask` within each chain."""
        w = self.chain.shape[-1]
        visible = jnp.tril(jnp.ones((w, w), bool)) & self.rows.filled[..., None, :]
        visible &= self.chain[..., :, None] == self.chain[..., None, :]
        return visible & ((self.branch[..., None, :] < 0) | (self.branch[..., :, None] == self.branch[..., None, :]))

    def predicting(
        self, last: Float[AnyArray, "P D"], states: Float[AnyArray, "U N D"], before: Int[AnyArray, "P G T"]
    ) -> Float[Array, "U N D"]:
        """The state that predicts each token. `last`: of the prompts; `before`: `attention.predecessor`."""
        own = self.completions
        u, (p, g, t) = own.place.shape[0], own.filled.shape
        each = p // u
        token = own.token.reshape(p, g, t)
        prompt = jnp.broadcast_to((jnp.arange(p) % each)[:, None, None], before.shape)
        earlier = jnp.take_along_axis(token, jnp.maximum(before - 1, 0), 2)
        at = own.pool(jnp.where(before == 0, prompt, each + earlier))
        return jax.vmap(lambda row, at: row[at])(jnp.concatenate([last.reshape(u, each, -1), states], 1), at)


def layout(segment: Int[AnyArray, "P G T"], packing: Packing) -> Layout:
    """The pool of these completions. Padding between the tokens of a row is left out too."""
    segment = jnp.asarray(segment)
    (p, g, t), u, r, w = segment.shape, row_shards(), packing.rows, packing.width
    real = segment != PAD
    # The n-th token of a unit is the first place up to which n + 1 are real.
    count = jnp.cumsum(real.reshape(u, -1), 1)
    number = jnp.arange(packing.tokens)
    place = jax.vmap(lambda c: jnp.searchsorted(c, number + 1))(count)
    is_token = number < count[:, -1:]
    place = jnp.where(is_token, place, 0)
    completions = Places(place, is_token, jnp.maximum(count - 1, 0), real)
    # A chain's tokens follow one another in the pool, from `first` on, and in a row, from `start` on.
    length = real.sum(-1)
    of_unit = length.reshape(u, -1)
    first = jnp.cumsum(of_unit, 1) - of_unit
    start = packing.start
    in_unit = (start + (jnp.arange(p) % (p // u) * r * w)[:, None]).reshape(u, -1)
    at = jnp.take_along_axis(in_unit - first, place // t, 1) + number
    spot = jnp.arange(r * w)
    inside = (spot >= start[..., None]) & (spot < (start + length)[..., None])  # [P, G, R W]
    chain, filled = inside.argmax(1), inside.any(1)
    token = jnp.take_along_axis(first.reshape(p, g) - start, chain, 1) + spot
    rows = Places(
        jnp.where(is_token, at, 0),
        is_token,
        jnp.where(filled, token, 0).reshape(u, -1),
        filled.reshape(p, r, w),
    )
    branch = branches(segment, trunk(segment))
    return Layout(completions, rows, rows.spread(completions.pool(branch)), chain.reshape(p, r, w))
