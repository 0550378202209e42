"""What a critic pays: known numbers, and a game over three answers that ends at the expert's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.preference import bradley_terry
from rl_likelihood.learner.surrogate import advantages, leave_one_out
from rl_likelihood.rewards.adversarial import policy_reward, verdict_of, verdict_rewards, verdicts_of
from rl_likelihood.rewards.likelihood import OBJECTIVES

EXPERT, POLICY = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
SCORE = np.log(EXPERT / POLICY)[None]  # the best critic's, of the three answers


def test_known_rewards_of_the_best_critic():
    gan, gail = (np.asarray(policy_reward(kind, SCORE[:, 0], SCORE)) for kind in ("gan", "gail"))
    np.testing.assert_allclose(gan, [[0.9163, 0, -0.9163]], atol=1e-4)
    np.testing.assert_allclose(gail, [[1.2528, 0.6931, 0.3365]], atol=1e-4)
    assert POLICY @ gan[0] == pytest.approx(-0.2749, abs=1e-4), "minus the KL to the expert"
    relative = np.asarray(policy_reward("relative", SCORE[:, 0], SCORE))
    np.testing.assert_allclose(relative, [np.log(1 / (1 + np.exp(SCORE[0, 0] - SCORE[0])))], atol=1e-6)


def test_a_critic_that_cannot_tell_prefers_no_answer():
    for kind in ("gan", "gail", "relative"):
        rewards = np.asarray(policy_reward(kind, np.zeros(2), np.zeros((2, 4))))
        assert np.ptp(rewards) == 0


def test_the_critic_of_labels_is_paid_by_whose_answer_it_picks():
    labels = np.array([[[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]])
    says = verdicts_of(labels, np.array([[True, False]]))
    np.testing.assert_allclose(says.expert, [[0.7, 0.2]])
    np.testing.assert_allclose(says.policy, [[0.2, 0.7]])
    np.testing.assert_allclose(says.tie, [[0.1, 0.1]])


@pytest.mark.parametrize(
    "chance, tau, best", [(0.5, 0.55, 2), (0.54, 0.55, 2), (0.56, 0.55, 0), (0.44, 0.55, 1), (0.52, 0.5, 0)]
)
def test_the_best_critic_ties_where_it_is_not_sure_enough(chance, tau, best):
    """`chance`: that the first of two answers, which look alike, is the expert's. Labels: first, second, tie."""
    logits = jnp.zeros(3)

    def loss(logits):
        of = jnp.broadcast_to(jax.nn.softmax(logits), (1, 2, 3))
        says = verdicts_of(of, jnp.array([[True, False]]))
        return -jnp.array([chance, 1 - chance]) @ (says.expert + tau * says.tie)[0]

    step = jax.jit(lambda x: x - 20.0 * jax.grad(loss)(x))
    for _ in range(2000):
        logits = step(logits)
    assert jax.nn.softmax(logits)[best] > 0.95


def critic_loss(scores, expert, policy):
    """The expected loss of pairs of an expert's and a policy's answer, by enumeration."""
    pairs = jnp.stack([jnp.repeat(scores, len(scores)), jnp.tile(scores, len(scores))], -1)
    each = bradley_terry(pairs, jnp.ones(pairs.shape, bool))
    return (jnp.outer(expert, policy).ravel() * each).sum()


@jax.jit
def trained(scores, expert, policy, steps, rate=2.0):
    scores = jax.lax.fori_loop(0, steps, lambda _, x: x - rate * jax.grad(critic_loss)(x, expert, policy), scores)
    return scores - scores.mean()


def best(expert, policy):
    """Scores of the best critic, up to a constant."""
    scores = np.log(expert / policy)
    return scores - scores.mean()


def test_the_best_critic_of_pairs_is_the_log_ratio():
    np.testing.assert_allclose(trained(jnp.zeros(3), EXPERT, POLICY, 400), best(EXPERT, POLICY), atol=1e-3)


@pytest.mark.parametrize("kind", ["gan", "gail", "relative"])
def test_alternating_updates_end_at_the_experts_distribution(kind):
    logits, scores = jnp.log(POLICY), jnp.zeros(3)
    for _ in range(300):
        policy = jax.nn.softmax(logits)
        scores = trained(scores, EXPERT, policy, 5)
        paid = EXPERT @ policy_reward(kind, scores, jnp.tile(scores, (3, 1)))  # a row for each answer of the expert
        logits = logits + 0.5 * policy * (paid - policy @ paid)
    policy = np.asarray(jax.nn.softmax(logits))
    assert (policy * np.log(policy / EXPERT)).sum() < 1e-2


def test_the_best_critic_of_new_answers_alone_forgets_a_mode_that_the_policy_left():
    """Why there is replay, by enumeration (tests/learner/test_adversarial.py trains with it). The policy leaves one
    wrong answer for another; a third one it never gives. The critic is trained to the end on what it is shown."""
    expert = np.array([0.94, 0.02, 0.02, 0.02])
    first, then = np.array([0.02, 0.94, 0.02, 0.02]), np.array([0.02, 0.02, 0.94, 0.02])
    of_first = trained(jnp.zeros(4), expert, first, 10_000, 20.0)
    assert of_first[3] - of_first[1] == pytest.approx(np.log(47), abs=0.01), "it knows the first mode"
    forgets = trained(of_first, expert, then, 10_000, 20.0)
    remembers = trained(of_first, expert, (first + then) / 2, 10_000, 20.0)
    assert forgets[3] - forgets[1] == pytest.approx(0, abs=0.01), "as good as an answer that nobody gives"
    assert remembers[3] - remembers[1] == pytest.approx(np.log(24), abs=0.01)


def test_sampled_verdicts_pay_by_the_table_and_swapped_answers_swap_labels():
    verdict = np.array([[[1, 2, 3, 0], [1, 2, 3, 0], [0, 0, 0, 0]]])
    critic, policy = verdict_rewards(verdict, np.array([[1, 2, 1]]), 0.55, 0.6)
    np.testing.assert_allclose(critic, [[[1, 0, 0.55, np.nan], [0, 1, 0.55, np.nan], [np.nan] * 4]])
    np.testing.assert_allclose(policy, [[1.6 / 3, 1.6 / 3, np.nan]])
    swapped = verdict_rewards(np.array([[[2, 1, 3, 0]]]), np.array([[2]]), 0.55, 0.6)
    for ours, theirs in zip(swapped, (critic, policy), strict=True):
        np.testing.assert_allclose(ours[0, 0], theirs[0, 0])


def critic_pay(said, chance, tau):
    """The critic's expected reward for a verdict, where the first answer is the expert's with this chance."""
    pay, _ = verdict_rewards(np.full((1, 2, 1), said), np.array([[1, 2]]), tau, 0.6)
    return chance * pay[0, 0, 0] + (1 - chance) * pay[0, 1, 0]


@pytest.mark.parametrize("chance, best", [(0.5, 3), (0.54, 3), (0.56, 1)])
def test_the_best_critic_says_tie_if_it_is_less_sure_than_what_a_tie_pays(chance, best):
    assert 1 + np.argmax([critic_pay(said, chance, 0.55) for said in (1, 2, 3)]) == best


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5])
def test_no_tie_pays_if_it_pays_half_or_less(tau):
    for chance in np.linspace(0, 1, 41):
        best = max(critic_pay(1, chance, tau), critic_pay(2, chance, tau))
        assert best >= critic_pay(3, chance, tau) and (best > tau or chance == tau == 0.5)


@pytest.mark.parametrize("said", [1, 2, 3])
@pytest.mark.parametrize("kind", ["loo", "mean", "std", "std_clip"])
def test_verdicts_that_are_all_alike_give_no_advantage(said, kind):
    """To the critic, whose verdicts on a pair are a group, and to the policy, whose answers are one."""
    critic, policy = verdict_rewards(np.full((2, 3, 4), said), np.full((2, 3), 1), 0.55, 0.6)
    for rewards in (critic.reshape(6, 4), policy):
        values, keep = jnp.asarray(rewards, jnp.float32)[..., None], jnp.ones(rewards.shape, bool)
        difference = leave_one_out(OBJECTIVES["log_prob"], values, jnp.ones(values.shape, bool), keep)
        np.testing.assert_allclose(advantages(difference, keep, kind), 0, atol=1e-6)


@pytest.mark.parametrize("said, verdict", [(" Tie\n", 3), ("2", 2), ("1", 1), ("12", 0), ("", 0), (None, 0), ("0", 0)])
def test_a_verdict_is_one_of_three_words(said, verdict):
    assert verdict_of(said) == verdict
