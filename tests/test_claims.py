"""experiments/claims.py: what a difference, its interval and its seeds make of a claim."""

import dataclasses

import numpy as np
import pytest

from experiments import cpu_grid
from experiments.claims import UNTOUCHED, Claim, claims, judged, table

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=200)


def runs(**means: tuple[float, ...]) -> dict:
    """Two rewards' columns by seed, noise around their means, the questions' own part shared."""
    return {
        (name, seed): mean + NOISE + 0.1 * RNG.normal(size=200)
        for name, of_seeds in means.items()
        for seed, mean in enumerate(of_seeds)
    }


@pytest.mark.parametrize(
    "a, b, sign, margin, verdict",
    [
        ((1.0, 1.2), (0.5, 0.4), 1, 0, "appears"),
        ((1.0, 1.2), (0.5, 0.4), -1, 0, "contradicted"),
        ((1.0, 0.2), (0.5, 0.4), 1, 0, "undecided"),  # the seeds disagree
        ((0.5, 0.5), (0.5, 0.5), 1, 0, "undecided"),
        ((0.5, 0.5), (0.5, 0.5), 0, 0.1, "appears"),
        ((0.5, 0.5), (0.9, 0.9), 0, 0.1, "contradicted"),
        ((0.5, 0.5), (0.6, 0.6), 0, 0.1, "undecided"),  # the interval lies across the margin
    ],
)
def test_a_claim_appears_where_interval_and_seeds_are_on_its_side(a, b, sign, margin, verdict):
    claim = Claim("a against b", "short", "log_prob_mc1", ("a",), ("b",), sign, margin)
    result = judged(claim, runs(a=a, b=b))
    assert result["verdict"] == verdict and result["seeds"] == [0, 1]
    assert result["difference"] == pytest.approx(np.mean(a) - np.mean(b), abs=0.03)
    assert result["low"] <= result["difference"] <= result["high"]


def test_an_order_of_groups_has_to_appear_in_every_pair():
    there = runs(a=(2.0, 2.0), b=(1.5, 1.5), c=(1.0, 1.0), d=(0.5, 0.5))
    order = Claim("a, b against c, d", "short", "log_prob_mc1", ("a", "b"), ("c", "d"), 1)
    assert judged(order, there)["verdict"] == "appears"
    crossed = dataclasses.replace(order, these=("a", "c"), those=("b", "d"))
    result = judged(crossed, there)
    assert result["verdict"] == "appears in 3 of 4 pairs" and result["pairs"]["c, b"] == "contradicted"
    assert result["difference"] == pytest.approx(0.5, abs=0.03)


def test_only_seeds_that_all_have_count_and_none_is_said():
    claim = Claim("c against a and b", "short", "chain_length", ("c",), ("a", "b"), 1)
    result = judged(claim, runs(a=(0, 0), b=(0, 1), c=(2,)))
    assert result["seeds"] == [0] and result["difference"] == pytest.approx(2, abs=0.05)
    nothing = judged(claim, runs(a=(0,), c=(2,)))
    text = table([(claim, result), (claim, nothing)])
    assert "| +2.0 tokens |" in text and text.endswith("| c against a and b | | | | not run |\n")


def test_the_claims_are_about_the_rewards_of_the_grid():
    named = {name for claim in claims() for name in (*claim.these, *claim.those)}
    assert named == {*cpu_grid.KW, "sft", UNTOUCHED}
