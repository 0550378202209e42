"""The fused head: per-token statistics of softmax(hidden W^T), without an array of shape [tokens, V].

A scan over blocks of the vocabulary computes logits, reduces them and drops them. The backward pass recomputes each
block's logits, turns them into their gradient in place, and multiplies that into the block's dW. On a CPU, few enough
logits are kept for the backward pass instead. One pass gives the log-prob that rewards need, and the entropy and
self-certainty that every step logs.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import axis_shards, context_shards, gather_fsdp, on_cpu, row_shards
from rl_likelihood.shapes import AnyArray

# The logit of a masked column. Finite, so that its weight is 0 and not NaN.
MASKED = -1e30
LANES = 128  # lanes of a TPU's registers; the size of a larger block is a multiple of it
# With chunk = 0: on an accelerator, CHUNK tokens' logits exist at the same time; on a CPU, CACHED logits, so that a
# block stays in its caches between the passes over it.
CHUNK, CACHED = 512, 2**21
# On a CPU with chunk = 0, at most this many logits are kept for the backward pass (256 MiB). Reading them is faster
# than one product more.
KEPT = 2**26


class TokenStats(NamedTuple):
    """Float32, in nats, each with the shape of `targets`.

    log_prob: log p(target). logsumexp: of the logits. entropy: -sum_v p log p. self_certainty: KL(uniform || p) =
    logsumexp - mean logit - log V (Intuitor, 2505.19590, eq. 1).
    """

    log_prob: Float[Array, "..."]
    logsumexp: Float[Array, "..."]
    entropy: Float[Array, "..."]
    self_certainty: Float[Array, "..."]


def token_stats(
    hidden: Float[AnyArray, "... D"],
    head: Float[AnyArray, "V D"],
    targets: Int[AnyArray, "..."],
    chunk: int = 0,
    scale: Float[AnyArray, "..."] | None = None,
) -> TokenStats:
    """Statistics of the distribution of each hidden state, and the log-prob of its target.

    `chunk`: each device holds as many logits at a time as `chunk` tokens have; 0: chosen for the device. The scan runs
    along the vocabulary. So hidden states may be sharded along any axis, and the gradient of each block of the matrix
    is computed once, from all tokens. Differentiable in `hidden` and `head`. Statistics are computed in float32 for
    inputs of any dtype. `scale`: multiplies each token's logits (1 / temperature), in float32.
    """
    parts = axis_shards("vocab", head.shape[0])
    size = _block(head.shape[0] // parts, targets.size, chunk)
    keep = not chunk and on_cpu() and targets.size * head.shape[0] <= KEPT
    return TokenStats(*_stats(hidden, head, targets, scale, Scan(parts, size, keep)))


def _block(columns: int, tokens: int, chunk: int) -> int:
    """The number of columns in a block of the vocabulary."""
    chunk = chunk or (max(1, CACHED // columns) if on_cpu() else CHUNK)
    limit = max(1, columns * chunk * row_shards() // max(1, tokens))
    count = -(-columns // limit)
    even = -(-columns // count)  # even blocks, so that the last one overlaps the one before it only a little
    return even if count == 1 or even < LANES else min(columns, -(-even // LANES) * LANES)


def logits(hidden: Float[AnyArray, "... D"], head: Float[AnyArray, "V D"]) -> Float[Array, "... V"]:
    """hidden W^T in float32. Use it only for few tokens, as in a decode step."""
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


class Scan(NamedTuple):
    """How the vocabulary is scanned."""

    parts: int  # devices over which it is split
    size: int  # columns of a block in each part
    keep: bool  # whether the logits are kept for the backward pass


class Block(NamedTuple):
    """A block of columns of the logits, with some columns from each part of the split vocabulary."""

    z: Float[Array, "... parts block"]  # logits, float32; MASKED for columns that an earlier block had
    weights: Float[Array, "parts block D"]
    start: Int[Array, ""]  # index of the first column in its part
    local: Int[Array, "... parts"]  # index of the target's column in the block, valid if `inside`
    inside: Bool[Array, "... parts"]  # whether the block has the target's column


def _blocks(hidden, head, targets, scale, parts: int, size: int):
    """(the number of blocks, the function from a number to its Block). With kept logits, none are computed. If `size`
    does not divide the columns, the last block overlaps the one before it."""
    # Gathered over fsdp. The cast comes first, so that fewer bytes are sent and held.
    whole = gather_fsdp(head.astype(hidden.dtype), ("vocab", "width")).reshape(parts, -1, head.shape[1])
    columns = whole.shape[1]

    def block(i, kept=None) -> Block:
        start = jnp.minimum(i * size, columns - size)
        weights = jax.lax.dynamic_slice_in_dim(whole, start, size, 1)
        local = targets[..., None] - columns * jnp.arange(parts) - start
        inside = (local >= 0) & (local < size)
        if columns % size:
            inside &= local + start >= i * size
        return Block(logits_of(i, start, weights) if kept is None else kept, weights, start, local, inside)

    def logits_of(i, start, weights):
        z = jnp.einsum("...d,pvd->...pv", hidden, weights, preferred_element_type=jnp.float32)
        z = z if scale is None else z * scale[..., None, None]
        return jnp.where(start + jnp.arange(size) >= i * size, z, MASKED) if columns % size else z

    return -(-columns // size), block


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _stats(hidden, head, targets, scale, scan):
    return _forward(hidden, head, targets, scale, scan._replace(keep=False))[0]


def _forward(hidden, head, targets, scale, scan):
    """(the statistics, the logits of all blocks if `scan.keep`, else None)."""
    parts, size, keep = scan
    mean_row = head.astype(hidden.dtype).astype(jnp.float32).mean(0)
    count, block = _blocks(hidden, head, targets, scale, parts, size)

    def add_block(sums, i):
        top, total, sum_z, target = sums
        b = block(i)
        new = jnp.maximum(top, b.z.max((-1, -2)))
        below = b.z - new[..., None, None]
        e, less = jnp.exp(below), jnp.exp(top - new)
        # sum_v exp(z_v - top) and sum_v exp(z_v - top) (z_v - top). Relative to the maximum, large logits cancel.
        sum_z = less * (sum_z + (top - new) * total) + (e * below).sum((-1, -2))
        total = less * total + e.sum((-1, -2))
        picked = jnp.take_along_axis(b.z, jnp.clip(b.local, 0, size - 1)[..., None], -1)[..., 0]
        return (new, total, sum_z, target + jnp.where(b.inside, picked, 0.0).sum(-1)), b.z if keep else None

    zero = jnp.zeros(targets.shape, jnp.float32)
    first = zero + MASKED, zero, zero, zero
    (top, total, sum_z, target), kept = jax.lax.scan(add_block, first, jnp.arange(count))
    log_total = jnp.log(total)
    mean_z = hidden.astype(jnp.float32) @ mean_row
    mean_z = mean_z if scale is None else mean_z * scale
    certainty = top + log_total - mean_z - math.log(head.shape[0])
    # The maximum first: large logits cancel exactly.
    return TokenStats(target - top - log_total, top + log_total, log_total - sum_z / total, certainty), kept


def _stats_fwd(hidden, head, targets, scale, scan):
    stats, kept = _forward(hidden, head, targets, scale, scan)
    return stats, (hidden, head, targets, scale, stats.logsumexp, stats.entropy, kept)


def _stats_bwd(scan, saved, grad):
    parts, size, _ = scan
    hidden, head, targets, scale, lse, entropy, kept = saved
    count, block = _blocks(hidden, head, targets, scale, parts, size)
    lead = (-1,) if context_shards() == 1 else targets.shape  # merging split tokens would move them between devices
    states, tokens = hidden.reshape(*lead, hidden.shape[-1]), tuple(range(len(lead)))

    def over(x):
        return x[..., None, None]

    # d log_prob = onehot - p;  d logsumexp = p;  d entropy = -p (log p + entropy);  d certainty = p - 1/V
    weight = grad.logsumexp - grad.log_prob + grad.self_certainty - grad.entropy * entropy

    def add_block(sums, numbered):
        d_hidden, d_head = sums
        b = block(*numbered)
        log_p = b.z - over(lse)
        d = jnp.exp(log_p) * (over(weight) - over(grad.entropy) * log_p)
        d = d - jnp.where(b.z > MASKED, over(grad.self_certainty) / head.shape[0], 0.0)
        is_target = (jnp.arange(size) == b.local[..., None]) & b.inside[..., None]
        d = d + jnp.where(is_target, over(grad.log_prob), 0.0)
        d = (d if scale is None else d * over(scale)).astype(hidden.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_hidden = d_hidden + product("...pv,pvd->...d", d, b.weights)
        # As one matrix, because with an axis of parts XLA's CPU compiler would first write a transposed copy of d.
        d = d.reshape(*lead, parts * size)
        d_block = jnp.tensordot(d, states, (tokens, tokens), preferred_element_type=jnp.float32)
        d_block = d_block.reshape(b.weights.shape)
        if count * size > d_head.shape[1]:  # the last block overlaps the one before it
            d_block += jax.lax.dynamic_slice_in_dim(d_head, b.start, size, 1)
        return (d_hidden, jax.lax.dynamic_update_slice_in_dim(d_head, d_block, b.start, 1)), None

    zero = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros((parts, head.shape[0] // parts, head.shape[1]), jnp.float32)
    (d_hidden, d_head), _ = jax.lax.scan(add_block, zero, (jnp.arange(count), kept))
    return d_hidden.astype(hidden.dtype), d_head.reshape(head.shape).astype(head.dtype), None, None


_stats.defvjp(_stats_fwd, _stats_bwd)
