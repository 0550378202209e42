"""Sampling: what is drawn, from which distribution, when a row stops, and how rollouts are put together as ids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from rl_likelihood.learner.batching import to_batch
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.head import token_stats
from rl_likelihood.sampler import decode
from rl_likelihood.sampler.decode import SamplerConfig, sample
from rl_likelihood.sampler.draw import Ends, Request, choose, draw, invert_cumulative
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, ChainFormat, Prompts
from tests.small import TINY, log_softmax, random_params, reference_logits, tiny

# Ids 0 to 19 spell letters, some several; 20 to 23 are special. The tags are rare pairs of letters.
VOCAB = tuple(b"a b c d e f g h i j k l m n o p ab q< <a aq".split()) + (b"",) * 4
PAD_ID, EOS = 20, 21
FORMAT = ChainFormat(
    think_open="gh",
    think_close="cd",
    answer_open="ab",
    answer_close="ef",
    close_think_ids=(2, 3, 0, 1),
    open_answer_ids=(0, 1),
    eos_ids=(EOS,),
    pad_id=PAD_ID,
    vocab_bytes=VOCAB,
)
NEVER = dataclasses.replace(FORMAT, answer_open="zz", answer_close="zz", think_close="zz", eos_ids=())
PARAMS = random_params(TINY)
KEY = jax.random.key(0)


def prompts(p, s=5, seed=0):
    rng = np.random.default_rng(seed)
    return Prompts(
        tokens=rng.integers(0, 20, (p, s)).astype(np.int32),
        length=rng.integers(1, s + 1, p).astype(np.int32),
        answer=rng.integers(0, 20, (p, 3)).astype(np.int32),
        answer_length=rng.integers(1, 4, p).astype(np.int32),
        answer_scored=np.ones((p, 3), bool),
        uid=np.arange(100, 100 + p),
    )


def test_the_sampler_s_weights_share_no_buffer_with_the_learner_s():
    # The learner donates its own while the sampler still reads these.
    params = jax.tree.map(jnp.array, PARAMS)
    own = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
    copies = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(decode.prepare(params, TINY))}
    assert len(own) == len(jax.tree.leaves(params)) and not own & copies


def rows_of(p, index):
    return jax.tree.map(lambda x: x[index], p)


# ------------------------------------------------------------------ the draw


def surprise(counts, expected):
    """Chance of counts at least this far from expectation; rare cells are pooled."""
    order = np.argsort(expected)
    rare = np.cumsum(expected[order]) < 10
    pool = lambda x: np.append(x[order][~rare], x[order][rare].sum())
    a, b = pool(counts), pool(expected)
    a, b = a[b > 0], b[b > 0]
    return chi2.sf(((a - b) ** 2 / b).sum(), len(b) - 1)


run_draw = jax.jit(draw)


@pytest.mark.parametrize("v", [5, 256, 300, 600])
def test_draws_follow_the_distribution(v):
    rng = np.random.default_rng(v)
    z = (2 * rng.normal(size=v)).astype(np.float32)
    z[rng.random(v) < 0.3] = -np.inf
    n = 20_000
    ids = np.asarray(run_draw(np.broadcast_to(z, (n, v)), rng.random((n, 2)).astype(np.float32)))
    p = np.exp(log_softmax(z.astype(np.float64)))
    counts = np.bincount(ids, minlength=v)
    assert len(counts) == v and (counts[p == 0] == 0).all()
    assert surprise(counts, n * p) > 1e-3
    # And the check sees a distribution that is a tenth of a nat off.
    assert surprise(counts, n * np.exp(log_softmax(1.1 * z.astype(np.float64)))) < 1e-6 or v == 5


def test_uniforms_at_their_edges_give_ids_of_positive_probability():
    last = np.float32(1 - 2**-24)
    rng = np.random.default_rng(0)
    z = (5 * rng.normal(size=(500, 700))).astype(np.float32)
    z[:, :3] = z[:, -3:] = -np.inf  # beside the edges too
    z[rng.random(z.shape) < 0.5] = -np.inf
    z[:, 256:512] = -np.inf  # a whole block
    for u in ([0, 0], [0, last], [last, 0], [last, last]):
        ids = np.asarray(run_draw(z, np.tile(np.float32(u), (500, 1))))
        assert (ids < 700).all() and np.isfinite(z[np.arange(500), ids]).all()
    # The first and the last possible id, exactly.
    possible = [np.flatnonzero(np.isfinite(row)) for row in z]
    np.testing.assert_array_equal(run_draw(z, np.zeros((500, 2), np.float32)), [x[0] for x in possible])
    one = np.full((3, 700), -np.inf, np.float32)
    one[[0, 1, 2], [0, 400, 699]] = [-5.0, 0.0, 3e4]
    for u in (0.0, 0.5, last):
        assert run_draw(one, np.full((3, 2), u, np.float32)).tolist() == [0, 400, 699]


def test_an_index_without_mass_is_never_chosen_even_at_the_steps_of_the_sum():
    # 600 blocks are a vocabulary of 153,600: a cumulative sum that long is computed in parts that round differently.
    rng = np.random.default_rng(1)
    mass = np.exp(3 * rng.normal(size=(40, 600))).astype(np.float32)
    mass[rng.random(mass.shape) < 0.5] = 0
    total = np.asarray(jax.jit(lambda x: jnp.cumsum(x, -1))(mass))
    steps = np.minimum(total / total.max(-1, keepdims=True), 1 - 2**-24).astype(np.float32)
    chosen = np.asarray(jax.jit(invert_cumulative)(np.repeat(mass[:, None], 600, 1), steps))
    assert chosen.min() >= 0 and chosen.max() < 600
    assert (np.take_along_axis(mass, chosen, -1) > 0).all()


# ------------------------------------------------------------------ sampling from a model


@pytest.fixture(scope="module")
def mixed():
    """Four prompts, rows of a group at four temperatures, greedy first; nothing stops them."""
    cfg = SamplerConfig(TINY, NEVER, group_size=4, max_chain=6, temperature=(0.0, 1.0, 0.6, 1.8))
    p = prompts(4)
    return cfg, p, sample(PARAMS, p, KEY, cfg, version=3)


def sampled_ids(rollout, i, j):
    return rollout.completion[i, j][np.isin(rollout.segment[i, j], (CHAIN, SAMPLED))]


def test_sampler_log_probs_are_the_models(mixed):
    cfg, p, rollout = mixed
    assert rollout.version == 3 and rollout.prompts is p
    for i, j in np.ndindex(4, 4):
        ids = sampled_ids(rollout, i, j)
        assert len(ids) == 6
        sequence = np.concatenate([p.tokens[i, : p.length[i]], ids])
        logits = reference_logits(PARAMS, TINY, sequence)[p.length[i] - 1 : -1]
        table = log_softmax(logits / (cfg.temperature[j] or 1.0))
        got = rollout.sampler_logp[i, j]
        np.testing.assert_allclose(got[:6], table[np.arange(6), ids], atol=1e-4)
        assert (got[6:] == 0).all(), "ids that were not sampled have none"
        if cfg.temperature[j] == 0:
            np.testing.assert_array_equal(ids, logits.argmax(-1))


@pytest.mark.parametrize("j, temperature", [(1, 1.0), (2, 0.6), (3, 1.8)])
def test_sampler_log_probs_are_the_learners(mixed, j, temperature):
    _, _, rollout = mixed
    batch = to_batch(rollout)
    stats = make_score(TINY, StepConfig(temperature=temperature, head_chunk=64))(PARAMS, batch).stats
    chain = rollout.segment[:, j] == CHAIN
    learner = np.asarray(stats.log_prob)[:, j][chain]
    np.testing.assert_allclose(rollout.sampler_logp[:, j][chain], learner, atol=1e-4)
    assert chain.sum() == 24


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_in_bfloat16_sampler_and_learner_agree_at_a_temperature_as_they_do_at_1(temperature):
    """For equal states. The two compute their states in different ways, whose rounding differs at any temperature."""
    rng = np.random.default_rng(0)
    hidden = (3 * rng.normal(size=(4, 8, 16))).astype(jnp.bfloat16)
    head = rng.normal(size=(300, 16)).astype(jnp.bfloat16)
    keys = jax.random.split(KEY, (4, 8))
    token, logp = jax.jit(choose)(
        hidden, head, keys, np.zeros((4, 1), np.int32), np.full((1, 8), temperature, np.float32)
    )
    scale = np.full((4, 8), 1 / temperature, np.float32)
    np.testing.assert_allclose(logp, token_stats(hidden, head, token, scale=scale).log_prob, atol=5e-6)
    table = log_softmax(hidden.astype(np.float64) @ head.astype(np.float64).T / temperature)
    np.testing.assert_allclose(logp, np.take_along_axis(table, np.asarray(token)[..., None], -1)[..., 0], atol=5e-6)


def test_a_row_does_not_depend_on_its_neighbours_the_batch_or_the_group(mixed):
    cfg, p, rollout = mixed
    # Alone, in a group of two: the same ids. At another index of the batch, among others: the same ids.
    small = dataclasses.replace(cfg, group_size=2, temperature=cfg.temperature[:2])
    alone = sample(PARAMS, rows_of(p, np.array([2])), KEY, small)
    other_order = sample(PARAMS, rows_of(p, np.array([3, 2, 1, 0])), KEY, cfg)
    for j in range(4):
        for i in range(4):
            np.testing.assert_array_equal(sampled_ids(other_order, 3 - i, j), sampled_ids(rollout, i, j))
        if j < 2:
            np.testing.assert_array_equal(sampled_ids(alone, 0, j), sampled_ids(rollout, 2, j))
            own = alone.segment[0, j] == CHAIN
            np.testing.assert_allclose(
                alone.sampler_logp[0, j][own], rollout.sampler_logp[2, j][rollout.segment[2, j] == CHAIN], atol=1e-5
            )


def test_keys_uids_and_places_in_the_group_make_different_rows(mixed):
    cfg, p, rollout = mixed
    again = sample(PARAMS, p, KEY, cfg)
    np.testing.assert_array_equal(again.completion, rollout.completion)
    np.testing.assert_array_equal(again.sampler_logp, rollout.sampler_logp)
    for other in (sample(PARAMS, p, jax.random.key(1), cfg), sample(PARAMS, p.replace(uid=p.uid + 50), KEY, cfg)):
        same = (other.completion[..., :6] == rollout.completion[..., :6]).all(-1)
        assert same[:, 0].all(), "greedy rows do not depend on keys"
        assert same[:, 1:].mean() < 0.2
    twins = sample(PARAMS, p, KEY, dataclasses.replace(cfg, temperature=1.0)).completion[..., :6]
    assert (twins[:, 0] != twins[:, 1]).any(-1).all()


def test_prepared_weights_are_the_same_weights(mixed):
    cfg, p, rollout = mixed
    weights = decode.prepare(PARAMS, TINY)
    np.testing.assert_array_equal(sample(weights, p, KEY, cfg).completion, rollout.completion)


def test_chains_follow_the_models_distribution():
    model = tiny(vocab_size=5, width=8, layers=1, heads=2, kv_heads=1, mlp=8)
    params = random_params(model, seed=3, scale=0.6)
    fmt = dataclasses.replace(NEVER, vocab_bytes=(b"a",) * 5, close_think_ids=(0,), open_answer_ids=(0,), pad_id=0)
    copies, g = 64, 64
    one = prompts(2, s=3)
    p = jax.tree.map(lambda x: np.repeat(x, copies, 0), one).replace(uid=np.arange(2 * copies))
    p = p.replace(tokens=p.tokens % 5, answer=p.answer % 5)
    cfg = SamplerConfig(model, fmt, group_size=g, max_chain=2, temperature=1.3)
    chains = sample(params, p, KEY, cfg).completion[..., :2].reshape(2, copies * g, 2)
    for i in range(2):
        prompt = p.tokens[i * copies, : p.length[i * copies]]
        table = np.zeros((5, 5))
        for first in range(5):
            logits = reference_logits(params, model, np.append(prompt, first))[len(prompt) - 1 :]
            logp = log_softmax(logits / 1.3)
            table[first] = np.exp(logp[0, first] + logp[1])
        counts = np.zeros((5, 5))
        np.add.at(counts, tuple(chains[i].T), 1)
        assert table.sum() == pytest.approx(1) and counts.sum() == copies * g
        assert surprise(counts.ravel(), copies * g * table.ravel()) > 1e-3
        assert surprise(counts.ravel(), copies * g * table.T.ravel()) < 1e-6, "the check sees the order of ids"


# ------------------------------------------------------------------ stopping and splicing


def text_search(ids, pattern):
    """Number of ids up to the one that completes the pattern; -1 without one. Special ids break it."""
    text = b""
    for n, token in enumerate(ids, 1):
        text = text + VOCAB[token] if VOCAB[token] else b""
        if pattern.encode() in text:
            return n
    return -1


@pytest.mark.parametrize("answer_room", [0, 5])
def test_rows_stop_where_the_text_says(answer_room):
    # The same draws with and without stopping: a stopped row is the free row cut where a search of its text says.
    p = prompts(6, seed=1)
    cfg = SamplerConfig(TINY, FORMAT, group_size=8, max_chain=10, max_sampled_answer=answer_room, temperature=1.6)
    rollout = sample(PARAMS, p, KEY, cfg)
    never = dataclasses.replace(cfg, chain_format=NEVER, max_chain=10 + answer_room, max_sampled_answer=0)
    free = sample(PARAMS, p, KEY, never)
    ends = set()
    for i, j in np.ndindex(6, 8):
        full = sampled_ids(free, i, j)
        eos = np.append(np.flatnonzero(full == EOS) + 1, len(full))[0]
        closed = text_search(full, "ef" if answer_room else "ab")
        n = min(eos, closed) if closed > 0 else eos
        opened = text_search(full[:n], "ab")
        truncated = not 0 < opened <= 10
        assert rollout.truncated[i, j] == truncated
        np.testing.assert_array_equal(sampled_ids(rollout, i, j), full[: min(n, 10) if truncated else n])
        assert (rollout.segment[i, j] == SAMPLED).sum() == (0 if truncated else n - opened)
        ends.add("text" if n == closed else "eos" if full[n - 1] == EOS else "length")
    assert ends == {"text", "eos", "length"} and not rollout.truncated.all()
    if answer_room:
        assert (rollout.segment == SAMPLED).any()
        stats = make_score(TINY, StepConfig(two_branches=True, temperature=1.6))(PARAMS, to_batch(rollout)).stats
        sampled = np.isin(rollout.segment, (CHAIN, SAMPLED))
        np.testing.assert_allclose(rollout.sampler_logp[sampled], np.asarray(stats.log_prob)[sampled], atol=1e-4)


def test_the_loop_ends_when_all_rows_have():
    # Every id ends a row, so none of the 2,000 steps after the first is made.
    p = prompts(2)
    ends = Ends(np.zeros((24, 2), np.int8), np.arange(24, dtype=np.int32))
    request = Request(
        p.tokens, p.length, p.uid, KEY, np.ones(3, np.float32), ends, pad_id=np.int32(PAD_ID), first_chain=np.int32(0)
    )
    ids, logp, length = map(np.asarray, decode.generate(decode.prepare(PARAMS, TINY), TINY, request, 2_000))
    assert (length == 1).all() and ids.shape == (2, 3, 2_000)
    assert (ids[..., 1:] == PAD_ID).all() and (logp[..., 1:] == 0).all() and (logp[..., 0] < 0).all()


def test_every_sampled_id_is_in_the_rollout_as_it_was_sampled():
    p = prompts(6, seed=1)
    cfg = SamplerConfig(TINY, FORMAT, group_size=8, max_chain=12, temperature=1.6)
    ids, logp, length = decode.sample_ids(decode.prepare(PARAMS, TINY), p, KEY, cfg, FORMAT.answer_open, 12)
    rollout = sample(PARAMS, p, KEY, cfg)
    for i, j in np.ndindex(6, 8):
        n = length[i, j]
        chain = rollout.segment[i, j] == CHAIN
        np.testing.assert_array_equal(rollout.completion[i, j][chain], ids[i, j, :n])
        np.testing.assert_array_equal(rollout.sampler_logp[i, j][chain], logp[i, j, :n])
        answer = rollout.completion[i, j][rollout.segment[i, j] == REFERENCE]
        np.testing.assert_array_equal(answer, p.answer[i, : p.answer_length[i]])
