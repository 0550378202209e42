"""The one equation: it turns every reward into a loss.

For a group objective f (rewards/likelihood.py), where `without i` means that row i is removed from `keep`,

    surrogate = sum_i stop_gradient(f(group) - f(group without i)) log pi(z_i | p)  +  f(group)

The loss is minus its mean over prompts, plus beta KL. If f is a mean, f(group) - f(group without i) is RLOO's
(R_i - mean of the others) / G. For jepo it is the difference of Tang et al. (2503.19618, sec. 4), which takes no
further 1/G. The gradient of the second term gives the answer's tokens their exact weights. It has no baseline.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rl_likelihood.fields import field
from rl_likelihood.rewards.likelihood import GroupValue, Objective, difference
from rl_likelihood.shapes import ENV, AnyArray

# Log-ratios are clipped here, before exp() overflows.
MAX_LOG_RATIO = 20.0
# Below this standard deviation, the rows of a group differ by rounding only.
MIN_STD = 1e-6


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the policy term and the KL term. The answer term has only a coefficient."""

    answer_term: float = field(
        1.0, "coefficient of the reward's own gradient; 1 is exact, 0 leaves it out", least=-1e6, most=1e6
    )
    span: Literal["auto", "chain", "response"] = field(
        "auto",
        "tokens of the policy term: the chain, or chain and sampled answer (response); auto: what the reward needs",
    )
    advantage: Literal["loo", "mean", "std", "std_clip"] = field("loo", "how the leave-one-out differences are scaled")
    aggregation: Literal["seq_sum", "seq_mean", "token_mean", "const", "delta_l", "delta_l_batch"] = field(
        "seq_sum", "how tokens become one loss"
    )
    delta_l_alpha: float = field(
        1.0,
        "delta_l: a response of n tokens has weight n^-alpha, divided by the mean over the group or batch",
        least=0,
        most=10,
    )
    ratio: Literal["none", "token", "sequence"] = field(
        "none", "truncated importance weights of the policy term, for stale rollouts (the answer term has none)"
    )
    ratio_cap: float = field(2.0, "cap on these weights", least=0)
    clip_low: float = field(
        0.0, "PPO clip of the token ratio at 1 - clip_low; 0 leaves that side open", least=0, most=1
    )
    clip_high: float = field(0.0, "PPO clip of the token ratio at 1 + clip_high; 0 leaves that side open", least=0)
    clip_per: Literal["token", "sequence"] = field(
        "token", "what is clipped: each token's ratio, or the geometric mean of a response's (GSPO)"
    )
    mask_move: float = field(
        0.0,
        "leave out tokens whose probability moved further than this in the advantage's direction (DPPO); 0: none",
        least=0,
    )
    kl: Literal["none", "k1", "k2", "k3", "reward_k1"] = field(
        "none", "KL to the reference model: an estimator in the loss, or k1 in the reward (RLOO)"
    )
    kl_coef: float = field(0.0, "coefficient of the KL term", least=0, most=1e6)
    reference_every: int = field(
        0, "steps between updates of the reference towards the policy; 0: it stays the initial model", least=0
    )
    reference_decay: float = field(
        0.0,
        "share of itself that the reference keeps in an update; 0: it becomes the policy",
        least=0,
        below=1,
    )
    format_term: float = field(
        0.0, "coefficient of minus the mean log-prob of forced closing tags (NRT)", least=0, most=1e6
    )
    policy_term: float = 1.0  # coefficient of the log pi(z) term; 0 is supervised training
    max_tokens: int = 1  # the constant of aggregation "const" (Dr.GRPO): tokens that a row may have


class Counts(NamedTuple):
    """Denominators over the whole batch, so that the losses of micro-batches and devices can be added."""

    prompts: Float[Array, ""]
    policy_tokens: Float[Array, ""]
    row_weights: Float[Array, ""] | None = None  # sum of `length_weights`, for delta_l_batch


def leave_one_out(
    f: Objective | GroupValue,
    logp: Float[AnyArray, "P G A"],
    mask: Bool[AnyArray, "P G A"],
    keep: Bool[AnyArray, "P G"],
) -> Float[Array, "P G"]:
    """f(group) - f(group without i). It is 0 for a dropped row, and in a group with fewer than two kept rows."""
    usable = keep & (keep.sum(-1, keepdims=True) > 1)
    return jnp.where(usable, difference(f, logp, mask, keep), 0.0)


def advantages(
    differences: Float[AnyArray, "P G"], keep: Bool[AnyArray, "P G"], kind: str, eps: float = 1e-4
) -> Float[Array, "P G"]:
    """Leave-one-out differences, scaled as a published method scales its advantages. The formulas are for a mean f.

    loo: R_i - mean of the others. mean: R_i - mean R (Dr.GRPO, 2503.20783). std: (R_i - mean R) / standard deviation
    of the group (GRPO, ddof 1). std_clip: the difference over the standard deviation of the group's differences
    (ddof 1), clipped to [-1, 1], with no mean subtracted (Tang et al. 2503.19618, app. B.2). With std and std_clip, a
    group without spread gets 0.
    """
    n = keep.sum(-1, keepdims=True).astype(jnp.float32)
    if kind == "loo":
        return differences * n
    if kind == "mean":
        return differences * (n - 1)
    values = differences if kind == "std_clip" else differences * (n - 1)
    centred = jnp.where(keep, values - values.sum(-1, keepdims=True) / jnp.maximum(n, 1), 0.0)
    std = jnp.sqrt((centred**2).sum(-1, keepdims=True) / jnp.maximum(n - 1, 1))
    clipped = kind == "std_clip"
    scaled = jnp.clip(values / jnp.maximum(std, MIN_STD), -1, 1) if clipped else values / (std + eps)
    return jnp.where(std > MIN_STD, scaled, 0.0)


def turn_of(segment: Int[AnyArray, "P G T"]) -> Int[Array, "P G T"]:
    """The number of environment replies before each token. A token of a reply counts its own reply."""
    reply = segment == ENV
    before = jnp.pad(reply[..., :-1], [(0, 0), (0, 0), (1, 0)])
    return jnp.cumsum(reply & ~before, -1)


def turn_gains(
    logp: Float[AnyArray, "P G T"],
    scored: Bool[AnyArray, "P G T"],
    segment: Int[AnyArray, "P G T"],
    keep: Bool[AnyArray, "P G"],
    turns: int,
) -> Float[Array, "P G K"]:
    """An advantage for each of K = `turns` messages: how much the rest of the conversation raises the reference's
    likelihood.

    v_k is the geometric-mean probability of the reference that precedes message k, counted from 0 (after IGPO,
    2510.14967). The tokens of message k earn the gains v_{j+1} - v_j of all j >= k, which sum to v_last - v_k. The
    baseline is the mean of the same sum over the group's other kept rows. A row that ended before message k adds 0.
    """
    turn = turn_of(segment)
    in_turn = (turn[..., None] == jnp.arange(turns)) & scored[..., None]  # [P, G, T, K]
    n = in_turn.sum(2)
    v = jnp.exp(jnp.where(in_turn, logp[..., None], 0.0).sum(2) / jnp.maximum(n, 1))  # [P, G, K]
    last = jnp.maximum((jnp.arange(turns) * (n > 0)).max(-1, keepdims=True), 0)
    to_go = jnp.where(n > 0, jnp.take_along_axis(v, last, -1) - v, 0.0)
    to_go = jnp.where(keep[..., None], to_go, 0.0)
    others_count = jnp.maximum(keep.sum(-1)[:, None, None] - 1, 1)
    centred = to_go - (to_go.sum(1, keepdims=True) - to_go) / others_count
    return jnp.where(keep[..., None] & (keep.sum(-1)[:, None, None] > 1), centred, 0.0)


def by_token(values: Float[AnyArray, "P G K"], segment: Int[AnyArray, "P G T"]) -> Float[Array, "P G T"]:
    """The value of each token's message."""
    return jnp.take_along_axis(values, jnp.clip(turn_of(segment), 0, values.shape[-1] - 1), -1)


def aggregate(
    values: Float[AnyArray, "P G T"],
    mask: Bool[AnyArray, "P G T"],
    keep: Bool[AnyArray, "P G"],
    cfg: LossConfig,
    counts: Counts,
) -> Float[Array, ""]:
    """Reduces per-token values to one number: sum over tokens, mean over a group's kept rows, mean over prompts.

    That is seq_sum. seq_mean divides each row by its length, const by max_tokens. token_mean is one mean over all
    tokens. delta_l averages a group's rows with weights (length)^-alpha; delta_l_batch does so over all rows of the
    batch (2509.07558).
    """
    values = jnp.where(mask & keep[..., None], values, 0.0)
    if cfg.aggregation == "token_mean":
        return values.sum() / jnp.maximum(counts.policy_tokens, 1)
    rows = values.sum(-1)
    if cfg.aggregation == "seq_mean":
        rows = rows / jnp.maximum(mask.sum(-1), 1)
    elif cfg.aggregation == "const":
        rows = rows / cfg.max_tokens
    elif cfg.aggregation.startswith("delta_l"):
        weights = length_weights(mask, keep, cfg)
        if counts.row_weights is not None:
            return (weights * rows).sum() / jnp.maximum(counts.row_weights, 1e-30)
        return ((weights * rows).sum(-1) / jnp.maximum(weights.sum(-1), 1e-30)).sum() / counts.prompts
    group_means = rows.sum(-1) / jnp.maximum(keep.sum(-1), 1)
    return group_means.sum() / counts.prompts


def by_weight(values: Shaped[AnyArray, "P *N"], weight: Float[AnyArray, "P"] | None) -> Shaped[AnyArray, "P *N"]:
    """The values of each prompt, times its weight. Without weights, the values."""
    return values if weight is None else values * weight.reshape(-1, *[1] * (values.ndim - 1))


def length_weights(mask: Bool[AnyArray, "P G T"], keep: Bool[AnyArray, "P G"], cfg: LossConfig) -> Float[Array, "P G"]:
    """(tokens of a row)^-alpha; 0 for dropped rows and for rows without tokens."""
    n = mask.sum(-1).astype(jnp.float32)
    return jnp.where(keep & (n > 0), jnp.maximum(n, 1) ** -cfg.delta_l_alpha, 0.0)


def importance(
    logp: Float[AnyArray, "P G T"], sampler_logp: Float[AnyArray, "P G T"], mask: Bool[AnyArray, "P G T"], per: str
) -> Float[Array, "P G T"]:
    """Importance ratios pi(now) / pi(when sampled). `per`: "token", "sequence" (their product over the row), or "mean"
    (their geometric mean over the row). Not truncated; in "token" it is 1 outside the mask."""
    d = jnp.where(mask, logp - sampler_logp, 0.0)
    if per == "sequence":
        d = jnp.broadcast_to(d.sum(-1, keepdims=True), d.shape)
    elif per == "mean":
        d = jnp.broadcast_to(d.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1), d.shape)
    return jnp.exp(jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def policy_loss(
    logp: Float[AnyArray, "P G T"],
    sampler_logp: Float[AnyArray, "P G T"],
    advantage: Float[AnyArray, "P G"] | Float[AnyArray, "P G T"],
    mask: Bool[AnyArray, "P G T"],
    keep: Bool[AnyArray, "P G"],
    cfg: LossConfig,
    counts: Counts,
) -> Float[Array, ""]:
    """Minus the policy term. `advantage` [P, G] or [P, G, T] gets no gradient: stop_gradient is applied to it.

    Without clipping, the gradient is that of weight * A * logp. The weight is 1, or a truncated importance ratio if
    loss.ratio asks for one (stale rollouts). With clipping, it is PPO's min(ratio A, clip(ratio) A), with each token's
    ratio or, as in GSPO, the geometric mean of the row's ratios.
    """
    a = jax.lax.stop_gradient(advantage if advantage.ndim == 3 else advantage[..., None])
    if cfg.clip_low or cfg.clip_high:
        ratio = importance(logp, sampler_logp, mask, "token" if cfg.clip_per == "token" else "mean")
        low = 1 - cfg.clip_low if cfg.clip_low else 0.0
        high = 1 + cfg.clip_high if cfg.clip_high else jnp.inf
        gain = jnp.minimum(ratio * a, jnp.clip(ratio, low, high) * a)
    elif cfg.ratio != "none":
        weight = jnp.minimum(importance(logp, sampler_logp, mask, cfg.ratio), cfg.ratio_cap)
        gain = jax.lax.stop_gradient(weight) * a * logp
    else:
        gain = a * logp
    if cfg.mask_move:
        move = jax.lax.stop_gradient(jnp.exp(logp) - jnp.exp(sampler_logp))
        gain = jnp.where(jnp.sign(a) * move > cfg.mask_move, 0.0, gain)
    return -aggregate(gain, mask, keep, cfg, counts)


def kl_estimate(kind: str, logp: Float[AnyArray, "..."], ref_logp: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """Schulman's per-token estimates of KL(pi || ref) at sampled tokens, in nats. With d = logp - ref_logp:
    k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss, k2 has the right gradient; the gradient of k1 is 0 in
    expectation."""
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d * d
    if kind == "k3":
        return jnp.expm1(jnp.clip(-d, -MAX_LOG_RATIO, MAX_LOG_RATIO)) + d
    raise ValueError(f"kl kind is {kind!r}; it must be k1, k2 or k3")
