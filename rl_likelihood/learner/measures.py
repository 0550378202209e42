"""The metrics of a step: sums over micro-batches, values of each row, and the metrics computed from both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rl_likelihood.learner import surrogate
from rl_likelihood.learner.observation import Forward
from rl_likelihood.learner.rows import StepConfig, packed_rows, policy_masks
from rl_likelihood.rewards import intrinsic, likelihood, shaping
from rl_likelihood.shapes import CHAIN, AnyArray, Batch

# Rewards without a reference that every step logs.
ALWAYS = ("self_certainty", "token_entropy")
# A group whose rewards have a smaller standard deviation teaches the policy nothing.
_NO_SPREAD = 1e-6
Values = dict[str, ArrayLike]


def of_rows(forward: Forward, batch: Batch, cfg: StepConfig) -> tuple[Values, Values]:
    """(sums and maxima over all rows, values of each row [P, G, ...] or prompt [P])."""
    rows, observation = jax.lax.stop_gradient((forward.rows, forward.observation))
    stats, mask = rows.stats, observation.policy.mask
    _, keep = policy_masks(batch.replace(counted=None), cfg)  # logs show filtered groups too
    keep = keep if batch.critic is None else keep & ~batch.critic[:, None]
    ratio = surrogate.importance(stats.log_prob, batch.sampler_logp, mask, "token")
    per_row = {
        "keep": observation.keep,
        "logged": keep,
        "chain_tokens": observation.chain_tokens,
        "answer_logp": stats.log_prob,
        # Logged without reward.floor, which belongs to the trained reward alone.
        **{f"reward/{name}": score(stats.log_prob, batch.scored) for name, score in likelihood.SCORES.items()},
        **{f"reward/{name}": intrinsic.INTRINSIC[name](observation.policy) for name in ALWAYS},
    }
    if batch.no_chain is not None:
        per_row["no_chain_log_prob"] = likelihood.log_prob(rows.no_chain_logp, batch.no_chain.scored)[:, 0]
        per_row["no_chain_answer_logp"] = rows.no_chain_logp[:, 0]
    sums = {
        "sum/jepo": likelihood.jepo(stats.log_prob, batch.scored, keep).sum(),
        "sum/policy_tokens": mask.sum(),
        "sum/entropy": jnp.where(rows.sampled, stats.entropy, 0).sum(),
        "sum/self_certainty": jnp.where(rows.sampled, stats.self_certainty, 0).sum(),
        "sum/sampled_tokens": rows.sampled.sum(),
        "sum/ratio": jnp.where(mask, ratio, 0).sum(),
        "sum/ratio_squared": jnp.where(mask, ratio**2, 0).sum(),
        "max/ratio": jnp.where(mask, ratio, 0).max(),
        "sum/sampler_kl": jnp.where(mask, surrogate.kl_estimate("k3", batch.sampler_logp, stats.log_prob), 0).sum(),
    }
    return sums, per_row


def hidden_grad_norms(grad_hidden: Float[AnyArray, "*N D"], batch: Batch, cfg: StepConfig) -> Values:
    """Squared gradient norms at the last hidden states: over the tokens of the policy term, and of the answer term.

    No token is in both terms (except when a given chain is supervised), so one backward pass gives both norms.
    """
    squared, packed = (grad_hidden.astype(jnp.float32) ** 2).sum(-1), packed_rows(batch)
    if packed is not None:
        squared = packed.completions.spread(squared)[..., : batch.segment.shape[-1]]
    mask, _ = policy_masks(batch, cfg)
    return {
        "sum/policy_grad_squared": jnp.where(mask, squared, 0).sum(),
        "sum/answer_grad_squared": jnp.where(batch.scored, squared, 0).sum(),
    }


def metrics(sums: Values, per_row: Values, batch: Batch) -> Values:
    """The step's metrics, under the names of docs/metrics.md.

    corr/NAME is the correlation of reward NAME with the trained reward. Each value has its group's mean subtracted,
    because group-relative advantages depend on these differences only. corr/chain_length is the same for the length.
    """
    keep = per_row["logged"]

    def mean(x):
        return jnp.where(keep, x, 0).sum() / jnp.maximum(keep.sum(), 1)

    def mean_of_all(x):
        """Over dropped rows too."""
        return x.mean() if batch.critic is None else x.mean(where=~batch.critic.reshape(-1, *[1] * (x.ndim - 1)))

    reward = per_row["reward"]
    rewards = {k: v for k, v in per_row.items() if k.startswith("reward/")}
    std = shaping.group_std(reward, keep)
    groups = jnp.maximum(keep.any(-1).sum(), 1)
    sampled = jnp.maximum(sums["sum/sampled_tokens"], 1)
    policy_tokens = jnp.maximum(sums["sum/policy_tokens"], 1)
    policy_grad, answer_grad = (jnp.sqrt(sums[f"sum/{term}_grad_squared"]) for term in ("policy", "answer"))
    out = {
        "reward/mean": mean(reward),
        "reward/std": std.sum() / groups,
        **{k: mean(v) for k, v in rewards.items()},
        "reward/jepo": sums["sum/jepo"] / groups,
        "reward/zero_std_groups": jnp.where(keep.any(-1), std <= _NO_SPREAD, False).sum() / groups,
        # Rows whose exp(log-prob) is 0 in float32: the reward `prob` cannot tell them apart.
        "reward/underflow": mean((rewards["reward/prob"] == 0) & batch.scored.any(-1)),
        "advantage/abs_mean": mean(advantage_size(per_row, batch)),
        "chain/length": mean_of_all(per_row["chain_tokens"]),
        "chain/truncated": mean_of_all(batch.truncated),
        "answer/log_prob": mean(rewards["reward/log_prob"]),
        "answer/perplexity": jnp.exp(-mean(rewards["reward/avg_log_prob"])),
        "loss/policy": sums["loss/policy"],
        "loss/answer": sums["loss/answer"],
        "loss/kl": sums["loss/kl"],
        **{k: v for k, v in sums.items() if k == "loss/format" or k.startswith("posterior/")},
        "grad/answer_share": answer_grad / jnp.maximum(policy_grad + answer_grad, 1e-30),
        "policy/entropy": sums["sum/entropy"] / sampled,
        "policy/self_certainty": sums["sum/self_certainty"] / sampled,
        "ratio/mean": sums["sum/ratio"] / policy_tokens,
        "ratio/max": sums["max/ratio"],
        "ratio/kl": sums["sum/sampler_kl"] / policy_tokens,
        # Effective sample size of the importance weights, as a share of the tokens.
        "ratio/ess": sums["sum/ratio"] ** 2 / jnp.maximum(policy_tokens * sums["sum/ratio_squared"], 1e-30),
        "keep/fraction": mean_of_all(per_row["keep"]),
        **{f"corr/{k.removeprefix('reward/')}": within_groups(reward, v, keep) for k, v in rewards.items()},
        "corr/chain_length": within_groups(reward, per_row["chain_tokens"], keep),
    }
    if "no_chain_log_prob" in per_row:
        gain = rewards["reward/log_prob"] - per_row["no_chain_log_prob"][:, None]
        out |= {"answer/no_chain_log_prob": mean_of_all(per_row["no_chain_log_prob"]), "answer/chain_gain": mean(gain)}
    return out


def advantage_size(per_row: Values, batch: Batch) -> Float[Array, "P G"]:
    """The absolute advantage of each row. With credit by turn, the mean over its messages."""
    if "turn_advantage" not in per_row:
        return jnp.abs(per_row["advantage"])
    size = jnp.abs(per_row["turn_advantage"])
    messages = jnp.where(batch.segment == CHAIN, 1 + surrogate.turn_of(batch.segment), 0).max(-1)
    spoken = jnp.arange(size.shape[-1]) < messages[..., None]
    return jnp.where(spoken, size, 0).sum(-1) / jnp.maximum(messages, 1)


def within_groups(a: Float[AnyArray, "P G"], b: Float[AnyArray, "P G"], keep) -> Float[Array, ""]:
    """Pearson correlation of the kept rows' deviations from their group means; 0 if `a` or `b` has no spread."""

    def centred(x):
        x = jnp.where(keep, x - likelihood.kept_mean(x, keep)[:, None], 0.0)
        return x / jnp.maximum(jnp.abs(x).max(), 1e-37)  # squares of rewards near 1e-30 or 1e30 leave float32

    a, b = centred(a), centred(b)
    size = jnp.sqrt((a * a).sum() * (b * b).sum())
    return jnp.where(size > 0, (a * b).sum() / jnp.maximum(size, 1e-37), 0.0)
