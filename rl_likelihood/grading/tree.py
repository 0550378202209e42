"""What a formula is once it is read: a tree of nodes, and the few ways in which trees are made."""

from collections.abc import Callable, Iterator, Sequence, Set
from fractions import Fraction
from typing import Any, NamedTuple

from rl_likelihood.grading.tokens import Unreadable, is_variable

LONGEST_PRODUCT = 200  # factors


class Node(NamedTuple):
    """A tree. Kinds: number, name, word, run, based, add, mul, div, pow, neg, pm, call, apply, deg, sequence, interval,
    set, list, either, or, and, matrix, union, without, relation, unit, measure. `parts` are nodes, except for names:
    see the functions that make them."""

    kind: str
    parts: tuple = ()


def number(value: int | Fraction) -> Node:
    return Node("number", (Fraction(value),))


def call(name: str, *arguments: Node) -> Node:
    return Node("call", (name, *arguments))


def parts_of(node: Node) -> Iterator[Node]:
    """The nodes right below a node."""
    for part in node.parts:
        if isinstance(part, Node):
            yield part
        elif isinstance(part, tuple):
            yield from (p for p in part if isinstance(p, Node))


CONSTANTS = ("pi", "e", "i", "imath")


def symbols(node: Node) -> frozenset[str]:
    """The letters in a formula that may stand for any number, and the functions that are not known."""
    inside = frozenset().union(*map(symbols, parts_of(node)))
    if node.kind == "name":
        name = node.parts[0]
        return frozenset({name} if is_variable(name) and name not in CONSTANTS else ())
    return inside | {node.parts[0]} if node.kind == "apply" else inside


def plain_names(node: Node) -> frozenset[str]:
    """The symbols in a formula, without the functions that are not known."""
    return frozenset({node.parts[0]} if node.kind == "name" else ()).union(*map(plain_names, parts_of(node)))


def with_factors(part: Any, letters: Set[str]) -> Any:
    """A node, or a part of one, with h(a + b) as a product, and h(a + b)^2 as h times the square, for these letters h.

    Only before a sum: f(x) and f(2) stay functions.
    """
    if not isinstance(part, Node):
        return tuple(with_factors(p, letters) for p in part) if isinstance(part, tuple) else part
    base = part.parts[0] if part.kind == "pow" else part
    if base.kind == "apply" and base.parts[0] in letters and [argument.kind for argument in base.parts[1:]] == ["add"]:
        factor = with_factors(base.parts[1], letters)
        if part.kind == "pow":
            factor = Node("pow", (factor, with_factors(part.parts[1], letters)))
        return Node("mul", (Node("name", (base.parts[0],)), factor))
    return Node(part.kind, with_factors(part.parts, letters))


def signed(sign: str, node: Node) -> Node:
    if sign == "-":
        return Node("neg", (node,))
    if sign in ("pm", "mp"):
        node = Node("pm", (node,))
        return Node("neg", (node,)) if sign == "mp" else node
    return node


def times(left: Node, right: Node) -> Node:
    factors = left.parts if left.kind == "mul" else (left,)
    if len(factors) > LONGEST_PRODUCT:
        raise Unreadable("too long")
    return Node("mul", (*factors, right))


def over(above: Node, below: Node) -> Node:
    """A quotient; of a product, one factor more, so that 1/2/3/... is not a deep tree."""
    if above.kind in ("mul", "div"):
        return times(above, Node("div", (number(1), below)))
    return Node("div", (above, below))


def in_degrees(node: Node, mixed: bool) -> Node | None:
    """The number of degrees of an angle, such as 180/3 for a third of 180 degrees. None if the node is not an angle.

    `mixed`: terms of a sum that have no unit are degrees too, such as x in 180 degrees - x.
    """
    if node.kind == "deg" or (node.kind == "unit" and node.parts[1] == "degree"):
        return node.parts[0]
    if node.kind not in ("neg", "pm", "add", "mul", "div"):
        return None
    numbers = [in_degrees(part, mixed) for part in node.parts]
    angles = [number is not None for number in numbers]
    if node.kind in ("mul", "div"):
        fits = sum(angles) == 1 and (node.kind == "mul" or angles[0])
    else:
        fits = all(angles) or (mixed and any(angles))
    parts = (part if number is None else number for part, number in zip(node.parts, numbers, strict=True))
    return Node(node.kind, tuple(parts)) if fits else None


def in_radians(node: Node) -> Node:
    """Degrees inside the argument of a sine are an eighteenth of ten pi."""
    if node.kind == "deg":
        return Node("mul", (node.parts[0], Node("div", (Node("name", ("pi",)), number(180)))))
    if node.kind == "unit" and node.parts[1] == "degree":
        return in_radians(Node("deg", (node.parts[0],)))
    if node.kind in ("add", "mul", "div", "neg"):
        return Node(node.kind, tuple(map(in_radians, node.parts)))
    return node


def has_sign(node: Node) -> bool:
    return node.kind == "pm" or any(map(has_sign, parts_of(node)))


def replaced(part: Any, kinds: Sequence[str], change: Callable[[Node], Node]) -> Any:
    """A node, or a part of one, with what `change` makes of the first part of each node of these kinds in its place."""
    if not isinstance(part, tuple):
        return part
    if not isinstance(part, Node):
        return tuple(replaced(p, kinds, change) for p in part)
    inner = replaced(part.parts, kinds, change)
    return change(inner[0]) if part.kind in kinds else Node(part.kind, inner)


_TRANSPOSED = (Node("name", ("T",)), Node("name", ("top",)))


def as_matrix(node: Node, other: Node) -> Node:
    """(1, 2) as a column, or as a row beside one; a matrix times numbers with these in its entries."""
    if node.kind == "sequence":
        shape, entries = node.parts[:2], node.parts[2:]
        if shape == ("(", ")") and other.kind == "matrix" and len(other.parts) == 2:
            return Node("matrix", ("matrix", entries))
        if shape == ("(", ")"):
            return Node("matrix", ("matrix", *((entry,) for entry in entries)))
    if node.kind == "pow" and node.parts[1] in _TRANSPOSED:
        row = node.parts[0]
        if row.kind == "sequence" and row.parts[:2] == ("(", ")"):
            row = Node("matrix", ("matrix", row.parts[2:]))
        if row.kind == "matrix":
            return Node("matrix", (row.parts[0], *zip(*row.parts[1:], strict=True)))
    if node.kind == "neg" and node.parts[0].kind == "matrix":
        node = Node("mul", (number(-1), node.parts[0]))
    if node.kind == "mul" and sum(part.kind == "matrix" for part in node.parts) == 1:
        factors = tuple(part for part in node.parts if part.kind != "matrix")
        (matrix,) = (part for part in node.parts if part.kind == "matrix")
        if matrix.parts[0] == "matrix":
            rows = (tuple(Node("mul", (*factors, entry)) for entry in row) for row in matrix.parts[1:])
            return Node("matrix", ("matrix", *rows))
    return node
