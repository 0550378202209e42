"""reasoning_gym's own rule: an answer is right if its data set's score_answer gives all of its points.

All, because many rules give a share: of the cells of a grid that are right (99 of 100 with one wrong cell), of the
letters, of the time. Rules that do not test the question at all are replaced (`_REPLACED`); bench/gym_scorers.py finds
them, by showing every rule constants, answers to other questions, parts of the question and answers with one change.

Some data sets hand the model's answer to Python's eval, or to sympy, which does. Those see only answers that do nothing
when they are evaluated: literals, or formulas of numbers, single letters and functions; any other is wrong. All of it
runs in `grading_pool.Pool`'s workers, because a formula such as 9**9**9 still takes for ever.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from rl_likelihood.grading.countdown import evaluate
from rl_likelihood.grading.text import exact_match, parse_number

RIGHT = 1 - 1e-9
_LONGEST = 10_000  # characters of an answer; longer ones are compared as text
# No number compares as unequal, or far, to these.
_NOT_FINITE = re.compile(r"(?i)\b(?:nan|inf|infinity)")

_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval)\s*\(")
_SYMPY = re.compile(r"^\s*(?:import|from)\s+sympy\b", re.M)
_FUNCTIONS = (
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "exp",
    "log",
    "ln",
    "sqrt",
    "Abs",
    "pi",
    "oo",
    "Rational",
)
_WORD = re.compile(r"[^\W\d]\w*")
_NOT_FORMULA = re.compile(r"""["'`\\@;$?]|__|\.\s*[^\W\d]|[^\x00-\x7f]""")


class Asked(NamedTuple):
    """An item, and the data set and its parameters (JSON) that made it."""

    dataset: str
    parameters: str
    item: dict[str, Any]


def pack(dataset: str, parameters: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """An item of a data set as text (JSON), for `Example.check`."""
    value = {"reasoning_gym": dataset, "parameters": _tagged(dict(parameters)), "item": _tagged(dict(item))}
    return json.dumps(value, default=str)


def unpack(check: str) -> Asked | None:
    """What `pack` was given; None for any other text."""
    try:
        value = json.loads(check)
        asked = Asked(value["reasoning_gym"], json.dumps(value["parameters"]), _untagged(value["item"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return asked if isinstance(asked.dataset, str) and isinstance(asked.item, dict) else None


def _tagged(value: Any) -> Any:
    """JSON has no tuples, and some rules compare with them."""
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        inside = [_tagged(v) for v in value]
        return {"tuple": inside} if isinstance(value, tuple) else inside
    return value


def _untagged(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"tuple"}:
            return tuple(_untagged(v) for v in value["tuple"])
        return {k: _untagged(v) for k, v in value.items()}
    return [_untagged(v) for v in value] if isinstance(value, list) else value


def gym_quick(reference: str, answer: str | None) -> bool | None:
    """`gym_match` where the data set need not be asked; None where it must."""
    if answer is None or not answer.strip():
        return False
    asked = unpack(reference)
    if asked is None:
        return exact_match(reference, answer)
    if exact_match(str(asked.item.get("answer")), answer):
        return True
    if len(answer) > _LONGEST:
        return False
    if asked.dataset in _REPLACED:
        return _REPLACED[asked.dataset](asked.item, answer)
    return False if _NOT_FINITE.search(answer) else None


def _equal_text(item: dict[str, Any], answer: str) -> bool:
    return exact_match(str(item.get("answer")), answer)


def _makes_24(item: dict[str, Any], answer: str) -> bool:
    """The four numbers of the question, each once, and the value 24."""
    solution, given = evaluate(str(item.get("answer"))), evaluate(answer)
    return None not in (solution, given) and given[0] == 24 and sorted(given[1]) == sorted(solution[1])


def _sorted_numbers(item: dict[str, Any], answer: str) -> bool:
    """The very numbers of the reference in its order."""
    goal, given = _numbers(str(item.get("answer"))), _numbers(answer)
    return goal is not None and goal == given


def _numbers(text: str) -> list[Fraction] | None:
    try:
        values = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return None
    numbers = [parse_number(str(v)) for v in values] if isinstance(values, list) else [None]
    return None if None in numbers else numbers


_REPLACED: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "game_of_life_halting": _equal_text,  # takes any text for True, as Python's bool does
    "coin_flip": _equal_text,  # compares as many digits as the shorter text has
    "puzzle24": _makes_24,  # takes any four numbers in its range: 1*2*3*4, whatever was asked
    "number_sorting": _sorted_numbers,  # takes numbers that are off by up to 1
}


def gym_outcome(reference: str, answer: str | None) -> bool | None:
    """`gym_match`, with None where the data set's own rule breaks down. It may hang: see `Pool`."""
    importlib.import_module("reasoning_gym")  # not above: it takes seconds, and a worker makes ready with this function

    quick = gym_quick(reference, answer)
    if quick is not None:
        return quick
    asked, answer = unpack(reference), answer.strip()
    try:
        rules = _rules(asked.dataset, asked.parameters)
        if not harmless(rules, answer):
            return False
        if _right(rules, str(asked.item["answer"]), asked.item) is not True:  # it does not know its own answer
            return None
    except Exception:  # any kind: it is someone else's code, and the check someone's file
        return None
    return _right(rules, answer, asked.item) is True


def gym_match(reference: str, answer: str | None) -> bool:
    """Right by the rule of the reasoning_gym data set that asked: score_answer is 1, or the text is equal.

    `reference` is what `pack` made; any other is compared as text, and so is an answer over 10,000 characters. An
    answer that the rule cannot read is wrong.
    """
    return gym_outcome(reference, answer) is True


def _right(rules, answer: str, item: dict[str, Any]) -> bool | None:
    """None where the rule raises."""
    try:
        return bool(rules.score_answer(answer, item) >= RIGHT)
    except Exception:  # any kind, as above
        return None


@functools.lru_cache(maxsize=64)
def _rules(dataset: str, parameters: str):
    """A data set; what it asks itself does not matter, its rule reads the item."""
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, size=1, seed=0, **_untagged(json.loads(parameters)))


@functools.lru_cache(maxsize=64)
def _source(module: str) -> str:
    return inspect.getsource(sys.modules[module])


def harmless(rules, answer: str) -> bool:
    """Whether a data set's rule may see the answer: its module evaluates no text, or the text does nothing."""
    source = _source(type(rules).__module__)
    if _SYMPY.search(source):
        return is_formula(answer)
    return not _EVALUATES.search(source) or is_literal(answer)


def is_formula(text: str) -> bool:
    """Numbers, operators, brackets, single letters and names of functions; no text, no attributes, no other names."""
    return not _NOT_FORMULA.search(text) and all(len(word) == 1 or word in _FUNCTIONS for word in _WORD.findall(text))


def is_literal(text: str) -> bool:
    """A literal of Python, or no Python at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd Python: it is the model's
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return True
    except (RecursionError, MemoryError):
        return False
    try:
        ast.literal_eval(tree)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True
