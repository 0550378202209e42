"""Attention over (prompt, own keys) against one dense softmax, and the two branches of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.model.attention import attention, branch_mask, branch_positions, predecessor
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED

P, G, T, U, S, H, K, D = 2, 3, 4, 5, 6, 4, 2, 8


def inputs(seed=0, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q = (scale * rng.normal(size=(P, G, T, H, D))).astype(dtype)
    own = tuple(rng.normal(size=(P, G, K, U, D)).astype(dtype) for _ in range(2))
    prompt = tuple(rng.normal(size=(P, K, S, D)).astype(dtype) for _ in range(2))
    own_mask = rng.random((P, G, T, U)) < 0.6
    return q, own, own_mask, (*prompt, np.arange(S) < np.array([[S], [2]]))


def dense(q, own, own_mask, prompt=None):
    """Row by row: repeat the prompt's keys for each of the group, one softmax over all visible keys."""
    out = np.zeros(q.shape)
    for p, g, t, h in np.ndindex(P, G, T, H):
        visible = own_mask[p, g if own_mask.shape[1] > 1 else 0, t]
        keys, values = (x[p, g, h // (H // K)][visible] for x in own)
        if prompt is not None:
            keys = np.concatenate([prompt[0][p, h // (H // K)][prompt[2][p]], keys])
            values = np.concatenate([prompt[1][p, h // (H // K)][prompt[2][p]], values])
        score = keys.astype(np.float64) @ q[p, g, t, h] / np.sqrt(D)
        weight = np.exp(score - score.max())
        out[p, g, t, h] = weight / weight.sum() @ values
    return out


run = jax.jit(attention)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_two_parts_are_one_softmax(scale):
    args = inputs(scale=scale)
    got = run(*args)
    assert got.shape == (P, G, T, H, D)
    # At scale 300 logits reach 1e3, where float32 is exact to 1e-4: weights to about 1e-4.
    np.testing.assert_allclose(got, dense(*args), atol=1e-5 if scale == 1 else 2e-3)


def test_without_a_prompt_part_and_with_one_mask_for_the_group():
    q, own, own_mask, _ = inputs(1)
    own_mask = own_mask[:, :1].copy()
    own_mask[..., 0] = True
    np.testing.assert_allclose(run(q, own, own_mask), dense(q, own, own_mask), atol=1e-5)


def test_a_query_without_own_keys_sees_the_prompt_alone_with_finite_gradients():
    q, own, own_mask, (*prompt, prompt_mask) = inputs(2)
    own_mask = np.zeros_like(own_mask)

    def total(q, own, prompt):
        return (attention(q, own, own_mask, (*prompt, prompt_mask)) ** 2).sum()

    got = run(q, own, own_mask, (*prompt, prompt_mask))
    np.testing.assert_allclose(got, dense(q, own, own_mask, (*prompt, prompt_mask)), atol=1e-5)
    d_q, d_own, d_prompt = jax.jit(jax.grad(total, (0, 1, 2)))(q, own, prompt)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((d_q, d_own, d_prompt)))
    assert all(np.all(x == 0) for x in d_own), "a key that nobody sees has no gradient"
    # The part of the prompt beyond its length has none either.
    assert all(np.all(np.asarray(x)[1, :, 2:] == 0) and np.any(np.asarray(x)[1, :, :2] != 0) for x in d_prompt)


def test_gradients_equal_those_of_one_softmax():
    q, own, own_mask, (*prompt, prompt_mask) = inputs(3)
    weight = np.random.default_rng(4).normal(size=q.shape).astype(np.float32)

    def joined(q, own, prompt):
        return (weight * attention(q, own, own_mask, (*prompt, prompt_mask))).sum()

    def repeated(q, own, prompt):
        keys, values = (
            jnp.repeat(jnp.concatenate([jnp.repeat(a[:, None], G, 1), b], 3), H // K, 2)
            for a, b in zip(prompt, own, strict=True)
        )
        visible = jnp.concatenate([jnp.broadcast_to(prompt_mask[:, None, None], (P, G, T, S)), own_mask], -1)
        score = jnp.einsum("pgthd,pghud->pghtu", q, keys) / np.sqrt(D)
        score = jnp.where(visible[:, :, None], score, -1e9)
        return (weight * jnp.einsum("pghtu,pghud->pgthd", jax.nn.softmax(score), values)).sum()

    got, expected = (jax.jit(jax.grad(f, (0, 1, 2)))(q, own, prompt) for f in (joined, repeated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def a_row_in_blocks(length):
    """Keys and queries of one row a group member, padded, with both answers, and a function of `queries`."""
    rng = np.random.default_rng(6)
    segment = np.full((P, G, length), CHAIN)
    segment[:, :, length // 2 :], segment[:, :, length * 3 // 4 :] = SAMPLED, REFERENCE
    segment[0, 0, -3:] = PAD
    q = rng.normal(size=(P, G, length, H, D)).astype(np.float32)
    own = tuple(rng.normal(size=(P, G, K, length, D)).astype(np.float32) for _ in range(2))
    weight = (rng.normal(size=q.shape) * (segment != PAD)[..., None, None]).astype(np.float32)
    *_, (*prompt, prompt_mask) = inputs(7)

    def total(q, own, prompt, queries):
        out = attention(q, own, branch_mask(jnp.asarray(segment)), (*prompt, prompt_mask), queries=queries)
        return (weight * out).sum(), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True), static_argnums=3), (q, own, prompt), segment != PAD


@pytest.mark.parametrize("length, queries", [(12, 4), (13, 4), (40, 1)])
def test_blocks_of_queries_are_all_at_once(length, queries):
    run, args, real = a_row_in_blocks(length)
    (plain, out), (blocks, same) = run(*args, 0), run(*args, queries)
    np.testing.assert_allclose(out[real], same[real], atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, blocks)


def test_blocks_leave_out_most_of_what_is_not_seen_and_are_few():
    run, args, _ = a_row_in_blocks(256)
    counted = lambda q: run.lower(*args, q).cost_analysis()["flops"]
    # (8 + 1) / 16 of the own keys are met in eight blocks, beside the prompt's 6.
    assert counted(16) < 0.65 * counted(0)
    dots = lambda q: str(jax.make_jaxpr(run, static_argnums=3)(*args, q)).count("dot_general")
    assert dots(1) == dots(32) < 60


def test_bfloat16_keeps_its_type_and_sums_in_float32():
    args = inputs(5)
    q, own, own_mask, (*prompt, prompt_mask) = args
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (q, own, prompt))
    got = run(half[0], half[1], own_mask, (*half[2], prompt_mask))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), dense(*args), atol=0.06)


# chain, chain, sampled, sampled, reference, reference, pad | chain, tag, reference, pads
SEGMENT = np.array([[[1, 1, 4, 4, 3, 3, 0], [1, 2, 3, 0, 0, 0, 0]]])


def test_branch_mask_is_the_table_of_who_sees_whom():
    visible = np.asarray(branch_mask(SEGMENT))[0]
    two_answers = """1......
                     11.....
                     111....
                     1111...
                     11..1..
                     11..11."""
    forced = """1......
                11.....
                111...."""
    for mask, table in zip(visible, (two_answers, forced), strict=True):
        expected = np.array([[c == "1" for c in line.strip()] for line in table.splitlines()])
        np.testing.assert_array_equal(mask[: len(expected)], expected)
    assert not visible[0][:, 6].any(), "padding is visible to no query"


def test_both_answers_continue_the_chain():
    position = np.asarray(branch_positions(SEGMENT, np.array([10])))[0]
    assert position[0, :6].tolist() == [10, 11, 12, 13, 12, 13]
    assert position[1, :3].tolist() == [10, 11, 12]
    # Index 0 is the last prompt token, index t + 1 completion token t.
    before = np.asarray(predecessor(SEGMENT))[0]
    assert before[0, :6].tolist() == [0, 1, 2, 3, 2, 5]
    assert before[1, :3].tolist() == [0, 1, 2]
