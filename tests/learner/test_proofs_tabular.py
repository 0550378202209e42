"""Expectations by enumeration: every method's update, averaged over all groups that a small policy can sample.

Each is compared with autodiff of the objective's own expectation, or with the method's formulas in numpy.
test_surrogate.py has more rows of the table and the known mistakes, test_exact_gradient.py the same through the
whole step.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.config import apply_preset, build
from rl_likelihood.learner.surrogate import Counts, LossConfig, kl_estimate, leave_one_out, policy_loss
from rl_likelihood.rewards.likelihood import OBJECTIVES
from tests.runs import small_config
from tests.tabular import (
    LENGTHS,
    ONE_BY_ONE,
    OTHER,
    P_TREE,
    REWARD,
    THREE,
    TREE,
    all_groups,
    chance,
    exact_gradient,
    expectation,
    expected,
    group_loss,
    in_numpy,
    mean_reward,
    padded,
    token_log_probs,
)

# ------------------------------------------------------------------ the likelihood rewards

# Objective at group size: J, dJ/d(chain logits), dJ/d(logit of the reference answer after each chain).
LOG_PROB = -0.945140, (0.159023, -0.007237, -0.151787), (0.127452, 0.155670, 0.301435)
PROB = 0.415443, (0.069885, -0.009479, -0.060407), (0.079334, 0.058772, 0.081068)
ROWS = {
    ("log_prob", 4): LOG_PROB,
    ("prob", 4): PROB,
    ("jepo", 2): (-0.913146, (0.166464, -0.015065, -0.151399), (0.156100, 0.153582, 0.248415)),
    ("jepo", 3): (-0.901643, (0.167911, -0.017830, -0.150080), (0.167420, 0.150669, 0.229915)),
    ("jepo", 4): (-0.895815, (0.168328, -0.019176, -0.149152), (0.173295, 0.148746, 0.220798)),
}
LOG_MARGINAL = -0.878410


@pytest.mark.parametrize("text, g, exact", [*((*row, True) for row in ROWS), ("jepo", 4, False), ("prob", 4, False)])
def test_the_table_by_the_sum(text, g, exact):
    """The table has six digits, and training's float32 is as close to them as float64."""
    j, d_chain, d_answer = ROWS[text, g]
    grads, value = expected("three", g, LossConfig(), text, exact=exact)
    assert value == pytest.approx(j, abs=1e-6)
    np.testing.assert_allclose(grads[:3], d_chain, atol=1e-6)
    np.testing.assert_allclose(grads[3::2], d_answer, atol=1e-6)
    np.testing.assert_allclose(grads[4::2], np.negative(d_answer), atol=1e-6)


def test_the_bounds_of_jepo_rise_to_the_log_marginal():
    j = [LOG_PROB[0]] + [expected("three", g, LossConfig(), "jepo")[1] for g in (2, 3, 4)]
    assert all(a < b for a, b in itertools.pairwise([*j, LOG_MARGINAL]))
    chain, answer = (np.exp(in_numpy(THREE, THREE.logits, x).sum(-1)) for x in (THREE.chains, THREE.answers))
    assert np.log(chain @ answer) == pytest.approx(LOG_MARGINAL, abs=1e-6)


def test_a_weighted_sum_has_the_weighted_gradient():
    """Likelihood terms, differentiable, beside a rule, which is not: 2 jepo + prob/2 - exact_match/4."""

    def j(logits):
        f = lambda lp: 2 * (jax.nn.logsumexp(lp, -1) - np.log(2)) + 0.5 * jnp.exp(lp).mean(-1)
        return expectation("tree", 2, f)(logits) - 0.25 * mean_reward(logits)

    grads, value = expected("tree", 2, LossConfig(), "2*jepo + 0.5*prob + -0.25*exact_match")
    assert value == pytest.approx(float(j(TREE.logits)), abs=1e-6)
    np.testing.assert_allclose(grads, exact_gradient("tree", j), atol=1e-9)


def test_nothing_is_learned_through_the_advantage():
    """The gradient of one group's loss is its finite difference with the advantages held where they are."""
    group = np.array([0, 4, 6])
    mask, keep = (TREE.answers >= 0)[group][None], np.ones((1, 3), bool)
    values = {"log_prob": lambda lp: lp.mean(), "prob": lambda lp: np.exp(lp).mean()}
    values["jepo"] = lambda lp: np.log(np.exp(lp).mean())

    def losses(x):
        return [group_loss(TREE, x, group, jnp.asarray(REWARD)[group], LossConfig(), name, x, x)[0] for name in values]

    with jax.enable_x64(True):
        slopes = [np.asarray(x) for x in jax.jit(jax.jacrev(losses))(jnp.asarray(TREE.logits))]
        answers = jnp.asarray(in_numpy(TREE, TREE.logits, TREE.answers)[group][None])
        difference = jax.jit(lambda logp: [leave_one_out(OBJECTIVES[name], logp, mask, keep) for name in values])
        held = [np.asarray(x) for x in difference(answers)]
    for slope, a, f in zip(slopes, held, values.values(), strict=True):

        def frozen(x, a=a[0], f=f):
            chain, answer = (in_numpy(TREE, x, which).sum(-1)[group] for which in (TREE.chains, TREE.answers))
            return -(a @ chain) - f(answer)

        steps = 1e-5 * np.eye(len(TREE.logits))
        np.testing.assert_allclose(
            slope, [(frozen(TREE.logits + h) - frozen(TREE.logits - h)) / 2e-5 for h in steps], atol=1e-8
        )
        assert np.abs(slope).max() > 0.1


def multiple_of(x, y):
    """(c, whether x is c * y) for the c of the least squares."""
    c = float(x @ y / (y @ y))
    return c, float(np.abs(x - c * y).max()) < 1e-8


# Switches of the policy term: what each makes of the exact policy term, None where that is no multiple of it.
SWITCHES = {
    "as it is": (LossConfig(), 1.0),
    "PPO's clip, on-policy": (LossConfig(clip_low=0.2, clip_high=0.28), 1.0),
    "token ratios, on-policy": (LossConfig(ratio="token"), 1.0),
    "sequence ratios, on-policy": (LossConfig(ratio="sequence"), 1.0),
    "the mean with the row itself": (LossConfig(advantage="mean"), 1 / 2),
    "a constant number of tokens": (LossConfig(aggregation="const", max_tokens=8), 1 / 8),
    "over the standard deviation": (LossConfig(advantage="std"), None),
    "over it and clipped": (LossConfig(advantage="std_clip"), None),
    "mean over each row's tokens": (LossConfig(aggregation="seq_mean"), None),
    "mean over all tokens": (LossConfig(aggregation="token_mean"), None),
    "a term over its standard deviation": (LossConfig(), None),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_which_switches_keep_the_policy_term_exact(switch):
    cfg, factor = SWITCHES[switch]
    text = "log_prob/std" if switch.startswith("a term") else "log_prob"
    got, _ = expected("tree", 2, dataclasses.replace(cfg, answer_term=0.0), text)
    held = jax.lax.stop_gradient
    answers = lambda logits: token_log_probs(TREE, held(logits), TREE.answers).sum(-1)
    j = lambda logits: chance(TREE, logits, ONE_BY_ONE) @ answers(logits)
    c, is_multiple = multiple_of(got, exact_gradient("tree", j))
    assert is_multiple == (factor is not None)
    if factor is not None:
        assert c == pytest.approx(factor, abs=1e-8)


def test_the_policy_term_alone_is_not_the_gradient_of_a_likelihood():
    whole, policy = (expected("tree", 2, LossConfig(answer_term=x))[0] for x in (1.0, 0.0))
    exact = exact_gradient("tree", expectation("tree", 2, lambda lp: lp.mean(-1)))
    np.testing.assert_allclose(whole, exact, atol=1e-9)
    np.testing.assert_allclose(policy[:9], exact[:9], atol=1e-9)
    assert (policy[9:] == 0).all() and np.abs(exact[9:]).max() > 0.05  # the answers' states


# ------------------------------------------------------------------ the methods of rules, by their formulas


def preset_loss(name, **changes):
    """The loss of a preset as a config makes it, with Dr.GRPO's constant at 8 tokens."""
    c = small_config()
    c.preset = name
    apply_preset(c)
    return dataclasses.replace(build(c).step.loss, max_tokens=8, **changes)


def token_gradients():
    """d log p(token) / d logits [7, 3, N] of TREE's chains, by hand: one-hot minus softmax of its state."""
    n, out = len(TREE.logits), np.zeros((*TREE.chains.shape, len(TREE.logits)))
    start = np.repeat(np.cumsum((0, *TREE.states[:-1])), TREE.states)
    size = np.repeat(TREE.states, TREE.states)
    for at in zip(*np.nonzero(TREE.chains >= 0), strict=True):
        token = TREE.chains[at]
        state = slice(start[token], start[token] + size[token])
        p = np.exp(TREE.logits[state]) / np.exp(TREE.logits[state]).sum()
        out[at][state] = -p
        out[at] += np.eye(n)[token]
    return out


def rloo(r):
    return [x - np.delete(r, i).mean() for i, x in enumerate(r)]


def over_std(r):
    return (r - r.mean()) / (r.std(ddof=1) + 1e-4) if r.std() > 0 else 0 * r


# Of a group's rewards [G] and lengths [G]: advantages, and the weight of each row's sum over its tokens.
METHODS = {
    "rloo": (rloo, lambda n: np.full(len(n), 1 / len(n))),
    "grpo": (over_std, lambda n: 1 / n / len(n)),
    "dr_grpo": (lambda r: r - r.mean(), lambda n: np.full(len(n), 1 / 8 / len(n))),
    "dapo": (over_std, lambda n: np.full(len(n), 1 / n.sum())),
    "rlpr": (over_std, lambda n: np.full(len(n), 1 / n.sum())),
    "nover": (lambda r: r - r.mean(), lambda n: np.full(len(n), 1 / n.sum())),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_expected_update_of_each_preset_is_its_formula(name, g=3):
    advantage, weight = METHODS[name]
    rows = token_gradients().sum(1)
    update = 0
    for group in all_groups(TREE, g):
        scale = np.asarray(advantage(REWARD[group])) * weight(LENGTHS[group])
        update = update + P_TREE[group].prod() * (scale @ rows[group])
    got, _ = expected("tree", g, preset_loss(name, kl="none"), "exact_match")
    assert np.abs(update).max() > 0.004
    np.testing.assert_allclose(got, update, atol=1e-9)
    if name in ("rloo", "dr_grpo"):
        # One is the gradient of the expected reward, the other a fixed share of it.
        share = 1 if name == "rloo" else (g - 1) / g / 8
        np.testing.assert_allclose(got, share * exact_gradient("tree", mean_reward), atol=1e-9)


@pytest.mark.parametrize("kind", ["loo", "std"])
def test_a_coin_for_a_reward_moves_nothing_in_expectation(kind):
    """Whichever way the coins of a group fall: they do not know its chains."""
    cfg, pairs = LossConfig(advantage=kind, answer_term=0.0), all_groups(TREE, 2)
    for coins in itertools.product((0.0, 1.0), repeat=2):
        got, _ = expected("tree", 2, cfg, "exact_match", reward=np.broadcast_to(coins, pairs.shape))
        assert np.abs(got).max() < 1e-12
    # A coin that looks at the chain does move it.
    got, _ = expected("tree", 2, cfg, "exact_match", reward=np.broadcast_to((1.0, 0.0), pairs.shape) * (pairs == 0))
    assert np.abs(got).max() > 0.05


def test_variance_of_one_sample_by_verifier_and_by_likelihood():
    """The verifier's estimate on a sampled answer and VeriFree's, no baseline: one mean, variances 0.489 and 0.189."""
    one, row = Counts(jnp.float32(1), jnp.float32(2)), np.ones((1, 1), bool)
    pairs = padded([[z, 3 + 2 * z + y] for z in range(3) for y in range(2)])  # y = 0 is the reference answer

    def verifier(logits):
        logp = token_log_probs(THREE, logits, pairs)[:, None, None]  # six groups of one row
        right = (pairs[:, 1] % 2 == 1) * 1.0
        return jax.vmap(lambda x, r: -policy_loss(x, x, r[None, None], x < 1, row, LossConfig(), one))(logp, right)

    def verifree(logits):
        tokens = [token_log_probs(THREE, logits, x) for x in (THREE.chains, THREE.answers)]
        chain, answer = (x[pairs[:, 0], None, None] for x in tokens)

        def of(z, a):
            f = OBJECTIVES["prob"](a, a < 1, row)
            return -policy_loss(z, z, f[None], z < 1, row, LossConfig(), one) + f[0]

        return jax.vmap(of)(chain, answer)

    p = np.exp(in_numpy(THREE, THREE.logits, pairs).sum(-1))
    mean, variance = [], []
    for estimate in (verifier, verifree):
        with jax.enable_x64(True):
            slope = np.asarray(jax.jit(jax.jacrev(estimate))(jnp.asarray(THREE.logits)))
        mean.append(p @ slope)
        variance.append(p @ (slope**2).sum(-1) - (mean[-1] ** 2).sum())
    np.testing.assert_allclose(*mean, atol=1e-12)
    np.testing.assert_allclose(mean[0][:3], PROB[1], atol=1e-6)
    assert variance == pytest.approx([0.489192, 0.189071], abs=1e-6)


# ------------------------------------------------------------------ KL to a reference, over chains of several tokens


def state_kls(p, q):
    """KL(p || q) of each of TREE's states that chains pass: [4]."""
    split = lambda x: jnp.split(x, np.cumsum(TREE.states)[:-1])[:4]
    logs = zip(map(jax.nn.log_softmax, split(p)), map(jax.nn.log_softmax, split(q)), strict=True)
    return jnp.stack([(jnp.exp(a) * (a - b)).sum() for a, b in logs])


def visits(logits):
    """How often a chain passes each of the four states: [4]."""
    first = jnp.exp(jax.nn.log_softmax(logits[:3]))
    return jnp.stack([1.0, first[1], first[2], first[2]])


def chain_kl(logits):
    """KL(pi || reference) of whole chains, by the chain rule."""
    return visits(logits) @ state_kls(logits, jnp.asarray(OTHER))


def only_kl(kind, **changes):
    return LossConfig(policy_term=float(kind == "reward_k1"), kl=kind, kl_coef=0.5, **changes)


def test_k1_in_the_reward_is_the_gradient_of_the_kl_of_chains():
    got, _ = expected("tree", 2, only_kl("reward_k1"), "0*exact_match", ref=OTHER)
    np.testing.assert_allclose(-2 * got, exact_gradient("tree", chain_kl), atol=1e-9)
    # Beside a rule's reward it is the gradient of E[R] - beta KL.
    got, _ = expected("tree", 2, preset_loss("rloo", kl_coef=0.5), "exact_match", ref=OTHER)
    j = lambda logits: mean_reward(logits) - 0.5 * chain_kl(logits)
    np.testing.assert_allclose(got, exact_gradient("tree", j), atol=1e-9)


def test_kl_in_the_loss_is_that_of_each_token_after_its_prefix():
    """k1 gives nothing, k2 the gradient of KL(pi || ref) and k3 that of KL(ref || pi), at the states as visited.

    What a token does to the states after it is left out, so neither is the gradient of the KL of chains.
    """
    held = jax.lax.stop_gradient
    forward = lambda x: held(visits(x)) @ state_kls(x, jnp.asarray(OTHER))
    backward = lambda x: held(visits(x)) @ state_kls(jnp.asarray(OTHER), x)
    kinds = ("k1", "k2", "k3")
    grads = {kind: -2 * expected("tree", 1, only_kl(kind), "0*exact_match", ref=OTHER)[0] for kind in kinds}
    np.testing.assert_allclose(grads["k1"], 0, atol=1e-12)
    np.testing.assert_allclose(grads["k2"], exact_gradient("tree", forward), atol=1e-9)
    np.testing.assert_allclose(grads["k3"], exact_gradient("tree", backward), atol=1e-9)
    whole = exact_gradient("tree", chain_kl)
    assert all(np.abs(grads[kind] - whole).max() > 0.05 for kind in grads)


def test_k1_and_k3_have_the_kl_of_chains_as_their_mean_and_k2_has_not():
    ours, theirs = (in_numpy(TREE, x, TREE.chains) for x in (TREE.logits, OTHER))
    mean = {k: P_TREE @ np.asarray(kl_estimate(k, ours, theirs), np.float64).sum(-1) for k in ("k1", "k2", "k3")}
    kl = P_TREE @ (ours - theirs).sum(-1)
    assert kl > 0.1 and abs(mean["k2"] - kl) > 0.01
    assert mean["k1"] == pytest.approx(kl, rel=1e-5) and mean["k3"] == pytest.approx(kl, rel=1e-5)


# ------------------------------------------------------------------ stale rollouts


def test_sequence_ratios_make_stale_chains_unbiased_for_the_policy_term():
    """Chains of an older policy. Nothing corrects the answer term: its mean stays the one over the older chains."""
    far = dict(ratio_cap=1e9)
    exact = exact_gradient("tree", mean_reward)
    for ratio in ("none", "token", "sequence"):
        got, _ = expected("tree", 2, LossConfig(ratio=ratio, **far), "exact_match", old=OTHER)
        assert (np.abs(got - exact).max() < 1e-9) == (ratio == "sequence")
    cut, _ = expected("tree", 2, LossConfig(ratio="sequence", ratio_cap=2.0), "exact_match", old=OTHER)
    assert np.abs(cut - exact).max() > 1e-3, "truncation trades variance for bias"
    stale, _ = expected("tree", 2, LossConfig(policy_term=0.0, ratio="sequence", **far), old=OTHER)

    def over_older_chains(logits):
        answers = token_log_probs(TREE, logits, TREE.answers).sum(-1)
        return chance(TREE, jnp.asarray(OTHER), ONE_BY_ONE) @ answers

    np.testing.assert_allclose(stale, exact_gradient("tree", over_older_chains), atol=1e-9)
