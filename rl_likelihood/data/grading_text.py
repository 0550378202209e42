"""Graders of text: equal strings, equal numbers, the same option. Linear time in any text, never an error."""

from __future__ import annotations

import re
from fractions import Fraction


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


_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s$]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} or \fbox{...}, braces balanced; of `\boxed 5`, the 5. None without a box.

    Escaped braces, \{ and \}, are not counted. A last box that never closes is empty.
    """
    start = max(text.rfind(box) + len(box) if box in text else -1 for box in (r"\boxed", r"\fbox"))
    if start < 0:
        return None
    start = _SPACE.match(text, start).end()
    if not text.startswith("{", start):
        return _BARE.match(text, start)[0]
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[start + 1 : brace.start()]
    return ""


_LEAD = r"(?:(?:the\s+)?(?:(?:correct|final|best|right)\s+)?answer\s*(?:is\b|:)?\s*:?\s*)?"
_CHOICE = re.compile(
    _LEAD + r"(?:"
    r"[(\[]?(?:option|choice)\s*[(\[]?(?P<number>[0-9]{1,2}|[a-z])(?![0-9a-z])"  # option 2, Option 2: text, choice B
    r"|[(\[](?P<bracketed>[a-z])[)\]]"  # (B), (B) text
    r"|(?P<letter>[a-z])\**(?:\s*$|\s*\n|[.:)\]]|\s+[-\u2013\u2014]\s)"  # B, B., B: text, B - text, not "B text"
    r")",
    re.IGNORECASE | re.ASCII,
)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm)\s*\{([^{}]*)\}")
_CHOICE_HEAD = 200  # characters; the choice comes first


def choice(text: str) -> int | None:
    r"""The number (from 1; A = 1) of the option that a text names in its last \boxed{}, or else at its start; or None.

    Known: B, b, (B), [B], B., B) text, B: text, **B**, \text{B}, option 2, Option 2: text, choice B, each with
    "the (correct) answer is" before it or not. Not a choice: a bare number, or a letter that begins a sentence
    ("A cat"). A text that goes on to name another option has chosen the first.
    """
    boxed = last_boxed(text)
    head = (text if boxed is None else boxed).strip()[:_CHOICE_HEAD].strip("*_$`\"' \n")
    words = _WORDS.fullmatch(head.rstrip("."))
    if words is not None:
        head = words[1].strip()
    m = _CHOICE.match(head)
    if m is None:
        return None
    name = m["number"] or m["bracketed"] or m["letter"]
    number = int(name) if name.isdigit() else ord(name.lower()) - ord("a") + 1
    return number or None  # option 0 is none


def multiple_choice(reference: str, answer: str | None) -> bool:
    """The same option (see `choice`); as text (`exact_match`) where the reference names no option."""
    if answer is None:
        return False
    right = choice(reference)
    return exact_match(reference, answer) if right is None else choice(answer) == right
