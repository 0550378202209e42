"""Statements about one variable as intervals: 2 < x <= 3, x < 1 or x > 2, x > 0 and x < 1, x != 3 and x != 4."""

import functools
import math

from rl_likelihood.grading.tokens import Unreadable
from rl_likelihood.grading.tree import Node, symbols
from rl_likelihood.grading.values import exact, real, same_value

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Node("name", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
_REALS = tuple(Node("name", (name,)) for name in ("reals", "mathbb R", "mathbf R"))
_R = Node("name", ("R",))
_SETS = ("set", "union", "sequence", "interval")
_MOST_PAIRS = 1_000  # of intervals


def region(node: Node) -> tuple[str, Node]:
    """(variable, interval or union of intervals) of a statement about one variable; ("", node) of all else."""
    if node in _REALS:
        return "", _LINE
    if node.kind == "without":
        return "", _difference(*node.parts) or node
    if node.kind == "add" and len(node.parts) == 2 and node.parts[0] in _REALS and node.parts[1].kind == "neg":
        return region(Node("without", (node.parts[0], *node.parts[1].parts)))  # R - {0}
    found = ("", node)
    if node.kind == "relation" and node.parts[0] == ("in",) and node.parts[1].kind == "name":
        _, inside = region(_REALS[0] if node.parts[2] == _R else node.parts[2])
        inside = as_interval(inside)
        return (node.parts[1].parts[0], inside) if inside.kind in ("interval", "union") else found
    if node.kind == "relation" and node.parts[0] == ("notin",) and node.parts[1].kind == "name":
        outside = _difference(_LINE, node.parts[2])
        return found if outside is None else (node.parts[1].parts[0], outside)
    if node.kind == "relation":
        found = _relation(node)
    elif node.kind in ("or", "and", "list"):
        regions = [_one_of(part) if node.kind == "or" else region(part) for part in _conditions(node)]
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
    one = len(points) == 1 and points[0].kind != "pm"
    pieces = [("[", points[0], points[0], "]")] if one else _sorted(Node("set", points))
    return None if pieces is None else _node(_complement(pieces))


def _difference(left: Node, right: Node) -> Node | None:
    """R without {2}, [0, 3] without (1, 2). None where it is something else, or nothing is left."""
    line = left in (*_REALS, _R, _LINE)
    _, left = region(left)
    if not (line or left.kind in _SETS) or (right.kind not in _SETS and exact(right) is None):  # ∖{0} reads as a 0
        return None
    whole, taken = [_WHOLE] if line else _sorted(left), _sorted(right)
    if whole is None or taken is None:  # R without {a}
        return _except(*right.parts) if line and right.kind == "set" else None
    left_over = _common(whole, _complement(taken))
    return _node(left_over) if left_over else None


def _one_of(part: Node) -> tuple[str, Node]:
    """A condition beside "or", where x = 1 is the set {1}."""
    if part.kind == "relation" and part.parts[0] == ("=",) and part.parts[1].kind == "name":
        return part.parts[1].parts[0], Node("set", part.parts[2:])
    return region(part)


def _either(parts: list[Node]) -> Node | None:
    pieces = [piece for part in parts for piece in (part.parts if part.kind == "union" else (part,))]
    return Node("union", tuple(pieces)) if all(piece.kind in ("interval", "set") for piece in pieces) else None


def _both(parts: list[Node]) -> Node | None:
    """x > 0 and x < 1: what all have in common. None for nothing: x < 0, x > 1 is meant as "or"."""
    pieces = [_sorted(part) for part in parts]
    if None not in pieces:
        common = functools.reduce(_common, pieces)
        return _node(common) if common else None
    if len(parts) != 2 or any(part.kind != "interval" for part in parts):
        return None
    low, high = parts if parts[0].parts[3] == INFINITY else parts[::-1]  # x > a, x < b
    if low.parts[3] != INFINITY or high.parts[2] != MINUS_INFINITY:
        return None
    return _interval(low.parts[0], low.parts[2], high.parts[3], high.parts[1])


_WHOLE = ("(", MINUS_INFINITY, INFINITY, ")")
_LINE = _interval(*_WHOLE)
_JOINED = {"or": _either, "and": _both, "list": _both}


def _relation(node: Node) -> tuple[str, Node]:
    signs, *sides = node.parts
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(FLIPPED[s] for s in reversed(signs)), sides[::-1]
    if len(sides) == 2 and set(signs) <= {"<", "<="}:
        sides, signs = _without_bars(sides, signs)
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
    first, last = _end(low), _end(high)
    if first is not None and last is not None and first > last:
        return "", node  # 3 < x < -1 is not (3, -1)
    return variable, _interval(opening, low, high, closing)


def _without_bars(sides: list[Node], signs: tuple) -> tuple[list[Node], tuple]:
    """|x| < 2 as -2 < x < 2."""
    bars = sides[0].kind == "call" and sides[0].parts[0] == "abs" and sides[0].parts[1].kind == "name"
    return ([Node("neg", (sides[1],)), sides[0].parts[1], sides[1]], signs * 2) if bars else (sides, signs)


# ---------------------------------------------------------------------------------------------- sorted pieces

Piece = tuple[str, Node, Node, str]  # bracket, low, high, bracket; a point is [x, x]


def merged(node: Node) -> Node:
    """A union of intervals and sets of numbers with its parts joined where they meet: (1, 2) and {2} are (1, 2]."""
    pieces = _sorted(node) if node.kind == "union" else None
    return node if pieces is None else _node(pieces)


def _node(pieces: list[Piece]) -> Node:
    if all(low == high for _, low, high, _ in pieces):
        return Node("set", tuple(low for _, low, _, _ in pieces))
    parts = tuple(Node("set", (low,)) if low == high else _interval(a, low, high, b) for a, low, high, b in pieces)
    return parts[0] if len(parts) == 1 else Node("union", parts)


def _sorted(node: Node) -> list[Piece] | None:
    """The intervals and points of a set of numbers in order, without common points. None where it is no such set."""
    pieces = _pieces(node)
    places = [(_end(low), _end(high)) for _, low, high, _ in pieces]
    if any(None in both or both[0] > both[1] for both in places):
        return None
    if any(low == high and piece[0] + piece[3] != "[]" for (low, high), piece in zip(places, pieces, strict=True)):
        return None  # (1, 1) is empty
    out: list[Piece] = []
    for _, piece in sorted(zip(places, pieces, strict=True), key=lambda pair: (pair[0][0], pair[1][0] == "(")):
        joined = _joined(out[-1], piece) if out else None
        out = [*out[:-1], joined] if joined else [*out, piece]
    return out


def _pieces(node: Node) -> list[Piece]:
    """Of an interval, of each number of a set, of each part of a union."""
    if node.kind in ("set", "union"):
        return [piece for part in node.parts for piece in _pieces(part)]
    if node.kind == "pm":
        return [*_pieces(node.parts[0]), *_pieces(Node("neg", node.parts))]
    pair = node.kind in ("sequence", "interval") and len(node.parts) == 4
    return [(node.parts[0], *node.parts[2:], node.parts[1])] if pair else [("[", node, node, "]")]


def _end(node: Node) -> float | None:
    if node in (INFINITY, MINUS_INFINITY):
        return math.inf if node == INFINITY else -math.inf
    try:
        return real(node)
    except Unreadable:
        return None


def _order(a: Node, b: Node) -> int:
    """-1, 0 or 1: is a below, at or above b?"""
    here, there = _end(a), _end(b)
    if here == there and a != b and not same_value(a, b):
        raise Unreadable("too close to tell")
    return (here > there) - (here < there)


def _complement(pieces: list[Piece]) -> list[Piece]:
    out, bracket, last = [], "(", MINUS_INFINITY
    for opening, low, high, closing in pieces:
        out.append((bracket, last, low, ")" if opening == "[" else "]"))
        bracket, last = "(" if closing == "]" else "[", high
    out.append((bracket, last, INFINITY, ")"))
    return [piece for piece in out if piece[1] != piece[2] or piece[0] + piece[3] == "[]"]


def _common(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """What two sets have in common."""
    if len(left) * len(right) > _MOST_PAIRS:
        raise Unreadable("too many intervals")
    return [piece for a in left for b in right if (piece := _overlap(a, b)) is not None]


def _overlap(p: Piece, q: Piece) -> Piece | None:
    first, last = _order(p[1], q[1]), _order(p[2], q[2])
    opening = min(p[0], q[0]) if first == 0 else p[0] if first > 0 else q[0]  # "(" is the smaller
    closing = min(p[3], q[3]) if last == 0 else p[3] if last < 0 else q[3]
    low, high = p[1] if first > 0 else q[1], p[2] if last < 0 else q[2]
    gap = _order(low, high)
    return None if gap > 0 or (gap == 0 and opening + closing != "[]") else (opening, low, high, closing)


def _joined(left: Piece, right: Piece) -> Piece | None:
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
