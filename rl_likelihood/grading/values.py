"""Are two formulas equal? Exactly, by rationals, wherever these suffice; else by 600 digits of both.

Formulas with symbols are compared at several points: two different polynomials of degree d agree at one of these with
a chance of about d in a million. No step takes more than a bounded time: what is too large is Unreadable.
"""

import hashlib
import math
import threading
from collections.abc import Callable
from fractions import Fraction

import mpmath

from rl_likelihood.grading.tokens import Unreadable, is_variable
from rl_likelihood.grading.tree import CONSTANTS, Node, parts_of, symbols

POINTS = 4
_MORE_POINTS = 2  # for formulas with steps: floor(x/2) and floor(x/3) are equal at most small points
_BITS = 60_000  # of the largest rational
_MAGNITUDE = 200_000  # the largest binary exponent
_LARGEST_FACTORIAL = 3_000
_QUICK, _EXACT = 50, 600  # decimal digits


class _Irrational(Exception):
    """No rational number: digits are needed."""


class Undefined(Exception):
    """No value at this point."""


_CONTEXTS = {digits: mpmath.mp.clone() for digits in (_QUICK, _EXACT)}
for digits, context in _CONTEXTS.items():
    context.dps = digits
_LOCK = threading.Lock()  # mpmath's contexts change their precision while they work


def _point(name: str, k: int) -> Fraction:
    """What a symbol stands for at point k: positive, negative, of either sign, small."""
    digest = hashlib.sha256(f"{k} {name}".encode()).digest()
    value = Fraction(1 + int.from_bytes(digest[:4], "big") % 9_999_991, 1_000_003)
    if k == 1 or (k == 2 and digest[5] % 2):
        return -value
    return {3: value / 11, 4: value * 1009, 5: -value * 211}.get(k, value)


# ---------------------------------------------------------------------------------------------- rationals


def rational(node: Node, k: int = 0) -> Fraction:
    """The exact value at point k. Raises _Irrational, Undefined, Unreadable."""
    value = _RATIONAL.get(node.kind, _not_rational)(node, k)
    if value.numerator.bit_length() + value.denominator.bit_length() > _BITS:
        raise _Irrational
    return value


def _not_rational(node: Node, k: int) -> Fraction:
    if node.kind in ("call", "pow"):
        raise _Irrational
    raise Unreadable(node.kind)


def _name(node: Node, k: int) -> Fraction:
    if node.parts[0] in CONSTANTS:
        raise _Irrational
    if not is_variable(node.parts[0]):
        raise Unreadable(node.parts[0])
    return _point(node.parts[0], k)


def _applied(node: Node, k: int) -> Fraction:
    """f(2), of a function that is not known: some number, the same for the same argument."""
    name, *arguments = node.parts
    try:
        return _point(f"{name}({','.join(str(rational(a, k)) for a in arguments)})", k)
    except _Irrational:
        raise Unreadable("an unknown function of an irrational number") from None


def _product(node: Node, k: int) -> Fraction:
    above = below = 1
    for part in node.parts:
        value = rational(part, k)
        above, below = above * value.numerator, below * value.denominator
        if above.bit_length() + below.bit_length() > 2 * _BITS:
            raise _Irrational
    return Fraction(above, below)


def _sum(node: Node, k: int) -> Fraction:
    value = Fraction(0)
    for part in node.parts:
        value += rational(part, k)
        if value.denominator.bit_length() > _BITS:
            raise _Irrational
    return value


def _quotient(node: Node, k: int) -> Fraction:
    above, below = (rational(part, k) for part in node.parts)
    if below == 0:
        raise Undefined
    return above / below


def _power(node: Node, k: int) -> Fraction:
    base, exponent = (rational(part, k) for part in node.parts)
    if exponent.denominator != 1:
        raise _Irrational
    if base == 0 and exponent <= 0:
        raise Undefined
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > _BITS and abs(base) not in (0, 1):
        raise _Irrational
    if abs(exponent) > _BITS:
        exponent = 2 + exponent % 2  # of -1, 0 or 1
    return base ** int(exponent)


def _whole(*values: Fraction) -> list[int]:
    if any(v.denominator != 1 for v in values):
        raise _Irrational
    return [int(v) for v in values]


def _factorial(value: Fraction) -> Fraction:
    (n,) = _whole(value)
    if n < 0:
        raise Undefined
    if n > _LARGEST_FACTORIAL:
        raise Unreadable("a large factorial")
    return Fraction(math.factorial(n))


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    n, k = _whole(above, below)
    if not 0 <= n <= _LARGEST_FACTORIAL or not k >= 0:
        raise Unreadable("a binomial")
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
        raise _Irrational
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
    "deg": lambda node, k: rational(node.parts[0], k),
    "call": _call,
}


# ---------------------------------------------------------------------------------------------- digits


def _digits(node: Node, k: int, mp):
    """The value at point k as a number of mpmath."""
    try:
        exact = rational(node, k)
        return mp.mpf(exact.numerator) / exact.denominator
    except _Irrational:
        pass
    if node.kind == "name":
        name = node.parts[0]
        return mp.pi if name == "pi" else mp.e if name == "e" else mp.mpc(0, 1)
    if node.kind == "call":
        name, *arguments = node.parts
        values = [_digits(a, k, mp) for a in arguments]
        return _bounded(_function(name, values, mp), mp)
    values = [_digits(part, k, mp) for part in node.parts]
    match node.kind:
        case "add":
            return mp.fsum(values)
        case "mul":
            return _bounded(mp.fprod(values), mp)
        case "neg":
            return -values[0]
        case "deg":
            return values[0]
        case "div":
            if values[1] == 0:
                raise Undefined
            return _bounded(values[0] / values[1], mp)
    return _bounded(_raised(*values, mp), mp)


def _raised(base, exponent, mp):
    if base == 0:
        if mp.re(exponent) <= 0:
            raise Undefined
        return mp.mpf(0)
    if abs(exponent) * max(abs(mp.mag(base)), 1) > _MAGNITUDE:
        raise Unreadable("a large power")
    return mp.power(base, exponent)


def _bounded(value, mp):
    if not mp.isfinite(value):
        raise Undefined
    if value != 0 and abs(mp.mag(value)) > _MAGNITUDE:
        raise Unreadable("a large number")
    return value


def _root(value, index, mp):
    """The real one of a negative number where the index is odd."""
    if index == 0:
        raise Undefined
    if mp.im(value) == 0 and mp.re(value) < 0 and index == int(mp.re(index)) and int(mp.re(index)) % 2:
        return -_raised(-value, 1 / index, mp)
    return mp.sqrt(value) if index == 2 else _raised(value, 1 / index, mp)


def _function(name: str, values: list, mp):
    if name == "root":
        return _root(*values, mp)
    if name in ("log", "ln", "lg"):
        base, value = values if len(values) == 2 else (mp.e if name == "ln" else mp.mpf(10), values[0])
        if value == 0 or base == 0 or base == 1:
            raise Undefined
        return mp.log(value) / mp.log(base) if base != mp.e else mp.log(value)
    if name in ("max", "min"):
        if any(mp.im(v) != 0 for v in values):
            raise Undefined
        return (max if name == "max" else min)(values)
    if name in ("floor", "ceil", "factorial", "binomial", "gcd", "lcm"):
        if any(mp.im(v) != 0 or abs(v) > _LARGEST_FACTORIAL for v in values) or name in ("gcd", "lcm"):
            raise Unreadable(f"{name} of this")
        return getattr(mp, name)(*values)
    (value,) = values
    if name in ("exp", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh") and abs(value) > _MAGNITUDE:
        raise Unreadable("a large argument")
    return abs(value) if name == "abs" else getattr(mp, name.replace("arc", "a"))(value)


def _value(node: Node, k: int, digits: int):
    """The value at point k; None where there is none."""
    mp = _CONTEXTS[digits]
    try:
        with _LOCK:
            return _digits(node, k, mp)
    except (Undefined, ZeroDivisionError):
        return None
    except (ValueError, OverflowError, TypeError, mpmath.libmp.ComplexResult, mpmath.libmp.NoConvergence) as error:
        raise Unreadable(str(error)) from None


def _close(a, b, digits: int, tolerance: float) -> bool:
    mp = _CONTEXTS[digits]
    with _LOCK:
        return abs(a - b) <= mp.mpf(10) ** (-tolerance) * max(1, abs(a), abs(b))


def same_value(a: Node, b: Node) -> bool:
    """Have two formulas the same value, whatever their symbols stand for? Raises Unreadable."""
    if a == b:
        return True
    names = symbols(a) | symbols(b)
    points = range(POINTS + _MORE_POINTS * (_has_steps(a) or _has_steps(b)) if names else 1)
    try:
        pairs = [_exact_pair(a, b, k) for k in points]
        pairs = [pair for pair in pairs if pair is not None]
        return bool(pairs) and all(x == y for x, y in pairs)
    except _Irrational:
        return _same_digits(a, b, points)


def _has_steps(node: Node) -> bool:
    return node.parts[:1] in (("floor",), ("ceil",)) or any(map(_has_steps, parts_of(node)))


def exact(node: Node) -> Fraction | None:
    """The value of a formula without symbols as a rational; None where it has none, or none that is surely one."""
    try:
        return None if symbols(node) else rational(node)
    except (_Irrational, Undefined, Unreadable):
        return None


def _exact_pair(a: Node, b: Node, k: int) -> tuple[Fraction | None, Fraction | None] | None:
    """Both values at a point; None, not both, where it has none. None alone where neither has."""

    def value(node: Node) -> Fraction | None:
        try:
            return rational(node, k)
        except Undefined:
            return None

    pair = value(a), value(b)
    return None if pair == (None, None) else pair


def _same_digits(a: Node, b: Node, points: range) -> bool:
    """At the points where both are real; where they nowhere are, at all."""
    for digits, tolerance in ((_QUICK, 25), (_EXACT, 450)):
        pairs = [(k, _value(a, k, digits), _value(b, k, digits)) for k in points]
        pairs = [(k, x, y) for k, x, y in pairs if x is not None and y is not None]
        real = [(k, x, y) for k, x, y in pairs if _real(x) and _real(y)]
        if not pairs or not all(_close(x, y, digits, tolerance) for _, x, y in real or pairs):
            return False
        points = [k for k, _, _ in real or pairs]
    return True


def _real(value) -> bool:
    return abs(mpmath.im(value)) <= 1e-20 * max(1, abs(value))


def proportional(a: Node, b: Node) -> bool:
    """Is one formula the other times a number that is not 0? Of what two equations say is 0."""
    if not symbols(a) or symbols(a) != symbols(b):
        return False
    factor = None
    for k in range(POINTS):
        x, y = _value(a, k, _EXACT), _value(b, k, _EXACT)
        if x is None or y is None or x == 0 or y == 0:
            return False
        if factor is None:
            factor = x / y
        if not _close(x / y, factor, _EXACT, 450):
            return False
    return True


def real(node: Node) -> float | None:
    """The value of a formula without symbols as a float; None where it has none. Raises Unreadable."""
    value = None if symbols(node) else _value(node, 0, _QUICK)
    if value is None or not _real(value):
        return None
    number = float(mpmath.re(value))
    return number if math.isfinite(number) else None
