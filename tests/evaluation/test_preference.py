"""Accuracy, calibration and baselines of scores of answers: known numbers and identities."""

import itertools

import numpy as np
import pytest

from rl_likelihood.evaluation.preference import (
    Scored,
    best_of,
    best_of_curve,
    best_of_n,
    best_temperature,
    ece,
    sigmoid,
    summary,
)

P, Y = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.95]), np.array([1.0, 1, 0, 1, 0, 1])


def rows(n=200, seed=0, flip=False):
    """Questions of 4 answers whose scores follow which is right and, a little, how long it is."""
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        answers = ["x" * int(k) for k in rng.integers(3, 20, 4)]
        scores = rng.normal(size=4) + 0.05 * np.array([len(a) for a in answers])
        scores[0] += 1.0
        out.append(Scored("q", answers, -scores if flip else scores, "ab"[i % 2], i % 5 == 0))
    return out


def test_known_numbers():
    d = np.log(P / (1 - P)) * np.where(Y > 0, 1, -1)  # right minus wrong, for pairs that were predicted with P
    out = summary([Scored("q", ["a", "b"], np.array([x, 0.0])) for x in d], 20)
    assert out["nll"] == pytest.approx(0.482184, abs=1e-6) and out["brier"] == pytest.approx(0.1675)
    assert all(out["ci95"][k][0] < out[k] < out["ci95"][k][1] for k in ("nll", "margin", "brier"))
    kl = {row["n"]: row["kl"] for row in best_of_curve(np.arange(16.0)[None], np.ones((1, 16)))}
    assert [kl[n] for n in (1, 2, 4, 16)] == pytest.approx([0, 0.193147, 0.636294, 1.835089], abs=1e-6)
    assert (
        best_of([1, 0, 1]) == 0.5 and best_of([0, 1, 1]) == 0 and best_of([2, 1]) == 1 and best_of([1, 1, 1]) == 1 / 3
    )
    y = np.array(([1.0] * 7 + [0] * 3) * 10)  # each of the ten parts has seven right ones
    assert ece(np.full(100, 0.7), y) == pytest.approx(0) and ece(np.full(100, 0.9), y) == pytest.approx(0.2)


def test_swapped_scores_give_one_minus_the_accuracy():
    out, swapped = summary(rows(), 200), summary(rows(flip=True), 200)
    for name in ("pair_accuracy", "accuracy_when_shorter", "pair_accuracy/a", "pair_accuracy_without_referring"):
        assert swapped[name] == pytest.approx(1 - out[name]) and out[name] > 0.5, name
        low, high = out["ci95"][name]
        assert low < out[name] < high
    assert out["accuracy_when_shorter"] < out["pair_accuracy"] and out["length_correlation"] > 0.1
    assert swapped["length_only_pair_accuracy"] == out["length_only_pair_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert out["pairs"] == 600 and out["questions"] == 200 and out["chance_best_of_options"] == 0.25


def test_baselines_stand_beside_the_accuracy_of_a_category():
    out, only_a = summary(rows(), 50), summary([r for r in rows() if r.category == "a"], 50)
    for name in ("length_only", "overlap_only"):
        assert out[f"{name}_pair_accuracy/a"] == only_a[f"{name}_pair_accuracy"], name
    expected = only_a["pair_accuracy_minus_length_only"]
    assert out["pair_accuracy/a_minus_length_only"] == pytest.approx(expected)


def test_equal_scores_know_nothing():
    equal = [r._replace(scores=np.zeros(4)) for r in rows(20)]
    out = summary(equal, 50)
    assert out["pair_accuracy"] == 0.5 and out["best_of_options"] == 0.25 and out["nll"] == pytest.approx(np.log(2))
    assert out["length_correlation"] == 0 and out["brier"] == 0.25


def test_none_and_all_of_n_have_the_exact_interval():
    bound = 0.025 ** (1 / 20)  # of 20 questions, whatever their pairs
    for right, ends in ((1.0, [bound, 1]), (-1.0, [0, 1 - bound])):
        questions = [Scored("q", ["xx", "x", "x"], np.array([right, 0, 0]), "ab"[i % 2]) for i in range(20)]
        out = summary(questions, 20)["ci95"]
        for name in ("pair_accuracy", "best_of_options"):
            assert out[name] == pytest.approx(ends), name
        assert out["length_only_pair_accuracy"] == pytest.approx([bound, 1]) and out["margin"] == [right, right]
        assert out["pair_accuracy/a"][1] - out["pair_accuracy/a"][0] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_the_baselines_see_length_and_words():
    out = summary([Scored("a red car", ["a red car here", "blue"], np.array([0.0, 1.0]))] * 3, 20)
    assert out["length_only_pair_accuracy"] == out["overlap_only_pair_accuracy"] == 1 and out["pair_accuracy"] == 0
    assert "accuracy_when_shorter" not in out, "no right answer is shorter"


def test_the_referring_option_and_length_are_judged_on_the_same_questions():
    """Of 8 questions 4 have an option that refers to others, right in 3. Elsewhere the longer option is right in 3."""
    refer = [Scored("q", ["All of the above", "xx"], np.array([1.0, 0]), refers=True)] * 3
    refer += [Scored("q", ["xx", "All of the above"], np.array([1.0, 0]), refers=True)]
    plain = [Scored("q", ["longer", "x"], np.array([0.0, 1]))] * 3 + [Scored("q", ["x", "longer"], np.array([1.0, 0]))]
    out = summary(refer + plain, 500)
    assert out["referring_only_pair_accuracy"] == (3 + 4 * 0.5) / 8
    assert out["length_only_pair_accuracy"] == 6 / 8 and out["pair_accuracy"] == 5 / 8
    assert out["length_only_pair_accuracy_without_referring"] == 3 / 4
    assert out["pair_accuracy_without_referring"] == 1 / 4
    assert out["pair_accuracy_without_referring_minus_length_only"] == pytest.approx(-0.5)
    assert "referring_only_pair_accuracy" not in summary(plain, 20)


def test_the_interval_of_a_difference_is_paired():
    """Scores that differ from length on few questions: the difference is known better than either accuracy."""
    some = [r._replace(scores=np.array([float(len(a)) for a in r.answers])) for r in rows()]
    other = [r._replace(scores=-r.scores) if i % 20 == 0 else r for i, r in enumerate(some)]
    out = summary(other, 500)
    width = lambda name: np.subtract(*out["ci95"][name][::-1])
    assert width("pair_accuracy_minus_length_only") < 0.6 * width("length_only_pair_accuracy")
    low, high = out["ci95"]["pair_accuracy_minus_length_only"]
    assert low <= out["pair_accuracy"] - out["length_only_pair_accuracy"] <= high
    assert summary(some, 50)["ci95"]["pair_accuracy_minus_length_only"] == [0, 0]


def test_a_temperature_calibrates():
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, 20000)
    right = np.where(rng.random(20000) < sigmoid(x), x, -x)  # calibrated differences, right minus wrong
    assert best_temperature(right) == pytest.approx(1, abs=0.05)
    assert best_temperature(3 * right) == pytest.approx(3, abs=0.15)
    p, y = sigmoid(np.abs(3 * right)), (right > 0).astype(float)
    assert ece(sigmoid(np.abs(right)), y) < 0.02 < ece(p, y)


def test_the_best_of_n_by_hand_and_by_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=6), rng.integers(0, 2, 6)
    for n in (1, 2, 3, 6):
        tops = [max(subset, key=lambda i: proxy[i]) for subset in itertools.combinations(range(6), n)]
        got = best_of_n(proxy, gold, n)
        assert got == pytest.approx((proxy[tops].mean(), gold[tops].mean()))
    assert best_of_n(np.zeros(4), np.array([1, 0, 0, 0]), 4) == (0, 0.25), "a tie is shared"


def test_the_curve_shows_a_proxy_that_is_pleased_by_what_is_wrong():
    rng = np.random.default_rng(1)
    gold = (rng.uniform(size=(200, 8)) < 0.5).astype(float)
    good, bad = (best_of_curve(sign * gold + rng.normal(size=gold.shape), gold) for sign in (1, -1))
    assert [row["n"] for row in good] == [1, 2, 4, 8]
    assert all(a["proxy"] < b["proxy"] for a, b in itertools.pairwise(bad))
    assert good[0]["gold"] < good[-1]["gold"] and bad[0]["gold"] > bad[-1]["gold"]
    assert good[0]["gold"] == pytest.approx(gold.mean())
