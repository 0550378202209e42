"""Defects found in other implementations of these methods, each as a test here.

Those that other tests prove already: an answer term without a gradient (test_surrogate.py: the known mistakes;
test_exact_gradient.py), self-certainty read one position late (test_rewards_in_step.py: the distribution that gave
the token), chains tokenised again (test_prompts.py, test_decode.py, test_batching.py), filter and sampler state
lost on resume (test_resume.py), padding attended to (test_decoder.py, test_proofs_properties.py), an end of text as
the first id that is missed (test_decode.py: the loop ends when all rows have).
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl_likelihood
from rl_likelihood.config import all_fields
from rl_likelihood.learner.observation import observe
from rl_likelihood.learner.step import filtered, gradients
from rl_likelihood.learner.surrogate import advantages, leave_one_out
from rl_likelihood.rewards import group_filter, reward_sum
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.rewards.intrinsic import INTRINSIC
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TrainState
from tests.small import random_batch, random_params, reference_log_distributions, rewarded, tiny

P, G, S, T = 4, 3, 5, 10
MODEL = tiny(layers=1)
PARAMS = random_params(MODEL)
BATCH = random_batch(8, P, G, S, T, sampled=True)

# ------------------------------------------------------------------ -inf rewards poison their group

TRUNCATED = np.array([[True, False, False], [False, False, False], [True, True, False], [True, True, True]])
OPEN = random_batch(8, P, G, S, T).replace(truncated=TRUNCATED)
run_observe = jax.jit(lambda params, batch, cfg: observe(params, (None, None), MODEL, batch, cfg), static_argnums=2)


@pytest.mark.parametrize("name", ["log_prob", "prob"])
@pytest.mark.parametrize("truncated", ["force_close", "floor", "drop"])
def test_an_unusable_chain_poisons_nobody(truncated, name):
    """VeriFree's code gives a chain without an answer tag the log-prob -inf: its neighbours become inf and nan."""
    cfg = rewarded(name, truncated=truncated, floor=-6.0)
    # Answers of log-probs near -100: what a chain that makes no sense may lead to.
    forward = jax.device_get(run_observe(PARAMS | {"final_norm": PARAMS["final_norm"] * 20}, OPEN, cfg))
    observation, logp = forward.observation, forward.rows.stats.log_prob
    f, _, _ = reward_sum.objective(observation, cfg.reward)
    d = leave_one_out(f, observation.floored_logp, observation.scored, observation.keep)
    got = np.asarray(advantages(d, observation.keep, "loo"))
    per_token = np.where(TRUNCATED[..., None], -6.0, logp) if truncated == "floor" else logp
    reward = np.where(OPEN.scored, per_token, 0).sum(-1, dtype=np.float64)
    assert reward.min() < -20
    reward = np.exp(reward) if name == "prob" else reward
    counted = ~TRUNCATED if truncated == "drop" else np.ones((P, G), bool)
    np.testing.assert_array_equal(observation.keep, counted)
    for i, j in np.ndindex(P, G):
        others = counted[i] & (np.arange(G) != j)
        expected = reward[i, j] - reward[i, others].mean() if counted[i, j] and others.any() else 0.0
        assert got[i, j] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_even_an_infinite_log_prob_stays_in_its_dropped_row(name):
    """The group on which RLOO of (-3, -2, -inf, -4) gave (inf, inf, nan, inf)."""
    logp = np.float32([-3, -2, -np.inf, -4]).reshape(1, 4, 1)
    keep, mask = np.array([[True, True, False, True]]), np.ones((1, 4, 1), bool)
    three = [np.delete(x, 2, axis=1) for x in (logp, mask, keep)]

    @jax.jit
    def both(logp):
        d, without = (leave_one_out(OBJECTIVES[name], *args) for args in ((logp, mask, keep), three))
        return d, without, jax.grad(lambda x: OBJECTIVES[name](x, mask, keep).sum())(logp)

    d, without, slope = both(logp)
    np.testing.assert_allclose(np.delete(d, 2, axis=1), without, atol=1e-6)
    assert np.isfinite(slope).all() and slope[0, 2, 0] == 0 and d[0, 2] == 0


def test_verifrees_truncated_chain_is_worth_nothing_and_supervises_nothing():
    """Reward 0: -LOO in the policy term, and no gradient from the answer after it."""
    cfg = rewarded("prob", truncated="floor", floor=-100.0)
    step = jax.jit(lambda batch: gradients(PARAMS, (None, None), batch, MODEL, cfg))
    after_open = (OPEN.segment == REFERENCE) & TRUNCATED[..., None]
    other = OPEN.replace(completion=np.where(after_open, (OPEN.completion + 5) % 24, OPEN.completion))
    (grads, _, rows), (grads2, _, rows2) = jax.device_get((step(OPEN), step(other)))
    jax.tree.map(np.testing.assert_array_equal, grads, grads2)
    assert (rows["answer_logp"] != rows2["answer_logp"])[after_open].any(), "other answers, of other likelihoods"
    assert (rows["reward"][TRUNCATED] < 1e-40).all() and (rows["reward"][~TRUNCATED] > 0).all()
    for i, j in zip(*np.nonzero(TRUNCATED), strict=True):
        loo = np.delete(rows["reward"][i], j).mean()
        assert rows["advantage"][i, j] == pytest.approx(-loo, rel=1e-5, abs=1e-30)


# ------------------------------------------------------------------ self-certainty of another distribution


def test_statistics_and_log_probs_are_of_the_same_tempered_distribution():
    """Intuitor's variants take self-certainty from logits that are not divided by the temperature of sampling."""
    temperature = 0.6
    observation = jax.device_get(
        run_observe(PARAMS, BATCH, rewarded("log_prob", two_branches=True, temperature=temperature)).observation
    )
    table = reference_log_distributions(PARAMS, MODEL, BATCH, temperature)
    mask = np.isin(BATCH.segment, (CHAIN, SAMPLED))
    expected = {
        "log_prob": np.take_along_axis(table, BATCH.completion[..., None], -1)[..., 0],
        "entropy": -(np.exp(table) * table).sum(-1),
        "self_certainty": -table.mean(-1) - np.log(MODEL.vocab_size),
    }
    for name, x in expected.items():
        np.testing.assert_allclose(getattr(observation.policy, name)[mask], x[mask], rtol=2e-4, atol=2e-5, err_msg=name)
    raw, less = (np.asarray(INTRINSIC[k](observation.policy)) for k in ("self_certainty_raw", "self_certainty"))
    np.testing.assert_allclose(raw - less, np.log(MODEL.vocab_size), rtol=1e-4)
    # The reference answer was not sampled: its likelihood is that of the model itself.
    at_one = reference_log_distributions(PARAMS, MODEL, BATCH)
    answer = np.take_along_axis(at_one, BATCH.completion[..., None], -1)[..., 0]
    np.testing.assert_allclose(observation.floored_logp[BATCH.scored], answer[BATCH.scored], rtol=2e-4, atol=2e-5)


# ------------------------------------------------------------------ rewards rounded to bfloat16


def test_rewards_closer_than_a_bfloat16_step_keep_their_group():
    """RLPR casts each score to bfloat16, 0.4 % steps, before the deviations that decide which groups count."""
    reward = np.float32([[0.5, 0.5005, 0.501], [0.5, 0.5, 0.5], [0.25, 0.2502, 0.2501], [1.0, 1.001, 1.0]])
    assert all(len(set(row)) == 1 for row in np.asarray(jnp.asarray(reward, jnp.bfloat16)).tolist())
    cfg = rewarded("math", two_branches=True, filter=FilterConfig(mode="std_below", threshold=5e-5))
    state = group_filter.init_filter()

    @jax.jit
    def run(params, batch):
        train_state = TrainState(jnp.int32(0), params, None, filter=state)
        return filtered(train_state, (None, None), batch, MODEL, cfg)[0].counted

    counted = np.asarray(run(PARAMS, BATCH.replace(host_rewards={"math": reward})))
    assert counted.tolist() == [True, False, True, True]


# ------------------------------------------------------------------ settings checked by nobody, or read by nobody


def test_no_config_field_is_dead():
    """lmpo has a kl_coef that is read nowhere."""
    package = Path(rl_likelihood.__file__).parent
    read = {
        node.attr
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {name for name in all_fields() if name.rpartition(".")[2] not in read} == set()


# ------------------------------------------------------------------ a mesh made at import


def test_importing_the_package_asks_for_no_device():
    """lmpo's model file builds a mesh when it is imported."""
    names = (
        "config mesh presets model.decoder learner.step sampler.decode runtime.checkpoint task train evaluate export"
    )
    imports = "; ".join(f"import rl_likelihood.{name}" for name in names.split())
    env = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    subprocess.run([sys.executable, "-c", imports], env=env, check=True)
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    assert subprocess.run(probe, env=env, stderr=subprocess.DEVNULL).returncode != 0, "where asking is an error"
