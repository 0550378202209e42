r"""Reads an answer as mathematics, LaTeX or plain text: all of it becomes one tree, or it is Unreadable.

    \frac{3}{4}   3/4   x**2 + 1   (-\infty, 2] \cup [3, 4)   \{1 \pm \sqrt5\}   x = 3, y = 4   2 3/4   5\text{ cm}

Nothing is guessed and nothing is dropped: what no rule reads makes the whole text unreadable.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rl_likelihood.grading import units
from rl_likelihood.grading.tokens import FUNCTIONS, SYMBOLS, Cursor, Token, Unreadable, tokens
from rl_likelihood.grading.tree import Node, call, in_radians, number, over, signed, times

_DEEPEST = 30  # formulas inside formulas
RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in", ":")
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",)}
_CURRENCIES = {"$": "dollar", "euro": "euro", "pounds": "pound-sterling"}
_PAIRS = {"lfloor": ("floor", "rfloor"), "lceil": ("ceil", "rceil")}


def read(text: str) -> Node:
    """The tree of an answer: one item, or a list of several. Raises Unreadable."""
    reader = _Reader(tokens(text))
    node = reader.items()
    if not reader.done():
        raise Unreadable(reader.peek())
    return node


class _Reader(Cursor):
    def __init__(self, given: list[Token]):
        super().__init__(given)
        self.depth = self.bars = 0

    def inside(self, rule: Callable[[], Node]) -> Node:
        """What a rule reads, one level deeper; bars outside do not close it."""
        if self.depth >= _DEEPEST:
            raise Unreadable("too deep")
        bars, self.bars, self.depth = self.bars, 0, self.depth + 1
        node = rule()
        self.bars, self.depth = bars, self.depth - 1
        return node

    # ---------------------------------------------------------------- lists, relations

    def items(self) -> Node:
        out = [self.item()]
        while self.accept(",", ";"):
            self.accept(",")  # "2, and 3": one separator
            out.append(self.item())
        return out[0] if len(out) == 1 else Node("list", tuple(out))

    def item(self) -> Node:
        """A formula, or several with relations between them."""
        nodes, signs = [self.operand()], []
        while sign := self.accept(*RELATIONS):
            signs.append(sign)
            nodes.append(self.operand())
        return Node("relation", (tuple(signs), *nodes)) if signs else nodes[0]

    def operand(self) -> Node:
        """A formula with its unit. Of a number in degrees or with a currency before it, that is the unit."""
        negative = self.peek() == "-" and self.token(1).text in _CURRENCIES
        if negative:
            self.at += 1
        money = self.accept(*_CURRENCIES)
        node = self.union()
        return self.with_unit(Node("neg", (node,)) if negative else node, _CURRENCIES[money] if money else "")

    def with_unit(self, node: Node, unit: str) -> Node:
        sign = node.kind == "neg"
        inner = node.parts[0] if sign else node
        if inner.kind == "deg":
            unit, inner = "degree", inner.parts[0]
        if self.accept("%"):
            unit = "percent"
        words = self.unit_words()
        if not words and not unit:
            return node
        factor, more, _ = units.canonical(words)
        if node.kind in ("word", "list"):
            raise Unreadable("words")
        if unit == "degree" and more in ("C", "F"):
            more = f"degree {more}"
        elif unit and more and more != unit:
            raise Unreadable("two units")
        if factor != 1:  # "x million" and "0 million" say nothing that we know
            if inner.kind != "number" or inner.parts[0] == 0:
                raise Unreadable("a multiple of no number")
            inner = Node("mul", (inner, number(factor)))
        inner = Node("neg", (inner,)) if sign else inner
        unit = more or unit
        return Node("unit", (inner, unit)) if unit else inner

    def unit_words(self) -> str:
        """Words, their powers and slashes after a formula: "cm ^2", "miles / hour"; after degrees also C and F."""
        out: list[str] = []
        while True:
            token = self.token()
            if token.kind == "word":
                out.append(token.text)
                self.at += 1
            elif out and self.peek() == "/" and self.token(1).kind == "word":
                out.append("/")
                self.at += 1
            elif out and self.peek() == "^":
                self.at += 1
                braced = self.accept("{")
                power = self.token()
                if power.kind != "number":
                    raise Unreadable("a unit's power")
                self.at += 1
                if braced:
                    self.expect("}")
                out[-1] += f"^{power.value}"
            elif token.kind == "name" and token.text in "CF" and self.tokens[self.at - 1].text == "degree":
                out.append(token.text)
                self.at += 1
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

    def sum(self) -> Node:
        sign = self.accept("+", "-", "pm", "mp")
        nodes = [signed(sign, self.product())]
        while sign := self.accept("+", "-", "pm", "mp"):
            nodes.append(signed(sign, self.signed_product()))
        return nodes[0] if len(nodes) == 1 else Node("add", tuple(nodes))

    def signed_product(self) -> Node:
        return Node("neg", (self.product(),)) if self.accept("-") else self.product()

    def product(self) -> Node:
        node = self.factor()
        while True:
            if self.accept("*"):
                node = times(node, self.signed_factor())
            elif self.peek() == "/" and self.token(1).kind != "word":
                self.at += 1
                node = over(node, self.signed_factor())
            elif self.begins_factor():
                node = times(node, self.factor())
            else:
                return node

    def signed_factor(self) -> Node:
        return Node("neg", (self.factor(),)) if self.accept("-") else self.factor()

    def begins_factor(self) -> bool:
        """Does the next token go on a product without a sign? Words do not, and a number only after a bracket."""
        token, text = self.token(), self.peek()
        if token.kind == "number":
            return self.tokens[self.at - 1].text == ")"
        if text == "|":
            return not self.bars
        if token.kind == "command":
            known = SYMBOLS | {"frac", "binom", "sqrt", "surd", "cbrt", "lfloor", "lceil", "langle", *FUNCTIONS}
            return text in known
        return token.kind in ("name", "begin") or text in ("(", "[", "{", "\\{")

    def factor(self) -> Node:
        base = self.mixed() if self.token().kind == "number" else self.atom()
        return self.powers(base)

    def powers(self, base: Node) -> Node:
        while True:
            if self.accept("^"):
                if base.kind == "pow":
                    raise Unreadable("two powers")
                base = Node("pow", (base, self.exponent()))
            elif self.peek() in ("!", "degree") and (base.kind == "deg" or base.parts[:1] == ("factorial",)):
                raise Unreadable("two marks")
            elif self.accept("!"):
                base = call("factorial", base)
            elif self.accept("degree"):
                base = Node("deg", (base,))
            else:
                return base

    def exponent(self) -> Node:
        if self.peek() == "{":
            return self.group()
        if self.accept("-"):
            return Node("neg", (self.inside(self.exponent),))
        base = self.number() if self.token().kind == "number" else self.inside(self.atom)
        return Node("pow", (base, self.inside(self.exponent))) if self.accept("^") else base

    def number(self) -> Node:
        value = self.token().value
        assert value is not None
        self.at += 1
        return number(value)

    def mixed(self) -> Node:
        r"""A number, and with a fraction of whole numbers after it their sum: 2\frac34, 2 3/4."""
        first = self.token()
        node = self.number()
        if first.value.denominator != 1 or not first.text.isdigit():
            return node
        start, above, below = self.at, None, None
        if self.accept("frac"):
            above, below = self.argument(), self.argument()
        elif self.token().kind == "number" and self.token().spaced and self.token(1).text == "/":
            above = self.number()
            self.at += 1
            if self.token().kind != "number":
                raise Unreadable("a mixed number")
            below = self.number()
        parts = [p.parts[0] for p in (above, below) if p is not None and p.kind == "number"]
        if len(parts) == 2 and all(p.denominator == 1 for p in parts) and parts[0] > 0 and parts[1] > 0:
            return number(first.value + parts[0] / parts[1])
        self.at = start  # a product, or (two numbers) nothing
        return node

    # ---------------------------------------------------------------- atoms

    def atom(self) -> Node:
        token, text = self.token(), self.peek()
        if token.kind in ("name", "based", "word"):
            if token.kind == "word" and self.at and self.tokens[self.at - 1].kind != "op":
                raise Unreadable("a word")
            self.at += 1
            return self.subscripted(token)
        if token.kind == "number":
            return self.number()
        if token.kind == "begin":
            return self.inside(self.matrix)
        if text in SYMBOLS:
            self.at += 1
            return self.subscripted(token)
        if text in ("frac", "binom", "sqrt", "surd", "cbrt", *FUNCTIONS):
            return self.inside(self.command)
        if text == "|":
            return self.absolute()
        if text in ("(", "[", "langle", "{", "\\{", *_PAIRS):
            return self.inside(self.brackets)
        raise Unreadable(text)

    def subscripted(self, token: Token) -> Node:
        """A symbol with its subscript and primes as one name."""
        name = token.text
        if token.kind in ("word", "based"):
            return Node(token.kind, (name,))
        if self.accept("_"):
            name += "_" + self.subscript()
        while self.accept("'"):
            name += "'"
        return Node("name", (name,))

    def subscript(self) -> str:
        if not self.accept("{"):
            if self.done():
                raise Unreadable("a subscript")
            self.at += 1
            return self.tokens[self.at - 1].text
        out = ""
        while not self.accept("}"):
            if self.done():
                raise Unreadable("a subscript")
            out += self.token().text
            self.at += 1
        return out

    def group(self) -> Node:
        self.expect("{")
        node = self.inside(self.item)
        self.expect("}")
        return node

    def argument(self) -> Node:
        r"""{...}, or one token; of a number one digit: \frac12 is a half."""
        if self.peek() == "{":
            return self.group()
        token = self.token()
        if token.kind != "number":
            return self.inside(self.atom)
        digits = token.text
        if not digits.isdigit():
            raise Unreadable("a number without braces")
        if len(digits) > 1:
            self.tokens[self.at] = Token("number", digits[1:], Fraction(int(digits[1:])))
        else:
            self.at += 1
        return number(int(digits[0]))

    def command(self) -> Node:
        self.at += 1
        name = self.tokens[self.at - 1].text
        if name == "frac":
            return Node("div", (self.argument(), self.argument()))
        if name == "binom":
            return call("binomial", self.argument(), self.argument())
        if name in ("sqrt", "surd", "cbrt"):
            return self.root(name)
        return self.function(name)

    def root(self, name: str) -> Node:
        index = number(3 if name == "cbrt" else 2)
        if self.accept("["):
            index = self.inside(self.sum)
            self.expect("]")
        whole = name != "sqrt" and self.token().kind == "number"
        return call("root", self.number() if whole else self.argument(), index)

    def function(self, name: str) -> Node:
        r"""\sin x, \sin^2 3x, \log_2 (x+1), \max(a, b). Without brackets the argument is the product that follows."""
        base = [self.argument()] if name == "log" and self.accept("_") else []
        power = self.exponent() if self.accept("^") else None
        if self.peek() in ("(", "{"):
            inside = self.inside(self.brackets)
            arguments = (
                inside.parts[2:] if inside.kind == "sequence" else inside.parts if inside.kind == "set" else (inside,)
            )
        else:
            arguments = (self.plain_argument(),)
        if (len(arguments) > 1) != (name in ("max", "min", "gcd", "lcm")):
            raise Unreadable("the number of arguments")
        if name in _TRIGONOMETRIC:
            arguments = tuple(map(in_radians, arguments))
            if power == number(-1) or power == Node("neg", (number(1),)):
                name, power = f"arc{name}", None
        node = call(name, *base, *arguments)
        return node if power is None else Node("pow", (node, power))

    def plain_argument(self) -> Node:
        node = Node("neg", (self.factor(),)) if self.accept("-") else self.factor()
        while self.begins_factor() and self.peek() not in (*FUNCTIONS, "(", "["):
            node = times(node, self.factor())
        return node

    def absolute(self) -> Node:
        self.expect("|")
        if self.depth >= _DEEPEST:
            raise Unreadable("too deep")
        self.bars, self.depth = self.bars + 1, self.depth + 1
        node = self.sum()
        self.expect("|")
        self.bars, self.depth = self.bars - 1, self.depth - 1
        return call("abs", node)

    def brackets(self) -> Node:
        """(x), a group; (1, 2) and [1, 2), sequences; {1, 2}, a set; |_x_|."""
        opening = self.expect("(", "[", "langle", "{", "\\{", *_PAIRS)
        if opening in _PAIRS:
            name, closing = _PAIRS[opening]
            node = self.sum()
            self.expect(closing)
            return call(name, node)
        if opening in ("{", "\\{"):
            closing = opening.replace("{", "}")
            if opening == "\\{" and self.accept(closing):
                return Node("name", ("emptyset",))
            node = self.items()
            self.expect(closing)
            if node.kind == "list":
                return Node("set", node.parts)
            return Node("set", (node,)) if opening == "\\{" else node
        node = self.items()
        closing = self.expect(*_CLOSING[opening])
        if node.kind == "list":
            shown = ("(", ")") if opening == "langle" else (opening, closing)
            return Node("sequence", (*shown, *node.parts))
        if closing != _CLOSING[opening][0]:
            raise Unreadable("brackets that do not match")
        return node

    def matrix(self) -> Node:
        self.at += 1
        kind = self.tokens[self.at - 1].text
        rows: list[tuple[Node, ...]] = []
        while True:
            row = [self.item()]
            while self.accept("&"):
                row.append(self.item())
            rows.append(tuple(row))
            ended = not self.accept("row")
            if self.token().kind == "end":
                break
            if ended:
                raise Unreadable("a matrix")
        if self.token().text != kind or len({len(row) for row in rows}) > 1:
            raise Unreadable("a matrix")
        self.at += 1
        return Node("matrix", (kind, *rows))
