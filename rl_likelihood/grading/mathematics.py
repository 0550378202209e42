r"""Mathematical answers: right is what says the same as the reference and nothing more.

Of an answer with boxes the last box is graded, else the whole text. What is graded is read whole (`statements.read`): a
word, a sign or a second number that no rule knows makes it wrong. Then the two trees are compared (`compare.same`),
exactly. Nothing here can hang or end the process: answers over 2,000 characters are compared as plain text, and
formulas are limited to 30 levels, numbers to 60,000 bits.
"""

import functools
import re
from fractions import Fraction

from rl_likelihood.grading import values
from rl_likelihood.grading.compare import same, same_or_not
from rl_likelihood.grading.copied import is_copy, parted
from rl_likelihood.grading.names import KNOWN, without_names
from rl_likelihood.grading.notation import latex, without_fonts, without_markdown, without_spaces
from rl_likelihood.grading.statements import read
from rl_likelihood.grading.text import exact_match, in_box
from rl_likelihood.grading.tokens import Unreadable, tokens
from rl_likelihood.grading.tree import Node, parts_of
from rl_likelihood.grading.units import plain

_LONGEST = 2_000  # characters of an answer; longer ones are compared as text

_DOLLARS = re.compile(r"(?<!\\)(?:\$\$?|\\[()\[\]])")
_SPACE_AT_END = re.compile(r"(?<!\\)(?:\\\s+)+$")  # "\ ", of which a strip would leave the backslash
_WORDS_ONLY = re.compile(r"[A-Za-z\s.,;:'-]*[A-Za-z][A-Za-z\s.,;:'-]*")
_LEAD = re.compile(
    r"(?:ans\.\s*|(?:so|thus|hence|therefore|it|ans|we|get|have|obtain|find|that|the|final|correct|required|desired|"
    r"total|answer|value|result|solutions?|is|are|equals|equal|to|then|exactly)\b[\s,]*|[:=][\s]*)+",
    re.IGNORECASE,
)
_LEADS_ON = re.compile(
    r"(?:\b(?:is|are|get|have|equals|equal to|obtain|find|answer|solutions?|so|thus|hence|therefore|then|exactly)|"
    r"[:=]|\bans\.)[\s,]*$",
    re.IGNORECASE,
)
_IS = r"(?:=|(?:is|equals|is equal to)(?=\s+[-+$\\(\[{.0-9]))\s*"
_WORDS_OF_NAMES = "|".join(sorted(word for word in KNOWN - {"is", "are"} if len(word) > 1))
# The total cost = 12, the area is 12; the value of $x$ is 12, x equals 12.
_NAMED = re.compile(rf"(?P<before>^|[,;]\s*)(?P<name>(?:(?:{_WORDS_OF_NAMES})\s+)+){_IS}", re.IGNORECASE)
_SYMBOL = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),?\s+)?(?:the value of\s+)?"
    rf"(?P<dollar>\$?)(?P<name>[A-Za-z](?:_[0-9A-Za-z]|\([0-9]\))?)(?P=dollar)\s+(?!=){_IS}",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\A\s*>[ \t]+")  # a quotation in Markdown
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|hbox)\s*\{([^{}]*)\}(?=\s*\S)")
_STOP = re.compile(r"\\text\s*\{\s*\.?\s*\}\Z")
_RAISED = re.compile(r"(\\text\s*\{[^{}$]*)\$(\^(?:[0-9]|\{-?[0-9]+\}))\$\}")  # \text{ cm$^2$}
_REALS = re.compile(r"(?:all|any) real(?:s| numbers?)", re.IGNORECASE)
_EXCEPT = re.compile(
    rf"{_REALS.pattern}(?: x)?,? (?:except|other than)(?: for)? (?:x = )?(?P<points>.+)", re.IGNORECASE
)
_TEN_TO = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*(?:\^|\*\*))")  # 1.2 x 10^5: an x for the sign of a product
_ONE = re.compile(r"\\(?:text|mbox|hbox)[a-z]*\s*\{\s*([A-Za-z]{2,})\s*\}")
_APPROXIMATE = re.compile(r"(?P<exact>[^\n]+?)\\approx\s*(?P<number>-?[0-9]+(?:\.(?P<decimals>[0-9]+))?)")
_GROUPS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_BRACED_GROUPS = re.compile(rf"\{{{_GROUPS.pattern}\}}")  # {22,500}: a set, or a number in braces too many
_BARE_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
_SEVERAL = re.compile(
    r"separated by (?:a )?commas?|comma-separated|\ball (?:the )?(?:possible )?(?:solutions|roots|values)\b",
    re.IGNORECASE,
)
_OTHER = r"\b(?!(?:and|or)\b)[A-Za-z]"
_PROSE = re.compile(rf"{_OTHER}{{2,}}\s+{_OTHER}|{_OTHER}\s+{_OTHER}{{2,}}")


def _core(text: str) -> str:
    """The answer itself: what is in the last box, or everything; without marks, dollars and words that lead to it."""
    text = in_box(_QUOTED.sub("", text))
    if len(text.strip()) > _LONGEST:
        return text.strip()
    text = _TEN_TO.sub(r"\\times ", latex(_SPACE_AT_END.sub("", text).strip()))
    for _ in range(4):  # **$\text{5}$.**
        before = text
        text = _without_end(without_markdown(text).strip())
        text = _with_equals_sign(_without_lead(text))
        text = _without_end(_SPACE_AT_END.sub("", _formulas(text)).strip())
        text = without_fonts(without_spaces(text))
        if text == before:
            break
    return _reals(text)


def _reals(text: str) -> str:
    """All real numbers, or all but some, as a set."""
    words = " ".join(_TEXT.sub(r"\1", text).replace(r"\quad", " ").split())
    if (but := _EXCEPT.fullmatch(words)) is not None:
        return rf"\mathbb{{R}} \setminus \{{ {but['points']} \}}"
    return r"\mathbb{R}" if _REALS.fullmatch(words) else text


def _without_lead(text: str) -> str:
    r"""Without the words that lead to an answer: The answer is 5, \text{So } x = 5."""
    text = text.removeprefix(r"\therefore").lstrip()
    said = _TEXT.match(text)
    if said is not None:
        return text[said.end() :] if _LEAD.fullmatch(said[1].strip() + " ") else text
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead is not None and _LEADS_ON.search(lead[0]) else text


def _with_equals_sign(text: str) -> str:
    r"""A name in plain words as a formula has it: \text{the area} = 12, x = 12."""
    text = _NAMED.sub(lambda m: rf"{m['before']}\text{{{m['name'].strip()}}} = ", text)
    symbol = _SYMBOL.match(text)
    return text if symbol is None else f"{symbol['name']} = {text[symbol.end() :]}"


def _without_end(text: str) -> str:
    """Without the full stop of a sentence, or a comma."""
    text = _STOP.sub("", text).rstrip()
    return text[:-1].rstrip() if text.endswith((".", ",")) and not text.endswith(("..", "\\,")) else text


def _formulas(text: str) -> str:
    """A text around formulas as one formula: the words outside of dollars become \\text{}."""
    text = _RAISED.sub(r"\1}\2", text)
    marks = len(_DOLLARS.findall(text))
    if marks == 0:
        return text
    if marks == 1:
        return text[:-1] if text.endswith("$") and text != "$" else text  # $5 is money
    if marks % 2:
        return text  # and unreadable: a dollar inside
    pieces = _DOLLARS.split(text)
    out = ["\\text{" + p + "}" if i % 2 == 0 and _WORDS_ONLY.fullmatch(p) else p for i, p in enumerate(pieces)]
    return r"\quad ".join(piece for piece in out if piece.strip())


def _without_rounded(text: str) -> str:
    r"""2\sqrt3 of 2\sqrt3 \approx 3.46, if 3.46 is that rounded."""
    about = _APPROXIMATE.fullmatch(text)
    node = _read(about["exact"].rpartition("=")[2]) if about is not None else None
    if node is None:
        return text
    try:
        value = values.real(node)
    except Unreadable:
        return text
    half = 10 ** -len(about["decimals"] or "") / 2
    near = value is not None and abs(value - float(about["number"])) <= half * (1 + 1e-9)
    return about["exact"].strip() if near else text


@functools.lru_cache(maxsize=4096)
def _read(text: str, letters: bool = False) -> Node | None:
    """The tree of a text, None where it has none; the answers to a question share their reference."""
    try:
        return read(text, letters)
    except Unreadable:
        return None


def _spelling(text: str) -> tuple:
    try:
        return tuple((token.kind, token.text) for token in tokens(text))
    except Unreadable:
        return tuple(text.split())


def _readings(text: str) -> list[Node]:
    """The tree of a text, and the one with letters in the place of units, if that is another. Prose has no words."""
    trees = dict.fromkeys((_read(text), _read(text, letters=True)))
    if _BRACED_GROUPS.fullmatch(text):
        trees[_read(text[1:-1])] = None
    return [tree for tree in trees if tree is not None and not (_is_prose(text) and _has_words(tree))]


def _formula_readings(formula: str) -> list[Node]:
    """The trees of a formula of the question, read as an answer would be."""
    core = _core(formula)
    return _readings(core) if len(core) <= _LONGEST else []


def _has_words(node: Node) -> bool:
    return node.kind in ("word", "run", "unit") or any(map(_has_words, parts_of(node)))


def _is_prose(text: str) -> bool:
    """Words, of which no part is a number or a product of letters."""
    return _WORDS_ONLY.fullmatch(text) is not None and _PROSE.search(text) is not None


def math_match(reference: str, answer: str | None) -> bool | None:
    r"""Equal in value. Reference and answer may each hold a last \boxed{}; without one the whole text counts.

    LaTeX, Unicode and plain text are read alike. Units that the reference does not write are dropped if they are known
    (cm, degrees, dollars), words that lead to the answer too ("the answer is"); 50% is 50 as well as 0.5. Any other
    word makes an answer wrong, and so does everything that cannot be read. `compare` says what equals what. If the
    reference has its question with it (`copied.with_question`), an answer that only repeats a formula of the question
    is wrong. None where the reference cannot be read for a fault of the grader; a fault that an answer brings about
    makes the answer wrong, or a policy would find it.
    """
    if answer is None:
        return False
    reference, question = parted(reference)
    goal, given = _core(reference), _core(answer)
    if not goal or not given:
        return False
    if goal == given or max(len(goal), len(given)) > _LONGEST:
        return goal == given
    if _GROUPS.fullmatch(goal) and (_SEVERAL.search(question) or _BARE_COMMA.sub(", ", goal) == given):
        goal, given = (_BARE_COMMA.sub(", ", text) for text in (goal, given))  # 70,110 may be a list
    if _spelling(goal) == _spelling(given):
        return True
    words = [text if (one := _ONE.fullmatch(text)) is None else one[1] for text in (goal, given)]
    if any(map(_is_prose, words)) and all(map(_WORDS_ONLY.fullmatch, words)) and plain(words[0]) == plain(words[1]):
        return True
    try:
        goals = _readings(goal)
    except Exception:
        return None
    try:
        answers = _readings(_without_rounded(given))
        equal = [(a, b) for a in goals for b in answers if same_or_not(a, b, same)]
        return any(not is_copy(a, b, question, _formula_readings) for a, b in equal)
    except Exception:  # too deep, for one
        return False


def telemath(reference: str, answer: str | None) -> bool:
    """TeleMath's rule: the two differ by at most 1 % of the larger, or by 0.01; as text where one is not a number.

    The last box counts, or everything without one; a leading colon and trailing dots and slashes are dropped. Numbers
    are whatever formula has a real value: 2.5e-3, 2.5\\times10^{-3}, \\frac{1}{400}; a known unit after it that the
    reference does not contradict (250 MHz), and a name before it (x = 250) are dropped, as `math` does; 50% is 50 as
    well as 0.5.
    """
    if answer is None:
        return False
    goal, given = _tidy(reference), _tidy(answer)
    (value, unit), (number, other) = _float(goal), _float(given)
    if value is None or number is None:
        return exact_match(goal, given)
    if unit and other and unit != other:
        return False
    shares = [x / 100 if u == "percent" else x for x, u in ((value, unit), (number, other))]
    return _is_near(value, number) or ((unit == "percent") != (other == "percent") and _is_near(*shares))


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= max(0.01 * max(abs(a), abs(b)), 0.01)


def _tidy(text: str) -> str:
    return in_box(text).strip().rstrip("./ ").lstrip(": ")


_ABOUT = re.compile(r"\\approx(?![A-Za-z])|~(?=\s*[0-9])")
_A_UNIT = r"[A-Za-z]+(?:\^\{?-?[1-3]\}?)?"
_UNIT_AT_END = re.compile(rf"(?<=[0-9}}])\s+({_A_UNIT}(?:(?:\s*/\s*|\s+){_A_UNIT})*)$")
_SOME = Node("number", (Fraction(0),))


def _as_words(unit: re.Match[str]) -> str:
    r"""m/s^2 as a text and its powers: \text{ m/s}^2."""
    return re.sub(r"[A-Za-z]+", lambda word: rf"\text{{ {word[0]}}}", unit[1])


def _float(text: str) -> tuple[float | None, str]:
    """The value of a text, None where it has none, and its unit."""
    text = latex(text)
    text = _UNIT_AT_END.sub(_as_words, _ABOUT.sub("=", text))  # letters at the end are a unit, as in 5 W
    node = _read(_core(text)) if len(text) <= 100 else None
    if node is None:
        return None, ""
    _, node = without_names(_SOME, node)
    unit, known = "", True
    if node.kind in ("unit", "measure"):
        node, unit, last = node.parts
        known = last is True or isinstance(last, Node)
    if not known:
        return None, ""
    try:
        return values.real(node), unit
    except Unreadable:
        return None, ""
