"""A second model that reads rows: against plain sequences, in the step and before it, on several devices."""

import dataclasses

import jax
import numpy as np
import pytest

from rl_likelihood.learner.judge import (
    Judge,
    JudgeParams,
    ValueHead,
    judge_batch,
    make_judge,
    scores_in_parts,
    value,
    word_logits,
)
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.step import init_state, judge_shardings, make_step
from rl_likelihood.mesh import make_mesh, put
from rl_likelihood.model.decoder import forward, unstack_layers
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import Judged
from tests.small import log_softmax, one_device, random_batch, random_params, reference_logits, rewarded, tiny

P, Q, S, U = 4, 3, 6, 5
POLICY = tiny(layers=1)
# Another architecture with another vocabulary, as a judge has.
MODEL = tiny(vocab_size=40, width=24, layers=2, heads=2, kv_heads=1, head_dim=12, family="qwen3", qk_norm=True)
PARAMS = random_params(MODEL, seed=3)
RNG = np.random.default_rng(0)
HEAD = ValueHead(RNG.normal(size=MODEL.width).astype(np.float32), np.float32(0.7))
WORDS = (3, 5, 11), (8, 2), (4,)
JUDGED = Judged(
    prompt=RNG.integers(0, 40, (P, S)).astype(np.int32),
    prompt_length=RNG.integers(1, S + 1, P).astype(np.int32),
    rows=RNG.integers(0, 40, (P, Q, U)).astype(np.int32),
    row_length=RNG.integers(1, U + 1, (P, Q)).astype(np.int32),
)
JUDGED.row_length[0, 0], JUDGED.row_length[1, 1] = 0, U
VALUE = Judge("reward_model", MODEL, spread=2.0)
ASKED = Judge("judge", MODEL, WORDS)
BATCH = random_batch(8, P, Q)
OPTIMIZER = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=0, total_steps=10))


def sequence(i, j):
    return np.concatenate([JUDGED.prompt[i, : JUDGED.prompt_length[i]], JUDGED.rows[i, j, : JUDGED.row_length[i, j]]])


def test_a_score_is_that_of_the_plain_sequence():
    """Each prompt and row as one sequence; of an empty row the prompt alone."""
    got = jax.jit(value, static_argnums=1)(PARAMS, MODEL, HEAD, JUDGED)
    for i, j in np.ndindex(P, Q):
        ids = sequence(i, j)
        state = forward(PARAMS, MODEL, ids[None], np.array([len(ids)])).prompt[0, -1]
        assert got[i, j] == pytest.approx(float(state @ HEAD.weight + HEAD.bias), abs=2e-5)


def test_words_are_compared_as_after_the_plain_sequence():
    logits = jax.jit(word_logits, static_argnums=(1, 2))(PARAMS, MODEL, WORDS, JUDGED)
    numbers = make_judge(ASKED)(JudgeParams(PARAMS), JUDGED)
    for i, j in np.ndindex(P, Q):
        p = np.exp(log_softmax(reference_logits(PARAMS, MODEL, sequence(i, j))[-1]))
        each = np.array([p[list(ids)].sum() for ids in WORDS])
        assert logits[i, j, 0] - logits[i, j, 1] == pytest.approx(np.log(each[0] / each[1]), abs=2e-4)
        assert numbers[i, j] == pytest.approx((each[0] + 0.5 * each[1]) / each.sum(), abs=1e-4)


def test_padding_and_the_other_rows_change_nothing():
    other = JUDGED.replace(rows=JUDGED.rows.copy(), prompt=JUDGED.prompt.copy())
    for i in range(P):
        other.prompt[i, JUDGED.prompt_length[i] :] = 7
        for j in range(Q):
            other.rows[i, j, JUDGED.row_length[i, j] :] = 9
    other.rows[:, 2] = 1
    judge = make_judge(VALUE)
    params = JudgeParams(PARAMS, HEAD)
    np.testing.assert_allclose(judge(params, other)[:, :2], judge(params, JUDGED)[:, :2], atol=1e-5)


def test_padding_that_all_share_is_cut():
    wide = {"prompt": [(0, 0), (0, 500)], "rows": [(0, 0), (0, 0), (0, 300)]}
    padded = JUDGED.replace(**{name: np.pad(getattr(JUDGED, name), more) for name, more in wide.items()})
    narrow = padded.narrow
    assert S <= narrow.prompt.shape[1] < 2 * S + 8 and U <= narrow.rows.shape[2] < 2 * U + 8
    judge, params = make_judge(VALUE), JudgeParams(PARAMS, HEAD)
    np.testing.assert_allclose(judge(params, narrow), judge(params, JUDGED), atol=1e-5)


def stepped(judge, params, batch, mesh, **changes):
    """One step of the policy on the judge's numbers: the new parameters, and the rows' rewards."""
    cfg = rewarded("math", **changes)  # a reward that comes with the batch, under the judge's name
    term = dataclasses.replace(cfg.reward.terms[0], name=judge.name)
    cfg = dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, terms=(term,)))
    state = init_state(random_params(POLICY), OPTIMIZER, cfg)
    if batch.judged is None:
        step = make_step(POLICY, cfg, OPTIMIZER, mesh, batch)
        with using(mesh):
            state, _, rows = step(state, None, batch)
    else:
        step = make_step(POLICY, cfg, OPTIMIZER, mesh, batch, judge)
        with using(mesh):
            state, _, rows = step(
                state, None, batch, put(params, judge_shardings(mesh, judge.model, bool(judge.words)))
            )
    return jax.tree.map(np.asarray, (state.params, rows["reward"]))


@pytest.mark.parametrize("judge, shape", [(VALUE, None), (ASKED, (2, 2, 2)), (VALUE, (1, 8, 1))])
def test_in_the_step_as_before_it_and_on_eight_devices_as_on_one(judge, shape):
    """(1, 8, 1): fewer prompts than devices, so that the rows of a group are split."""
    params = JudgeParams(PARAMS, HEAD if judge is VALUE else None)
    numbers = np.asarray(make_judge(judge)(params, JUDGED))
    want = stepped(judge, params, BATCH.replace(host_rewards={judge.name: numbers}), one_device())
    mesh = one_device() if shape is None else make_mesh(shape)
    got = stepped(judge, params, BATCH.replace(host_rewards={}, judged=JUDGED), mesh)
    np.testing.assert_allclose(got[1], numbers, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_a_row_without_a_finite_number_is_dropped_in_the_step_and_counted():
    """One row has a token whose embedding is NaN."""
    bad = JUDGED.replace(rows=np.where(JUDGED.rows == 39, 38, JUDGED.rows))
    bad = bad.replace(prompt=np.where(bad.prompt == 39, 38, bad.prompt))
    bad.rows[2, 1, 0] = 39
    embed = np.array(PARAMS["embed"])
    embed[39] = np.nan
    params = JudgeParams({**PARAMS, "embed": embed}, HEAD)
    numbers = np.asarray(make_judge(VALUE)(params, bad))
    ok = np.isfinite(numbers)
    assert (~ok).sum() == 1 and not ok[2, 1]
    given = BATCH.replace(host_rewards={}, judged=bad)
    assert judge_batch(params, VALUE, given, P)[1] == 1
    want = BATCH.replace(host_rewards={VALUE.name: np.where(ok, numbers, 0)}, keep=BATCH.keep & ok)
    got = stepped(VALUE, params, given, one_device())
    assert np.isfinite(got[1]).all()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, stepped(VALUE, params, want, one_device())
    )


def test_in_parts_as_at_once_and_with_layers_unrolled():
    params, model = JudgeParams(PARAMS, HEAD), dataclasses.replace(MODEL, scan_layers=False)
    judge = dataclasses.replace(VALUE, model=model)
    want = make_judge(VALUE)(params, JUDGED)
    alone = JudgeParams(unstack_layers(PARAMS, model), HEAD)
    for given, size in ((params, 2), (alone, 1)):
        got = jax.jit(lambda p, j, n=size: scores_in_parts(p, judge, j, n))(given, JUDGED)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_gradient_runs_through_the_judge():
    def reward(params):
        batch, _ = judge_batch(JudgeParams(params, HEAD), VALUE, BATCH.replace(judged=JUDGED), P)
        return batch.host_rewards[VALUE.name]

    gradient = jax.grad(lambda params: reward(params).sum())(PARAMS)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient)) and np.asarray(reward(PARAMS)).any()


def test_a_step_without_a_judge_has_no_further_forward():
    def dots(judge, batch, *more):
        cfg = rewarded("math")
        state = jax.eval_shape(lambda p: init_state(p, OPTIMIZER, cfg), random_params(POLICY))
        step = make_step(POLICY, cfg, OPTIMIZER, one_device(), batch, judge)
        return step.lower(state, None, batch, *more).as_text().count("stablehlo.dot_general")

    alone = jax.jit(make_judge(VALUE)).lower(JudgeParams(PARAMS, HEAD), JUDGED).as_text()
    judge = dataclasses.replace(VALUE, name="math")
    with_judge = dots(judge, BATCH.replace(host_rewards={}, judged=JUDGED), JudgeParams(PARAMS, HEAD))
    assert with_judge == dots(None, BATCH) + alone.count("stablehlo.dot_general") > dots(None, BATCH) > 0
