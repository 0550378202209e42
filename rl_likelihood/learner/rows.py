"""What one forward says about each row of a batch, and which of its tokens and rows count."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model import attention
from rl_likelihood.model.decoder import ModelConfig, Params, forward, head_matrix
from rl_likelihood.model.head import TokenStats, token_stats
from rl_likelihood.rewards import likelihood
from rl_likelihood.rewards.intrinsic import SampledStats
from rl_likelihood.rewards.mixture import Evidence, RewardConfig
from rl_likelihood.rewards.shaping import FilterConfig
from rl_likelihood.shapes import CHAIN, SAMPLED, TAG, Batch


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the step computes. Frozen and hashable: it is static under jit."""

    reward: RewardConfig = RewardConfig()
    loss: LossConfig = LossConfig()
    filter: FilterConfig = FilterConfig()
    policy_span: str = "chain"  # chain | response (chain and sampled answer)
    supervise_chain: bool = False  # the answer term also covers the chain (SFT on given chains)
    two_branches: bool = False  # rows may hold a sampled answer before the reference answer
    no_chain_row: bool = False  # the last row of each group is the reference answer with no chain: scored, not trained
    baseline: str = "none"  # of the term rlpr: none | frozen (batch.baseline) | live (the row without a chain)
    temperature: float = 1.0  # of the sampler: chain log-probs are those of the distribution sampled from
    truncated: str = "force_close"  # force_close | floor | drop
    floor: float = -10.0  # log-prob of each answer token after a truncated chain, with truncated="floor"
    proxy_every: int = 100  # NOVER's proxy moves towards the policy every so many steps,
    proxy_decay: float = 0.9  # keeping this much of itself
    micro_batch_prompts: int = 0  # prompts per forward; 0 is all
    head_chunk: int = 512

    @property
    def with_reference(self) -> bool:
        """Whether the initial model is asked for."""
        return self.loss.kl != "none"

    @property
    def with_proxy(self) -> bool:
        """Whether NOVER's proxy model is asked for."""
        return self.reward.uses("nover_rank", "nover_efficiency")


class RowStats(NamedTuple):
    """Per-token statistics of the tokens of each completion row, [P, G, T]; PAD positions are meaningless."""

    stats: TokenStats
    chain: Bool[Array, "P G T"]
    sampled: Bool[Array, "P G T"]
    scored: Bool[Array, "P G T"]


def row_stats(
    params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig, probe: Float[Array, "P G T D"] | float = 0.0
) -> RowStats:
    """One forward: the token statistics of every completion token, given what precedes it on its branch.

    `probe`, zeros, is added to the state that predicts each token: its gradient says how hard each token pulls.
    """
    hidden = forward(params, model, batch.prompt, batch.prompt_length, batch.completion, batch.segment)
    last = jnp.take_along_axis(hidden.prompt, (batch.prompt_length - 1)[:, None, None], 1)  # [P, 1, D]
    g, t = batch.completion.shape[1:]
    row = jnp.concatenate([jnp.broadcast_to(last[:, :, None], (*last.shape[:1], g, 1, last.shape[-1])),
                           hidden.completion], 2)  # fmt: skip
    if cfg.two_branches:
        predicts = jnp.take_along_axis(row, attention.predecessor(batch.segment)[..., None], 2)
    else:
        predicts = row[:, :, :t]
    predicts = predicts + probe
    sampled = (batch.segment == CHAIN) | (batch.segment == SAMPLED)
    if cfg.temperature != 1.0:
        predicts = jnp.where(sampled[..., None], predicts / cfg.temperature, predicts)
    stats = token_stats(predicts, head_matrix(params), batch.completion, cfg.head_chunk)
    return RowStats(stats, batch.segment == CHAIN, sampled, batch.scored)


def chain_rows(batch: Batch, cfg: StepConfig) -> Batch:
    """The batch without its rows that have no chain."""
    if not cfg.no_chain_row:
        return batch
    rows = ("completion", "segment", "scored", "sampler_logp", "outside", "truncated", "keep")
    return batch.replace(**{name: jax.tree.map(lambda x: x[:, :-1], getattr(batch, name)) for name in rows})


def policy_masks(batch: Batch, cfg: StepConfig) -> tuple[Bool[Array, "P G T"], Bool[Array, "P G"]]:
    """Which tokens the policy term covers, and which rows baseline, scale and loss obey."""
    tokens = batch.segment == CHAIN
    if cfg.policy_span == "response":
        tokens |= batch.segment == SAMPLED
    keep = batch.keep & ~batch.truncated if cfg.truncated == "drop" else batch.keep
    if batch.counted is not None:
        keep = keep & batch.counted[:, None]
    return tokens, keep


def answer_log_probs(rows: RowStats, batch: Batch, cfg: StepConfig) -> Float[Array, "P G T"]:
    """Log-probs that the reward sees: those of the reference answer, or the stated floor after a truncated chain.

    The floor is per token, so that under every reward and at every answer length it lies below a chain
    after which the answer's tokens are likelier than that.
    """
    logp = rows.stats.log_prob
    if cfg.truncated == "floor":
        logp = jnp.where(batch.truncated[..., None], cfg.floor, logp)
    return logp


class Seen(NamedTuple):
    """One forward's rows, split: those with a chain, and per prompt the row without one, the reference answer's score
    and its log-prob token by token (0 if not asked)."""

    rows: RowStats
    evidence: Evidence
    no_chain_log_prob: Float[Array, "P"]
    no_chain_answer_logp: Float[Array, "P T"]


def see(
    params: Params,
    proxy: Params | None,
    model: ModelConfig,
    batch: Batch,
    cfg: StepConfig,
    probe: Float[Array, "P G T D"] | float = 0.0,
) -> Seen:
    """Forward, and everything a reward may look at. `batch` has the rows without a chain, if they are asked for."""
    rows = row_stats(params, model, batch, cfg, probe)
    chains = chain_rows(batch, cfg)
    p, _, t = batch.completion.shape
    no_chain, bare_logp, baseline = jnp.zeros(p), jnp.zeros((p, t)), batch.baseline
    if cfg.no_chain_row:
        bare = rows.stats.log_prob[:, -1:], batch.scored[:, -1:]
        no_chain = jax.lax.stop_gradient(likelihood.log_prob(*bare)[:, 0])
        bare_logp = jax.lax.stop_gradient(bare[0][:, 0])
        if cfg.baseline == "live":
            baseline = jax.lax.stop_gradient(likelihood.avg_prob(*bare)[:, 0])
        rows = jax.tree.map(lambda x: x[:, :-1], rows)
    mask, keep = policy_masks(chains, cfg)
    proxy_nll = None
    if cfg.with_proxy:
        by_proxy = chain_rows_of(row_stats(proxy, model, batch, cfg), cfg)
        proxy_nll = -likelihood.avg_log_prob(jax.lax.stop_gradient(by_proxy.stats.log_prob), chains.scored)
    stats = rows.stats
    evidence = Evidence(
        logp=answer_log_probs(rows, chains, cfg),
        scored=chains.scored,
        keep=keep,
        sampled=SampledStats(stats.log_prob, stats.entropy, stats.self_certainty, mask, model.vocab_size),
        chain_tokens=((chains.segment == CHAIN) | (chains.segment == TAG)).sum(-1).astype(jnp.float32),
        outside=chains.outside,
        baseline=None if cfg.baseline == "none" else baseline,
        proxy_nll=proxy_nll,
    )
    return Seen(rows, evidence, no_chain, bare_logp)


def chain_rows_of(rows: RowStats, cfg: StepConfig) -> RowStats:
    """The statistics without those of rows that have no chain."""
    return jax.tree.map(lambda x: x[:, :-1], rows) if cfg.no_chain_row else rows
