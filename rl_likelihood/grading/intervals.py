"""Statements about one variable as intervals: 2 < x <= 3, x < 1 or x > 2, x > 0 and x < 1, x != 3 and x != 4."""

import math
from itertools import pairwise

from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import Node, symbols
from rl_likelihood.grading.values import exact, real, same_value

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Node("name", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
_REALS = tuple(Node("name", (name,)) for name in ("reals", "mathbb R", "mathbf R"))


def region(node: Node) -> tuple[str, Node]:
    """(variable, interval or union of intervals) of a statement about one variable; ("", node) of all else."""
    if node in _REALS:
        return "", _LINE
    if node.kind == "without" and node.parts[0] in (*_REALS, Node("name", ("R",))):
        return "", _line_without(node.parts[1]) or node
    if node.kind == "add" and len(node.parts) == 2 and node.parts[0] in _REALS and node.parts[1].kind == "neg":
        return region(Node("without", (node.parts[0], *node.parts[1].parts)))  # R - {0}
    found = ("", node)
    if node.kind == "relation" and node.parts[0] == ("in",) and node.parts[1].kind == "name":
        _, inside = region(_REALS[0] if node.parts[2] == Node("name", ("R",)) else node.parts[2])
        inside = as_interval(inside)
        return (node.parts[1].parts[0], inside) if inside.kind in ("interval", "union") else found
    if node.kind == "relation" and node.parts[0] == ("notin",) and node.parts[1].kind == "name":
        outside = _line_without(node.parts[2])
        return found if outside is None else (node.parts[1].parts[0], outside)
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
    if exact(node) is not None:  # R without {0}, of which TeX shows no braces
        return _except(node)
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
        if any(piece.kind != "interval" for piece in pieces):
            return None
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
    bottom, top = _place(low.parts[2]), _place(high.parts[3])
    if bottom is not None and top is not None and bottom >= top:  # x < 0, x > 1: meant as "or"
        return None
    return _interval(low.parts[0], low.parts[2], high.parts[3], high.parts[1])


_LINE = _interval("(", MINUS_INFINITY, INFINITY, ")")
_JOINED = {"or": _either, "and": _both, "list": _both}


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


# ---------------------------------------------------------------------------------------------- unions


def merged(node: Node) -> Node:
    """A union of intervals and sets of numbers with its parts joined where they meet: (1, 2) and {2} are (1, 2]."""
    if node.kind != "union":
        return node
    pieces = [piece for part in node.parts for piece in _pieces(part)]
    places = [(_end(low), _end(high)) for _, low, high, _ in pieces]
    if any(None in both or both[0] > both[1] for both in places):
        return node
    out: list[tuple] = []
    for _, piece in sorted(zip(places, pieces, strict=True), key=lambda pair: (pair[0][0], pair[1][0] == "(")):
        joined = _joined(out[-1], piece) if out else None
        out = [*out[:-1], joined] if joined else [*out, piece]
    if all(low == high for _, low, high, _ in out):
        return Node("set", tuple(low for _, low, _, _ in out))
    parts = tuple(Node("set", (low,)) if low == high else _interval(a, low, high, b) for a, low, high, b in out)
    return parts[0] if len(parts) == 1 else Node("union", parts)


def _pieces(part: Node) -> list[tuple]:
    """(bracket, low, high, bracket) of an interval, or of each number of a set."""
    if part.kind == "set":
        return [("[", point, point, "]") for point in part.parts]
    pair = part.kind in ("sequence", "interval") and len(part.parts) == 4
    return [(part.parts[0], *part.parts[2:], part.parts[1])] if pair else [("[", part, part, "]")]


def _end(node: Node) -> float | None:
    if node in (INFINITY, MINUS_INFINITY):
        return math.inf if node == INFINITY else -math.inf
    return _place(node)


def _joined(left: tuple, right: tuple) -> tuple | None:
    """Two intervals as one, of which the left begins first; None where there is a gap between them."""
    a, low, high, b = left
    c, start, end, d = right
    if _end(start) == _end(low) and not same_value(low, start):  # too close to tell which begins first
        return None
    if _end(start) == _end(high):
        meet = (b == "]" or c == "[") and same_value(high, start)
        return (a, low, end, d) if meet else None
    if _end(start) > _end(high):
        return None
    if _end(end) == _end(high):
        return (a, low, high, "]" if "]" in (b, d) else ")") if same_value(high, end) else None
    return (a, low, end, d) if _end(end) > _end(high) else left
