"""Adversarial inverse reinforcement learning: a critic learns to tell reference answers from the policy's answers, and
its score is the policy's reward. One jitted step updates both.

The critic starts as a copy of the run's model. It has one of two forms:

    head    A reward model. Its value head starts at zero. Row 0 of each prompt is the reference answer, the other rows
            are the policy's answers.
    label   It reads pairs of a reference answer and a policy's answer, and says which one is the expert's. This is RARO
            (2511.21667) without a chain of the critic. Its expected reward and the gradient are therefore exact.

`TrainState.critic` is the critic's state (the label form never uses its value head). `batch.compared` is its input, and
`batch.replayed` holds earlier answers. Without a critic in the config, these functions do what `learner.step` does.
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
from rl_likelihood.learner.step import (
    init_state,
    jitted,
    make_step,
    prompts_per_forward,
    reference_shardings,
    state_shardings,
)
from rl_likelihood.mesh import by_prompt
from rl_likelihood.model.architecture import ModelConfig, Params, abstract, head_matrix, param_specs
from rl_likelihood.rewards.adversarial import Verdicts, policy_reward, verdicts_of
from rl_likelihood.shapes import Batch, Compared, TrainState

NAME = "adversarial"  # the reward's name
REPLAYED = "critic/accuracy_replay"  # a metric; NaN while there are no earlier answers


def optimizers_of(cfg: CriticConfig) -> Optimizers:
    """The optimizers of the critic's decoder and of its value head."""
    return reward_step.make_optimizers(cfg.optimizer, cfg.head_lr)


def init_run_state(params: Params, optimizer: optax.GradientTransformation, cfg: StepConfig, width: int) -> TrainState:
    """The training state at step 0. `width`: the model's D."""
    state = init_state(params, optimizer, cfg)
    if cfg.critic is None:
        return state
    critic_params = jax.tree.map(jnp.copy, params)  # the step donates both trees, and a buffer can be donated only once
    return state.replace(critic=reward_step.init_state(critic_params, width, optimizers_of(cfg.critic)))


def run_state_shardings(
    mesh: Mesh, model: ModelConfig, optimizer: optax.GradientTransformation, cfg: StepConfig
) -> TrainState:
    """Shardings of the training state."""
    state_at = state_shardings(mesh, model, optimizer, cfg)
    if cfg.critic is None:
        return state_at
    optimizers = optimizers_of(cfg.critic)
    critic = jax.eval_shape(lambda p: reward_step.init_state(p, model.width, optimizers), abstract(param_specs(model)))
    return state_at.replace(critic=reward_step.shardings(mesh, model, optimizers, critic))


def verdicts(model: ModelConfig, params: Params, pairs: Compared) -> Verdicts:
    """The label critic's probabilities for each pair: the expert's answer, the policy's answer, a tie."""
    state = last_state(params, model, pairs.judged).astype(jnp.float32)
    table = head_matrix(params)[pairs.labels].astype(jnp.float32)
    logits = jnp.einsum("pqd,pkd->pqk", state, table, precision="highest")
    return verdicts_of(jax.nn.softmax(logits), pairs.margins > 0)


def label_loss(model: ModelConfig, critic: CriticConfig, trainable: Trainable, pairs: Compared):
    """Minus the critic's expected reward, averaged over each question's pairs. The critic earns 1 for the expert's
    answer and tau_critic for a tie."""
    verdict = verdicts(model, trainable[0], pairs)
    earned = jnp.where(pairs.present, verdict.expert + critic.tau_critic * verdict.tie, 0.0)
    pairs_per_question = pairs.present.sum(-1)
    margin = jnp.where(pairs.present, verdict.expert - verdict.policy, 0.0)
    won = jnp.where(pairs.present, (margin > 0) + 0.5 * (margin == 0), 0.0).sum()
    sums = {
        "won": won,
        "pairs": pairs_per_question.sum(),
        "margin": margin.sum(),
        "squares": (margin**2).sum(),
        "rows": pairs_per_question.sum(),
    }
    return -earned.sum(-1) / jnp.maximum(pairs_per_question, 1), sums


def first_bias(verdict: Verdicts, pairs: Compared) -> Array:
    """The mean probability of the first answer minus that of the second: the critic's position bias."""
    return (jnp.sign(pairs.margins) * (verdict.expert - verdict.policy)).mean()


def make_run_step(
    model: ModelConfig,
    cfg: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch: Batch,
    judge: Judge | None = None,
):
    """`make_step`; with a critic, step(state, ref_params, batch) updates the critic and then the policy."""
    if cfg.critic is None:
        return make_step(model, cfg, optimizer, mesh, batch, judge)
    critic, optimizers = cfg.critic, optimizers_of(cfg.critic)
    labels = critic.form == "label"
    kind, settings = (label_loss, critic) if labels else (preference_loss, PreferenceConfig())
    loss = functools.partial(kind, model, settings)
    policy = make_step(model, cfg, optimizer, mesh, _rewarded(batch, jnp.zeros(batch.completion.shape[:2]))).__wrapped__

    def step(state: TrainState, ref_params: Params | None, batch: Batch):
        size, critic_state = prompts_per_forward(batch, cfg), state.critic
        parts = [(batch.compared, 1.0 - critic.replay_share if batch.replayed is not None else 1.0)]
        if batch.replayed is not None:
            parts.append((batch.replayed, critic.replay_share))
        for _ in range(critic.steps):
            critic_state, outs = reward_step.update(critic_state, model, loss, optimizers, parts, size)
        critic_metrics = {"critic/loss": outs[0]["loss/preference"], "critic/accuracy": outs[0]["preference/accuracy"]}
        if len(outs) > 1:
            seen = batch.replayed.present.any()  # nothing before the first step
            critic_metrics[REPLAYED] = jnp.where(seen, outs[1]["preference/accuracy"], jnp.nan)
        params = JudgeParams(critic_state.params, critic_state.opt_state.head)
        if labels:
            verdict = in_parts(functools.partial(verdicts, model), model, params.model, batch.compared, size)
            rewards = verdict.policy + critic.tau_policy * verdict.tie
            critic_metrics |= {
                "critic/tie": verdict.tie.mean(),
                "critic/first_bias": first_bias(verdict, batch.compared),
            }
        else:
            scores = scores_in_parts(params, Judge(NAME, model), batch.compared.judged, size)
            rewards = policy_reward(critic.reward, scores[:, 0], scores[:, 1:])
        rewards = jax.lax.stop_gradient(rewards)
        next_state, out, per_row = policy(state.replace(critic=None), ref_params, _rewarded(batch, rewards))
        return next_state.replace(critic=critic_state), out | critic_metrics, per_row

    reference_at = reference_shardings(mesh, model) if cfg.with_reference else None
    return jitted(
        step, mesh, model, (run_state_shardings(mesh, model, optimizer, cfg), reference_at, by_prompt(mesh, batch))
    )


def _rewarded(batch: Batch, rewards) -> Batch:
    """The batch with the critic's rewards, without the critic's inputs."""
    return batch.replace(host_rewards={**batch.host_rewards, NAME: rewards}, compared=None, replayed=None)
