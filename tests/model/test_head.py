"""The fused head against a dense softmax, and the proof that [tokens, V] never exists."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.head import CACHED, LANES, TokenStats, _block, logits, token_stats
from tests.small import OPTIMIZED

N, D, V = 24, 8, 41


def inputs(lead=(N,), scale=1.0, v=V, seed=0):
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.normal(size=(*lead, D))).astype(np.float32)
    head = rng.normal(size=(v, D)).astype(np.float32)
    return hidden, head, rng.integers(0, v, lead)


def exact(hidden, head, targets):
    """The four statistics from their definitions, in float64."""
    z = hidden.astype(np.float64) @ head.T.astype(np.float64)
    top = z.max(-1)
    lse = top + np.log(np.exp(z - top[..., None]).sum(-1))
    log_p = z - lse[..., None]
    p = np.exp(log_p)
    certainty = (-np.log(z.shape[-1]) - log_p).mean(-1)  # KL(uniform || p)
    return TokenStats(np.take_along_axis(log_p, targets[..., None], -1)[..., 0], lse, -(p * log_p).sum(-1), certainty)


def dense(hidden, head, targets):
    """The same for autodiff, in float32."""
    z = hidden @ head.T
    log_p = jax.nn.log_softmax(z)
    return TokenStats(
        jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0],
        jax.nn.logsumexp(z, -1),
        -(jnp.exp(log_p) * log_p).sum(-1),
        -log_p.mean(-1) - math.log(z.shape[-1]),
    )


run = jax.jit(token_stats, static_argnames="chunk")


@pytest.mark.parametrize("chunk", [1, 5, 8, N, 1000])
def test_any_chunk_gives_the_dense_statistics(chunk):
    args = inputs()
    for got, expected in zip(run(*args, chunk=chunk), exact(*args), strict=True):
        assert got.shape == (N,) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-6)


def test_leading_axes_are_kept():
    args = inputs((2, 3, 7))
    for chunk in (1, 13):
        for got, expected in zip(run(*args, chunk=chunk), exact(*args), strict=True):
            assert got.shape == (2, 3, 7)
            np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("lead, chunk", [((N,), 5), ((2, 3, 4), 12)])
def test_gradients_of_each_statistic_equal_dense_autodiff(lead, chunk):
    hidden, head, targets = inputs(lead, seed=1)
    # One random cotangent for each statistic alone.
    weights = np.random.default_rng(2).normal(size=(4, *lead)).astype(np.float32)
    cotangents = TokenStats(*(np.zeros_like(weights) for _ in range(4)))
    for i in range(4):
        cotangents[i][i] = weights[i]

    def gradients(stats):
        def both(hidden, head):
            _, vjp = jax.vjp(stats, hidden, head)
            return jax.vmap(vjp)(cotangents)

        return jax.jit(both)(hidden, head)

    got = gradients(lambda h, w: token_stats(h, w, targets, chunk))
    expected = gradients(lambda h, w: dense(h, w, targets))
    for a, b in zip(got, expected, strict=True):
        # Sums of at most V or N float32 products of order 1.
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
        assert all(np.abs(x).max() > 0.1 for x in b), "every statistic has a gradient worth comparing"


def test_large_logits_stay_finite():
    hidden, head, targets = inputs(scale=5e3)
    assert np.abs(hidden @ head.T).max() > 1e4

    def total(hidden, head):
        stats = token_stats(hidden, head, targets, chunk=7)
        return sum(x.sum() for x in stats), stats

    (_, stats), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head)
    for got, expected in zip(stats, exact(hidden, head, targets), strict=True):
        assert np.isfinite(got).all()
        # Logits are spaced 2^-23 of their size: 5e4 * 1.2e-7, over a few operations.
        np.testing.assert_allclose(got, expected, atol=0.05)
    assert all(np.isfinite(g).all() for g in grads)
    assert np.all(stats.log_prob <= 0) and np.all(stats.entropy >= 0)


def test_bfloat16_states_give_float32_statistics():
    hidden, head, targets = inputs()
    half = hidden.astype(jnp.bfloat16)
    rounded = np.asarray(half, np.float32), np.asarray(head.astype(jnp.bfloat16), np.float32)
    for got, expected in zip(run(half, head, targets, chunk=5), exact(*rounded, targets), strict=True):
        assert got.dtype == jnp.float32
        # The mean row of the head is taken before it is rounded, hence not 1e-6.
        np.testing.assert_allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_a_temperature_scales_the_logits_in_float32(temperature):
    """Of bfloat16 states too: dividing these by 0.6 would round every logit to three digits."""
    hidden, head, targets = inputs(scale=3.0)
    half, rounded = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    scale = np.where(np.arange(N) % 2, np.float32(1 / temperature), np.float32(1))  # every other token
    want = exact(np.asarray(half, np.float64) * scale[:, None], np.asarray(rounded, np.float64), targets)
    for got, expected in zip(run(half, rounded, targets, chunk=5, scale=scale), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def gradient_of(stats):
        return jax.jit(jax.grad(lambda h, w: sum((i + 1) * x.sum() for i, x in enumerate(stats(h, w))), (0, 1)))

    fused = gradient_of(lambda h, w: token_stats(h, w, targets, 5, scale))(hidden, head)
    plain = gradient_of(lambda h, w: dense(h * scale[:, None], w, targets))(hidden, head)
    for got, expected in zip(fused, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)


def test_logits_are_float32_products():
    hidden, head, _ = inputs()
    np.testing.assert_allclose(logits(hidden, head), hidden.astype(np.float64) @ head.T, atol=1e-5)
    assert logits(hidden.astype(jnp.bfloat16), head).dtype == jnp.float32


@pytest.mark.parametrize("v", [40, 41], ids=["split over tensor", "which does not divide it"])
def test_on_a_mesh_the_statistics_and_gradients_are_the_same(v):
    args = inputs((4, 6), v=v)

    def total(hidden, head, targets):
        stats = token_stats(hidden, head, targets, chunk=2)
        return sum((i + 1) * x.sum() for i, x in enumerate(stats)), stats

    f = jax.value_and_grad(total, (0, 1), has_aux=True)
    (_, stats), grads = jax.jit(f)(*args)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        at = [PartitionSpec("data", "fsdp"), PartitionSpec("tensor" if v % 2 == 0 else None, "fsdp"), PartitionSpec()]
        whole = make_mesh((2, 2, 2))
        placed = [jax.device_put(x, NamedSharding(whole, spec)) for x, spec in zip(args, at, strict=True)]
        (_, got), got_grads = jax.jit(f)(*placed)
    for a, b in zip((*got, *got_grads), (*stats, *grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


# Sizes that cannot be mistaken for one another: [tokens, V] has 6464 values, a block's logits 808 at most.
TOKENS, VOCAB, CHUNK = 64, 101, 8


def training_loss(chunk):
    def loss(hidden, head, targets):
        return sum(x.sum() for x in token_stats(hidden, head, targets, chunk))

    hidden, head, targets = inputs((TOKENS,), v=VOCAB)
    return jax.value_and_grad(loss, (0, 1)), (hidden, head, targets)


def traced_sizes(jaxpr):
    """Number of elements of every value that a program computes, in its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from traced_sizes(inner)


@pytest.mark.parametrize("chunk, exists", [(CHUNK, False), (TOKENS, True)])
def test_no_array_of_tokens_by_vocabulary_is_traced(chunk, exists):
    f, args = training_loss(chunk)
    largest = max(traced_sizes(jax.make_jaxpr(f)(*args).jaxpr))
    assert (largest >= TOKENS * VOCAB) == exists
    assert exists or largest <= VOCAB * max(CHUNK, D)


def test_no_array_of_tokens_by_vocabulary_is_compiled():
    f, args = training_loss(CHUNK)
    text = jax.jit(f).lower(*args).compile().as_text()
    shapes = [[int(n) for n in dims.split(",")] for dims in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert [TOKENS, 1, VOCAB * CHUNK // TOKENS] in shapes, "a block's logits are there, so the text is understood"
    assert max(map(math.prod, shapes)) <= VOCAB * max(CHUNK, D)


def test_the_gradient_writes_no_block_of_logits_out_again_transposed():
    f, args = training_loss(CHUNK)
    text = jax.jit(f).lower(*args).compile(compiler_options=OPTIMIZED).as_text()
    block = VOCAB * CHUNK // TOKENS
    assert f"f32[{block},{TOKENS}]" not in text and f"f32[{TOKENS},{block}]" in text


@pytest.mark.parametrize("vocab", [3 * 2**19, 3 * 2**19 + 5])
def test_without_a_chunk_the_blocks_are_what_a_cache_holds(vocab):
    hidden, head, targets = inputs((4,), v=vocab)
    assert _block(vocab, targets.size, 0) * targets.size <= CACHED + 4 * LANES
    for got, want in zip(token_stats(hidden, head, targets), exact(hidden, head, targets), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("scale", [None, np.linspace(0.5, 2, N, dtype=np.float32)], ids=["plain", "temperature"])
def test_logits_that_are_kept_give_the_gradients_of_those_computed_again(scale, monkeypatch):
    monkeypatch.setattr("rl_likelihood.model.head.CACHED", 200)  # several blocks, of which the last two overlap
    args = inputs(seed=3)

    def loss(hidden, head):
        return sum(((i + 1) * x).sum() for i, x in enumerate(token_stats(hidden, head, args[2], scale=scale)))

    largest, grads = [], []
    for limit in (0, N * V):
        monkeypatch.setattr("rl_likelihood.model.head.KEPT", limit)
        gradient = jax.grad(lambda *x: loss(*x), (0, 1))
        largest.append(max(traced_sizes(jax.make_jaxpr(gradient)(*args[:2]).jaxpr)))
        grads.append(jax.jit(gradient)(*args[:2]))
    assert largest[0] < N * V <= largest[1]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)
