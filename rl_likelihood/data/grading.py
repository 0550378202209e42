"""Answers out of text, and whether they are right. Total functions: any text, in linear time, never an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol


class Tags(Protocol):
    """The part of `shapes.ChainFormat` and `prompts.PromptConfig` that grading reads."""

    think_close: str
    answer_open: str
    answer_close: str


def extract_answer(text: str, tags: Tags) -> str | None:
    """The text between `<answer>` and `</answer` at their first occurrence after the chain; None if absent.

    The chain ends at the first `</think>`; a text without one is searched from its start.
    """
    chain_end = text.find(tags.think_close)
    opening = tags.answer_open + ">"
    start = text.find(opening, max(chain_end, 0))
    if start < 0:
        return None
    start += len(opening)
    end = text.find(tags.answer_close, start)
    return None if end < 0 else text[start:end]


def exact_match(reference: str, answer: str | None) -> bool:
    """Equal but for white space at the ends."""
    return answer is not None and answer.strip() == reference.strip()


# [sign] [$] [sign] digits, with thousands commas or not, [.digits] [/ digits] [%] [.]
_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\$?(?P<sign2>[-+\u2212]?)\s*"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?P<decimals>\.[0-9]+)?"
    r"(?:\s*/\s*(?P<denominator>[0-9]+))?\s*(?P<percent>%)?\.?"
)
_LONGEST_NUMBER = 200  # characters; longer ones are compared as text


def parse_number(text: str) -> Fraction | None:
    """The exact value of 1,200  -3.50  3/4  $12  15% (= 3/20)  or None for anything else.

    Not numbers here: exponents, mixed numbers, units, division by zero.
    """
    text = text.strip()
    if len(text) > _LONGEST_NUMBER:
        return None
    m = _NUMBER.fullmatch(text)
    if m is None or not (m["whole"] or m["decimals"]) or (m["sign"] and m["sign2"]):
        return None
    value = Fraction((m["whole"] or "0").replace(",", "") + (m["decimals"] or ""))
    if m["denominator"] is not None:
        if int(m["denominator"]) == 0:
            return None
        value /= int(m["denominator"])
    if m["percent"]:
        value /= 100
    return value if (m["sign"] or m["sign2"]) in ("", "+") else -value


def numeric_match(reference: str, answer: str | None) -> bool:
    """Equal as exact rationals; as text (`exact_match`) where the reference is not a number."""
    if answer is None:
        return False
    value = parse_number(reference)
    if value is None:
        return exact_match(reference, answer)
    return parse_number(answer) == value


GRADERS: dict[str, Callable[[str, str | None], bool]] = {
    "exact_match": exact_match,
    "numeric": numeric_match,
}
