"""Votes are counted right: who wins, what is paid, and how often the winner is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.grading.graders import exact_match, numeric_match, parse_number
from rl_likelihood.rewards import rules

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["1", "2", "2"], "2"),
        (["1", "2", "3", "2"], "2"),  # no majority needed
        (["2", "1", "1", "2"], "2"),  # of equals the first seen
        (["3", "1", "2"], "3"),
        ([None, None, None, "7"], "7"),  # silence never wins
        ([None, None, "7", "8", "8"], "8"),
        ([None, None], None),
        ([], None),
        ([" 5", "4", "5\n"], " 5"),  # as first written
        (["", "", "1"], ""),  # an empty answer is an answer
    ],
)
def test_plurality(answers, winner):
    assert rules.plurality(answers) == winner


def test_plurality_by_another_key():
    assert rules.plurality(["1", "0.5", "1/2"]) == "1"
    assert rules.plurality(["1", "0.5", "1/2"], key=parse_number) == "0.5"


def test_majority_vote_by_hand():
    groups = [
        ["4", "4", "4", "4"],
        ["1", "2", "3", "4"],
        [None, None, None, None],
        [None, "5", None, " 5 "],
        ["6", "7", "7", "6"],
    ]
    rewards = rules.majority_vote(groups, exact_match)
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]])


def test_majority_vote_grades_and_groups_by_value_if_told_to():
    groups = [["1", "0.5", "1/2", "50%"]]
    np.testing.assert_array_equal(rules.majority_vote(groups, numeric_match), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(rules.majority_vote(groups, numeric_match, parse_number), [[0, 1, 1, 1]])


def test_all_equal_answers_have_no_advantage():
    rewards = rules.majority_vote([["x"] * 8], exact_match)
    np.testing.assert_array_equal(rewards - rewards.mean(-1, keepdims=True), 0)


def test_all_sixty_four_vote_and_the_first_thirty_two_train():
    answers = ["1"] * 20 + ["2"] * 12 + ["2"] * 32
    np.testing.assert_array_equal(rules.majority_vote([answers], exact_match)[:, :32], [[0] * 20 + [1] * 12])
    np.testing.assert_array_equal(rules.majority_vote([answers[:32]], exact_match), [[1] * 20 + [0] * 12])


def test_no_group_and_no_sample():
    assert rules.majority_vote([], exact_match).shape == (0, 0)
    assert rules.majority_vote([[], []], exact_match).shape == (2, 0)
    assert set(rules.vote_diagnostics([], [], exact_match).values()) == {0.0}


def test_vote_diagnostics_by_hand():
    groups = [
        ["1", "1", "2", None],  # elects 1, rightly: every reward agrees
        ["3", "3", "5", "4"],  # elects 3, 4 is right: rewards 1100 instead of 0001
        [None, None, None, None],  # elects nobody
        ["7", "8", "9", "6"],  # elects 7, 0 is right: 1000 instead of 0000
    ]
    d = rules.vote_diagnostics(groups, ["1", "4", "2", "0"], exact_match)
    assert d == {
        "label_accuracy": 1 / 4,
        "reward_accuracy": (4 + 1 + 4 + 3) / 16,
        "majority_ratio": (2 + 2 + 0 + 1) / 16,
        "ground_truth_ratio": (2 + 1 + 0 + 0) / 16,
    }


def test_a_lucky_hit_has_a_wrong_label_and_mostly_right_rewards():
    # Ten samples that err in ten ways: the label is wrong, and nine wrong samples still get their 0.
    d = rules.vote_diagnostics([[str(i) for i in range(10)]], ["right"], exact_match)
    assert d["label_accuracy"] == 0 and d["reward_accuracy"] == 0.9


answers = st.lists(st.sampled_from([None, "1", "2", "3", " 2"]), min_size=6, max_size=6)


@PROPERTY
@given(st.lists(answers, min_size=1, max_size=4))
def test_votes_obey_their_definition(groups):
    rewards = rules.majority_vote(groups, exact_match)
    assert rewards.shape == (len(groups), 6)
    for group, row in zip(groups, rewards, strict=True):
        stripped = [a and a.strip() for a in group]
        assert not any(r for r, a in zip(row, stripped, strict=True) if a is None)
        if any(stripped):
            most = max(stripped.count(a) for a in stripped if a is not None)
            winner = next(a for a in stripped if a is not None and stripped.count(a) == most)
            np.testing.assert_array_equal(row, [a == winner for a in stripped])
        else:
            assert not row.any()


@PROPERTY
@given(st.lists(answers, min_size=1, max_size=4), st.sampled_from(["1", "2", "4"]))
def test_diagnostics_are_shares_and_consistent(groups, reference):
    d = rules.vote_diagnostics(groups, [reference] * len(groups), exact_match)
    assert all(0 <= x <= 1 for x in d.values())
    assert d["majority_ratio"] == pytest.approx(rules.majority_vote(groups, exact_match).mean())
    if d["label_accuracy"] == 1:
        assert d["reward_accuracy"] == 1 and d["majority_ratio"] == pytest.approx(d["ground_truth_ratio"])


def test_vote_share_by_hand():
    groups = [["1", "1 ", "2", None], [None, None, None, None]]
    np.testing.assert_allclose(rules.vote_share(groups), [[0.5, 0.5, 0.25, 0], [0, 0, 0, 0]])
