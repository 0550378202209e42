"""Attention over two sets of keys: the prompt's, which the group shares, and the row's own.

`attention` serves the learner, scoring and prefill (no prompt keys, G = 1). `decode_attention` serves one token of each
row while decoding. Each set of keys is one batched product, and the two results are joined by their softmax statistics.
So the prompt's keys and values are read once per group and never repeated. (The TPU's splash kernel does repeat them.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import context_shards, row_shards
from rl_likelihood.model import splash
from rl_likelihood.shapes import CHAIN, ENV, PAD, REFERENCE, TAG, AnyArray

# The logit of a masked key. Finite, so that a fully masked set of keys gives weight 0 instead of NaN.
MASKED = -1e30
# Tokens in a block of queries. Small blocks skip more masked keys, large blocks make larger products. BLOCKS: maximum
# number of blocks, because each block is compiled.
QUERIES, BLOCKS = 128, 8

# Keys, values, and a mask: of the keys that are not padding [P, S], or of the keys that each query attends to.
PromptKeys = tuple[
    Float[AnyArray, "P K S Dh"], Float[AnyArray, "P K S Dh"], Bool[AnyArray, "P S"] | Bool[AnyArray, "P #G #T S"]
]


class Kernel(NamedTuple):
    """The splash kernel's input instead of a mask."""

    branches: splash.Branches | None = None


def attention(
    q: Float[AnyArray, "P G T H Dh"],
    own: tuple[Float[AnyArray, "P G K U Dh"], Float[AnyArray, "P G K U Dh"]],
    own_mask: Bool[AnyArray, "P #G T U"],
    prompt: PromptKeys | None = None,
    kernel: Kernel | None = None,
    queries: int = 0,
) -> Float[Array, "P G T H Dh"]:
    """softmax(q k / sqrt(Dh)) v over the prompt's keys and the row's own keys together.

    Query head h uses key head h // (H/K). Logits and softmax are in float32. Each query needs at least one key in one
    of the two sets. `queries`: if above 0, the own keys must be causal; a longer row is then computed in blocks of at
    least so many tokens, each with only the keys up to its end (unless tokens are split over devices). `kernel`: if
    given, the TPU's splash kernel computes the result; `own_mask` must agree with its branches.
    """
    if kernel is not None:
        return splash.attention(q, own, prompt, kernel.branches)
    p, g, t, h, d = q.shape
    k = own[0].shape[2]
    r = h // k
    q = (q * d**-0.5).reshape(p, g, t, k, r, d)
    q_own = q.transpose(0, 1, 3, 2, 4, 5).reshape(p, g, k, t * r, d)
    row_mask = jnp.broadcast_to(own_mask[:, :, None, :, None], (p, own_mask.shape[1], 1, t, r, own_mask.shape[-1]))
    row_mask = row_mask.reshape(p, own_mask.shape[1], 1, t * r, -1)
    size = queries if queries and row_shards() == 1 else t
    top, total, out = _causal(q_own, *own, row_mask, r, size)
    if prompt is not None:
        keys, values, mask = prompt
        if mask.ndim > 2:  # a mask for each query
            mask = jnp.broadcast_to(mask[:, :, :, None], (p, g, t, r, mask.shape[-1]))
        if context_shards() > 1:  # merging split tokens with rows would move them between devices
            mask = mask[:, None, None, None] if mask.ndim == 2 else mask.reshape(p, g, 1, t * r, -1)
            top2, total2, out2 = _part(q_own, keys[:, None], values[:, None], mask)
        else:
            q_prompt = q.transpose(0, 3, 1, 2, 4, 5).reshape(p, k, g * t * r, d)
            mask = mask[:, None, None, :] if mask.ndim == 2 else mask.reshape(p, 1, g * t * r, -1)
            parts = _part(q_prompt, keys, values, mask)
            # [P, K, G*T*R, x] -> [P, G, K, T*R, x]
            top2, total2, out2 = (x.reshape(p, k, g, t * r, -1).transpose(0, 2, 1, 3, 4) for x in parts)
        joint = jnp.maximum(top, top2)
        a, b = jnp.exp(top - joint), jnp.exp(top2 - joint)
        total = a * total + b * total2
        out = a * out + b * out2
    out = (out / total).astype(q.dtype)
    return out.reshape(p, g, k, t, r, d).transpose(0, 1, 3, 2, 4, 5).reshape(p, g, t, h, d)


def _causal(q, k, v, mask, per_token, size):
    """`_part` for causal keys, in blocks of `size` tokens. A token has `per_token` queries."""
    t = q.shape[-2] // per_token
    if t <= size:
        return _part(q, k, v, mask)
    parts, size = [], max(size, -(-t // BLOCKS))
    for start in range(0, t, size):
        rows, keys = slice(start * per_token, (start + size) * per_token), slice(0, start + size)
        parts.append(_part(q[..., rows, :], k[..., keys, :], v[..., keys, :], mask[..., rows, keys]))
    return tuple(jnp.concatenate(x, -2) for x in zip(*parts, strict=True))


def _part(q, k, v, mask):
    """(maximum logit, sum of exponentials, unnormalised output) of each query over one set of keys, in float32."""
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits, MASKED)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return top, total, out


def decode_attention(
    q: Float[AnyArray, "N H Dh"],
    own: tuple[Float[AnyArray, "N K Dh T"], Float[AnyArray, "N K T Dh"]],
    own_mask: Bool[AnyArray, "N T"],
    prompt: tuple[Float[AnyArray, "P K Dh S"], Float[AnyArray, "P K S Dh"]],
    prompt_mask: Bool[AnyArray, "P S"] | Bool[AnyArray, "N S"],
) -> Float[Array, "N H Dh"]:
    """`attention` for one token of each of N = P x G rows, over caches in the decoding layout. `prompt_mask` has one
    row per prompt, or one per completion row.

    Position is the last axis of keys, so that a product with few rows reads them in order (half the time on a CPU).
    Rows are one axis, so that there is no reshape between the cache and its update in place: with a group axis of size
    1, XLA copied every cache at every step.
    """
    n, h, d = q.shape
    p, k = prompt[0].shape[:2]
    r = h // k
    q = (q * d**-0.5).reshape(n, k, r, d)

    def by_prompt(x):
        return x.reshape(p, n // p, k, r, -1).swapaxes(1, 2).reshape(p, k, n // p * r, -1)

    def by_row(x):
        return x.reshape(p, k, n // p, r, -1).swapaxes(1, 2).reshape(n, k, r, -1)

    def scores(q, keys):
        return jnp.einsum("nkrd,nkdt->nkrt", q, keys, preferred_element_type=jnp.float32)

    def weighted_sum(e, v):
        return jnp.einsum("nkrt,nktd->nkrd", e.astype(v.dtype), v, preferred_element_type=jnp.float32)

    z = jnp.where(own_mask[:, None, None], scores(q, own[0]), MASKED)
    if len(prompt_mask) == p:
        in_prompt = prompt_mask[:, None, None]
    else:
        in_prompt = by_prompt(jnp.broadcast_to(prompt_mask[:, None, None], (n, k, r, prompt_mask.shape[-1])))
    z2 = jnp.where(in_prompt, scores(by_prompt(q), prompt[0]), MASKED)
    top = jnp.maximum(z.max(-1, keepdims=True), by_row(z2.max(-1, keepdims=True)))
    e, e2 = jnp.exp(z - top), jnp.exp(z2 - by_prompt(top))
    out = weighted_sum(e, own[1]) + by_row(weighted_sum(e2, prompt[1]))
    total = e.sum(-1, keepdims=True) + by_row(e2.sum(-1, keepdims=True))
    return (out / total).astype(q.dtype).reshape(n, h, d)


def row_multiple(kind: str) -> int:
    """With this kind of attention, rows whose length is a multiple of this number are split evenly over context."""
    return context_shards() * (splash.LANES if kind == "splash" and context_shards() > 1 else 1)


def trunk(segment: Int[AnyArray, "P G T"]) -> Bool[AnyArray, "P G T"]:
    """The trunk of each row: chain tokens, forced tags and the environment's replies.

    Any other run of tokens is a branch: an answer that follows the trunk. Only the branch's own tokens attend to it.
    """
    return (segment == CHAIN) | (segment == TAG) | (segment == ENV)


def branch_mask(segment: Int[AnyArray, "P G T"]) -> Bool[Array, "P G T T"]:
    """The mask [query, key] of completion rows: causal, without padding. A query attends to the trunk and to its own
    branch."""
    t = segment.shape[-1]
    causal = jnp.tril(jnp.ones((t, t), bool))
    shared = trunk(segment)
    branch = branches(segment, shared)
    own = branch[..., :, None] == branch[..., None, :]
    return causal & (segment != PAD)[..., None, :] & (shared[..., None, :] | own)


def branches(segment: Int[AnyArray, "P G T"], shared: Bool[AnyArray, "P G T"]) -> Int[Array, "P G T"]:
    """The number of each token's branch in its row; -1 on the trunk. `shared`: the mask of the trunk."""
    return jnp.where(shared, -1, jnp.cumsum(_starts(segment), -1))


def references(segment: Int[AnyArray, "P G T"]) -> Int[Array, "P G T"]:
    """The number of each token's reference answer in its row, from 1; 0 for other tokens."""
    is_reference = segment == REFERENCE
    return jnp.where(is_reference, jnp.cumsum(_starts(segment) & is_reference, -1), 0)


def branch_positions(segment: Int[AnyArray, "P G T"], prompt_length: Int[AnyArray, "P"]) -> Int[Array, "P G T"]:
    """Rotary positions. A branch continues the trunk before it. The trunk after a branch continues as if there were no
    branch."""
    return prompt_length[:, None, None] + _offset(segment)


def predecessor(segment: Int[AnyArray, "P G T"]) -> Int[Array, "P G T"]:
    """The index of the token whose state predicts each token, in the row [last prompt token; completion].

    It is the previous token on the same branch or trunk. For the first token of a branch, it is the last token of the
    trunk before the branch.
    """
    index = jnp.arange(segment.shape[-1])
    shared = trunk(segment)
    # `last`: the last trunk token before each token. Token t has index t + 1, the prompt's last token index 0.
    last = jnp.where(shared, index + 1, 0)
    last = jnp.pad(jax.lax.cummax(last, axis=last.ndim - 1)[..., :-1], [(0, 0), (0, 0), (1, 0)])
    before = jnp.pad(segment[..., :-1], [(0, 0), (0, 0), (1, 0)])
    return jnp.where(shared | (segment != before), last, index)


def _offset(segment: Int[AnyArray, "P G T"]) -> Int[Array, "P G T"]:
    """The number of tokens before each token, on the trunk and on its own branch."""
    index, shared = jnp.arange(segment.shape[-1]), trunk(segment)
    before = jnp.cumsum(shared, -1) - shared  # trunk tokens before each token
    start = jax.lax.cummax(jnp.where(_starts(segment), index, 0), axis=segment.ndim - 1)
    return before + jnp.where(shared, 0, index - start)


def _starts(segment: Int[AnyArray, "P G T"]) -> Bool[Array, "P G T"]:
    """The first token of each branch. Padding separates two adjacent answers of the same kind."""
    return ~trunk(segment) & (segment != jnp.pad(segment[..., :-1], [(0, 0), (0, 0), (1, 0)]))
