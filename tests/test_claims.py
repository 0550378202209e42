"""experiments/claims.py: what a difference, its interval and its seeds make of a claim."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import cpu_grid, long_answers
from experiments.claims import CLAIMS, UNTOUCHED, Claim, judged, read_runs, table
from rl_likelihood.sweeps import grid
from tests.evaluation.test_statistics import record
from tests.report.grids import write_run

ROOT = Path(__file__).parents[1]

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


@pytest.mark.parametrize(
    "a, verdict",
    [
        ((1.0, 1.2, 1.1), "appears"),
        ((-1.0, -1.2, -1.1), "contradicted"),
        ((1.0, 0.2, 0.1), "cannot be told"),  # every seed is ahead, and the interval contains 0
        ((1.0,), "cannot be told: one seed"),
        ((), "cannot be told: not run"),
    ],
)
def test_a_claim_over_seeds_needs_an_interval_without_0(a, verdict):
    claim = Claim("a against b", "long", "trace_area", ("a",), ("b",), 1, over_seeds=True)
    result = judged(claim, runs(a=a, b=(0.0, 0.0, 0.0)))
    assert result["verdict"] == verdict
    if len(a) > 1:  # 4.303 is Student's t for three seeds
        assert result["high"] - result["low"] == pytest.approx(2 * 4.303 * np.std(a, ddof=1) / 3**0.5, rel=0.2)
    line = table([(claim, result)]).splitlines()[-1]
    assert line.startswith("| a against b | ") and line.endswith(f" | {verdict} |") and line.count("|") == 6


def test_an_order_over_seeds_has_to_appear_in_every_pair():
    there = runs(r3=(2.0, 2.1, 2.2), x=(1.0, 1.1, 1.2), y=(1.8, 2.2, 2.1))
    order = Claim("r3 against x and y", "long", "chain_length", ("r3",), ("x", "y"), 1, over_seeds=True)
    result = judged(order, there)
    assert result["verdict"] == "appears in 1 of 2 pairs" and result["pairs"]["r3, y"] == "cannot be told"


def test_the_claims_are_about_the_rewards_of_their_experiment():
    rewards = {"cpu_grid": {*cpu_grid.KW, "sft"}, "long_answers": {*long_answers.LONG_REWARDS}}
    assert CLAIMS.keys() == rewards.keys()
    named = {k: {name for claim in of() for name in (*claim.these, *claim.those)} for k, of in CLAIMS.items()}
    assert named["cpu_grid"] == rewards["cpu_grid"] | {UNTOUCHED}
    assert named["long_answers"] == rewards["long_answers"] - {"vr_cli", "sft", "covrl"} | {UNTOUCHED}
    assert {claim.task for claim in CLAIMS["long_answers"]()} == {"long"}


def test_made_up_runs_of_long_answers_are_read_and_judged(tmp_path, monkeypatch):
    """r3 and avg_log_prob alone were run. r3's chains help more, and along the way."""
    monkeypatch.chdir(ROOT)
    made = {
        UNTOUCHED: (20, -8.0, [-8.0] * 5),
        "r3": (40, -2.0, [-8.0, -6.0, -4.0, -2.0, -2.0]),
        "avg_log_prob": (10, -6.0, [-8.0, -8.0, -8.0, -8.0, -6.0]),
    }
    for point in grid.load("experiments/long_answers.py").points:
        reward, seed = point.labels["reward"], int(point.labels["seed"])
        if point.labels["task"] != "long" or reward not in made:
            continue
        folder = write_run(tmp_path / point.name, {"records": reward}, {"records": UNTOUCHED})
        for name in (UNTOUCHED, reward):
            length, log_prob, curve = made[name]
            one = record([log_prob], 4, lengths=[length + seed], no_chain=-8.0) | {"trace": curve}
            rows = ({"step": 4, "identity": 0}, {"step": 4, "index": 0, **one})
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    there = read_runs(tmp_path, "experiments/long_answers.py")
    of = lambda metric: {name: float(values[0]) for (name, seed), values in there["long", metric].items() if seed == 2}
    assert of("chain_length") == {UNTOUCHED: 22, "r3": 42, "avg_log_prob": 12}
    assert of("chain_gain_per_token") == {UNTOUCHED: 0, "r3": 1.5, "avg_log_prob": 0.5}
    # Above the start, a token: r3 0, 0.5, 1, 1.5, 1.5; avg_log_prob 0, 0, 0, 0, 0.5.
    assert of("trace_area") == pytest.approx({UNTOUCHED: 0, "r3": 0.9375, "avg_log_prob": 0.0625})
    verdicts = {
        claim.words: judged(claim, there.get((claim.task, claim.metric), {}))["verdict"]
        for claim in CLAIMS["long_answers"]()
    }
    assert verdicts.pop("chains: avg_log_prob shortens them") == "appears"
    assert set(verdicts.values()) == {"cannot be told: not run"}, "every other claim is of more rewards than these"
    ahead = Claim("r3 > avg_log_prob", "long", "trace_area", ("r3",), ("avg_log_prob",), 1, over_seeds=True)
    assert judged(ahead, there["long", "trace_area"])["verdict"] == "appears"
