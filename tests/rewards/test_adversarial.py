"""What a critic pays: known numbers, and a game over three answers that ends at the expert's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.preference import bradley_terry
from rl_likelihood.rewards.adversarial import policy_reward

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


def critic_loss(scores, expert, policy):
    """The expected loss of pairs of an expert's and a policy's answer, by enumeration."""
    pairs = jnp.stack([jnp.repeat(scores, len(scores)), jnp.tile(scores, len(scores))], -1)
    each = bradley_terry(pairs, jnp.ones(pairs.shape, bool))
    return (jnp.outer(expert, policy).ravel() * each).sum()


GRADIENT = jax.jit(jax.grad(critic_loss))


def trained(scores, expert, policy, steps):
    for _ in range(steps):
        scores = scores - 2.0 * GRADIENT(scores, expert, policy)
    return scores - scores.mean()


def test_the_best_critic_of_pairs_is_the_log_ratio():
    scores = trained(jnp.zeros(3), EXPERT, POLICY, 400)
    np.testing.assert_allclose(scores, SCORE[0] - SCORE[0].mean(), atol=1e-3)


@pytest.mark.parametrize("kind", ["gan", "gail"])
def test_alternating_updates_end_at_the_experts_distribution(kind):
    logits, scores = jnp.log(POLICY), jnp.zeros(3)
    for _ in range(300):
        policy = jax.nn.softmax(logits)
        scores = trained(scores, EXPERT, policy, 5)
        paid = policy_reward(kind, scores[:1], scores[None])[0]
        logits = logits + 0.5 * policy * (paid - policy @ paid)
    policy = np.asarray(jax.nn.softmax(logits))
    assert (policy * np.log(policy / EXPERT)).sum() < 1e-2


def test_without_earlier_answers_the_critic_forgets_a_mode_that_the_policy_left():
    """The policy leaves one wrong answer for another. The expert gives neither; the critic's weights decay."""
    expert, first, then = np.array([0.98, 0.01, 0.01]), np.array([0.02, 0.97, 0.01]), np.array([0.02, 0.01, 0.97])

    def margin(replayed):
        scores = trained(jnp.zeros(3), expert, first, 50)
        for _ in range(50):
            gradient = GRADIENT(scores, expert, then) + replayed * GRADIENT(scores, expert, first)
            scores = 0.9 * (scores - gradient)
        return float(scores[0] - scores[1])  # of the expert's answer over the one that was left

    assert margin(1.0) > 2 * margin(0.0)
