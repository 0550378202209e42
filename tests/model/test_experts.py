"""Mixtures of experts: against a sum over all experts, forwards and backwards, and on many devices as on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.decoder import Params, param_specs, shardings
from rl_likelihood.model.decoding import fuse_layer
from rl_likelihood.model.experts import experts_mlp
from tests.small import random_params, tiny

MOE = tiny(family="qwen3_moe", qk_norm=True, mlp=12, experts=8, experts_per_token=3, norm_topk_prob=True)
PARAMS = random_params(MOE)
LAYER = {k: v[0] for k, v in PARAMS["layers"].items()}
PARTS = ("router", "gate", "up", "down")


def over_all_experts(x, w: Params, cfg):
    """Every expert for every token, times a weight that is 0 where it was not chosen."""
    weight = jax.nn.softmax(x @ w["router"])
    least = jnp.sort(weight, -1)[..., -cfg.experts_per_token, None]
    weight = jnp.where(weight >= least, weight, 0)
    if cfg.norm_topk_prob:
        weight = weight / weight.sum(-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("...d,edf->...ef", x, w["gate"])) * jnp.einsum("...d,edf->...ef", x, w["up"])
    return jnp.einsum("...ef,efd,...e->...d", hidden, w["down"], weight)


def value_and_gradients(f, x, w):
    """Of a sum of the results with random factors, by the tokens and by each matrix."""
    factors = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda x, w: (f(x, w) * factors).sum(), (0, 1)))(x, w)


def assert_close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), a, b)


def tokens(*lead):
    return jnp.asarray(np.random.default_rng(1).normal(size=(*lead, MOE.width)), jnp.float32)


@pytest.mark.parametrize("norm", [True, False])
def test_each_token_gets_its_experts_and_gradients_are_those_of_the_sum_over_all(norm):
    cfg = dataclasses.replace(MOE, norm_topk_prob=norm)
    w, x = {name: LAYER[name] for name in PARTS}, tokens(5, 7)
    ours, theirs = (
        value_and_gradients(functools.partial(f, cfg=cfg), x, w) for f in (experts_mlp, over_all_experts)
    )
    assert_close(ours, theirs)
    assert all(np.abs(g).max() > 1e-3 for g in ours[1][1].values())


def test_the_decoding_layout_computes_the_same():
    fused, x = fuse_layer(LAYER, MOE), tokens(9)
    assert fused["gate_up"].shape == (MOE.experts, MOE.width, 2 * MOE.mlp)
    assert_close(experts_mlp(x, fused, MOE), experts_mlp(x, LAYER, MOE))


@pytest.mark.parametrize("experts", [8, 7])  # 7: tensor does not divide them, so every device has all
@pytest.mark.parametrize(
    "mesh, lead", [((2, 2, 2), (4, 3)), ((2, 2, 2), (2, 6, 5)), ((2, 2, 2), (3, 5)), ((1, 1, 8), (7,)), ((4, 2, 1), (8,))]
)
def test_many_devices_compute_what_one_does(mesh, lead, experts):
    cfg = dataclasses.replace(MOE, experts=experts)
    w = {k: v[0] for k, v in random_params(cfg)["layers"].items() if k in PARTS}
    run, x, mesh = functools.partial(experts_mlp, cfg=cfg), tokens(*lead), make_mesh(mesh)
    alone = value_and_gradients(run, x, w)
    of_layers = shardings(param_specs(cfg), mesh)["layers"]
    at = {k: jax.NamedSharding(mesh, jax.P(*of_layers[k].spec[1:])) for k in PARTS}
    with jax.set_mesh(mesh):
        spread = value_and_gradients(run, x, jax.device_put(w, at))
    assert_close(jax.device_get(spread), alone)

