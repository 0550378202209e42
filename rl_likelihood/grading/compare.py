"""Do two answers say the same? What is compared with what, and when order, brackets and units count.

1 or 2          the set {1, 2}, in brackets too
a list 1, 2     as many entries, in any order; equal to a set or, in the same order, to a tuple of the same entries
a set {1, 2}    in any order, each entry once; never equal to a tuple
a tuple (1, 2)  in this order, with these brackets: (1, 2), [1, 2) and [1, 2] differ; equal to the column matrix
x = 5           its value, where the other side names none (`names`); else the same equation up to a factor
2 < x <= 3      the interval (2, 3] (`intervals`)
5 cm            5, where the other side says no unit or the same one; a reference's own words are a unit too
3 cm, 4 cm      3, 4, and so is 3, 4 cm; but 3 cm, 4 is not; a part such as 50% is 0.5
"""

from collections.abc import Callable, Sequence
from typing import Any

from rl_likelihood.grading.intervals import FLIPPED, INFINITY, MINUS_INFINITY, merged, region
from rl_likelihood.grading.names import is_letter, quotient, says_value, without_names
from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import (
    Node,
    as_matrix,
    has_sign,
    in_radians,
    number,
    parts_of,
    plain_names,
    replaced,
    symbols,
    with_factors,
)
from rl_likelihood.grading.units import plain, same_words
from rl_likelihood.grading.values import exact, proportional, same_value

_EMPTY = Node("name", ("emptyset",))
_DOTS = Node("name", ("ldots",))
_COLLECTIONS = ("list", "either", "set", "sequence", "interval", "matrix", "union", "or", "and")
_MOST_PAIRS = 1_000  # of entries that are compared one by one


def same(reference: Node, answer: Node) -> bool:
    """Does `answer` say what `reference` says? Raises Unreadable where one has parts that cannot be compared."""
    reference, answer = stated(reference, answer)
    return _same(reference, answer) or _same_without_units(reference, answer)


def stated(reference: Node, answer: Node) -> tuple[Node, Node]:
    """Both as they are compared: without a name that only one has; of 2 + 3 = 5 the last side."""
    goal, given = plain_names(reference), plain_names(answer)
    reference, answer = with_factors(reference, given), with_factors(answer, goal)
    if answer.kind == "relation" and set(answer.parts[0]) == {"="} and reference.kind != "relation":
        answer = _linked(reference, answer)
    reference, answer = without_names(reference, answer)
    return quotient(reference, answer), quotient(answer, reference)


def _linked(reference: Node, answer: Node) -> Node:
    """2 + 3 = 5 as 5, x = 10/2 = 5 as x = 5: only the last of the sides that say what the reference says.

    5 = 5 stays an equation, and so does 5 cm = 5 kg.
    """
    said = [side for side in answer.parts[1:] if same_or_not(reference, side)]
    sides = [s for s in answer.parts[1:] if s not in said or s == said[-1] or not same_or_not(s, said[-1])]
    return Node("relation", (("=",) * (len(sides) - 1), *sides)) if len(sides) > 1 else sides[0]


def _same(reference: Node, answer: Node) -> bool:
    reference, answer = _measured(reference, answer, True), _measured(answer, reference)
    if reference == answer:
        return True
    differ = reference.kind != answer.kind or _is_membership(reference) != _is_membership(answer)
    if differ or reference.kind in ("list", "without"):
        (variable, reference), (other, answer) = region(reference), region(answer)
        if other and (not is_letter(other, True) or variable not in ("", other)):
            return False
    if {reference.kind, answer.kind} == {"union", "either"}:  # (0, 1) or (2, 3), beside intervals
        reference, answer = Node("union", reference.parts), Node("union", answer.parts)
    reference, answer = _both_signs(merged(reference)), _both_signs(merged(answer))
    if "interval" in (reference.kind, answer.kind):  # no list of two numbers, nor their tuple as a column
        return {reference.kind, answer.kind} <= {"interval", "sequence"} and _same_sequences(reference, answer)
    if reference.kind == "unit" or answer.kind == "unit":
        return _same_with_units(reference, answer)
    if "list" in (reference.kind, answer.kind) or "set" in (reference.kind, answer.kind):
        return _same_collections(reference, answer)
    if reference.kind == "matrix" or answer.kind == "matrix":
        return _same_matrices(reference, answer)
    if {reference.kind, answer.kind} & {"word", "run"}:
        return _same_words(reference, answer)
    if reference.kind != answer.kind and (reference.kind in _STRUCTURES or answer.kind in _STRUCTURES):
        return False
    return _STRUCTURES.get(reference.kind, same_value)(reference, answer)


def _is_membership(node: Node) -> bool:
    return node.kind == "relation" and node.parts[0] in (("in",), ("notin",))


def _same_sequences(reference: Node, answer: Node) -> bool:
    return reference.parts[:2] == answer.parts[:2] and _in_order(reference.parts[2:], answer.parts[2:])


def _in_order(references: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(references) == len(answer) and all(map(_same_part, references, answer))


def _in_any_order(references: Sequence[Node], answer: Sequence[Node]) -> bool:
    """Equal rationals find each other by their value; the few others are compared one by one."""
    if len(references) != len(answer):
        return False
    wanted, left = _keys(references), []
    for key, node in _keys(answer):
        at = next((i for i, (goal, _) in enumerate(wanted) if goal == key), None)
        if at is None:
            left.append((key, node))
        else:
            del wanted[at]
    if _entries(wanted) * _entries(left) > _MOST_PAIRS:
        raise Unreadable("too many entries")
    for _, reference in wanted:
        match = next((i for i, (_, node) in enumerate(left) if same_or_not(reference, node, _same_part)), None)
        if match is None:
            return False
        del left[match]
    return True


def _keys(nodes: Sequence[Node]) -> list[tuple[Any, Node]]:
    """Each node with what it equals at a glance: its value, or itself."""
    return [(node if (value := exact(node)) is None else value, node) for node in nodes]


def _entries(pairs: Sequence[tuple[Any, Node]]) -> int:
    def entries(node: Node) -> int:
        return sum(map(entries, parts_of(node))) if node.kind in (*_COLLECTIONS, "relation") else 1

    return sum(entries(node) for _, node in pairs)


def same_or_not(reference: Node, answer: Node, compare: Callable[[Node, Node], bool] = _same) -> bool:
    """As `compare`, in a search: entries that cannot be compared with this one may be with the next."""
    try:
        return compare(reference, answer)
    except Unreadable:
        return False


def _same_in_any_order(reference: Node, answer: Node) -> bool:
    return _in_any_order(reference.parts, answer.parts)


def _same_relations(reference: Node, answer: Node) -> bool:
    (signs, *references), (other, *answers) = reference.parts, answer.parts
    if len(signs) != len(other):
        return False
    if {":", "clock"} & {*signs, *other}:
        if {*signs, *other} - {":", "clock"}:
            return False
        written = all(map(same_or_not, references, answers))
        if "clock" in signs:  # 5:30 is neither 10:60 nor a ratio
            return written and signs == other
        return written or _same_ratios(references, answers)
    for turned in (False, True):
        sides = answers[::-1] if turned else answers
        if turned:
            other = tuple(FLIPPED.get(sign, "") for sign in reversed(other))
        alone = says_value(reference)
        if signs == other and all(_same_side(*pair, alone) for pair in zip(references, sides, strict=True)):
            return True
    if signs == other == ("=",) and not says_value(reference):  # 3x + 7 = 22 is not solved for x
        return proportional(_difference(references), _difference(answers))
    return False


def _same_side(reference: Node, answer: Node, alone: bool) -> bool:
    """As `_same`, of sides: a symbol has no unit of its own. `alone`: the number is a value, where 50% is also 50."""
    unit, other = _unit(reference), _unit(answer)
    if unit != other and symbols(reference) | symbols(answer):
        return False
    shares = "percent" in (unit, other) and not alone
    return same_or_not(reference, answer, _same_part if shares else _same)


def _same_ratios(references: list[Node], answer: list[Node]) -> bool:
    """6:4 is 3:2."""
    if not symbols(answer[0]) | symbols(answer[1]) <= symbols(references[0]) | symbols(references[1]):
        return False
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
    "union": _same_in_any_order,
    "or": _same_in_any_order,
    "and": _same_in_any_order,
    "without": lambda reference, answer: _in_order(reference.parts, answer.parts),
    "relation": _same_relations,
    "based": lambda reference, answer: False,  # equal nodes never come here
}


# ---------------------------------------------------------------------------------------------- collections


def _same_collections(reference: Node, answer: Node) -> bool:
    kinds = {reference.kind, answer.kind}
    if "sequence" in kinds:
        sequence, other = (reference, answer) if reference.kind == "sequence" else (answer, reference)
        brackets_of_tuple = sequence.parts[:2] == ("(", ")") and not {INFINITY, MINUS_INFINITY} & {*sequence.parts[2:]}
        return other.kind == "list" and brackets_of_tuple and _in_order(sequence.parts[2:], other.parts)
    references, others = (
        () if node == _EMPTY else node.parts if node.kind in ("list", "set") else (node,)
        for node in (reference, answer)
    )
    if _DOTS in (*references, *others):  # 1, 2, ..., 10
        return _in_order(references, others)
    if kinds == {"set"}:
        references, others = _distinct(references), _distinct(others)
    return _in_any_order(references, others)


def _distinct(nodes: Sequence[Node]) -> list[Node]:
    keys = _keys(nodes)
    if len(keys) ** 2 > _MOST_PAIRS:
        return list(dict(keys).values())
    out: list[Node] = []
    for node in nodes:
        if not any(same_or_not(node, other, _same_part) for other in out):
            out.append(node)
    return out


def _both_signs(node: Node) -> Node:
    r"""1 \pm 2 as the list 3, -1; in a list or set, both as entries of it. 1 or 2 as a set."""
    if node.kind in ("list", "set", "either"):
        entries = [_both_signs(part) for part in node.parts]
        flat = [n for entry in entries for n in (entry.parts if entry.kind == "list" else (entry,))]
        return Node("list" if node.kind == "list" else "set", tuple(flat))
    if not has_sign(node):
        return node
    return Node("list", (replaced(node, ("pm",), lambda n: n), replaced(node, ("pm",), lambda n: Node("neg", (n,)))))


def _same_matrices(reference: Node, answer: Node) -> bool:
    reference, answer = as_matrix(reference, answer), as_matrix(answer, reference)
    if reference.kind != "matrix" or answer.kind != "matrix" or reference.parts[0] != answer.parts[0]:
        return False
    rows, others = reference.parts[1:], answer.parts[1:]
    return len(rows) == len(others) and all(map(_in_order, rows, others))


# ---------------------------------------------------------------------------------------------- words, units


def _same_words(reference: Node, answer: Node) -> bool:
    """Words are equal as text; up to three bare letters are also the product of these, xyz is z*y*x."""
    words = ("word", "run")
    if reference.kind in words and answer.kind in words:
        (said,), (goal,) = answer.parts, reference.parts
        symbols_only = reference.kind == answer.kind == "run" and max(len(said), len(goal)) <= 3
        return said == goal if symbols_only else plain(said) == plain(goal)
    word, other = (reference, answer) if reference.kind in words else (answer, reference)
    letters = word.parts[0]
    if len(letters) == 1:
        return other == Node("name", (letters,))
    factors = [part.parts[0] for part in other.parts if part.kind == "name"] if other.kind == "mul" else []
    product = word.kind == "run" and len(letters) <= 3 and len(factors) == len(other.parts)
    return product and sorted(factors) == sorted(letters)


def _measured(node: Node, other: Node, is_reference: bool = False) -> Node:
    """Reads 10 m^2 as a formula if the other side has symbols, else as a number with a unit.

    A reference of a number and one letter, such as 10 m, is a product if the other side has no unit.
    """
    if node.kind != "measure":
        return node
    value, unit, product = node.parts
    factors = (product.parts[0] if product.kind == "neg" else product).parts
    letter = is_reference and len(factors) == 2 and factors[1].kind == "name" and other.kind != "unit"
    return product if letter or other.kind == "measure" or symbols(other) else Node("unit", (value, unit, True))


def _same_with_units(reference: Node, answer: Node) -> bool:
    (value, unit, of_units), (given, other, known) = _split(reference), _split(answer)
    if "percent" in (unit, other) and {unit, other} <= {"percent", ""}:
        return _same_shares(value, given, unit == "percent", other == "percent")
    if not unit:  # the answer's own: none of it may be unknown
        if other == "degree" and same_value(value, in_radians(Node("deg", (given,)))):
            return True
        return known and _same(value, given)
    if {unit, other} == {"degree", "radian"}:
        return same_value(_AS_NUMBER[unit](value), _AS_NUMBER[other](given))
    if other:
        alike = unit == other if of_units or known else same_words(unit, other)
        return alike and _same(value, given)
    if unit == "degree" and same_value(in_radians(Node("deg", (value,))), given):
        return True
    letters = Node("name", (unit,))
    if len(unit) == 1 and given.kind == "mul" and given.parts[-1] == letters:  # 5 m for 5\text{ m}
        given = Node("mul", given.parts[:-1])
    return _same(value, given)


def _same_part(reference: Node, answer: Node) -> bool:
    """As `_same`, of parts of a list or tuple: no unit is only the answer's; 50% and angles are numbers."""
    reference, answer = _measured(reference, answer, True), _measured(answer, reference)
    unit, other = _unit(reference), _unit(answer)
    if (unit and other) or (unit != "percent" and not other):
        return _same(reference, answer)
    as_number = _AS_NUMBER.get(unit or other)
    if as_number is None:
        return False
    return _same(*(replaced(node, ("unit",), as_number) for node in (reference, answer)))


def _unit(part: Node) -> str:
    """The unit of a part such as 5 cm or x = 5 cm."""
    value = part.parts[-1] if part.kind == "relation" else part
    return value.parts[1] if value.kind == "unit" else ""


_AS_NUMBER: dict[str, Callable[[Node], Node]] = {
    "percent": lambda value: Node("div", (value, number(100))),
    "degree": lambda value: in_radians(Node("deg", (value,))),
    "radian": lambda value: value,
}


def _same_without_units(reference: Node, answer: Node) -> bool:
    """Lists, tuples and intervals with one unit, which one side may leave out, or write only once."""
    goal, unit = _one_unit(_both_signs(reference), ("unit",))
    given, other = _one_unit(_both_signs(answer), ("unit", "measure"))
    units = {unit, other} - {""}
    return len(units) == 1 and None not in units and _same(goal, given)


def _one_unit(node: Node, kinds: Sequence[str]) -> tuple[Node, str | None]:
    """A list, tuple or interval without its unit, and the unit: of all its numbers, or written once: 3, 4 cm.

    "" where none has any, None where they differ.
    """
    numbers = _numbers(node) if node.kind in (*_COLLECTIONS, "relation") else []
    units = [part.parts[1] if part.kind in kinds and part.parts[2] else "" for part in numbers]
    if not any(units):
        return node, ""
    share = "percent" in units and node.kind not in ("list", "set")
    if share or any(unit and symbols(part.parts[0]) for unit, part in zip(units, numbers, strict=True)):
        return node, None
    brackets = node.kind not in ("list", "either", "or", "and", "relation")
    of_last = not brackets and node.parts[-1].kind in (*kinds, "relation") and units[-1] != "percent"
    shared = len(set(units)) == 1 or (of_last and not any(units[:-1]))
    return (replaced(node, kinds, lambda value: value), units[-1]) if shared else (node, None)


def _numbers(node: Node) -> list[Node]:
    """What may have a unit in a list or tuple: its entries, the values of equations, the finite ends of intervals."""
    if node.kind in (*_COLLECTIONS, "relation"):
        equation = node.kind == "relation" and node.parts[0] == ("=",)
        parts = [p for p in parts_of(node) if not equation or p is node.parts[-1] or p.kind in ("unit", "measure")]
        return [n for part in parts if node.kind != "relation" or part.kind != "name" for n in _numbers(part)]
    return [] if node in (INFINITY, MINUS_INFINITY) else [node]


def _split(node: Node) -> tuple[Node, str, bool]:
    return node.parts if node.kind == "unit" else (node, "", True)


def _same_shares(reference: Node, answer: Node, reference_percent: bool, answer_percent: bool) -> bool:
    """50% is 50 as well as 0.5: see `text.numeric_match`. A letter alone, such as C for an option, has no %."""
    if _same(reference, answer) and (reference_percent or answer.kind != "name"):
        return True
    if reference_percent == answer_percent:
        return False
    hundredth = Node("div", (reference if reference_percent else answer, number(100)))
    return _same(hundredth, answer) if reference_percent else _same(reference, hundredth)
