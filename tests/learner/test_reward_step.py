"""Training a reward model: it learns a rule, in parts as at once, on eight devices as on one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rl_likelihood.learner.judge import ValueHead, value
from rl_likelihood.learner.optimizer import OptimizerConfig
from rl_likelihood.learner.reward_step import (
    PreferenceConfig,
    gradients,
    init_state,
    make_optimizers,
    make_reward_step,
    preference_loss,
)
from rl_likelihood.mesh import make_mesh
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import Compared, Judged
from tests.small import one_device, random_params, tiny

MODEL = tiny(vocab_size=12, layers=1)
CFG = PreferenceConfig(head_lr=0.02)
OPTIMIZERS = make_optimizers(OptimizerConfig(lr=3e-3, schedule="constant", warmup_steps=0, total_steps=60), CFG.head_lr)
MARK = 11  # the token that makes an answer right


def batch(seed, p=8, q=3, u=5):
    """Questions of random tokens; the right answer has the mark somewhere, wrong ones have not. Some have fewer."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, MARK, (p, q, u)).astype(np.int32)
    length = rng.integers(2, u + 1, (p, q)).astype(np.int32)
    for i in range(p):
        rows[i, 0, rng.integers(0, length[i, 0])] = MARK
    there = np.arange(q) < rng.integers(2, q + 1, p)[:, None]
    judged = Judged(rng.integers(0, MARK, (p, 4)).astype(np.int32), np.full(p, 4, np.int32), rows, length)
    return Compared(judged, there, np.zeros((p, q), np.float32))


@functools.cache
def after(shape=None, size=0, steps=3):
    mesh = one_device() if shape is None else make_mesh(shape)
    step = make_reward_step(MODEL, CFG, OPTIMIZERS, mesh, batch(0), size)
    state = init_state(random_params(MODEL, scale=0.2), OPTIMIZERS)
    with using(mesh):
        for i in range(steps):
            state, out = step(state, batch(i))
    return jax.tree.map(np.asarray, (state, out))


def test_it_learns_which_answers_have_the_mark():
    state, out = after(steps=60)
    new = batch(1000, p=100)
    scores = value(state.params, MODEL, ValueHead(*state.opt_state.head), new.judged)
    pairs = new.present[:, 1:]
    assert (np.asarray(scores[:, :1] - scores[:, 1:])[pairs] > 0).mean() > 0.95
    assert out["preference/accuracy"] > 0.9 and out["preference/margin"] > 1 and int(state.step) == 60


def test_the_first_step_knows_nothing():
    _, out = after(steps=1)
    assert out["loss/preference"] == pytest.approx(np.log(2), abs=1e-6) and out["preference/accuracy"] == 0.5


@pytest.mark.parametrize("how", [{"shape": (2, 2, 2)}, {"size": 2}, {"shape": (1, 4, 2), "size": 4}])
def test_devices_and_micro_batches_change_nothing(how):
    want, got = after(), after(**how)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4)
    jax.tree.map(close, (got[0].params, got[0].opt_state.head), (want[0].params, want[0].opt_state.head))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), got[1], want[1])


def test_layers_unrolled_give_the_same_gradient():
    head = ValueHead(np.linspace(-1, 1, MODEL.width).astype(np.float32), np.float32(0.1))
    at = (random_params(MODEL), head)
    unrolled = dataclasses.replace(MODEL, scan_layers=False)
    loss = lambda model: functools.partial(preference_loss, model, CFG)
    want, _ = jax.jit(gradients, static_argnums=(1, 2, 4))(at, MODEL, loss(MODEL), batch(0), 0)
    got, _ = jax.jit(gradients, static_argnums=(1, 2, 4))(at, unrolled, loss(unrolled), batch(0), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(want[0]["layers"]))
