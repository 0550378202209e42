"""The jitted step of a reward model: a decoder and its value head, trained on comparisons of answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array

from rl_likelihood.fields import field
from rl_likelihood.learner import preference
from rl_likelihood.learner.judge import ValueHead, value
from rl_likelihood.learner.micro_batches import accumulate, split
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer, moment_shardings, schedule
from rl_likelihood.mesh import by_prompt, jitted, replicated
from rl_likelihood.model.architecture import ModelConfig, Params, abstract, param_specs, shardings
from rl_likelihood.rewards.group_filter import init_filter
from rl_likelihood.shapes import Compared, TrainState


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """How `python -m rl_likelihood.reward_model` trains. The decoder's learning rate is optim.lr."""

    loss: Literal["bradley_terry", "listwise"] = field(
        "bradley_terry", "bradley_terry: pairs of a right and a wrong answer; listwise: the right answer among all"
    )
    centre: float = field(
        0.0, "weight of (right + wrong)^2, which keeps scores near 0; 0.01 is usual", least=0, most=1e6
    )
    head_lr: float = field(1e-3, "learning rate of the value head, with the decoder's schedule", above=0, most=100)
    options: int = field(5, "maximum answers to one question, including the right one", least=2)


class Trained(struct.PyTreeNode):
    """The `opt_state` of a reward model's TrainState: the value head, and the states of both optimizers."""

    head: ValueHead
    of_decoder: Any
    of_head: Any


class Optimizers(NamedTuple):
    """The optimizers of the decoder and of the value head."""

    decoder: optax.GradientTransformation
    head: optax.GradientTransformation


def make_optimizers(cfg: OptimizerConfig, head_lr: float) -> Optimizers:
    """The config's optimizer for the decoder, Adam for the head. Both have the same schedule."""
    of_head = schedule(dataclasses.replace(cfg, lr=head_lr))
    return Optimizers(make_optimizer(cfg), optax.adam(of_head, cfg.b1, cfg.b2, cfg.eps))


Trainable = tuple[Params, ValueHead]
# The loss of each question of a micro-batch, and sums of its metrics: won, pairs, margin, squares, rows.
Loss = Callable[[Trainable, Compared], tuple[Array, dict[str, Array]]]


def init_state(params: Params, optimizers: Optimizers) -> TrainState:
    """The state at step 0. The head is zero, so every score is 0."""
    head = ValueHead(jnp.zeros(params["embed"].shape[1], jnp.float32), jnp.float32(0))
    trained = Trained(head, optimizers.decoder.init(params), optimizers.head.init(head))
    return TrainState(step=jnp.int32(0), params=params, opt_state=trained, filter=init_filter())


def state_shardings(mesh: Mesh, model: ModelConfig, optimizers: Optimizers) -> TrainState:
    """Shardings of the state: the decoder as in the policy's step, everything else replicated."""
    specs = param_specs(model)
    state = jax.eval_shape(lambda p: init_state(p, optimizers), abstract(specs))
    at = jax.tree.map(lambda _: replicated(mesh), state)
    trained = at.opt_state.replace(of_decoder=moment_shardings(mesh, optimizers.decoder, specs))
    return at.replace(params=shardings(specs, mesh), opt_state=trained)


def preference_loss(model: ModelConfig, cfg: PreferenceConfig, trainable: Trainable, batch: Compared):
    """The loss that trains a reward model on comparisons. With `model` and `cfg` given it is a Loss."""
    params, head = trainable
    scores = value(params, model, head, batch.judged)
    margins = 0.0 if batch.margins is None else batch.margins
    losses = preference.loss(cfg.loss, scores, batch.present, margins, cfg.centre)
    difference, pairs = preference.differences(scores, batch.present)
    won = jnp.where(pairs, (difference > 0) + 0.5 * (difference == 0), 0.0).sum()
    margin = jnp.where(pairs, difference, 0.0).sum()
    real_scores = jnp.where(batch.present, scores, 0.0)
    sums = {
        "won": won,
        "pairs": pairs.sum(),
        "margin": margin,
        "squares": (real_scores**2).sum(),
        "rows": batch.present.sum(),
    }
    return losses, sums


def gradients(trainable: Trainable, model: ModelConfig, loss: Loss, batch: Compared, size: int):
    """(gradient of the mean loss over the batch's questions, sums for metrics). `size`: questions per micro-batch, or 0
    for all."""
    count = jnp.maximum((batch.present[:, 0] & batch.present[:, 1:].any(-1)).sum(), 1).astype(jnp.float32)

    def contribution(trainable, part):
        losses, sums = loss(trainable, part)
        return losses.sum() / count, sums | {"loss": losses.sum() / count}

    def micro_batch(trainable, part):
        (_, sums), grads = jax.value_and_grad(contribution, has_aux=True)(trainable, part)
        return grads, sums

    p = batch.present.shape[0]
    if not size or size >= p:
        return micro_batch(trainable, batch)
    grads, sums = accumulate(micro_batch, model, trainable, split(batch, size))
    return grads, jax.tree.map(lambda x: x.sum(0), sums)


def update(
    state: TrainState,
    model: ModelConfig,
    loss: Loss,
    optimizers: Optimizers,
    parts: Sequence[tuple[Compared, float]],
    size: int,
) -> tuple[TrainState, list[dict[str, Array]]]:
    """The state after one update, and the metrics of each part. `parts` are (batch, weight); the loss is the weighted
    sum of their mean losses."""
    trained, total, outs = state.opt_state, None, []
    for batch, weight in parts:
        grads, sums = gradients((state.params, trained.head), model, loss, batch, size)
        weighted = jax.tree.map(lambda x, w=weight: w * x, grads)
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        pairs, rows = jnp.maximum(sums["pairs"], 1), jnp.maximum(sums["rows"], 1)
        outs.append(
            {
                "loss/preference": sums["loss"],
                "preference/accuracy": sums["won"] / pairs,
                "preference/margin": sums["margin"] / pairs,
                "preference/score_rms": jnp.sqrt(sums["squares"] / rows),
            }
        )
    grads, head_grads = total
    # The bias cancels in a difference of scores. Its gradient is rounding error, which Adam would scale to full size.
    head_grads = head_grads._replace(bias=jnp.zeros_like(head_grads.bias))
    outs[0]["grad/norm"] = optax.tree.norm((grads, head_grads))
    updates, decoder = optimizers.decoder.update(grads, trained.of_decoder, state.params)
    head_updates, head = optimizers.head.update(head_grads, trained.of_head, trained.head)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=Trained(optax.apply_updates(trained.head, head_updates), decoder, head),
    ), outs


def make_reward_step(
    model: ModelConfig, cfg: PreferenceConfig, optimizers: Optimizers, mesh: Mesh, batch: Compared, size: int = 0
):
    """The jitted step(state, batch) -> (state, metrics). `state` is donated."""

    def step(state: TrainState, batch: Compared):
        loss = functools.partial(preference_loss, model, cfg)
        state, (out,) = update(state, model, loss, optimizers, [(batch, 1.0)], size)
        return state, out

    arguments_at = state_shardings(mesh, model, optimizers), by_prompt(mesh, batch)
    return jitted(step, mesh, model.scratch_kib, arguments_at, replicated_outputs=1)
