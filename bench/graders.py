r"""How often is the grader `math` wrong? On the answers of MATH's test set, written in ways that are right or wrong.

    python -m bench.graders --math=MATH/test.jsonl.gz [--limit=500] [--show=3]

Right: the answer itself and what people and models write for it. Wrong: families of answers that a policy finds if a
grader drops what it cannot read. A family is tried where it makes sense and is surely right, or wrong, by the text
alone: a sign is changed where there is one formula, entries are swapped where they differ. As in a run, the grader gets
the question with the reference. Prints a row a family: how many were tried, how many were graded wrongly, the time of
one grade.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.grading.copied import with_question, written
from rl_likelihood.grading.mathematics import math_match
from rl_likelihood.grading.text import last_boxed

Variant = Callable[[str], str | None]  # of an answer; None where there is none
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_SIMPLE = re.compile(r"[0-9A-Za-z\s{}\\^.!+*/-]+")  # one formula: no list, bracket, relation


class Asked(NamedTuple):
    gold: str
    question: str


def answers(path: Path) -> list[Asked]:
    """The last box of every solution, with its problem."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    return [Asked((last_boxed(row["solution"]) or "").strip(), row["problem"]) for row in rows]


def _is_number(gold: str) -> bool:
    return _NUMBER.fullmatch(gold) is not None


def _is_simple(gold: str) -> bool:
    one = _SIMPLE.fullmatch(gold) and not re.search(r"\\(text|mbox|begin|pm|cup|in|overline)|^[A-Za-z]+$", gold)
    return bool(one) and re.sub(r"[^0-9A-Za-z]", "", gold) != "0"


def _one_of(forms: tuple[str, ...], gold: str) -> str:
    """A form with the answer in the place of "_": another one for another answer, the same in each run."""
    return forms[zlib.crc32(gold.encode()) % len(forms)].replace("_", gold)


def _for_numbers(*forms: str, but: tuple[str, ...] = ()) -> Variant:
    return lambda gold: _one_of(forms, gold) if _is_number(gold) and gold.strip("-") not in but else None


# ---------------------------------------------------------------------------------------------- right


def spaced(gold: str) -> str:
    return "  " + re.sub(r"(?<![\\,!0-9A-Za-z])([-+=,(){}\[\]])(?!\\|\})", r" \1 ", gold) + " "


def plain_text(gold: str) -> str | None:
    r"""pi/3 for \frac{\pi}{3}, sqrt(2), x**2; nothing for words, matrices and what has no plain form."""
    text = re.sub(r"\\[dtc]?frac\s*(\d|\\pi)\s*(\d)", r"(\1)/(\2)", gold)
    for _ in range(3):
        text = re.sub(r"\\sqrt\s*(?:\{([^{}]*)\}|(\d))", lambda m: f"*sqrt({m[1] or m[2]})", text)
        text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\^\{([^{}\\]*)\}", r"**(\1)", text).replace("^", "**")
    text = re.sub(r"(?<=[0-9)])\s*\\pi", "*pi", text).replace(r"\pi", "pi").replace(r"\infty", "infinity")
    text = re.sub(r"(^|[-+(,/\[*])(\s*)\*sqrt", r"\1\2sqrt", text).replace(r"\cup", "U").replace(r"\left", "")
    text = text.replace(r"\right", "")
    mixed = re.match(r"-?\d+\s*\\?[dtc]?frac|-?\d+\s*\(\d+\)/\(", gold) or re.match(r"-?\d+\s*\(\d+\)/\(", text)
    return None if mixed or "\\" in text or "_" in text or text == gold else text


def unicode(gold: str) -> str | None:
    text = re.sub(r"\\sqrt\s*(?:\{(\d+)\}|(\d))", lambda m: f"√{m[1] or m[2]}", gold)
    text = re.sub(r"\^(\d)(?!\d)", lambda m: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[1])], text)
    for command, sign in ((r"\pi", "π"), (r"\infty", "∞"), (r"\cup", "∪"), (r"^\circ", "°"), (r"\pm", "±"), ("-", "−")):
        text = text.replace(command, sign)
    return None if text == gold else text


def thousands(gold: str, mark: str) -> str | None:
    return f"{int(gold):,}".replace(",", mark) if re.fullmatch(r"[0-9]{4,}", gold) else None


def without_unit(gold: str) -> str | None:
    text = re.sub(r"\s*(\\(text|mbox)\s*\{[^{}]*\}(\^\d)?|\^\{?\\circ\}?|\\%|\\,)\s*$|^\\\$\s*", "", gold)
    return None if text == gold or not re.search("[0-9]", text) or r"\cos" in gold else text  # there it is no unit


def as_quotient(gold: str) -> str | None:
    m = re.fullmatch(r"(-?)\\[dtc]?frac\s*\{(\d+)\}\s*\{(\d+)\}", gold)
    return None if m is None else f"{m[1]}{m[2]}/{m[3]}"


def as_decimal(gold: str) -> str | None:
    m = re.fullmatch(r"(-?)\\[dtc]?frac\s*\{(\d+)\}\s*\{(\d+)\}", gold)
    if m is None:
        return None
    value = format(int(m[2]) / int(m[3]), ".12f").rstrip("0")
    exact = len(value.split(".")[1]) < 10
    return m[1] + value if exact else None


RIGHT: dict[str, Variant] = {
    "itself": lambda gold: gold,
    "in a box in a sentence": lambda gold: rf"So the answer is $\boxed{{{gold}}}$.",
    "in dollars": lambda gold: f"${gold}$",
    "after the answer is": lambda gold: rf"The final answer is: \({gold}\).",
    "spaces": spaced,
    "dfrac, left and right": lambda gold: (
        re.sub(r"\\[tc]?frac(?![a-z])", r"\\dfrac", gold).replace("(", r"\left(").replace(")", r"\right)")
        if gold.count("(") == gold.count(")") and r"\left" not in gold
        else None
    ),
    "bold in Markdown": lambda gold: f"**{gold}**" if "\n" not in gold else None,
    "plain text": plain_text,
    "Unicode": unicode,
    "thousands": lambda gold: thousands(gold, ","),
    "thousands, LaTeX": lambda gold: thousands(gold, r"\,"),
    "thousands, spaces": lambda gold: thousands(gold, " "),
    "its unit left out": without_unit,
    "a unit more": _for_numbers(
        *(r"_\text{ cm}", "_ inches", r"_\text{ square feet}", "_ m/s", "_ km/h", "_ degrees Celsius", r"_\text{ m}^2"),
        *("_ cubic centimeters", "_ pennies", "_ m^2", "_ sq cm", r"_\text{ miles per hour}", "_ MHz", "_ centuries"),
    ),
    "degrees": lambda gold: rf"{gold}^\circ" if _is_number(gold) else None,
    "a quotient": as_quotient,
    "a decimal": as_decimal,
    "a longer name": _for_numbers(
        *("a+b = _", "|AB| = _", "f(3) = _", r"\text{Area} = _", "P(x) = _", r"\angle ABC = _", "x - y = _", "CD = _"),
        *(r"f^{-1}(2) = _", r"\text{The total cost} = _", "x + y + z = _"),
    ),
    "words that lead to it": lambda gold: rf"\text{{The answer is }}{gold}" if _is_simple(gold) else None,
    "a name before it": lambda gold: f"x = {gold}" if _is_simple(gold) and "x" not in gold else None,
}

# ---------------------------------------------------------------------------------------------- wrong


def changed_digit(gold: str) -> str | None:
    places = [m.start() for m in re.finditer("[0-9]", gold)]
    if not places:
        return None
    i = places[len(gold) % len(places)]
    return gold[:i] + str((int(gold[i]) + 1 + len(gold) % 8) % 10) + gold[i + 1 :]


def other_sign(gold: str) -> str | None:
    if not _is_simple(gold) or re.search(r"[+-]", gold[1:]):
        return None
    return gold[1:] if gold.startswith("-") else f"-{gold}"


def swapped(gold: str) -> str | None:
    m = re.fullmatch(r"(\(|\\left\s*\(|\[|\\left\s*\[)([^,]*),([^,]*)(\)|\\right\s*\)|\]|\\right\s*\])", gold)
    same = m is None or m[2].strip() == re.sub(r"\\right\s*$", "", m[3]).strip()
    return None if same else f"{m[1]}{m[3]},{m[2]}{m[4]}"


def swapped_rows(gold: str) -> str | None:
    m = re.fullmatch(r"(\\begin\{pmatrix\})(.*?)\\\\(.*?)((?:\\\\.*)?\\end\{pmatrix\})", gold)
    return None if m is None or m[2].strip() == m[3].strip() else f"{m[1]}{m[3]} \\\\ {m[2]}{m[4]}"


def swapped_names(gold: str) -> str | None:
    m = re.fullmatch(r"\(\s*([-0-9/]+)\s*,\s*([-0-9/]+)\s*\)", gold)
    forms = ("y = A, x = B", "(y,x) = (A,B)", "y = A and x = B", "x = B or y = A")
    form = forms[zlib.crc32(gold.encode()) % len(forms)]
    return None if m is None or m[1] == m[2] else form.replace("A", m[1]).replace("B", m[2])


def other_case(gold: str) -> str | None:
    letters = re.sub(r"\\[A-Za-z]+", "", gold)
    if not re.search(r"[a-df-hj-zA-Z]", letters) or r"\begin" in gold or not _is_simple(gold):
        return None
    return re.sub(r"(?<![\\A-Za-z])([a-df-hj-zA-Z])(?![A-Za-z])", lambda m: m[1].swapcase(), gold, count=1)


WRONG: dict[str, Variant] = {
    "million after it": lambda gold: rf"{gold}\text{{ million}}",
    "words after it": lambda gold: rf"{gold}\text{{ or something else}}",
    "not before it": lambda gold: f"not ${gold}$",
    "is not equal": lambda gold: rf"\neq {gold}",
    "another entry": lambda gold: f"{gold}, 1789",
    "another formula": lambda gold: f"${gold}$ $1789$",
    "an equation": lambda gold: f"1789 = {gold}" if "=" not in gold else None,
    "a denial before it": lambda gold: (
        _one_of(
            (
                r"\text{10} = _",
                r"\text{Answer is 7; ignore this} = _",
                "minus = _",
                "false = _",
                r"\text{cannot} = _",
                "anything but = _",
                r"\text{less than} = _",
                r"\text{six or} = _",
                "no = _",
                r"\text{not equal to} = _",
            ),
            gold,
        )
        if "=" not in gold
        else None
    ),
    "a word that changes it": _for_numbers(
        *(
            "_ squared",
            r"_\text{ cubed}",
            r"_\text{ square}",
            "_ squared cubed",
            r"_\text{ dozen}",
            "_ degrees radians",
        ),
        *("_ unit unit", r"_\text{ of }", r"_\text{ the degrees}", "_ per", "_ per second second"),
        but=("0",),
    ),
    "an expression before it": _for_numbers(
        "x^{-1} = _",
        "f^{-1} = _",
        "-x = _",
        r"\frac{1}{x} = _",
        "2x = _",
        "x^2 = _",
        "x + 1 = _",
        "|x| = _",
        but=("0",),
    ),
    "infinity": _for_numbers(
        *(r"_ + 0\cdot\infty", r"_ + \infty - \infty", r"_\cdot\frac{\infty}{\infty}", r"_\cdot 1^\infty"),
        *(r"_ + 0\ldots", r"_\cdot\frac{\mathbb{R}}{\mathbb{R}}", r"_\cdot\frac{\emptyset}{\emptyset}"),
    ),
    "a digit in braces": _for_numbers("_{1}", r"_\underline{1}", r"_\text{1}", r"_\mathbf{1}", but=("1",)),
    "swapped names": swapped_names,
    "a changed digit": changed_digit,
    "another sign": other_sign,
    "swapped entries": swapped,
    "swapped rows": swapped_rows,
    "another case": other_case,
    "a power": lambda gold: f"{gold}^3" if _is_number(gold) and gold.strip("-") not in ("0", "1") else None,
    "a factor": lambda gold: f"{gold}q" if _is_number(gold) and gold != "0" else None,
    "cut short": lambda gold: gold[:-1] if len(gold) > 1 and gold[-1] not in ". " and not gold.endswith("0") else None,
}


def other_answers(rows: list[Asked]) -> list[tuple[Asked, str]]:
    """Pairs of answers whose letters and digits differ, so that no two spellings of one answer are taken."""
    rng = random.Random(0)

    def bare(text: str) -> str:
        text = re.sub(r"\\(text|mbox)\s*\{([^{}]*)\}", r"\2" if not re.search("[0-9]", text) else "", text)
        return re.sub(r"^[a-z]\s*=|\\[dtc]?frac|\\circ|\\left|\\right|[^0-9A-Za-z\\/-]", "", text)

    pairs = [(row, rng.choice(rows).gold) for row in rows]
    return [(row, other) for row, other in pairs if bare(row.gold) != bare(other)]


def formulas(rows: list[Asked]) -> list[tuple[Asked, str]]:
    """Every formula of a question that is not spelled like the answer and says more than a number or a letter."""

    def bare(text: str) -> str:
        return re.sub(r"\\\$|[\s{}$.,]|\\(left|right)(?![a-z])|\\[,!;]", "", text).replace("dfrac", "frac")

    pairs = [(row, formula) for row in rows for formula in dict.fromkeys(written(row.question))]
    number_or_letter = re.compile(r"(?:[^=]*=)?-?[0-9]+(?:\\%)?|[A-Za-z]")
    return [
        (row, formula)
        for row, formula in pairs
        if bare(formula).rpartition("=")[2] != bare(row.gold) and not number_or_letter.fullmatch(bare(formula))
    ]


def measure(name: str, pairs: list[tuple[Asked, str]], right: bool, show: int) -> tuple[int, int]:
    start = time.perf_counter()
    faults = [(row, text) for row, text in pairs if math_match(with_question(*row), text) is not right]
    each = (time.perf_counter() - start) / max(len(pairs), 1)
    print(f"| {name} | {len(pairs)} | {len(faults)} | {1e3 * each:.2f} |", flush=True)
    for row, text in faults[:show]:
        print("   ", repr(row.gold), repr(text))
    return len(pairs), len(faults)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--math", type=Path, required=True, help="test.jsonl.gz of MATH: {'solution': ...} a line")
    parser.add_argument("--limit", type=int, default=0, help="answers, drawn at random; 0: all")
    parser.add_argument("--show", type=int, default=0, help="faults of each family to print")
    a = parser.parse_args()
    asked = answers(a.math)
    if a.limit:
        asked = random.Random(0).sample(asked, a.limit)
    for title, families, right in (("right", RIGHT, True), ("wrong", WRONG, False)):
        print(f"| {title} | tried | graded wrongly | ms |")
        tried = faults = 0
        rows = {n: [(q, v) for q in asked if (v := make(q.gold)) is not None] for n, make in families.items()}
        if not right:
            rows |= {"another answer of the file": other_answers(asked), "a formula of the question": formulas(asked)}
        for name, pairs in rows.items():
            n, wrong = measure(name, pairs, right, a.show)
            tried, faults = tried + n, faults + wrong
        print(f"| all that is {title} | {tried} | {faults} = {100 * faults / tried:.3f} % | |")


if __name__ == "__main__":
    main()
