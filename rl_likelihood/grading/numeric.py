"""The value of a formula at one of the points where formulas are compared: a rational where it is one, else digits."""

import functools
import hashlib
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rl_likelihood.grading.tokens import Unreadable, is_variable
from rl_likelihood.grading.tree import CONSTANTS, Node, symbols

WHOLE_POINTS = range(100, 108)  # where symbols stand for whole numbers, for formulas with factorials
_BITS = 60_000  # of the largest rational
_MAGNITUDE = 200_000  # the largest binary exponent of digits
_LARGEST_FACTORIAL = 3_000
# At each of the first points, all symbols have the same scale. At the later points, each symbol takes every multiple of
# 1/2 from -4 to 4, in an order of its own, because floor, ceiling and absolute values change there. At the last points,
# it is a little less or more than a whole number.
_SCALES = tuple(map(Fraction, ("1", "-1", "1", "1/11", "1009", "-211")))
_NEAR = tuple(Fraction(sign, 1000) for sign in (-1, 1, -1, 1, -1, 1))
_HALVES = 17  # multiples of 1/2 from -4 to 4
KINK_POINTS = range(len(_SCALES) + _HALVES + len(_NEAR))


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
        halves, at = _halves(name), k - len(_SCALES)
        return halves[at] if at < _HALVES else math.floor(halves[at - _HALVES]) + _NEAR[at - _HALVES]
    digest = hashlib.sha256(f"{k} {name}".encode()).digest()
    if k in WHOLE_POINTS:
        return Fraction(2 + int.from_bytes(digest[:4], "big") % 50)
    value = Fraction(1 + int.from_bytes(digest[:4], "big") % 9_999_991, 1_000_003)
    return value * _SCALES[k] * (-1 if k == 2 and digest[5] % 2 else 1)


def evaluate(node: Node, k: int = 0, mp=None) -> Any:
    """The value at point k: a Fraction where it is one, else a number of the mpmath context `mp`.

    Raises Irrational where there is no `mp` to compute with, Undefined, Unreadable.
    """
    if node.kind == "number":
        return node.parts[0]
    if node.kind == "name":
        return _name(node.parts[0], k, mp)
    if node.kind == "apply":
        return _applied(node, k)
    name, arguments = (node.parts[0], node.parts[1:]) if node.kind == "call" else (node.kind, node.parts)
    if node.kind not in ("call", "add", "mul", "div", "pow", "neg"):
        raise Unreadable(node.kind)
    values = [evaluate(part, k, mp) for part in arguments]
    if name in _EXACT and all(isinstance(value, Fraction) for value in values):
        try:
            return _small(Fraction(_EXACT[name](*values)), _BITS)
        except Irrational:
            pass
    if mp is None:
        raise Irrational
    digits = [mp.convert(value) for value in values]
    value = _real_power(*digits, values[1], mp) if _is_odd_root(node, values) else _digits(name, digits, mp)
    if not mp.isfinite(value):
        raise Undefined
    if value != 0 and abs(mp.mag(value)) > _MAGNITUDE:
        raise Unreadable("a large number")
    return value


def _name(name: str, k: int, mp) -> Any:
    if name in CONSTANTS:
        if mp is None:
            raise Irrational
        return mp.pi if name == "pi" else mp.e if name == "e" else mp.mpc(0, 1)
    if not is_variable(name):
        raise Unreadable(name)
    return _point(name, k)


def _applied(node: Node, k: int) -> Fraction:
    """f(2), of a function that is not known: some number, the same for the same argument."""
    name, *arguments = node.parts
    try:
        values = [evaluate(argument, k) for argument in arguments]
    except Irrational:
        raise Unreadable("an unknown function of an irrational number") from None
    written = (f"{value.numerator:x}/{value.denominator:x}" for value in values)  # Python limits decimal digits
    return _point(f"{name}({','.join(written)})", k)


# ---------------------------------------------------------------------------------------- rationals


def _small(value: Fraction, bits: int = 2 * _BITS) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > bits:
        raise Irrational
    return value


def _folded(join: Callable[[Fraction, Fraction], Fraction]) -> Callable[..., Fraction]:
    return lambda *values: functools.reduce(lambda a, b: _small(join(a, b)), values)


def _quotient(above: Fraction, below: Fraction) -> Fraction:
    if below == 0:
        raise Undefined
    return above / below


def _power(base: Fraction, exponent: Fraction) -> Fraction:
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


def _factorial(value: Fraction) -> int:
    if value.denominator != 1 or value > _LARGEST_FACTORIAL:
        raise Unreadable("the factorial of a fraction or of a large number")
    if value < 0:
        raise Undefined
    return math.factorial(value.numerator)


def _binomial(above: Fraction, below: Fraction) -> int:
    if above.denominator * below.denominator != 1 or above > _LARGEST_FACTORIAL:
        raise Unreadable("a binomial")
    if above < 0 or below < 0:
        raise Undefined
    return math.comb(above.numerator, below.numerator)


def _remainder(value: int, divisor: int) -> int:
    if divisor < 1:
        raise Undefined
    return value % divisor


def _of_whole(function: Callable[..., int]) -> Callable[..., int]:
    def of(*values: Fraction) -> int:
        if any(v.denominator != 1 for v in values):
            raise Irrational
        return function(*(v.numerator for v in values))

    return of


_EXACT: dict[str, Callable[..., Fraction | int]] = {
    "add": _folded(operator.add),
    "mul": _folded(operator.mul),
    "div": _quotient,
    "pow": _power,
    "neg": operator.neg,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "factorial": _factorial,
    "binomial": _binomial,
    "max": max,
    "min": min,
    "gcd": _of_whole(math.gcd),
    "lcm": _of_whole(math.lcm),
    "mod": _of_whole(_remainder),
}


# ---------------------------------------------------------------------------------------- digits


def _digits(name: str, values: list, mp) -> Any:
    """An operation or function of numbers of mpmath."""
    first = values[0]
    match name:
        case "add":
            return mp.fsum(values)
        case "mul":
            return mp.fprod(values)
        case "neg" | "abs":
            return -first if name == "neg" else abs(first)
        case "div":
            return mp.fdiv(*values) if values[1] != 0 else _undefined()
        case "pow":
            return _raised(*values, mp)
        case "root":
            return _root(*values, mp)
        case "log" | "ln" | "lg":
            base, value = values if len(values) == 2 else (mp.e if name == "ln" else mp.mpf(10), first)
            return mp.log(value, base) if value != 0 and base not in (0, 1) else _undefined()
        case "max" | "min":
            return (max if name == "max" else min)(values) if all(mp.im(v) == 0 for v in values) else _undefined()
        case "factorial" | "binomial" | "gcd" | "lcm" | "mod":  # of whole numbers only: gamma takes too long
            raise Unreadable(f"{name} of this")
        case "floor" | "ceil":
            if mp.im(first) != 0 or abs(first) > mp.mpf(10) ** 15:
                raise Unreadable(f"{name} of this")
            nearest = mp.nint(first)  # sqrt(2)^2 is 2, not 1.999...
            return nearest if abs(first - nearest) < mp.mpf(10) ** (-0.75 * mp.dps) else getattr(mp, name)(first)
    if not name.startswith("arc") and abs(first) > _MAGNITUDE:
        raise Unreadable("a large argument")
    return getattr(mp, name.replace("arc", "a"))(first)


def _undefined() -> None:
    raise Undefined


def _raised(base, exponent, mp) -> Any:
    if base == 0:
        return mp.mpf(0) if mp.re(exponent) > 0 else _undefined()
    if abs(exponent) * max(abs(mp.mag(base)), 1) > _MAGNITUDE:
        raise Unreadable("a large power")
    return mp.power(base, exponent)


def _is_odd_root(node: Node, values: list) -> bool:
    """Is it a power such as x^{2/3}, which is real for a negative x too? Not (-1)^{1/3}, nor a power of symbols."""
    odd = node.kind == "pow" and isinstance(values[1], Fraction) and values[1].denominator % 2 == 1
    return odd and values[1].denominator > 1 and bool(symbols(node.parts[0])) and not symbols(node.parts[1])


def _real_power(base, exponent, exact: Fraction, mp) -> Any:
    if mp.im(base) != 0 or mp.re(base) >= 0:
        return _raised(base, exponent, mp)
    return (-1) ** exact.numerator * _raised(-base, exponent, mp)


def _root(value, index, mp) -> Any:
    """The real one of a negative number where the index is odd."""
    if index == 0:
        raise Undefined
    if mp.im(value) == 0 and mp.re(value) < 0 and index == int(mp.re(index)) and int(mp.re(index)) % 2:
        return -_raised(-value, 1 / index, mp)
    return mp.sqrt(value) if index == 2 else _raised(value, 1 / index, mp)
