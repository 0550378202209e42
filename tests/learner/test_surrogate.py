"""The one equation: leave-one-out differences, advantages, and exact gradients on an enumerable policy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.learner import surrogate
from rl_likelihood.learner.surrogate import Counts, LossConfig, leave_one_out, policy_loss
from rl_likelihood.rewards import reward_sum
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.likelihood import OBJECTIVES, SCORES, kept_mean
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.tables import parse_reward

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
advantages = jax.jit(surrogate.advantages, static_argnames=("kind", "eps"))
difference = jax.jit(lambda name, *args: leave_one_out(OBJECTIVES[name], *args), static_argnums=0)


def group(values):
    """One prompt whose answers have one token each: log-probs, mask, keep."""
    logp = np.float32(values).reshape(1, -1, 1)
    return logp, np.ones_like(logp, bool), np.ones(logp.shape[:2], bool)


@jax.jit
def reward_difference(rewards, keep):
    """Differences of an objective that is the mean of rewards [1, G] scored outside the graph."""
    f = lambda logp, mask, keep: kept_mean(rewards, keep)
    return leave_one_out(f, jnp.zeros((*rewards.shape, 1)), jnp.ones((*rewards.shape, 1), bool), keep)


# ------------------------------------------------------------------ leave-one-out differences and advantages


def test_means_give_rloo_over_g():
    rng = np.random.default_rng(0)
    logp = -rng.exponential(1.0, (3, 5, 4)).astype(np.float32)
    mask = rng.random(logp.shape) < 0.8
    keep = np.array([[True] * 5, [True, False, True, True, False], [False, False, True, True, False]])
    for name, score in SCORES.items():
        reward = np.asarray(score(logp, mask), np.float64)
        got = np.asarray(difference(name, logp, mask, keep))
        for p in range(3):
            counted = np.flatnonzero(keep[p])
            for i in counted:
                others = reward[p, counted[counted != i]].mean()
                assert got[p, i] == pytest.approx((reward[p, i] - others) / len(counted), abs=1e-6)
            mean = reward[p, counted].mean()
            np.testing.assert_allclose(got[p, counted], (reward[p, counted] - mean) / (len(counted) - 1), atol=1e-6)
            assert got[p].sum() == pytest.approx(0, abs=1e-6)
        assert (got[~keep] == 0).all()


def test_jepo_closed_form():
    rng = np.random.default_rng(1)
    logp = -rng.exponential(3.0, (6, 4)).astype(np.float32)
    got = difference("jepo", logp[..., None], np.ones((6, 4, 1), bool), np.ones((6, 4), bool))
    w = np.exp(logp.astype(np.float64))
    w /= w.sum(-1, keepdims=True)
    np.testing.assert_allclose(got, -np.log1p(-w) - math.log(4 / 3), atol=2e-6)
    assert (np.asarray(got) >= -math.log(4 / 3) - 1e-6).all() and abs(np.asarray(got).sum()) > 0.1


@pytest.mark.parametrize("g, bound", [(2, -0.6931), (4, -0.2877), (32, -0.0317)])
def test_jepo_lower_bound_and_dominating_chain(g, bound):
    got = np.asarray(difference("jepo", *group([-5.0] + [-500.0] * (g - 1))))[0]
    assert got[0] == pytest.approx((-5 - math.log(g)) - (-500), abs=1e-3)
    np.testing.assert_allclose(got[1:], bound, atol=5e-5)
    if g == 4:
        assert got[0] == pytest.approx(493.6137, abs=1e-3)


def test_jepo_is_log_prob_to_first_order():
    near = [-2.0, -2.001, -1.999, -2.0005]
    a, b = (np.asarray(difference(name, *group(near))) for name in ("jepo", "log_prob"))
    np.testing.assert_allclose(a, b, atol=2e-6)
    assert np.abs(b).max() > 1e-4


def unlikely(level, spread, tokens, g, seed=0):
    """Answers of about `level` nats whose log-probs differ by about `spread`: [3, G, A] and their mask."""
    rng = np.random.default_rng(seed)
    base = rng.exponential(1.0, (3, 1, tokens))
    noise = rng.normal(size=(3, g, tokens)) * spread / np.sqrt(tokens)
    logp = np.minimum(level * base / base.sum(-1, keepdims=True) + noise, -1e-6).astype(np.float32)
    return logp, np.ones(logp.shape, bool)


def exact_differences(name, logp):
    """Leave-one-out differences in float64, each group's highest l taken off for jepo."""
    logp = logp.astype(np.float64)
    total, n, g = logp.sum(-1), logp.shape[-1], logp.shape[1]
    if name == "jepo":
        x = total - total.max(-1, keepdims=True)
        others = [np.delete(x, i, axis=-1) for i in range(g)]
        tops = [y.max(-1) for y in others]
        without = [top + np.log(np.exp(y - top[:, None]).mean(-1)) for y, top in zip(others, tops, strict=True)]
        return np.log(np.exp(x).mean(-1))[:, None] - np.stack(without, -1)
    rows = {"avg_prob": np.exp(logp).mean(-1), "prob": np.exp(total), "geo_mean_prob": np.exp(total / n)}
    rows |= {"log_prob": total, "avg_log_prob": total / n}
    return (rows[name] - rows[name].mean(-1, keepdims=True)) / (g - 1)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tokens, g", [(1, 2), (40, 64)])
def test_differences_keep_five_digits_where_log_probs_are_large(name, tokens, g):
    for level, spread in itertools.product((-2, -1100, -3000), (0.01, 1.0)):
        logp, mask = unlikely(level, spread, tokens, g)
        keep = mask[..., 0]
        got, want = difference(name, logp, mask, keep), exact_differences(name, logp)
        for kind in ("loo", "mean", "std", "std_clip"):
            a = np.asarray(advantages(got, keep, kind))
            with jax.enable_x64(True):
                b = np.asarray(surrogate.advantages(jnp.asarray(want), keep, kind))
            # A number below float32's range is 0, and so are differences of such.
            size = np.abs(b).max(-1, keepdims=True)
            assert (np.abs(a - b) <= 1e-5 * size + 1e-35).all(), f"{kind} {level} {spread}"


def test_differences_of_mean_probabilities_where_answers_have_different_lengths_and_rows_are_dropped():
    rng = np.random.default_rng(0)
    logp = np.minimum(rng.normal(-1, 0.01, (5, 6, 8)), 0).astype(np.float32)
    logp[0, 0], logp[1, :, 2] = -3e38, 120.0  # no probability, and none that can be
    mask, keep = rng.random(logp.shape) < 0.7, rng.random((5, 6)) < 0.8
    mask[2, 3] = False
    rows = np.where(mask, np.exp(np.clip(logp.astype(np.float64), -1e3, 80)), 0).sum(-1) / np.maximum(mask.sum(-1), 1)
    others = np.maximum(keep.sum(-1, keepdims=True) - 1, 1)
    mean = np.where(keep, rows, 0).sum(-1, keepdims=True) / np.maximum(keep.sum(-1, keepdims=True), 1)
    want = np.where(keep & (keep.sum(-1, keepdims=True) > 1), (rows - mean) / others, 0)
    got = leave_one_out(OBJECTIVES["avg_prob"], logp, mask, keep)
    assert (np.abs(got - want) <= 1e-5 * np.abs(want).max(-1, keepdims=True)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_rows_differ_by_exactly_nothing(name):
    for tokens, level in itertools.product((1, 7), (-1.7, -1100.3, -3000.1)):
        logp = np.broadcast_to(unlikely(level, 0.0, tokens, 1)[0], (3, 64, tokens))
        keep = np.ones((3, 64), bool)
        keep[1, ::3] = False
        d = difference(name, logp, np.ones(logp.shape, bool), keep)
        for kind in ("loo", "mean", "std", "std_clip"):
            assert (np.asarray(advantages(d, keep, kind)) == 0).all()


def test_a_sum_of_terms_keeps_its_digits_too():
    """An objective of the answers, one over its standard deviation, and a constant of the rows as large as they are."""
    logp, mask = unlikely(-3000, 0.01, 40, 8)
    keep, rewards = mask[..., 0], np.float32(-2000) + np.arange(8, dtype=np.float32)[None] / 64 + np.zeros((3, 1))
    observation = Observation(
        floored_logp=logp,
        scored=mask,
        keep=keep,
        truncated=~keep,
        policy=PolicyStats(logp, logp, logp, mask, 24),
        chain_tokens=np.ones(keep.shape, np.float32),
        host_rewards={"math": rewards.astype(np.float32)},
    )
    f, *_ = reward_sum.objective(observation, RewardConfig(terms=parse_reward("2*log_prob + math + jepo/std")))
    got = leave_one_out(f, logp, mask, keep)
    total = logp.sum(-1, dtype=np.float64)
    std = total.std(-1, ddof=1, keepdims=True)
    want = 2 * exact_differences("log_prob", logp) + exact_differences("jepo", logp) / std
    want += (rewards - rewards.mean(-1, keepdims=True)) / 7
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["std", "std_clip"])
def test_rounding_is_not_blown_up_to_an_advantage(kind):
    keep = np.ones((2, 4), bool)
    d = np.float32([[3e-8, -1e-8, -1e-8, -1e-8], [0.3, -0.1, -0.1, -0.1]])
    got = np.asarray(advantages(d, keep, kind))
    assert (got[0] == 0).all() and np.abs(got[1]).min() > 0.1


def test_advantages_of_the_fixture():
    # Rewards (.5, .1, .1, .1).
    p, (logp, mask, keep) = [0.5, 0.1, 0.1, 0.1], group(np.log([0.5, 0.1, 0.1, 0.1]))
    d = reward_difference(np.float32([p]), keep)
    np.testing.assert_allclose(advantages(d, keep, "loo")[0], [0.4, -0.1333, -0.1333, -0.1333], atol=1e-4)
    np.testing.assert_allclose(advantages(d, keep, "mean")[0], [0.3, -0.1, -0.1, -0.1], atol=1e-6)
    # (R - mean) / (std + 1e-4), std = 0.2: 1.5 less a part in 2000.
    np.testing.assert_allclose(advantages(d, keep, "std")[0], [1.5, -0.5, -0.5, -0.5], atol=1e-3)
    np.testing.assert_allclose(advantages(d, keep, "std", eps=0.0)[0], [1.5, -0.5, -0.5, -0.5], atol=1e-5)
    on_log = advantages(difference("log_prob", logp, mask, keep), keep, "loo")[0]
    np.testing.assert_allclose(on_log, [1.6094, -0.5365, -0.5365, -0.5365], atol=1e-4)
    jepo = difference("jepo", logp, mask, keep)[0]
    np.testing.assert_allclose(jepo, [0.693147, -0.154151, -0.154151, -0.154151], atol=1e-6)
    assert OBJECTIVES["jepo"](logp, mask, keep)[0] == pytest.approx(-1.609438, abs=1e-6)


numbers = st.lists(st.floats(-20, 0, width=32), min_size=5, max_size=5)
masks = st.lists(st.booleans(), min_size=5, max_size=5)


@PROPERTY
@given(numbers, masks)
def test_a_dropped_row_is_an_absent_row(values, counted):
    logp, mask, _ = group(values)
    keep = np.array([counted])
    n = sum(counted)
    for name in OBJECTIVES:
        got = np.asarray(difference(name, logp, mask, keep))[0]
        assert (got[~keep[0]] == 0).all()
        if n < 2:
            assert (got == 0).all()
        else:
            absent = leave_one_out_numpy(name, logp[0, keep[0], 0].astype(np.float64))
            np.testing.assert_allclose(got[keep[0]], absent, rtol=1e-4, atol=2e-5)


def leave_one_out_numpy(name, x):
    """f(all) - f(all but one) for answers of one token."""
    f = {"log_prob": np.mean, "avg_log_prob": np.mean, "jepo": lambda x: np.log(np.mean(np.exp(x)))}
    f = f.get(name, lambda x: np.mean(np.exp(x)))
    return [f(x) - f(np.delete(x, i)) for i in range(len(x))]


@PROPERTY
@given(numbers, st.floats(-5, 5, width=32), st.floats(0.125, 4, width=32))
def test_shift_and_scale(values, shift, scale):
    keep, values = np.ones((1, 5), bool), np.float32([values])
    d, shifted, scaled = (
        np.asarray(reward_difference(np.float32(x), keep)) for x in (values, values + shift, values * scale)
    )
    np.testing.assert_allclose(shifted, d, atol=2e-5)
    np.testing.assert_allclose(scaled, d * scale, atol=2e-5)


# ------------------------------------------------------------------ exact gradients on the tabular policy

# Three chains, two answers, the reference answer is number 0.
TH = np.array([0.2, -0.1, 0.4])
PH = np.array([[0.5, 0.0], [-0.3, 0.2], [0.0, 1.0]])
# objective, group size: J, dJ/dth, dJ/dph[:, 0] (dph[:, 1] is its negative)
TABLE = {
    ("log_prob", 2): (-0.945140, (0.159023, -0.007237, -0.151787), (0.127452, 0.155670, 0.301435)),
    ("log_prob", 3): (-0.945140, (0.159023, -0.007237, -0.151787), (0.127452, 0.155670, 0.301435)),
    ("prob", 2): (0.415443, (0.069885, -0.009479, -0.060407), (0.079334, 0.058772, 0.081068)),
    ("prob", 4): (0.415443, (0.069885, -0.009479, -0.060407), (0.079334, 0.058772, 0.081068)),
    ("jepo", 2): (-0.913146, (0.166464, -0.015065, -0.151399), (0.156100, 0.153582, 0.248415)),
    ("jepo", 3): (-0.901643, (0.167911, -0.017830, -0.150080), (0.167420, 0.150669, 0.229915)),
    ("jepo", 4): (-0.895815, (0.168328, -0.019176, -0.149152), (0.173295, 0.148746, 0.220798)),
}


def expected_gradient(name, g, wrong=None):
    """(E f, E of minus the loss's gradient) over all G-tuples of chains, through the package's functions.

    `wrong` names a mistake to make on purpose.
    """
    f, one = OBJECTIVES[name], Counts(jnp.float32(1), jnp.float32(g))
    mask, keep = np.ones((1, g, 1), bool), np.ones((1, g), bool)

    def loss(th, ph, chains):
        chain_logp = jax.nn.log_softmax(th)[chains][None, :, None]
        answer_logp = jax.nn.log_softmax(ph)[chains, 0][None, :, None]
        d = leave_one_out(f, jax.lax.stop_gradient(answer_logp), mask, keep)
        a = advantages(d, keep, "loo")
        if wrong == "jepo over g":
            a = a / g
        policy = policy_loss(chain_logp, jnp.zeros_like(chain_logp), a, mask, keep, LossConfig(), one)
        if wrong == "detached answer":
            answer_logp = jax.lax.stop_gradient(answer_logp)
        answer = f(answer_logp, mask, keep).sum()
        if wrong == "baseline in the answer":
            # Weight each answer by its advantage where its reward belongs.
            answer = (jax.lax.stop_gradient(a) * answer_logp[..., 0]).mean()
        return policy - answer, answer

    def total(params):
        tuples = jnp.array(list(itertools.product(range(3), repeat=g)))
        weight = jax.lax.stop_gradient(jnp.exp(jax.nn.log_softmax(params[0])[tuples].sum(-1)))
        losses, values = jax.vmap(lambda z: loss(*params, z))(tuples)
        return -(weight * losses).sum(), (weight * values).sum()

    with jax.enable_x64(True):
        grads, value = jax.jit(jax.grad(total, has_aux=True))((jnp.asarray(TH), jnp.asarray(PH)))
        return float(value), *map(np.asarray, grads)


@pytest.mark.parametrize("name, g", TABLE)
def test_the_expected_estimate_is_the_exact_gradient(name, g):
    j, d_th, d_ph = expected_gradient(name, g)
    expected_j, expected_th, expected_ph = TABLE[name, g]
    assert j == pytest.approx(expected_j, abs=1e-6)
    np.testing.assert_allclose(d_th, expected_th, atol=1e-6)
    np.testing.assert_allclose(d_ph, np.stack([expected_ph, np.negative(expected_ph)], -1), atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_expected_estimate_is_autodiff_of_the_expectation(name):
    _, d_th, d_ph = expected_gradient(name, 3)
    score = {"jepo": lambda x: jax.nn.logsumexp(x, -1) - math.log(3)}
    score = score.get(name, lambda x: x.mean(-1) if "log" in name else jnp.exp(x).mean(-1))

    def exact(params):
        tuples = jnp.array(list(itertools.product(range(3), repeat=3)))
        weight = jnp.exp(jax.nn.log_softmax(params[0])[tuples].sum(-1))
        return (weight * score(jax.nn.log_softmax(params[1])[tuples, 0])).sum()

    with jax.enable_x64(True):
        th, ph = jax.jit(jax.grad(exact))((jnp.asarray(TH), jnp.asarray(PH)))
        np.testing.assert_allclose(d_th, th, atol=1e-9)
        np.testing.assert_allclose(d_ph, ph, atol=1e-9)


def test_the_known_mistakes_fail_the_same_check():
    _, d_th, _ = expected_gradient("jepo", 4, "jepo over g")
    np.testing.assert_allclose(d_th, [0.042082, -0.004794, -0.037288], atol=1e-6)  # four times too small
    for name in ("log_prob", "prob", "jepo"):
        for wrong in ("baseline in the answer", "detached answer"):
            _, d_th, d_ph = expected_gradient(name, 2, wrong)
            _, right_th, right_ph = TABLE[name, 2]
            np.testing.assert_allclose(d_th, right_th, atol=1e-6)
            assert np.abs(d_ph[:, 0] - right_ph).max() > 0.03, (name, wrong)


def test_a_verifier_on_sampled_answers_has_the_gradient_of_the_probability():
    # Over chains and sampled answers both, RLOO on the 0/1 reward, no answer term.
    pairs = list(itertools.product(range(3), range(2)))
    one = Counts(jnp.float32(1), jnp.float32(4))

    def loss(th, ph, rows):
        z, y = rows[:, 0], rows[:, 1]
        logp = jnp.stack([jax.nn.log_softmax(th)[z], jax.nn.log_softmax(ph)[z, y]], -1)[None]
        keep = jnp.ones((1, 2), bool)
        d = leave_one_out(lambda logp, mask, keep: kept_mean((y == 0)[None] * 1.0, keep), logp, logp < 1, keep)
        return policy_loss(logp, logp, advantages(d, keep, "loo"), logp < 1, keep, LossConfig(), one)

    def total(params):
        tuples = jnp.array(list(itertools.product(pairs, repeat=2)))
        z, y = tuples[..., 0], tuples[..., 1]
        weight = jnp.exp((jax.nn.log_softmax(params[0])[z] + jax.nn.log_softmax(params[1])[z, y]).sum(-1))
        return -(jax.lax.stop_gradient(weight) * jax.vmap(lambda rows: loss(*params, rows))(tuples)).sum()

    with jax.enable_x64(True):
        d_th, d_ph = jax.jit(jax.grad(total))((jnp.asarray(TH), jnp.asarray(PH)))
        np.testing.assert_allclose(d_th, TABLE["prob", 2][1], atol=1e-6)
        np.testing.assert_allclose(d_ph[:, 0], TABLE["prob", 2][2], atol=1e-6)
