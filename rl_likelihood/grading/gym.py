"""reasoning_gym's own rule: an answer is right if all of it was read and its data set's score_answer gives all points.

Only full points count as right, because many rules give partial points: 99 of 100 for a grid with one wrong cell. The
whole answer must be readable, because many rules search for the right answer and ignore the rest ("not 405").
So a rule is asked only about an answer that says what the reference says, but for white space, case, quotes and the
spelling of numbers (`_same_words`); of data sets whose questions have several right answers, about one in the form
that the question asks for (`_FORMS`). bench/gym_scorers.py shows every rule wrong answers, and counts what is right.

Some data sets hand the model's answer to Python's eval, or to sympy, which does. Those see only answers that do nothing
when they are evaluated: literals, or formulas of numbers, the question's letters and functions; any other is wrong. All
of it runs in `pool.Pool`'s workers, because a formula such as 9**9**9 still takes for ever.
"""

import ast
import functools
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from rl_likelihood.grading.countdown import countdown
from rl_likelihood.grading.text import exact_match, parse_number, without_marks

RIGHT = 1 - 1e-9
_LONGEST = 10_000  # characters of an answer; longer ones are compared as text
_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval)\s*\(")
_SYMPY = re.compile(r"^\s*(?:import|from)\s+sympy\b", re.M)
_FUNCTIONS = "sin cos tan cot sec csc asin acos atan sinh cosh tanh exp log ln sqrt Abs pi Rational".split()
_WORD = re.compile(r"[^\W\d]\w*")
_NOT_FORMULA = re.compile(r"""["'`\\@;$?!]|__|\.\s*[^\W\d]|[^\x00-\x7f]""")


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
        value = json.loads(check, object_hook=_untagged)
        asked = Asked(value["reasoning_gym"], json.dumps(_tagged(value["parameters"])), value["item"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return asked if isinstance(asked.dataset, str) and isinstance(asked.item, dict) else None


def _tagged(value: Any) -> Any:
    """JSON has no tuples, and some rules compare with them."""
    if isinstance(value, tuple):
        return {"tuple": _tagged(list(value))}
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    return [_tagged(v) for v in value] if isinstance(value, list) else value


def _untagged(value: dict[str, Any]) -> Any:
    return tuple(value["tuple"]) if value.keys() == {"tuple"} else value


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
    if exact_match(str(asked.item.get("answer")), without_marks(answer)):
        return True
    if asked.dataset in ("countdown", "puzzle24"):  # puzzle24's own rule takes any four numbers
        return countdown(str(asked.item.get("answer")), answer)
    return None if _spellings(asked, answer) else False


def _spellings(asked: Asked, answer: str) -> list[str]:
    """The answer as it stands, and without box, dollars and Markdown marks, as far as each is understood."""
    return [text for text in dict.fromkeys((answer.strip(), without_marks(answer))) if _understood(asked, text)]


_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"


def _row(entry: str, between: str = ",") -> str:
    return rf"{entry}(?:\s*{between}\s*{entry})*"


_JSON_OF_WORDS = r"""[\[\]",\w\s]+"""
# What an answer may look like where a question has several right ones: all of it is what the rule then reads.
_FORMS = {
    "complex_arithmetic": r"-?[0-9]+(?:\.[0-9]+)?\s*[-+]\s*[0-9]+(?:\.[0-9]+)?[ij]",
    "cryptarithm": r"(?!.*([A-Z])\s*=.*\1\s*=)" + _row(r"[A-Z]\s*=\s*[0-9]"),
    "group_anagrams": _JSON_OF_WORDS,
    "jugs": r"\[\s*" + _row('"(?:(?:fill|empty) [A-Z]|pour [A-Z]->[A-Z])"') + r"\s*\]",
    "kakurasu": r"[01\s]+",
    "knight_swap": r"[Nn]o|\[\s*" + _row('"[wB],[A-Z][0-9]+,[A-Z][0-9]+"') + r"\s*\]",
    "knights_knaves": _row(r"[A-Z]\w+ is an? [a-z]+", r"(?:,|,? and)") + r"\.?",
    "n_queens": r"[Q_\s]+",
    "palindrome_generation": r"\w+",
    "palindrome_partitioning": _JSON_OF_WORDS,
    "polynomial_equations": _row(_NUMBER),
    "prime_factorization": _row("[0-9]+", "×"),
    "quantum_lock": _row("[A-C]", "(?:→|->)"),
    "shortest_path": _row("(?:up|down|left|right)", ""),
    "sokoban": r"[UDLR]+",
    "tower_of_hanoi": _row("Move disk [0-9]+ from Peg [0-9]+ to Peg [0-9]+", r"\n"),
    "word_ladder": _row(r"[A-Za-z]+"),
}
_FORMULAS = ("intermediate_integration", "polynomial_multiplication", "simple_integration")


def _understood(asked: Asked, answer: str) -> bool:
    """Is all of an answer something that the data set's rule reads?"""
    goal = str(asked.item.get("answer"))
    if asked.dataset in _FORMULAS:
        return set(_WORD.findall(answer)) <= {*_WORD.findall(goal), *_FUNCTIONS, "C"}
    if _FORMS.get(asked.dataset) == _JSON_OF_WORDS and not _each_once(answer):
        return False
    if asked.dataset in _FORMS:
        return re.fullmatch(_FORMS[asked.dataset], answer, re.ASCII) is not None
    value = parse_number(goal)
    return _same_words(goal, answer) or (value is not None and value == parse_number(answer))


def _each_once(answer: str) -> bool:
    """Is an answer no JSON list that has one entry twice?"""
    try:
        entries = json.loads(answer)
    except (ValueError, RecursionError):
        return True
    return not isinstance(entries, list) or len(set(map(json.dumps, entries))) == len(entries)


_WORDS = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)|[^\W\d_]+|\S")


def _same_words(goal: str, answer: str) -> bool:
    """The same words, numbers and marks in one order; 1.0 is 1, case, white space and quotes do not count.

    Every other character does, a digit of another script too. An answer may leave out the reference's degree signs.
    """

    def words(text: str) -> list:
        found = (m for m in _WORDS.finditer(text) if m[0] not in ("'", '"'))
        return [parse_number(m[0]) if m["number"] else m[0].casefold() for m in found]

    return words(answer) in (words(goal), words(goal.replace("\u00b0", "")))


def gym_match(reference: str, answer: str | None) -> bool | None:
    """Right by the rule of the reasoning_gym data set that asked: score_answer is 1, or the text is equal.

    `reference` is what `pack` made; any other is compared as text, and so is an answer over 10,000 characters. An
    answer that the rule cannot read is wrong. None where the rule itself breaks down. It may hang: see `Pool`.
    """
    importlib.import_module("reasoning_gym")  # not above: it takes seconds, and a worker makes ready with this function

    quick = gym_quick(reference, answer)
    if quick is not None:
        return quick
    asked = unpack(reference)
    try:
        rules = _rules(asked.dataset, asked.parameters)
        spellings = [text for text in _spellings(asked, answer) if harmless(rules, text)]
        if not spellings:
            return False
        if _right(rules, str(asked.item["answer"]), asked.item) is not True:  # it does not know its own answer
            return None
    except Exception:  # any kind: it is someone else's code, and the check someone's file
        return None
    return any(_right(rules, text, asked.item) is True for text in spellings)


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

    return reasoning_gym.create_dataset(dataset, size=1, seed=0, **json.loads(parameters, object_hook=_untagged))


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
