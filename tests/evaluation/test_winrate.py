"""Win rates: known numbers, identities, and the published annotations of one model where they are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rl_likelihood.evaluation import winrate

# Annotations of AlpacaEval 2, which may not be given on: preference, length_model, length_base in a line.
DATA = Path(os.environ.get("RL_LIKELIHOOD_DATA", "no such folder")) / "alpaca_eval_lc"


def made(n=4000, theta=-0.3, phi=1.2, seed=0):
    """Wins in 0 to 1 that follow the model exactly, and the differences of lengths."""
    difference = np.random.default_rng(seed).normal(300, 700, n)
    return winrate.sigmoid(theta + phi * winrate.length_term(difference)), difference


def controlled(wins, difference):
    return 100 * winrate.fit_length(wins, winrate.length_term(difference)).at_equal_length[0]


def test_both_orders_cancel_a_preference_for_the_first():
    assert winrate.of_both_orders(np.array([0.7]), np.array([0.6])) == pytest.approx(0.55)
    always = np.full(5, 0.9)
    assert winrate.of_both_orders(always, always) == pytest.approx(0.5)
    assert winrate.first_bias(always, always) == pytest.approx(0.4) and winrate.agreement(always, always) == 0
    assert winrate.agreement(np.array([0.9, 0.5]), np.array([0.2, 0.5])) == 0.5


def test_the_fit_recovers_what_made_the_wins():
    wins, difference = made()
    fit = winrate.fit_length(wins, winrate.length_term(difference))
    assert (fit.theta[0], fit.phi[0]) == (pytest.approx(-0.3, abs=1e-6), pytest.approx(1.2, abs=1e-6))
    assert controlled(wins, difference) == pytest.approx(42.556, abs=1e-3) and 100 * wins.mean() > 50


def test_identities_of_the_length_control():
    rng = np.random.default_rng(1)
    wins, difference = rng.random(300), rng.normal(0, 500, 300)
    assert controlled(wins, np.full(300, 80.0)) == pytest.approx(100 * wins.mean(), abs=1e-6)
    assert controlled(1 - wins, -difference) == pytest.approx(100 - controlled(wins, difference), abs=1e-6)
    by_length = np.concatenate([difference, -difference])
    assert controlled((by_length > 0).astype(float), by_length) == pytest.approx(50, abs=1e-3)
    for constant in (0.0, 1.0):
        assert controlled(np.full(300, constant), difference) == pytest.approx(100 * constant, abs=1e-3)
    weights = rng.multinomial(300, np.full(300, 1 / 300), size=2).astype(float)
    many = winrate.fit_length(wins, winrate.length_term(difference), weights)
    rows = np.repeat(np.arange(300), weights[1].astype(int))
    one = winrate.fit_length(wins[rows], winrate.length_term(difference)[rows])
    assert many.theta[1] == pytest.approx(one.theta[0], abs=1e-9)


def test_a_summary_says_what_the_judge_does_and_how_sure_it_is():
    rng = np.random.default_rng(2)
    first = np.clip(0.6 + rng.normal(0, 0.2, 200), 0, 1)
    second = np.clip(0.5 + rng.normal(0, 0.2, 200), 0, 1)
    out = winrate.summary(first, second, rng.integers(10, 90, 200), rng.integers(10, 90, 200))
    assert out["win_rate"] == pytest.approx(100 * (first + 1 - second).mean() / 2)
    assert out["first_bias"] == pytest.approx((first.mean() + second.mean()) / 2 - 0.5) and out["prompts"] == 200
    for name, (low, high) in out["ci95"].items():
        error = 100 * winrate.of_both_orders(first, second).std() / np.sqrt(200)
        assert low < out[name] < high and high - low == pytest.approx(3.92 * error, rel=0.1), name
    assert out == winrate.summary(first, second, *lengths_again())


def lengths_again():
    rng = np.random.default_rng(2)
    rng.normal(0, 0.2, 400)
    return rng.integers(10, 90, 200), rng.integers(10, 90, 200)


def test_the_accuracy_of_a_judge_and_its_interval():
    right = np.full(40, 0.8)
    good = winrate.accuracy(right, 1 - right)
    assert good["accuracy"] == 1 and good["ci95"][0] == pytest.approx(0.912, abs=1e-3)
    always_first = winrate.accuracy(np.full(40, 0.9), np.full(40, 0.9))
    assert always_first["accuracy"] == 0.5 and always_first["ci95"][0] < 0.5
    slight = np.where(np.arange(40) < 24, 0.8, 0.2)
    # Clopper and Pearson's interval of 24 of 40 (scipy's binomtest): not above chance.
    assert winrate.accuracy(slight, 1 - slight)["ci95"] == pytest.approx([0.433267, 0.751350], abs=1e-6)


def test_none_and_all_of_n_have_the_exact_interval():
    lengths, bound = np.arange(20), 0.025 ** (1 / 20)  # 0.8316
    for wins, ends in ((np.ones(20), [bound, 1]), (np.zeros(20), [0, 1 - bound])):
        out = winrate.summary(wins, 1 - wins, lengths, lengths[::-1])["ci95"]
        assert out["win_rate"] == out["win_rate_length_controlled"] == pytest.approx([100 * x for x in ends])
        assert winrate.accuracy(wins, 1 - wins)["ci95"] == pytest.approx(ends)


@pytest.mark.skipif(not DATA.is_dir(), reason="the annotations are not at hand")
def test_the_published_annotations_of_one_model():
    (file,) = DATA.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wins, model, base = (np.array([r[k] for r in rows]) for k in ("preference", "length_model", "length_base"))
    out = winrate.summary(wins, 1 - wins, model, base)
    assert out["win_rate"] == pytest.approx(51.30, abs=0.005)
    assert out["win_rate_length_controlled"] == pytest.approx(53.95, abs=0.005)
    assert out["ci95"]["win_rate_length_controlled"][0] < 53.95 < out["ci95"]["win_rate_length_controlled"][1]
