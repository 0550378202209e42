"""Countdown: an arithmetic expression over given numbers, each used once, worth the target. Exact, and never `eval`."""

import operator
import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))", re.ASCII)
_LONGEST = 500  # characters of an expression
_LONGEST_NUMBER = 30  # digits
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3}
_SIGNS = str.maketrans("\u00d7\u00b7\u00f7\u2212", "**/-")
_FUNCTIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """(exact value, the integers written, in order) of an expression; None if it is not one or divides by zero.

    An expression is made of non-negative integers, + - * / (or their typographic signs) with the usual precedence,
    signs, ( ) and white space. Not known, so None: decimals, powers, //, an equals sign, a product without its *.
    """
    text = text.strip().translate(_SIGNS)
    if len(text) > _LONGEST:
        return None
    try:
        return _evaluate(text)
    except ZeroDivisionError:
        return None


def _evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """`evaluate`, which raises ZeroDivisionError. It does not recurse, so brackets may nest deeply."""
    values: list[Fraction] = []
    numbers: list[int] = []
    pending: list[str] = []  # operators and open brackets
    at, want_operand = 0, True
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        number, symbol = token.groups()
        if want_operand:
            if number is not None:
                if len(number) > _LONGEST_NUMBER:
                    return None
                numbers.append(int(number))
                values.append(Fraction(numbers[-1]))
                want_operand = False
            elif symbol in ("(", "-"):
                pending.append("(" if symbol == "(" else "negate")
            elif symbol != "+":
                return None
        elif number is not None or symbol == "(":
            return None
        elif symbol == ")":
            _apply(values, pending, 1)
            if not pending:
                return None
            pending.pop()  # the bracket
        else:
            _apply(values, pending, _PRECEDENCE[symbol])
            pending.append(symbol)
            want_operand = True
    if want_operand:
        return None
    _apply(values, pending, 1)
    return None if pending else (values[0], numbers)


def _apply(values: list[Fraction], pending: list[str], least: int) -> None:
    """Apply the pending operators of at least this precedence to the last values, down to an open bracket."""
    while pending and _PRECEDENCE.get(pending[-1], 0) >= least:
        name, right = pending.pop(), values.pop()
        values.append(-right if name == "negate" else _FUNCTIONS[name](values.pop(), right))


def countdown_outcome(reference: str, answer: str | None) -> bool | None:
    """True: right. False: an equation, but wrong. None: no equation at all. (TinyZero's 1, 0.1 and 0.)

    The reference is any solved expression, "(1+2)*3": its integers are the given numbers and its value the target.
    Right means: the answer uses exactly these integers, each as often as it is given, and has exactly this value.
    An answer without a digit in it is no equation; TinyZero pays its 0.1 for that too.
    """
    if answer is None or not any(c in "0123456789" for c in answer):
        return None
    goal = evaluate(reference)
    if goal is None:  # not a solved expression: compared as text
        return answer.strip() == reference.strip()
    given = evaluate(answer)
    return given is not None and given[0] == goal[0] and sorted(given[1]) == sorted(goal[1])


def countdown(reference: str, answer: str | None) -> bool:
    """`countdown_outcome` is right."""
    return countdown_outcome(reference, answer) is True
