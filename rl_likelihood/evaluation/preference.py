"""Accuracy and calibration of scores of answers. The first score of each question belongs to the right answer.

Right answers may be longer than wrong ones, or share more words with the question. So what these alone would get stands
beside every accuracy, and `accuracy_when_shorter` is of the pairs whose right answer is the shorter one.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit as sigmoid

from rl_likelihood.datasets.teleqna import REFERS
from rl_likelihood.evaluation.statistics import RESAMPLES, interval, interval_of_equal, resampled

BINS = 10
RM_EVAL = "rm_eval.jsonl"  # in a reward model's workdir: its accuracies
_WORDS = re.compile(r"\w+")


class Scored(NamedTuple):
    """One question: its text, its answers with the right one first, their scores [K], and a category."""

    question: str
    answers: Sequence[str]
    scores: np.ndarray
    category: str = ""
    refers: bool = False  # an answer refers to others, as "all of the above"


def summary(rows: Sequence[Scored], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Accuracies with 95 % intervals over the questions, calibration, and the baselines.

    The interval of an accuracy that is 0, or 1, in all questions is the exact one. NAME_minus_length_only is of the
    same questions, so its interval is that of a paired difference.
    """
    d = np.concatenate([_differences(r.scores) for r in rows])
    lengths = [np.asarray([len(a) for a in r.answers], float) for r in rows]
    shorter = np.concatenate([_differences(x) for x in lengths]) < 0
    of = np.repeat(np.arange(len(rows)), [len(r.scores) - 1 for r in rows])
    by_question = lambda x: np.bincount(of, x, len(rows))
    right, own = _won(d), _accuracies(rows, [r.scores for r in rows])
    ratios = own | {"accuracy_when_shorter": (by_question(right * shorter), by_question(shorter))}
    pairs = own["pair_accuracy"][1]
    for name, scores in baselines(rows).items():
        ratios |= {f"{name}_{k}": v for k, v in _accuracies(rows, scores).items()}
    exact = {k: ends for k, (a, b) in ratios.items() if b.any() and (ends := interval_of_equal(a[b > 0] / b[b > 0]))}
    ratios |= {f"{k}_minus_length_only": (a - ratios[f"length_only_{k}"][0], b) for k, (a, b) in own.items()}
    means = {"brier": (1 - sigmoid(d)) ** 2, "margin": d, "nll": np.logaddexp(0, -d)}
    ratios |= {k: (by_question(x), pairs) for k, x in means.items()}
    ratios = {k: (a, b) for k, (a, b) in ratios.items() if b.sum()}
    p, y, temperature = sigmoid(np.abs(d)), right, best_temperature(d)
    return {
        **{k: float(a.sum() / b.sum()) for k, (a, b) in ratios.items()},
        "ci95": {k: list(exact.get(k) or _interval(a, b, resamples)) for k, (a, b) in ratios.items()},
        "ece": ece(p, y),
        "temperature": temperature,
        "ece_after_temperature": ece(sigmoid(np.abs(d) / temperature), y),
        "length_correlation": _spearman_in_questions([r.scores for r in rows], lengths),
        "chance_best_of_options": float(np.mean([1 / len(r.scores) for r in rows])),
        "questions": len(rows),
        "pairs": len(d),
    }


def baselines(rows: Sequence[Scored]) -> dict[str, list[np.ndarray]]:
    """Scores that know nothing: an answer's length, how many of its words stand in the question, and, if there are such
    answers, whether it refers to others."""
    words = [set(_WORDS.findall(r.question.casefold())) for r in rows]
    shared = [
        np.asarray([len(known & set(_WORDS.findall(a.casefold()))) for a in r.answers], float)
        for r, known in zip(rows, words, strict=True)
    ]
    out = {"length_only": [np.asarray([len(a) for a in r.answers], float) for r in rows], "overlap_only": shared}
    if any(r.refers for r in rows):
        refers = lambda r, answer: r.refers and REFERS.search(answer) is not None
        out["referring_only"] = [np.asarray([refers(r, a) for a in r.answers], float) for r in rows]
    return out


def _accuracies(rows: Sequence[Scored], scores: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{accuracy: (right ones, all)} of each question, by these scores."""
    hits = np.asarray([_won(_differences(s)).sum() for s in scores])
    pairs = np.asarray([len(s) - 1 for s in scores], float)
    best = np.asarray([best_of(s) for s in scores])
    out = {"pair_accuracy": (hits, pairs), "best_of_options": (best, np.ones(len(rows)))}
    plain = np.asarray([not r.refers for r in rows], float)
    if 0 < plain.sum() < len(rows):
        out["pair_accuracy_without_referring"] = (hits * plain, pairs * plain)
    for name in sorted({r.category for r in rows} - {""}):
        kept = np.asarray([r.category == name for r in rows], float)
        out[f"pair_accuracy/{name}"] = (hits * kept, pairs * kept)
    return out


def _differences(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    return scores[0] - scores[1:]


def _won(d: np.ndarray) -> np.ndarray:
    """1 where the right answer has more, one half of a tie."""
    return np.where(d == 0, 0.5, d > 0)


def best_of_n(proxy: np.ndarray, gold: np.ndarray, n: int) -> tuple[float, float]:
    """(proxy, gold) of the answer that the proxy likes best of n, over all subsets of the answers to one question.
    Answers that it likes alike share."""
    total = len(proxy)
    order = np.argsort(proxy, kind="stable")
    proxy, gold = proxy[order], gold[order].astype(float)
    for value in np.unique(proxy):
        gold[proxy == value] = gold[proxy == value].mean()
    chance = np.array([math.comb(i, n - 1) for i in range(total)], float) / math.comb(total, n)
    return float(chance @ proxy), float(chance @ gold)


def best_of_curve(proxy: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """Mean proxy and gold of the best of n = 1, 2, 4 ... of the [questions, answers], against its KL to the sampler."""
    rows, n = [], 1
    while n <= proxy.shape[1]:
        each = np.asarray([best_of_n(p, g, n) for p, g in zip(proxy, gold, strict=True)])
        error = each[:, 1].std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        means = {"proxy": each[:, 0].mean(), "gold": each[:, 1].mean(), "gold_error": error}
        rows.append({"n": n, "kl": math.log(n) - (n - 1) / n} | {name: float(x) for name, x in means.items()})
        n *= 2
    return rows


def best_of(scores: np.ndarray) -> float:
    """1 over the number of highest scores if the right answer's, the first, is one of them; else 0."""
    scores = np.asarray(scores, float)
    top = scores == scores.max()
    return float(top[0] / top.sum())


def ece(p: np.ndarray, y: np.ndarray) -> float:
    """Mean gap between probability and frequency in BINS parts of equally many pairs."""
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(abs(p[part].mean() - y[part].mean()) * len(part) for part in parts) / len(p))


def best_temperature(d: np.ndarray) -> float:
    """The T from 1/100 to 100 of the least mean -log sigmoid(d / T), which has one minimum in log T."""
    from scipy.optimize import minimize_scalar  # here because its import takes half a second

    loss = lambda log_t: np.logaddexp(0, -d * np.exp(-log_t)).mean()
    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded").x))


def _interval(numerator: np.ndarray, denominator: np.ndarray, resamples: int) -> list[float]:
    weights = np.concatenate([*resampled(len(numerator), resamples)])
    total = weights @ denominator
    return interval((weights @ numerator)[total > 0] / total[total > 0])


def _spearman_in_questions(scores: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> float:
    """Mean over questions of the rank correlation of score and length; 0 where none has one."""
    from scipy.stats import spearmanr  # here because its import takes half a second

    both = [(s, n) for s, n in zip(scores, lengths, strict=True) if np.ptp(s) > 0 and np.ptp(n) > 0]
    return float(np.mean([spearmanr(s, n).statistic for s, n in both])) if both else 0.0
