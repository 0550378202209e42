"""Mathematical answers: the last box, exact numbers, then (where installed) math-verify's algebra.

Algebra on hostile text can hang or take all memory. `math_match` is for one answer at hand; runs go through
`grading_pool.Pool`, which puts the algebra in processes that it can kill.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import re
from fractions import Fraction

from rl_likelihood.grading.text import exact_match, has_percent, last_boxed, parse_number, same_value

_LONGEST = 2_000  # characters of an answer; longer ones are compared as text
_DEEPEST = 20  # brackets inside brackets, in what math-verify may see

# Spellings that mean the same. Dollars, degrees and per cent are units: MATH's own convention. (`same_value` has more.)
_SPELLINGS = [
    (r"\!", ""),
    (r"\,", " "),
    (r"\;", " "),
    (r"\:", " "),
    (r"\ ", " "),
    ("~", " "),
    ("{,}", ","),
    ("dfrac", "frac"),
    ("tfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\degree", ""),
    ("\u00b0", ""),
    (r"\$", ""),
    (r"\%", ""),
    ("%", ""),
    ("\u2212", "-"),
]
_ENCLOSURES = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")]
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_FRACTION = re.compile(r"([-+]?)([0-9]{1,50})?\\frac(?:\{([^{}]{1,100})\}|([0-9]))(?:\{([^{}]{1,100})\}|([0-9]))")


def _core(text: str) -> str:
    """The answer itself: what is in the last box, or everything; without dollars around it, in one spelling."""
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).strip()
    if len(text) > _LONGEST:
        return text
    for opening, closing in _ENCLOSURES:
        inner = text.rstrip(".").rstrip()
        if len(inner) > len(opening) + len(closing) and inner.startswith(opening) and inner.endswith(closing):
            inner = inner[len(opening) : -len(closing)]
            if opening not in inner:
                text = inner
    for spelling, ours in _SPELLINGS:
        text = text.replace(spelling, ours)
    text = text.strip()
    words = _TEXT.fullmatch(text.rstrip("."))
    return _LOOSE_SPACE.sub("", words[1].strip() if words else text).rstrip(".")


def latex_number(text: str) -> Fraction | None:
    r"""The exact value of what `parse_number` knows and of \frac{a}{b}, -\frac12, 1\frac{4}{5} (= 9/5); else None."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    m = _FRACTION.fullmatch(text)
    if m is None:
        return parse_number(text)
    sign, whole, *parts = m.groups()
    above, below = (parse_number(a or b) for a, b in (parts[:2], parts[2:]))
    if above is None or not below:
        return None
    value = above / below
    if whole is not None:
        if value < 0:
            return None
        value += int(whole)
    return -value if sign == "-" else value


@functools.cache
def has_math_verify() -> bool:
    """Is math-verify (the extra `math`) installed? Does not import it."""
    return importlib.util.find_spec("math_verify") is not None


def math_quick(reference: str, answer: str | None) -> bool | None:
    """`math_match` where it takes no algebra; None where it does. Linear time, never an error."""
    if answer is None:
        return False
    goal, found = _core(reference), _core(answer)
    if not goal or not found:
        return False
    if goal == found or len(found) > _LONGEST:
        return goal == found
    value = latex_number(goal)
    if value is not None and (number := latex_number(found)) is not None:
        return same_value(value, number, has_percent(reference), has_percent(answer))
    if _says_more(goal, found):
        return False
    return None if has_math_verify() and not _too_deep(found) else False


# Between two answers: a comma that is not of thousands, ; or and.
_BETWEEN = re.compile(r"(?<![0-9]),|,(?![0-9]{3}(?![0-9]))|;|\bor\b|\band\b")
_BRACKETED = re.compile(r"\\[{]|\\[}]|[(\[{]|[)\]}]")
_EQUALS = re.compile(r"(?<![<>!:])=")
# x  x_1  f(x)  f'(x)  f^{-1}(x)  (x,y)  \text{Area}  \angle ABC: letters and no arithmetic.
_NAME = re.compile(r"(?=.*[A-Za-z])(?:[A-Za-z\\{}()|'., ]|_[0-9A-Za-z]|_\{[0-9A-Za-z,]*\}|\^\{-1\})+", re.DOTALL)
# What leads from one text to the next, where the reference has none of it.
_ONWARDS = re.compile(
    r"\\(?:implies|iff|mapsto|therefore|equiv|approx|colon|hspace|mbox|\\|(?:[Ll]ong)?[Rr]ightarrow|Leftrightarrow)|&|=>|[、，?#]"
)
_BASE = re.compile(r"\d_\{?(\d+)\}?")  # 2516_8: math-verify reads the digits alone


def _says_more(goal: str, found: str) -> bool:
    """Does a text say more than one answer, of which math-verify would take the one that fits?

    That is: more formulas than the reference has parts (7; $5$), another base (2516_7), an equality whose left side is
    not a name (4=5, x=4=5, and true ones like 2+3=5) where the reference has none such, or an implication.
    """
    if _parts(found, inside=False) > _parts(goal, inside=True) or _BASE.findall(found) != _BASE.findall(goal):
        return True
    if _named(goal) and not _named(found):
        return True
    odd = found.count("|") % 2 > goal.count("|") % 2
    return odd or (_ONWARDS.search(found) is not None and _ONWARDS.search(goal) is None)


def _parts(text: str, inside: bool) -> int:
    """How many answers a text may hold; those in brackets too, or only what stands outside of all."""
    text = text.replace(r"\(", "$").replace(r"\)", "$")
    if "$" in text:  # words around formulas: these count, and a number among the words
        pieces = text.split("$")
        words = " ".join(pieces[::2])
        return sum(_parts(p, inside) for p in pieces[1::2] if p.strip()) + any(c in "0123456789" for c in words)
    if not inside:
        text = _outside(text)
    return 1 + len(_BETWEEN.findall(text)) + text.count(r"\pm")


def _outside(text: str) -> str:
    kept, depth, at = [], 0, 0
    for m in _BRACKETED.finditer(text):
        if depth == 0:
            kept.append(text[at : m.start()])
        depth = max(depth + (1 if m[0][-1] in "([{" else -1), 0)
        at = m.end()
    return " ".join([*kept, text[at:] if depth == 0 else ""])


def _named(text: str) -> bool:
    """Is every = after a name? Of x=1, y=2 each has its own."""
    left = _EQUALS.split(text.replace("$", ","))[:-1]
    return all(_NAME.fullmatch(_BETWEEN.split(side)[-1].strip() if i else side) for i, side in enumerate(left))


def _too_deep(text: str) -> bool:
    depth = deepest = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    return deepest > _DEEPEST


def math_outcome(reference: str, answer: str | None) -> bool | None:
    """`math_match` that tells a failure of the grader (None) from a wrong answer (False). It may hang: see `Pool`."""
    quick = math_quick(reference, answer)
    if quick is not None:
        return quick
    assert answer is not None
    from math_verify import parse, verify

    # Its own time limits are off: they make a slow answer a wrong one, and need signals of the main thread.
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # What it cannot read becomes text. Errors that say that a comparison broke down are not a verdict.
        goal = parse(_delimited(reference), parsing_timeout=None, raise_on_error=True)
        found = parse(_delimited(answer), parsing_timeout=None, raise_on_error=True)
        return bool(verify(goal, found, timeout_seconds=None, raise_on_error=True))
    except Exception:  # any kind: it is someone else's parser. None is counted as a failure.
        return None


def _delimited(text: str) -> str:
    """The answer in dollars, as math-verify wants formulas, unless it is words around formulas of its own."""
    core = _core(text)
    return core if "$" in core or r"\(" in core or r"\[" in core else f"${core}$"


def math_match(reference: str, answer: str | None) -> bool:
    r"""Equal in value. Reference and answer may each hold a last \boxed{}; without one the whole text counts.

    In turn: equal text in one spelling (\dfrac = \frac, units $ % and degrees dropped, \text{} opened); both plain
    numbers or simple fractions: equal as exact rationals or not at all, 50% being 50 as well as 0.5; then
    math-verify, where installed, on answers up to 2,000 characters that say one thing (`_says_more`): 4=5 is not 5.
    Without math-verify the rest is wrong, as is everything that makes it fail; a run that uses it is refused.
    """
    return math_outcome(reference, answer) is True


def telemath(reference: str, answer: str | None) -> bool:
    """TeleMath's rule: within 1 % of the reference or within 0.01 of it; as text where one is not a number.

    The last box counts, or everything without one; a leading colon and trailing dots and slashes are dropped.
    """
    if answer is None:
        return False
    goal, found = _tidy(reference), _tidy(answer)
    value, number = _float(goal), _float(found)
    if value is None or number is None:
        return exact_match(goal, found)
    return math.isclose(number, value, rel_tol=0.01, abs_tol=0.01)


def _tidy(text: str) -> str:
    boxed = last_boxed(text)
    return (text if boxed is None else boxed).strip().rstrip("./ ").lstrip(": ")


_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


def _float(text: str) -> float | None:
    if len(text) > 100:
        return None
    if _FLOAT.fullmatch(text):
        return float(text)
    exact = latex_number(text.replace("\u2212", "-"))
    return None if exact is None else float(exact)
