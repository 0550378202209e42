"""LoRA: adapters act as the matrices they stand for, in every forward, gradient, update, checkpoint and file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.step import gradients, init_reference, init_state, make_step, reference_shardings
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import is_spec
from rl_likelihood.model.decoder import forward, product
from rl_likelihood.model.lora import MATRICES, LoraConfig, as_base, base_specs, effective, init_adapters, merged
from rl_likelihood.sampler import decode
from rl_likelihood.train import RUNS_ONCE
from rl_likelihood.weights import files
from tests.runs import small_config
from tests.small import random_batch, random_params, rewarded, tiny

LORA = LoraConfig(rank=3, alpha=6.0)
MODEL = tiny(layers=2)
BASE = random_params(MODEL)
BATCH = random_batch(8, sampled=True)
CFG = rewarded("log_prob", two_branches=True, policy_span="response")
ADAPTED = dataclasses.replace(CFG, lora=LORA)


def random_adapters(lora=LORA, model=MODEL):
    rng = np.random.default_rng(0)
    fresh = init_adapters(jax.random.key(0), model, lora)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)


ADAPTERS = random_adapters()
WHOLE = merged(BASE, ADAPTERS, LORA)
step_gradients = jax.jit(gradients, static_argnums=(3, 4))


def matrices(params, name):
    """[L, in, out] of a matrix, or [L, in, r] and [L, r, out] of an adapter."""
    x = np.asarray(params["layers"][name])
    inputs = 1 if name.endswith("_b") or name[0] != "o" else 2
    return x.reshape(len(x), int(np.prod(x.shape[1 : 1 + inputs])), -1)


def test_new_adapters_change_nothing_and_merged_ones_are_added():
    fresh = init_adapters(jax.random.key(1), MODEL, LORA)
    jax.tree.map(np.testing.assert_array_equal, merged(BASE, fresh, LORA), BASE)
    for name in MATRICES:
        a, b = matrices(ADAPTERS, f"{name}_a"), matrices(ADAPTERS, f"{name}_b")
        np.testing.assert_allclose(matrices(WHOLE, name), matrices(BASE, name) + 2 * a @ b, atol=1e-6)
    np.testing.assert_array_equal(WHOLE["embed"], BASE["embed"])


def test_fewer_optimizations_of_the_program_that_makes_them_change_no_number():
    made = [
        jax.jit(lambda key: init_adapters(key, MODEL, LORA), compiler_options=options)(jax.random.key(1))
        for options in (None, RUNS_ONCE)
    ]
    jax.tree.map(np.testing.assert_array_equal, *made)


@pytest.mark.parametrize("scan", [True, False])
def test_learner_and_sampler_compute_with_the_merged_matrices(scan):
    model = dataclasses.replace(MODEL, scan_layers=scan)
    states = jax.jit(lambda p: forward(p, model, BATCH.prompt, BATCH.prompt_length).prompt)
    used = effective(BASE, ADAPTERS, LORA)
    np.testing.assert_allclose(states(used), states(WHOLE), atol=1e-5)
    assert np.abs(states(used) - states(BASE)).max() > 0.1
    if scan:
        ours, plain = decode.prepare(used, model), decode.prepare(WHOLE, model)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, plain)


def test_gradients_are_those_of_the_matrices_by_the_chain_rule_in_any_micro_batches():
    plain = step_gradients(WHOLE, (None, None), BATCH, MODEL, CFG)[0]
    unrolled = dataclasses.replace(MODEL, scan_layers=False)
    for model, micro in ((MODEL, 0), (unrolled, 2)):
        cfg = dataclasses.replace(ADAPTED, micro_batch_prompts=micro)
        got = step_gradients(ADAPTERS, (None, None, BASE), BATCH, model, cfg)[0]
        for name in MATRICES:
            a, b, g = matrices(ADAPTERS, f"{name}_a"), matrices(ADAPTERS, f"{name}_b"), matrices(plain, name)
            np.testing.assert_allclose(matrices(got, f"{name}_a"), 2 * g @ b.swapaxes(1, 2), atol=2e-5)
            np.testing.assert_allclose(matrices(got, f"{name}_b"), 2 * a.swapaxes(1, 2) @ g, atol=2e-5)


def test_the_optimizer_holds_adapters_alone_and_the_base_is_the_reference():
    lora = dataclasses.replace(LORA, targets=("q", "down"), base_dtype="bfloat16")
    cfg = dataclasses.replace(ADAPTED, lora=lora, loss=LossConfig(kl="k3", kl_coef=0.1))
    optimizer = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=0))
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    adapters = init_adapters(jax.random.key(0), MODEL, lora)
    base = init_reference(BASE, mesh, MODEL, cfg)
    assert {x.dtype for x in jax.tree.leaves(base)} == {jnp.dtype("bfloat16")}
    state = init_state(adapters, optimizer, cfg)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 3 * sum(x.size for x in jax.tree.leaves(adapters))
    step = make_step(MODEL, cfg, optimizer, mesh, BATCH)
    state, out, _ = step(state, base, BATCH)
    assert float(out["loss/kl"]) == pytest.approx(0, abs=1e-6)
    _, out, _ = step(state, base, BATCH)
    assert float(out["loss/kl"]) > 1e-6
    assert set(state.params["layers"]) == {"q_a", "q_b", "down_a", "down_b"}


@pytest.fixture(scope="module")
def int8():
    """(the base in int8, the very parameters that it stands for)."""
    lora = dataclasses.replace(LORA, base_dtype="int8")
    base = as_base(BASE, lora)
    return base, merged(base, init_adapters(jax.random.key(0), MODEL, lora), lora)


def test_int8_matrices_are_near_the_parameters_and_a_quarter_of_their_size(int8):
    base, plain = int8
    for name in MATRICES:
        whole, near = matrices(BASE, name), matrices(plain, name)
        step = np.abs(whole).max(1, keepdims=True) / 127
        assert base["layers"][name].dtype == jnp.int8
        assert (np.abs(whole - near) <= 0.5 * step + 0.004 * np.abs(whole)).all(), "bfloat16, then half a step"
        assert np.abs(whole - near).max() > 0
    assert base["embed"].dtype == jnp.bfloat16 and base["layers"]["q_scale"].dtype == jnp.float32
    specs = base_specs(MODEL, dataclasses.replace(LORA, base_dtype="int8"))
    assert jax.tree.map(lambda s: s.shape, specs, is_leaf=is_spec) == jax.tree.map(jnp.shape, base)


def test_learner_and_sampler_compute_with_an_int8_base(int8):
    base, plain = int8
    states = jax.jit(lambda p: forward(p, MODEL, BATCH.prompt, BATCH.prompt_length).prompt)
    expected = effective(plain, ADAPTERS, LORA)
    used = effective(base, ADAPTERS, LORA)
    np.testing.assert_allclose(states(used), states(expected), atol=2e-5)
    assert np.abs(states(used) - states(WHOLE)).max() > 1e-4
    ours, theirs = decode.prepare(used, MODEL), decode.prepare(expected, MODEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_scales_of_an_int8_base_are_not_rounded_to_bfloat16(int8):
    """Else every output of a matrix would be wrong by up to 0.4 %, in the learner alone."""
    base, _ = int8
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    states = jax.jit(lambda p: forward(p, model, BATCH.prompt, BATCH.prompt_length).prompt)
    rounded = {k: v.astype(jnp.bfloat16).astype(v.dtype) for k, v in base["layers"].items() if k.endswith("_scale")}
    other = base | {"layers": base["layers"] | rounded}
    assert (states(base) != states(other)).any()
    one = {k: v[0] for k, v in base["layers"].items()}
    w = {"down": one["down"].astype(jnp.bfloat16), "down_scale": one["down_scale"]}
    learned = product(jnp.eye(MODEL.mlp, dtype=jnp.bfloat16), w, "down")
    np.testing.assert_array_equal(learned, decode.prepare(base, model)["layers"][0]["down"])


def test_a_step_on_an_int8_base_is_that_on_the_parameters_it_stands_for(int8):
    base, plain = int8
    optimizer, mesh = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=0)), make_mesh((1, 2, 2), jax.devices()[:4])
    norms = []
    for dtype, frozen in (("int8", BASE), ("float32", plain)):
        cfg = dataclasses.replace(ADAPTED, lora=dataclasses.replace(LORA, base_dtype=dtype))
        at = init_reference(jax.tree.map(jnp.asarray, frozen), mesh, MODEL, cfg)
        step = make_step(MODEL, cfg, optimizer, mesh, BATCH)
        _, out, _ = step(init_state(jax.tree.map(jnp.array, ADAPTERS), optimizer, cfg), at, BATCH)
        norms.append(float(out["grad/norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_target_that_is_no_matrix_is_refused():
    for targets in (("q", "query"), ()):
        with pytest.raises(UserError, match="lora.targets"):
            build(small_config(lora__rank=2, lora__targets=targets))


def test_a_warm_start_reads_the_whole_model_as_its_base():
    c = build(small_config(lora__rank=2, lora__base_dtype="int8"))
    specs = reference_shardings(make_mesh((1, 1, 1), jax.devices()[:1]), MODEL, c.warm_step.lora)
    assert jax.tree.structure(specs) == jax.tree.structure(BASE) and c.step.lora.base_dtype == "int8"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora__base_dtype": "int8"}, "lora.base_dtype is 'int8', but lora.rank is 0"),
        ({"lora__targets": ("q",)}, "lora.targets is"),
        ({"lora__alpha": 8.0}, "lora.alpha is 8.0, but lora.rank is 0"),
        ({"lora__rank": 4, "optim__name": "muon"}, "optim.name is 'muon'.*lora.rank is 4"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build(small_config(**changes))


def test_the_folder_for_peft_has_its_names_and_layout(tmp_path):
    files.save_adapters(tmp_path, ADAPTERS, LORA, "base")
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    assert len(arrays) == 2 * 7 * MODEL.layers
    assert set(config["target_modules"]) == {f"{n}_proj" for n in MATRICES}
    for t in files.tensors(MODEL):
        if t.key in MATRICES:
            of = "base_model.model." + t.name.removesuffix(".weight")
            a, b = arrays[f"{of}.lora_A.weight"], arrays[f"{of}.lora_B.weight"]
            base, whole = (files._file_array(p, t, np.dtype("float32")) for p in (BASE, WHOLE))
            np.testing.assert_allclose(base + scale * b @ a, whole, atol=1e-6)
