"""Graders of text: equal strings, equal numbers, the same option. Linear time in any text, never an error."""

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
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).strip()
    if len(text) > _LONGEST_NUMBER:
        return text
    text = without_markdown(latex(text)).strip()
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2]
    text = text.strip("$ ").removeprefix("=").lstrip("$ ")
    return text.replace(r"\$", "$").replace(r"\%", "%").removesuffix(".").rstrip("$ ")


def has_percent(text: str) -> bool:
    """Is there a per cent sign in the answer itself (the last box, or everything)?"""
    boxed = last_boxed(text)
    return "%" in (text if boxed is None else boxed)


def same_value(goal: Fraction, given: Fraction, goal_percent: bool, given_percent: bool) -> bool:
    """Equality of numbers without their per cent signs: of 50% with 50%, with 50 and with 0.5; never of 50 with 0.5.

    The data sets write a share either way, and mean the same by it.
    """
    if goal == given or goal_percent == given_percent:
        return goal == given
    return goal / 100 == given if goal_percent else goal == given / 100


def numeric_match(reference: str, answer: str | None) -> bool:
    r"""Equal as exact rationals; as text (`exact_match`) where the reference is not a number.

    Box, dollars and a leading "=" are dropped (`parse_number`); 50% is 50 as well as 0.5 (`same_value`).
    """
    if answer is None:
        return False
    value = parse_number(reference)
    if value is None:
        return exact_match(reference, answer)
    number = parse_number(answer)
    if number is None:
        return False
    signs = has_percent(reference), has_percent(answer)
    value, number = (100 * x if sign else x for x, sign in zip((value, number), signs, strict=True))
    return same_value(value, number, *signs)


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


_KIND = r"(?:answer|option|choice|selection)"
_LEAD = (
    r"(?:(?:so|thus|hence|therefore|clearly|i\s+(?:think|believe)\s+(?:that\s+)?(?=it|the)|,)\s*)*"
    rf"(?:(?:(?:the|my)\s+)?(?:(?:correct|final|best|right|appropriate|only|most\s+likely)\s+)*{_KIND}\s*"
    r"(?:is|would\s+be|should\s+be|must\s+be)?\b\s*(?:therefore|thus|clearly)?\s*[:=]?\s*"
    r"|it(?:'s|\s+is)\s+|(?:i\s+(?:would\s+)?)?(?:choose|select|pick|go\s+with)\s+(?:the\s+)?)?"
)
_CHOICE = re.compile(
    _LEAD + r"""["']?(?:"""
    r"[(\[]?(?:option|choice|answer)\s*[(\[]?(?P<number>[0-9]{1,2}|[a-z])(?![0-9a-z])[)\]]*"  # option 2, choice B
    r"|[(\[<](?P<bracketed>[a-z])[)\]>]"  # (B)
    r"|(?P<letter>[a-z])(?![0-9a-z])"  # B
    r")",
    re.IGNORECASE | re.ASCII,
)
# What may follow: the end; that it is right; a reason; the option's own text.
_RIGHT = r"(?:\s+is\s+(?:the\s+)?(?:right|correct|true|best|answer)(?:\s+(?:answer|option|choice|one))?)"
_END = re.compile(rf"{_RIGHT}?[\s.!;,)\]\"']*$", re.ASCII)
_REASON = re.compile(
    rf"{_RIGHT}?(?:[.,;:]|\s)\s*(?:because|since|as|so|which\s+is|explanation|reason)\b|{_RIGHT}[.,;:]\s",
    re.I | re.ASCII,
)
_OPTION_TEXT = re.compile(r"(?:[.:)\]]+|\s+[-\u2013\u2014]|(?<=[)\]>]))\s+(?P<text>\S.*)", re.DOTALL)
# An option after the first: (C), option C, answer: C, and C), C. or C: after a stop, a comma, "or" or "and".
_ANOTHER = re.compile(
    r"(?:(?<![0-9A-Za-z])[(\[](?P<bracketed>[A-Za-z])[)\]]"
    r"|(?i:\b(?:option|choice)\s*)[(\[]?(?P<number>[0-9]{1,2}|[A-Z])(?![0-9A-Za-z])"
    r"|(?i:\banswer\s*(?:is\b|:)\s*)(?P<lead>[A-Z])(?![0-9A-Za-z])"
    r"|(?:[:;,/&)\]\n]|\.\s|(?<!\s[A-Z])\.|(?i:\bor\b|\band\b))\s*"
    r"(?P<letter>[A-Z])(?:[.:)\]](?![0-9A-Za-z])|\s*$|\s*\n))",
    re.ASCII,
)
# In a reason, each letter alone; in an option's text, one that is no article and in no formula: F = ma, 25 C.
_ANY_LETTER = re.compile(r"(?:(?<![0-9A-Za-z])([A-Z])(?![0-9A-Za-z'])|\b(?:option|choice)\s*([0-9]{1,2}))", re.ASCII)
_LETTER_IN_TEXT = re.compile(
    r"(?<![0-9A-Za-z=+*/^_-])(?<![0-9]\s)(?:([B-HJ])|(A)(?!\s+(?!is\b|and\b|or\b)[a-z]))(?![0-9A-Za-z'=+*/^_.-]|\s*[=+*/^<>])"
    r"|(?<![0-9A-Za-z])([B-HJ])\.(?![0-9A-Za-z])",
    re.ASCII,
)
# The text of an option that names others: both (A) and (B), neither A nor B, all of the above, A and C.
_COMBINED = re.compile(
    r"[.:)\]\s\u2013\u2014-]*(?=(?:(?i:both|either|neither|all|none|any|only|options?|choices?|statements?)\b"
    r"|[A-Z]\s+(?:and|or|&)\s+[A-Z]\b))"
    r"(?:(?i:both|either|neither|all|none|any|only|options?|choices?|statements?|of|the|above|and|or|nor)\b"
    r"|[(\[]?\b[A-Z]\b[)\]]?|[,&\s])+",
    re.ASCII,
)
_FONTS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|mbox|boldsymbol|bm)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;: !]|\\q?quad|~|\\[()]")
_EMPHASIS = re.compile(r"[*_`]+")
_LONGEST_CHOICE = 2_000  # characters; longer texts name no choice


def choice(text: str, own: str | None = "") -> int | None:
    r"""The number (from 1; A = 1) of the option that a text names in its last \boxed{}, or else at its start; or None.

    Known: B, b, (B), [B], B., **B**, \text{B}, option 2, choice B, "B"; with a reason (B because ...) or that it is
    right after it, and with "the (correct) answer is", "the right option is", "I choose", "clearly" before it. The
    option's own text may follow (B. Text): it is `own`, or begins with no small letter; with `own` None it is any.
    Not a choice: a bare number, a letter that begins a sentence ("A cat", "(B) is wrong"), a text that goes on to name
    another option; an option that is made of others, "(D) Both (A) and (B)", is that option.
    """
    head = _head(text)
    m = _CHOICE.match(head)
    if m is None:
        return None
    number = _place(m["number"] or m["bracketed"] or m["letter"])
    combined = _COMBINED.match(head, m.end())
    start = m.end() if combined is None else combined.end()
    said = _own_text(head)
    if said and (own is None or said.casefold() == own.casefold()):
        return number or None
    described = bool(said) and not said[0].islower()
    if not (described or _END.match(head, start) or _REASON.match(head, start)):
        return None
    kinds = (_ANOTHER, _LETTER_IN_TEXT) if described else (_ANY_LETTER,)
    others = (other for kind in kinds for other in kind.finditer(head, start))
    if any(_place(next(filter(None, other.groups()))) != number for other in others):
        return None
    return number or None  # option 0 is none


def _head(text: str) -> str:
    """The answer without fonts and marks; nothing of one that is too long."""
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).strip()
    if len(text) > _LONGEST_CHOICE:
        return ""
    head = latex(text.replace("\u3002", ".")).replace(r"\left", "").replace(r"\right", "")
    for _ in range(2):
        head = _FONTS.sub(r"\1", head)
    return _EMPHASIS.sub("", _SPACES.sub(" ", head)).replace("$", "").strip("#{} \n")


def _own_text(head: str) -> str:
    """The text of the option after its letter: of "B. 5G core" 5G core."""
    m = _CHOICE.match(head)
    own = None if m is None else _OPTION_TEXT.match(head, m.end())
    return "" if own is None else own["text"].strip(" .")


def _place(name: str) -> int:
    return int(name) if name.isdigit() else ord(name.lower()) - ord("a") + 1


def multiple_choice(reference: str, answer: str | None) -> bool:
    """The same option (see `choice`); as text (`exact_match`) where the reference names no option."""
    if answer is None:
        return False
    right = choice(reference, own=None)
    return exact_match(reference, answer) if right is None else choice(answer, _own_text(_head(reference))) == right


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
