"""Everything that the rewards read: one forward of the policy, and the forwards of other models that they need."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_likelihood.learner.cross import cross_log_probs
from rl_likelihood.learner.posterior import Chains
from rl_likelihood.learner.rows import RowStats, StepConfig, policy_masks, row_stats
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.rewards import likelihood
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.reward import Observation
from rl_likelihood.rewards.weighted import answers_first
from rl_likelihood.shapes import CHAIN, SAMPLED, TAG, AnyArray, Batch

# (reference, proxy), each None if nothing needs it; with LoRA also the base model of the adapters.
Models = tuple[Params | None, Params | None] | tuple[Params | None, Params | None, Params]


def floored(logp: Float[Array, "P G T"], batch: Batch, cfg: StepConfig) -> Float[Array, "P G T"]:
    """Log-probs (nats) for the reward: the model's, but reward.floor after a truncated chain.

    The floor is per token. So for every reward and answer length, a truncated chain earns less than any chain after
    which each answer token has a log-prob above the floor.
    """
    if cfg.reward.truncated == "floor":
        logp = jnp.where(batch.truncated[..., None], cfg.reward.floor, logp)
    return logp


class Forward(NamedTuple):
    """The results of one forward: the rows, the inputs of rewards, the reference model's log-probs and, with a
    posterior prompt, the chains' log-probs after both prompts."""

    rows: RowStats
    observation: Observation
    reference_logp: Float[Array, "P G T"] | None
    chains: Chains | None = None


def observe(
    params: Params,
    models: Models,
    model: ModelConfig,
    batch: Batch,
    cfg: StepConfig,
    probe: Float[AnyArray, "*N D"] | float = 0.0,
) -> Forward:
    """One forward, and the inputs of every reward."""
    rows, (reference, proxy) = row_stats(params, model, batch, cfg, probe), models[:2]
    by_other = lambda other: jax.lax.stop_gradient(row_stats(other, model, batch.rows_alone, cfg).stats.log_prob)
    nll = lambda logp: -likelihood.avg_log_prob(logp, batch.scored)
    reference_logp = None if reference is None else by_other(reference)
    baseline, no_chain_logp = batch.baseline, batch.baseline_logp
    if batch.no_chain is not None and cfg.reward.baseline == "live":
        answer = rows.no_chain_logp, batch.no_chain.scored
        baseline = likelihood.avg_prob(*answer)[:, 0]
        if cfg.reward.reads_no_chain:
            no_chain_logp = answers_first(*answer)[0][:, 0]
    mask, keep = policy_masks(batch, cfg)
    stats, alternatives_logp, cross = rows.stats, rows.alternatives_logp, cfg.needs("cross")
    observation = Observation(
        floored_logp=floored(stats.log_prob, batch, cfg),
        scored=batch.scored,
        keep=keep,
        truncated=batch.truncated,
        policy=PolicyStats(stats.log_prob, stats.entropy, stats.self_certainty, mask, model.vocab_size),
        chain_tokens=((batch.segment == CHAIN) | (batch.segment == TAG)).sum(-1).astype(jnp.float32),
        host_rewards=batch.host_rewards,
        baseline=None if cfg.reward.baseline == "none" else baseline,
        proxy_nll=nll(by_other(proxy)) if cfg.needs("proxy") else None,
        cross_logp=cross_log_probs(params, model, batch, cfg) if cross else None,
        answered=(batch.segment == SAMPLED).any(-1) if cross else None,
        initial_nll=nll(floored(reference_logp, batch, cfg)) if cfg.needs("initial") else None,
        no_chain_logp=no_chain_logp,
        alternatives=batch.alternatives,
        alternatives_logp=None if alternatives_logp is None else floored(alternatives_logp, batch, cfg),
    )
    chains = None if batch.shown is None else _chains(params, model, batch, cfg, observation)
    return Forward(rows, observation, reference_logp, chains)


def _chains(params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig, observation: Observation) -> Chains:
    """The chains' log-probs after both prompts. Those after the posterior prompt have a gradient only if
    posterior.target is above 0."""
    shown_batch = batch.rows_alone.replace(prompt=batch.shown.tokens, prompt_length=batch.shown.length, common=0)
    shown_stats = row_stats(
        params if cfg.posterior.target else jax.lax.stop_gradient(params), model, shown_batch, cfg
    ).stats
    group = batch.completion.shape[1]
    from_shown = np.arange(group) >= group - cfg.posterior.rows(group)
    policy = observation.policy
    return Chains(policy.log_prob, shown_stats.log_prob, policy.mask, observation.keep, from_shown)
