"""Adversarial inverse reinforcement learning: a critic learns to tell reference answers from the policy's answers, and
its score is the policy's reward. One jitted step updates both.

The critic starts as a copy of the run's model. It has one of two forms:

    head    A reward model. Its value head starts at zero. Row 0 of each prompt is the reference answer, the other rows
            are the policy's answers.
    label   It reads pairs of a reference answer and a policy's answer, and says which one is the expert's. This is RARO
            (2511.21667) without a chain of the critic. Its expected reward and the gradient are therefore exact.

`TrainState.critic` is the critic's state (the label form never uses its value head). `batch.compared` is its input, and
`batch.replayed` holds earlier answers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_likelihood.learner import reward_step
from rl_likelihood.learner.judge import Judge, JudgeParams, last_state, scores_in_parts
from rl_likelihood.learner.micro_batches import in_parts
from rl_likelihood.learner.reward_step import Optimizers, PreferenceConfig, Trainable, preference_loss
from rl_likelihood.learner.rows import CriticConfig
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.rewards.adversarial import Verdicts, policy_reward, verdicts_of
from rl_likelihood.shapes import Batch, Compared, TrainState

NAME = "adversarial"  # the reward's name
REPLAYED = "critic/accuracy_replay"  # a metric; NaN while there are no earlier answers


def optimizers_of(cfg: CriticConfig) -> Optimizers:
    """The optimizers of the critic's decoder and of its value head."""
    return reward_step.make_optimizers(cfg.optimizer, cfg.head_lr)


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


def update_critic(
    state: TrainState, batch: Batch, model: ModelConfig, critic: CriticConfig, size: int
) -> tuple[TrainState, Batch, dict[str, Array]]:
    """(the critic's state after its updates; the batch with its rewards, without its inputs; metrics)."""
    labels, optimizers = critic.form == "label", optimizers_of(critic)
    kind, settings = (label_loss, critic) if labels else (preference_loss, PreferenceConfig())
    loss = functools.partial(kind, model, settings)
    parts = [(batch.compared, 1.0 - critic.replay_share if batch.replayed is not None else 1.0)]
    if batch.replayed is not None:
        parts.append((batch.replayed, critic.replay_share))
    for _ in range(critic.steps):
        state, outs = reward_step.update(state, model, loss, optimizers, parts, size)
    metrics = {"critic/loss": outs[0]["loss/preference"], "critic/accuracy": outs[0]["preference/accuracy"]}
    if len(outs) > 1:
        seen = batch.replayed.present.any()  # nothing before the first step
        metrics[REPLAYED] = jnp.where(seen, outs[1]["preference/accuracy"], jnp.nan)
    if labels:
        verdict = in_parts(functools.partial(verdicts, model), model, state.params, batch.compared, size)
        rewards = verdict.policy + critic.tau_policy * verdict.tie
        metrics |= {"critic/tie": verdict.tie.mean(), "critic/first_bias": first_bias(verdict, batch.compared)}
    else:
        params = JudgeParams(state.params, state.opt_state.head)
        scores = scores_in_parts(params, Judge(NAME, model), batch.compared.judged, size)
        rewards = policy_reward(critic.reward, scores[:, 0], scores[:, 1:])
    # A critic that diverged gives NaN here, which ends the run (training/session.py).
    host_rewards = {**batch.host_rewards, NAME: jax.lax.stop_gradient(rewards)}
    return state, batch.replace(host_rewards=host_rewards, compared=None, replayed=None), metrics
