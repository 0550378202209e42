"""top_k, top_p and min_p: which ids may be drawn, from which distribution, with which log-probs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.sampler import decode, engine
from rl_likelihood.sampler.decode import SamplerConfig, sample
from rl_likelihood.sampler.draw import Cut, Ends, Request, kept_mass
from tests.sampler.test_decode import KEY, NEVER, prompts, surprise
from tests.small import TINY, log_softmax, random_params, reference_logits, tiny

CUTS = [
    {"top_k": 2},
    {"top_p": 0.7},
    {"min_p": 0.4},
    {"top_p": 0.8, "top_k": 4, "min_p": 0.1},
]


def allowed(p, top_p=1.0, top_k=0, min_p=0.0):
    """The distribution after the cut, one id after the other, as the definitions say it."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = order[: top_k or len(p)]
    mass, kept = sum(p[i] for i in order), []
    for i in order:
        if sum(p[j] for j in kept) >= top_p * mass or p[i] < min_p * p[order[0]]:
            break
        kept.append(i)
    q = np.zeros(len(p))
    q[kept] = p[kept] / p[kept].sum()
    return q


@pytest.mark.parametrize("cut", [*CUTS, {"top_k": 1}, {"top_k": 1000}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_ids_left_are_those_of_the_definitions(cut):
    rng = np.random.default_rng(0)
    cfg = SamplerConfig(TINY, NEVER, **cut)
    for v in (10, 600):
        z = (2 * rng.normal(size=v)).astype(np.float32)
        e = np.exp(z - z.max())
        mass = np.asarray(kept_mass(e[None], cfg.cut))[0]
        np.testing.assert_allclose(mass / mass.sum(), allowed(e / e.sum(), **cut), atol=1e-6)


def test_equal_ids_stay_together_and_ids_without_mass_stay_out():
    mass = kept_mass(np.float32([[1, 0.5, 0.5, 0.1, 0]]), Cut(*map(jnp.asarray, (1.0, 2, 0.0))))
    np.testing.assert_array_equal(mass, np.float32([[1, 0.5, 0.5, 0, 0]]))
    whole = kept_mass(np.float32([[1, 0, 0, 0, 0]]), Cut(*map(jnp.asarray, (0.99, 0, 0.0))))
    np.testing.assert_array_equal(whole, np.float32([[1, 0, 0, 0, 0]]))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_chains_follow_the_distribution_after_the_cut(cut):
    model = tiny(vocab_size=6, width=8, layers=1, heads=2, kv_heads=1, mlp=8)
    params = random_params(model, seed=3, scale=0.6)
    fmt = dataclasses.replace(NEVER, vocab_bytes=(b"a",) * 6, close_think_ids=(0,), open_answer_ids=(0,), pad_id=0)
    copies, g, temperature = 32, 32, 0.8
    one = prompts(1, s=3)
    p = jax.tree.map(lambda x: np.repeat(x, copies, 0), one).replace(uid=np.arange(copies))
    p = p.replace(tokens=p.tokens % 6, answer=p.answer % 6)
    rows = (0.0, *(temperature,) * g)
    cfg = SamplerConfig(model, fmt, group_size=g + 1, max_chain=2, temperature=rows, **cut)
    rollout = sample(params, p, KEY, cfg)
    prompt, table = p.tokens[0, : p.length[0]], np.zeros((6, 6))
    for first in range(6):
        logits = reference_logits(params, model, np.append(prompt, first))[len(prompt) - 1 :]
        q = [allowed(np.exp(log_softmax(z / temperature)), **cut) for z in logits]
        table[first] = q[0][first] * q[1]
    chains = rollout.completion[:, 1:, :2].reshape(-1, 2)
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(chains.T), 1)
    assert (table == 0).sum() > 0 and (counts[table == 0] == 0).all()
    assert surprise(counts.ravel(), len(chains) * table.ravel()) > 1e-3
    logp = rollout.sampler_logp[:, 1:, :2].reshape(-1, 2).sum(-1)
    np.testing.assert_allclose(logp, np.log(table[tuple(chains.T)]), atol=1e-4)
    # Greedy rows are what they are without a cut.
    free = sample(params, p, KEY, SamplerConfig(model, fmt, group_size=1, max_chain=2, temperature=(0.0,)))
    np.testing.assert_array_equal(rollout.completion[:, 0, :2], free.completion[:, 0, :2])


def test_one_program_for_all_rows_draws_the_same():
    weights, cfg = decode.prepare(random_params(TINY), TINY), SamplerConfig(TINY, NEVER, top_p=0.6)
    p = prompts(3)
    rows, ends = (
        (p.tokens, p.length, p.uid, KEY, np.ones(4, np.float32)),
        Ends(np.zeros((24, 2), np.int8), np.int32([21])),
    )
    request = Request(*rows, ends, np.int32(20), np.int32(0), cfg.cut)
    wanted, mesh = decode.generate(weights, TINY, request, 6), make_mesh((1, 2, 1), jax.devices()[:2])
    spread = jax.device_put(weights, replicated(mesh))
    for got in (
        engine.sample_rows(weights, TINY, request, 6, slots=5),
        decode.generate_spread(spread, TINY, request, 6, mesh),
    ):
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_allclose(got[1], wanted[1], atol=2e-5)


def test_without_a_cut_nothing_is_sorted():
    params = jax.eval_shape(lambda p: decode.decoding_layout(p, TINY), random_params(TINY))
    slots = jax.eval_shape(lambda: engine.empty_slots(TINY, (4, 2), 6, 8, 8))
    ends = Ends(np.zeros((24, 2), np.int8), np.int32([21]))

    def text(cfg):
        slots_cut = slots._replace(cut=cfg.cut)
        return engine.decode_until.lower(params, TINY, slots_cut, ends, jnp.int32(1), jnp.int32(1)).as_text()

    sorts = "stablehlo.sort"
    assert sorts not in text(SamplerConfig(TINY, NEVER)) and sorts in text(SamplerConfig(TINY, NEVER, min_p=0.1))
