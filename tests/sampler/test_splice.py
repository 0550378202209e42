"""How rollouts are put together as ids, from sampled ids, tags and reference answers."""

import dataclasses
import time

import numpy as np
import pytest

from rl_likelihood.learner.batching import concat_rows
from rl_likelihood.sampler.decode import SamplerConfig, sample, splice
from rl_likelihood.sampler.stop import first_match, stop_table
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG, Prompts
from tests.sampler.test_decode import EOS, FORMAT, KEY, PAD_ID, PARAMS, prompts
from tests.small import TINY


def spliced(rows, cfg, answer=(7, 8)):
    """Rows of one prompt (ids as sampled) through splice: [(ids, segments, log-probs, truncated)]."""
    n = cfg.max_sampled
    ids = np.full((1, len(rows), n), PAD_ID)
    logp = np.zeros(ids.shape, np.float32)
    for j, row in enumerate(rows):
        ids[0, j, : len(row)], logp[0, j, : len(row)] = row, -np.arange(1, len(row) + 1)
    length = np.array([[len(row) for row in rows]])
    width = len(answer) + 1
    p = Prompts(
        tokens=np.zeros((1, 2), np.int32),
        length=np.array([2]),
        answer=np.array([[*answer, 19]]),
        answer_length=np.array([width - 1]),
        answer_scored=np.ones((1, width), bool),
        uid=np.array([0]),
    )
    r = splice(p, ids, logp, length, dataclasses.replace(cfg, group_size=len(rows)), version=5)
    assert r.version == 5
    out = []
    for j in range(len(rows)):
        n = (r.segment[0, j] != PAD).sum()
        assert (r.segment[0, j, n:] == PAD).all() and (r.completion[0, j, n:] == PAD_ID).all()
        assert (r.sampler_logp[0, j, n:] == 0).all()
        out.append(
            (
                r.completion[0, j, :n].tolist(),
                r.segment[0, j, :n].tolist(),
                r.sampler_logp[0, j, :n].tolist(),
                bool(r.truncated[0, j]),
            )
        )
    return out, r


LIKELIHOOD = SamplerConfig(TINY, FORMAT, max_chain=6)
C, F, R, Z = CHAIN, TAG, REFERENCE, SAMPLED


def test_a_closed_chain_is_followed_by_the_reference_answer():
    # "gab" across a token boundary, and as one id that spells both letters.
    rows, _ = spliced([[6, 0, 1], [2, 3, 16]], LIKELIHOOD)
    assert rows[0] == ([6, 0, 1, 7, 8], [C, C, C, R, R], [-1, -2, -3, 0, 0], False)
    assert rows[1] == ([2, 3, 16, 7, 8], [C, C, C, R, R], [-1, -2, -3, 0, 0], False)


def test_a_truncated_chain_gets_the_tag_it_lacks():
    rows, _ = spliced([[4, 5, 6, 7, 8, 9], [4, 2, 3, 7, 8, 9], [4, 2, EOS], [2, 22, 3, 4, 5, 6]], LIKELIHOOD)
    # Thinking never closed: both tags. Closed ("cd"): only the answer's. Ended early; broken by a special id: both.
    for row, ids, tag in zip(
        rows,
        ([4, 5, 6, 7, 8, 9], [4, 2, 3, 7, 8, 9], [4, 2, EOS], [2, 22, 3, 4, 5, 6]),
        ((2, 3, 0, 1), (0, 1), (2, 3, 0, 1), (2, 3, 0, 1)),
        strict=True,
    ):
        n = len(ids)
        assert row[0] == [*ids, *tag, 7, 8]
        assert row[1] == [C] * n + [F] * len(tag) + [R] * 2
        assert row[2] == [-float(i) for i in range(1, n + 1)] + [0] * (len(tag) + 2)
        assert row[3]


def test_a_sampled_answer_stands_between_chain_and_reference():
    cfg = dataclasses.replace(LIKELIHOOD, max_sampled_answer=3)
    rows, _ = spliced([[6, 0, 1, 9, 4, 5], [16, 9], [16], [6] * 9, [6, 6, 6, 6, 6, 6, 0, 1, 9]], cfg)
    assert rows[0] == ([6, 0, 1, 9, 4, 5, 7, 8], [C, C, C, Z, Z, Z, R, R], [-1, -2, -3, -4, -5, -6, 0, 0], False)
    assert rows[1] == ([16, 9, 7, 8], [C, Z, R, R], [-1, -2, 0, 0], False)
    assert rows[2] == ([16, 7, 8], [C, R, R], [-1, 0, 0], False)
    # Without a tag within max_chain ids the row is truncated there, and has no sampled answer.
    cut = ([6] * 6 + [2, 3, 0, 1, 7, 8], [C] * 6 + [F] * 4 + [R] * 2, [-1, -2, -3, -4, -5, -6] + [0] * 6, True)
    assert rows[3:] == [cut, cut]


def test_width_is_a_multiple_or_the_largest_possible():
    _, r = spliced([[16], [6, 0, 1]], LIKELIHOOD)
    assert r.completion.shape == (1, 2, 6 + 4 + 3)
    _, r = spliced([[16], [6, 0, 1]], dataclasses.replace(LIKELIHOOD, width_multiple=4))
    assert r.completion.shape == r.segment.shape == r.sampler_logp.shape == (1, 2, 8)
    _, r = spliced([[6] * 6], dataclasses.replace(LIKELIHOOD, width_multiple=8))
    assert r.completion.shape == (1, 1, 13), "never wider than the largest possible"


def by_row(p, ids, logp, length, cfg):
    """What `splice` makes, one row after the other: (ids, segments, log-probs, truncated) of each, in order."""
    opened, closed = (
        first_match(stop_table(FORMAT.vocab_bytes, (text,)), ids, length)
        for text in (FORMAT.answer_open, FORMAT.think_close)
    )
    for i, j in np.ndindex(length.shape):
        answer, n, end = p.answer[i, : p.answer_length[i]], length[i, j], opened[i, j]
        truncated, tag = not 0 <= end <= cfg.max_chain, ()
        if truncated:
            end = n = min(n, cfg.max_chain)
            tag = FORMAT.open_answer_ids if 0 < closed[i, j] <= n else FORMAT.close_think_ids
        parts = (ids[i, j, :end], C), (tag, F), (ids[i, j, end:n], Z), (answer, R)
        row = [int(x) for part, _ in parts for x in part]
        kinds = [kind for part, kind in parts for _ in part]
        yield row, kinds, [*logp[i, j, :n].tolist(), *[0.0] * (len(row) - n)], truncated


@pytest.mark.parametrize("answer, multiple", [(0, 0), (5, 0), (5, 16)])
def test_all_rows_at_once_are_one_after_the_other(answer, multiple):
    cfg = dataclasses.replace(LIKELIHOOD, max_chain=12, max_sampled_answer=answer, width_multiple=multiple)
    rng, p = np.random.default_rng(1), prompts(40, seed=2)
    shape = 40, 8, cfg.max_sampled
    likely = np.r_[[0, 1, 2, 3, 16] * 3, np.arange(20)]  # ids of the tags
    ids, length = rng.choice(likely, shape), rng.integers(0, cfg.max_sampled + 1, shape[:2])
    r = splice(p, ids, logp := rng.normal(size=shape).astype(np.float32), length, cfg)
    rows = list(by_row(p, ids, logp, length, cfg))
    seen = {(t, F in kinds, Z in kinds) for _, kinds, _, t in rows}
    assert seen == {(True, True, False), (False, False, False), (False, False, True)}
    for name, fill, values in (("completion", PAD_ID, 0), ("segment", PAD, 1), ("sampler_logp", 0.0, 2)):
        whole = getattr(r, name).reshape(320, -1)
        expected = [[*row[values], *[fill] * (whole.shape[1] - len(row[values]))] for row in rows]
        np.testing.assert_array_equal(whole, expected)
        assert whole.dtype == (np.float32 if name == "sampler_logp" else np.int32)
    assert r.truncated.reshape(-1).tolist() == [row[3] for row in rows]


class Slow:
    """An array that takes half a second to read."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        time.sleep(0.5)
        return self.array


def test_the_time_of_sampling_is_the_devices():
    """Rows are put together on the host, after it."""
    p, cfg = prompts(2), dataclasses.replace(LIKELIHOOD, group_size=2)
    start = time.perf_counter()
    rollout = sample(PARAMS, p.replace(answer_length=Slow(p.answer_length)), KEY, cfg)
    assert 0 < rollout.seconds <= time.perf_counter() - start - 0.5
    both = concat_rows(rollout.replace(seconds=1.0), rollout.replace(seconds=2.5))
    assert both.seconds == 3.5 and both.truncated.shape == (2, 4)
