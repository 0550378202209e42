"""Mixtures of experts: against a sum over all experts, forwards and backwards, and on many devices as on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import flops
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.learner.batching import to_batch
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import gradients, make_score
from rl_likelihood.mesh import by_prompt, make_mesh, put
from rl_likelihood.model.architecture import Params, param_specs, shardings
from rl_likelihood.model.decoding import fuse_layer, prefill
from rl_likelihood.model.experts import experts_mlp
from rl_likelihood.planning.aot import count_flops
from rl_likelihood.run_model import run_on
from rl_likelihood.sampler import decode
from rl_likelihood.sampler.handover import hand_over
from rl_likelihood.shapes import CHAIN
from tests.runs import small_config
from tests.sampler.test_decode import KEY, NEVER, prompts
from tests.small import random_batch, random_params, rewarded, tiny

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
    ours, theirs = (value_and_gradients(functools.partial(f, cfg=cfg), x, w) for f in (experts_mlp, over_all_experts))
    assert_close(ours, theirs)
    assert all(np.abs(g).max() > 1e-3 for g in ours[1][1].values())


def test_the_decoding_layout_computes_the_same():
    fused, x = fuse_layer(LAYER, MOE), tokens(9)
    assert fused["gate_up"].shape == (MOE.experts, MOE.width, 2 * MOE.mlp)
    assert_close(experts_mlp(x, fused, MOE), experts_mlp(x, LAYER, MOE))


@pytest.mark.parametrize(
    "mesh, lead, experts",
    [
        ((2, 2, 2), (4, 3), 8),
        ((2, 2, 2), (2, 6, 5), 8),  # prompts over data, rows over fsdp
        ((2, 2, 2), (3, 5), 7),  # nothing divides: every device has all tokens and all experts
        ((1, 1, 8), (7,), 8),
    ],
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


@pytest.mark.parametrize("scan", [True, False])
def test_gradients_of_a_step_are_the_same_with_experts_on_many_devices(scan):
    batch, cfg = random_batch(3, p=4, g=2, sampled=True), rewarded("log_prob")
    step = jax.jit(gradients, static_argnums=(3, 4))
    alone = step(PARAMS, (None, None), batch, MOE, cfg)[0]
    mesh, model = make_mesh((2, 2, 2)), dataclasses.replace(MOE, scan_layers=scan, remat="full")
    at = shardings(param_specs(MOE), mesh)
    with jax.set_mesh(mesh):
        batch, params = put(batch, by_prompt(mesh, batch)), put(PARAMS, at)
        spread = step(params, (None, None), batch, model, cfg)[0]
    assert params["layers"]["gate"].addressable_shards[0].data.shape == (2, 4, 8, 12)
    assert_close(jax.device_get(spread), alone)
    assert all(np.abs(alone["layers"][name]).max() > 1e-4 for name in PARTS)


def test_the_sampler_s_log_probs_are_the_learner_s():
    cfg = decode.SamplerConfig(MOE, NEVER, group_size=3, max_chain=6)
    rollout = decode.sample(PARAMS, prompts(3), KEY, cfg)
    stats = make_score(MOE, StepConfig())(PARAMS, to_batch(rollout)).stats
    chain = rollout.segment == CHAIN
    np.testing.assert_allclose(rollout.sampler_logp[chain], np.asarray(stats.log_prob)[chain], atol=1e-4)
    assert chain.sum() == 3 * 3 * 6


def test_devices_of_the_sampler_hold_their_experts_and_compute_the_same():
    mesh = make_mesh((1, 2, 2), jax.devices()[:4])
    weights = hand_over(put(PARAMS, shardings(param_specs(MOE), mesh)), MOE, mesh, mesh)
    whole, ids = decode.prepare(PARAMS, MOE), jnp.arange(12).reshape(2, 6)
    jax.tree.map(np.testing.assert_array_equal, weights, whole)
    for name in ("gate_up", "down"):
        assert weights["layers"][1][name].addressable_shards[0].data.shape[0] == MOE.experts // 2
    run = jax.jit(prefill, static_argnums=1)
    ours, theirs = (run(w, MOE, ids, jnp.array([6, 4]))[0] for w in (weights, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_operations_are_those_of_the_experts_that_are_used():
    x, w = tokens(11), {name: LAYER[name] for name in PARTS}
    router, mlps = MOE.width * MOE.experts, 3 * MOE.experts_per_token * MOE.width * MOE.mlp
    jaxpr = jax.make_jaxpr(functools.partial(experts_mlp, cfg=MOE))(x, w).jaxpr
    assert count_flops(jaxpr) == 2 * 11 * (router + mlps)
    backward = jax.make_jaxpr(jax.grad(lambda x, w: experts_mlp(x, w, MOE).sum(), (0, 1)))(x, w).jaxpr
    assert count_flops(backward) == 3 * 2 * 11 * (router + mlps)
    dense = tiny(mlp=MOE.mlp)
    more = flops.body_parameters(MOE) - flops.body_parameters(dense)
    assert more == MOE.layers * (router + mlps - 3 * MOE.width * MOE.mlp)


def test_muon_takes_the_matrix_of_each_expert_alone():
    cfg = OptimizerConfig("muon", lr=1.0, schedule="constant", warmup_steps=0, clip_norm=0.0, b1=0.0)
    optimizer, grads = make_optimizer(cfg), random_params(MOE, 1)
    updates = jax.jit(optimizer.update)(grads, optimizer.init(PARAMS), PARAMS)[0]["layers"]
    for one in updates["gate"].reshape(-1, MOE.width, MOE.mlp):
        got = np.linalg.svd(one)[1] / (0.2 * MOE.width**0.5)
        assert got.min() > 0.2 and got.max() < 1.3
    np.testing.assert_allclose(updates["router"], -np.sign(grads["layers"]["router"]), atol=1e-3)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"lora__rank": 2}, ["lora.targets", "gate up down"]),
        ({"lora__rank": 2, "lora__targets": ("q", "up")}, ["lora.targets: up"]),
        ({"lora__rank": 2, "lora__targets": ("q",), "lora__base_dtype": "int8"}, ["lora.base_dtype: int8"]),
        ({"sampler__weights": "int8"}, ["sampler.weights: int8"]),
    ],
)
def test_what_is_not_computed_of_experts_is_refused_at_the_start(changes, parts):
    config = build(small_config(**changes))
    with pytest.raises(UserError) as error:
        run_on(MOE, config, "cpu")
    assert all(part in str(error.value) for part in parts), error.value
    assert run_on(tiny(), config, "cpu").layers == 2
    assert run_on(MOE, build(small_config(lora__rank=2, lora__targets=("q", "o"))), "cpu").experts == 8
