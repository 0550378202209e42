"""Weights of answer tokens and MaxRL: values by hand, and the expected update by enumeration of all groups."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.surrogate import LossConfig, leave_one_out
from rl_likelihood.rewards import reward_sum, weighted
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.max_rl import max_rl
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.tables import parse_reward
from tests.tabular import PAIRS, Table, all_groups, chance, expected, padded, token_log_probs

# Three chains of one token, and after each an answer of two tokens, each with states of its own.
TWO = Table(
    np.random.default_rng(3).normal(size=3 + 2 * 6),
    (3,) + (2,) * 6,
    padded([[0], [1], [2]]),
    padded([[3 + 2 * i, 9 + 2 * i] for i in range(3)]),
)
BASE = np.log([[0.3, 0.05]])  # the two tokens without a chain
G = 3
GROUPS = all_groups(TWO, G)


def observation(answer, base=BASE):
    """Of groups [N, G, A] of log-probs, with tokens that do not count between those that do."""
    n, g, a = answer.shape
    logp = jnp.zeros((n, g, 2 * a + 1)).at[..., 1::2].set(answer)
    scored = jnp.broadcast_to(jnp.arange(2 * a + 1) % 2 == 1, logp.shape)
    keep = jnp.ones((n, g), bool)
    none = jnp.zeros((n, g))
    stats = PolicyStats(logp, logp, logp, scored, 3)
    base = jnp.broadcast_to(jnp.asarray(base, jnp.float32), (n, base.shape[-1]))
    return Observation(logp, scored, keep, ~keep, stats, none, {}, no_chain_logp=base)


def objective(answer, text, **changes):
    seen = observation(answer, BASE[:, : answer.shape[-1]])
    f, rows, _ = reward_sum.objective(seen, RewardConfig(terms=parse_reward(text), **changes))
    return seen, f, rows


def update(text, **changes):
    """The surrogate's gradient, averaged over all groups that TWO can sample."""

    def total(logits):
        weight = jax.lax.stop_gradient(chance(TWO, logits, GROUPS))
        answer = token_log_probs(TWO, logits, TWO.answers)[GROUPS]
        chain = token_log_probs(TWO, logits, TWO.chains).sum(-1)[GROUPS]
        seen, f, _ = objective(answer, text, **changes)
        held = jax.lax.stop_gradient(seen.floored_logp)
        d = jax.lax.stop_gradient(leave_one_out(f, held, seen.scored, seen.keep))
        return (weight * ((d * chain).sum(-1) + f(seen.floored_logp, seen.scored, seen.keep))).sum()

    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(TWO.logits)))


def exact(value_of_rows):
    """Gradient of E[value of a row], `value_of_rows`: log-probs [C, A] -> [C]."""

    def total(logits):
        p = chance(TWO, logits, all_groups(TWO, 1))
        return p @ value_of_rows(token_log_probs(TWO, logits, TWO.answers))

    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(TWO.logits)))


P_BASE = np.exp(BASE[0])
INVERSE = (1 / P_BASE) / (1 / P_BASE).sum()
NEG_LOG = BASE[0] / BASE[0].sum()


@pytest.mark.parametrize(
    "text, changes, value",
    [
        ("nrt", {"token_weights": "inverse"}, lambda x: jnp.maximum(((jnp.exp(x) - P_BASE) * INVERSE).sum(-1), 0)),
        ("nrt", {"token_weights": "neg_log"}, lambda x: jnp.maximum(((jnp.exp(x) - P_BASE) * NEG_LOG).sum(-1), 0)),
        ("nrt", {"token_weights": "neg_log", "clip_gain": False}, lambda x: (jnp.exp(x) * NEG_LOG).sum(-1)),
        ("weighted_log_prob", {"token_weights": "inverse"}, lambda x: (2 * x * INVERSE).sum(-1)),
        ("weighted_avg_prob", {"token_weights": "neg_log"}, lambda x: (jnp.exp(x) * NEG_LOG).sum(-1)),
    ],
)
def test_weights_from_the_answer_without_a_chain_keep_the_update_exact(text, changes, value):
    want = exact(value)
    assert np.abs(want).max() > 0.02
    np.testing.assert_allclose(update(text, baseline="live", **changes), want, atol=1e-7)


def others_spread(answer):
    """Standard deviations over the other rows: [N, G, A] in numpy."""
    g = answer.shape[1]
    return np.stack([np.delete(answer, i, 1).std(1, ddof=1) for i in range(g)], 1)


def shares(x):
    total = x.sum(-1, keepdims=True)
    return np.divide(x, total, out=np.zeros_like(x), where=total > 0)


@pytest.mark.parametrize("text, of", [("r3", lambda x: 2 * x), ("weighted_avg_prob", jnp.exp)])
def test_weights_by_the_spread_of_the_others_are_exact_for_the_mean_weight(text, of):
    """The gradient of sum_t w_t E[x_t], w the mean weight, held constant: through the chains and the answer alike."""
    with jax.enable_x64(True):
        answer = np.asarray(token_log_probs(TWO, TWO.logits, TWO.answers), np.float64)[GROUPS]
        p = np.asarray(chance(TWO, TWO.logits, GROUPS))
    weights = shares(others_spread(answer))
    mean = (p[:, None, None] * weights).sum(0).mean(0)
    assert 0.1 < mean[0] / mean.sum() < 0.9
    changes = {} if text == "r3" else {"token_weights": "spread"}
    want = exact(lambda x: (of(x) * mean).sum(-1))
    np.testing.assert_allclose(update(text, **changes), want, atol=1e-7)


def test_weights_by_the_spread_of_the_whole_group_would_be_biased():
    """As R3 writes it: row i's weights depend on what row i sampled, so differences with them have another mean."""
    with jax.enable_x64(True):
        answer = np.asarray(token_log_probs(TWO, TWO.logits, TWO.answers), np.float64)[GROUPS]
        p = np.asarray(chance(TWO, TWO.logits, GROUPS))
        chains = np.asarray(jax.jacobian(lambda x: token_log_probs(TWO, x, TWO.chains).sum(-1))(TWO.logits))[GROUPS]
    whole = shares(np.broadcast_to(answer.std(1, ddof=1, keepdims=True), answer.shape))
    others = shares(others_spread(answer))

    def policy_term(w):
        centred = answer - answer.mean(1, keepdims=True)
        d = 2 * (w * centred).sum(-1) / (G - 1)
        return np.einsum("n,ng,ngk->k", p, d, chains)

    def of_mean(w):
        mean = np.einsum("n,nga->a", p, w) / G
        return exact(lambda x: (2 * jax.lax.stop_gradient(x) * mean).sum(-1))

    np.testing.assert_allclose(policy_term(others), of_mean(others), atol=1e-12)
    assert np.abs(policy_term(whole) - of_mean(whole)).max() > 0.01


def test_r3_by_hand():
    """Rows of (.9, .2, .5), (.9, .4, .5), (.9, .8, .5), (.9, .1, .5): all the weight is on the second token."""
    p = np.array([[[0.9, 0.2, 0.5], [0.9, 0.4, 0.5], [0.9, 0.8, 0.5], [0.9, 0.1, 0.5]]])
    seen = observation(jnp.log(p), np.log([[0.9, 0.3, 0.5]]))
    f, rows, _ = reward_sum.objective(seen, RewardConfig(terms=parse_reward("r3"), baseline="live"))
    np.testing.assert_allclose(rows[0], [-1.2164, 0.8630, 2.9425, -3.2958], atol=1e-4)
    d = leave_one_out(f, seen.floored_logp, seen.scored, seen.keep)
    np.testing.assert_allclose(d[0], (rows[0] - rows[0].mean()) / 3, atol=1e-5)


@pytest.mark.parametrize("text, x", [("r3", np.log), ("weighted_log_prob", np.log), ("weighted_avg_prob", np.asarray)])
def test_the_numbers_of_rows_with_weights_of_their_own_are_over_the_other_rows(text, x):
    """A row that is best on every token has the highest number, and the differences are those of the numbers."""
    p = np.array([[[0.3, 0.1], [0.3, 0.2], [0.4, 0.25], [0.9, 0.9]]])
    changes = {} if text == "r3" else {"token_weights": "spread"}
    cfg = RewardConfig(terms=parse_reward(text), **changes)
    seen = observation(jnp.log(p))
    seen = seen._replace(keep=jnp.asarray([[True, True, True, False]]), no_chain_logp=None)
    f, rows, _ = reward_sum.objective(seen, cfg)
    values, w = x(p[0, :3]), np.asarray(reward_sum.token_weights(seen, cfg))[0, :3, :2]
    others = (values.sum(0) - values) / 2
    np.testing.assert_allclose(rows[0, :3], (w * (values - others)).sum(-1), atol=1e-5)
    assert rows[0, 0] < rows[0, 1] < rows[0, 2] and np.ptp(w[:, 0]) > 0.05
    d = leave_one_out(f, seen.floored_logp, seen.scored, seen.keep)
    np.testing.assert_allclose(d[0, :3], rows[0, :3] / 3, atol=1e-6)


def test_likelihood_gain_by_hand():
    """Rows of (.9, .2, .5), (.9, .6, .5) against (.9, .3, .5) without a chain: ln(2/3) / 3 and ln 2 / 3. Its update is
    that of avg_log_prob, whatever the tokens have without a chain."""
    seen = observation(jnp.log(jnp.array([[[0.9, 0.2, 0.5], [0.9, 0.6, 0.5]]])), np.log([[0.9, 0.3, 0.5]]))
    f, rows, _ = reward_sum.objective(seen, RewardConfig(terms=parse_reward("likelihood_gain"), baseline="live"))
    np.testing.assert_allclose(rows[0], [-0.135155, 0.231049], atol=1e-6)
    d = leave_one_out(f, seen.floored_logp, seen.scored, seen.keep)
    np.testing.assert_allclose(d[0], [-0.183102, 0.183102], atol=1e-6)
    assert reward_sum.token_weights(seen, RewardConfig(terms=parse_reward("likelihood_gain"))) is None
    np.testing.assert_allclose(update("likelihood_gain", baseline="live"), exact(lambda x: x.mean(-1)), atol=1e-7)


@pytest.mark.parametrize("text", ["r3", "weighted_log_prob", "weighted_avg_prob"])
def test_equal_rows_and_dropped_rows_give_nothing(text):
    changes = {} if text == "r3" else {"token_weights": "spread"}
    seen = observation(jnp.broadcast_to(jnp.log(jnp.array([0.9, 0.31, 0.5])), (1, 4, 3)))
    f, rows, _ = reward_sum.objective(seen, RewardConfig(terms=parse_reward(text), **changes))
    assert (np.asarray(rows) == 0).all()
    assert (np.asarray(leave_one_out(f, seen.floored_logp, seen.scored, seen.keep)) == 0).all()
    nothing = jnp.zeros((1, 4), bool)
    value, grad = jax.value_and_grad(lambda x: f(x, seen.scored, nothing).sum())(seen.floored_logp)
    assert value == 0 and np.isfinite(grad).all()


@pytest.mark.parametrize("kind", ["inverse", "neg_log"])
def test_weights_of_certain_and_of_impossible_tokens_are_finite(kind):
    mask = np.array([[True, True, False]] * 3)
    base = np.array([[0.0, 0.0, 5.0], [-1e30, -1.0, 5.0], [-200.0, -199.0, -1e30]], np.float32)
    w = np.asarray(weighted.base_weights(kind, base, mask))
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(w[0], [0.5, 0.5, 0])
    assert (w[:, 2] == 0).all() and w[1, 0] > 0.99


def test_the_filter_looks_at_the_token_that_differs_most():
    logp = np.log([[[0.9, 0.2], [0.9, 0.4]], [[0.5, 0.3], [0.5, 0.3]]]).astype(np.float32)
    got = weighted.largest_spread(logp, np.ones(logp.shape, bool), np.ones((2, 2), bool))
    np.testing.assert_allclose(got, [np.log(2) / np.sqrt(2), 0], atol=1e-6)


# ------------------------------------------------------------------ MaxRL

RIGHT = np.array([1.0, 0.0] * 3)  # of PAIRS: the first answer after each chain
# N = 4: J, dJ/d(chain logits), dJ/d(logit of the reference answer), and what dropping groups with none right gives.
J4, D_CHAIN, D_ANSWER = -0.851184, (0.148577, -0.020152, -0.128425), (0.168664, 0.124949, 0.172352)
DROPPED = (0.134618, -0.018259, -0.116359)


def test_a_chain_worse_than_none_earns_nothing_and_its_answer_is_not_trained():
    """NRT's clip. The answer has one token, of probability 0.3 without a chain."""

    def differentiated(*p, **clip):
        seen, f, rows = objective(jnp.log(jnp.array(p))[None, :, None], "nrt", token_weights="neg_log", **clip)
        d = leave_one_out(f, seen.floored_logp, seen.scored, seen.keep)
        slope = jax.grad(lambda logp: f(logp, seen.scored, seen.keep).sum())(seen.floored_logp)
        return [np.asarray(x)[0].tolist() for x in (rows, d, slope[..., 1])]

    rows, d, slope = differentiated(0.5, 0.2, 0.1)
    assert rows == pytest.approx([0.2, 0, 0], abs=1e-6) and slope == pytest.approx([0.5 / 3, 0, 0], abs=1e-6)
    assert d == pytest.approx([0.2 / 3, -0.1 / 3, -0.1 / 3], abs=1e-6), "they differ from the one that helps alone"
    assert differentiated(0.25, 0.2, 0.1) == [[0, 0, 0]] * 3, "a group of such chains trains nothing"
    rows, d, slope = differentiated(0.25, 0.2, 0.1, clip_gain=False)
    assert rows == pytest.approx([-0.05, -0.1, -0.2], abs=1e-6) and min(slope) > 0.03 and d[0] > 0.02


def test_max_rl_has_the_gradient_of_its_objective():
    reward = RIGHT[all_groups(PAIRS, 4)]
    grads, value = expected("pairs", 4, LossConfig(), "max_rl(exact_match)", reward=reward)
    assert value == pytest.approx(J4, abs=1e-6)
    np.testing.assert_allclose(grads[:3], D_CHAIN, atol=1e-6)
    np.testing.assert_allclose(grads[3::2], D_ANSWER, atol=1e-6)


def test_without_the_groups_that_have_none_right_it_is_biased():
    """As the published codes have it."""
    groups = all_groups(PAIRS, 4)
    k = RIGHT[groups].sum(-1, keepdims=True)
    with jax.enable_x64(True):
        p = np.asarray(chance(PAIRS, PAIRS.logits, groups))
        rows = np.asarray(jax.jacobian(lambda x: token_log_probs(PAIRS, x, PAIRS.chains).sum(-1))(PAIRS.logits))
    d = np.where(k > 0, RIGHT[groups] / np.maximum(k, 1) - 1 / 4, 0)
    released = np.einsum("n,ng,ngk->k", p, d, rows[groups])
    np.testing.assert_allclose(released[:3], DROPPED, atol=1e-6)
    full, _ = expected("pairs", 4, LossConfig(), "max_rl(exact_match)", reward=RIGHT[groups])
    assert np.abs(released - full).max() == pytest.approx(0.0162, abs=1e-4)


def test_the_differences_of_max_rl_are_those_of_its_values():
    for n, dropped in itertools.product((2, 3, 5), (0, 1)):
        right = np.array(list(itertools.product((0.0, 1.0), repeat=n)), np.float32)
        keep = np.ones(right.shape, bool)
        keep[:, :dropped] = False
        f = max_rl(right)
        empty = jnp.zeros((*right.shape, 1)), jnp.zeros((*right.shape, 1), bool)
        got = leave_one_out(f, *empty, keep)
        want = leave_one_out(f.value, *empty, keep)  # by two values of f
        np.testing.assert_allclose(got, want, atol=1e-6)
