"""The whole step against the exact objective: a transformer whose chains can all be enumerated.

With 5 ids and chains of 2 there are 25 chains and 625 groups of two. The gradient that the step gives
for each group, weighted by the probability of sampling that group, must be the gradient of E[f]; the
expectation is written here on plain sequences, with a dense softmax and the table's formulas.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.batching import alternatives_of
from rl_likelihood.learner.step import gradients
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.decoder import forward
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, TAG, Batch
from tests.small import random_params, rewarded, tiny

V, G, S = 5, 2, 4
MODEL = tiny(vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8)
PARAMS = random_params(MODEL, seed=1, scale=0.5)
CHAINS = np.array(list(itertools.product(range(V), repeat=2)))
GROUPS = np.array(list(itertools.product(range(len(CHAINS)), repeat=G)))  # [625, 2]

# Two prompts of different lengths: a forced tag and two scored ids after a delimiter; one scored id and padding.
PROMPTS = ((1, 4, 2), (3,))
FORCED = ((0, 2), ())
ANSWERS = ((3, 1, 4), (2,))
SCORED = ((False, True, True), (True,))
GARBAGE = 4  # what fills padding


def padded(rows, width, fill):
    return np.array([list(row) + [fill] * (width - len(row)) for row in rows])


T = 2 + 2 + 3
SEGMENT = padded(
    [[CHAIN] * 2 + [TAG] * len(f) + [REFERENCE] * len(a) for f, a in zip(FORCED, ANSWERS, strict=True)], T, PAD
)
IS_SCORED = padded([[False] * (2 + len(f)) + list(s) for f, s in zip(FORCED, SCORED, strict=True)], T, False)
REST = padded([f + a for f, a in zip(FORCED, ANSWERS, strict=True)], T - 2, GARBAGE)


# Answers that are as good: two of the first prompt, one of the second, in 7 tokens with a gap before each.
OTHERS = (((3, 2, 0), (2, 1)), ((4, 0),))
OTHERS_SCORED = (((False, True, True), (True, True)), ((True, False),))


def others():
    answers = [
        [(np.array(ids), np.array(scored)) for ids, scored in zip(*of_prompt, strict=True)]
        for of_prompt in zip(OTHERS, OTHERS_SCORED, strict=True)
    ]
    return alternatives_of(answers, 2, 7, GARBAGE)


def batch_of(chains):
    """The batch [2 prompts, G] with these chains, [2, G, 2] ids."""
    completion = jnp.concatenate([chains, jnp.broadcast_to(REST[:, None], (2, G, T - 2))], -1)
    rows = lambda x: jnp.broadcast_to(x[:, None], (2, G, T))
    return Batch(
        prompt=padded(PROMPTS, S, GARBAGE),
        prompt_length=np.array([len(p) for p in PROMPTS]),
        completion=completion,
        segment=rows(SEGMENT),
        scored=rows(IS_SCORED),
        sampler_logp=jnp.zeros(completion.shape),
        host_rewards={},
        truncated=jnp.zeros((2, G), bool),
        keep=jnp.ones((2, G), bool),
        baseline_logp=padded([BASE[2], BASE[1]], 3, 0.0).astype(np.float32),
    )


def chain_and_answer_log_probs(params, which, answer=None, counts=None):
    """Of prompt `which` and every chain: log pi(chain) [25], and the scored ids' log-probs [25, n]; of its reference
    answer, or of another."""
    answer, counts = answer or ANSWERS[which], counts or SCORED[which]
    prompt, forced = PROMPTS[which], FORCED[which] + answer
    ids = np.concatenate([np.tile(prompt, (25, 1)), CHAINS, np.tile(forced, (25, 1))], 1).astype(np.int32)
    hidden = forward(params, MODEL, ids, np.full(25, ids.shape[1])).prompt
    table = jax.nn.log_softmax(hidden[:, :-1] @ params["embed"].T)
    logp = jnp.take_along_axis(table, ids[:, 1:, None], -1)[..., 0]
    start = len(prompt) - 1
    scored = np.flatnonzero(counts) + start + 2 + len(FORCED[which])
    return logp[:, start : start + 2].sum(-1), logp[:, scored]


FORMULAS = {
    "log_prob": lambda a: a.sum(-1).mean(-1),
    "avg_log_prob": lambda a: a.mean(-1).mean(-1),
    "prob": lambda a: jnp.exp(a.sum(-1)).mean(-1),
    "avg_prob": lambda a: jnp.exp(a).mean(-1).mean(-1),
    "geo_mean_prob": lambda a: jnp.exp(a.mean(-1)).mean(-1),
    "jepo": lambda a: jnp.log(jnp.exp(a.sum(-1)).mean(-1)),
    # NRT: weights -log p of the answer without a chain, the gain over it clipped at 0.
    "nrt": lambda a: jnp.maximum(((jnp.exp(a) - np.exp(BASE[a.shape[-1]])) * SHARE[a.shape[-1]]).sum(-1), 0).mean(-1),
}
# By the number of scored ids: their log-probs without a chain, and the weights that follow.
BASE = {2: np.array([-1.2, -2.5]), 1: np.array([-1.7])}
SHARE = {n: base / base.sum() for n, base in BASE.items()}


def all_objectives(params):
    """E[f] for each row of the table, the mean over the two prompts."""
    total = 0
    for which in range(2):
        chain, answer = chain_and_answer_log_probs(params, which)
        weight = jnp.exp(chain[GROUPS].sum(-1))
        total += jnp.stack([(weight * f(answer[GROUPS])).sum() for f in FORMULAS.values()]) / 2
    return total


exact = jax.jit(jax.jacrev(all_objectives))
weights = jax.jit(lambda params: [jnp.exp(chain_and_answer_log_probs(params, i)[0]) for i in range(2)])


def any_answer(params):
    """E[f] of log_prob_any, the mean over the two prompts."""
    total = 0
    for which in range(2):
        chain, answer = chain_and_answer_log_probs(params, which)
        logp = [answer.sum(-1)]
        for ids, counts in zip(OTHERS[which], OTHERS_SCORED[which], strict=True):
            logp.append(chain_and_answer_log_probs(params, which, ids, counts)[1].sum(-1))
        reward = jnp.log(sum(map(jnp.exp, logp)))
        total += (jnp.exp(chain) * reward).sum() / 2
    return total


def expected_step_gradient(cfg, alternatives=None):
    """Minus the step's gradient, averaged over what a sampler would draw.

    The two prompts' groups are independent and the loss is a mean over prompts, so it is enough to vary one
    prompt's group at a time: E[g(A, B)] = E[g(A, b)] + E[g(a, B)] - g(a, b) for any fixed a, b.
    """
    first = np.zeros_like(GROUPS)
    pairs = np.concatenate([np.stack([GROUPS, first], 1), np.stack([first, GROUPS], 1), np.zeros((1, 2, G), int)])
    prob = [np.asarray(w, np.float64)[GROUPS].prod(-1) for w in weights(PARAMS)]
    for p in prob:
        assert p.sum() == pytest.approx(1, abs=1e-6)
    weight = np.concatenate([*prob, [-1.0]]).astype(np.float32)

    @jax.jit
    def total(params):
        of = lambda chains: batch_of(chains).replace(alternatives=alternatives)
        each = jax.vmap(lambda chains: gradients(params, (None, None), of(chains), MODEL, cfg)[0])(CHAINS[pairs])
        return jax.tree.map(lambda g: -jnp.tensordot(weight, g, 1), each)

    return total(PARAMS)


def check(objective, cfg):
    return compare(
        expected_step_gradient(cfg), jax.tree.map(lambda x: x[list(FORMULAS).index(objective)], exact(PARAMS))
    )


def compare(got, expected):
    worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), got, expected)
    return max(jax.tree.leaves(worst)), max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))


@pytest.mark.parametrize("objective", FORMULAS)
def test_the_expected_step_is_the_exact_gradient(objective):
    # Micro-batches of one prompt, and a head scan of several chunks.
    own = {"baseline": "frozen", "token_weights": "neg_log"} if objective == "nrt" else {}
    worst, size = check(objective, rewarded(objective, micro_batch_prompts=1, head_chunk=6, **own))
    # Sums of 1251 float32 gradients of order 1.
    assert size > 0.02 and worst < 1e-5


def test_the_expected_step_of_log_prob_any_is_the_exact_gradient():
    cfg = rewarded("log_prob_any", micro_batch_prompts=1, head_chunk=6, two_branches=True)
    worst, size = compare(expected_step_gradient(cfg, others()), jax.jit(jax.grad(any_answer))(PARAMS))
    assert size > 0.02 and worst < 1e-5


def test_a_switch_that_breaks_exactness_is_noticed():
    # The baseline that includes the row itself shrinks the policy term by (G-1)/G.
    worst, _ = check("log_prob", rewarded("log_prob", loss=LossConfig(advantage="mean"), head_chunk=6))
    assert worst > 0.01
