"""Adversarial inverse reinforcement learning: a critic learns to tell the data's answers from the policy's, and its
score is the policy's reward. Both are updated in one jitted step.

The critic starts as the run's own model. With a head it is a reward model, whose head starts as zeros: it reads the
reference answer as each prompt's first row and the policy's behind it. With labels it reads pairs of the two, and says
which is the expert's: RARO (2511.21667) without the critic's own chain, so that its expected reward is exact and its
gradient too. Its state is `TrainState.critic` (with labels the head is never used), what it reads `batch.compared` and,
of earlier answers, `batch.replayed`. Without a critic in the config these functions are those of `learner.step`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from rl_likelihood.learner import reward_step
from rl_likelihood.learner.judge import Judge, JudgeParams, in_parts, last_state, scores_in_parts
from rl_likelihood.learner.reward_step import Optimizers, PreferenceConfig, Trainable, preference_loss
from rl_likelihood.learner.rows import CriticConfig, StepConfig
from rl_likelihood.learner.step import at_once, init_state, jitted, make_step, reference_shardings, state_shardings
from rl_likelihood.mesh import by_prompt
from rl_likelihood.model.decoder import ModelConfig, Params, head_matrix
from rl_likelihood.rewards.adversarial import Verdicts, policy_reward, verdicts_of
from rl_likelihood.shapes import Batch, Compared, TrainState

NAME = "adversarial"  # of the reward


def optimizers_of(cfg: CriticConfig) -> Optimizers:
    """The critic's."""
    return reward_step.make_optimizers(cfg.optimizer, cfg.head_lr)


def begin(params: Params, optimizer: optax.GradientTransformation, cfg: StepConfig, width: int) -> TrainState:
    """Step 0 of a run. `width`: the model's."""
    state = init_state(params, optimizer, cfg)
    if cfg.critic is None:
        return state
    copied = jax.tree.map(jnp.copy, params)  # a buffer can be donated once
    return state.replace(critic=reward_step.init_state(copied, width, optimizers_of(cfg.critic)))


def placed(mesh: Mesh, model: ModelConfig, optimizer: optax.GradientTransformation, cfg: StepConfig) -> TrainState:
    """Shardings of the state of a run."""
    at = state_shardings(mesh, model, optimizer, cfg)
    if cfg.critic is None:
        return at
    optimizers = optimizers_of(cfg.critic)
    critic = jax.eval_shape(
        lambda p: reward_step.init_state(p, model.width, optimizers), reward_step.param_shapes(model)
    )
    return at.replace(critic=reward_step.shardings(mesh, model, optimizers, critic))


def verdicts(model: ModelConfig, params: Params, pairs: Compared) -> Verdicts:
    """What a critic with labels says of each pair."""
    state = last_state(params, model, pairs.judged).astype(jnp.float32)
    table = head_matrix(params)[pairs.labels].astype(jnp.float32)
    logits = jnp.einsum("pqd,pkd->pqk", state, table, precision="highest")
    return verdicts_of(jax.nn.softmax(logits), pairs.margins > 0)


def label_loss(model: ModelConfig, critic: CriticConfig, trainable: Trainable, pairs: Compared):
    """Minus the critic's expected reward, 1 for picking the expert's answer and tau_critic for a tie; mean over each
    question's pairs."""
    says = verdicts(model, trainable[0], pairs)
    paid = jnp.where(pairs.there, says.expert + critic.tau_critic * says.tie, 0.0)
    count = pairs.there.sum(-1)
    d = jnp.where(pairs.there, says.expert - says.policy, 0.0)
    won = jnp.where(pairs.there, (d > 0) + 0.5 * (d == 0), 0.0).sum()
    sums = {"won": won, "pairs": count.sum(), "margin": d.sum(), "squares": (d**2).sum(), "rows": count.sum()}
    return -paid.sum(-1) / jnp.maximum(count, 1), sums


def first_bias(says: Verdicts, pairs: Compared) -> Array:
    """How much more likely the critic picks what it reads first."""
    return (jnp.sign(pairs.margins) * (says.expert - says.policy)).mean()


def make_run_step(
    model: ModelConfig,
    cfg: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch: Batch,
    judge: Judge | None = None,
):
    """`make_step`, or with a critic the step(state, ref_params, batch) that updates critic and policy."""
    if cfg.critic is None:
        return make_step(model, cfg, optimizer, mesh, batch, judge)
    critic, optimizers = cfg.critic, optimizers_of(cfg.critic)
    labels = critic.form == "label"
    loss = functools.partial(label_loss, model, critic) if labels else preference_loss(model, PreferenceConfig())
    policy = make_step(model, cfg, optimizer, mesh, _rewarded(batch, jnp.zeros(batch.completion.shape[:2]))).__wrapped__

    def step(state: TrainState, ref_params: Params | None, batch: Batch):
        size, of_critic = at_once(batch, cfg), state.critic
        parts = [(batch.compared, 1.0 - critic.replay_share if batch.replayed is not None else 1.0)]
        if batch.replayed is not None:
            parts.append((batch.replayed, critic.replay_share))
        for _ in range(critic.steps):
            of_critic, outs = reward_step.update(of_critic, model, loss, optimizers, parts, size)
        told = {"critic/loss": outs[0]["loss/preference"], "critic/accuracy": outs[0]["preference/accuracy"]}
        if len(outs) > 1:
            told["critic/accuracy_replay"] = outs[1]["preference/accuracy"]
        params = JudgeParams(of_critic.params, of_critic.opt_state.head)
        if labels:
            says = in_parts(functools.partial(verdicts, model), model, params.model, batch.compared, size)
            paid = says.policy + critic.tau_policy * says.tie
            told |= {"critic/tie": says.tie.mean(), "critic/first_bias": first_bias(says, batch.compared)}
        else:
            scores = scores_in_parts(params, Judge(NAME, model), batch.compared.judged, size)
            paid = policy_reward(critic.reward, scores[:, 0], scores[:, 1:])
        paid = jax.lax.stop_gradient(paid)
        new, out, per_row = policy(state.replace(critic=None), ref_params, _rewarded(batch, paid))
        return new.replace(critic=of_critic), out | told, per_row

    reference_at = reference_shardings(mesh, model) if cfg.with_reference else None
    return jitted(step, mesh, model, (placed(mesh, model, optimizer, cfg), reference_at, by_prompt(mesh, batch)))


def _rewarded(batch: Batch, paid) -> Batch:
    """The batch with the critic's rewards in place of what the critic read."""
    return batch.replace(host_rewards={**batch.host_rewards, NAME: paid}, compared=None, replayed=None)
