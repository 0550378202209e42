"""Rubrics' sums: known numbers, and what may not change them."""

import numpy as np
import pytest

from rl_likelihood.rewards.rubric import aggregate

KNOWN = [  # points, how far each criterion is met, the sum
    ("signed", (5, 3, -4), (1, 0, 1), 1.0),
    ("healthbench", (5, 3, -4), (1, 0, 1), 0.125),
    ("rar", (1, 0.7, 0.3, 0.8), (1, 0, 1, 1), 0.75),
    ("rar", (1, 0.7, 0.3, 0.8), (0.8, 0.3, 0.9, 0.6), 0.6285714),
    ("checklist", (100, 70, 30, 80), (1, 0, 1, 1), 0.75),
    ("implicit", (5, 3), (0.7, 0.2), 0.7),  # the first is the mark for all criteria
    ("signed", (1,), (1,), 1.0),  # one criterion of one point is a 0/1 reward
    ("healthbench", (1,), (0,), 0.0),
]


@pytest.mark.parametrize("kind, points, met, value", KNOWN)
def test_known_sums(kind, points, met, value):
    out = aggregate(np.array([[met]], float), np.array([points], float), kind)
    assert out.values[0, 0] == pytest.approx(value, abs=1e-6) and out.valid.all()


def test_padding_and_the_scale_of_points_change_nothing():
    rng = np.random.default_rng(0)
    met, points = rng.uniform(size=(3, 4, 5)), rng.uniform(0.1, 3, size=(3, 5))
    wide = np.concatenate([met, rng.uniform(size=(3, 4, 2))], -1), np.pad(points, ((0, 0), (0, 2)))
    for kind in ("signed", "healthbench", "rar"):
        values = aggregate(met, points, kind).values
        np.testing.assert_allclose(aggregate(*wide, kind).values, values)
        if kind != "signed":
            np.testing.assert_allclose(aggregate(met, 7 * points, kind).values, values)


def test_a_criterion_that_all_answers_meet_alike_changes_no_difference():
    rng = np.random.default_rng(1)
    met, points = rng.uniform(size=(2, 4, 3)), np.array([[2.0, -1, 3], [1, 1, 1]])
    more = np.concatenate([met, np.full((2, 4, 1), 0.7)], -1), np.pad(points, ((0, 0), (0, 1)), constant_values=2.0)
    values, others = aggregate(met, points, "signed").values, aggregate(*more, "signed").values
    np.testing.assert_allclose(others - others[:, :1], values - values[:, :1], atol=1e-12)


def test_no_criteria_and_nothing_to_win_are_no_number():
    met, points = np.ones((3, 2, 2)), np.array([[0.0, 0], [-1, -2], [1, 0]])
    assert aggregate(met, points, "healthbench").valid.tolist() == [False, False, True]
    assert aggregate(met, points, "signed").valid.tolist() == [False, True, True]
    for kind in ("signed", "healthbench", "rar"):
        out = aggregate(met, points, kind)
        assert np.isfinite(out.values).all() and (out.values[0] == 0).all()
