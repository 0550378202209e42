"""The sampler's int8 weights: what they compute, on every mesh, and what the learner makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.model.decoding import prefill
from rl_likelihood.model.lora import MATRICES
from rl_likelihood.run_model import rollout_model
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.sampler import decode
from rl_likelihood.task import load
from tests.runs import small_config
from tests.small import random_params, tiny

MODEL = tiny(layers=2)
INT8 = dataclasses.replace(MODEL, int8_decoding=True)
PARAMS = random_params(MODEL)
PROMPT, LENGTH = np.arange(12).reshape(2, 6) % MODEL.vocab_size, np.array([6, 4])


def rounded(params):
    """The parameters with each output of a matrix on its own grid of 255 values."""
    layers = dict(params["layers"])
    for name in MATRICES:
        inputs = (1, 2) if name == "o" else 1
        scale = np.abs(layers[name]).max(inputs, keepdims=True) / 127
        layers[name] = np.rint(layers[name] / scale) * scale
    return params | {"layers": layers}


def test_int8_weights_compute_as_the_model_of_rounded_matrices():
    weights, expected = decode.prepare(PARAMS, INT8), decode.prepare(rounded(PARAMS), MODEL)
    assert {weights["layers"][0][name].dtype for name in ("qkv", "gate_up", "o", "down")} == {jnp.dtype("int8")}
    run = jax.jit(prefill, static_argnums=1)
    ours, theirs = run(weights, MODEL, PROMPT, LENGTH)[0], run(expected, MODEL, PROMPT, LENGTH)[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.abs(ours - run(decode.prepare(PARAMS, MODEL), MODEL, PROMPT, LENGTH)[0]).max() > 1e-3


@pytest.mark.parametrize(
    "changes", [{"sampler__devices": "4", "sampler__tensor": 2, "mesh__tensor": 2}, {"sampler__tensor": 4}]
)
def test_devices_that_share_the_weights_hold_their_part_of_the_same_int8_ones(changes):
    settings = build(small_config(sampler__weights="int8", **changes))
    devices = make_devices(settings)
    task, params = load(settings, mesh=devices.learner)
    model = rollout_model(settings, task.model)
    weights = sampler_weights(params, model, devices)
    wanted = decode.prepare(jax.tree.map(np.asarray, params), model)
    jax.tree.map(np.testing.assert_array_equal, weights, wanted)
    for name in ("gate_up", "gate_up_scale", "qkv_scale"):
        whole, part = weights["layers"][0][name], weights["layers"][0][name].addressable_shards[0].data
        assert part.shape[-1] == whole.shape[-1] // settings.sampler.tensor


def test_a_run_samples_with_int8_corrects_for_it_and_evaluates_the_model_itself(tmp_path):
    same = {"train__steps": 1, "eval__prompts": 4, "report__no_chain": False}
    evaluated, logged = {}, {}
    for kind in ("compute", "int8"):
        config = build(small_config(sampler__weights=kind, **same))
        assert config.step.loss.ratio == {"compute": "none", "int8": "token"}[kind]
        train.run(config, tmp_path / kind)
        evaluated[kind] = run_files.read(tmp_path / kind / "eval.jsonl")[0]["perplexity"]
        logged[kind] = run_files.read(tmp_path / kind / "metrics.jsonl")[0]
    assert evaluated["compute"] == evaluated["int8"]
    assert abs(logged["compute"]["ratio/kl"]) < 1e-10 < logged["int8"]["ratio/kl"] < 1e-6
    assert logged["compute"]["ratio/max"] < 1.0001 < logged["int8"]["ratio/max"]
