"""The reward `pairwise`: each answer against one of its group, in both orders."""

import numpy as np
import pytest

from rl_likelihood.rollouts.local_judge import Verdicts
from rl_likelihood.rollouts.pairwise_judge import PairwiseJudge

QUESTIONS, ANSWERS = ["one?", "two?"], [["a", "bb", "cccc"], ["dd", "dd", None]]


def by_length(questions, rows):
    """A judge that prefers longer answers by 0.1 a letter, and the first answer by 0.05. It fails on "cccc" first."""
    pairs = [[(first or "", second or "") for first, second in group] for group in rows]
    values = np.array([[0.55 + 0.1 * (len(a) - len(b)) for a, b in group] for group in pairs])
    return Verdicts(values, np.array([[a != "cccc" for a, _ in group] for group in pairs]), 1)


@pytest.mark.parametrize("seed", range(6))
def test_the_bar_has_one_half_and_the_others_their_preference_over_it(seed):
    out, logged = PairwiseJudge(by_length, seed)(QUESTIONS, ANSWERS)
    again, _ = PairwiseJudge(by_length, seed)(QUESTIONS, ANSWERS)
    np.testing.assert_array_equal(out.values, again.values)
    bars = []
    for group, values, keep in zip(ANSWERS, out.values, out.keep, strict=True):
        lengths = np.array([len(a or "") for a in group])
        fits = [
            bar
            for bar in range(3)
            if (values[bar] == 0.5 or not keep.any())
            and np.allclose(values[keep], (0.5 + 0.1 * (lengths - lengths[bar]))[keep])
        ]
        assert fits, "every number is a preference over one answer of the group"
        bars.append(fits[-1])
    # Where one of the two orders has "cccc" first; if it is the bar, the group has no verdict.
    failed = {0: {2}, 1: {2}, 2: {0, 1, 2}}[bars[0]]
    assert set(np.flatnonzero(~out.keep[0])) == failed and out.keep[1].all() and out.cut == 1
    assert logged == {"judge/first_bias": pytest.approx(0.05)}


def test_a_judge_that_fails_on_all_has_no_bias():
    def failing(questions, rows):
        out = by_length(questions, rows)
        return out._replace(keep=np.zeros_like(out.keep))

    out, logged = PairwiseJudge(failing, 0)(QUESTIONS, ANSWERS)
    assert not out.keep.any() and np.isnan(logged["judge/first_bias"])


def test_every_answer_is_the_bar_at_times():
    bars = {
        int(np.flatnonzero(PairwiseJudge(by_length, s)(["q"], [["a", "bb", "ccc"]])[0].values[0] == 0.5)[0])
        for s in range(20)
    }
    assert bars == {0, 1, 2}
