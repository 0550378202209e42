r"""An answer that only repeats a formula of its question is wrong, even if it has the right value.

"Factor $7x^2 - 63$" is not answered by 7x^2 - 63. A policy that is trained on the grader finds such answers without
any reasoning. A repeated formula is a whole formula of the question or one side of an equation in it, in any spelling
or order of its terms. An answer with such a formula inside is wrong too, if the formula itself has the right value:
|F|, max(F, 0), 100F %. Three answers stay right: what says the reference as the reference is written, a bare number or
letter, and an interval such as x > 0.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable

from rl_likelihood.grading.compare import same, same_or_not, stated
from rl_likelihood.grading.intervals import region
from rl_likelihood.grading.tree import Node, number, parts_of
from rl_likelihood.grading.values import exact

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
def _trees(question: str, readings: Callable[[str], list[Node]]) -> dict[Node, Node]:
    """{form: tree} of the formulas of a question and their sides, as far as they can be read."""
    texts = {_END.sub("", text) for formula in written(question) for text in (formula, *_SIDES.split(formula))}
    return {_form(tree): tree for text in texts if text for tree in readings(text)}


def is_copy(reference: Node, answer: Node, question: str, readings: Callable[[str], list[Node]]) -> bool:
    """Is the answer a formula of the question that the reference writes in another way? `readings`: trees of a text."""
    if not question:
        return False
    goal, given = stated(reference, answer)
    plain = _plain(given)
    if _value(_plain(goal)) == _value(plain) or _is_bare(plain) or region(given)[1].kind == "interval":
        return False
    whole, formulas = _form(given), _trees(question, readings)
    inside = (tree for form, tree in formulas.items() if not _is_bare(form) and _holds(whole, form))
    return whole in formulas or any(same_or_not(reference, tree, same) for tree in inside)


def _holds(node: Node, formula: Node) -> bool:
    """Is the formula a part of a node, or are its terms among the node's?"""
    if node.kind == formula.kind and node.kind in _NEUTRAL and not Counter(formula.parts) - Counter(node.parts):
        return True
    return node == formula or any(_holds(part, formula) for part in parts_of(node))


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


def _form(node: Node) -> Node:
    """As `_plain`, with roots as powers, x x as x^2, and signs before the terms: what only differs so is a copy."""
    return _plain(_respelled(_plain(node)))


def _respelled(node: Node) -> Node:
    """The one of several spellings that `_form` takes."""
    kind, parts = node.kind, tuple(_respelled(part) if isinstance(part, Node) else part for part in node.parts)
    if kind == "call" and parts[0] == "root":
        return Node("pow", (parts[1], Node("div", (number(1), parts[2]))))
    if kind == "call" and parts[0] == "binomial":
        left = Node("add", (parts[1], Node("neg", parts[2:])))
        lower = [Node("number", (value,)) for n in (parts[2], left) if (value := exact(n)) is not None]
        return Node(kind, (*parts[:2], min(lower))) if len(lower) == 2 else Node(kind, parts)
    if kind == "neg" and parts[0].kind == "add":
        return Node("add", tuple(Node("neg", (part,)) for part in parts[0].parts))
    if kind == "mul":
        minus = sum(part.kind == "neg" for part in parts) % 2
        counts = Counter(part.parts[0] if part.kind == "neg" else part for part in parts)
        powers = (part if n == 1 else Node("pow", (part, number(n))) for part, n in counts.items())
        return Node("neg", (Node("mul", tuple(powers)),)) if minus else Node("mul", tuple(powers))
    return Node(kind, parts)
