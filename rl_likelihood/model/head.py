"""The fused head: per-token statistics of softmax(hidden W^T), never [tokens, V] at once.

A scan over chunks of tokens computes logits, reduces them and drops them; the backward pass computes
each chunk's logits again, turns them into their gradient in place, and accumulates dW. One pass gives
the log-prob that rewards need and the entropy and self-certainty that everybody wants to see.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_likelihood import mesh as meshes


class TokenStats(NamedTuple):
    """Float32, in nats, each with the shape of `targets`.

    log_prob: log p(target); logsumexp: of the logits; entropy: -sum_v p log p;
    self_certainty: KL(uniform || p) = logsumexp - mean logit - log V (Intuitor, arXiv 2505.19590, eq. 1).
    """

    log_prob: Float[Array, "..."]
    logsumexp: Float[Array, "..."]
    entropy: Float[Array, "..."]
    self_certainty: Float[Array, "..."]


def token_stats(
    hidden: Float[Array, "... D"], head: Float[Array, "V D"], targets: Int[Array, "..."], chunk: int = 512
) -> TokenStats:
    """Statistics of the distribution that each hidden state gives, and the log-prob of its target.

    `chunk` is the number of tokens whose logits exist at one time (all devices together; at least one
    of each row). The scan runs along the last token axis, so leading axes may be sharded. Differentiable
    in hidden and head; log-probs are computed in float32 whatever the inputs' type.
    """
    *lead, n = targets.shape
    most = min(n, max(1, chunk // max(1, math.prod(lead))))
    chunks = -(-n // most)
    step = -(-n // chunks)  # even chunks, so that little of the last one is padding
    pad = chunks * step - n

    def split(x):  # [*lead, n, ...] -> [chunks, *lead, step, ...]
        rest = x.shape[len(lead) + 1 :]
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, pad)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(x.reshape(*lead, chunks, step, *rest), len(lead), 0)

    stats = _stats(split(hidden), meshes.gathered(head, ("vocab", "width")), split(targets))
    return TokenStats(*(jnp.moveaxis(x, 0, len(lead)).reshape(*lead, n + pad)[..., :n] for x in stats))


def logits(hidden: Float[Array, "... D"], head: Float[Array, "V D"]) -> Float[Array, "... V"]:
    """hidden W^T in float32. Only for few tokens: a decode step, a chunk of the scan."""
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp)
def _stats(hidden, head, targets):
    return _forward(hidden, head, targets)


def _forward(hidden, head, targets):
    mean_row = head.astype(jnp.float32).mean(0)
    log_v = math.log(head.shape[0])

    def one(_, x):
        h, t = x
        z = logits(h, head)
        top = z.max(-1, keepdims=True)
        e = jnp.exp(z - top)
        total = e.sum(-1)
        lse = jnp.log(total) + top[..., 0]
        # sum_v p_v z_v, relative to the maximum so that large logits cancel exactly
        mean_z = (e * (z - top)).sum(-1) / total
        entropy = jnp.log(total) - mean_z
        target = jnp.take_along_axis(z, t[..., None], -1) - top  # before the log: large logits cancel exactly
        certainty = lse - h.astype(jnp.float32) @ mean_row - log_v
        return None, TokenStats(target[..., 0] - jnp.log(total), lse, entropy, certainty)

    return jax.lax.scan(one, None, (hidden, targets))[1]


def _stats_fwd(hidden, head, targets):
    stats = _forward(hidden, head, targets)
    return stats, (hidden, head, targets, stats.logsumexp, stats.entropy)


def _stats_bwd(saved, grad):
    hidden, head, targets, lse, entropy = saved
    v = head.shape[0]

    def one(d_head, x):
        h, t, lse, entropy, g = x
        log_p = logits(h, head) - lse[..., None]
        p = jnp.exp(log_p)
        # d log_prob = onehot - p;  d logsumexp = p;  d entropy = -p (log p + entropy);  d certainty = p - 1/V
        weight = g.logsumexp - g.log_prob + g.self_certainty - g.entropy * entropy
        d = p * (weight[..., None] - g.entropy[..., None] * log_p) - g.self_certainty[..., None] / v
        d = d + jnp.where(jnp.arange(v) == t[..., None], g.log_prob[..., None], 0.0)
        d = d.astype(h.dtype)
        d_h = jnp.einsum("...v,vd->...d", d, head.astype(h.dtype), preferred_element_type=jnp.float32)
        flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
        d_head = d_head + jnp.einsum("nv,nd->vd", flat(d), flat(h), preferred_element_type=jnp.float32)
        return d_head, d_h.astype(h.dtype)

    zero = jnp.zeros(head.shape, jnp.float32)
    d_head, d_hidden = jax.lax.scan(one, zero, (hidden, targets, lse, entropy, grad))
    return d_hidden, d_head.astype(head.dtype), None


_stats.defvjp(_stats_fwd, _stats_bwd)
