"""The decoder against one written again in numpy: families, groups, branches, padding, compilation switches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh, row_shards
from rl_likelihood.model import architecture, decoder, decoding, views
from rl_likelihood.model.architecture import LocalLayers, head_matrix, param_specs
from rl_likelihood.model.decoder import Completions, forward
from rl_likelihood.model.head import token_stats
from rl_likelihood.model.rope import LinearScaling, RopeScaling
from rl_likelihood.shapes import PAD, REFERENCE, SAMPLED
from tests.small import OPTIMIZED, TINY, branches, log_softmax, random_batch, random_params, reference_frequencies, tiny
from tests.small import reference_logits as by_hand

# Wavelengths of the tiny model's two frequencies, 6 and 63, lie on both sides of 16 / 1.
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
FAMILIES = {
    "llama": tiny(),
    "llama3": tiny(rope_scaling=SCALING, tied=False),
    "qwen2": tiny(family="qwen2", qkv_bias=True),
    "qwen3": tiny(family="qwen3", qk_norm=True, tied=False, head_dim=8, kv_heads=4),
    "gemma3": tiny(
        qk_norm=True,
        norms="both",
        norm_offset=1.0,
        activation="gelu",
        scaled_embedding=True,
        query_width=3,
        rope_scaling=LinearScaling(4.0),
        local=LocalLayers((True, False), window=4, theta=20.0),
    ),
    "olmo2": tiny(qk_norm=True, qk_norm_joint=True, norms="after"),
    "smollm3": tiny(local=LocalLayers((False, True), theta=0.0)),
    "window": tiny(local=LocalLayers((True, True), window=5)),
    "qwen3_moe": tiny(qk_norm=True, experts=5, experts_per_token=2, norm_topk_prob=True),
}


def hidden_of(params, cfg, batch):
    return forward(params, cfg, batch.prompt, batch.prompt_length, Completions(batch.completion, batch.segment))


run = jax.jit(hidden_of, static_argnums=1)


def dense_log_probs(hidden, params):
    return log_softmax(np.asarray(hidden, np.float64) @ np.asarray(head_matrix(params), np.float64).T)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_equals_each_branch_as_a_sequence_of_its_own(family):
    cfg = FAMILIES[family]
    params = random_params(cfg)
    batch = random_batch(1, p=2, g=3, t=11, sampled=True)
    assert (batch.segment == SAMPLED).any()
    hidden = run(params, cfg, batch)
    prompt, completion = (dense_log_probs(x, params) for x in (hidden.prompt, hidden.completion))
    for i, j in np.ndindex(batch.segment.shape[:2]):
        n = batch.prompt_length[i]
        for ids, at in branches(batch, i, j):
            expected = log_softmax(by_hand(params, cfg, ids))
            # Both hold whole distributions, [N, V].
            np.testing.assert_allclose(prompt[i, :n], expected[:n], atol=2e-4)
            np.testing.assert_allclose(completion[i, j, at], expected[n:], atol=2e-4)


def test_the_switches_of_the_families_are_not_the_same_model():
    # Guards the test above: dropping a bias, a norm or the scaling must change the log-probs it compares.
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    for family, off in (
        ("llama3", {"rope_scaling": None}),
        ("llama3", {"tied": True}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen3", {"qk_norm": False}),
        ("gemma3", {"norm_offset": 0.0}),
        ("gemma3", {"activation": "silu"}),
        ("gemma3", {"scaled_embedding": False}),
        ("gemma3", {"query_width": 0}),
        ("gemma3", {"rope_scaling": None}),
        ("gemma3", {"local": LocalLayers((True, False), window=4, theta=10_000.0)}),
        ("gemma3", {"local": LocalLayers((False, True), window=4, theta=20.0)}),
        ("gemma3", {"norms": "before"}),
        ("gemma3", {"norms": "after"}),
        ("olmo2", {"qk_norm": False}),
        ("smollm3", {"local": None}),
        ("window", {"local": LocalLayers((True, True), window=4)}),
    ):
        cfg = FAMILIES[family]
        params = random_params(cfg)
        a, b = (by_hand(params, c, ids) for c in (cfg, dataclasses.replace(cfg, **off)))
        assert np.abs(log_softmax(a) - log_softmax(b)).max() > 0.01, (family, off)


def test_the_gradient_of_a_group_is_that_of_repeated_prompts():
    batch = random_batch(2, p=2, g=3)
    params = random_params(TINY)
    weight = np.random.default_rng(3).normal(size=batch.segment.shape).astype(np.float32)
    p, g, t = weight.shape

    # Each row as [prompt, completion, padding]: its index in the grouped weights depends on the prompt.
    ids, where, size = np.zeros((p * g, 5 + t), np.int32), np.zeros((p * g, 5 + t), np.float32), []
    for row, (i, j) in enumerate(np.ndindex(p, g)):
        (plain, at), _ = branches(batch, i, j)
        n = batch.prompt_length[i]
        ids[row, : len(plain)], where[row, n : len(plain)] = plain, weight[i, j, at]
        size.append(len(plain))

    @jax.jit
    def repeated(params):
        hidden = forward(params, TINY, ids, np.array(size)).prompt
        logp = jax.nn.log_softmax(hidden[:, :-1] @ params["embed"].T)
        return (where[:, 1:] * jnp.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0]).sum()

    @jax.jit
    def grouped(params):
        hidden = hidden_of(params, TINY, batch)
        last = jnp.take_along_axis(hidden.prompt, (batch.prompt_length - 1)[:, None, None], 1)
        row = jnp.concatenate([jnp.repeat(last[:, None], g, 1), hidden.completion[:, :, :-1]], 2)
        logp = jax.nn.log_softmax(row @ params["embed"].T)
        logp = jnp.take_along_axis(logp, batch.completion[..., None], -1)[..., 0]
        return jnp.where(batch.segment != PAD, weight * logp, 0).sum()

    (a, da), (b, db) = (jax.value_and_grad(f)(params) for f in (repeated, grouped))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, atol=2e-5 * np.abs(x).max()), da, db)


def test_branches_do_not_see_each_other_and_padding_is_not_seen():
    batch = random_batch(4, sampled=True)
    params = random_params(TINY)

    def changed(*kinds):
        mask = np.isin(batch.segment, kinds)
        return mask, batch.replace(completion=np.where(mask, (batch.completion + 7) % 24, batch.completion))

    before = np.asarray(run(params, TINY, batch).completion)
    for kind, other in ((SAMPLED, REFERENCE), (REFERENCE, SAMPLED)):
        mask, other_batch = changed(kind)
        after = np.asarray(run(params, TINY, other_batch).completion)
        unmoved = (batch.segment != kind) & (batch.segment != PAD)
        assert mask.any() and (batch.segment[unmoved] == other).any()
        np.testing.assert_array_equal(after[unmoved], before[unmoved])
        assert not np.array_equal(after[mask], before[mask])
    in_prompt = np.arange(5) < batch.prompt_length[:, None]
    prompt = np.where(in_prompt, batch.prompt, (batch.prompt + 5) % 24)
    assert not in_prompt.all()
    after = np.asarray(run(params, TINY, changed(PAD)[1].replace(prompt=prompt)).completion)
    np.testing.assert_array_equal(after[batch.segment != PAD], before[batch.segment != PAD])


def test_scan_unrolled_and_remat_give_the_same_values_and_gradients():
    batch = random_batch(5, p=2, g=2)
    params = random_params(TINY)

    def loss(params, cfg):
        hidden = hidden_of(params, cfg, batch).completion
        return jnp.where(batch.segment[..., None] != PAD, jnp.sin(hidden), 0).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, grads = both(params, TINY)
    assert np.isfinite(value)
    for change in ({"scan_layers": False}, *({"remat": name} for name in ("dots", "attention", "full"))):
        value2, grads2 = both(params, dataclasses.replace(TINY, **change))
        assert float(value2) == pytest.approx(float(value), rel=1e-6), change
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max()), grads, grads2)


RUN = {"unrolled": {"scan_layers": False}, "remat": {"remat": "full"}, "dots": {"remat": "dots"}}


@pytest.mark.parametrize("cfg", [*FAMILIES.values(), *(tiny(**how) for how in RUN.values())], ids=[*FAMILIES, *RUN])
def test_prompts_and_completions_in_one_product_are_what_they_are_in_two(cfg):
    batch = random_batch(6, p=2, g=3, t=11, sampled=True)
    no_chain = batch.completion[:, :1, :7], batch.segment[:, :1, :7]
    rows = Completions(batch.completion, batch.segment, no_chain)

    def loss(params, pooled):
        hidden = forward(params, cfg, batch.prompt, batch.prompt_length, rows._replace(pooled=pooled))
        in_prompt = jnp.arange(batch.prompt.shape[1]) < batch.prompt_length[:, None]
        masks = in_prompt, batch.segment != PAD, no_chain[1] != PAD
        return sum(jnp.where(m[..., None], jnp.sin(h), 0).sum() for m, h in zip(masks, hidden, strict=True)), hidden

    both = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    ((_, hidden), grads), ((_, hidden2), grads2) = (both(random_params(cfg), pooled) for pooled in (True, False))
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
    jax.tree.map(compare, (hidden, grads), (hidden2, grads2))
    assert all(np.abs(h).max() > 0 for h in hidden)


def test_prompts_and_completions_meet_a_weight_in_one_product_where_one_device_has_them():
    batch, cfg = random_batch(6, p=2, g=3, s=5, t=11), dataclasses.replace(TINY, scan_layers=False)
    tokens = 2 * (5 + 3 * 11)

    def products(pooled):
        args = batch.prompt, batch.prompt_length, Completions(batch.completion, batch.segment, pooled=pooled)
        jaxpr = jax.make_jaxpr(lambda p: forward(p, cfg, *args))(random_params(cfg))
        return [
            e.invars[0].aval.shape[0]
            for e in jaxpr.eqns
            if e.primitive.name == "dot_general" and len(e.invars[0].aval.shape) == len(e.invars[1].aval.shape) == 2
        ]

    assert products(True) == [tokens] * 7 * cfg.layers
    assert sorted(products(False)) == sorted([2 * 5, 2 * 3 * 11] * 7 * cfg.layers)


def test_long_prompts_and_rows_in_blocks_of_queries_are_what_they_are_whole(monkeypatch):
    """`forward` and `prefill` ask for blocks, which rows longer than QUERIES have."""
    batch, params = random_batch(8, p=2, g=2, s=21, t=23, sampled=True), random_params(TINY)
    args = batch.prompt, batch.prompt_length, Completions(batch.completion, batch.segment)
    inside = jnp.arange(21) < batch.prompt_length[:, None]

    def loss(params):
        hidden = forward(params, TINY, *args)
        masks = zip((inside, batch.segment != PAD), (hidden.prompt, hidden.completion), strict=True)
        return sum(jnp.where(mask[..., None], jnp.sin(h), 0).sum() for mask, h in masks)

    def everything():
        gradients = jax.jit(jax.value_and_grad(loss))(params)
        return gradients, jax.jit(lambda p: decoding.prefill(decoding.decoding_layout(p, TINY), TINY, *args[:2])[0])(
            params
        )

    products = lambda: str(jax.make_jaxpr(lambda p: loss(p))(params)).count("dot_general")
    whole, count = everything(), products()
    monkeypatch.setattr(decoder, "QUERIES", 4)
    blocks = everything()
    assert products() > 2 * count, "the blocks are there"
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
    jax.tree.map(compare, blocks, whole)


def test_rows_are_spread_over_a_mesh_and_a_device_in_shard_map_is_alone():
    mesh, masks = make_mesh((2, 4, 1)), []

    def one(x):
        masks.append(row_shards())
        return x

    with jax.set_mesh(mesh):
        jax.jit(one)(jnp.ones(8))
        jax.jit(jax.shard_map(one, in_specs=jax.P("data"), out_specs=jax.P("data")))(jnp.ones(8))
    assert masks == [8, 1] and row_shards() == 1


def test_bfloat16_runs_near_float32():
    batch, params = random_batch(1, p=2, g=3, t=11, sampled=True), random_params(TINY)
    half, full = (run(params, tiny(compute_dtype=dtype), batch) for dtype in ("bfloat16", "float32"))
    assert half.completion.dtype == jnp.bfloat16 and full.completion.dtype == jnp.float32
    own = batch.segment != PAD
    a, b = (dense_log_probs(np.asarray(x.completion, np.float32), params)[own] for x in (half, full))
    # 8 bits of mantissa over two layers; entries far from 0 differ in proportion.
    assert np.abs(a - b).mean() < 0.05 and np.abs(a - b).max() < 0.5


def test_llama3_rope_frequencies():
    # The published setting of Llama 3.2: factor 32, from 1 to 4 periods over 8192 positions.
    cfg = tiny(head_dim=64, rope_theta=500_000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    expected = reference_frequencies(cfg)
    plain = reference_frequencies(dataclasses.replace(cfg, rope_scaling=None))
    stretched = plain / expected
    assert stretched[0] == 1 and stretched[-1] == pytest.approx(32)
    assert ((stretched > 1.01) & (stretched < 31)).any()
    position = np.array([0, 1, 100])
    cos, sin = views.rope_tables(cfg, position)
    # Angles up to 100 in float32.
    np.testing.assert_allclose(cos, np.cos(position[:, None] * expected), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(position[:, None] * expected), atol=2e-5)


def test_init_follows_the_specs():
    cfg = tiny(width=64, mlp=96, vocab_size=200, qkv_bias=True, qk_norm=True, tied=False, layers=3)
    params = jax.jit(lambda key: architecture.init(key, cfg))(jax.random.key(0))
    specs = param_specs(cfg)
    is_spec = lambda x: isinstance(x, architecture.Spec)
    assert jax.tree.map(lambda s: s.shape, specs, is_leaf=is_spec) == jax.tree.map(jnp.shape, params)
    assert architecture.count(params) == sum(np.prod(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))
    layers = params["layers"]
    for name, std in (("q", 0.02), ("gate", 0.02), ("o", 0.02 / 6**0.5), ("down", 0.02 / 6**0.5)):
        assert np.std(layers[name]) == pytest.approx(std, rel=0.1)
        # Layers and matrices are drawn separately.
        assert not np.array_equal(layers[name][0], layers[name][1])
    assert not np.array_equal(layers["k"], layers["v"])
    assert (layers["attn_norm"] == 1).all() and (layers["q_bias"] == 0).all() and (layers["q_norm"] == 1).all()


def test_the_docstring_call_gives_plain_log_probs():
    params = random_params(TINY)
    rng = np.random.default_rng(6)
    ids, lengths = rng.integers(0, 24, (3, 8)), np.array([8, 5, 2])

    @jax.jit
    def log_probs(params):
        hidden = forward(params, TINY, ids, lengths).prompt
        stats = token_stats(hidden[:, :-1], head_matrix(params), ids[:, 1:], chunk=512)
        return jnp.where(jnp.arange(1, ids.shape[1]) < lengths[:, None], stats.log_prob, 0.0)

    logp = log_probs(params)
    assert logp.shape == (3, 7)
    for row, n, got in zip(ids, lengths, logp, strict=True):
        expected = log_softmax(by_hand(params, TINY, row[:n]))[np.arange(n - 1), row[1:n]]
        np.testing.assert_allclose(got[: n - 1], expected, atol=1e-4)
        assert (got[n - 1 :] == 0).all()


def test_the_gradient_of_a_product_contracts_one_axis_and_copies_no_operand():
    x = jnp.ones((2, 3, 16, TINY.width))
    w = {name: jnp.ones(shape) for name, shape in (("gate", (TINY.width, 97)), ("up", (TINY.width, 97)))}
    w["down"] = jnp.ones((97, TINY.width))
    lowered = jax.jit(jax.grad(lambda w: decoder.mlp(x, w, TINY).sum())).lower(w)
    text = lowered.compile(compiler_options=OPTIMIZED).as_text()
    assert "f32[96,97]" in text and "f32[97,96]" not in text
