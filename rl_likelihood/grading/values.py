"""Are two formulas equal? Exactly, by rationals, wherever these suffice; else by 600 digits of both, or more.

How many digits: numbers met on the way of up to `size` digits, before or after the point, give values that are equal or
differ by more than 10^-(2 size + 300); 3 size + 450 digits show this. So e^-1100 is neither e^-1200 nor 0.

Formulas with symbols are compared at several points: two different polynomials of degree d agree at one of these with
a chance of about d in a million. Those with factorials of symbols are compared at whole numbers. No step takes more
than a bounded time: what is too large is Unreadable.
"""

import functools
import math
import threading
from collections.abc import Sequence
from fractions import Fraction

import mpmath

from rl_likelihood.grading.numeric import KINK_POINTS, WHOLE_POINTS, Irrational, Undefined, evaluate
from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import Node, parts_of, symbols

POINTS = 4
_KINKS = ("floor", "ceil", "abs", "max", "min", "root")
_OF_WHOLE, _STEPS = ("factorial", "binomial"), ("floor", "ceil", "mod", "gcd", "lcm")
_PLAIN_SIZE = 15  # up to which the quick digits show a difference at every point
_QUICK, _EXACT = 50, (600, 1200, 2400, 4800)  # decimal digits
_MOST_CALLS = 600  # of functions at 600 digits: twice the digits take four times as long


@functools.cache
def _context(digits: int):
    context = mpmath.mp.clone()
    context.dps = digits
    return context


_LOCK = threading.Lock()  # mpmath's contexts change their precision while they work


def _value(node: Node, k: int, digits: int):
    """The value at point k; None where there is none."""
    mp = _context(digits)
    try:
        with _LOCK:
            return mp.convert(evaluate(node, k, mp))
    except (Undefined, ZeroDivisionError):
        return None
    except (ValueError, OverflowError, TypeError, mpmath.libmp.ComplexResult, mpmath.libmp.NoConvergence) as error:
        raise Unreadable(str(error)) from None


def _size(node: Node, k: int) -> float:
    """How many digits, before or after the point, the numbers have that are met on the way to the value at point k."""
    if not symbols(node) or node.parts[0] in ("factorial", "binomial"):
        try:
            value = evaluate(node, k)
            return 0.302 * (value.numerator.bit_length() + value.denominator.bit_length())
        except (Irrational, Undefined):
            pass
    inner = [_size(part, k) for part in parts_of(node)]
    if node.kind == "add":
        return max(inner) + 1
    size = sum(inner) if inner else 7 if symbols(node) else 1  # a symbol; pi, e
    call = node.parts[0] if node.kind == "call" else ""
    if call not in ("", "root", "abs") or (node.kind == "pow" and node.parts[1].kind != "number"):
        size *= 2  # sin x is x but for a third power
    if call in ("exp", "sinh", "cosh", "tanh"):
        size += _magnitude(node.parts[1], k) / 2.3
    elif node.kind == "pow":
        base = _value(node.parts[0], k, _QUICK)
        size += _magnitude(node.parts[1], k) * (0.31 * abs(_context(_QUICK).mag(base)) if base else 0)
    return float(size)


def _magnitude(node: Node, k: int):
    value = _value(node, k, _QUICK)
    return 0 if value is None else abs(value)


def _calls(node: Node) -> int:
    """How many functions and powers other than whole ones are to be computed."""
    slow = node.kind == "call" or (node.kind == "pow" and node.parts[1].kind != "number")
    return slow + sum(map(_calls, parts_of(node)))


def _enough(size: float, nodes: tuple[Node, ...], points: Sequence[int]) -> int:
    """How many digits to compute. Raises Unreadable where they are too many."""
    for digits in _EXACT:
        if digits >= 3 * size + 450:
            if sum(map(_calls, nodes)) * len(points) * (digits / _EXACT[0]) ** 2 > _MOST_CALLS:
                raise Unreadable("too many digits of too many functions")
            return digits
    raise Unreadable("too many digits")


def _zero(value, digits: int, size: float) -> bool:
    """Is a value with this many digits 0 as far as these show?"""
    mp = _context(digits)
    with _LOCK:
        return abs(value) <= mp.mpf(10) ** (size - 25 if digits == _QUICK else -2 * size - 300)


def same_value(a: Node, b: Node) -> bool:
    """Has b the value of a, whatever their symbols stand for, and no symbol that a lacks? Raises Unreadable.

    A symbol more would say nothing in 7 + 0x or 1^x, and so would any word in its place.
    """
    if a == b:
        return True
    if not symbols(b) <= symbols(a):
        return False
    whole = _has(a, *_OF_WHOLE, "alternating")
    # Only b restricts the points to whole numbers then, where sines and steps vanish.
    added = not whole and _has(b, *_OF_WHOLE)
    if added and (_has(a, *_STEPS) or _has(b, *_STEPS, "alternating")):
        return False
    points = WHOLE_POINTS if whole or added else _points(a, b)
    try:
        pairs = [(_defined(a, k), _defined(b, k)) for k in points]
        pairs = [pair for pair in pairs if None not in pair]
        return len(pairs) > whole and all(x == y for x, y in pairs)
    except Irrational:
        return not added and _same_digits(a, b, points)


def _points(a: Node, b: Node) -> range:
    """The points where two formulas are compared: one without symbols, more with symbols, most with _KINKS."""
    if _has(a, *_KINKS) or _has(b, *_KINKS):
        return KINK_POINTS
    return range(POINTS if symbols(a) | symbols(b) else 1)


def _has(node: Node, *calls: str) -> bool:
    """Is there such a call of something with symbols in a formula? A power such as 1/2 is a root."""
    name = node.parts[0] if node.kind == "call" else _of_power(node)
    here = name in calls and bool(symbols(node))
    return here or any(_has(part, *calls) for part in parts_of(node))


def _of_power(node: Node) -> str:
    """What kind of a power: x^{1/2} is a root, (-1)^n alternates."""
    if node.kind != "pow":
        return ""
    base, exponent = map(exact, node.parts)
    if base is not None and base < 0 and symbols(node.parts[1]):
        return "alternating"
    return "root" if exponent is not None and exponent.denominator != 1 else ""


def exact(node: Node) -> Fraction | None:
    """The value of a formula without symbols as a rational; None where it has none, or none that is surely one."""
    try:
        return None if symbols(node) else evaluate(node)
    except (Irrational, Undefined, Unreadable):
        return None


def _defined(node: Node, k: int) -> Fraction | None:
    """The exact value at a point; None where there is none."""
    try:
        return evaluate(node, k)
    except Undefined:
        return None


def _pairs(a: Node, b: Node, points: Sequence[int], digits: int) -> list[tuple]:
    """(point, value of one, value of the other) wherever both have one."""
    pairs = [(k, _value(a, k, digits), _value(b, k, digits)) for k in points]
    return [pair for pair in pairs if None not in pair[1:]]


def _same_digits(a: Node, b: Node, points: Sequence[int]) -> bool:
    """At the points where both are real; where they nowhere are, at all. b must be real wherever a is."""
    size = max(_size(node, k) for node in (a, b) for k in points)
    for quick in (True, False):
        digits = _QUICK if quick else _enough(size, (a, b), points)
        pairs = _pairs(a, b, points, digits)
        if any(_real(x) and not _real(y) for _, x, y in pairs):  # ln x for ln |x|
            return False
        real = [(k, x, y) for k, x, y in pairs if _real(x) and _real(y)]
        if not pairs or not all(_zero(x - y, digits, size) for _, x, y in real or pairs):
            return False
        points = [k for k, _, _ in real or pairs][: POINTS if size < _PLAIN_SIZE else None]
    return True


def _real(value) -> bool:
    return abs(mpmath.im(value)) <= 1e-20 * max(1, abs(value))


def proportional(a: Node, b: Node) -> bool:
    """Is one formula the other times a number that is not 0? For equations, written as formula = 0."""
    if not symbols(a) or symbols(a) != symbols(b):
        return False
    points = _points(a, b)
    sizes = [max(_size(node, k) for k in points) for node in (a, b)]
    digits = _enough(sum(sizes), (a, b), points)
    pairs = [(x, y) for _, x, y in _pairs(a, b, points, digits)]
    zeros = [(_zero(x, digits, sizes[0]), _zero(y, digits, sizes[1])) for x, y in pairs]
    ratios = [pair for pair, zero in zip(pairs, zeros, strict=True) if not any(zero)]
    if len(ratios) < 2 or any(x != y for x, y in zeros):
        return False
    first, other = ratios[0]
    return all(_zero(first * y - x * other, digits, sum(sizes)) for x, y in ratios)


def real(node: Node) -> float | None:
    """The value of a formula without symbols as a float; None where it has none. Raises Unreadable."""
    value = None if symbols(node) else _value(node, 0, _QUICK)
    if value is None or not _real(value):
        return None
    number = float(mpmath.re(value))
    return number if math.isfinite(number) else None
