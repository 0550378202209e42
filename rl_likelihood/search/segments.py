"""A text in segments, what a chain copies of its answer, and what is wrong with a chain that was found."""

from __future__ import annotations

import collections
import itertools
import re

SHORTEST = 100  # characters: shorter pieces join the next one
_BLANK, _LINE = re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n\s*")
_DISPLAY = re.compile(r"\\\[.*?\\\]|\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
# A chain that still searches where it should be done.
_THINKING = re.compile(r"\b(let me|let's see|hmm+|wait|i wonder|maybe i should|i need to think)\b", re.IGNORECASE)
LAST, FREQUENT, MOST_FREQUENT = 0.1, 0.3, 3


def segments(text: str, shortest: int = SHORTEST) -> list[str]:
    """The text cut at blank lines, or at line ends where it has none. Joined, they are the text.

    A displayed formula is never cut.
    """
    displays = [m.span() for m in _DISPLAY.finditer(text)]

    def cuts(pattern: re.Pattern) -> list[int]:
        ends = [m.end() for m in pattern.finditer(text)]
        return [at for at in ends if at < len(text) and not any(a < at < b for a, b in displays)]

    bounds = [0, *(cuts(_BLANK) or cuts(_LINE)), len(text)]
    out = [""]
    for start, end in itertools.pairwise(bounds):
        if len(out[-1].strip()) >= shortest:
            out.append("")
        out[-1] += text[start:end]
    if len(out) > 1 and len(out[-1].strip()) < shortest:
        last = out.pop()
        out[-1] += last
    return out


def replaced(segment: str, text: str) -> str:
    """Another text instead of a segment, with the white space around it."""
    inner = segment.strip()
    before, _, after = segment.partition(inner) if inner else (segment, "", "")
    return before + text.strip() + after


def longest_run(a: list[str], b: list[str]) -> int:
    """Words of the longest run that both lists have."""

    def shared(n: int) -> bool:
        runs = {tuple(a[i : i + n]) for i in range(len(a) - n + 1)}
        return any(tuple(b[i : i + n]) in runs for i in range(len(b) - n + 1))

    low, high = 0, min(len(a), len(b))
    while low < high:  # a run of n words holds one of n - 1
        middle = (low + high + 1) // 2
        low, high = (middle, high) if shared(middle) else (low, middle - 1)
    return low


def copied(chain: str, answer: str) -> float:
    """The longest run of words that the chain has from the answer, as a share of the answer."""
    words = answer.split()
    return longest_run(chain.split(), words) / len(words) if words else 0.0


def complaint(chain: str) -> str:
    """Why a chain that was found is of no use as an example; "" if it is."""
    words = chain.split()
    if _THINKING.search(" ".join(words[len(words) - max(1, round(LAST * len(words))) :])):
        return "still thinking at its end"
    trigrams = collections.Counter(zip(words, words[1:], words[2:], strict=False))
    often = sum(n for _, n in trigrams.most_common(MOST_FREQUENT))
    # A text of a few trigrams consists of its most frequent ones.
    if trigrams.total() > MOST_FREQUENT / FREQUENT and often > FREQUENT * trigrams.total():
        return "repeats itself"
    return ""
