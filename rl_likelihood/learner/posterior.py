"""Chains sampled from the posterior prompt, which shows the reference answer: their weights, advantages and losses.

p is the policy after the question. q is the same model after the posterior prompt (the question and its answer). A
share s of a group's n chains is sampled from q, the others from p. The objective is the mean reward of a target t:

    J = E_t[ R(z) ] - kl * KL(t || p),   each token of t from (1 - target) p + target q:  0 is p, 1 is q.

Each chain has the importance weight w = t / ((1 - s) p + s q), the balance heuristic. The expectation of the group's
mean of w R is then E_t R. The gradient of  mean_i w_i ((R_i - b_i) log t(z_i) + R_i)  is the gradient of J, with w and
the first R constant.

The baseline b_i is the group's mean of w R, in which chain i is replaced by the mean of the other chains of its prompt.
It does not depend on z_i, and its expectation is E_t R. (The plain mean of the other chains would be biased, because
E_p[w grad log t] is not 0. Only the sum over both prompts is 0.)
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.fields import field
from rl_likelihood.learner.surrogate import MAX_LOG_RATIO
from rl_likelihood.rewards.likelihood import Objective, kept_mean
from rl_likelihood.shapes import AnyArray

PROMPT = "\n\nThe right answer is:\n{answer}\n\nReason step by step towards it, as if you did not know it."


@dataclasses.dataclass(frozen=True)
class PosteriorConfig:
    """A second prompt that shows the reference answer, for some of the chains or for self-distillation."""

    share: float = field(0.0, "share of each group's chains that is sampled from the posterior prompt", least=0, most=1)
    prompt: str = field(PROMPT, "the posterior prompt: text added to the question; {answer} is the reference answer")
    max_prompt: int = field(
        0, "maximum tokens of the posterior prompt; 0: prompt.max_prompt + prompt.max_answer + 64", least=0
    )
    target: float = field(
        0.0,
        "chains whose reward is maximised: 0: sampled given the question; 1: given question and answer; between: each "
        "token from the mixture of both (CoVRL: 0.5)",
        least=0,
        most=1,
    )
    kl: float = field(0.0, "coefficient of the KL from the target to the policy given the question", least=0, most=1e6)
    weight_cap: float = field(0.0, "cap on a chain's importance weight; 0: none, the exact gradient", least=0)
    answer_rows: Literal["all", "positive"] = field(
        "all",
        "chains after which the answer is trained: all, with importance weights (exact); or only chains sampled from "
        "the question, if their advantage is positive (biased)",
    )
    distill: float = field(
        0.0,
        "self-distillation: this times log q - log p is added to each token's advantage; needs posterior.share=0",
        least=0,
        most=1e6,
    )
    distill_clip: float = field(5.0, "clip of log q - log p of a token, on both sides", above=0)

    @property
    def used(self) -> bool:
        """Whether there is a second prompt."""
        return self.share > 0 or self.distill > 0

    def rows(self, group: int) -> int:
        """How many chains of a group are sampled after the posterior prompt. They are the group's last rows."""
        return round(self.share * group)


class Chains(NamedTuple):
    """The chains' log-probs (nats) after the question (`plain`) and after the posterior prompt (`shown`).

    `from_shown` marks the rows that were sampled after the posterior prompt: the last ones.
    """

    plain: Float[Array, "P G T"]
    shown: Float[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    keep: Bool[Array, "P G"]
    from_shown: Bool[Array, "G"]


def token_target(plain: Float[AnyArray, "*N"], shown: Float[AnyArray, "*N"], target: float) -> Float[Array, "*N"]:
    """Log-prob of each token under the target t."""
    if target in (0.0, 1.0):
        return jnp.asarray(shown if target else plain)
    return jnp.logaddexp(plain + jnp.log1p(-target), shown + jnp.log(target))


def weights(chains: Chains, cfg: PosteriorConfig) -> Float[Array, "P G"]:
    """w of each chain, constant for the gradient. Its s is the share among the kept rows."""
    total = lambda x: jnp.where(chains.mask, x, 0.0).sum(-1)
    log_target = token_target(chains.plain, chains.shown, cfg.target)
    share = kept_mean(jnp.broadcast_to(chains.from_shown, chains.keep.shape).astype(jnp.float32), chains.keep)[:, None]
    mixture = jnp.logaddexp(total(chains.plain) + jnp.log1p(-share), total(chains.shown) + jnp.log(share))
    w = jnp.exp(jnp.minimum(total(log_target) - mixture, MAX_LOG_RATIO))
    return jax.lax.stop_gradient(jnp.minimum(w, cfg.weight_cap) if cfg.weight_cap else w)


def baseline(
    values: Float[AnyArray, "P G"], keep: Bool[AnyArray, "P G"], from_shown: Bool[AnyArray, "G"]
) -> Float[Array, "P G"]:
    """For each row i the mean of its group, where value i is replaced by the mean of the other rows of its prompt."""
    n, out = jnp.maximum(keep.sum(-1, keepdims=True), 1), jnp.zeros(values.shape)
    for from_prompt in (from_shown, ~from_shown):
        members = keep & from_prompt
        k = members.sum(-1, keepdims=True)
        total = jnp.where(members, values, 0.0).sum(-1, keepdims=True)
        others = (total - values) / jnp.maximum(k - 1, 1)
        out = out + k / n * jnp.where(from_prompt, others, total / jnp.maximum(k, 1))
    return out


def advantages(reward: Float[AnyArray, "P G"], w: Float[AnyArray, "P G"], chains: Chains) -> Float[Array, "P G"]:
    """w_i (R_i - b_i). It is 0 for a dropped row, and in a group with exactly one kept row of one of the prompts."""
    single = (chains.keep & chains.from_shown).sum(-1) == 1
    single |= (chains.keep & ~chains.from_shown).sum(-1) == 1
    usable = chains.keep & ~single[:, None]
    return jnp.where(usable, w * (reward - baseline(w * reward, chains.keep, chains.from_shown)), 0.0)


def of_each_row(
    f: Objective, logp: Float[AnyArray, "P G A"], mask: Bool[AnyArray, "P G A"], keep: Bool[AnyArray, "P G"]
) -> Float[Array, "P G"]:
    """R_i of an objective f that is a mean over rows: f of the group with row i alone. Differentiable."""
    single = jnp.eye(keep.shape[-1], dtype=bool)
    return jax.vmap(lambda row: f(logp, mask, keep & row))(single).T


def kl_rows(chains: Chains, target: float) -> Float[Array, "P G"]:
    """log t(z_i) - log p(z_i) in nats. Its mean over chains sampled from t is KL(t || p)."""
    return jnp.where(chains.mask, token_target(chains.plain, chains.shown, target) - chains.plain, 0.0).sum(-1)


def as_after_question(sampler_logp: Float[AnyArray, "P G T"], chains: Chains) -> Float[Array, "P G T"]:
    """The sampler's log-probs as if every row had been sampled after the question. The logged ratios need them."""
    shift = jnp.where(chains.from_shown[:, None] & chains.mask, chains.plain - chains.shown, 0.0)
    return sampler_logp + jax.lax.stop_gradient(shift)


def measured(chains: Chains, reward: Float[AnyArray, "P G"], cfg: PosteriorConfig) -> dict[str, Float[Array, ""]]:
    """Metrics, summed over prompts: both KLs in nats per chain, the effective sample size, and the reward gained by
    chains from the posterior prompt."""
    chains_of = chains.keep & chains.from_shown, chains.keep & ~chains.from_shown
    mean = lambda x, rows: kept_mean(x, rows).sum()
    log_ratio = kl_rows(chains, 1.0)
    out = {}
    if not chains.from_shown.all():
        out["posterior/reverse_kl"] = mean(-log_ratio, chains_of[1])
    if chains.from_shown.any():
        w = weights(chains, cfg)
        n, total = chains.keep.sum(-1), jnp.where(chains.keep, w, 0.0)
        ess = total.sum(-1) ** 2 / jnp.maximum(n * (total**2).sum(-1), 1e-30)
        out |= {"posterior/kl": mean(log_ratio, chains_of[0]), "posterior/ess": ess.sum()}
        if not chains.from_shown.all():
            out["posterior/gain"] = mean(reward, chains_of[0]) - mean(reward, chains_of[1])
    return out


def distilled(chains: Chains, clip: float) -> Float[Array, "P G T"]:
    """log q - log p of each token, clipped, without a gradient.

    Used as the token's advantage, it descends the sum over tokens of KL(p || q) given the preceding tokens, estimated
    with the one sampled token.
    """
    return jax.lax.stop_gradient(jnp.clip(chains.shown - chains.plain, -clip, clip))
