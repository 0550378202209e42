"""CER: every sampled answer of a group after every chain of it."""

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.learner.cross import cross_log_probs
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.rewards.cross import cer
from rl_likelihood.shapes import CHAIN, SAMPLED, TAG
from tests.runs import small_config
from tests.small import log_softmax, random_batch, random_params, reference_log_probs, reference_logits, rewarded, tiny
from tests.tabular import PAIRS, THREE, all_groups, expected, in_numpy

MODEL = tiny(layers=1)
PARAMS = random_params(MODEL)
BATCH = random_batch(8, sampled=True)
P, G = BATCH.truncated.shape
CFG = rewarded("cer", two_branches=True, policy_span="response", head_chunk=40)


def by_hand():
    """[P, G, G] in float64: prompt, chain s with its tags, answer j, as a sequence of its own."""
    out = np.zeros((P, G, G))
    for i, j, s in np.ndindex(out.shape):
        before = np.isin(BATCH.segment[i, s], (CHAIN, TAG))
        prompt = np.concatenate([BATCH.prompt[i, : BATCH.prompt_length[i]], BATCH.completion[i, s, before]])
        answer = BATCH.completion[i, j, BATCH.segment[i, j] == SAMPLED]
        logits = reference_logits(PARAMS, MODEL, np.concatenate([prompt, answer]))
        logp = log_softmax(logits)[len(prompt) - 1 : -1]
        out[i, j, s] = np.take_along_axis(logp, answer[:, None], -1).sum()
    return out


def test_every_answer_is_scored_after_every_chain():
    want = by_hand()
    got = jax.jit(cross_log_probs, static_argnums=(1, 3))(PARAMS, MODEL, BATCH, CFG)
    np.testing.assert_allclose(got, want, atol=2e-4)
    answered = (BATCH.segment == SAMPLED).any(-1)
    assert answered.any() and not answered.all()
    keep = np.ones((P, G), bool)
    keep[1, 0] = False
    _, _, rows = jax.jit(gradients, static_argnums=(3, 4))(PARAMS, (None, None), BATCH.replace(keep=keep), MODEL, CFG)
    logp = reference_log_probs(PARAMS, MODEL, BATCH)
    prob = np.exp(np.where(BATCH.scored, logp, 0).sum(-1))
    share = np.where(keep[:, None], np.exp(want - want.max(-1, keepdims=True)), 0)
    rho = (share / share.sum(-1, keepdims=True) * prob[:, None]).sum(-1)
    np.testing.assert_allclose(rows["reward"], np.where(answered, rho, 0), atol=1e-5)


def test_the_published_toy_of_cer():
    """With each chain as often as the policy samples it, rho of both answers, and their mean, the chance of a*."""
    chains = np.log(np.exp(in_numpy(THREE, THREE.logits, THREE.chains).sum(-1)))
    tables = [in_numpy(THREE, THREE.logits, np.array([[3 + y], [5 + y], [7 + y]])).sum(-1) for y in (0, 1)]
    answers = np.stack([*tables, tables[0]])[None] + chains  # [1, answer, chain]; the third row repeats the first
    rho = np.asarray(cer(answers, np.exp(tables[0])[None], np.ones((1, 3), bool), np.ones((1, 3), bool)))[0]
    np.testing.assert_allclose(rho, [0.472434, 0.374940, 0.472434], atol=1e-6)
    chance = np.exp(np.stack(tables) + chains).sum(-1)
    assert chance @ rho[:2] == pytest.approx(0.415443, abs=1e-6) == chance[0]
    # rho is constant for the gradient: the expected update pays each chain and answer the rho of the answer.
    reward = np.tile(rho[:2], 3)[all_groups(PAIRS, 2)]
    grads, value = expected("pairs", 2, LossConfig(), "exact_match", reward=reward)
    assert value == pytest.approx(0.415443, abs=1e-6)
    np.testing.assert_allclose(grads[:3], [0.006813, -0.000924, -0.005889], atol=1e-6)


def test_a_group_with_nothing_kept_and_a_row_without_an_answer_give_zero():
    nothing = np.zeros((1, 2), bool)
    assert (np.asarray(cer(np.zeros((1, 2, 2)), np.ones((1, 2)), ~nothing, nothing)) == 0).all()
    assert (np.asarray(cer(np.zeros((1, 2, 2)), np.ones((1, 2)), nothing, ~nothing)) == 0).all()


def test_cer_makes_the_sampler_write_an_answer():
    c = build(small_config(reward__name="cer"))
    assert c.samples_answer and c.step.policy_span == "response" and c.step.sampled_answer == 10
