"""The exact value of a formula, where it is a rational number, at one of the points where formulas are compared."""

import functools
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

from rl_likelihood.grading.tokens import Unreadable, is_variable
from rl_likelihood.grading.tree import CONSTANTS, Node

WHOLE_POINTS = range(100, 108)  # where symbols stand for whole numbers, for formulas with factorials
_BITS = 60_000  # of the largest rational
_LARGEST_FACTORIAL = 3_000
# At each of the first points, all symbols have the same scale. At the later points, each symbol takes every multiple of
# 1/2 from -4 to 4, in an order of its own, because floor, ceiling and absolute values change there.
_SCALES = tuple(map(Fraction, ("1", "-1", "1", "1/11", "1009", "-211")))
KINK_POINTS = range(len(_SCALES) + 17)


class Irrational(Exception):
    """No rational number: digits are needed."""


class Undefined(Exception):
    """No value at this point."""


@functools.lru_cache(maxsize=1024)
def _halves(name: str) -> list[Fraction]:
    """-4, -7/2, ..., 4 in an order that depends on the symbol."""
    order = sorted(range(-8, 9), key=lambda n: hashlib.sha256(f"{n} {name}".encode()).digest())
    return [Fraction(n, 2) for n in order]


def _point(name: str, k: int) -> Fraction:
    """The value of a symbol at point k. Among the points are positive, negative, small, large and whole numbers."""
    if k in KINK_POINTS[len(_SCALES) :]:
        return _halves(name)[k - len(_SCALES)]
    digest = hashlib.sha256(f"{k} {name}".encode()).digest()
    if k in WHOLE_POINTS:
        return Fraction(2 + int.from_bytes(digest[:4], "big") % 50)
    value = Fraction(1 + int.from_bytes(digest[:4], "big") % 9_999_991, 1_000_003)
    return value * _SCALES[k] * (-1 if k == 2 and digest[5] % 2 else 1)


def rational(node: Node, k: int = 0) -> Fraction:
    """The exact value at point k. Raises Irrational, Undefined, Unreadable."""
    value = _RATIONAL.get(node.kind, _not_rational)(node, k)
    if value.numerator.bit_length() + value.denominator.bit_length() > _BITS:
        raise Irrational
    return value


def _not_rational(node: Node, k: int) -> Fraction:
    if node.kind in ("call", "pow"):
        raise Irrational
    raise Unreadable(node.kind)


def _name(node: Node, k: int) -> Fraction:
    if node.parts[0] in CONSTANTS:
        raise Irrational
    if not is_variable(node.parts[0]):
        raise Unreadable(node.parts[0])
    return _point(node.parts[0], k)


def _applied(node: Node, k: int) -> Fraction:
    """f(2), of a function that is not known: some number, the same for the same argument."""
    name, *arguments = node.parts
    try:
        return _point(f"{name}({','.join(str(rational(a, k)) for a in arguments)})", k)
    except Irrational:
        raise Unreadable("an unknown function of an irrational number") from None


def _product(node: Node, k: int) -> Fraction:
    above = below = 1
    for part in node.parts:
        value = rational(part, k)
        above, below = above * value.numerator, below * value.denominator
        if above.bit_length() + below.bit_length() > 2 * _BITS:
            raise Irrational
    return Fraction(above, below)


def _sum(node: Node, k: int) -> Fraction:
    value = Fraction(0)
    for part in node.parts:
        value += rational(part, k)
        if value.denominator.bit_length() > _BITS:
            raise Irrational
    return value


def _quotient(node: Node, k: int) -> Fraction:
    above, below = (rational(part, k) for part in node.parts)
    if below == 0:
        raise Undefined
    return above / below


def _power(node: Node, k: int) -> Fraction:
    base, exponent = (rational(part, k) for part in node.parts)
    if exponent.denominator != 1:
        raise Irrational
    if base == 0 and exponent <= 0:
        raise Undefined
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > _BITS and abs(base) not in (0, 1):
        raise Irrational
    if abs(exponent) > _BITS:
        exponent = 2 + exponent % 2  # of -1, 0 or 1
    return base ** int(exponent)


def _whole(*values: Fraction) -> list[int]:
    if any(v.denominator != 1 for v in values):
        raise Irrational
    return [int(v) for v in values]


def _factorial(value: Fraction) -> Fraction:
    n = value.numerator
    if value.denominator != 1:
        raise Unreadable("the factorial of a fraction")
    if n < 0:
        raise Undefined
    if n > _LARGEST_FACTORIAL:
        raise Unreadable("a large factorial")
    return Fraction(math.factorial(n))


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    n, k = above.numerator, below.numerator
    if above.denominator * below.denominator != 1 or n > _LARGEST_FACTORIAL:
        raise Unreadable("a binomial")
    if n < 0 or k < 0:
        raise Undefined
    return Fraction(math.comb(n, k))


_RATIONAL_CALLS: dict[str, Callable[..., Fraction]] = {
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "factorial": _factorial,
    "binomial": _binomial,
    "max": max,
    "min": min,
    "gcd": lambda *values: Fraction(math.gcd(*_whole(*values))),
    "lcm": lambda *values: Fraction(math.lcm(*_whole(*values))),
}


def _call(node: Node, k: int) -> Fraction:
    name, *arguments = node.parts
    if name not in _RATIONAL_CALLS:
        raise Irrational
    values = [rational(a, k) for a in arguments]
    return _RATIONAL_CALLS[name](*values)


_RATIONAL: dict[str, Callable[[Node, int], Fraction]] = {
    "number": lambda node, k: node.parts[0],
    "name": _name,
    "apply": _applied,
    "add": _sum,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "neg": lambda node, k: -rational(node.parts[0], k),
    "call": _call,
}
