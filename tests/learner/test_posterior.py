"""Chains from a second prompt that shows the answer: the expected step is an exact gradient, by enumeration.

With 2 ids and chains of 2 there are 4 chains, and 256 groups of two after each prompt.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.config import apply_preset, build
from rl_likelihood.learner import posterior, step
from rl_likelihood.learner.observation import Forward
from rl_likelihood.learner.posterior import Chains, PosteriorConfig
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import Counts, LossConfig
from rl_likelihood.model.decoder import forward
from rl_likelihood.rewards import reward_sum
from rl_likelihood.rewards.reward import Observation
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, Batch, ShownPrompts
from tests.runs import small_config
from tests.small import random_params, rewarded, tiny

V, G = 2, 4
MODEL = tiny(vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8)
PARAMS = random_params(MODEL, seed=1, scale=0.7)
CHAINS = np.array(list(itertools.product(range(V), repeat=2)))
PLAIN, SHOWN, TAGS, ANSWER = (1, 0), (1, 0, 0, 1, 1), (0,), (1, 0)
SEGMENT = np.array([CHAIN] * 2 + [TAG] + [REFERENCE] * 2)


def batch_of(chains, keep=None):
    """One prompt with these chains [G, 2]."""
    g, t = len(chains), len(SEGMENT)
    rest = jnp.broadcast_to(jnp.asarray(TAGS + ANSWER), (1, g, t - 2))
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x), (1, g, t))
    pad = lambda ids: np.array([[*ids, 0]], np.int32)
    return Batch(
        prompt=pad(PLAIN),
        prompt_length=np.array([len(PLAIN)]),
        completion=jnp.concatenate([chains[None], rest], -1),
        segment=rows(SEGMENT),
        scored=rows(SEGMENT == REFERENCE),
        sampler_logp=jnp.zeros((1, g, t)),
        host_rewards={},
        truncated=jnp.zeros((1, g), bool),
        keep=jnp.ones((1, g), bool) if keep is None else jnp.asarray(keep)[None],
        shown=ShownPrompts(pad(SHOWN), np.array([len(SHOWN)])),
    )


def log_probs(params, prompt, tail=()):
    """Of every chain after the prompt, and of `tail` after that: [4, 2 + tail], token by token."""
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


def expected(cfg, after, keep=None):
    """Minus the step's gradient, averaged over the groups whose row i is sampled after the prompt `after[i]`."""
    groups = np.array(list(itertools.product(range(len(CHAINS)), repeat=len(after))))
    logp = {prompt: np.asarray(log_probs(PARAMS, prompt).sum(-1), np.float64) for prompt in (PLAIN, SHOWN)}
    weight = np.exp(sum(logp[prompt][groups[:, i]] for i, prompt in enumerate(after)))
    assert weight.sum() == pytest.approx(1, abs=1e-5)

    @jax.jit
    def total(params):
        one = lambda chains: gradients(params, (None, None), batch_of(chains, keep), MODEL, cfg)[0]
        return jax.tree.map(lambda g: -jnp.tensordot(weight.astype(np.float32), g, 1), jax.vmap(one)(CHAINS[groups]))

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
    got = expected(rewarded(name, posterior=cfg), (PLAIN, PLAIN, SHOWN, SHOWN))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want)) > 0.05
    assert worst(got, want) < 2e-5


def test_a_dropped_row_leaves_the_estimate_exact():
    """The share of the mixture is that of the kept rows."""
    cfg = PosteriorConfig(share=0.4)
    want = jax.jit(jax.grad(lambda params: objective(params, cfg, lambda a: a.sum(-1))))(PARAMS)
    keep = [True, True, False, True, True]
    got = expected(rewarded("log_prob", posterior=cfg), (PLAIN,) * 3 + (SHOWN,) * 2, keep)
    assert worst(got, want) < 2e-5


def test_the_mean_of_the_others_as_baseline_would_be_biased(monkeypatch):
    cfg = PosteriorConfig(share=0.5)
    want = jax.jit(jax.grad(lambda params: objective(params, cfg, lambda a: a.sum(-1))))(PARAMS)

    def others(values, keep, from_shown):
        return (values.sum(-1, keepdims=True) - values) / (values.shape[-1] - 1)

    monkeypatch.setattr(posterior, "baseline", others)
    assert worst(expected(rewarded("log_prob", posterior=cfg), (PLAIN, PLAIN, SHOWN, SHOWN)), want) > 1e-3


def test_self_distillation_descends_the_reverse_kl_of_each_token():
    def cost(params):
        """sum_t KL(p || q) of token t given the tokens before, which are sampled from p and held."""
        plain, shown = log_probs(params, PLAIN), jax.lax.stop_gradient(log_probs(params, SHOWN))
        held = jnp.exp(jax.lax.stop_gradient(plain))
        before = jnp.stack([held[:, 0] / held[:, 0], held[:, 0]], -1)  # chance of what precedes the token
        # Chains with one beginning are V, so each first token is counted V times.
        times = jnp.array([V, 1])
        return (before * jnp.exp(plain) * (plain - shown) / times).sum()

    reward = {"loss": LossConfig(answer_term=0.0), "posterior": PosteriorConfig(distill=1.0, distill_clip=50.0)}
    got = expected(rewarded("0*log_prob", **reward), (PLAIN, PLAIN))
    assert worst(got, jax.tree.map(jnp.negative, jax.jit(jax.grad(cost))(PARAMS))) < 2e-5
    chains = Chains(*np.array([[[[-9.0, -1.0]]], [[[-1.0, -1.5]]]]), None, None, None)
    assert posterior.distilled(chains, 2.0).tolist() == [[[2.0, -0.5]]]


def chains_of(plain, shown, from_shown, keep=None):
    """One group of chains of one token."""
    plain, shown = (np.log(np.array(x, np.float32))[None, :, None] for x in (plain, shown))
    kept = np.ones(plain.shape[:2], bool) if keep is None else np.array(keep)[None]
    return Chains(plain, shown, np.ones(plain.shape, bool), kept, np.array(from_shown))


BOTH = chains_of([0.2, 0.1, 0.4, 0.5], [0.1, 0.3, 0.4, 0.25], [False, False, True, True])


def test_weights_by_hand():
    p, q = np.array([0.2, 0.1, 0.4, 0.5]), np.array([0.1, 0.3, 0.4, 0.25])
    for target in (0.0, 0.25, 1.0):
        want = ((1 - target) * p + target * q) / (0.5 * p + 0.5 * q)
        got = posterior.weights(BOTH, PosteriorConfig(share=0.5, target=target))
        np.testing.assert_allclose(got[0], want, rtol=1e-6)
    capped = posterior.weights(BOTH, PosteriorConfig(share=0.5, target=0.0, weight_cap=1.1))
    assert float(capped.max()) == pytest.approx(1.1) and float(capped[0, 1]) == pytest.approx(0.5, rel=1e-6)


def test_the_baseline_replaces_a_row_by_the_others_of_its_prompt():
    values = np.array([[1.0, 3.0, 10.0, 20.0]])
    from_shown = np.array([False, False, True, True])
    keep = np.ones((1, 4), bool)
    got = posterior.baseline(values, keep, from_shown)
    np.testing.assert_allclose(got, [[(3 + 15) / 2, (1 + 15) / 2, (2 + 20) / 2, (2 + 10) / 2]])


def test_a_row_alone_after_its_prompt_has_no_baseline_and_earns_nothing():
    reward, w = np.array([[1.0, 2.0, 3.0, 9.0]]), np.ones((1, 4))
    for keep in ([True, True, True, False], [False, True, True, True]):
        assert not posterior.advantages(reward, w, BOTH._replace(keep=np.array([keep]))).any()
    one_prompt = BOTH._replace(keep=np.array([[True, True, False, False]]))
    assert posterior.advantages(reward, w, one_prompt).tolist() == [[-1.0, 1.0, 0.0, 0.0]]


def test_one_group_of_covrl_by_hand():
    """Two chains after each prompt. p, q and t of their tokens, w = t / ((p + q) / 2) of the chain, and log t/p:

        1  p .9 .1  q .1 .9  t .5 .5   w .25 / .09 = 2.78, capped at 2   log 25/9
        2  p .5 .5  q .5 .5  t .5 .5   w 1                               0
        3  p .2 .4  q .6 .4  t .4 .4   w 1                               log 2
        4  p .4 .2  q .2 .6  t .3 .4   w .12 / .1 = 1.2                  log 3/2

    Answers have the log-probs that make R, less the KL, -1, -4, -2, -3. So w R is -2, -4, -2, -3.6, the baselines are
    -3.4, -2.4, -3.3, -2.5, and the advantages 4.8, -1.6, 1.3, -0.6. The answer is trained after chain 1 alone: chain 3
    did well too, but saw the answer.
    """
    c = small_config(sampler__group_size=4)
    c.preset = "covrl"
    apply_preset(c, ["sampler.group_size"])
    cfg = build(c).step
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.4], [0.4, 0.2]])
    q = np.array([[0.1, 0.9], [0.5, 0.5], [0.6, 0.4], [0.2, 0.6]])
    t, kl = (p + q) / 2, np.log([25 / 9, 1, 2, 1.5])
    advantage, w = np.array([4.8, -1.6, 1.3, -0.6]), np.array([2, 1, 1, 1.2])
    batch, wide = batch_of(CHAINS), lambda x: np.pad(np.log(x), ((0, 0), (0, 3)))[None].astype(np.float32)
    answers = np.zeros((1, G, 5), np.float32)
    answers[0, :, 3] = np.array([-1, -4, -2, -3]) + kl
    from_shown = np.array([False, False, True, True])

    def terms(plain, shown, answers):
        chains = Chains(plain, shown, batch.segment == CHAIN, batch.keep, from_shown)
        bonus = -cfg.posterior.kl * jax.lax.stop_gradient(posterior.kl_rows(chains, cfg.posterior.target))
        seen = Observation(answers, batch.scored, batch.keep, batch.truncated, None, np.zeros((1, G)), {})
        f, reward, _ = reward_sum.objective(seen, cfg.reward, bonus)
        forward = Forward(None, seen, None, chains)
        got, policy, answer = step._posterior_terms(forward, f, reward, batch, cfg, Counts(1.0, 8.0))
        return policy + cfg.loss.answer_term * answer, (got, policy, reward)

    slopes, (got, policy, reward) = jax.grad(terms, (0, 1, 2), has_aux=True)(wide(p), wide(q), answers)
    np.testing.assert_allclose(reward[0], [-1, -4, -2, -3], rtol=1e-5)
    np.testing.assert_allclose(got["advantage"][0], advantage, rtol=1e-5)
    assert float(policy) == pytest.approx((-(advantage * np.log(t).sum(-1)) + w * kl).mean(), rel=1e-5)
    # Of log t, a share p / (p + q) moves with log p and the rest with log q.
    of_t = (w - advantage)[:, None] / 4
    np.testing.assert_allclose(slopes[0][0, :, :2], of_t * p / (p + q) - w[:, None] / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes[1][0, :, :2], of_t * q / (p + q), rtol=1e-4)
    want = np.zeros((G, 5))
    want[0, 3:] = -1 / 4
    np.testing.assert_allclose(slopes[2][0], want, atol=1e-7)


def test_measured_numbers_are_of_the_chains_of_each_prompt():
    reward = np.array([[1.0, 2.0, 5.0, 7.0]])
    got = posterior.measured(BOTH, reward, PosteriorConfig(share=0.5))
    w = np.array(posterior.weights(BOTH, PosteriorConfig(share=0.5)))[0]
    want = {
        "posterior/reverse_kl": (np.log(2) + np.log(1 / 3)) / 2,
        "posterior/kl": (0 + np.log(0.5)) / 2,
        "posterior/gain": 4.5,
        "posterior/ess": w.sum() ** 2 / (4 * (w**2).sum()),
    }
    assert {k: float(v) for k, v in got.items()} == pytest.approx(want, rel=1e-5)
    alone = posterior.measured(BOTH._replace(from_shown=np.zeros(4, bool)), reward, PosteriorConfig(distill=1.0))
    assert list(alone) == ["posterior/reverse_kl"]


def test_the_gain_of_showing_the_answer_is_without_the_kl():
    def of(kl):
        cfg = rewarded("log_prob", posterior=PosteriorConfig(share=0.5, target=1.0, kl=kl))
        return gradients(PARAMS, (None, None), batch_of(CHAINS), MODEL, cfg)[1:]

    (plain, rows), (sums, penalised) = of(0.0), of(1.0)
    assert np.abs(rows["reward"] - penalised["reward"]).max() > 0.05
    assert float(sums["posterior/gain"]) == pytest.approx(float(plain["posterior/gain"]), abs=1e-5)
    gain = (rows["reward"][0, 2:] - rows["reward"][0, :2]).mean()
    assert float(plain["posterior/gain"]) == pytest.approx(float(gain), abs=1e-5)


def test_no_log_prob_gives_a_number_that_is_not_finite():
    worst_case = BOTH._replace(plain=np.full((1, 4, 1), -1e30, np.float32))
    for cfg in (PosteriorConfig(share=0.5, target=t, kl=1.0) for t in (0.0, 0.5, 1.0)):
        w = posterior.weights(worst_case, cfg)
        assert np.isfinite(w).all() and np.isfinite(posterior.advantages(np.full((1, 4), -1e30), w, worst_case)).all()
    nothing = BOTH._replace(keep=np.zeros((1, 4), bool))
    assert not posterior.advantages(
        np.ones((1, 4)), posterior.weights(nothing, PosteriorConfig(share=0.5)), nothing
    ).any()
