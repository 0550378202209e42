"""Do two answers say the same? What is compared with what, and when order, brackets, names and units count.

a list 1, 2     as many entries, in any order; equal to a set or, in the same order, to a tuple of the same entries
a set {1, 2}    in any order, each entry once; never equal to a tuple
a tuple (1, 2)  in this order, with these brackets: (1, 2), [1, 2) and [1, 2] differ; equal to the column matrix
x = 5           its value, where the other side names none; else the same equation up to a factor
2 < x <= 3      the interval (2, 3]
5 cm            5, where the other side says no unit or the same one; a reference's own words are a unit too
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rl_likelihood.grading import units
from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import Node, number, parts_of, symbols
from rl_likelihood.grading.values import proportional, same_value

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_INFINITY = Node("name", ("infty",))


def same(reference: Node, answer: Node) -> bool:
    """Does `answer` say what `reference` says? Raises Unreadable where one has parts that cannot be compared."""
    reference, answer = _without_name(reference, answer)
    if reference == answer:
        return True
    if (reference.kind == "relation") != (answer.kind == "relation"):
        reference, answer = _interval(reference), _interval(answer)
    if reference.kind == "unit" or answer.kind == "unit":
        return _same_with_units(reference, answer)
    reference, answer = _both_signs(reference), _both_signs(answer)
    if {reference.kind, answer.kind} == {"union", "list"}:  # x < 1 or x > 3
        return _in_any_order(*(tuple(map(_interval, node.parts)) for node in (reference, answer)))
    if "list" in (reference.kind, answer.kind) or "set" in (reference.kind, answer.kind):
        return _same_collections(reference, answer)
    if reference.kind == "matrix" or answer.kind == "matrix":
        return _same_matrices(reference, answer)
    if reference.kind == "word" or answer.kind == "word":
        return _same_words(reference, answer)
    if reference.kind != answer.kind and (reference.kind in _STRUCTURES or answer.kind in _STRUCTURES):
        return False
    return _STRUCTURES.get(reference.kind, _same_scalars)(reference, answer)


def _same_scalars(reference: Node, answer: Node) -> bool:
    return same_value(reference, answer)


def _same_sequences(reference: Node, answer: Node) -> bool:
    return reference.parts[:2] == answer.parts[:2] and _in_order(reference.parts[2:], answer.parts[2:])


def _in_order(references: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(references) == len(answer) and all(map(same, references, answer))


def _in_any_order(references: Sequence[Node], answer: Sequence[Node]) -> bool:
    left = list(answer)
    for reference in references:
        match = next((i for i, node in enumerate(left) if _same_or_not(reference, node)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _same_or_not(reference: Node, answer: Node) -> bool:
    """As `same`, in a search: entries that cannot be compared with this one may be with the next."""
    try:
        return same(reference, answer)
    except Unreadable:
        return False


def _same_unions(reference: Node, answer: Node) -> bool:
    return len(reference.parts) == len(answer.parts) and _in_any_order(reference.parts, answer.parts)


def _same_based(reference: Node, answer: Node) -> bool:
    return False  # equal nodes never come here


def _same_relations(reference: Node, answer: Node) -> bool:
    (signs, *references), (other, *answers) = reference.parts, answer.parts
    if len(signs) != len(other):
        return False
    if ":" in signs + other:
        return signs == other and _same_ratios(references, answers)
    for turned in (False, True):
        sides = answers[::-1] if turned else answers
        if turned:
            other = tuple(_FLIPPED.get(sign, "") for sign in reversed(other))
        if signs == other and all(map(_same_or_not, references, sides)):
            return True
    if signs == other == ("=",):
        return proportional(_difference(references), _difference(answers))
    return False


def _same_ratios(references: list[Node], answer: list[Node]) -> bool:
    """6:4 is 3:2."""
    if same_value(answer[0], number(0)):
        return False
    crossed = (
        (Node("mul", (references[0], b)), Node("mul", (answer[0], a))) for a, b in zip(references, answer, strict=True)
    )
    return all(same_value(left, right) for left, right in crossed)


def _difference(sides: list[Node]) -> Node:
    return Node("add", (sides[0], Node("neg", (sides[1],))))


_STRUCTURES: dict[str, Callable[[Node, Node], bool]] = {
    "sequence": _same_sequences,
    "union": _same_unions,
    "without": lambda reference, answer: _in_order(reference.parts, answer.parts),
    "relation": _same_relations,
    "based": _same_based,
}


# ---------------------------------------------------------------------------------------------- collections


def _same_collections(reference: Node, answer: Node) -> bool:
    kinds = {reference.kind, answer.kind}
    if "sequence" in kinds:
        sequence, other = (reference, answer) if reference.kind == "sequence" else (answer, reference)
        brackets_of_tuple = sequence.parts[:2] == ("(", ")")
        return other.kind == "list" and brackets_of_tuple and _in_order(sequence.parts[2:], other.parts)
    references, others = (node.parts if node.kind in ("list", "set") else (node,) for node in (reference, answer))
    if kinds == {"set"}:
        references, others = _distinct(references), _distinct(others)
    return len(references) == len(others) and _in_any_order(references, others)


def _distinct(nodes: Sequence[Node]) -> list[Node]:
    out: list[Node] = []
    for node in nodes:
        if len(out) > 50 or not any(_same_or_not(node, other) for other in out):
            out.append(node)
    return out


def _both_signs(node: Node) -> Node:
    r"""1 \pm 2 as the list 3, -1; in a list or set, both as entries of it."""
    if node.kind in ("list", "set"):
        entries = [_both_signs(part) for part in node.parts]
        flat = [n for entry in entries for n in (entry.parts if entry.kind == "list" else (entry,))]
        return Node(node.kind, tuple(flat))
    if not _has_sign(node):
        return node
    return Node("list", (_signed(node, False), _signed(node, True)))


def _has_sign(node: Node) -> bool:
    return node.kind == "pm" or any(map(_has_sign, parts_of(node)))


def _signed(part: Any, negative: bool) -> Any:
    """A node, or a part of one, with each plus-minus read as this sign."""
    if isinstance(part, tuple) and not isinstance(part, Node):
        return tuple(_signed(p, negative) for p in part)
    if not isinstance(part, Node):
        return part
    if part.kind == "pm":
        inner = _signed(part.parts[0], negative)
        return Node("neg", (inner,)) if negative else inner
    return Node(part.kind, _signed(part.parts, negative))


def _same_matrices(reference: Node, answer: Node) -> bool:
    reference, answer = _as_matrix(reference), _as_matrix(answer)
    if reference.kind != "matrix" or answer.kind != "matrix" or reference.parts[0] != answer.parts[0]:
        return False
    rows, others = reference.parts[1:], answer.parts[1:]
    return len(rows) == len(others) and all(map(_in_order, rows, others))


def _as_matrix(node: Node) -> Node:
    """(1, 2) as a column; [[1, 2], [3, 4]] as rows; a matrix times numbers with these in its entries."""
    if node.kind == "sequence":
        kind, entries = node.parts[:2], node.parts[2:]
        if kind == ("(", ")"):
            return Node("matrix", ("matrix", *((entry,) for entry in entries)))
        if all(e.kind == "sequence" and e.parts[:2] == ("[", "]") for e in entries):
            return Node("matrix", ("matrix", *(e.parts[2:] for e in entries)))
    if node.kind == "neg" and node.parts[0].kind == "matrix":
        node = Node("mul", (number(-1), node.parts[0]))
    if node.kind == "mul" and sum(part.kind == "matrix" for part in node.parts) == 1:
        factors = tuple(part for part in node.parts if part.kind != "matrix")
        (matrix,) = (part for part in node.parts if part.kind == "matrix")
        if matrix.parts[0] == "matrix":
            rows = (tuple(Node("mul", (*factors, entry)) for entry in row) for row in matrix.parts[1:])
            return Node("matrix", ("matrix", *rows))
    return node


# ---------------------------------------------------------------------------------------------- words, units, names


def _same_words(reference: Node, answer: Node) -> bool:
    """Words are equal as text; a run of letters is also the product of these where the other side is a formula."""
    if reference.kind == answer.kind:
        return _plain(reference.parts[0]) == _plain(answer.parts[0])
    word, other = (reference, answer) if reference.kind == "word" else (answer, reference)
    letters = word.parts[0]
    if not letters.isalpha() or not letters.isascii() or len(letters) > 20:
        return False
    if len(letters) == 1:
        return same_value(Node("name", (letters,)), other)
    return other.kind not in _STRUCTURES and same_value(Node("mul", tuple(Node("name", (c,)) for c in letters)), other)


def _plain(words: str) -> str:
    return words.strip(" .").replace("a.m", "am").replace("p.m", "pm")


def _same_with_units(reference: Node, answer: Node) -> bool:
    (value, unit), (answer_number, other) = _split(reference), _split(answer)
    if "percent" in (unit, other) and {unit, other} <= {"percent", ""}:
        return _same_shares(value, answer_number, unit == "percent", other == "percent")
    if not unit:  # the answer's own: none of it may be unknown
        _, other, known = units.canonical(other)
        return known and same(value, answer_number)
    if other:
        return units.canonical(unit)[1] == units.canonical(other)[1] and same(value, answer_number)
    letters = Node("name", (unit,))
    if len(unit) == 1 and answer_number.kind == "mul" and answer_number.parts[-1] == letters:  # 5 m for 5\text{ m}
        answer_number = Node("mul", answer_number.parts[:-1])
    return same(value, answer_number)


def _split(node: Node) -> tuple[Node, str]:
    return (node.parts[0], node.parts[1]) if node.kind == "unit" else (node, "")


def _same_shares(reference: Node, answer: Node, reference_percent: bool, answer_percent: bool) -> bool:
    """50% is 50 as well as 0.5: see `text.same_value`."""
    if same(reference, answer):
        return True
    if reference_percent == answer_percent:
        return False
    hundredth = Node("div", (reference if reference_percent else answer, number(100)))
    return same(hundredth, answer) if reference_percent else same(reference, hundredth)


_NO = ("not", "no", "never", "isn't", "without", "neither", "nor", "wrong", "unequal")


def _without_name(reference: Node, answer: Node) -> tuple[Node, Node]:
    """Both without the "x =" that only one of them has; of lists, in each entry."""
    if _named(reference) and not _relations(answer):
        return _value(reference), answer
    if _named(answer) and not _relations(reference):
        return reference, _value(answer)
    return reference, answer


def _relations(node: Node) -> bool:
    return node.kind == "relation" or (node.kind == "list" and any(map(_relations, node.parts)))


def _named(node: Node) -> bool:
    """x = 5, x in [1, 2], or a list x = 1, y = 2 of such: a name and what it stands for."""
    if node.kind == "list":
        return all(map(_named, node.parts))
    return node.kind == "relation" and node.parts[0] in (("=",), ("in",)) and _is_name(node.parts[1])


def _value(node: Node) -> Node:
    if node.kind == "list":
        return Node("list", tuple(map(_value, node.parts)))
    return node.parts[2]


def _is_name(node: Node) -> bool:
    """x, x_1, AB, f(x), f^{-1}(x), (x, y), angle ABC, Area: symbols and no arithmetic."""
    match node.kind:
        case "name":
            return True
        case "word":
            return not set(node.parts[0].lower().split()) & set(_NO)
        case "mul":
            letters = "".join(part.parts[0] for part in node.parts if part.kind == "name")
            return letters.lower() not in _NO and all(map(_is_name, node.parts))
        case "sequence":
            return all(map(_is_name, node.parts[2:]))
        case "pow":
            return _is_name(node.parts[0]) and node.parts[1] == Node("neg", (number(1),))
    return False


def _interval(node: Node) -> Node:
    """2 < x <= 3 as (2, 3], x > 1 as (1, infinity); everything else as it is."""
    if node.kind != "relation":
        return node
    signs, *sides = node.parts
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(_FLIPPED[s] for s in reversed(signs)), sides[::-1]
    if not set(signs) <= {"<", "<="}:
        return node
    is_variable = [side.kind == "name" and bool(symbols(side)) for side in sides]
    if len(sides) == 2 and is_variable in ([True, False], [False, True]) and not _shared(sides):
        if is_variable[0]:
            bounds, shut = (Node("neg", (_INFINITY,)), sides[1]), ("(", "]" if signs[0] == "<=" else ")")
        else:
            bounds, shut = (sides[0], _INFINITY), ("[" if signs[0] == "<=" else "(", ")")
    elif len(sides) == 3 and is_variable == [False, True, False] and not _shared(sides[:2]) | _shared(sides[1:]):
        bounds, shut = (sides[0], sides[2]), ("[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")")
    else:
        return node
    return Node("sequence", (*shut, *bounds))


def _shared(sides: Sequence[Node]) -> frozenset[str]:
    return symbols(sides[0]) & symbols(sides[1])
