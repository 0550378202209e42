"""Chains from a second prompt that shows the answer: the expected step is an exact gradient, by enumeration.

With 3 ids and chains of 2 there are 9 chains, and 6,561 groups of two after each prompt. The same for the pure functions
on tables, where groups of other sizes, dropped rows and the known mistakes cost nothing.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner import posterior
from rl_likelihood.learner.posterior import Chains, PosteriorConfig
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.decoder import forward
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, Batch, ShownPrompts
from tests.small import random_params, rewarded, tiny

V, G, OWN = 3, 4, 2  # the last OWN rows are sampled after the answer
MODEL = tiny(vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8)
PARAMS = random_params(MODEL, seed=1, scale=0.7)
CHAINS = np.array(list(itertools.product(range(V), repeat=2)))
GROUPS = np.array(list(itertools.product(range(len(CHAINS)), repeat=G)))
PLAIN, SHOWN, TAGS, ANSWER = (1, 2), (1, 2, 0, 2, 1), (0,), (2, 1)
SEGMENT = np.array([CHAIN] * 2 + [TAG] + [REFERENCE] * 2)


def batch_of(chains):
    """One prompt with these chains [G, 2]."""
    t = len(SEGMENT)
    rest = jnp.broadcast_to(jnp.asarray(TAGS + ANSWER), (1, G, t - 2))
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x), (1, G, t))
    pad = lambda ids: np.array([[*ids, 0]], np.int32)
    return Batch(
        prompt=pad(PLAIN),
        prompt_length=np.array([len(PLAIN)]),
        completion=jnp.concatenate([chains[None], rest], -1),
        segment=rows(SEGMENT),
        scored=rows(SEGMENT == REFERENCE),
        sampler_logp=jnp.zeros((1, G, t)),
        host_rewards={},
        truncated=jnp.zeros((1, G), bool),
        keep=jnp.ones((1, G), bool),
        shown=ShownPrompts(pad(SHOWN), np.array([len(SHOWN)])),
    )


def log_probs(params, prompt, tail=()):
    """Of every chain after the prompt, and of `tail` after that: [9, 2 + tail], token by token."""
    n = len(CHAINS)
    ids = np.concatenate([np.tile(prompt, (n, 1)), CHAINS, np.tile(tail, (n, 1)).reshape(n, -1)], 1).astype(np.int32)
    hidden = forward(params, MODEL, ids, np.full(n, ids.shape[1])).prompt
    table = jax.nn.log_softmax(hidden[:, :-1] @ params["embed"].T)
    return jnp.take_along_axis(table, ids[:, 1:, None], -1)[:, len(prompt) - 1 :, 0]


def objective(params, cfg: PosteriorConfig, reward):
    """E_t[R] - kl KL(t || p), t token by token a mixture of both policies."""
    plain, shown = log_probs(params, PLAIN), log_probs(params, SHOWN)
    log_t = jnp.log((1 - cfg.target) * jnp.exp(plain) + cfg.target * jnp.exp(shown)).sum(-1)
    answer = log_probs(params, PLAIN, TAGS + ANSWER)[:, 3:]
    return (jnp.exp(log_t) * (reward(answer) - cfg.kl * (log_t - plain.sum(-1)))).sum()


def expected(cfg, own=OWN):
    """Minus the step's gradient, averaged over the groups that are sampled from both prompts."""
    plain, shown = (np.asarray(log_probs(PARAMS, prompt).sum(-1), np.float64) for prompt in (PLAIN, SHOWN))
    from_p, from_q = GROUPS[:, : G - own], GROUPS[:, G - own :]
    weight = np.exp(plain[from_p].sum(-1) + shown[from_q].sum(-1))
    assert weight.sum() == pytest.approx(1, abs=1e-5)

    @jax.jit
    def total(params):
        one = lambda chains: gradients(params, (None, None), batch_of(chains), MODEL, cfg)[0]
        each = jax.lax.map(one, CHAINS[GROUPS], batch_size=729)
        return jax.tree.map(lambda g: -jnp.tensordot(weight.astype(np.float32), g, 1), each)

    return total(PARAMS)


def worst(got, want):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, want)))


@pytest.mark.parametrize(
    "name, reward, cfg",
    [
        ("log_prob", lambda a: a.sum(-1), PosteriorConfig(share=0.5)),
        ("avg_prob", lambda a: jnp.exp(a).mean(-1), PosteriorConfig(share=0.5, target=0.5, kl=0.7)),
        ("log_prob", lambda a: a.sum(-1), PosteriorConfig(share=0.5, target=1.0, kl=1.0)),
    ],
)
def test_the_expected_step_is_the_gradient_of_the_target(name, reward, cfg):
    want = jax.jit(jax.grad(lambda params: objective(params, cfg, reward)))(PARAMS)
    got = expected(rewarded(name, posterior=cfg))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want)) > 0.05
    assert worst(got, want) < 2e-5
