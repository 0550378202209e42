"""The form of verse: lines, syllables and rhymes of an answer, measured by those of the reference answer.

Words are looked up in the CMU pronouncing dictionary if the package `pronouncing` is installed (pip install
-c constraints.txt -e '.[writing]'). A word that is not found is read by its spelling: each group of vowels but a silent
e at the end is a syllable, and two words rhyme if they have the same letters from the last such group to the end. If
only one of two words is found, both are read by their spelling.
"""

import functools
import itertools
import re
from typing import Any

import numpy as np

from rl_likelihood.evaluation.texts import words

_VOWELS = re.compile(r"[aeiouy]+")


@functools.cache
def _phones(word: str) -> list[str]:
    """The pronunciations of a word; none where there is no dictionary."""
    try:
        import pronouncing
    except ImportError:
        return []
    return pronouncing.phones_for_word(word)


def with_dictionary() -> bool:
    """Whether words are looked up."""
    return bool(_phones("verse"))


def syllables(word: str) -> int:
    """The number of syllables in a word's first pronunciation. If it has none, the number of its groups of vowels; a
    silent e at the end does not count."""
    phones = _phones(word)
    if phones:
        return sum(sound[-1].isdigit() for sound in phones[0].split())
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ye")) and len(_VOWELS.findall(word)) > 1
    return max(1, len(_VOWELS.findall(word)) - silent)


def _spelled_ending(word: str) -> str:
    """A word's letters from its last group of vowels to the end. A silent e at the end does not count as a group."""
    groups = list(_VOWELS.finditer(word.removesuffix("e") if len(word) > 3 else word))
    return word[groups[-1].start() :] if groups else word


def _sounds(word: str) -> set[str]:
    """The sounds from the last stressed vowel on, of each pronunciation."""
    out = set()
    for sounds in (p.split() for p in _phones(word)):
        stressed = [i for i, s in enumerate(sounds) if s[-1] in "12"] or [0]
        out.add(" ".join(re.sub(r"\d", "", s) for s in sounds[stressed[-1] :]))
    return out


def rhyme(a: str, b: str) -> bool:
    """Whether two different words rhyme."""
    if _phones(a) and _phones(b):
        return a != b and bool(_sounds(a) & _sounds(b))
    return a != b and _spelled_ending(a) == _spelled_ending(b)


def lines_of(text: str) -> list[list[str]]:
    """The words of each line that has any."""
    return [line for line in map(words, text.splitlines()) if line]


def form(answer: str, reference: str) -> dict[str, Any]:
    """How close an answer's form is to that of the reference.

    lines: 1 if both have equally many lines, else 0.
    syllables: the difference between the syllables of a line of the answer and the mean of the reference's lines; mean
        over the answer's lines.
    rhymes: the pairs of lines that rhyme in the reference; the share of them that rhyme in the answer. None if no lines
        of the reference rhyme.
    If answer or reference has no lines, lines is 0 and the others are None.
    """
    own, model = lines_of(answer), lines_of(reference)
    if not own or not model:
        return {"lines": 0.0, "syllables": None, "rhymes": None}
    wanted = np.mean([sum(map(syllables, line)) for line in model])
    off = float(np.mean([abs(sum(map(syllables, line)) - wanted) for line in own]))
    pairs = [(i, j) for i, j in itertools.combinations(range(len(model)), 2) if rhyme(model[i][-1], model[j][-1])]
    right = [j < len(own) and rhyme(own[i][-1], own[j][-1]) for i, j in pairs]
    rhymes = float(np.mean(right)) if pairs else None
    return {"lines": float(len(own) == len(model)), "syllables": off, "rhymes": rhymes}
