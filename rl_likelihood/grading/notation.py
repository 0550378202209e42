r"""One spelling for what people and models write: Unicode mathematics, digits of other scripts, Markdown marks.

`latex("√3 ≤ x²")` is `\sqrt 3 \le x^{2}`. What it does not know stays as it is, for the reader of formulas to refuse.
"""

import re
import unicodedata

COMMANDS = {
    "≤": r"\le", "≥": r"\ge", "⩽": r"\le", "⩾": r"\ge", "≠": r"\ne", "∞": r"\infty", "∪": r"\cup", "∩": r"\cap",
    "∈": r"\in", "±": r"\pm", "∓": r"\mp", "×": r"\times", "⋅": r"\cdot", "·": r"\cdot", "∙": r"\cdot", "•": r"\cdot",
    "∗": r"\cdot", "÷": r"\div", "°": r"^\circ", "º": r"^\circ", "˚": r"^\circ", "√": r"\surd", "∛": r"\surd[3]",
    "∜": r"\surd[4]", "⟨": r"\langle", "⟩": r"\rangle", "⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil",
    "⌉": r"\rceil", "∅": r"\emptyset", "∠": r"\angle", "…": r"\ldots", "⋯": r"\ldots", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∖": r"\setminus", "′": "'",
    "≈": r"\approx", "≡": r"\equiv", "¬": r"\neg", "→": r"\to", "⇒": r"\implies", "△": r"\triangle", "€": r"\euro",
    "£": r"\pounds", "¥": r"\yen", "₹": r"\rupee", "¢": r"\cent", "≦": r"\le", "≧": r"\ge", "ℓ": r"\ell", "‖": r"\|",
    "ϕ": r"\varphi", "ϵ": r"\varepsilon", "ϑ": r"\vartheta", "∨": r"\lor", "∧": r"\land", "∘": r"^\circ",
    "∉": r"\notin", "∴": r"\therefore", "⊤": r"\top",
}  # fmt: skip
_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau upsilon phi chi psi
    omega""".split()
PLAIN = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "∣": "|", "∶": ":", "⁄": "/", "∕": "/",
    "\u066b": ".", "\u066c": ",", "’": "'", "‘": "'", "“": '"', "”": '"',
    "\u00a0": r"\,", "\u2009": r"\,", "\u202f": r"\,", "\u2007": r"\,", "\u2008": r"\,", "\u200a": r"\,",
    "\u2002": " ", "\u2003": " ", "\u3000": " ",
    "\u2062": " ", "\u2061": "", "\u2063": ",", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "",
    "\ufe0f": "", "，": ",", "。": ".", "；": ";", "：": ":",
}  # fmt: skip


def _table() -> dict[int, str]:
    table = {ord(c): f"{command} " for c, command in COMMANDS.items()} | {ord(c): s for c, s in PLAIN.items()}
    for name in _GREEK:
        command = "lambda" if name == "lamda" else name
        for case, written in (("SMALL", command), ("CAPITAL", command.capitalize())):
            table[ord(unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}"))] = rf"\{written} "
    return table


_TABLE = _table()


def _shifted(mark: str) -> dict[int, str]:
    """What Unicode calls a "<super>" or "<sub>" of one character, and that character."""
    found = (c for c in map(chr, range(0x80, 0x2D00)) if unicodedata.decomposition(c).startswith(mark))
    plain = {ord(c): unicodedata.normalize("NFKC", c) for c in found if c not in COMMANDS}
    return {code: c for code, c in plain.items() if len(c) == 1}


_RAISED, _LOWERED = _shifted("<super>"), _shifted("<sub>")
_UP, _DOWN = ("".join(map(re.escape, map(chr, table))) for table in (_RAISED, _LOWERED))
_ALONE = r"(?<![\w)\]}])"  # no power of what stands before it
_RUNS = re.compile(
    rf"(?P<above>[⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/](?P<below>[₀₁₂₃₄₅₆₇₈₉]+)|{_ALONE}(?P<index>[²³⁴⁵⁶⁷⁸⁹ⁿ])√|{_ALONE}(?P<minus>⁻)(?=[0-9])"
    f"|(?P<up>[{_UP}]+)|(?P<down>[{_DOWN}]+)|(?P<over>(?:[0-9]\u0305)+)"
)


def _run(m: re.Match[str]) -> str:
    if m["above"]:
        return rf"\frac{{{m['above'].translate(_RAISED)}}}{{{m['below'].translate(_LOWERED)}}}"
    if m["index"]:
        return rf"\surd[{m['index'].translate(_RAISED)}] "
    if m["minus"]:
        return "-"
    if m["up"]:
        return "^{" + m["up"].translate(_RAISED) + "}"
    if m["down"]:
        return "_{" + m["down"].translate(_LOWERED) + "}"
    return r"\overline{" + m["over"].replace("\u0305", "") + "}"


def _character(c: str) -> str:
    """ASCII for a digit of another script, a fraction, a letter of another font or width; else the character."""
    if c.isascii():
        return c
    if unicodedata.category(c) == "Cf":  # the direction of text, a soft hyphen
        return ""
    if (digit := unicodedata.decimal(c, None)) is not None:
        return str(digit)
    form = unicodedata.normalize("NFKC", c)
    if "\u2044" in form:
        above, _, below = form.partition("\u2044")
        return rf"\frac{{{above}}}{{{below}}}" if below else c
    return form.translate(_TABLE) if form != c else c


_RAISED_DEGREE = re.compile(r"\^\s*(?:\^\\circ|\{\s*\^\\circ\s*\})")  # 60^°
_REALS_WITHOUT = re.compile(r"(?<=\\mathbb\{R\})(\s*)\\\s*(?=\{)")  # ℝ \ {0}


def latex(text: str) -> str:
    """The text with its Unicode mathematics as LaTeX and other digits as ASCII."""
    if text.isascii():
        return text
    text = _RAISED_DEGREE.sub(r"^\\circ", _RUNS.sub(_run, text).translate(_TABLE))
    text = _REALS_WITHOUT.sub(r"\\setminus ", text)
    return text if text.isascii() else "".join(map(_character, text))


# A pair of marks around something, where words stand outside: not the power in x**2, the product in 2*3 or x_1.
_EMPHASIS = re.compile(
    r"(?<![\w*)\]}\\^])(?P<mark>\*\*\*|\*\*|\*|__|_|``|`)(?=[^\s*_`])(?P<inside>[^\n]*?[^\s*_`\\])(?P=mark)(?![\w*(\[{\\^])"
)
_FENCE = re.compile(r"\s*(```|~~~)[^\n`]*\n(?P<inside>.*?)\n?[ ]*\1\s*", re.DOTALL)
_HEADING = re.compile(r"^[ ]{0,3}#{1,6}\s+")


def without_markdown(text: str) -> str:
    """Without code fence, heading, emphasis: **58** is 58, x**2 stays."""
    fenced = _FENCE.fullmatch(text)
    if fenced is not None:
        text = fenced["inside"]
    text = _HEADING.sub("", text)
    for _ in range(3):  # ***58***, **`58`**
        bare = _EMPHASIS.sub(lambda m: m["inside"], text)
        if bare == text:
            break
        text = bare
    return text


_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|sc|normal)?|mbox|hbox|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm)\s*\{"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ONE_WORD = re.compile(r"\\(?:text|mbox|hbox)[a-z]*\s*\{\s*[A-Za-z]{2,}\s*\}")  # it stays a word, no product of letters
# In a unit: spaces, powers, °C, µm, kΩ.
_OF_UNITS = re.compile(
    r"\\[,;:! ]|\\cdot(?![A-Za-z])|\^\{?-?[0-9]+\}?|\^\\circ ?|\\mu (?=[A-Za-z])|(?<=[A-Za-z])\\Omega(?![A-Za-z])"
)
_NO_FORMULA = re.compile(r"[^{}\\$0-9]*")
_TWO_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")


def without_fonts(text: str) -> str:
    r"""\mathbf{\frac34} as {\frac34}, or as \frac34 if it is the whole text. A font of words or of a unit stays."""
    for m in reversed(list(_FONT.finditer(text))):  # those inside others first
        end = _closing(text, m.end())
        if end is None:
            continue
        inside = text[m.end() : end]
        if m.start() == 0 and end == len(text) - 1:
            return text if _ONE_WORD.fullmatch(text) else inside.strip()
        if _is_formula(inside):
            text = text[: m.start()] + "{" + inside.strip("$ ") + "}" + text[end + 1 :]
    return text


_SPACES = r"(?:\\[,;:! ]|\\(?:q?quad|displaystyle|textstyle)(?![A-Za-z])|\s)+"
_OUTER_SPACE = re.compile(rf"\A{_SPACES}|(?<![\\\s]){_SPACES}\Z")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|hbox|mathrm)\s*\{")


def without_spaces(text: str) -> str:
    r"""Without the spaces and \displaystyle around a formula, and the braces around a text: {\text{(C)}}."""
    text = _OUTER_SPACE.sub("", text)
    braced = text.startswith("{") and _closing(text, 1) == len(text) - 1
    inside = _OUTER_SPACE.sub("", text[1:-1]) if braced else ""
    opening = _TEXT.match(inside)
    return inside if opening and _closing(inside, opening.end()) == len(inside) - 1 else text


def _closing(text: str, at: int) -> int | None:
    """Where the brace closes that opens before a place."""
    depth = 1
    for brace in _BRACE.finditer(text, at):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return brace.start()
    return None


def _is_formula(inside: str) -> bool:
    """Does a font hold a formula, neither words nor a unit?"""
    bare = _OF_UNITS.sub("", inside)
    words = _NO_FORMULA.fullmatch(bare) or _TWO_LETTERS.search(re.sub(r"\\[a-z]+\s*\{[^{}]*\}", "", inside))
    return not words and inside.strip("$ ").count("$") == 0
