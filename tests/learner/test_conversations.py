"""Conversations in the step: what replies and references change, and that credit by turn is the exact gradient.

The policy writes one of 5 ids, the environment replies with another, the policy writes again: 25 conversations, 625
groups of two. The gradient of each group, weighted by its probability, must be the gradient of the expected reward.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner import measures
from rl_likelihood.learner.rows import policy_masks, row_stats
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import Counts, LossConfig, by_token, policy_loss, turn_gains, turn_of
from rl_likelihood.model.decoder import forward
from rl_likelihood.shapes import CHAIN, ENV, REFERENCE, Batch
from tests.small import random_params, rewarded, tiny

V, G = 5, 2
MODEL = tiny(vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8)
PARAMS = random_params(MODEL, seed=1, scale=0.5)
PROMPT, REFERENCES = [1, 4, 2], ([3, 1], [0])
ALL = np.array(list(itertools.product(range(V), repeat=2)))  # what is written in both turns
GROUPS = np.array(list(itertools.product(range(len(ALL)), repeat=G)))
SEGMENT = np.array([REFERENCE, REFERENCE, CHAIN, ENV, REFERENCE, CHAIN])
OUTCOME = np.random.default_rng(0).normal(size=len(ALL)).astype(np.float32)


def reply(a):
    return (2 * a + 1) % V


def batch_of(index, keep=None):
    """One prompt, and the conversations number `index` [G]."""
    a, b = ALL[index].T
    fixed = lambda *ids: np.broadcast_to(ids, (len(index), len(ids)))
    ids = np.concatenate([fixed(*REFERENCES[0]), a[:, None], reply(a)[:, None], fixed(*REFERENCES[1]), b[:, None]], 1)
    segment = np.broadcast_to(SEGMENT, (1, *ids.shape))
    return Batch(
        prompt=np.array([PROMPT]),
        prompt_length=np.array([3]),
        completion=ids[None],
        segment=segment,
        scored=segment == REFERENCE,
        sampler_logp=np.zeros(segment.shape, np.float32),
        host_rewards={"environment": OUTCOME[index][None]},
        truncated=np.zeros((1, len(index)), bool),
        keep=np.ones((1, len(index)), bool) if keep is None else keep,
    )


def log_probs(params, sequences):
    """Log-prob [N, t] of each id of plain sequences [N, t] after the first."""
    ids = np.asarray(sequences, np.int32)
    hidden = forward(params, MODEL, ids, np.full(len(ids), ids.shape[1])).prompt
    table = jax.nn.log_softmax(hidden[:, :-1] @ params["embed"].T)
    return jnp.take_along_axis(table, ids[:, 1:, None], -1)[..., 0]


def both_turns(params):
    """Log-probs of both messages [25, 2] and of both references [25, 2, 3], padded with 0, on plain sequences."""
    a, b = ALL.T
    rows = [[*PROMPT, x, reply(x), y] for x, y in ALL]
    spoken = log_probs(params, rows)[:, [2, 4]]
    first = log_probs(params, [[*PROMPT, *REFERENCES[0]] for _ in ALL])[:, 2:]
    second = log_probs(params, [[*PROMPT, x, reply(x), *REFERENCES[1]] for x, _ in ALL])[:, 4:]
    return spoken, first, second


def test_every_branch_is_the_plain_sequence_that_it_continues():
    batch = batch_of(np.arange(25))
    logp = np.asarray(row_stats(PARAMS, MODEL, batch, rewarded("environment", two_branches=True)).stats.log_prob)[0]
    spoken, first, second = both_turns(PARAMS)
    np.testing.assert_allclose(logp[:, [2, 5]], spoken, atol=1e-5)
    np.testing.assert_allclose(logp[:, :2], first, atol=1e-5)
    np.testing.assert_allclose(logp[:, 4:5], second, atol=1e-5)


def expected_gradient(cfg):
    """Of the groups' gradients, by the probability of sampling each group."""
    probability = np.exp(np.asarray(both_turns(PARAMS)[0]).sum(-1))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    weights = probability[GROUPS].prod(-1)
    stacked = jax.tree.map(lambda *x: np.stack(x), *[batch_of(group) for group in GROUPS])

    @jax.jit
    def total(params):
        each = jax.vmap(lambda batch: gradients(params, (None, None), batch, MODEL, cfg)[0])(stacked)
        return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), each)

    return total(PARAMS)


def exact(credit):
    def objective(params):
        spoken, first, second = both_turns(params)
        gain = jnp.exp(second.mean(-1)) - jnp.exp(first.mean(-1))  # of the first message, a constant
        paid = OUTCOME + jax.lax.stop_gradient(gain if credit else 0 * gain)
        return -(jnp.exp(spoken.sum(-1)) * paid).sum()

    return jax.grad(objective)(PARAMS)


@pytest.mark.parametrize("credit", [False, True])
def test_the_gradient_is_that_of_the_expected_reward(credit):
    cfg = rewarded("environment", two_branches=True, turn_credit=credit, turns=2, loss=LossConfig(answer_term=0.0))
    got, wanted = expected_gradient(cfg), exact(credit)
    size = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(size, 1)), got, wanted)


def test_the_logged_advantages_are_those_that_train():
    """Two conversations of two messages: the first message also earns its gain less that of the other conversation."""
    index, cfg = np.array([3, 17]), rewarded("environment", two_branches=True, turn_credit=True, turns=3)
    _, sums, rows = gradients(PARAMS, (None, None), batch_of(index), MODEL, cfg)
    _, first, second = (np.asarray(x) for x in both_turns(PARAMS))
    gain = (np.exp(second.mean(-1)) - np.exp(first.mean(-1)))[index]
    outcome, gain = (x - x[::-1] for x in (OUTCOME[index], gain))
    np.testing.assert_allclose(rows["advantage"][0], outcome, atol=1e-5)
    wanted = np.stack([outcome + gain, outcome, outcome], 1)
    np.testing.assert_allclose(rows["turn_advantage"][0], wanted, atol=1e-5)
    logged = measures.metrics(sums, rows, batch_of(index))["advantage/abs_mean"]
    assert float(logged) == pytest.approx(np.abs(wanted[:, :2]).mean(), abs=1e-5), "there is no third message"


def test_a_likelihood_reward_scores_the_reference_of_every_turn():
    cfg = rewarded("avg_log_prob", two_branches=True, loss=LossConfig(policy_term=0.0))
    grads, _, rows = gradients(PARAMS, (None, None), batch_of(np.array([3, 17])), MODEL, cfg)

    def plain(params):
        _, first, second = both_turns(params)
        return -(first.sum(-1) + second.sum(-1))[np.array([3, 17])].mean() / 3

    value, wanted = jax.value_and_grad(plain)(PARAMS)
    assert float(rows["reward"].mean()) == pytest.approx(-float(value), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, wanted)


def test_replies_are_in_no_loss_count_or_length():
    cfg = rewarded("environment", two_branches=True)
    batch = batch_of(np.array([3, 17]))
    _, metrics, rows = gradients(PARAMS, (None, None), batch, MODEL, cfg)
    assert (np.asarray(rows["chain_tokens"]) == 2).all()
    assert float(metrics["sum/policy_tokens"]) == 4
    # A = +1, -1 with 10, 40 tokens of messages and 200, 0 of replies: -0.6 a token (with replies it would be -0.12).
    segment = np.zeros((1, 2, 210), np.int32)
    segment[0, 0, :10], segment[0, 0, 10:], segment[0, 1, :40] = CHAIN, ENV, CHAIN
    batch = batch_of(np.array([3, 17])).replace(segment=segment, completion=segment, scored=segment == REFERENCE)
    mask, keep = policy_masks(batch, cfg)
    loss = LossConfig(aggregation="token_mean")
    ones, advantage = np.ones(segment.shape, np.float32), np.array([[1.0, -1.0]])
    value = policy_loss(ones, ones, advantage, mask, keep, loss, Counts(1.0, mask.sum()))
    assert float(value) == pytest.approx(0.6)


def test_gains_sum_over_the_turns_to_come_less_the_mean_of_the_others():
    segment = np.array(
        [[[3, 1, 5, 5, 3, 1, 1, 5, 3, 1, 0], [3, 1, 1, 5, 3, 1, 0, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]]
    )
    assert turn_of(segment)[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    v = np.array([[0.1, 0.4, 0.3], [0.1, 0.9, 0], [0.1, 0, 0]])
    logp = np.zeros(segment.shape, np.float32)
    for i, (row, kinds) in enumerate(zip(v, segment[0], strict=True)):
        at = np.flatnonzero(kinds == 3)
        logp[0, i, at] = np.log(row[: len(at)])
    keep = np.ones((1, 3), bool)
    got = np.asarray(by_token(turn_gains(logp, segment == 3, segment, keep, 3), segment))[0]
    first = np.array([0.2, 0.8, 0.0])
    np.testing.assert_allclose(got[:, 1], first - (first.sum() - first) / 2, atol=1e-6)
    second = np.array([-0.1, 0, 0])  # rows that are over have no gain to come
    np.testing.assert_allclose(got[0, 5], second[0] - second[1:].mean(), atol=1e-6)
    np.testing.assert_allclose(got[1, 5], second[1] - second[[0, 2]].mean(), atol=1e-6)
    two = turn_gains(logp, segment == 3, segment, np.array([[True, False, True]]), 3)
    dropped = np.asarray(by_token(two, segment))[0]
    assert (dropped[1] == 0).all() and dropped[0, 1] == pytest.approx(0.2 - 0.0)
    alone = turn_gains(logp, segment == 3, segment, np.array([[True, False, False]]), 3)
    assert (np.asarray(alone) == 0).all()
