"""AdamW, its schedule, its clip and what decays, against the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_likelihood.learner.optimizer import OptimizerConfig, clip_by_global_norm, make_optimizer, schedule
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
