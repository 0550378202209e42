"""Every mode of the step on one batch: its settings, and its loss and gradient from plain sequences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.decoder import forward
from rl_likelihood.shapes import CHAIN, PAD, SAMPLED
from tests.small import branches, random_batch, random_params, reference_log_probs, rewarded, tiny

P, G, S, T = 4, 3, 5, 10
MODEL = tiny(layers=1)
PARAMS, REF = (random_params(MODEL, seed) for seed in (0, 1))
BATCH = random_batch(8, P, G, S, T, sampled=True)
HOST_REWARDS = BATCH.host_rewards["math"]
# Rows behind mask: a group whole, one row out, one left, none.
KEEP = np.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
OLDER = reference_log_probs(PARAMS, MODEL, BATCH, 0.7) + np.random.default_rng(0).normal(size=BATCH.segment.shape)
STALE = BATCH.replace(keep=KEEP, sampler_logp=OLDER.astype(np.float32))


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
