r"""Reads an answer as mathematics, LaTeX or plain text: all of it becomes one tree, or it is Unreadable.

    \frac{3}{4}   3/4   x**2 + 1   (-\infty, 2] \cup [3, 4)   \{1 \pm \sqrt5\}   x = 3, y = 4   2 3/4   5\text{ cm}

Lists, relations and units; the formulas in them are read by `formula`.
"""

import math
import re
from itertools import pairwise

from rl_likelihood.grading import units
from rl_likelihood.grading.formula import Formulas
from rl_likelihood.grading.tokens import Token, Unreadable, tokens
from rl_likelihood.grading.tree import Node, call, in_degrees, number, symbols

RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in", "notin")
_CLOCK = re.compile("(?:[01]?[0-9]|2[0-4])(?::[0-5][0-9]){1,2}(?![0-9.:/])")
_AFTER_A_NUMBER = {"euro": "euro", "pounds": "pound-sterling", "yen": "yen", "rupee": "rupee", "cent": "cent"}  # 5€
_CURRENCIES = {"$": "dollar"} | _AFTER_A_NUMBER
_ONE = r"[A-Za-z]+(?: \^ (?:[23]|- [123]))?"
_LETTERS_AS_UNIT = re.compile(rf"(?:frac {_ONE} {_ONE}|{_ONE}(?: (?:[/*] )?{_ONE})*)")  # N m / s ^ 2


def read(text: str, letters: bool = False) -> Node:
    """The tree of an answer: one item, or a list of several. `letters`: see `tokens`. Raises Unreadable."""
    reader = _Statements(tokens(text, letters))
    node = reader.divided(reader.items)
    if not reader.done():
        raise Unreadable(reader.peek())
    return node


def _equation(node: Node) -> bool:
    return node.kind == "relation" and node.parts[0] == ("=",)


def _is_remainder(node: Node) -> bool:
    return node.parts[:1] == ("mod",)


def _is_clock(text: str) -> bool:
    """Is this a time of the day: 5:30, 5:07, 5:12 p.m.? 2:3 is a ratio, and so is 5:12, which is in lowest terms."""
    time = _CLOCK.match(text)
    if time is None or time.end() < len(text):
        return time is not None
    return any(len(n) > 1 and n[0] == "0" for n in text.split(":")) or math.gcd(*map(int, text.split(":"))) > 1


class _Statements(Formulas):
    def items(self) -> Node:
        """A list, or either of some numbers: 1 or 2. Of relations the words "and" and "or" count: x < 2 or x > 3."""
        out, joints = [self.item()], set()
        while joint := self.accept(",", ";", "and", "or"):
            joints.add(self.accept("and", "or") or joint if joint in ",;" else joint)  # "2, and 3": one separator
            out.append(self.item())
        if len(out) == 1:
            return out[0]
        joints -= {",", ";"}
        relations = [node.kind == "relation" for node in out]
        if not joints or not all(relations):
            return Node("either" if "or" in joints and not any(relations) else "list", tuple(out))
        if all(map(_equation, out)) and (joints == {"and"} or len({node.parts[1] for node in out}) == 1):
            return Node("list", tuple(out))  # x = 1 and y = 2; x = 1 or x = 2
        if len(joints) > 1:
            raise Unreadable("and, or")
        return Node(joints.pop(), tuple(out))

    def item(self) -> Node:
        """A formula, or several with relations between them."""
        if self.labels():
            self.label = self.at
        nodes, signs = [self.ratio()], []
        while sign := self.accept(*RELATIONS):
            signs.append(sign)
            nodes.append(self.ratio())
        if any(map(_is_remainder, nodes)) and any(symbols(side) and side.kind != "name" for side in nodes):
            raise Unreadable("a congruence")
        return Node("relation", (tuple(signs), *nodes)) if signs else nodes[0]

    def ratio(self) -> Node:
        """A formula, or several with colons between them: a ratio or a time of the day."""
        start, nodes = self.at, [self.operand()]
        while self.accept(":"):
            nodes.append(self.operand())
        if len(nodes) == 1:
            return nodes[0]
        clock = _is_clock("".join(token.text for token in self.tokens[start : self.at]))
        return Node("relation", (("clock" if clock else ":",) * (len(nodes) - 1), *nodes))

    def labels(self) -> bool:
        """Do a letter, names or numbers in brackets, and "=" follow?"""
        if self.token().kind != "name" or self.token(1).text != "(":
            return False
        ahead = 1
        while self.token(ahead).text in ("(", ",") and self.token(ahead + 1).kind in ("name", "number"):
            ahead += 2
        return self.token(ahead).text == ")" and self.token(ahead + 1).text == "="

    def operand(self) -> Node:
        """A formula with its unit. Of a number in degrees or with a currency before it, that is the unit."""
        negative = self.peek() == "-" and self.token(1).text in _CURRENCIES
        if negative:
            self.at += 1
        money = self.accept(*_CURRENCIES)
        start = self.at
        node = self.union()
        if not money and self.accept("mod"):
            return call("mod", node, self.factor())
        measure = None if money or negative else self.measure(start, node)
        if measure is not None:
            return measure
        return self.with_unit(Node("neg", (node,)) if negative else node, _CURRENCIES[money] if money else "")

    def measure(self, start: int, node: Node) -> Node | None:
        """10 m, 10 m/s^2: what was read as a product, but may be a number and a unit of letters."""
        minus = self.tokens[start : start + 1] == [Token("op", "-")]
        first, *rest = self.tokens[start + minus : self.at] or [None]
        if self.depth or not rest or first.kind != "number":
            return None
        text = "".join(
            " " * (t.spaced or t.kind != "name" or u.kind != "name") + t.text for u, t in pairwise([first, *rest])
        )
        text = " ".join(text.replace("{", " ").replace("}", " ").split()).replace("mu ", "u")
        letter = text.partition(" ")[0]
        spaced = rest[0].spaced and letter.removeprefix("u") in units.LETTERS
        if not (spaced or letter == "frac") or _LETTERS_AS_UNIT.fullmatch(text) is None:
            return None
        text = re.sub(rf"frac ({_ONE}) ({_ONE})", r"\1 / \2", text)
        after = self.at
        unit = units.canonical(self.unit_words(text.replace(" ^ ", " ^").replace("^- ", "^-")))
        value = number(-first.value if minus else first.value)
        if not unit.known:
            self.at = after
            return None
        return Node("measure", (value, unit.unit, node)) if self.at == after else Node("unit", (value, unit.unit, True))

    def with_unit(self, node: Node, unit: str) -> Node:
        sign = node.kind == "neg"
        inner = node.parts[0] if sign else node
        if (degrees := in_degrees(inner, not self.depth)) is not None:
            unit, inner = "degree", degrees
        if self.peek() == "%" and unit:
            raise Unreadable("two units")
        if self.accept("%"):
            unit = "percent"
        elif not unit and inner.kind == "number" and self.peek() in _AFTER_A_NUMBER:
            unit = _CURRENCIES[self.accept(*_AFTER_A_NUMBER)]
        words = self.unit_words()
        if not words and not unit:
            return node
        if node.kind in ("word", "run", "list"):
            raise Unreadable("words")
        more = units.canonical(f"degree {words}") if unit == "degree" else units.canonical(words)
        more = more if more.known else units.canonical(words)  # "degree Celsius"; "degrees", again
        if unit and more.unit and more.unit.partition(" ")[0] != unit:
            raise Unreadable("two units")
        if more.factor != 1:  # "x million" and "0 million" say nothing that we know
            if inner.kind != "number" or inner.parts[0] == 0:
                raise Unreadable("a multiple of no number")
            inner = Node("mul", (inner, number(more.factor)))
        inner = Node("neg", (inner,)) if sign else inner
        unit = more.unit or unit
        return Node("unit", (inner, unit, more.known or not words)) if unit else inner

    def unit_words(self, begun: str = "") -> str:
        """Words, their powers and slashes after a formula: "cm ^2", "miles / hour", "km / h"; after degrees C and F.

        `begun`: the beginning of the unit, where that was read as letters: the g of g/cm^3.
        """
        out = [begun] if begun else []
        while True:
            token = self.token()
            letter = token.kind == "name" and token.text in units.LETTERS
            if token.kind == "word" or (letter and (out or self.tokens[self.at - 1].text == "degree")):
                out.append(token.text)
                self.at += 1
            elif out and self.peek() in ("/", "*"):
                out.append(self.accept("/", "*"))
            elif out and self.peek() == "^":
                self.at += 1
                braced = self.accept("{")
                minus = self.accept("-") or ""
                power = self.token()
                if power.kind != "number":
                    raise Unreadable("a unit's power")
                self.at += 1
                if braced:
                    self.expect("}")
                out[-1] += f"^{minus}{power.text}"
            else:
                return " ".join(out)

    def union(self) -> Node:
        nodes = [self.sum()]
        while True:
            if self.accept("cup"):
                nodes.append(self.sum())
            elif self.accept("setminus"):
                left = nodes[0] if len(nodes) == 1 else Node("union", tuple(nodes))
                nodes = [Node("without", (left, self.sum()))]
            else:
                return nodes[0] if len(nodes) == 1 else Node("union", tuple(nodes))
