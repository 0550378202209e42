"""AdamW, schedules, the clip and what decays, against the formulas; what the other optimizers do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_likelihood.learner.optimizer import (
    OPTIMIZERS,
    UNREAD,
    OptimizerConfig,
    clip_by_global_norm,
    make_optimizer,
    schedule,
)
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import state_shardings
from rl_likelihood.mesh import make_mesh
from tests.small import random_params, tiny


def test_warm_up_is_linear_and_the_first_step_moves():
    lr = schedule(OptimizerConfig(lr=2.0, warmup_steps=4, total_steps=12, final_lr_fraction=0.1))
    got = [float(lr(i)) for i in range(14)]
    np.testing.assert_allclose(got[:4], [2 * (i + 1) / 5 for i in range(4)], rtol=1e-6)
    # Cosine from lr at the end of the warm-up to a tenth of it at the last step, and it stays there.
    cosine = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2) for i in range(9)]
    np.testing.assert_allclose(got[4:13], cosine, rtol=1e-5)
    assert got[13] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup, total", [(0, 10), (20, 5)])
def test_no_warm_up_and_a_warm_up_longer_than_the_run(warmup, total):
    constant = schedule(OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=warmup, total_steps=total))
    cosine = schedule(OptimizerConfig(lr=1.0, warmup_steps=warmup, total_steps=total))
    ramp = [(i + 1) / (min(warmup, total) + 1) for i in range(min(warmup, total))]
    for lr in (constant, cosine):
        np.testing.assert_allclose([float(lr(i)) for i in range(len(ramp))], ramp, rtol=1e-6)
        assert float(lr(len(ramp))) == pytest.approx(1.0)
    assert float(constant(1000)) == 1.0 and float(cosine(1000)) == 0.0


def test_linear_and_warmup_stable_decay():
    common = {"lr": 2.0, "warmup_steps": 2, "total_steps": 12, "final_lr_fraction": 0.5}
    linear = schedule(OptimizerConfig(schedule="linear", **common))
    np.testing.assert_allclose([float(linear(i)) for i in range(2, 14)], [*np.linspace(2, 1, 11), 1], rtol=1e-6)
    wsd = schedule(OptimizerConfig(schedule="wsd", decay_fraction=1 / 3, **common))
    expected = [2 / 3, 4 / 3, *[2] * 6, *np.linspace(2, 1, 5), 1]
    np.testing.assert_allclose([float(wsd(i)) for i in range(14)], expected, rtol=1e-6)
    late = schedule(OptimizerConfig(schedule="wsd", decay_fraction=1.0, **common))
    np.testing.assert_allclose([float(late(i)) for i in range(2, 14)], [*np.linspace(2, 1, 11), 1], rtol=1e-6)


CFG = OptimizerConfig(
    lr=0.1, schedule="constant", warmup_steps=0, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5, clip_norm=2.0
)


def test_two_updates_are_adamw_by_hand():
    model = tiny(qkv_bias=True, qk_norm=True, tied=False)
    params = random_params(model)
    grads = [random_params(model, seed) for seed in (1, 2)]
    optimizer = make_optimizer(CFG)
    update, state, got = jax.jit(optimizer.update), optimizer.init(params), params
    for g in grads:
        updates, state = update(g, state, got)
        got = jax.tree.map(np.add, got, jax.device_get(updates))

    norms = [math.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(g))) for g in grads]
    assert min(norms) > CFG.clip_norm
    no_decay = {"attn_norm", "mlp_norm", "final_norm", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm"}

    def by_hand(path, x, *gs):
        decay = 0.0 if path[-1].key in no_decay else CFG.weight_decay
        m = v = 0.0
        for t, (g, norm) in enumerate(zip(gs, norms, strict=True), 1):
            g = g.astype(np.float64) * CFG.clip_norm / norm
            m, v = CFG.b1 * m + (1 - CFG.b1) * g, CFG.b2 * v + (1 - CFG.b2) * g * g
            step = m / (1 - CFG.b1**t) / (np.sqrt(v / (1 - CFG.b2**t)) + CFG.eps)
            x = x - CFG.lr * (step + decay * x)
        return x

    expected = jax.tree.map_with_path(by_hand, params, *grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def test_the_clip_is_optax_s_to_the_bit():
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0, 1e3):
        grads = {name: jnp.asarray(size * rng.normal(size=(5, 7)), jnp.float32) for name in "ab"}
        clips = clip_by_global_norm(0.7), optax.clip_by_global_norm(0.7)
        ours, theirs = (jax.jit(lambda g, clip=clip: clip.update(g, None)[0])(grads) for clip in clips)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_small_gradient_is_not_scaled():
    # Adam forgets a gradient's size, eps does not: with a large eps the update is proportional to it.
    params = {"embed": np.ones((2, 2), np.float32), "layers": {}}
    optimizer = make_optimizer(OptimizerConfig(lr=1.0, warmup_steps=0, schedule="constant", eps=1e6, clip_norm=1.0))
    sizes = []
    for size in (0.1, 0.4, 4.0):
        grads = {"embed": np.full((2, 2), size, np.float32), "layers": {}}
        sizes.append(-float(optimizer.update(grads, optimizer.init(params), params)[0]["embed"][0, 0]))
    # Norms 0.2 and 0.8 stay, 8 is cut to 1.
    np.testing.assert_allclose(np.array(sizes) * 1e6, [0.1, 0.4, 0.5], rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_scaled_by_the_learning_rate_and_spares_norms(name):
    cfg = OptimizerConfig(name, lr=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    params = {"layers": {"gate": np.ones((2, 3, 5), np.float32), "attn_norm": np.ones((2, 3), np.float32)}}
    optimizer = make_optimizer(cfg)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["gate"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["layers"]["attn_norm"], 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fields_that_an_optimizer_does_not_read_are_listed(name):
    params = {"layers": {"gate": np.ones((1, 2, 3), np.float32), "attn_norm": np.ones((1, 2), np.float32)}}

    def second_update(**changes):
        optimizer = make_optimizer(OptimizerConfig(name, lr=0.1, schedule="constant", warmup_steps=0, **changes))
        state = optimizer.init(params)
        for scale in (0.1, -0.0005):  # lion only sees signs
            grads = jax.tree.map(
                lambda x, scale=scale: scale * np.arange(x.size, dtype=np.float32).reshape(x.shape), params
            )
            updates, state = optimizer.update(grads, state, params)
        return [*jax.tree.leaves(updates), *jax.tree.leaves(state)]

    plain = second_update()

    def unread(**change):
        return all(a.dtype == b.dtype and (a == b).all() for a, b in zip(plain, second_update(**change), strict=True))

    fields = {"b1": 0.5, "b2": 0.5, "momentum_dtype": "bfloat16"}
    assert {field for field, value in fields.items() if unread(**{field: value})} == set(UNREAD.get(name, ()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill_and_its_moments_lie_as_its_parameters(name):
    model, mesh = tiny(), make_mesh((2, 2, 1), jax.devices()[:4])
    params, goal = random_params(model), random_params(model, 1)
    cfg = OptimizerConfig(name, lr=0.05, schedule="constant", warmup_steps=0, momentum_dtype="bfloat16")
    optimizer = make_optimizer(cfg)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.subtract, params, goal)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)

    at = state_shardings(mesh, model, optimizer, StepConfig()).opt_state
    state = jax.jit(optimizer.init, out_shardings=at)(params)
    split = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    assert len(split) == {"adamw": 16, "muon": 9}.get(name, 8)
    norms = []
    for _ in range(20):
        params, state, norm = step(params, state)
        norms.append(float(norm))
    assert norms[-1] < 0.9 * norms[0]


def test_muon_makes_each_matrix_of_each_layer_orthogonal():
    model = tiny(layers=2)
    params, grads = random_params(model), random_params(model, 1)
    cfg = OptimizerConfig("muon", lr=1.0, schedule="constant", warmup_steps=0, clip_norm=0.0, b1=0.0)
    optimizer = make_optimizer(cfg)
    updates = jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]["layers"]
    for name in ("q", "o", "gate"):
        rows = model.heads * model.head_dim if name == "o" else model.width
        for one, g in zip(updates[name], grads["layers"][name], strict=True):
            got, of = np.linalg.svd(one.reshape(rows, -1))[1], np.linalg.svd(g.reshape(rows, -1))[1]
            size = 0.2 * math.sqrt(max(one.reshape(rows, -1).shape))
            assert of.max() > 10 * of.min() and got.max() < 1.3 * size and got.min() > 0.3 * size, name
    # What is no matrix of a layer is AdamW's: its first step is the gradient's sign.
    np.testing.assert_allclose(updates["attn_norm"], -np.sign(grads["layers"]["attn_norm"]), atol=1e-3)
