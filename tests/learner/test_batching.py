"""Rollouts into batches: the scored mask moves to where the reference answer stands, everything else is passed on."""

import numpy as np

from rl_likelihood.learner.batching import given_rollout, scored_mask, to_batch, without_sampled
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG, Prompts, Rollout

PROMPTS = Prompts(
    tokens=np.arange(8, dtype=np.int32).reshape(2, 4),
    length=np.array([4, 2]),
    answer=np.array([[11, 12, 13], [14, 15, 0]]),
    answer_length=np.array([3, 2]),
    answer_scored=np.array([[False, True, True], [True, False, False]]),
    uid=np.array([40, 41]),
)
C, F, Z, R, X = CHAIN, TAG, SAMPLED, REFERENCE, PAD
SEGMENT = np.array([[[C, R, R, R, X, X], [C, C, F, R, R, R]], [[C, Z, Z, R, R, X], [C, R, R, X, X, X]]])


def rollout():
    rng = np.random.default_rng(0)
    return Rollout(
        prompts=PROMPTS,
        completion=rng.integers(0, 99, SEGMENT.shape).astype(np.int32),
        segment=SEGMENT,
        sampler_logp=rng.normal(size=SEGMENT.shape).astype(np.float32),
        truncated=np.array([[False, True], [False, False]]),
        version=7,
    )


def test_scored_ids_stand_where_the_reference_answer_stands():
    expected = np.zeros(SEGMENT.shape, int)
    expected[0, 0, 2:4] = expected[0, 1, 4:6] = 1  # the delimiter, first of three, is not scored
    expected[1, 0, 3] = expected[1, 1, 1] = 1
    np.testing.assert_array_equal(scored_mask(SEGMENT, PROMPTS), expected)


def test_a_batch_is_the_rollout_as_it_was_sampled():
    r = rollout()
    batch = to_batch(r)
    for name in ("completion", "segment", "sampler_logp", "truncated"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(r, name))
    np.testing.assert_array_equal(batch.prompt, PROMPTS.tokens)
    np.testing.assert_array_equal(batch.prompt_length, PROMPTS.length)
    np.testing.assert_array_equal(batch.scored, scored_mask(SEGMENT, PROMPTS))
    assert batch.keep.all() and batch.keep.shape == (2, 2) and batch.keep.dtype == bool
    assert batch.host_rewards == {} and batch.baseline is None


def test_rewards_and_keep_are_passed_on():
    reward, keep = np.array([[1.0, 10.0], [0.0, 100.0]]), np.array([[True, False], [True, True]])
    batch = to_batch(rollout(), {"math": reward}, keep)
    np.testing.assert_array_equal(batch.host_rewards["math"], reward)
    np.testing.assert_array_equal(batch.keep, keep)
    assert batch.host_rewards["math"].dtype == np.float32


def test_rows_without_their_sampled_answers():
    r = rollout()
    out = without_sampled(r, 1, 98)
    kinds = [[[C, R, R, R, X], [C, C, F, R, R]], [[C, R, R, X, X], [C, R, R, X, X]]]  # one token of room is gone
    np.testing.assert_array_equal(out.segment, kinds)
    np.testing.assert_array_equal(out.completion[1, 0], [*r.completion[1, 0, [0, 3, 4, 5]], 98])
    np.testing.assert_array_equal(out.sampler_logp[1, 0], [*r.sampler_logp[1, 0, [0, 3, 4, 5]], 0])


def test_given_rows_are_groups_of_one():
    rows = [
        (np.array([5, 6, 11, 12, 13]), np.array([C, F, R, R, R])),
        (np.array([14, 15]), np.array([R, R])),
    ]
    r = given_rollout(PROMPTS, rows, pad_id=9, width=6)
    assert r.completion.tolist() == [[[5, 6, 11, 12, 13, 9]], [[14, 15, 9, 9, 9, 9]]]
    assert r.segment.tolist() == [[[C, F, R, R, R, X]], [[R, R, X, X, X, X]]]
    assert (r.sampler_logp == 0).all() and r.truncated.shape == (2, 1) and not r.truncated.any()
    scored = to_batch(r).scored
    assert scored.tolist() == [[[False] * 3 + [True, True, False]], [[True] + [False] * 5]]
