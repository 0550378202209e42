"""Measures of answers that are texts, which no program can mark: how different they are, and what they copy.

A text's words are its runs of letters and apostrophes, in lower case.
"""

import collections
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
Runs = frozenset[tuple[str, ...]]
COPIED = 4  # words of a run that is looked up in the training text


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


def ngrams(of: Sequence[str], n: int) -> collections.Counter:
    return collections.Counter(zip(*(of[i:] for i in range(n)), strict=False))


def distinct(texts: Iterable[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts (Li et al. 1510.03055); NaN without any."""
    counts = sum((ngrams(words(t), n) for t in texts), collections.Counter())
    return len(counts) / counts.total() if counts else math.nan


def bleu(text: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    """BLEU of one text against others, up to 4-grams; one is added to both counts of an order above 1, as one text is
    short (Lin and Och 2004)."""
    if not text or not others:
        return 0.0
    logs = []
    for n in range(1, 5):
        own = ngrams(text, n)
        most_often: collections.Counter = collections.Counter()
        for other in others:
            most_often |= ngrams(other, n)
        add = int(n > 1)
        right = (own & most_often).total() + add
        if not right:
            return 0.0
        logs.append(math.log(right / (own.total() + add)))
    nearest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
    return math.exp(min(0.0, 1 - nearest / len(text)) + sum(logs) / 4)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against all others (Zhu et al. 1802.01886); NaN for fewer than two."""
    split = [words(t) for t in texts]
    if len(split) < 2:
        return math.nan
    return float(np.mean([bleu(t, split[:i] + split[i + 1 :]) for i, t in enumerate(split)]))


def compression(texts: Sequence[str]) -> float:
    """Bytes of the texts together, compressed, over their bytes; NaN without any."""
    whole = "\n".join(texts).encode()
    return len(zlib.compress(whole, 9)) / len(whole) if whole else math.nan


def runs_of(texts: Iterable[str]) -> Runs:
    """Every run of COPIED words in the training texts."""
    return frozenset(run for t in texts for run in ngrams(words(t), COPIED))


def copied(text: str, trained: Runs) -> float | None:
    """Share of a text's runs of COPIED words that the training texts have; None where it has no such run."""
    own = ngrams(words(text), COPIED)
    return sum(n for run, n in own.items() if run in trained) / own.total() if own else None


# Numbers that the record of one answer has, and their metrics.
OF_ANSWER = {"copied": "copied", "lines": "verse_lines", "syllables": "verse_syllables", "rhymes": "verse_rhymes"}


def columns(groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Of the answers to each question, the entries of its record: the columns of an evaluation."""
    given = [[entry["answer"] for entry in group if entry["answer"]] for group in groups]
    out = {
        "answered": [len(texts) / len(group) for texts, group in zip(given, groups, strict=True)],
        "answer_words": [np.mean([len(words(t)) for t in texts]) if texts else math.nan for texts in given],
        "distinct_1": [distinct(texts, 1) for texts in given],
        "distinct_2": [distinct(texts, 2) for texts in given],
        "self_bleu": [self_bleu(texts) for texts in given],
        "compression": [compression(texts) for texts in given],
    }
    for name, metric in OF_ANSWER.items():
        values = [[x for entry in group if (x := entry.get(name)) is not None] for group in groups]
        if any(values):
            out[metric] = [float(np.mean(v)) if v else math.nan for v in values]
    return {name: np.asarray(column, float) for name, column in out.items()}
