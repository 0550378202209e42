"""Turns: what is sampled after given ids is what one forward over the whole row says, and depends on no other row."""

import functools

import jax
import numpy as np
import pytest

from rl_likelihood.learner.batching import to_batch
from rl_likelihood.learner.rows import StepConfig, row_stats
from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.model.architecture import LocalLayers
from rl_likelihood.sampler import decode, turns
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.stop import stop_table
from rl_likelihood.sampler.turns import TurnPrefix, TurnSettings, at_once
from rl_likelihood.shapes import CHAIN, ENV, Rollout
from tests.sampler.test_decode import EOS, KEY, PAD_ID, PARAMS, VOCAB, prompts
from tests.small import TINY, tiny

TEMPERATURE = (0.0, 1.0, 0.7, 1.5)
TOKENS, TURNS = 24, 4
P = prompts(3)
NEVER = stop_table(VOCAB, ("never written",))
REPLIES = np.random.default_rng(0).integers(0, 20, (TURNS, 3, 4, 90)).astype(np.int32)
SIZES = np.random.default_rng(1).integers(0, [[[5]], [[90]], [[3]], [[20]]], (TURNS, 3, 4))


def request(p=P, temperature=TEMPERATURE, first_chain=0):
    ends = Ends(NEVER, np.array([EOS]))
    return Request(
        p.tokens, p.length, p.uid, KEY, np.float32(temperature), ends, np.int32(PAD_ID), np.int32(first_chain)
    )


def rows_of(part=slice(None), chains=slice(None)):
    p = jax.tree.map(lambda x: x[part], P)
    return request(p, TEMPERATURE[chains], chains.start or 0), (part, chains)


@functools.cache
def weights():
    return decode.prepare(PARAMS, TINY)


def played(r, at=(slice(None), slice(None)), mesh=None, params=None, stop_early=True, cfg=TINY):
    """[(ids, log-prob, segment) of each row]: a turn, a reply, a turn ... Row (0, 1) ends after its second turn."""
    params = weights() if params is None else params
    rows = turns.start_rows(params, cfg, r, mesh)
    replies, sizes = REPLIES[:, *at], SIZES[:, *at]
    p, g = sizes.shape[1:]
    going = np.ones((p, g), bool)
    out = [[([], [], []) for _ in range(g)] for _ in range(p)]
    given = TurnPrefix(np.zeros((p, g, 0), np.int32), np.zeros((p, g), np.int32), going)
    last = np.arange(3)[at[0]][:, None] * 4 + np.arange(4)[at[1]] == 1
    for k in range(TURNS):
        rows, turn = turns.take_turn(params, rows, given, r, TurnSettings(cfg, TOKENS, mesh))
        turn = jax.tree.map(np.asarray, turn)
        for i, j in np.argwhere(given.going):
            ids, logp, kinds = out[i][j]
            n, m = given.count[i, j], turn.length[i, j]
            ids += [*given.ids[i, j, :n], *turn.ids[i, j, :m]]
            logp += [*[0.0] * n, *turn.logp[i, j, :m]]
            kinds += [ENV] * n + [CHAIN] * m
        going = going & ~(last & (k == 1) & stop_early)
        given = TurnPrefix(replies[k], sizes[k], going)
    return out


def same(got, wanted):
    for a, b in zip((row for group in got for row in group), (row for group in wanted for row in group), strict=True):
        assert a[0] == b[0] and a[2] == b[2]
        np.testing.assert_allclose(a[1], b[1], atol=2e-5)


def test_the_first_turn_is_plain_sampling():
    ids, logp, length = map(np.asarray, decode.generate(weights(), TINY, request(), TOKENS))
    rows = turns.start_rows(weights(), TINY, request())
    none = TurnPrefix(np.zeros((3, 4, 0), np.int32), np.zeros((3, 4), np.int32), np.ones((3, 4), bool))
    _, turn = turns.take_turn(weights(), rows, none, request(), TurnSettings(TINY, TOKENS))
    assert length.min() < TOKENS
    np.testing.assert_array_equal(turn.ids, ids)
    np.testing.assert_array_equal(turn.length, length)
    np.testing.assert_allclose(turn.logp, logp, atol=2e-5)


def rollout_of(out):
    width = max(len(ids) for group in out for ids, _, _ in group)
    pad = lambda i, fill, kind: np.asarray(
        [[np.pad(np.asarray(row[i], kind), (0, width - len(row[i])), constant_values=fill) for row in g] for g in out]
    )
    cut = np.zeros((len(out), len(out[0])), bool)
    return Rollout(P, pad(0, PAD_ID, np.int32), pad(2, 0, np.int32), pad(1, 0, np.float32), cut)


def learner_logp(rollout, temperature=1.0, cfg=TINY):
    stats = row_stats(PARAMS, cfg, to_batch(rollout), StepConfig(temperature=temperature, two_branches=True)).stats
    return np.asarray(stats.log_prob)


@pytest.mark.parametrize(
    "cfg", [TINY, tiny(local=LocalLayers((True, False), window=7, theta=20.0))], ids=["", "windows"]
)
def test_the_learner_finds_the_same_log_probs_in_one_forward(cfg):
    rollout = rollout_of(played(request(), cfg=cfg))
    sampled = rollout.segment == CHAIN
    assert (rollout.segment == ENV).any() and sampled.sum() > 50
    for j, temperature in enumerate(TEMPERATURE):  # greedy rows report log-probs at temperature 1
        logp = learner_logp(rollout, temperature or 1.0, cfg)
        row = sampled[:, j]
        np.testing.assert_allclose(rollout.sampler_logp[:, j][row], logp[:, j][row], atol=1e-4)
    assert (rollout.sampler_logp[~sampled] == 0).all()


def test_a_reply_is_read_by_what_follows_it_and_by_nothing_before():
    rollout = rollout_of(played(request()))
    first = int(np.flatnonzero(rollout.segment[2, 3] == ENV)[0])
    changed = rollout.completion.copy()
    changed[2, 3, first] += 1
    before, after = learner_logp(rollout), learner_logp(rollout.replace(completion=changed))
    np.testing.assert_array_equal(before[:2], after[:2])
    np.testing.assert_allclose(before[2, 3, :first], after[2, 3, :first], atol=1e-6)
    later = slice(first + 1, int((rollout.segment[2, 3] > 0).sum()))
    assert (np.abs(before - after)[2, 3, later] > 1e-6).mean() > 0.9


@pytest.mark.parametrize(("part", "chains"), [(slice(1, 2), slice(0, 4)), (slice(0, 3), slice(1, 3))])
def test_rows_do_not_depend_on_the_rows_beside_them(part, chains):
    r, at = rows_of(part, chains)
    wanted = [group[chains] for group in played(request())[part]]
    same(played(r, at), wanted)


def test_an_ended_row_stays_as_it_is_and_changes_nothing():
    ended, wanted = played(request()), played(request(), stop_early=False)
    assert len(ended[0][1][0]) < len(wanted[0][1][0])
    assert wanted[0][1][0][: len(ended[0][1][0])] == ended[0][1][0]
    ended[0][1] = wanted[0][1]
    same(ended, wanted)


def test_rows_at_once_divide_over_the_mesh_and_groups_stay_whole():
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    cases = {0: (8, 4), 99: (8, 4), 31: (6, 4), 15: (2, 4), 8: (2, 4), 7: (2, 2), 5: (2, 2), 1: (2, 2)}
    assert {slots: at_once(8, 4, slots, mesh) for slots in cases} == cases
    assert [at_once(3, 4, slots, None) for slots in (0, 11, 4, 3, 1)] == [(3, 4), (2, 4), (1, 4), (1, 3), (1, 1)]


@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 2, 1), (1, 2, 2)])
def test_rows_may_be_split_over_devices(shape):
    mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
    params = jax.device_put(weights(), replicated(mesh))
    same(played(request(), mesh=mesh, params=params), played(request()))
