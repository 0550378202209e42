"""Graders of text: equal strings, equal numbers, the same option. Linear time in any text, never an error."""

import json
import re
from fractions import Fraction

from rl_likelihood.grading.notation import latex, without_markdown


def exact_match(reference: str, answer: str | None) -> bool:
    """Equal but for white space at the ends."""
    return answer is not None and answer.strip() == reference.strip()


# [sign] [$] [sign] digits, with commas or spaces for thousands or not, [.digits] [/ digits] [%] [.]
_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\$?(?P<sign2>[-+\u2212]?)\s*"
    r"(?P<whole>[0-9]{1,3}(?P<sep>,(?:\\!)?|\{,\}|\\[,;: ]|~|[ ])[0-9]{3}(?:(?P=sep)[0-9]{3})*|[0-9]+)?"
    r"(?P<decimals>\.[0-9]+)?"
    r"(?:\s*/\s*(?P<denominator>[0-9]+))?\s*(?P<percent>%)?\.?"
)
_WORD = re.compile(r"\w+")
_LONGEST_NUMBER = 200  # characters; longer ones are compared as text


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of 1,200  1\,200  -3.50  3/4  $12  15% (= 3/20)  **5**  or None for anything else.

    The last \boxed{} counts, or all of it without one; $...$, \(...\), Markdown marks and a leading "=" around it are
    dropped.
    Not numbers here: exponents, mixed numbers, units, division by zero.
    """
    text = _unwrapped(text)
    if len(text) > _LONGEST_NUMBER:
        return None
    m = _NUMBER.fullmatch(text)
    if m is None or not (m["whole"] or m["decimals"]) or (m["sign"] and m["sign2"]):
        return None
    value = Fraction(re.sub("[^0-9]", "", m["whole"] or "0") + (m["decimals"] or ""))
    if m["denominator"] is not None:
        if int(m["denominator"]) == 0:
            return None
        value /= int(m["denominator"])
    if m["percent"]:
        value /= 100
    return value if (m["sign"] or m["sign2"]) in ("", "+") else -value


def _unwrapped(text: str) -> str:
    text = in_box(text).strip()
    if len(text) > _LONGEST_NUMBER:
        return text
    text = without_marks(latex(text)).removeprefix("=").lstrip("$ ")
    return text.replace(r"\$", "$").replace(r"\%", "%").removesuffix(".").rstrip("$ ")


def without_marks(text: str) -> str:
    r"""The last box, or all of a text, without Markdown marks and dollars: 5 for **5**, \boxed{5} and $5$."""
    text = without_markdown(in_box(text)).strip()
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2]
    return text.strip("$ ")


def numeric_match(reference: str, answer: str | None) -> bool:
    r"""Equal as exact rationals; as text (`exact_match`) where the reference is not a number.

    Box, dollars and a leading "=" are dropped (`parse_number`); 50% is 50 as well as 0.5, for the data sets write a
    share either way. But 50 is never 0.5.
    """
    if answer is None:
        return False
    value = parse_number(reference)
    if value is None:
        return exact_match(reference, answer)
    number = parse_number(answer)
    if number is None:
        return False
    goal_percent, percent = ("%" in in_box(text) for text in (reference, answer))
    if goal_percent == percent:
        return number == value
    return number in ((value, 100 * value) if goal_percent else (value, value / 100))


_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s$]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} or \fbox{...}, braces balanced; of `\boxed 5`, the 5. None without a box.

    Escaped braces, \{ and \}, are not counted. A last box that never closes is empty.
    """
    start = max(text.rfind(box) + len(box) if box in text else -1 for box in (r"\boxed", r"\fbox"))
    if start < 0:
        return None
    start = _SPACE.match(text, start).end()
    if not text.startswith("{", start):
        return _BARE.match(text, start)[0]
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[start + 1 : brace.start()]
    return ""


def in_box(text: str) -> str:
    """The content of the last box; all of a text without one."""
    boxed = last_boxed(text)
    return text if boxed is None else boxed


# A statement: words that lead to an option, its name, its own text, words that say it is right. None of these words
# denies, doubts or names an option, so their order does not matter.
_KIND = r"(?:answer|ans\.?|option|choice|selection|letter|solution|response)"
_SURELY = r"(?:clearly|definitely|certainly|obviously|surely|therefore|thus|hence|so)"
_IS = r"(?:is|would\s+be|should\s+be|must\s+be|has\s+to\s+be)"
_WORDS = (
    rf"(?:{_KIND}|{_SURELY}|the|my|our|this|that|it|one|only|correct|right|true|final|best|most|likely|appropriate|suitable"
    r"|selected|chosen|finally|overall|in\s+conclusion|to\s+(?:the|this)\s+question)(?![0-9a-z'])"
)
_CHOOSE = (
    r"(?:(?:it|that)'s|i\s+(?:think|believe)(?=\s+(?:it|the|that)[\s'])"
    r"|(?:(?:i|we)(?:\s+would|\s+will|'d|'ll)?\s+)?(?:choose|select|pick|go\s+with))(?![0-9a-z])"
)
_LEAD = rf"(?!is\s)(?:(?:{_WORDS}|{_IS}(?![0-9a-z])|{_CHOOSE})(?:[\s,:=]|-(?![0-9]))*)*"
_NAME = re.compile(
    _LEAD + r"""(?P<quote>["']?)[(\[<]{0,2}(?:(?:option|choice|answer|letter)\s*)?[(\[<]{0,2}"""
    r"(?P<name>[a-z]|[0-9]{1,2})(?![0-9a-z])[)\]>]*(?P=quote)",
    re.ASCII,
)
_BETWEEN = re.compile(r"[\s.:,)\]>(\u2013\u2014-]+")  # a name and the option's own text
_OF_REFERENCE = re.compile(r"(?:[.:)\]]+ | [-\u2013\u2014] |(?<=[)\]>]) )(?P<own>.+)")
_RIGHT = re.compile(
    rf"(?:\s+{_IS}(?![0-9a-z])|,)(?:[\s,]+{_WORDS})+|\s*\((?:right|correct)(?=\))",
    re.ASCII,
)
# What may follow "the answer is B": one sentence, without words that could name or deny an option.
_REASON = re.compile(
    rf",?\s+(?:because|since)(?:(?!\b(?:{_KIND}|right|correct|true|false|wrong|not|actually|choose|select|pick|[b-j])\b)"
    r"[^.!?;:])+"
)
_NUMBER_ALONE = re.compile(r"\b[0-9]{1,2}\b")
_STATED = re.compile(rf"{_KIND}\s+{_IS}\s")
_STOP = re.compile(r"[.!;,:)\]\s]*")
_FONTS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|mbox|boldsymbol|bm|underline)\s*\{([^{}]*)\}"
    r"|\{\s*\\(?:bf|it|rm|sf|tt|em)\s+([^{}]*)\}"
)
_IN_BRACKETS = re.compile(r"(?<=[(\[<])\s+|\s+(?=[)\]>])")
_SPACES = re.compile(r"\\[,;: !]|\\q?quad|(?<=[^\s~])~(?=[^\s~])|\\[()]")
_EMPHASIS = re.compile(r"[*_`]+")
_LONGEST_CHOICE = 2_000  # characters; longer texts name no choice


def choice(text: str, own: str = "", numbered: bool = False) -> int | None:
    r"""The number (from 1; A = 1) of the option that a text names in its last \boxed{}, or else as a whole; or None.

    Known: B, b, (B), [B], B., **B**, \text{B}, option 2, choice B, "B"; that it is right after it, "the (correct)
    answer is", "it must be", "I choose", "clearly" before it; several of these, of one option. `own` is the option's
    text, which may follow its name: B. Text. `numbered`: options have numbers, so a bare 2 names one. A reason may
    follow "the answer is B" only.
    Not a choice: any other text around the name, for it may say that the option is wrong.
    """
    head, at, named = _head(text), 0, set()
    while at < len(head):
        m = _NAME.match(head, at)
        if m is None:
            return None
        if m["name"].isdigit() and not (numbered or _says_option(m)):
            return None
        named.add(_place(m["name"]))
        end = _after_own_text(head, m.end(), own)
        right = _RIGHT.match(head, end)
        end = right.end() if right else end
        reason = _REASON.match(head, end) if _STATED.search(m[0]) else None
        end = reason.end() if reason and not (numbered and _NUMBER_ALONE.search(reason[0])) else end
        at = _STOP.match(head, end).end()
        if at == end < len(head):  # "Bx"
            return None
    number = named.pop() if len(named) == 1 else None
    return number or None  # option 0 is none


def _after_own_text(head: str, at: int, own: str) -> int:
    """Where the option's own text ends, if it follows."""
    between = _BETWEEN.match(head, at)
    if not own or between is None or not head.startswith(own, between.end()):
        return at
    end = between.end() + len(own)
    return at if head[end : end + 1].isalnum() else end


def _head(text: str) -> str:
    """The answer in small letters without fonts and marks; nothing of one that is too long."""
    text = in_box(text).strip()
    if len(text) > _LONGEST_CHOICE:
        return ""
    head = latex(text.replace("\u3002", ".")).replace(r"\left", "").replace(r"\right", "")
    for _ in range(2):
        head = _FONTS.sub(r"\1\2", head)
    head = _IN_BRACKETS.sub("", head)
    return " ".join(
        _EMPHASIS.sub("", _SPACES.sub(" ", head)).replace("$", "").strip("{} \n").lstrip("#{} \n").casefold().split()
    )


def _place(name: str) -> int:
    return int(name) if name.isdigit() else ord(name) - ord("a") + 1


def _says_option(m: re.Match[str]) -> bool:
    """Does "option" or "choice" stand before the name?"""
    return re.search(r"(?:option|choice)\s*[(\[]*$", m.string[m.start() : m.start("name")]) is not None


def _option(reference: str) -> tuple[int, str, bool] | None:
    """The number of the reference's option, its own text, and whether it is named by a number: option 2: Text."""
    head = _head(reference)
    m, number = _NAME.match(head), choice(reference)
    if m is not None and number is None and (m["name"].isalpha() or _says_option(m)):
        after = _OF_REFERENCE.match(head, m.end())
        if after is not None and choice(after["own"]) is None and _place(m["name"]):
            return _place(m["name"]), after["own"].strip(" ."), m["name"].isdigit()
    return None if m is None or number is None else (number, "", m["name"].isdigit())


def multiple_choice(reference: str, answer: str | None) -> bool:
    """The same option (see `choice`); as text (`exact_match`) where the reference names no option."""
    if answer is None:
        return False
    option = _option(reference)
    if option is None:
        return exact_match(reference, answer)
    right, own, numbered = option
    return choice(answer, own, numbered) == right


def nearest_option(reference: str, answer: str | None) -> bool:
    """The answer shares more words with the right option than with any other: common words over all words of both.

    `reference`: a JSON list of options, the right one first. As text (`exact_match`) where it is no such list.
    """
    if answer is None:
        return False
    try:
        options = json.loads(reference)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(option, str) for option in options):
        return exact_match(reference, answer)
    said = set(_WORD.findall(answer.casefold()))
    words = [set(_WORD.findall(option.casefold())) for option in options]
    right, *others = (len(said & own) / max(1, len(said | own)) for own in words)
    return right > max(others)


def prefix_match(reference: str, answer: str | None) -> bool:
    """A beginning of the reference that is not empty and ends where a word of it ends (RPT, 2506.08007).

    Compared as bytes of UTF-8, without white space at the ends. RPT asks for the end of a token instead of a word.
    """
    if answer is None:
        return False
    goal, said = (text.strip().encode(errors="surrogatepass") for text in (reference, answer))
    if not said or not goal.startswith(said):
        return False
    after = goal[len(said) :].decode(errors="replace")
    return not after or not (after[0].isalnum() and said.decode(errors="replace")[-1].isalnum())
