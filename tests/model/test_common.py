"""Prompts that begin with the same ids: computed once, with the numbers of prompts that are computed whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.rows import row_stats
from rl_likelihood.learner.step import gradients
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import LocalLayers
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.decoding import prefill
from rl_likelihood.runtime.devices import using
from rl_likelihood.sampler import decode
from tests.small import TINY, random_batch, random_params, rewarded, tiny

COMMON, P, S = 6, 4, 11
LOCAL = dataclasses.replace(TINY, local=LocalLayers((True, False), window=5, theta=50.0))
MODELS = {"scanned": TINY, "unrolled": tiny(scan_layers=False), "windows": LOCAL, "remat": tiny(remat="full")}
PARAMS = random_params(TINY)
CFG = rewarded("log_prob", two_branches=True, policy_span="response")


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 24, (P, S)).astype(np.int32)
    tokens[:, :COMMON] = tokens[0, :COMMON]
    return random_batch(3, p=P, s=S, sampled=True).replace(prompt=tokens, prompt_length=np.array([7, 11, 9, 8]))


BATCH = batch()
SPLIT = BATCH.replace(common=COMMON)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_rows_and_gradients_are_those_of_whole_prompts(model):
    run = jax.jit(gradients, static_argnums=(3, 4))
    whole, split = (run(PARAMS, (None, None), b, model, CFG) for b in (BATCH, SPLIT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4), split, whole)


def test_states_of_whole_prompts_come_back():
    run = jax.jit(forward, static_argnums=1, static_argnames="common")
    whole = run(PARAMS, TINY, BATCH.prompt, BATCH.prompt_length).prompt
    split = run(PARAMS, TINY, BATCH.prompt, BATCH.prompt_length, common=COMMON).prompt
    real = np.arange(S) < BATCH.prompt_length[:, None]
    np.testing.assert_allclose(np.asarray(split)[real], np.asarray(whole)[real], atol=1e-5)


def test_other_ids_in_the_common_part_of_a_later_prompt_are_not_read():
    other = SPLIT.prompt.copy()
    other[1:, :COMMON] = 0
    a, b = (
        jax.jit(row_stats, static_argnums=(1, 3))(PARAMS, TINY, x, CFG) for x in (SPLIT, SPLIT.replace(prompt=other))
    )
    np.testing.assert_array_equal(a.stats.log_prob, b.stats.log_prob)


def test_eight_devices_are_one():
    expected = jax.jit(row_stats, static_argnums=(1, 3))(PARAMS, TINY, BATCH, CFG).stats.log_prob
    for shape in ((1, 8, 1), (2, 2, 2)):
        mesh = make_mesh(shape)
        with using(mesh):
            ours = jax.jit(row_stats, static_argnums=(1, 3))(PARAMS, TINY, SPLIT, CFG).stats.log_prob
        np.testing.assert_allclose(ours[BATCH.segment > 0], expected[BATCH.segment > 0], atol=2e-5)


@pytest.mark.parametrize("model", [TINY, LOCAL])
def test_prefill_is_that_of_whole_prompts(model):
    weights = decode.prepare(PARAMS, model)
    run = jax.jit(prefill, static_argnums=(1, 4))
    (hidden, cache), (expected, caches) = (
        run(weights, model, BATCH.prompt, BATCH.prompt_length, n) for n in (COMMON, 0)
    )
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    real = np.arange(S) < BATCH.prompt_length[:, None]
    for (keys, values), (keys2, values2) in zip(cache, caches, strict=True):
        np.testing.assert_allclose(jnp.where(real[:, None, None], keys - keys2, 0), 0, atol=1e-5)
        np.testing.assert_allclose(jnp.where(real[:, None, :, None], values - values2, 0), 0, atol=1e-5)
