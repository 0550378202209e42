"""The counts of useful operations equal sums over single tokens, and what the programs of jax multiply."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bench import flops
from bench.flops import Shape
from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import Completions, forward
from rl_likelihood.model.decoding import decoding_layout
from rl_likelihood.model.decoding import prefill as prefill_of
from rl_likelihood.model.head import logits
from rl_likelihood.planning.aot import count_flops
from tests.small import random_params, tiny

MODEL = tiny(layers=3, heads=4, kv_heads=2, head_dim=4, width=16, mlp=24, vocab_size=40)
W = Shape(prompts=2, group=3, prompt=5, completion=4)
PARAMS = random_params(MODEL)


def test_operations_are_the_sum_over_tokens():
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24
    assert flops.body_parameters(MODEL) == 3 * layer
    assert flops.head_parameters(MODEL) == 640

    def token(n):  # which attends to n tokens
        return 2 * 3 * layer + 3 * 4 * 16 * n

    prompt = sum(token(n) for n in range(1, 6))
    rows = sum(token(n) + 1280 for n in range(6, 10))
    assert flops.forward(MODEL, W) == 2 * prompt + 6 * rows
    assert flops.prefill(MODEL, W) == 2 * (prompt + 1280)
    assert flops.decode(MODEL, W) == 6 * sum(token(n) + 1280 for n in range(6, 9))
    assert flops.sampling(MODEL, W) == flops.prefill(MODEL, W) + flops.decode(MODEL, W)
    assert flops.learner(MODEL, W, reference=False) == 3 * flops.forward(MODEL, W)
    assert flops.learner(MODEL, W, reference=True) == 4 * flops.forward(MODEL, W)


def test_bytes_are_the_sum_over_steps():
    weights = flops.body_parameters(MODEL) + flops.head_parameters(MODEL)
    cache = 3 * 2 * 2 * 4  # layers, keys and values, heads, width
    steps = [weights + cache * (2 * 5 + 6 * n) for n in (1, 2, 3)]
    assert flops.decode_bytes(MODEL, W) == 4 * sum(steps)
    assert flops.decode_bytes(MODEL, W, width=2) == 2 * sum(steps)


def test_operations_are_those_of_the_programs():
    """The programs also multiply masked keys. With those added, the counts are equal."""
    ids = np.zeros((2, 3, 4), np.int32)

    def scored(params):
        hidden = forward(params, MODEL, np.zeros((2, 5), np.int32), np.full(2, 5), Completions(ids, ids + 1))
        return logits(hidden.completion, head_matrix(params))

    whole = 3 * 4 * 16 * (2 * 5 * 5 + 6 * 4 * (5 + 4))
    causal = 2 * flops.attention(MODEL, 0, 5) + 6 * flops.attention(MODEL, 5, 9)
    assert count_flops(jax.make_jaxpr(scored)(PARAMS).jaxpr) == flops.forward(MODEL, W) - causal + whole

    def prefilled(params):
        hidden, _ = prefill_of(decoding_layout(params, MODEL), MODEL, jnp.zeros((2, 5), jnp.int32), jnp.full(2, 5))
        return logits(hidden, head_matrix(params))

    causal, whole = 2 * flops.attention(MODEL, 0, 5), 3 * 4 * 16 * 2 * 5 * 5
    assert count_flops(jax.make_jaxpr(prefilled)(PARAMS).jaxpr) == flops.prefill(MODEL, W) - causal + whole


def test_a_larger_group_adds_rows_and_no_prompt():
    wider = dataclasses.replace(W, group=6)
    more = flops.forward(MODEL, wider) - flops.forward(MODEL, W)
    alone = flops.forward(MODEL, W) - 2 * (5 * 2 * flops.body_parameters(MODEL) + flops.attention(MODEL, 0, 5))
    assert more == alone
