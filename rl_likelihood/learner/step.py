"""The one jitted step: forward -> rewards -> leave-one-out differences -> surrogate -> update.

Micro-batches hold whole groups, so one forward with gradients yields the rewards, the differences and
both gradient terms. `score` is the same forward without the gradient, for evaluation.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from rl_likelihood import mesh as meshes
from rl_likelihood.learner import surrogate
from rl_likelihood.learner.surrogate import Counts, LossConfig
from rl_likelihood.model import attention
from rl_likelihood.model.decoder import ModelConfig, Params, forward, head_matrix, param_specs
from rl_likelihood.model.head import TokenStats, token_stats
from rl_likelihood.rewards import likelihood
from rl_likelihood.shapes import CHAIN, SAMPLED, TAG, Batch, TrainState


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the step computes. Frozen and hashable: it is static under jit."""

    objective: str = "log_prob"  # a name of likelihood.OBJECTIVES, or "outside": mean of batch.outside_reward
    loss: LossConfig = LossConfig()
    policy_span: str = "chain"  # chain | response (chain and sampled answer)
    supervise_chain: bool = False  # the answer term also covers the chain (SFT on given chains)
    two_branches: bool = False  # rows may hold a sampled answer before the reference answer
    temperature: float = 1.0  # of the sampler: chain log-probs are those of the distribution sampled from
    truncated: str = "force_close"  # force_close | floor | drop
    floor: float = -10.0  # log-prob of each answer token after a truncated chain, with truncated="floor"
    micro_batch_prompts: int = 0  # prompts per forward; 0 is all
    head_chunk: int = 512


class RowStats(NamedTuple):
    """Per-token statistics of the tokens of each completion row, [P, G, T]; PAD positions are meaningless."""

    stats: TokenStats
    chain: Bool[Array, "P G T"]
    sampled: Bool[Array, "P G T"]
    scored: Bool[Array, "P G T"]


def row_stats(params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig) -> RowStats:
    """One forward: the token statistics of every completion token, given what precedes it on its branch."""
    hidden = forward(params, model, batch.prompt, batch.prompt_length, batch.completion, batch.segment)
    last = jnp.take_along_axis(hidden.prompt, (batch.prompt_length - 1)[:, None, None], 1)  # [P, 1, D]
    g, t = batch.completion.shape[1:]
    row = jnp.concatenate([jnp.broadcast_to(last[:, :, None], (*last.shape[:1], g, 1, last.shape[-1])),
                           hidden.completion], 2)  # fmt: skip
    if cfg.two_branches:
        predicts = jnp.take_along_axis(row, attention.predecessor(batch.segment)[..., None], 2)
    else:
        predicts = row[:, :, :t]
    sampled = (batch.segment == CHAIN) | (batch.segment == SAMPLED)
    if cfg.temperature != 1.0:
        predicts = jnp.where(sampled[..., None], predicts / cfg.temperature, predicts)
    stats = token_stats(predicts, head_matrix(params), batch.completion, cfg.head_chunk)
    return RowStats(stats, batch.segment == CHAIN, sampled, batch.scored)


def answer_log_probs(rows: RowStats, batch: Batch, cfg: StepConfig) -> Float[Array, "P G T"]:
    """Log-probs that the reward sees: those of the reference answer, or the stated floor after a truncated chain.

    The floor is per token, so that under every reward and at every answer length it lies below a chain
    after which the answer's tokens are likelier than that.
    """
    logp = rows.stats.log_prob
    if cfg.truncated == "floor":
        logp = jnp.where(batch.truncated[..., None], cfg.floor, logp)
    return logp


def policy_masks(batch: Batch, cfg: StepConfig) -> tuple[Bool[Array, "P G T"], Bool[Array, "P G"]]:
    """Which tokens the policy term covers, and which rows baseline, scale and loss obey."""
    tokens = batch.segment == CHAIN
    if cfg.policy_span == "response":
        tokens |= batch.segment == SAMPLED
    keep = batch.keep & ~batch.truncated if cfg.truncated == "drop" else batch.keep
    return tokens, keep


def _group_objective(batch: Batch, cfg: StepConfig) -> likelihood.Objective:
    if cfg.objective == "outside":
        return lambda logp, mask, keep: likelihood.kept_mean(batch.outside_reward, keep)
    return likelihood.OBJECTIVES[cfg.objective]


def _row_reward(logp, batch: Batch, cfg: StepConfig) -> Float[Array, "P G"]:
    """The trained reward of each row, for logs; jepo belongs to the group, its rows show their l_i."""
    if cfg.objective == "outside":
        return batch.outside_reward
    return likelihood.SCORES.get(cfg.objective, likelihood.log_prob)(logp, batch.scored)


def _loss(params, ref_params, batch: Batch, model: ModelConfig, cfg: StepConfig, counts: Counts):
    """Loss contribution of one micro-batch, its metric sums, and its per-row values."""
    loss = cfg.loss
    rows = row_stats(params, model, batch, cfg)
    policy_mask, keep = policy_masks(batch, cfg)
    logp = answer_log_probs(rows, batch, cfg)

    f = _group_objective(batch, cfg)
    frozen = jax.lax.stop_gradient(logp)
    difference = surrogate.leave_one_out(f, frozen, batch.scored, keep)
    advantage = surrogate.advantages(difference, keep, loss.advantage)

    policy = surrogate.policy_loss(
        rows.stats.log_prob, batch.sampler_logp, advantage, policy_mask, keep, loss, counts
    )  # fmt: skip
    # Supervision of a given chain is the same objective with the chain among the scored tokens.
    answer_mask = batch.scored | rows.chain if cfg.supervise_chain else batch.scored
    answer = -f(logp, answer_mask, keep).sum() / counts.prompts
    kl = jnp.float32(0)
    if ref_params is not None:
        ref = jax.lax.stop_gradient(row_stats(ref_params, model, batch, cfg).stats.log_prob)
        kind = "k3" if loss.kl == "none" else loss.kl
        per_token = surrogate.kl_estimate(kind, rows.stats.log_prob, ref)
        kl = surrogate.aggregate(per_token, policy_mask, keep, loss, counts)
    total = loss.policy_term * policy + loss.answer_term * answer + loss.kl_coef * kl

    stats = jax.lax.stop_gradient(rows.stats)
    reward = _row_reward(frozen, batch, cfg)
    ratio = surrogate.importance(stats.log_prob, batch.sampler_logp, policy_mask, "token")
    per_row = {
        "reward": reward,
        "advantage": advantage,
        "keep": keep,
        "answer_logp": stats.log_prob,
        # Every reward is logged as the model has it: the floor is an agreement of the trained one.
        **{f"reward/{name}": score(stats.log_prob, batch.scored) for name, score in likelihood.SCORES.items()},
    }
    sums = {
        "loss/policy": policy,
        "loss/answer": answer,
        "loss/kl": kl,
        "sum/jepo": likelihood.jepo(stats.log_prob, batch.scored, keep).sum(),
        "sum/chain_tokens": rows.chain.sum(),
        "sum/policy_tokens": policy_mask.sum(),
        "sum/tag_tokens": (batch.segment == TAG).sum(),
        "sum/entropy": jnp.where(rows.sampled, stats.entropy, 0).sum(),
        "sum/self_certainty": jnp.where(rows.sampled, stats.self_certainty, 0).sum(),
        "sum/sampled_tokens": rows.sampled.sum(),
        "sum/ratio": jnp.where(policy_mask, ratio, 0).sum(),
        "sum/ratio_squared": jnp.where(policy_mask, ratio**2, 0).sum(),
        "max/ratio": jnp.where(policy_mask, ratio, 0).max(),
    }
    return total, (sums, per_row)


def gradients(params, ref_params, batch: Batch, model: ModelConfig, cfg: StepConfig):
    """Gradient of the loss over the whole batch, metric sums, per-row values; micro-batched."""
    p = batch.prompt.shape[0]
    size = cfg.micro_batch_prompts or p
    policy_mask, keep = policy_masks(batch, cfg)
    counts = Counts(jnp.float32(p), (policy_mask & keep[..., None]).sum().astype(jnp.float32))

    def one(batch):
        (_, aux), grads = jax.value_and_grad(_loss, has_aux=True)(params, ref_params, batch, model, cfg, counts)
        return grads, aux

    if size >= p:
        grads, (sums, per_row) = one(batch)
        return grads, sums, per_row

    # Prompt i goes to micro-batch i mod k: each holds a share of every device's prompts.
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(size, p // size, *x.shape[1:]), 0, 1), batch)

    def body(total, batch):
        grads, (sums, per_row) = one(batch)
        return jax.tree.map(jnp.add, total, grads), (sums, per_row)

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    grads, (sums, per_row) = jax.lax.scan(body, zero, micro)
    sums = {k: v.max(0) if k.startswith("max/") else v.sum(0) for k, v in sums.items()}
    per_row = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(p, *x.shape[2:]), per_row)
    return grads, sums, per_row


def metrics(sums, per_row, batch: Batch) -> dict[str, Array]:
    """Means from sums and counts, under the names of DESIGN section 6."""
    keep = per_row["keep"]
    n_rows = jnp.maximum(keep.sum(), 1)
    mean = lambda x: jnp.where(keep, x, 0).sum() / n_rows  # noqa: E731
    reward = per_row["reward"]
    centred = jnp.where(keep, reward - likelihood.kept_mean(reward, keep)[:, None], 0)
    variance = (centred**2).sum(-1) / jnp.maximum(keep.sum(-1) - 1, 1)
    sampled = jnp.maximum(sums["sum/sampled_tokens"], 1)
    policy_tokens = jnp.maximum(sums["sum/policy_tokens"], 1)
    rows = reward.size
    return {
        "reward/mean": mean(reward),
        "reward/std": jnp.sqrt(variance).mean(),
        **{k: mean(v) for k, v in per_row.items() if k.startswith("reward/")},
        "reward/jepo": sums["sum/jepo"] / reward.shape[0],
        "advantage/abs_mean": mean(jnp.abs(per_row["advantage"])),
        "chain/length": (sums["sum/chain_tokens"] + sums["sum/tag_tokens"]) / rows,
        "chain/truncated": batch.truncated.mean(),
        "answer/log_prob": mean(per_row["reward/log_prob"]),
        "answer/perplexity": jnp.exp(-mean(per_row["reward/avg_log_prob"])),
        "loss/policy": sums["loss/policy"],
        "loss/answer": sums["loss/answer"],
        "loss/kl": sums["loss/kl"],
        "policy/entropy": sums["sum/entropy"] / sampled,
        "policy/self_certainty": sums["sum/self_certainty"] / sampled,
        "ratio/mean": sums["sum/ratio"] / policy_tokens,
        "ratio/max": sums["max/ratio"],
        # Effective sample size of the importance weights, as a share of the tokens.
        "ratio/ess": sums["sum/ratio"] ** 2 / jnp.maximum(policy_tokens * sums["sum/ratio_squared"], 1e-30),
        "keep/fraction": keep.mean(),
    }


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0."""
    return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))


def state_shardings(mesh: Mesh, model: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Where each array of the state lives: parameters and their moments by the table, the rest everywhere."""
    specs, everywhere = param_specs(model), meshes.replicated(mesh)
    is_spec = lambda x: hasattr(x, "axes")  # noqa: E731
    params = jax.tree.map(lambda s: meshes.sharding(mesh, s.axes, s.shape), specs, is_leaf=is_spec)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), specs, is_leaf=is_spec)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, s: s,
        jax.eval_shape(optimizer.init, shapes),
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(step=everywhere, params=params, opt_state=opt_state)


def make_step(
    model: ModelConfig,
    cfg: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch: Batch,
    with_reference: bool = False,
):
    """The jitted step(state, ref_params, batch) -> (state, metrics, per-row values [P, G, ...]).

    `state` is donated. `ref_params` is None without a reference model, whose forward then does not
    exist in the program. `batch` gives the shapes by which groups are split over the mesh.
    """

    def step(state: TrainState, ref_params: Params | None, batch: Batch):
        grads, sums, per_row = gradients(state.params, ref_params, batch, model, cfg)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        out = metrics(sums, per_row, batch) | {"grad/norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), out, per_row

    state_at = state_shardings(mesh, model, optimizer)
    everywhere = meshes.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(state_at, state_at.params if with_reference else None, meshes.by_prompt(mesh, batch)),
        out_shardings=(state_at, everywhere, everywhere),
        donate_argnums=0,
    )


def make_score(model: ModelConfig, cfg: StepConfig):
    """The jitted score(params, batch) -> RowStats, for evaluation: the step's forward and no more.

    Prompts are scored `micro_batch_prompts` at a time.
    """

    def score(params: Params, batch: Batch) -> RowStats:
        p = batch.prompt.shape[0]
        size = cfg.micro_batch_prompts or p
        one = lambda b: row_stats(params, model, b, cfg)  # noqa: E731
        if size >= p:
            return one(batch)
        micro = jax.tree.map(lambda x: x.reshape(p // size, size, *x.shape[1:]), batch)
        return jax.tree.map(lambda x: x.reshape(p, *x.shape[2:]), jax.lax.map(one, micro))

    return jax.jit(score)
