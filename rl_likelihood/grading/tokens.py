r"""Cuts a formula, LaTeX or plain text, into tokens. Every character becomes part of a token or is refused.

Numbers are read whole: thousands (58,500  58{,}500  58\,500  58 500), repeating decimals (0.\overline{3}  0.(3)
0.333...), powers of ten (2.5e-3), other bases (2516_8).
"""

import re
from fractions import Fraction
from typing import NamedTuple

from rl_likelihood.grading.units import SHORT_WORDS, UNITS


class Unreadable(Exception):
    """Some part of the text is not mathematics as it is known here."""


class Token(NamedTuple):
    """`kind`: number, name (one symbol), run (letters alone: a word or a product), word, command, begin, end, op.
    `text`: one spelling of it."""

    kind: str
    text: str
    value: Fraction | None = None
    spaced: bool = False  # white space before it


# Words that are commands in plain text.
_PLAIN = {
    "sqrt": "surd", "cbrt": "cbrt", "inf": "infty", "infinity": "infty", "oo": "infty", "Infinity": "infty",
    "union": "cup", "arcsin": "arcsin", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
}  # fmt: skip
FUNCTIONS = """sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln lg log exp abs floor ceil max min gcd
    lcm""".split()
_GREEK = "alpha beta gamma delta epsilon theta lambda mu pi rho sigma tau phi omega".split()
_PLAIN |= {name: name for name in (*FUNCTIONS, *_GREEK)}
_LETTERS = set(
    """pi imath alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma
    tau upsilon phi varphi chi psi omega ell Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar""".split()
)
SYMBOLS = {*_LETTERS, "infty", "emptyset", "ldots", "reals", "angle", "triangle", "top"}
_DECORATED = ("mathbf", "boldsymbol", "bm", "vec", "hat", "mathcal", "overrightarrow", "overline")
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "bar": "overline",
    "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=",
    "lt": "<", "gt": ">", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|", "Vert": "||",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "ast": "*", "cdot": "*", "times": "*", "div": "/", "colon": ":", "textdollar": "$", "degrees": "degree",
    "textdegree": "degree", "varnothing": "emptyset", "backslash": "setminus", "bmod": "mod",
    "nicefrac": "frac", "sfrac": "frac",
    "lor": "or", "vee": "or", "land": "and", "wedge": "and", "varphi": "phi", "varepsilon": "epsilon",
}  # fmt: skip
_IGNORED = {
    "left", "right", "displaystyle", "textstyle", "limits", "nolimits", "quad", "qquad", "thinspace", "medspace",
    "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl", "Biggr", "enspace",
    "thickspace", "negthinspace", "middle", "underline", "bf", "rm", "it", "tiny", "scriptsize", "footnotesize",
    "small", "normalsize", "hline", "large", "Large", "LARGE", "huge", "Huge",
}  # fmt: skip
MATRICES = ("pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "matrix")
_TEXTS = ("text", "textbf", "textit", "textrm", "textnormal", "textsf", "mbox", "hbox")
# Where letters of another shape are the same letters; \mathbf{i} stays, a vector's name.
_FONTS = ("mathrm", "mathit", "mathnormal", "operatorname", "mathsf")

# One separator for all groups of a number: {,}  ,\!  \,  a space; a bare comma outside of brackets.
_GROUPS = (
    r"(?!0)[0-9]{1,3}(?P<sep>\{\\?,\}|\\text\{,\}|\s*,\s*\\!\s*|\\[,;: ]\s*|~|[ ]%s)"
    r"[0-9]{3}(?:(?P=sep)[0-9]{3})*(?![0-9])"
)
_THOUSANDS = {
    bare: re.compile(_GROUPS % ("|," if bare else "") + (r"(?!,[0-9])" if bare else "")) for bare in (True, False)
}
_DIGITS = re.compile(r"[0-9]+|(?=\.[0-9\\(])")
_DECIMALS = re.compile(r"\.(?P<digits>[0-9]*)")
_BELOW = re.compile(r"\s*/\s*(?P<below>[0-9]{1,9})(?![0-9])")
_REPEAT = re.compile(
    r"\s*\\(?:overline|bar)\s*(?:\{\s*(?P<over>[0-9]+)\s*\}|(?P<one>[0-9]))"
    r"|\((?P<brackets>[0-9]+)\)(?![0-9A-Za-z(\\^])"
    r"|\s*\\dot\s*(?:\{(?P<dot>[0-9])\}|(?P<dot1>[0-9]))(?:(?P<mid>[0-9]*)\s*\\dot\s*(?:\{(?P<last>[0-9])\}|(?P<last1>[0-9])))?"
)
_ELLIPSIS = re.compile(r"\s*(?:\.\.\.|\\[lc]?dots(?![A-Za-z]))")
_CYCLE = re.compile(r"(?P<block>[0-9]{1,12}?)(?P=block)+$")
_EXPONENT = re.compile(r"[eE](?P<power>[-+]?[0-9]{1,4})(?![0-9A-Za-z])")
_BASE = re.compile(r"(?:\s*_\s*|\s+base\s+)(?:\{\s*(?P<group>[0-9]{1,3})\s*\}|(?P<bare>[0-9]{1,3}))")
_PRIME = re.compile(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![A-Za-z]))")
_POWER = re.compile(r"\^\{(-?[0-9]+)\}")
# The base of a logarithm in plain text is a whole number: log10(5), log_12(5); \log_12 5 has base 1.
_LOGARITHM = re.compile(r"(?<![\\A-Za-z])log(?:_(?=[0-9])|(?=[0-9]+\())(?P<base>[0-9]+)")
_BRACKETED = re.compile(
    r"(?<![\w)])(?:\\left\s*)?\(\s*(?P<digits>[0-9]+(?:\.[0-9]+)?)\s*(?:\\right\s*)?\)(?=\s*_\s*\{?\s*[0-9])"
)
# ]0, 1[ is (0, 1).
_OUTER = r"(?<!sqrt)(?<!surd)\["
_FRENCH = re.compile(
    rf"(?P<opening>(?<![\w)}}\]])\]|(?<=\\left)\s*\]|{_OUTER})(?P<inside>[^\[\],;()]*[^\[\],;()\s]\s*[,;][^\[\],;()]*)"
    rf"(?P<closing>\]|{_OUTER})"
)
# Names of functions and constants inside a run of letters, and single letters.
_SPLIT = re.compile("|".join(sorted(_PLAIN, key=len, reverse=True)) + "|[A-Za-z]")
# After a unit: a power or none, then the end, a word, or a sign that begins no argument.
_NO_ARGUMENT = re.compile(r"(?:\^ (?:\{ )?-? ?[0-9]+(?: \})? ?)?(?:$|word|[]),;}/*%]|and|or)")
_COLOURS = "black|blue|brown|cyan|gray|green|lime|magenta|olive|orange|pink|purple|red|teal|violet|yellow"

_SCANNER = re.compile(
    r"(?P<row>\\\\\*?(?:\s*\[\s*[0-9.]+\s*(?:pt|em|ex|mm|cm)\s*\])?|\\(?:cr|newline|tabularnewline)(?![A-Za-z]))"
    r"|(?P<space>\s+|\\[!,;:> ]|(?<=[^~])~(?!~)|\\left\s*\.|\\right\s*\."
    rf"|\\hspace\*?\s*\{{\s*-?[0-9.]+\s*[a-z]{{2}}\s*\}}|\\(?:text)?color\s*\{{\s*(?:{_COLOURS})\s*\}})"
    r"|\\(?P<edge>begin|end)\s*\{\s*(?P<env>[A-Za-z]*matrix|array)\*?\s*\}(?:\s*\{[lcr| ]+\})?"
    r"|\\(?:text|mathrm)\s*\{\s*(?P<ohms>[kM])\s*(?:\}\s*\\Omega(?![A-Za-z])|\\Omega\s*\})"
    rf"|\\(?:{'|'.join(_TEXTS)})\s*\{{(?P<text>(?:[^{{}}]|\^\{{-?[0-9]+\}})*)\}}"
    rf"|(?:\\(?P<font>{'|'.join(_FONTS)})\s*\{{|\{{\s*\\(?P<upright>rm)(?![A-Za-z]))\s*"
    r"(?P<letters>(?:[^{}\\]|\\[,;:! ]|\\cdot(?![A-Za-z])|\^\{-?[0-9]+\})*)\}"
    r"|\\mu\s*\\(?:text|mathrm)\s*\{\s*(?P<micro>[smgFHAVW])\s*\}"
    r"|\\(?P<bold>mathbf|boldsymbol|bm|vec|hat|mathbb|mathcal|overrightarrow|overline|bar)\s*"
    r"(?:\{\s*(?P<bolded>[A-Za-z]{1,4})\s*\}|\s(?P<bolded1>[A-Za-z])(?![A-Za-z]))"
    r"|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|(?<=[0-9]\^)o(?![A-Za-z]))(?P<degree>)"
    r"|\\(?P<command>[A-Za-z]+)|(?P<dots>\.\.\.)(?!\.)"
    r"|\\(?P<escaped>[{}$%&#|])"
    r"|(?P<clock>[ap]\.\s?m(?![A-Za-z])\.?)"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<op>\*\*|<=|>=|!=|=|[-+*/^_(){}\[\]|,;:<>!&%'$])"
)


def tokens(text: str, letters: bool = False) -> list[Token]:
    """The tokens of a formula. Raises Unreadable for characters that belong to none.

    `letters`: reads mg in 2mg as a product and no unit, and sinx as a function of x and no word.
    """
    text = _PRIME.sub("'", text)
    text = _FRENCH.sub(_round, _BRACKETED.sub(r"\g<digits>", _LOGARITHM.sub(r"log_{\g<base>}", text)))
    out: list[Token] = []
    brackets: list[bool] = []  # for each open bracket: is a comma in it one between entries?
    at, spaced = 0, False
    while at < len(text):
        if text[at] in "0123456789." and (number := _number(text, at, not (brackets and brackets[-1]))):
            token, at = number
            out.append(token._replace(spaced=spaced))
            spaced = False
            continue
        m = _SCANNER.match(text, at)
        if m is None:
            raise Unreadable(text[at])
        at = m.end()
        if m["space"] is not None:
            spaced = True
            continue
        new = _word(m, out, spaced, letters) if m["run"] else _token(m)
        if new:
            _bracket(new[0].text, out, brackets)
            out += [new[0]._replace(spaced=spaced), *new[1:]]
            spaced = False
            if m["run"] in UNITS and new[0].kind == "word" and re.match(r"\.(?:\s*[A-Za-z]|$)", text[at:]):
                at += 1  # sq. in.
    return [_measured(token, i, out) for i, token in enumerate(out)]


def _round(m: re.Match[str]) -> str:
    if m["opening"] == "[" and m["closing"] == "]":
        return m[0]
    opening = "(" if "]" in m["opening"] else "["
    return rf"\interval{opening}" + m["inside"] + (")" if m["closing"] == "[" else "]")


def _measured(token: Token, at: int, given: list[Token]) -> Token:
    """12 min, 3 m/sec^2: after a number, a function without an argument that is also a unit is the unit."""
    if token.text not in UNITS.intersection(FUNCTIONS) or token.kind != "command" or not at:
        return token
    before, after = given[at - 1], [t.text if t.kind in ("op", "number") else t.kind for t in given[at + 1 : at + 6]]
    if before.kind not in ("number", "word") and before.text not in (")", "}", "/"):
        return token
    ends = _NO_ARGUMENT.match(" ".join(after))
    return token._replace(kind="word") if ends else token


def is_variable(name: str) -> bool:
    """A letter, with a mark, subscript or primes or not: what can stand for a number. Infinity and R cannot."""
    mark, _, letters = name.partition(" ")
    bare = name.partition("_")[0].rstrip("'*")
    return (mark in _DECORATED and bool(letters)) or bare in _LETTERS or (len(bare) == 1 and bare.isalpha())


def _bracket(text: str, before: list[Token], brackets: list[bool]) -> None:
    if text in ("(", "[", r"\{"):
        brackets.append(True)
    elif text == "{":  # an argument's, or a set's
        last = before[-1] if before else None
        argument = last is not None and (last.kind in ("command", "name") or last.text in ("}", "^", "_", "]"))
        brackets.append(not argument)
    elif text in (")", "]", r"\}", "}") and brackets:
        brackets.pop()


def _number(text: str, at: int, bare_commas: bool) -> tuple[Token, int] | None:
    """The number at a place of the text and where it ends; None for a full stop that begins none."""
    listed = re.match("[0-9],", text[max(at - 2, 0) : at]) is not None  # the 2 of 1,2,345
    groups = None if text[at - 1 : at] == "_" else _THOUSANDS[bare_commas and not listed].match(text, at)
    if groups and (below := _BELOW.match(text, groups.end())) and int(groups[0][-3:]) < int(below["below"]):
        groups = groups if len(groups[0].split()) != 2 else None  # 2 100/101, a mixed number
    m = groups or _DIGITS.match(text, at)
    if m is None:
        return None
    whole, at = re.sub(r"[^0-9]", "", m[0]), m.end()
    decimals = repeating = ""
    exact = True
    if (m := _DECIMALS.match(text, at)) is not None:
        digits, end = m["digits"], m.end()
        repeat, dots = _REPEAT.match(text, end), _ELLIPSIS.match(text, end) if digits else None
        if not digits and repeat is None:
            raise Unreadable("a full stop")
        decimals, at = digits, end
        if dots is not None:
            cycle = _CYCLE.search(digits)
            if cycle is None or len(cycle[0]) < 3:
                raise Unreadable("digits without an end")
            decimals, repeating, at = digits[: cycle.start()], cycle["block"], dots.end()
        elif repeat is not None:
            repeating, at = _repeated(repeat), repeat.end()
        exact = not repeating
    value = Fraction(int(whole or "0"))
    if decimals:
        value += Fraction(int(decimals), 10 ** len(decimals))
    if repeating:
        value += Fraction(int(repeating), 10 ** len(decimals) * (10 ** len(repeating) - 1))
    digits = whole + (f".{decimals}({repeating})" if decimals or repeating else "")
    if exact and (m := _EXPONENT.match(text, at)) is not None:
        value, at, digits = value * Fraction(10) ** int(m["power"]), m.end(), f"{digits}e{m['power']}"
    if exact and (m := _BASE.match(text, at)) is not None:
        base = int(m["group"] or m["bare"])
        return Token("number", digits, value) if base == 10 else Token("based", f"{digits}_{base}"), m.end()
    return Token("number", digits, value), at


def _repeated(m: re.Match[str]) -> str:
    first = m["dot"] or m["dot1"]
    if first is not None:
        return first + (m["mid"] or "") + (m["last"] or m["last1"] or "")
    return m["over"] or m["one"] or m["brackets"]


def _token(m: re.Match[str]) -> list[Token]:
    if m["row"]:
        return [Token("op", "row")]
    if m["edge"]:
        return [Token(m["edge"], "matrix" if m["env"] in ("array", *MATRICES) else m["env"])]
    if m["text"] is not None:
        return words(m["text"])
    if m["letters"] is not None:
        letters = re.sub(r"\\[,;:! ]", " ", re.sub("[{}]", "", m["letters"].replace(r"\cdot", "*")))
        return _letters(letters.strip(), m["font"] == "mathrm" or bool(m["upright"]))
    if m["micro"] or m["ohms"]:
        return [Token("word", "u" + m["micro"] if m["micro"] else m["ohms"] + "Omega")]
    if m["bold"]:
        return [Token("name", f"{_SAME.get(m['bold'], m['bold'])} {m['bolded'] or m['bolded1']}")]
    if m["degree"] is not None:
        return [Token("op", "degree")]
    if m["command"]:
        if m["command"] in _IGNORED:
            return []
        name = _SAME.get(m["command"], m["command"])
        return [Token("command" if name.isalpha() else "op", name)]
    if m["dots"]:
        return [Token("command", "ldots")]
    if m["clock"]:
        return [Token("word", m["clock"].replace(" ", "").lower())]
    if m["escaped"]:
        return [
            Token("op", m["escaped"] if m["escaped"] in "%$" else "||" if m["escaped"] == "|" else "\\" + m["escaped"])
        ]
    return [Token("op", {"**": "^"}.get(m["op"], m["op"]))]


def words(text: str) -> list[Token]:
    """The content of \\text{}: one token of kind word; nothing for white space alone."""
    text = _POWER.sub(r"^\1", text.replace(r"^\circ", "degree "))
    text = " ".join(text.replace("~", " ").replace("\\ ", " ").split())
    if text.strip(" .,") in ("and", "or"):
        return [Token("op", text.strip(" .,"))]
    if text in (",", "to"):  # 2 to 3 is 2:3
        return [Token("op", ":" if text == "to" else ",")]
    if text == "mod" or (text in _PLAIN and text not in (*UNITS, "max", "min")):  # \\text{arctan}
        return [Token("command", _PLAIN.get(text, text))]
    return [Token("word", text)] if text else []


def _letters(text: str, upright: bool) -> list[Token]:
    """\\mathrm{e} is e, \\mathrm{cm} a word, \\operatorname{lcm} a function."""
    if len(text) == 1 and text.isalpha():
        return [Token("word" if upright and text in "mgsLNJWVK" else "name", text)]
    if text in _PLAIN:
        return [Token("command", _PLAIN[text])]
    return words(text)


def _word(m: re.Match[str], before: list[Token], spaced: bool, letters: bool) -> list[Token]:
    """A run of letters: a function or constant, a conjunction, a unit, a word, or a product of single symbols."""
    run, text = m["run"], m.string
    if run in ("and", "or", "to"):
        return [Token("op", ":" if run == "to" else run)]
    if run == "U" and before and before[-1].text in (")", "]", r"\}"):  # (-1,0) U (2,3)
        return [Token("command", "cup")]
    if run == "in" and before and before[-1].kind == "name" and spaced:  # x in [0, 1]
        return [Token("command", "in")]
    if run == "mod" and before:
        return [Token("command", run)]
    if run in _PLAIN:
        return [Token("command", _PLAIN[run])]
    if len(run) == 1:
        return [Token("name", run)]
    measured = bool(before) and (before[-1].kind in ("number", "word", "command") or before[-1].text in (")", "}", "/"))
    if run in UNITS and measured:
        sure = before[-1].kind == "word" or (spaced and before[-1].kind == "number")  # 2 mg; \pi hr is \pi h r
        if sure or not letters:
            return [Token("word", run)]
        return [Token("name", c) for c in run]
    if letters and len(pieces := _SPLIT.findall(run)) < len(run) and {p for p in pieces if len(p) == 1} - {"e", "i"}:
        return [_piece(piece) for piece in pieces]  # sine and pie, which have no symbol, are words
    after = text[m.end() :].lstrip()[:1]
    begins = not before or before[-1].text in (",", "and", "or")
    phrase = begins or before[-1].kind == "word" or spaced
    if begins and after in ("", ",", ";"):
        return [Token("word" if run.casefold() in SHORT_WORDS and not letters else "run", run)]
    if len(run) > 3 and phrase and after not in ("^", "_", "*", "/", "+", "-", "("):
        return [Token("word", run)]
    if len(run) > 3:  # 3sinx, pir
        return [_piece(piece) for piece in _SPLIT.findall(run)]
    return [Token("name", c) for c in run]


def _piece(piece: str) -> Token:
    return Token("command", _PLAIN[piece]) if piece in _PLAIN else Token("name", piece)


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, given: list[Token]):
        self.tokens, self.at = given, 0

    def done(self) -> bool:
        return self.at >= len(self.tokens)

    def token(self, ahead: int = 0) -> Token:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else Token("end of text", "")

    def peek(self) -> str:
        """The next token, where it is no word of the answer's own."""
        token = self.token()
        return token.text if token.kind in ("op", "command") else f" {token.kind}"

    def accept(self, *texts: str) -> str:
        """The next token if it is one of these, which is then read; else nothing."""
        text = self.peek()
        if text not in texts:
            return ""
        self.at += 1
        return text

    def expect(self, *texts: str) -> str:
        text = self.accept(*texts)
        if not text:
            raise Unreadable(f"{self.peek()!r} instead of {texts[0]!r}")
        return text
