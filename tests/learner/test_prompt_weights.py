"""Prompts with a weight: weight 0 is absence, and gradients add."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig
from tests.small import random_batch, random_params, rewarded, tiny

MODEL, P = tiny(layers=1), 4
PARAMS = jax.tree.map(jnp.asarray, random_params(MODEL))
QUESTIONS = np.arange(P) < 2  # the other prompts are the critic's
BATCH = random_batch(8, P)


@functools.partial(jax.jit, static_argnums=1)
def computed(batch, cfg):
    return gradients(PARAMS, (PARAMS if cfg.with_reference else None, None), batch, MODEL, cfg)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


@pytest.mark.parametrize("aggregation", ["seq_sum", "token_mean", "delta_l_batch"])
def test_weight_0_is_absence_and_gradients_add(aggregation):
    loss = LossConfig(aggregation=aggregation, kl="k3", kl_coef=0.1, format_term=0.2)
    cfg = rewarded("math + log_prob", loss=loss)

    def gradient(question, critic, batch=BATCH):
        weight = np.where(QUESTIONS, question, critic).astype(np.float32)
        return computed(batch.replace(weight=weight, critic=~QUESTIONS), cfg)[0]

    alone = [computed(jax.tree.map(lambda x, s=part: x[s], BATCH), cfg)[0] for part in (QUESTIONS, ~QUESTIONS)]
    close(gradient(2, 0), alone[0])
    close(gradient(0, 2), alone[1])
    if aggregation == "seq_sum":  # here a prompt has the same size with and without the others
        close(gradient(0.5, 1.5), jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, *alone))
        other = jax.tree.map(
            lambda x: x[::-1], BATCH.replace(weight=np.float32([0.5, 0.5, 1.5, 1.5]), critic=~QUESTIONS)
        )
        close(computed(other, cfg)[0], gradient(0.5, 1.5))
