"""Statements about one variable as intervals: 2 < x <= 3, x < 1 or x > 2, x > 0 and x < 1, x != 3 and x != 4."""

from itertools import pairwise

from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import Node, symbols
from rl_likelihood.grading.values import real

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Node("name", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
_REALS = (Node("name", ("reals",)), Node("name", ("mathbb R",)))


def region(node: Node) -> tuple[str, Node]:
    """(variable, interval or union of intervals) of a statement about one variable; ("", node) of all else."""
    if node in _REALS:
        return "", _LINE
    if node.kind == "without" and node.parts[0] in _REALS:
        return "", _line_without(node.parts[1]) or node
    found = ("", node)
    if node.kind == "relation" and node.parts[0] == ("in",) and node.parts[1].kind == "name":
        _, inside = region(_REALS[0] if node.parts[2] == Node("name", ("R",)) else node.parts[2])
        inside = as_interval(inside)
        return (node.parts[1].parts[0], inside) if inside.kind in ("interval", "union") else found
    if node.kind == "relation":
        found = _relation(node)
    elif node.kind in ("or", "and", "list"):
        regions = [region(part) for part in _conditions(node)]
        if len({variable for variable, _ in regions}) == 1 and regions[0][0]:
            joined = _JOINED[node.kind]([part for _, part in regions])
            found = (regions[0][0], joined) if joined is not None else found
    return found


def as_interval(node: Node) -> Node:
    """A pair in brackets as the interval that it is where numbers are said to be in it."""
    return Node("interval", node.parts) if node.kind == "sequence" else node


def _conditions(node: Node) -> list[Node]:
    """The parts of a list or statement; of x != 2, 3 the parts x != 2 and x != 3."""
    out: list[Node] = []
    for part in node.parts:
        if part.kind != "relation" and out and out[-1].parts[0] == ("!=",):
            part = Node("relation", (*out[-1].parts[:2], part))
        out.append(part)
    return out


def _interval(opening: str, low: Node, high: Node, closing: str) -> Node:
    return Node("interval", (opening, closing, low, high))


def _except(*points: Node) -> Node | None:
    """The real line without some points. None where they do not have an order."""
    signs = [(p.parts[0], Node("neg", p.parts)) if p.kind == "pm" else (p,) for p in points]
    points = tuple(point for both in signs for point in both)
    if len(points) > 1:
        places = {_place(point): point for point in points}
        if None in places or len(places) < len(points):
            return None
        points = tuple(point for _, point in sorted(places.items()))
    ends = pairwise((MINUS_INFINITY, *points, INFINITY))
    return Node("union", tuple(_interval("(", low, high, ")") for low, high in ends))


def _place(point: Node) -> float | None:
    try:
        return real(point)
    except Unreadable:
        return None


def _line_without(node: Node) -> Node | None:
    """The real line without a set of points or an interval. None where it is something else that is taken away."""
    if node.kind == "set":
        return _except(*node.parts)
    if node.kind not in ("sequence", "interval") or len(node.parts) != 4 or _except(*node.parts[2:]) is None:
        return None
    opening, closing, low, high = node.parts
    if _place(low) > _place(high):
        return None
    below = _interval("(", MINUS_INFINITY, low, "]" if opening == "(" else ")")
    return Node("union", (below, _interval("[" if closing == ")" else "(", high, INFINITY, ")")))


def _without_all(parts: list[Node]) -> Node | None:
    """x in R, x != 2, x != 3: the line without the points that any part leaves out."""
    points = []
    for part in parts:
        pieces = part.parts if part.kind == "union" else (part,)
        left_out = [piece.parts[3] for piece in pieces[:-1]]
        if part not in (_LINE, _except(*left_out)):
            return None
        points += left_out
    return _except(*points)


def _either(parts: list[Node]) -> Node | None:
    return Node("union", tuple(parts)) if all(part.kind == "interval" for part in parts) else None


def _both(parts: list[Node]) -> Node | None:
    """x > 0 and x < 1: of one lower and one upper bound the interval between them."""
    if (line := _without_all(parts)) is not None:
        return line
    if len(parts) != 2 or any(part.kind != "interval" for part in parts):
        return None
    low, high = parts if parts[0].parts[3] == INFINITY else parts[::-1]
    if low.parts[3] != INFINITY or high.parts[2] != MINUS_INFINITY:
        return None
    return _interval(low.parts[0], low.parts[2], high.parts[3], high.parts[1])


_LINE = _interval("(", MINUS_INFINITY, INFINITY, ")")
_JOINED = {"or": _either, "and": _both, "list": _without_all}


def _relation(node: Node) -> tuple[str, Node]:
    signs, *sides = node.parts
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(FLIPPED[s] for s in reversed(signs)), sides[::-1]
    middle = [i for i, side in enumerate(sides) if side.kind == "name" and symbols(side)]
    if len(sides) == 3 and 1 in middle:
        middle = [1]  # a < x < b
    if len(middle) != 1 or not (set(signs) <= {"<", "<="} or signs == ("!=",)):
        return "", node
    at = middle[0]
    variable, others = sides[at].parts[0], [side for i, side in enumerate(sides) if i != at]
    if any(variable in symbols(side) for side in others):
        return "", node
    if signs == ("!=",):
        line = _except(others[0])
        return ("", node) if line is None else (variable, line)
    if len(sides) > 3 or (len(sides) == 3 and at != 1):
        return "", node
    opening, low = ("[" if signs[0] == "<=" else "(", others[0]) if at else ("(", MINUS_INFINITY)
    high, closing = (others[-1], "]" if signs[-1] == "<=" else ")") if at < len(signs) else (INFINITY, ")")
    return variable, _interval(opening, low, high, closing)
