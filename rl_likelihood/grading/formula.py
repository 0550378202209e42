"""Reads a formula, LaTeX or plain text, into a tree. `statements` reads what stands around formulas.

Nothing is guessed and nothing is dropped: what no rule reads is Unreadable.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from rl_likelihood.grading.intervals import region
from rl_likelihood.grading.tokens import FUNCTIONS, MATRICES, SYMBOLS, Cursor, Token, Unreadable
from rl_likelihood.grading.tree import Node, call, in_radians, number, over, signed, times

_DEEPEST = 30  # formulas inside formulas
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",)}
_FUNCTION_LETTERS = ("f", "g", "h", "F", "G", "H")  # before a bracket; x(x+1) is a product
# A fraction of whole numbers above 0: \frac34, \frac{3}{4}, {\frac{3}{4}}.
_WHOLE = r"(?:\{ 0*[1-9][0-9]* \}|[1-9])"
_OF_WHOLE_NUMBERS = re.compile(rf"(?P<braces>\{{ )?frac {_WHOLE} ?{_WHOLE}(?(braces) \}})")
_BEGINS = SYMBOLS | {"frac", "binom", "sqrt", "surd", "cbrt", "lfloor", "lceil", "langle", "det", *FUNCTIONS, *MATRICES}
# Of \sin^{-1} x; of others, such as \log^{-1}, it is not read.
_INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
_INVERSE |= {"arcsin": "sin", "arccos": "cos", "arctan": "tan", "ln": "exp", "exp": "ln"}
_PAIRS = {"lfloor": ("floor", "rfloor"), "lceil": ("ceil", "rceil")}


class Formulas(Cursor):
    """The rules of arithmetic. `items` and `item` read a list and an entry of one, in brackets too."""

    items: Callable[[], Node]
    item: Callable[[], Node]

    def __init__(self, given: list[Token]):
        super().__init__(given)
        self.depth = self.bars = 0
        self.label = -1  # the place of a letter that is a function because "=" follows its bracket: P(x) = ...

    def inside(self, rule: Callable[[], Node]) -> Node:
        """What a rule reads, one level deeper; bars outside do not close it."""
        if self.depth >= _DEEPEST:
            raise Unreadable("too deep")
        bars, self.bars, self.depth = self.bars, 0, self.depth + 1
        node = rule()
        self.bars, self.depth = bars, self.depth - 1
        return node

    def sum(self) -> Node:
        sign = self.accept("+", "-", "pm", "mp")
        nodes = [signed(sign, self.product())]
        while sign := self.accept("+", "-", "pm", "mp"):
            nodes.append(signed(sign, self.negated(self.product)))
        if len(nodes) > 1 and self.peek() in ("%", "mod"):
            raise Unreadable("of the last term only, or of the sum")
        return nodes[0] if len(nodes) == 1 else Node("add", tuple(nodes))

    def negated(self, rule: Callable[[], Node]) -> Node:
        """What a rule reads, with or without a minus before it."""
        return Node("neg", (rule(),)) if self.accept("-") else rule()

    def product(self) -> Node:
        node = self.factor()
        while True:
            if self.accept("*"):
                node = times(node, self.negated(self.factor))
            elif self.peek() == "/" and self.token(1).kind != "word":
                self.at += 1
                node = over(node, self.negated(self.factor))
            elif self.begins_factor():
                node = times(node, self.factor())
            else:
                return node

    def begins_factor(self) -> bool:
        """Does the next token go on a product without a sign? Words do not; a number only after a bracket or "!"."""
        token, text = self.token(), self.peek()
        if token.kind == "number":
            return self.tokens[self.at - 1].text in (")", "!")
        if text == "|":
            return not self.bars
        if token.kind == "command":
            return text in _BEGINS
        if token.text in ("C", "F") and self.tokens[self.at - 1].text == "degree":
            return False
        if text == "{":  # 5{1} looks like 51
            return self.token(1).kind != "number"
        return token.kind in ("name", "begin") or text in ("(", "[", "\\{")

    def factor(self) -> Node:
        base = self.mixed() if self.token().kind == "number" else self.atom()
        return self.powers(base)

    def powers(self, base: Node) -> Node:
        read = ""  # the last mark after this base; a power or mark inside its brackets is none
        for _ in range(_DEEPEST + 1):
            if self.accept("^"):
                if read == "^":
                    raise Unreadable("two powers")
                read, base = "^", Node("pow", (base, in_radians(self.exponent())))
            elif self.peek() in ("!", "degree") and (base.kind == "deg" or read == "!"):
                raise Unreadable("two marks")
            elif self.accept("!"):
                read, base = "!", call("factorial", base)
            elif self.accept("degree"):
                base = Node("deg", (base,))
            else:
                return base
        raise Unreadable("too deep")

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
        texts = [t.text if t.kind in ("op", "command", "number") else "" for t in self.tokens[self.at : self.at + 9]]
        if m := _OF_WHOLE_NUMBERS.match(" ".join(texts)):
            self.at += 2 if m["braces"] else 1
            above, below = self.argument(), self.argument()
            self.at += bool(m["braces"])
        elif self.token().kind == "number" and self.token().spaced and self.token(1).text == "/":
            above = self.number()
            self.at += 1
            if self.token().kind != "number":
                raise Unreadable("a mixed number")
            below = self.number()
        else:
            return node
        values = above.parts[0], below.parts[0]
        if any(value.denominator != 1 or value <= 0 for value in values):
            raise Unreadable("two numbers")
        return number(first.value + values[0] / values[1])

    # ---------------------------------------------------------------- atoms

    def atom(self) -> Node:
        token, text = self.token(), self.peek()
        if token.kind in ("name", "based", "word", "run"):
            if token.kind == "word" and self.at and self.tokens[self.at - 1].kind != "op":
                raise Unreadable("a word")
            self.at += 1
            return self.subscripted(token)
        if token.kind == "number":
            return self.number()
        if token.kind == "begin" or text in MATRICES:
            return self.inside(self.matrix)
        if self.accept("interval"):  # ]0, 1[
            return Node("interval", self.inside(self.brackets).parts)
        if self.accept("det"):
            return Node("apply", ("det", self.inside(self.atom)))
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
        name, labels = token.text, self.at - 1 == self.label
        if token.kind in ("word", "based", "run"):
            return Node(token.kind, (name,))
        if self.accept("_"):
            name += "_" + self.subscript()
        while self.accept("'"):
            name += "'"
        for star in ("^*", "^{*}"):
            if "".join(self.token(i).text for i in range(len(star))) == star:
                self.at, name = self.at + len(star), f"{name}*"
        if labels or token.text in _FUNCTION_LETTERS:
            if [self.token(i).text for i in range(6)] == ["^", "{", "-", "1", "}", "("]:
                self.at, name = self.at + 5, f"{name}^-1"
            if self.peek() == "(":
                return self.applied(name)
        return Node("name", (name,))

    def applied(self, name: str) -> Node:
        """f(x), f(1, 2): a function that is not known of its arguments."""
        inside = self.inside(self.brackets)
        arguments = inside.parts[2:] if inside.kind == "sequence" else (inside,)
        return Node("apply", (name, *arguments))

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
        node = self.inside(lambda: self.divided(self.item))
        self.expect("}")
        return node

    def divided(self, rule: Callable[[], Node]) -> Node:
        r"""What a rule reads; a fraction where \over follows, a binomial where \choose does: a + b \over 2."""
        node = rule()
        joint = self.accept("over", "choose")
        if not joint:
            return node
        return Node("div", (node, rule())) if joint == "over" else call("binomial", node, rule())

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
        of_several = name in ("max", "min", "gcd", "lcm")
        if self.peek() in ("(", "{") or (of_several and self.peek() == "\\{"):
            inside = self.inside(self.brackets)
            arguments = (
                inside.parts[2:] if inside.kind == "sequence" else inside.parts if inside.kind == "set" else (inside,)
            )
        else:
            arguments = (self.plain_argument(),)
        if (len(arguments) > 1) != of_several:
            raise Unreadable("the number of arguments")
        if name in _TRIGONOMETRIC:
            arguments = tuple(map(in_radians, arguments))
        if power in (number(-1), Node("neg", (number(1),))):
            if name not in _INVERSE:
                raise Unreadable("an inverse")
            name, power = _INVERSE[name], None
        node = call(name, *base, *arguments)
        return node if power is None else Node("pow", (node, power))

    def plain_argument(self) -> Node:
        node = self.negated(self.factor)
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
        if self.peek() in ("\\{", "{") and self.builds_set():
            return self.built_set()
        if self.peek() == self.token(1).text == "[":
            return self.rows()
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
            node = self.divided(self.items)
            self.expect(closing)
            if node.kind in ("list", "either"):
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

    def builds_set(self) -> bool:
        r"""Does {x | ...}, {x : ...} or {x \in R | ...} begin?"""
        real = 2 * (self.token(2).text == "in" and self.token(3).text in ("mathbb R", "reals", "R"))
        return self.token(1).kind == "name" and self.token(2 + real).text in ("|", ":")

    def built_set(self) -> Node:
        r"""{x | 0 < x < 1} as the interval that its condition is."""
        closing = self.expect("\\{", "{").replace("{", "}")
        self.at += 1
        variable = self.tokens[self.at - 1].text
        self.at += 3 if self.peek() == "in" else 1
        name, node = region(self.items())
        self.expect(closing)
        if name != variable:
            raise Unreadable("a set's condition")
        return node

    def rows(self) -> Node:
        """[[1, 2], [3, 4]], a matrix."""
        rows: list[tuple[Node, ...]] = []
        self.expect("[")
        while True:
            self.expect("[")
            row = self.items()
            self.expect("]")
            rows.append(row.parts if row.kind == "list" else (row,))
            if not self.accept(","):
                break
        self.expect("]")
        return _matrix("matrix", rows)

    def matrix(self) -> Node:
        r"""\begin{pmatrix} ... \end{pmatrix}, or \pmatrix{ ... }."""
        of_tex = self.accept(*MATRICES)
        if of_tex:
            self.expect("{")
        else:
            self.at += 1
        kind = "}" if of_tex else self.tokens[self.at - 1].text
        rows: list[tuple[Node, ...]] = []
        while True:
            row = [self.item()]
            while self.accept("&"):
                row.append(self.item())
            rows.append(tuple(row))
            ended = not self.accept("row")
            if self.token().kind == "end" or (of_tex and self.peek() == kind):
                break
            if ended:
                raise Unreadable("a matrix")
        if self.token().text != kind:
            raise Unreadable("a matrix")
        self.at += 1
        return _matrix("matrix" if of_tex else kind, rows)


def _matrix(kind: str, rows: list[tuple[Node, ...]]) -> Node:
    if len({len(row) for row in rows}) > 1:
        raise Unreadable("a matrix")
    return Node("matrix", (kind, *rows))
