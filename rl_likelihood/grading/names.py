"""What stands before "=" in an answer, x = 5, f(x) = 5, AB = 5, area = 5, and the value without it.

Known names are letters, unknown functions of something, segments and angles (capitals), and words of `_WORDS`. A
subscript is a number, a letter, points or a word of `_SUBSCRIPTS`. An
answer, not a reference, may also name a sum or quotient of such: a + b = 10. Everything else says something of its own.
"""

import re

from rl_likelihood.grading.intervals import as_interval
from rl_likelihood.grading.tokens import is_variable
from rl_likelihood.grading.tree import CONSTANTS, Node, symbols

_WORDS = """
a an the of is are final correct required desired total answer value result solution solutions expression area perimeter
volume surface length width height depth base side radius diameter circumference angle degree measure slope distance
speed time rate cost price amount number count probability sum product difference quotient remainder ratio fraction
median mean average mode range minimum maximum min max variance domain age weight mass
triangle rectangle square circle cube sphere cylinder cone region polygon
"""
KNOWN = frozenset(_WORDS.split())
_SUBSCRIPTS = frozenset({"max", "min", "total", "avg", "net", "in", "out", "eff", "rms", "tot", "opt", "new", "old"})
_SPHERICAL = ["rho", "theta", "phi"]
_POINTS = "[A-MO-Z]{1,4}"  # NO and NOT, with an N, are words
_PLAIN_SUBSCRIPT = re.compile(
    rf"[0-9,]*[A-Za-z]?[0-9,]*|[a-z](?:,[a-z])+|[i-n]{{2}}|[a-z][+-][0-9]+|(?:triangle|angle)?{_POINTS}"
)


def without_names(reference: Node, answer: Node) -> tuple[Node, Node]:
    """Both without the "x =" that only one of them has."""
    if not _relations(answer):
        return _value(reference, answers=False), answer
    if not _relations(reference):
        return reference, _value(answer, answers=True)
    return _each_named(reference), _each_named(answer)


def _relations(node: Node) -> bool:
    statement = node.kind == "relation" and not is_ratio(node)
    return statement or node.kind in ("or", "and") or (node.kind == "list" and any(map(_relations, node.parts)))


def is_ratio(node: Node) -> bool:
    """2:3, or a time of the day."""
    return node.kind == "relation" and node.parts[0][0] in (":", "clock")


def quotient(node: Node, other: Node) -> Node:
    """2:3 beside a number as 2/3."""
    ratio = node.kind == "relation" and node.parts[0] == (":",) and other.kind in ("number", "div")
    return Node("div", node.parts[1:]) if ratio else node


def _each_named(node: Node) -> Node:
    """(x, y) = (1, 2) as the list x = 1, y = 2."""
    if node.kind != "relation" or node.parts[0] != ("=",):
        return node
    names, values = node.parts[1:]
    if not all(side.kind == "sequence" and side.parts[:2] == ("(", ")") for side in (names, values)):
        return node
    if len(names.parts) != len(values.parts) or not _is_name(names, answers=False):
        return node
    pairs = zip(names.parts[2:], values.parts[2:], strict=True)
    return Node("list", tuple(Node("relation", (("=",), *pair)) for pair in pairs))


def _value(node: Node, answers: bool) -> Node:
    """What x = 5 or a list of such says; of different names, x = 1, y = 2, the tuple in the order of the alphabet."""
    if node.kind != "list":
        return _named_value(node) if _names(node, answers) is not None else node
    first, *others = node.parts
    if not any(map(_relations, others)) and _names(first, answers) is not None:  # x = 1, 2
        return Node("set", (_named_value(first), *others))
    names = [_names(part, answers) for part in node.parts]
    if None in names:
        return node
    values = tuple(map(_named_value, node.parts))
    if len(set(names)) == 1:  # x = 1 or x = 2
        return Node("set", values)
    if len(set(names)) < len(names) or any(value.kind in ("list", "sequence") for value in values):
        return node
    order = _SPHERICAL if set(names) == set(_SPHERICAL) else sorted(names)
    values = tuple(values[names.index(name)] for name in order)
    if len({name.partition("_")[0] for name in names}) == 1:  # x_1 = 1, x_2 = 2
        return Node("list", values)
    return Node("sequence", ("(", ")", *values))


def _named_value(node: Node) -> Node:
    """The value of a name: what follows "=", or stands before it in 5 = x."""
    signs, left, right = node.parts
    if signs == ("in",):
        return as_interval(right)
    return left if right.kind == "name" and left.kind not in ("word", "run") and not symbols(left) else right


def says_value(node: Node) -> bool:
    """Is it a name and its value, x = 5, that has no symbols?"""
    return _names(node, answers=False) is not None and not symbols(_named_value(node))


def _names(node: Node, answers: bool) -> str | None:
    """The name of x = 5 or of x in [1, 2], which does not occur in its value."""
    if node.kind != "relation" or node.parts[0] not in (("=",), ("in",)):
        return None
    value = _named_value(node)
    label = node.parts[2] if value is node.parts[1] else node.parts[1]  # 5 = x
    of_ratio = _is_ratio_of_names(label) and label.parts[0] == value.parts[0]  # a:b = 2:3
    known = _is_name(label, answers) or (answers and _is_sum(label)) or of_ratio
    if node.parts[0] == ("in",) and value.kind not in ("interval", "set", "union", "without"):
        return None
    if not known or (label.kind != "apply" and symbols(label) & symbols(value)):
        return None
    return label.parts[0] if label.kind == "name" else repr(label)


def _is_name(node: Node, answers: bool) -> bool:
    """x, x_1, f(x), (x, y), AB, angle ABC, |AB|, the area."""
    match node.kind:
        case "name":
            return is_letter(node.parts[0], answers)
        case "apply":
            arguments = (part.parts[0] for part in node.parts[1:] if part.kind == "name")
            if not all(part.kind in ("name", "number") for part in node.parts[1:]):
                return False
            return not answers or (node.parts[0] not in CONSTANTS and all(map(_plain, (node.parts[0], *arguments))))
        case "word":
            return set(node.parts[0].lower().split()) <= KNOWN
        case "sequence":
            names = [
                part.parts[0] for part in node.parts[2:] if part.kind == "name" and is_letter(part.parts[0], answers)
            ]
            if answers and names not in (sorted(names), _SPHERICAL):  # (y, x) = (1, 2)
                return False
            return node.parts[:2] == ("(", ")") and len(set(names)) == len(node.parts) - 2
        case "mul":
            return _is_figure(node.parts)
        case "call":
            return node.parts[0] == "abs" and node.parts[1].kind == "mul" and _is_figure(node.parts[1].parts)
    return False


def is_letter(name: str, answers: bool) -> bool:
    """A letter; in an answer one without words in it or a value of its own: pi = 5 is false."""
    return is_variable(name) and (not answers or (_plain(name) and name.removesuffix("_") not in CONSTANTS))


def _plain(name: str) -> bool:
    """Is a symbol without words in its subscript or under its bar?"""
    marked, _, subscript = name.removesuffix("^-1").rstrip("'*").partition("_")
    mark, _, letter = marked.rpartition(" ")
    bare = not mark or len(letter) == 1 or re.fullmatch(_POINTS, letter) is not None
    return bare and (subscript in _SUBSCRIPTS or _PLAIN_SUBSCRIPT.fullmatch(subscript) is not None)


def _is_figure(factors: tuple[Node, ...]) -> bool:
    """Two points, or an angle or a triangle and its points. NO, with an N, is a word."""
    letters = [part.parts[0] if part.kind == "name" else "" for part in factors]
    if letters[0] in ("angle", "triangle") or letters[:2] == ["m", "angle"]:
        letters = letters[letters[0] == "m" :]
        return len(letters) in (2, 4) and all(len(c) == 1 and c.isupper() for c in letters[1:])
    points = [c.rstrip("'") for c in letters]
    return len(points) == 2 and "N" not in points and all(len(c) == 1 and c.isupper() for c in points)


def _is_ratio_of_names(node: Node) -> bool:
    """a:b, two letters in the order of the alphabet: b:a = 2:3 says that a:b is 3:2."""
    if not is_ratio(node) or not all(part.kind == "name" and _is_name(part, True) for part in node.parts[1:]):
        return False
    names = [part.parts[0] for part in node.parts[1:]]
    return names == sorted(set(names))


def _is_sum(node: Node) -> bool:
    """a + b, x - y, f(1) + f(2), AB/CD: different names, two or more, and no number."""
    if node.kind not in ("add", "div"):
        return False
    terms = [part.parts[0] if part.kind == "neg" else part for part in node.parts]
    simple = all(part.kind in ("name", "apply", "mul", "call") and _is_name(part, True) for part in terms)
    return simple and len(set(terms)) == len(terms) and node.parts[0].kind != "neg"
