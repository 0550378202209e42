"""Adversarial inverse reinforcement learning: a critic learns to tell the data's answers from the policy's, and its
score is the policy's reward. Both are updated in one jitted step.

The critic is a reward model that starts as the run's own model with a value head of zeros. Its state is
`TrainState.critic`. What it reads is `batch.judged`, the reference answer as each prompt's first row, and
`batch.replayed`, earlier answers of the policy beside the reference answer. Without a critic in the config these
functions are those of `learner.step`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rl_likelihood.learner import reward_step
from rl_likelihood.learner.judge import Judge, JudgeParams, scores_in_parts
from rl_likelihood.learner.reward_step import Optimizers, PreferenceConfig
from rl_likelihood.learner.rows import CriticConfig, StepConfig
from rl_likelihood.learner.step import at_once, init_state, make_step, reference_shardings, state_shardings
from rl_likelihood.mesh import by_prompt, compiler_options, replicated
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.rewards.adversarial import policy_reward
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
    own, fresh = Judge(NAME, model), lambda batch: Compared(batch.judged, jnp.ones(batch.judged.rows.shape[:2], bool))
    policy = make_step(model, cfg, optimizer, mesh, _rewarded(batch, jnp.zeros(batch.completion.shape[:2]))).__wrapped__

    def step(state: TrainState, ref_params: Params | None, batch: Batch):
        size, of_critic = at_once(batch, cfg), state.critic
        parts = [(fresh(batch), 1.0 - critic.replay_share if batch.replayed is not None else 1.0)]
        if batch.replayed is not None:
            parts.append((batch.replayed, critic.replay_share))
        for _ in range(critic.steps):
            of_critic, outs = reward_step.update(of_critic, model, PreferenceConfig(), optimizers, parts, size)
        told = {"critic/loss": outs[0]["loss/preference"], "critic/accuracy": outs[0]["preference/accuracy"]}
        if len(outs) > 1:
            told["critic/accuracy_replay"] = outs[1]["preference/accuracy"]
        params = JudgeParams(of_critic.params, of_critic.opt_state.head)
        scores = jax.lax.stop_gradient(scores_in_parts(params, own, batch.judged, size))
        paid = policy_reward(critic.reward, scores[:, 0], scores[:, 1:])
        new, out, per_row = policy(state.replace(critic=None), ref_params, _rewarded(batch, paid))
        return new.replace(critic=of_critic), out | told, per_row

    at, everywhere = placed(mesh, model, optimizer, cfg), replicated(mesh)
    reference_at = reference_shardings(mesh, model) if cfg.with_reference else None
    return jax.jit(
        step,
        in_shardings=(at, reference_at, by_prompt(mesh, batch)),
        out_shardings=(at, everywhere, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, model.scratch_kib),
    )


def _rewarded(batch: Batch, paid) -> Batch:
    """The batch with the critic's rewards in place of what the critic read."""
    return batch.replace(host_rewards={**batch.host_rewards, NAME: paid}, judged=None, replayed=None)
