"""The jitted step: every mode's loss against plain sequences, micro-batches, devices, metrics, one golden run."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_likelihood.learner.measures import metrics
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import (
    gradients,
    init_reference,
    init_state,
    make_score,
    make_step,
    prompts_per_forward,
    state_shardings,
)
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model import head
from rl_likelihood.model.decoder import forward, init
from rl_likelihood.planning import hlo
from rl_likelihood.planning.aot import count_flops
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG
from rl_likelihood.task import using
from tests.small import (
    TINY,
    branches,
    one_device,
    random_batch,
    random_params,
    reference_log_distributions,
    reference_log_probs,
    rewarded,
    tiny,
)

P, G, S, T = 4, 3, 5, 10
MODEL = tiny(layers=1)
PARAMS, REF = (random_params(MODEL, seed) for seed in (0, 1))
BATCH = random_batch(8, P, G, S, T, sampled=True)
HOST_REWARDS = BATCH.host_rewards["math"]
# Rows behind mask: a group whole, one row out, one left, none.
KEEP = np.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
OLDER = reference_log_probs(PARAMS, MODEL, BATCH, 0.7) + np.random.default_rng(0).normal(size=BATCH.segment.shape)
STALE = BATCH.replace(keep=KEEP, sampler_logp=OLDER.astype(np.float32))


# ------------------------------------------------------------------ every mode against plain sequences


def plain_log_probs(params, batch, temperature=1.0):
    """Log-probs [P, G, T] for autodiff: every branch of every row as a right-padded sequence of its own."""
    ids, length = np.zeros((P * G * 2, S + T), np.int32), []
    row, column = np.zeros((2, P, G, T), int)
    for i, j in np.ndindex(P, G):
        for branch, (plain, at) in enumerate(branches(batch, i, j)):
            own = batch.segment[i, j, at] == SAMPLED if branch else np.full(len(at), True)
            row[i, j, at[own]] = len(length)
            column[i, j, at[own]] = (np.arange(len(at)) + batch.prompt_length[i] - 1)[own]
            ids[len(length), : len(plain)] = plain
            length.append(len(plain))
    hidden = forward(params, MODEL, ids, np.array(length)).prompt[row, column]
    scale = np.where(np.isin(batch.segment, (CHAIN, SAMPLED)), temperature, 1.0)[..., None]
    table = jax.nn.log_softmax(hidden @ params["embed"].T / scale)
    logp = jnp.take_along_axis(table, batch.completion[..., None], -1)[..., 0]
    return jnp.where(batch.segment == PAD, 0, logp)


def of(batch, logp, kind):
    """Sum over the row's tokens of one segment."""
    return jnp.where(batch.segment == kind, logp, 0).sum(-1)


def rloo(reward, chain, answer, keep=BATCH.keep):
    """Loss of the textbook estimator: rows against the mean of the others, and the mean reward, over prompts."""
    total = 0.0
    for i in range(P):
        rows = np.flatnonzero(keep[i])
        for r in rows:
            others = rows[rows != r]
            a = reward[i, r] - reward[i, others].mean() if len(others) else 0.0
            total += (jax.lax.stop_gradient(a) * chain[i, r] + answer[i, r]) / len(rows)
    return -total / P


def expect_log_prob(params):
    logp = plain_log_probs(params, BATCH)
    reward = jnp.where(BATCH.scored, logp, 0).sum(-1)
    return rloo(reward, of(BATCH, logp, CHAIN), reward)


def expect_base_rl(params):
    logp = plain_log_probs(params, BATCH)
    # f(group) is the mean reward here too: a constant, without gradient.
    return rloo(HOST_REWARDS, of(BATCH, logp, CHAIN) + of(BATCH, logp, SAMPLED), HOST_REWARDS)


def expect_drop(params):
    logp = plain_log_probs(params, BATCH)
    reward = jnp.exp(jnp.where(BATCH.scored, logp, 0).sum(-1))
    return rloo(reward, of(BATCH, logp, CHAIN), reward, keep=~BATCH.truncated)


def expect_floor(params):
    logp = plain_log_probs(params, BATCH)
    n = BATCH.scored.sum(-1)
    reward = jnp.where(BATCH.truncated, -7.0, jnp.where(BATCH.scored, logp, 0).sum(-1) / n)
    return rloo(reward, of(BATCH, logp, CHAIN), reward)


def expect_kl(params):
    """jepo, rows divided by their length, 0.3 k3 against another model."""
    logp, ref = plain_log_probs(params, BATCH), plain_log_probs(REF, BATCH)
    total = jnp.where(BATCH.scored, logp, 0).sum(-1)
    chain, length = BATCH.segment == CHAIN, (BATCH.segment == CHAIN).sum(-1)
    bound = jax.nn.logsumexp(total, -1) - np.log(G)
    policy = 0
    for i in range(G):
        without = jax.nn.logsumexp(jnp.delete(total, i, axis=1), -1) - np.log(G - 1)
        policy += jax.lax.stop_gradient(bound - without) * jnp.where(chain, logp, 0).sum(-1)[:, i] / length[:, i]
    k3 = jnp.where(chain, jnp.exp(ref - logp) - 1 - (ref - logp), 0).sum(-1) / length
    return -(policy + bound).mean() + 0.3 * k3.mean()


def expect_stale(params):
    """avg_prob, sampled at 0.7 by older weights, ratios cut at 2, one mean over all tokens, no answer term."""
    logp = plain_log_probs(params, STALE, 0.7)
    reward = jnp.where(STALE.scored, jnp.exp(logp), 0).sum(-1) / STALE.scored.sum(-1)
    chain = STALE.segment == CHAIN
    weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(logp - STALE.sampler_logp), 2.0))
    rows = jnp.where(chain, weight * logp, 0).sum(-1)
    total = 0
    for i, j in zip(*np.nonzero(KEEP & (KEEP.sum(-1, keepdims=True) > 1)), strict=True):
        others = KEEP[i] & (np.arange(G) != j)
        total += jax.lax.stop_gradient(reward[i, j] - reward[i, others].mean()) * rows[i, j]
    return -total / (chain & KEEP[..., None]).sum()


def expect_sft(params):
    """The first row of each group as given: log-prob of chain and answer together, per token."""
    logp = plain_log_probs(params, BATCH)[:, 0]
    given = BATCH.scored[:, 0] | (BATCH.segment[:, 0] == CHAIN)
    return -(jnp.where(given, logp, 0).sum(-1) / given.sum(-1)).mean()


FIRST = jax.tree.map(lambda x: x[:, :1] if x.ndim > 1 and x.shape[1] == G else x, BATCH)
MODES = {
    "log_prob": (expect_log_prob, BATCH, rewarded("log_prob")),
    "base_rl": (expect_base_rl, BATCH, rewarded("math", policy_span="response")),
    "drop": (expect_drop, BATCH, rewarded("prob", truncated="drop")),
    "floor": (expect_floor, BATCH, rewarded("avg_log_prob", truncated="floor", floor=-7.0)),
    "kl": (expect_kl, BATCH, rewarded("jepo", loss=LossConfig(aggregation="seq_mean", kl="k3", kl_coef=0.3))),
    "stale": (
        expect_stale,
        STALE,
        rewarded("avg_prob", loss=LossConfig(0.0, aggregation="token_mean", ratio="token"), temperature=0.7),
    ),
    "sft": (expect_sft, FIRST, rewarded("avg_log_prob", loss=LossConfig(policy_term=0.0), supervise_chain=True)),
}


@functools.cache
def expected():
    """Loss and gradient of each mode, in one program."""
    losses = lambda params: jnp.stack([f(params) for f, *_ in MODES.values()])
    value, grads = jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(PARAMS)
    return {name: (float(value[i]), jax.tree.map(lambda x, i=i: x[i], grads)) for i, name in enumerate(MODES)}


step_gradients = jax.jit(gradients, static_argnums=(3, 4))


def cfg_of(name, **changes):
    return dataclasses.replace(MODES[name][2], **{"two_branches": True, "head_chunk": 20, **changes})


@pytest.mark.parametrize("name", MODES)
def test_loss_and_gradient_are_those_of_plain_sequences(name):
    _, batch, _ = MODES[name]
    cfg = cfg_of(name)
    grads, sums, per_row = step_gradients(PARAMS, (REF if name == "kl" else None, None), batch, MODEL, cfg)
    terms = cfg.loss.policy_term * sums["loss/policy"] + cfg.loss.answer_term * sums["loss/answer"]
    loss, slope = expected()[name]
    assert float(terms + cfg.loss.kl_coef * sums["loss/kl"]) == pytest.approx(loss, rel=2e-5, abs=1e-6)
    size = max(float(np.abs(x).max()) for x in jax.tree.leaves(slope))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * size), grads, slope)


def test_the_batch_of_these_tests_holds_every_case():
    assert all((BATCH.segment == kind).any() for kind in (PAD, CHAIN, TAG, REFERENCE, SAMPLED))
    rows = (~BATCH.truncated).sum(-1)
    assert set(rows) >= {1, 2}, "drop leaves a row alone, and some rows, in a group"
    assert (BATCH.prompt_length < S).any() and not np.array_equal(BATCH.scored, BATCH.segment == REFERENCE)


def test_what_a_dropped_row_holds_changes_nothing():
    cfg = cfg_of("stale")
    out = (~KEEP)[..., None]
    other = STALE.replace(
        completion=np.where(out, (STALE.completion + 3) % 24, STALE.completion),
        sampler_logp=np.where(out, -99.0, STALE.sampler_logp),
        host_rewards={"math": np.where(KEEP, HOST_REWARDS, 1e6).astype(np.float32)},
    )
    a, b = (step_gradients(PARAMS, (None, None), batch, MODEL, cfg) for batch in (STALE, other))
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert (np.asarray(a[2]["advantage"])[~KEEP] == 0).all()


def test_a_group_with_nothing_kept_is_as_if_it_were_not_in_the_batch():
    """Neither the loss nor a mean over groups counts it."""
    three = jax.tree.map(lambda x: x[:3], STALE)
    for name in ("log_prob", "stale"):
        a, b = (step_gradients(PARAMS, (None, None), batch, MODEL, cfg_of(name)) for batch in (STALE, three))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a[0], b[0])
        got, expected = (metrics(out[1], out[2], batch) for out, batch in ((a, STALE), (b, three)))
        assert not KEEP[3].any() and float(expected["reward/std"]) > 0.01
        for key in ("reward/std", "reward/jepo", "reward/mean", "reward/zero_std_groups", "loss/policy", "loss/answer"):
            assert float(got[key]) == pytest.approx(float(expected[key]), rel=1e-4), key


def test_the_floor_is_in_the_trained_reward_and_nowhere_else():
    _, _, rows = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg_of("floor"))
    without = dataclasses.replace(cfg_of("floor").reward, truncated="force_close")
    _, _, plain = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg_of("floor", reward=without))
    assert BATCH.truncated.any() and (np.asarray(rows["reward"])[BATCH.truncated] == -7).all()
    np.testing.assert_array_equal(rows["reward/avg_log_prob"], plain["reward/avg_log_prob"])
    np.testing.assert_array_equal(rows["reward/log_prob"], plain["reward/log_prob"])


def test_kl_of_a_model_with_itself_is_zero():
    _, batch, _ = MODES["kl"]
    grads, sums, _ = step_gradients(PARAMS, (PARAMS, None), batch, MODEL, cfg_of("kl"))
    assert abs(float(sums["loss/kl"])) < 1e-6
    without = cfg_of("kl", loss=LossConfig(aggregation="seq_mean"))
    grads2, sums2, _ = step_gradients(PARAMS, (None, None), batch, MODEL, without)
    assert sums2["loss/kl"] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, grads2)


def test_micro_batches_are_one_batch():
    # Dropped and truncated rows, token counts and a reference model: every global count is at stake.
    batch = STALE.replace(keep=KEEP[[0, 0, 1, 2]])
    loss = LossConfig(aggregation="token_mean", ratio="token", kl="k3", kl_coef=0.1)
    one, two = (
        step_gradients(PARAMS, (REF, None), batch, MODEL, cfg_of("drop", loss=loss, micro_batch_prompts=n))
        for n in (0, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


def test_left_to_itself_a_cpu_takes_no_more_prompts_than_pay():
    batch = lambda p, g, t: random_batch(6, p=p, g=g, s=4, t=t)
    assert prompts_per_forward(batch(6, 2, 100), StepConfig()) == 3, "600 tokens; 6 prompts have 1,200"
    assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 1
    assert prompts_per_forward(batch(2, 2, 600), StepConfig()) == 1, "a prompt is not divided"
    assert prompts_per_forward(batch(6, 2, 20), StepConfig()) == 6
    assert prompts_per_forward(batch(7, 4, 60), StepConfig()) == 7, "240 tokens are few, 1,680 not too many"
    assert prompts_per_forward(batch(7, 4, 120), StepConfig()) == 1, "3,360 are"
    assert prompts_per_forward(batch(6, 2, 300), StepConfig(micro_batch_prompts=2)) == 2
    with using(make_mesh((2, 2, 2))):
        assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 6
    tpu = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    with jax.sharding.use_abstract_mesh(one_device().abstract_mesh.update(abstract_device=tpu)):
        assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 6


def test_everything_but_the_network_is_float32():
    half = tiny(layers=1, compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda p: gradients(p, (p, None), BATCH, half, cfg_of("kl")), PARAMS)
    for path, leaf in jax.tree.leaves_with_path(shapes):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_), (path, leaf.dtype)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes[0]))


def test_score_gives_the_rows_of_one_forward_however_it_is_split():
    one, two = (make_score(MODEL, cfg_of("stale", micro_batch_prompts=n))(PARAMS, STALE) for n in (0, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
    own = STALE.segment != PAD
    exact = reference_log_probs(PARAMS, MODEL, STALE, 0.7)
    np.testing.assert_allclose(np.asarray(one.stats.log_prob)[own], exact[own], atol=1e-4)
    np.testing.assert_array_equal(one.chain, STALE.segment == CHAIN)
    np.testing.assert_array_equal(one.sampled, np.isin(STALE.segment, (CHAIN, SAMPLED)))
    np.testing.assert_array_equal(one.scored, STALE.scored)


def test_every_process_gets_all_scores_of_a_mesh():
    mesh = make_mesh((2, 2, 2))
    cfg = StepConfig(two_branches=True, micro_batch_prompts=2)
    one = make_score(TINY, cfg)(random_params(TINY), STALE)
    with using(mesh):
        spread = make_score(TINY, cfg, mesh)(random_params(TINY), STALE)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(spread))
    own = STALE.segment != PAD
    np.testing.assert_allclose(np.asarray(spread.stats.log_prob)[own], np.asarray(one.stats.log_prob)[own], atol=2e-5)


def test_the_vocabulary_s_matrix_moves_between_devices_as_often_in_many_blocks_as_in_one():
    mesh, optimizer = make_mesh((1, 4, 2)), make_optimizer(OptimizerConfig())
    model = tiny(layers=1, vocab_size=1024)
    sent = []
    for chunk, blocks in ((1000, 1), (8, 4)):
        cfg = dataclasses.replace(cfg_of("kl"), head_chunk=chunk)
        state = jax.eval_shape(lambda p, cfg=cfg: init_state(p, optimizer, cfg), random_params(model))
        with using(mesh):
            assert -(-512 // head._block(512, P * G * T, chunk)) == blocks
            text = make_step(model, cfg, optimizer, mesh, BATCH).lower(state, state.params, BATCH).compile().as_text()
        sent.append({(c.kind, c.axes): c.sent for c in hlo.collectives(text, mesh)})
    of_kind = [sum(n for (kind, axes), n in x.items() if kind == "all-gather" and "fsdp" in axes) for x in sent]
    assert of_kind[0] == of_kind[1] > 0
    # Sums over the vocabulary's parts are made block by block, of a number a token; never a block of the matrix.
    assert sum(sent[1].values()) < 1.5 * sum(sent[0].values()), sent


# ------------------------------------------------------------------ the whole step: devices, metrics, golden numbers

# eps keeps AdamW smooth where a gradient is almost 0: without it rounding decides the sign of an update.
OPTIMIZER = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=2, total_steps=10, eps=1e-3, weight_decay=0.1))
LOSS = LossConfig(kl="k2", kl_coef=0.1)
CFG = rewarded("jepo", loss=LOSS, two_branches=True, micro_batch_prompts=4, head_chunk=32)
BATCHES = [random_batch(20 + i, p=8, g=2, s=S, t=T, sampled=True) for i in range(3)]


@functools.cache
def trained(shape, scan=True):
    """Three steps on a mesh of this shape: metrics of each, per-row values of the last, parameters after each."""
    model = dataclasses.replace(TINY, scan_layers=scan)
    mesh = one_device() if shape is None else make_mesh(shape, jax.devices()[: math.prod(shape)])
    placed = state_shardings(mesh, TINY, OPTIMIZER, CFG)
    # Made by a program, and copied before numpy looks at it: a buffer that numpy shares cannot be donated.
    state = jax.jit(lambda params: init_state(params, OPTIMIZER, CFG), out_shardings=placed)(random_params(TINY))
    ref = init_reference(jax.device_put(random_params(TINY, 1), placed.params), mesh, model, CFG)
    step = make_step(model, CFG, OPTIMIZER, mesh, BATCHES[0])
    history, params = [], []
    for batch in BATCHES:
        before = state
        with using(None if shape is None else mesh):  # as a run does
            state, out, per_row = step(state, ref, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params)), "the old state is donated"
        jax.tree.map(lambda x, at: x.sharding.is_equivalent_to(at, x.ndim) or pytest.fail(str(at)), state, placed)
        history.append(jax.device_get(out))
        params.append(jax.device_get(jax.tree.map(jnp.copy, state.params)))
    assert int(state.step) == 3
    return history, jax.device_get(per_row), params


# groups: the prompts of a micro-batch over data, the rows of each over fsdp. tokens: those of each prompt over fsdp.
# context: the tokens of each row, padded because 4 does not divide them. all: fsdp x context x tensor.
MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "mixed": (2, 2, 2),
    "groups": (4, 2, 1),
    "tokens": (1, S, 1),
    "context": (1, 2, 4, 1),
    "all": (1, 2, 2, 2),
}


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_devices_are_one(shape):
    one, eight = trained(None), trained(shape)
    # Metrics to float32 rounding; parameters of order 1 after three updates of 1e-2.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), one[:2], eight[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), one[2], eight[2])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one[2][-1], random_params(TINY))
    assert min(jax.tree.leaves(moved)) > 1e-3, "every parameter learned"


@pytest.mark.parametrize("shape", [None, MESHES["mixed"]], ids=["one", "mixed"])
def test_unrolled_layers_and_an_unstacked_reference_model_are_scanned_ones(shape):
    scanned, unrolled = trained(None), trained(shape, scan=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), scanned[:2], unrolled[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), scanned[2], unrolled[2])


@pytest.mark.parametrize(
    "name, local", [("data", (2, 16, 16)), ("fsdp", (2, 2, 16)), ("tensor", (2, 16, 2)), ("mixed", (2, 8, 8))]
)
def test_a_mesh_splits_parameters_and_moments_alike(name, local):
    placed = state_shardings(make_mesh(MESHES[name]), TINY, OPTIMIZER, CFG)
    arrays = [placed.params["layers"]["gate"]]  # [L, D, F]: width over fsdp, mlp over tensor
    arrays += [
        x["layers"]["gate"]
        for x in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: isinstance(x, dict))
        if isinstance(x, dict)
    ]
    assert len(arrays) == 3 and {x.shard_shape((2, 16, 16)) for x in arrays} == {local}


def test_metrics_mean_what_their_names_say():
    batch, params = BATCHES[0], random_params(TINY)
    out, names = trained(None)[0][0], set(trained(None)[0][0])
    assert names >= {
        "reward/mean",
        "reward/std",
        "advantage/abs_mean",
        "chain/length",
        "chain/truncated",
        "answer/log_prob",
        "answer/perplexity",
        "loss/policy",
        "loss/answer",
        "loss/kl",
        "grad/norm",
        "policy/entropy",
        "policy/self_certainty",
        "ratio/mean",
        "ratio/max",
        "ratio/kl",
        *(f"reward/{name}" for name in OBJECTIVES),
    }
    assert all(np.ndim(x) == 0 and np.isfinite(x) for x in out.values())

    table = reference_log_distributions(params, TINY, batch)
    logp = np.take_along_axis(table, batch.completion[..., None], -1)[..., 0]
    total, n = np.where(batch.scored, logp, 0).sum(-1), batch.scored.sum(-1)
    bound = np.log(np.exp(total).mean(-1))
    difference = bound[:, None] - total[:, ::-1]  # of two rows, without i is the other's
    chain, sampled = batch.segment == CHAIN, np.isin(batch.segment, (CHAIN, SAMPLED))
    ratio = np.exp(logp - batch.sampler_logp)[chain]
    kl = reference_log_probs(random_params(TINY, 1), TINY, batch)
    kl = np.where(chain, (logp - kl) ** 2 / 2, 0).sum(-1).mean()
    expected = {
        "reward/log_prob": total.mean(),
        "reward/avg_log_prob": (total / n).mean(),
        "reward/prob": np.exp(total).mean(),
        "reward/avg_prob": (np.where(batch.scored, np.exp(logp), 0).sum(-1) / n).mean(),
        "reward/geo_mean_prob": np.exp(total / n).mean(),
        "reward/jepo": bound.mean(),
        "reward/mean": total.mean(),
        "reward/std": total.std(-1, ddof=1).mean(),
        "advantage/abs_mean": np.abs(2 * difference).mean(),
        "answer/log_prob": total.mean(),
        "answer/perplexity": np.exp(-(total / n).mean()),
        "chain/length": (chain | (batch.segment == TAG)).sum(-1).mean(),
        "chain/truncated": batch.truncated.mean(),
        "loss/policy": -(difference * np.where(chain, logp, 0).sum(-1)).sum(-1).mean(),
        "loss/answer": -bound.mean(),
        "loss/kl": kl,
        "policy/entropy": -(np.exp(table) * table).sum(-1)[sampled].mean(),
        "policy/self_certainty": (-table.mean(-1) - np.log(24))[sampled].mean(),
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "ratio/kl": (ratio - 1 - np.log(ratio)).mean(),
        "ratio/ess": ratio.sum() ** 2 / (ratio.size * (ratio**2).sum()),
    }
    for name, x in expected.items():
        assert out[name] == pytest.approx(x, rel=3e-4, abs=1e-5), name


def test_the_step_applies_the_optimizer_to_the_gradient_and_reports_its_norm():
    cfg = cfg_of("log_prob")
    grads, *_ = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg)
    updates, _ = jax.jit(OPTIMIZER.update)(grads, OPTIMIZER.init(PARAMS), PARAMS)
    state = jax.tree.map(jnp.array, init_state(PARAMS, OPTIMIZER, cfg))
    after, out, _ = make_step(MODEL, cfg, OPTIMIZER, one_device(), BATCH)(state, None, BATCH)
    norm = float(optax.tree.norm(grads))
    assert norm > 1.0, "clipping acts, and the norm is the one before it"
    assert float(out["grad/norm"]) == pytest.approx(norm, rel=1e-5)
    expected = optax.apply_updates(PARAMS, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)


GOLDEN = Path(__file__).with_name("golden_step.json")
RENEW = "python -m tests.learner.test_step"


def golden():
    """Losses of three steps, and the root mean square of some parameters' changes over each."""
    history, _, params = trained(None)
    params = [random_params(TINY), *params]
    picks = {
        "embed": lambda p: p["embed"],
        "final_norm": lambda p: p["final_norm"],
        "layers/q": lambda p: p["layers"]["q"],
        "layers/down": lambda p: p["layers"]["down"],
    }
    steps = []
    for out, before, after in zip(history, params, params[1:], strict=False):
        row = {name: float(out[name]) for name in ("loss/policy", "loss/answer", "loss/kl", "grad/norm", "reward/mean")}
        row |= {f"update_rms/{name}": float(np.sqrt(((f(after) - f(before)) ** 2).mean())) for name, f in picks.items()}
        steps.append(row)
    return steps


def test_golden_step():
    for i, (got, golden_row) in enumerate(zip(golden(), json.loads(GOLDEN.read_text()), strict=True)):
        assert got.keys() == golden_row.keys()
        for name, x in golden_row.items():
            assert got[name] == pytest.approx(x, rel=1e-3, abs=1e-6), (
                f"step {i}: {name} was {x} and is {got[name]}: the same parameters, batch and settings train "
                f"differently now. If that is what your change is for, renew the numbers with `{RENEW}`, "
                "and say why in the commit."
            )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")


def test_unstacked_layers_have_the_gradients_of_layers_in_a_stack():
    """scan_layers=False cuts the stack before the loop over micro-batches, and puts gradients together after it."""
    cfg, looped = rewarded("log_prob", micro_batch_prompts=2, two_branches=True), tiny(layers=3)
    params = random_params(looped, 4)
    both = [gradients(params, (None, None), BATCH, tiny(layers=3, scan_layers=scan), cfg)[0] for scan in (True, False)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *both)


# ------------------------------------------------------------------ what the programs cost


def test_the_state_is_given_away_and_not_held_twice():
    cfg, optimizer, mesh = rewarded("log_prob"), make_optimizer(OptimizerConfig()), one_device()
    big = tiny(layers=2, width=64, mlp=256)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), random_params(big))
    compiled = make_step(big, cfg, optimizer, mesh, BATCH).lower(state, None, BATCH).compile()
    memory = compiled.memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * held
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 0.1 * held


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("scan, micro, most", [(True, 0, 1.75), (False, 0, 1.75), (True, 1, 2.6), (False, 1, 2.6)])
def test_beside_the_state_a_step_holds_one_gradient_and_in_micro_batches_one_tree_more(scan, micro, most, kl):
    """Of a model so large that a batch's own values count for little: in copies of its parameters. A reference model
    is beside them as it is given, and not copied."""
    model = tiny(layers=8, width=256, mlp=1024, scan_layers=scan)
    loss = LossConfig(kl="k3", kl_coef=kl) if kl else LossConfig()
    cfg, batch = rewarded("log_prob", loss=loss, micro_batch_prompts=micro), random_batch(0, 2, 2, 4, 10)
    optimizer = make_optimizer(OptimizerConfig())
    params = jax.eval_shape(lambda key: init(key, model), jax.random.key(0))
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), params)
    ref = jax.eval_shape(lambda p: init_reference(p, one_device(), model, cfg), params)
    memory = make_step(model, cfg, optimizer, one_device(), batch).lower(state, ref, batch).compile().memory_analysis()
    one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    assert memory.temp_size_in_bytes < most * one, memory.temp_size_in_bytes / one


def test_no_prompt_token_meets_the_vocabulary():
    def operations(vocab, s):
        cfg, batch = tiny(vocab_size=vocab), random_batch(1, P, G, s, T)
        traced = make_score(cfg, StepConfig(head_chunk=P * G * T)).trace(random_params(cfg), batch)
        return count_flops(traced.jaxpr.jaxpr)

    width = tiny().width
    scored = 2 * width * P * G * T
    for s in (5, 40):
        # The mean row of the head is one more row a token, whatever the vocabulary.
        assert operations(48, s) - operations(24, s) == 24 * scored
