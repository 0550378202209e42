r"""An answer that only repeats a formula of its question is wrong, even if it has the right value.

"Factor $7x^2 - 63$" is not answered by 7x^2 - 63. A policy that is trained on the grader finds such answers without
any reasoning. A repeated formula is a whole formula of the question or one side of an equation in it, in any spelling
or order of its terms, also with a unit, + 0, times 1 and the like. Two answers stay right: what says the reference as
the reference is written, and a bare number or letter.
"""

import functools
import json
import re
from collections.abc import Callable

from rl_likelihood.grading.compare import stated
from rl_likelihood.grading.tree import Node, number

_FIGURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_FORMULA = re.compile(
    r"(?<!\\)(?P<dollars>\$\$?)(?P<a>.+?)(?<!\\)(?P=dollars)|\\\((?P<b>.+?)\\\)|(?<!\\)\\\[(?P<c>.+?)\\\]"
    r"|\\begin\{(?P<name>(?:align|equation|gather|eqnarray)\*?)\}(?P<d>.+?)\\end\{(?P=name)\}",
    re.DOTALL,
)
_SIDES = re.compile(r"\\(?:leq?|geq?|neq?|approx|equiv)(?![A-Za-z])|[=<>?≤≥≠]|&|\\\\")
_END = re.compile(r"(?:\\[,;:! ]|[\s.,;])+$")
_BEGINNING = '{"answer": '  # no formula begins so
_NEUTRAL = {"add": number(0), "mul": number(1)}


def with_question(answer: str, question: str) -> str:
    """A reference and its question in one text; the reference alone if the question has no formulas."""
    return json.dumps({"answer": answer, "question": question}) if _FORMULA.search(question) else answer


def parted(reference: str) -> tuple[str, str]:
    """The answer and the question that `with_question` joined; a reference alone has the question ""."""
    if not reference.startswith(_BEGINNING):
        return reference, ""
    try:
        both = json.loads(reference)
        return both["answer"], both["question"]
    except (ValueError, KeyError, RecursionError):
        return reference, ""


def written(question: str) -> list[str]:
    """The formulas of a question."""
    found = _FORMULA.finditer(_FIGURE.sub("", question))
    return [m["a"] or m["b"] or m["c"] or m["d"] for m in found]


@functools.lru_cache(maxsize=256)
def _trees(question: str, readings: Callable[[str], list[Node]]) -> frozenset[Node]:
    """The formulas of a question and their sides as trees, as far as they can be read."""
    texts = {_END.sub("", text) for formula in written(question) for text in (formula, *_SIDES.split(formula))}
    return frozenset(_plain(tree) for text in texts if text for tree in readings(text))


def is_copy(reference: Node, answer: Node, question: str, readings: Callable[[str], list[Node]]) -> bool:
    """Is the answer a formula of the question that the reference writes in another way? `readings`: trees of a text."""
    if not question:
        return False
    goal, given = map(_plain, stated(reference, answer))
    if _value(goal) == _value(given) or _is_bare(given):
        return False
    return given in _trees(question, readings)


def _value(node: Node) -> Node:
    return node.parts[0] if node.kind in ("unit", "measure") else node


def _is_bare(node: Node) -> bool:
    """A number of finitely many digits, or a letter."""
    node = node.parts[0] if node.kind == "neg" else node
    return node.kind in ("name", "run") or (node.kind == "number" and 10**30 % node.parts[0].denominator == 0)


def _plain(node: Node) -> Node:
    """The same tree for a formula with any order of its terms, and without what changes no value: units (but of a bare
    number: 20 % is not the question's 20), braces, + 0, times 1, over 1, to the power of 1, two signs."""
    kind, parts = node.kind, tuple(_plain(part) if isinstance(part, Node) else part for part in node.parts)
    if kind in _NEUTRAL:
        flat = [p for part in parts for p in (part.parts if part.kind == kind else (part,)) if p != _NEUTRAL[kind]]
        parts = tuple(sorted(flat, key=repr)) or (_NEUTRAL[kind],)
    if kind in ("set", "list"):
        parts = tuple(sorted(parts, key=repr))
    alone = kind in (*_NEUTRAL, "set", "list") and len(parts) == 1
    by_one = kind in ("div", "pow") and parts[1] == number(1)
    if (kind in ("unit", "measure") and not _is_bare(parts[0])) or alone or by_one:
        return parts[0]
    if kind == "neg" and parts[0].kind == "neg":
        return parts[0].parts[0]
    return Node(kind, parts)
