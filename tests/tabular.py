"""Policies that can be written down: tables of logits with few chains, and expectations over all their groups.

The update that reward_sum.objective, leave_one_out, advantages, policy_loss, aggregate and kl_estimate give for a
group of chains, weighted by the probability of sampling that group, is an expectation without error.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood.learner import step
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.surrogate import Counts, advantages, aggregate, kl_estimate, leave_one_out, policy_loss
from rl_likelihood.rewards import reward_sum
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.tables import parse_reward


class Table(NamedTuple):
    """Logits of the states one after the other, and chains and answers as the indices of their tokens in them."""

    logits: np.ndarray  # [N]
    states: tuple[int, ...]  # how many tokens each state chooses from
    chains: np.ndarray  # [C, T], -1 is padding
    answers: np.ndarray  # [C, A], of the reference answer after each chain


def padded(rows):
    width = max(map(len, rows))
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32)


# Three chains of one token, and after each a choice of two answers.
THREE = Table(
    np.array([0.2, -0.1, 0.4, 0.5, 0.0, -0.3, 0.2, 0.0, 1.0]),
    (3, 2, 2, 2),
    padded([[0], [1], [2]]),
    padded([[3], [5], [7]]),
)
# Chains of one, two and three tokens: token 0 ends, 1 is followed by one of two, 2 by two times one of two. Each
# answer has two tokens, the second from a state that all share.
PATHS = [[0], [1, 3], [1, 4]] + [[2, 5 + a, 7 + b] for a in range(2) for b in range(2)]
TREE = Table(
    np.random.default_rng(0).normal(size=9 + 2 * 7 + 2),
    (3,) + (2,) * 3 + (2,) * 7 + (2,),
    padded(PATHS),
    padded([[9 + 2 * i, 23] for i in range(7)]),
)
LENGTHS = np.array([len(path) for path in PATHS])
OTHER = np.random.default_rng(1).normal(size=TREE.logits.shape)  # a reference model, or an older policy
REWARD = np.array([1.0, 0.0, 0.0, 1.0, 0.125, 1.0, 0.0])  # of each chain of TREE, by some rule


def token_log_probs(table, logits, which):
    """Log-probs of the tokens [C, T] that `which` indexes, 0 on padding."""
    parts = jnp.split(logits, np.cumsum(table.states)[:-1])
    flat = jnp.concatenate([jax.nn.log_softmax(x) for x in parts])
    return jnp.where(which >= 0, flat[which], 0.0)


def chance(table, logits, groups):
    """Probability of each group [N, G] of chains."""
    return jnp.exp(token_log_probs(table, logits, table.chains).sum(-1)[groups].sum(-1))


def all_groups(table, g):
    return np.array(list(itertools.product(range(len(table.chains)), repeat=g)), np.int32)


def in_numpy(table, logits, which):
    """token_log_probs once more, in numpy float64."""
    parts = np.split(np.asarray(logits, np.float64), np.cumsum(table.states)[:-1])
    flat = np.concatenate([x - np.log(np.exp(x).sum()) for x in parts])
    return np.where(which >= 0, flat[which], 0.0)


ONE_BY_ONE = all_groups(TREE, 1)
P_TREE = np.exp(in_numpy(TREE, TREE.logits, TREE.chains).sum(-1))  # of each chain of TREE


# ------------------------------------------------------------------ the package's loss of one group


def group_loss(table, logits, group, reward, cfg, text, old, ref):
    """(loss, f) of one sampled group [G], by the package's functions in the order of the step."""
    logp = token_log_probs(table, logits, table.chains)[group][None]
    answer = token_log_probs(table, logits, table.answers)[group][None]
    mask, scored = (jnp.asarray(which >= 0)[group][None] for which in (table.chains, table.answers))
    keep = jnp.ones(mask.shape[:2], bool)
    observation = Observation(
        floored_logp=answer,
        scored=scored,
        keep=keep,
        truncated=~keep,
        policy=PolicyStats(logp, logp, logp, mask, 3),
        chain_tokens=mask.sum(-1),
        host_rewards={"exact_match": reward[None]},
    )
    ref_logp = token_log_probs(table, ref, table.chains)[group][None]
    extra = step._k1_in_reward(logp, ref_logp, mask, StepConfig(loss=cfg)) if cfg.kl == "reward_k1" else 0.0
    f, _, _ = reward_sum.objective(observation, RewardConfig(terms=parse_reward(text)), extra)
    difference = leave_one_out(f, jax.lax.stop_gradient(answer), scored, keep)
    advantage = advantages(difference, keep, cfg.advantage)
    counts = Counts(jnp.float32(1), mask.sum().astype(jnp.float32))
    sampler = token_log_probs(table, jax.lax.stop_gradient(old), table.chains)[group][None]
    total = cfg.policy_term * policy_loss(logp, sampler, advantage, mask, keep, cfg, counts)
    value = f(answer, scored, keep).sum()
    total = total - cfg.answer_term * value
    if cfg.kl in ("k1", "k2", "k3"):
        total = total + cfg.kl_coef * aggregate(kl_estimate(cfg.kl, logp, ref_logp), mask, keep, cfg, counts)
    return total, value


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _expected(name, g, cfg, text, logits, old, ref, reward):
    table = TABLES[name]
    groups = all_groups(table, g)
    weight = chance(table, old, groups)

    def total(logits):
        one = lambda group, r: group_loss(table, logits, group, r, cfg, text, old, ref)
        losses, values = jax.vmap(one)(groups, reward)
        return -(weight * losses).sum(), (weight * values).sum()

    return jax.grad(total, has_aux=True)(logits)


# Chain and sampled answer of THREE as one row; the first answer of each is the reference.
PAIRS = THREE._replace(
    chains=padded([[z, 3 + 2 * z + y] for z in range(3) for y in range(2)]), answers=np.repeat(THREE.answers, 2, 0)
)
TABLES = {"three": THREE, "tree": TREE, "pairs": PAIRS}


def expected(name, g, cfg, text="log_prob", old=None, ref=None, reward=None, exact=True):
    """(minus the loss's gradient [N], f), averaged over all groups as the policy `old` would sample them.

    `reward` [groups, G] is that of the rule exact_match. In float64, or as training runs with exact=False.
    """
    table = TABLES[name]
    if reward is None:
        reward = (REWARD if name == "tree" else np.zeros(3))[all_groups(table, g)]
    arrays = table.logits, table.logits if old is None else old, table.logits if ref is None else ref, reward
    arrays = [np.asarray(x, np.float64 if exact else np.float32) for x in arrays]
    with jax.enable_x64(exact):
        grads, value = _expected(name, g, cfg, text, *arrays)
        return np.asarray(grads), float(value)


def exact_gradient(name, value_of):
    """Autodiff of a function of the logits, in float64."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.grad(value_of))(jnp.asarray(TABLES[name].logits)))


def expectation(name, g, f):
    """logits -> E[f(sums of the answers' log-probs [groups, G])]."""
    table, groups = TABLES[name], all_groups(TABLES[name], g)

    def value_of(logits):
        return (chance(table, logits, groups) * f(token_log_probs(table, logits, table.answers).sum(-1)[groups])).sum()

    return value_of


def mean_reward(logits):
    """E[R] of the rule on TREE."""
    return chance(TREE, logits, ONE_BY_ONE) @ REWARD
