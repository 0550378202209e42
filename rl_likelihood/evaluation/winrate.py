"""Win rates of one model over another, from a judge's preferences. Every function is of n prompts.

A judge is asked twice about each prompt, with the answers in both orders. Its preference is the probability that the
answer shown first is the better one.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit as sigmoid

from rl_likelihood.evaluation.statistics import RESAMPLES, exact_interval, interval, interval_of_equal, resampled

ROUNDS = 60  # of Newton's method, which needs about ten
LARGEST = 30.0  # of a coefficient: data that a rule separates would move it to infinity
SMALL = 1e-6  # penalty on the coefficient of length, for such data
TIE = 1e-9  # a preference so near one half is none

Numbers: TypeAlias = np.ndarray  # [n]


class Fit(NamedTuple):
    """P(win) = sigmoid(theta + phi tanh(difference / spread)), each coefficient [B] for B sets of weights."""

    theta: np.ndarray
    phi: np.ndarray

    @property
    def at_equal_length(self) -> np.ndarray:
        """The length-controlled win rate."""
        return sigmoid(self.theta)


def of_both_orders(first: Numbers, second: Numbers) -> Numbers:
    """A's wins, from the preference for the first answer where A is first, and where A is second."""
    return (np.asarray(first) + 1 - np.asarray(second)) / 2


def first_bias(first: Numbers, second: Numbers) -> float:
    """How much the judge prefers what it reads first: 0 without a bias, .5 where it always does."""
    return float((np.asarray(first) + np.asarray(second)).mean() / 2 - 0.5)


def agreement(first: Numbers, second: Numbers) -> float:
    """Share of prompts whose winner is the same in both orders; a preference of one half is no winner."""
    by_first, by_second = np.asarray(first) - 0.5, 0.5 - np.asarray(second)
    return float((by_first * by_second > TIE**2).mean())


def length_term(difference: Numbers) -> Numbers:
    """tanh of the difference of lengths (A's minus B's) in its standard deviations; 0 where all are alike."""
    spread = np.std(difference)
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference, float)


def fit_length(wins: Numbers, term: Numbers, weights: np.ndarray | None = None) -> Fit:
    """Logistic regression of the wins, 0 to 1, on `length_term`, by Newton's method.

    `weights`: how often each prompt counts, one row for each fit; without them all count once.
    """
    wins, term = np.asarray(wins, float), np.asarray(term, float)
    weights = np.ones((1, len(wins))) if weights is None else weights
    theta, phi = np.zeros((2, len(weights)))
    for _ in range(ROUNDS):
        p = sigmoid(theta[:, None] + phi[:, None] * term)
        slope, bend = weights * (wins - p), weights * p * (1 - p)
        g0, g1 = slope.sum(1), (slope * term).sum(1) - SMALL * phi
        a, b, d = bend.sum(1) + 1e-12, (bend * term).sum(1), (bend * term**2).sum(1) + SMALL
        det = np.maximum(a * d - b * b, 1e-300)
        step0, step1 = (d * g0 - b * g1) / det, (a * g1 - b * g0) / det
        size = np.maximum(1, np.maximum(np.abs(step0), np.abs(step1)) / 2)  # far from the solution Newton overshoots
        theta = np.clip(theta + step0 / size, -LARGEST, LARGEST)
        phi = np.clip(phi + step1 / size, -LARGEST, LARGEST)
    return Fit(theta, phi)


def summary(first: Numbers, second: Numbers, lengths_a: Numbers, lengths_b: Numbers) -> dict[str, Any]:
    """Win rates of A over B in percent, with 95 % intervals over the prompts, and how steady the judge is.

    `first`: its preference for A's answer shown first; `second`: for B's answer shown first. The same preferences give
    the same intervals. If every preference is exactly 1, or 0, these are exact ones.
    """
    wins, n = of_both_orders(first, second), len(first)
    difference = np.asarray(lengths_a, float) - np.asarray(lengths_b, float)
    term = length_term(difference)
    weights = np.concatenate([*resampled(n, RESAMPLES)])
    fit = fit_length(wins, term)
    parts = [fit_length(wins, term, part).at_equal_length for part in np.array_split(weights, max(1, n // 100))]
    longer = np.where(difference == 0, 0.5, difference > 0)
    ends = interval_of_equal(wins)
    equal = ends and [100 * end for end in ends]
    return {
        "win_rate": 100 * float(wins.mean()),
        "win_rate_length_controlled": 100 * float(fit.at_equal_length[0]),
        "ci95": {
            "win_rate": equal or interval(100 * (weights @ wins) / n),
            "win_rate_length_controlled": equal or interval(100 * np.concatenate(parts)),
        },
        "first_bias": first_bias(first, second),
        "order_agreement": agreement(first, second),
        "length_coefficient": float(fit.phi[0]),
        "win_rate_of_longer": 100 * float(longer.mean()),
        "prompts": n,
    }


def accuracy(first: Numbers, second: Numbers) -> dict[str, Any]:
    """How often the judge prefers the known winner: shown first in `first`, second in `second`. A tie is half right."""
    wins = of_both_orders(first, second)
    right = float(np.where(np.abs(wins - 0.5) < TIE, 0.5, wins > 0.5).sum())
    return {
        "accuracy": right / len(wins),
        "ci95": list(exact_interval(right, len(wins))),
        "first_bias": first_bias(first, second),
        "order_agreement": agreement(first, second),
        "pairs": len(wins),
    }
