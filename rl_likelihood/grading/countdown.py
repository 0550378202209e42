"""Countdown: an arithmetic expression over given numbers, each used once, worth the target. Exact, and never `eval`."""

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction

from rl_likelihood.grading.notation import COMMANDS, PLAIN
from rl_likelihood.grading.text import without_marks

# Numbers have at most 30 digits. Python's grammar does not allow zeros before them.
_CHARACTERS = re.compile(r"(?:[-+*/()\s]|[0-9]{1,30}(?![0-9]))*", re.ASCII)
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])", re.ASCII)
_LONGEST = 500  # characters of an expression
_COMMANDS = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
# The typographic signs that `notation.latex` knows, and those of full width.
_SIGNS = str.maketrans(
    {c: _COMMANDS[command] for c, command in COMMANDS.items() if command in _COMMANDS}
    | {c: sign for c, sign in PLAIN.items() if sign in ("-", "/")}
    | {chr(ord(c) + 0xFEE0): c for c in "+-*/()"}
)
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """(exact value, the integers written, in order) of an expression; None if it is not one or divides by zero.

    An expression is made of non-negative integers, + - * / (or their typographic signs or commands of LaTeX) with the
    usual precedence, signs, up to 200 brackets within brackets, white space, and a last full stop. Not known, so None:
    decimals, powers, //, an equals sign, a product without its *.
    """
    text = text.strip().removesuffix(".").translate(_SIGNS)
    for command, sign in _COMMANDS.items():
        text = text.replace(command, sign)
    if len(text) > _LONGEST or not _CHARACTERS.fullmatch(text):
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                numbers.append(number)
                return Fraction(number)
            case ast.UnaryOp(op, operand):
                return _OPERATORS[type(op)](value(operand))
            case ast.BinOp(left, op, right):
                return _OPERATORS[type(op)](value(left), value(right))
        raise SyntaxError

    try:
        return value(ast.parse(" ".join(_ZEROS.sub("", text).split()), mode="eval").body), numbers
    except (SyntaxError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def solves(expression: str, numbers: Sequence[int], target: int | Fraction) -> bool:
    """Whether the expression, in a box, dollars or Markdown too, has the value and uses each number exactly once."""
    given = evaluate(expression) or evaluate(without_marks(expression))
    return given is not None and given[0] == target and sorted(given[1]) == sorted(numbers)


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
    target, numbers = goal
    return solves(answer, numbers, target)


def countdown(reference: str, answer: str | None) -> bool:
    """`countdown_outcome` is right."""
    return countdown_outcome(reference, answer) is True
