"""Splits a text into segments, measures what a chain copies from its answer, and finds faults in chains."""

from __future__ import annotations

import collections
import difflib
import itertools
import re

SHORTEST = 100  # characters; a shorter segment is joined with the next one
_BLANK, _LINE = re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n\s*")
_DISPLAY = re.compile(r"\\\[.*?\\\]|\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
# Words of a chain that is still searching, although it should be finished.
_THINKING = re.compile(r"\b(let me|let's see|hmm+|wait|i wonder|maybe i should|i need to think)\b", re.IGNORECASE)
LAST, FREQUENT, MOST_FREQUENT = 0.1, 0.3, 3


def segments(text: str) -> list[str]:
    """The text, split at blank lines or, if there are none, at line ends. The segments joined give the text.

    A displayed formula is never split.
    """
    displays = [m.span() for m in _DISPLAY.finditer(text)]

    def cuts(pattern: re.Pattern) -> list[int]:
        ends = [m.end() for m in pattern.finditer(text)]
        return [at for at in ends if at < len(text) and not any(a < at < b for a, b in displays)]

    bounds = [0, *(cuts(_BLANK) or cuts(_LINE)), len(text)]
    out = [""]
    for start, end in itertools.pairwise(bounds):
        if len(out[-1].strip()) >= SHORTEST:
            out.append("")
        out[-1] += text[start:end]
    if len(out) > 1 and len(out[-1].strip()) < SHORTEST:
        last = out.pop()
        out[-1] += last
    return out


def replaced(segment: str, text: str) -> str:
    """`text` in place of a segment, with the white space that surrounded the segment."""
    inner = segment.strip()
    before, _, after = segment.partition(inner) if inner else (segment, "", "")
    return before + text.strip() + after


def copied(chain: str, answer: str) -> float:
    """The longest run of words that chain and answer share, as a fraction of the answer's words."""
    words = answer.split()
    shared = difflib.SequenceMatcher(None, chain.split(), words, autojunk=False).find_longest_match()
    return shared.size / len(words) if words else 0.0


def complaint(chain: str) -> str:
    """Why a found chain is not useful as an example, or ""."""
    words = chain.split()
    if _THINKING.search(" ".join(words[len(words) - max(1, round(LAST * len(words))) :])):
        return "still thinking at its end"
    trigrams = collections.Counter(zip(words, words[1:], words[2:], strict=False))
    often = sum(n for _, n in trigrams.most_common(MOST_FREQUENT))
    # In a very short text, the most frequent trigrams are always a large share.
    if trigrams.total() > MOST_FREQUENT / FREQUENT and often > FREQUENT * trigrams.total():
        return "repeats itself"
    return ""
