"""Statements about one variable as intervals: 2 < x <= 3, x < 1 or x > 2, x > 0 and x < 1, x != 3."""

from rl_likelihood.grading.tree import Node, symbols

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Node("name", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
_REALS = (Node("name", ("reals",)), Node("name", ("mathbb R",)))


def region(node: Node) -> tuple[str, Node]:
    """(variable, interval or union of intervals) of a statement about one variable; ("", node) of all else."""
    if node in _REALS:
        return "", _interval("(", MINUS_INFINITY, INFINITY, ")")
    if node.kind == "without" and node.parts[0] in _REALS and node.parts[1].kind == "set":
        return "", _except(node.parts[1].parts[0]) if len(node.parts[1].parts) == 1 else node
    found = ("", node)
    if node.kind == "relation" and node.parts[0] == ("in",) and node.parts[1].kind == "name":
        _, inside = region(_REALS[0] if node.parts[2] == Node("name", ("R",)) else node.parts[2])
        return (node.parts[1].parts[0], inside) if inside.kind in ("sequence", "union") else found
    if node.kind == "relation":
        found = _relation(node)
    elif node.kind in ("or", "and"):
        regions = [region(part) for part in node.parts]
        if len({variable for variable, _ in regions}) == 1 and regions[0][0]:
            parts = [part for _, part in regions]
            joined = _either(parts) if node.kind == "or" else _both(parts)
            found = (regions[0][0], joined) if joined is not None else found
    return found


def _interval(opening: str, low: Node, high: Node, closing: str) -> Node:
    return Node("sequence", (opening, closing, low, high))


def _except(value: Node) -> Node:
    parts = _interval("(", MINUS_INFINITY, value, ")"), _interval("(", value, INFINITY, ")")
    return Node("union", parts)


def _either(parts: list[Node]) -> Node | None:
    return Node("union", tuple(parts)) if all(part.kind == "sequence" for part in parts) else None


def _both(parts: list[Node]) -> Node | None:
    """x > 0 and x < 1: of one lower and one upper bound the interval between them."""
    if len(parts) != 2 or any(part.kind != "sequence" for part in parts):
        return None
    low, high = parts if parts[0].parts[3] == INFINITY else parts[::-1]
    if low.parts[3] != INFINITY or high.parts[2] != MINUS_INFINITY:
        return None
    return _interval(low.parts[0], low.parts[2], high.parts[3], high.parts[1])


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
        return variable, _except(others[0])
    if len(sides) > 3 or (len(sides) == 3 and at != 1):
        return "", node
    opening, low = ("[" if signs[0] == "<=" else "(", others[0]) if at else ("(", MINUS_INFINITY)
    high, closing = (others[-1], "]" if signs[-1] == "<=" else ")") if at < len(signs) else (INFINITY, ")")
    return variable, _interval(opening, low, high, closing)
