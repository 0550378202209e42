"""One forward over a batch: the statistics of each row, and which tokens and rows count in the loss."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rl_likelihood.fields import field
from rl_likelihood.learner.optimizer import OptimizerConfig
from rl_likelihood.learner.posterior import PosteriorConfig
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import split_tokens
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.attention import predecessor, row_multiple
from rl_likelihood.model.decoder import Completions, forward
from rl_likelihood.model.head import TokenStats, token_stats
from rl_likelihood.model.lora import LoraConfig
from rl_likelihood.model.pool import Layout, layout
from rl_likelihood.rewards.adversarial import Kind
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, AnyArray, Batch


@dataclasses.dataclass(frozen=True)
class ProxyConfig:
    """NOVER's proxy: a slowly moving copy of the policy that scores answers."""

    every: int = field(100, "steps between updates of NOVER's proxy model towards the policy", least=1)
    decay: float = field(0.9, "share of itself that the proxy keeps in an update", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of the reward `adversarial`, which starts as the run's own model."""

    form: Literal["head", "label", "raro"] = field(
        "head",
        "head: the critic scores an answer with a value head; label: it says which of two answers is the expert's; "
        "raro: the policy itself is the critic, and says so after a chain",
    )
    reward: Kind = field(
        "gan",
        "form head: the policy's reward from the critic's score (docs/judges.md)",
        {"airl": "use gan, which is AIRL's reward for the optimal critic"},
    )
    tau_critic: float = field(0.55, "forms label and raro: what the critic gets for a tie", least=0, most=1)
    tau_policy: float = field(0.6, "forms label and raro: what the policy gets for a tie", least=0, most=1)
    lr: float = field(1e-5, "learning rate of the critic's decoder, with the policy's schedule", least=0, most=100)
    head_lr: float = field(1e-3, "learning rate of the critic's value head", above=0, most=100)
    steps: int = field(1, "updates of the critic per update of the policy", least=1)
    replay: int = field(0, "number of earlier answers of the policy that stay in the critic's loss; 0: none", least=0)
    replay_share: float = field(0.5, "weight of these earlier answers in the critic's loss", least=0, most=1)
    critic_share: float = field(
        8 / 9, "form raro: the critic's part of the loss; the policy has 1 - this", least=0, most=1
    )
    optimizer: OptimizerConfig | None = None  # `optim` with this lr


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Settings of the training step. Frozen and hashable, because it is static under jit. `settings.Config.step`
    makes it."""

    reward: RewardConfig = RewardConfig()
    loss: LossConfig = LossConfig()
    filter: FilterConfig = FilterConfig()
    proxy: ProxyConfig = ProxyConfig()
    lora: LoraConfig = LoraConfig()
    posterior: PosteriorConfig = PosteriorConfig()
    policy_span: str = "chain"  # chain | response (chain and sampled answer)
    supervise_chain: bool = False  # the answer term also covers the chain (SFT on given chains)
    two_branches: bool = False  # rows may hold a sampled answer before the reference answer, or several references
    turn_credit: bool = False  # conversations: each message also earns what it adds to the references' likelihood
    critic: CriticConfig | None = None  # adversarial training only
    turns: int = 1  # maximum number of the model's messages in a conversation
    temperature: float = 1.0  # the sampler's; log-probs of sampled tokens are taken at it
    micro_batch_prompts: int = 0  # prompts per forward; 0: `step.prompts_per_forward` decides
    sampled_answer: int = 0  # maximum tokens of a sampled answer; 0: those of a row
    reference_tokens: int = 0  # the same of a reference answer
    scored_only: bool = False  # for evaluation, at temperature 1: the statistics of the scored tokens alone
    head_chunk: int = 0  # tokens whose logits exist at the same time; 0: `head.token_stats` decides

    @property
    def with_reference(self) -> bool:
        """Whether the step reads the initial model: for the KL term, or for a reward."""
        return (self.loss.kl != "none" and not self.moving_reference) or self.needs("initial")

    @property
    def with_frozen(self) -> bool:
        """Whether the step reads parameters that it does not train: the reference model, or the base of adapters."""
        return self.with_reference or self.lora.rank > 0

    @property
    def moving_reference(self) -> bool:
        """Whether the reference of the KL term follows the policy. It is then part of the training state."""
        return self.loss.kl != "none" and self.loss.reference_every > 0

    def needs(self, what: str) -> bool:
        """Whether a reward needs this, one of `Reward.needs`."""
        return any(what in t.reward.needs for t in self.reward.terms)


class RowStats(NamedTuple):
    """Per-token statistics of each completion row, [P, G, T]. Values at PAD positions are meaningless.

    `no_chain_logp`: log-probs of the tokens of `batch.no_chain`, without a gradient. `alternatives_logp`: log-probs of
    the tokens of `batch.alternatives` after each row's chain. With `StepConfig.scored_only`, `stats` and
    `no_chain_logp` begin with the values of each row's scored tokens, are `reference_tokens` long, and end without a
    meaning.
    """

    stats: TokenStats
    sampled: Bool[AnyArray, "P G T"]
    no_chain_logp: Float[Array, "P 1 W"] | None = None
    alternatives_logp: Float[Array, "P G B"] | None = None


def with_alternatives(batch: Batch) -> tuple[Int[AnyArray, "P G U"], Int[AnyArray, "P G U"]]:
    """The ids and segments of the rows, each followed by its prompt's alternative answers."""
    alternatives, ids, segment = batch.alternatives, batch.completion, batch.segment
    if alternatives is None:
        return ids, segment
    kinds = jnp.where(alternatives.answer > 0, REFERENCE, PAD)
    p, g, _ = ids.shape
    append = lambda row, x: jnp.concatenate([row, jnp.broadcast_to(x[:, None], (p, g, x.shape[-1]))], -1)
    return append(ids, alternatives.tokens), append(segment, kinds)


def padded(x: Shaped[AnyArray, "P G T *D"], width: int) -> Shaped[AnyArray, "P G W *D"]:
    """x with zeros (PAD) after each row, up to `width` tokens."""
    return x if x.shape[2] == width else jnp.pad(x, [(0, width - n if i == 2 else 0) for i, n in enumerate(x.shape)])


def packed_rows(batch: Batch) -> Layout | None:
    """The layout of the pool of tokens in which the rows are computed; None for a batch without packing."""
    return None if batch.packing is None else layout(with_alternatives(batch)[1], batch.packing)


def scored_tokens(
    scored: Bool[AnyArray, "P G T"], count: int, *values: Shaped[AnyArray, "P G _ ..."]
) -> list[Shaped[Array, "P G A ..."]]:
    """The values of each row's scored tokens, in order, then those of other tokens, `count` in all."""
    at = jnp.argsort(~scored, -1, stable=True)[..., :count]
    return [jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 3)), 2) for x in values]


def row_stats(
    params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig, probe: Float[AnyArray, "*N D"] | float = 0.0
) -> RowStats:
    """One forward: the statistics of every completion token, given the tokens before it on its branch.

    `probe` is an array of zeros that is added to the hidden state that predicts each token. So the gradient of the loss
    with respect to the probe is its gradient at that state. For packed rows, N is the size of the pool.
    """
    no_chain = batch.no_chain
    extra = None if no_chain is None else (no_chain.completion, no_chain.segment)
    t, alternatives, packed = batch.completion.shape[-1], batch.alternatives, packed_rows(batch)
    ids, segment = with_alternatives(batch)
    width = -(-ids.shape[-1] // row_multiple(model.attention)) * row_multiple(model.attention)
    ids, segment = padded(ids, width), padded(segment, width)
    pool_ids = ids if packed is None else packed.completions.pool(ids)
    if packed is None and jnp.ndim(probe):
        probe = padded(probe, width)
    references = (cfg.turns if alternatives is None else 1 + alternatives.present.shape[-1]) * cfg.two_branches
    completions = Completions(pool_ids, segment, extra, references, cfg.reference_tokens, packed)
    hidden = forward(params, model, batch.prompt, batch.prompt_length, completions, common=batch.common)
    last = jnp.take_along_axis(hidden.prompt, (batch.prompt_length - 1)[:, None, None], 1)[:, None]  # [P, 1, 1, D]

    def predicting(states, segment):
        """The hidden state that predicts each token: the state of its predecessor on its branch."""
        first = jnp.broadcast_to(last, (*states.shape[:2], 1, last.shape[-1]))
        row = jnp.concatenate([first, split_tokens(states, False)], 2)
        if cfg.two_branches:
            return jnp.take_along_axis(row, predecessor(segment)[..., None], 2)
        return row[:, :, :-1]

    if packed is not None:
        states = packed.predicting(last[:, 0, 0], hidden.completion, predecessor(segment)) + probe
    elif cfg.scored_only:  # the head's product is a fifth of a small model's forward
        states = predicting(hidden.completion, segment)
        states, pool_ids = scored_tokens(batch.scored, cfg.reference_tokens, states, ids)
    else:
        states = split_tokens(predicting(hidden.completion, segment)) + probe
    sampled = (segment == CHAIN) | (segment == SAMPLED)
    scale = None if cfg.temperature == 1.0 else jnp.where(sampled, jnp.float32(1 / cfg.temperature), 1.0)
    if packed is not None and scale is not None:
        scale = packed.completions.pool(scale)
    stats = token_stats(states, head_matrix(params), pool_ids, cfg.head_chunk, scale)
    stats = stats if packed is None else jax.tree.map(packed.completions.spread, stats)
    no_chain_logp, alternatives_logp = None, None
    if alternatives is not None:
        alternatives_logp = stats.log_prob[..., t : t + alternatives.answer.shape[-1]]
    if width > t:
        stats, sampled = jax.tree.map(lambda x: x[..., :t], (stats, sampled))
    if no_chain is not None:  # without a gradient, so that the backward pass skips these rows in every layer
        states, head = jax.lax.stop_gradient((predicting(hidden.no_chain, no_chain.segment), head_matrix(params)))
        no_chain_ids = no_chain.completion
        if cfg.scored_only:
            states, no_chain_ids = scored_tokens(no_chain.scored, cfg.reference_tokens, states, no_chain_ids)
        no_chain_logp = token_stats(states, head, no_chain_ids, cfg.head_chunk).log_prob
    return RowStats(stats, sampled, no_chain_logp, alternatives_logp)


def policy_masks(batch: Batch, cfg: StepConfig) -> tuple[Bool[AnyArray, "P G T"], Bool[AnyArray, "P G"]]:
    """(tokens of the policy term, rows that count in baseline, scale and loss)."""
    tokens = batch.segment == CHAIN
    if cfg.policy_span == "response":
        tokens |= batch.segment == SAMPLED
    keep = batch.keep & ~batch.truncated if cfg.reward.truncated == "drop" else batch.keep
    if batch.counted is not None:
        keep = keep & batch.counted[:, None]
    return tokens, keep
