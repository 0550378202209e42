"""Mathematical answers: all of an answer is read, or it is wrong; what is read is compared exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_likelihood.grading import compare, values
from rl_likelihood.grading.copied import with_question
from rl_likelihood.grading.mathematics import math_match, telemath


def kinds() -> dict[str, list[tuple[str, bool, str]]]:
    """{kind of fault: (reference, right, answer) of each line} of answers.txt."""
    out: dict[str, list[tuple[str, bool, str]]] = {}
    kind = reference = ""
    for line in Path(__file__).with_name("answers.txt").read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "##":
            kind = text
        elif mark == "-":
            reference = text
        elif mark in ("=", "!"):
            out.setdefault(kind, []).append((reference, mark == "=", text))
    return out


CASES = kinds()


@pytest.mark.parametrize("kind", CASES)
def test_what_says_the_same_is_right_and_nothing_else(kind):
    for reference, right, answer in CASES[kind]:
        assert math_match(reference, answer) is right, (reference, answer)
        if right:
            assert math_match(reference, rf"so $\boxed{{{answer}}}$.") is True, (reference, answer)


def test_the_cases_are_many_of_each_kind():
    assert len(CASES) == 61 and all(len(rows) >= 10 for rows in CASES.values())


def test_fences_and_the_end_of_an_answer():
    assert math_match("58", "```\n58\n```") and math_match("58", "```text\n58\n```\n")
    assert not math_match("58", "```\n58\n59\n```") and not math_match("12", "12..")
    for end in (", ", "。", "\u202c", ".", "$,"):
        assert math_match("12", ("$12" if "$" in end else "12") + end), end
    assert math_match(r"\text{(E)},", "E") and not math_match("12, 13", "12, ")


# reference, answer, right
PLAIN = [
    ("5", "5", True),
    ("5", r"The answer is $\boxed{5}$.", True),
    (r"work, work, $\boxed{5}$", "5.0", True),
    (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", True),
    (r"\frac{3}{4}", r"\dfrac{3}{4}", True),
    (r"\frac{3}{4}", "$3/4$", True),
    (r"\frac{3}{4}", r"\( \tfrac34 \)", True),
    (r"1\frac{1}{2}", "1.5", True),
    (r"\frac{1,200}{0.5}", "2400", True),
    (r"10\%", "10", True),
    (r"\$12", "12.00", True),
    (r"\$12", "12 dollars", True),
    (r"\$12", "12 cents", False),
    (r"5\text{ cm}", "5", True),
    (r"5\text{ cm}", "5 centimeters", True),
    (r"5\text{ cm}", r"5\mathrm{cm}", True),
    (r"5\text{ cm}", "5 m", False),
    (r"5\text{ cm}", r"5\text{ cm}^2", False),
    (r"5\text{ cm}^2", "5 square centimeters", True),
    (r"5\text{ ways}", "5", True),
    (r"5\text{ ways}", "5 ways", True),
    (r"5\text{ ways}", "5 kinds", False),
    (r"5\text{ m}", "5 m", True),
    ("5m", "5", False),  # five times m
    ("2abcd", "2", False),
    ("12000000", "12 million", True),
    (r"9\text{ a.m.}", "9 am", True),
    (r"9\text{ a.m.}", "9 p.m.", False),
    (r"\text{13}", "13", True),
    ("p - q", "p-q", True),
    ("50", r"50\%", True),
    ("50", "50%", True),
    ("0.1", r"10\%", True),
    (r"10\%", "0.1", True),
    (r"10\%", r"\boxed{\frac{1}{10}}", True),
    ("10", "0.1", False),
    ("0.1", "10", False),
    (r"10\%", r"0.1\%", False),
    *[("5", text, False) for text in (
        "4=5", "6=5", "5=5", "x+1=5", "x=4=5", "1=2=3=4=5", "7; $5$", "$1$ $2$ $3$ $4$ $5$", "5,5", "4,5",
        "5; 5", "$6$ and $5$", r"$x=4=5$", r"6 \implies 5", r"6 \Rightarrow 5", "5 & 6", "5|6", "x=6, x=5",
        "x=5 or x=6", "$4=5$", r"\boxed{4=5}", r"\boxed{5,5}", "6, or $5$",
    )],
    ("12", "> 12", True), ("12", "> $12$", True), ("12", ">= 12", False), ("12", r"\boxed{> 12}", False),
    ("5", None, False),
    ("5", "", False),
    ("", "", False),
    ("5", r"\boxed{5} or maybe \boxed{6}", False),
    ("5", r"\boxed{5", False),
    ("5", "5.000001", False),
    (r"\frac{1}{3}", "0.333333", False),
    ("12", "1 2", False),
    (r"\frac{1}{2}", r"\frac{2}{1}", False),
    ("2516_8", "2516_7", False), ("2516_8", "2516_{8}", True), ("2516_8", "2516", False), ("2516_8", "1358", False),
    ("5", r"6 \equiv 5", False), ("5", r"5 \approx 6", False), ("5", r"6 \Longrightarrow 5", False),
    ("5", r"\(6\) \(5\)", False), ("5", "5? 6", False), ("5", r"\(5\)", True),
    ("1 234", "$1$ $234$", False),
    (r"\text{no solution}", "no solution", True), (r"\text{no solution}", "no", False),
    (r"\text{no real solutions}", r"\text{no real}", False), (r"\text{even}", "even", True),
    (r"\text{odd}", "dod", False),
    (r"\text{A, C, F}", "A, C, F", True), (r"\text{A,C,F}", "F, A and C", True), (r"\text{ACF}", "CAF", False),
    (r"\text{(C)}", "C", True), (r"\text{(C)}", "(C)", True), (r"\text{(C)}", "D", False),
    ("7, -2, \\text{ and } -5", "-5, -2, 7", True),
]  # fmt: skip
ALGEBRA = [
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt 2}", True),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", True),
    (r"36x\sqrt{35x}", r"\sqrt{45360x^3}", True),
    (r"\cos 13^\circ", r"\sin 77^\circ", True),
    (r"\cos 13^\circ", r"\cos 13", False),
    (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}", True),
    ("2^{2005}", r"2\cdot 2^{2004}", True),
    ("2^{2005}", "2^{2004}", False),
    ("5", "x=5", True),
    ("2^{10}", "1024", True),
    ("5", "x_1=5", True),
    ("5", "the answer is $5$", True),
    ("5", "Therefore, the final answer is: $5$.", True),
    ("y=2x+1", "2x+1", True),
    ("2x+1", "y=2x+1", True),
    ("y=2x+1", "2x - y + 1 = 0", True),
    ("y=2x+1", "y=2x+2", False),
    ("y=2x+1", "1=1", False),
    ("x=5", "y=5", False),
    ("10x - 4y - 5z - 20 = 0", "10x-4y-5z=20", True),
    ("10x - 4y - 5z - 20 = 0", "10x-4y-5z=-20", False),
    ("x^2+y^2=1", "y^2+x^2=1", True),
    (r"x \in [-2,7]", "[-2,7]", True),
    ("[-2,7]", r"-2 \le x \le 7", True),
    ("[-2,7)", r"-2 \le x \le 7", False),
    ("f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)", True),
    ("f(2) < f(1) < f(4)", "f(1) < f(2) < f(4)", False),
    ("3:2", "6:4", True), ("3:2", "2:3", False), ("3:2", "0:0", False),
    ("0.5", r"\frac{1}{\sqrt{4}}", True),
    ("x+1", "x+2", False),
    (r"\sqrt{2}", "1.41", False),
    ("5", "five", False),
    ("x", "y", False),
    ("xyz", "zyx", False), ("xyz", "x y z", True), ("xyz", r"z \cdot y \cdot x", True),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}", True),
    (r"\overline{CD}", r"\overline{CD}", True), (r"\overline{CD}", r"\overline{AB}", False),
]  # fmt: skip


@pytest.mark.parametrize("reference, answer, right", PLAIN + ALGEBRA)
def test_answers(reference, answer, right):
    assert math_match(reference, answer) is right


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("1,2", "2,1", True), ("1,2", r"\{2,1\}", True), ("1,2", "(1,2)", True), ("1,2", "(2,1)", False),
        ("(1,2)", "1,2", True), ("(1,2)", "2,1", False), ("(1,2)", "(2,1)", False), ("(1,2)", r"\{1,2\}", False),
        (r"\{1,2\}", "(1,2)", False), (r"\{1,2\}", r"\{2,1,1\}", True), (r"\{1,2\}", "1,2", True),
        ("5,5", "5", False),
        ("(1,2)", "x=1, y=2", True), ("(1,2)", "(x,y)=(1,2)", True), ("1,2", "$x=1$ and $x=2$", True),
        ("[1,2]", "(1,2)", False), ("[1,2]", "1,2", False), ("[0,1]", "(0,1)", False), (r"\{5\}", "5", True),
        (r"1 \pm 2", "3,-1", True), ("(1,2),(3,4)", "(3,4),(1,2)", True), ("(1,2),(3,4)", "(1,4),(3,2)", False),
    ],
)  # fmt: skip
def test_order_counts_in_tuples_and_not_in_sets_and_lists(reference, answer, right):
    assert math_match(reference, answer) is right


LISTS = ("70,110", "70, 110", "110,70", "70 and 110", "x = 70, 110", "$70$, $110$", r"70^\circ, 110^\circ")


@pytest.mark.parametrize("question, several", [("Enter $x$, separated by commas.", True), ("What is $x$?", False)])
def test_a_question_for_several_solutions_has_no_thousands(question, several):
    reference = with_question("70,110", question)
    for answer in LISTS:
        assert math_match(reference, answer) is (several or answer in ("70,110", "70, 110")), answer
    for answer in ("70110", r"70{,}110"):
        assert math_match(reference, answer) is not several, answer
    for answer in ("70, 111", "70", "110", "70, 110, 5"):
        assert math_match(reference, answer) is False, answer
    assert math_match(with_question("1000, 2000", question), "1,000, 2,000") is True


MANY = (
    (
        ", ".join(f"{i}.5" for i in range(200)),
        ", ".join(rf"\frac{{{2 * i + 1}}}{{2}}" for i in reversed(range(100))),
        False,
    ),
    (", ".join(f"{i}.5" for i in range(200)), ", ".join(f"{2 * i + 1}/2" for i in reversed(range(200))), True),
    (
        r"\{" + ",".join(rf"\sqrt{{{i}}}" for i in range(2, 150)) + r"\}",
        ",".join(rf"{i}^{{0.5}}" for i in range(150)),
        False,
    ),
    (",".join(rf"\sqrt{i}" for i in range(2, 9)), ",".join(f"{i}^{{1/2}}" for i in range(2, 9)), True),
    (
        r"\{" + ",".join(f"x+{i}" for i in range(250)) + r"\}",
        r"\{" + ",".join(f"{i}+x" for i in range(250)) + r"\}",
        False,
    ),
)


@pytest.mark.parametrize("reference, answer, right", MANY, ids=range(len(MANY)))
def test_long_lists_are_compared_at_once_or_wrong(reference, answer, right, monkeypatch):
    """Rationals find each other; of other entries at most a thousand pairs are compared."""
    asked = []
    monkeypatch.setattr(compare, "same_value", lambda *nodes: asked.append(1) or values.same_value(*nodes))
    assert math_match(reference, answer) is right and len(asked) <= 1_000


HOSTILE = (
    "9^{9^{9^9}}", "9**9**9**9", "2^" * 600 + "2", "-" * 1_900, "5" + "!" * 1_900, "!" * 1_000, r"\sqrt" * 400 + "2",
    "(" * 1_000, "(" * 21 + "y" + ")" * 21, "x+" * 999 + "x", "1/" * 990 + "2", "x^" * 900 + "2", "|" * 1_999,
    r"\frac" * 390, "{" * 1_900, "1" * 1_999, "0." + "3" * 1_900, r"1\pm" * 400 + "1", "sin" * 600 + "x",
    r"\sin" * 400 + " x", r"e^{e^{e^{e^{e^{9}}}}}", "(1/3)^{60000}" * 100, "x" * 1_999, "^" * 999, "_" * 999,
    "," * 1_999,
    "1," * 990 + "1", "''" * 900, "x" + "'" * 1_900, r"\begin{pmatrix}" * 120, "$" * 1_999, r"\text{" * 300, "**" * 900,
    " *a" * 600, r"\binom{99999}{5}", "99999!", "°" * 900, r"\max(" * 300, r"\tan(10^{5000})", r"10^{10^{10}}",
    "1e9999",
    "(-1)^{10^{50}}", "0^{-1}", r"\log 0", r"\frac{0}{0}", r"5+\pi!" + r"+\pi!-\pi!" * 200,
    r"5+x" + r"+\sin x-\cos x" * 130,
    r"x+1" + r"+x^{x}-x^{x}" * 110, r"\lfloor" * 25 + r"\pi" + r"\rfloor" * 25,
    "1" + "!^1" * 200, "(" * 29 + "1" + ("!^1" * 15 + ")") * 29 + r"\approx 1",
    "(" * 29 + "1" + ("!^1" * 15 + ")") * 29, r"x \in \{1\} \cup (2,3), x < 5",
    r"x \in 1 \cup (2,3), x < 5", "f(10^{5000}) = 1", r"7\text{ cm}^{1e9999}",
)  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_formulas_are_wrong_at_once(answer):
    """No verdict takes more than a moment: there is no process to kill. And none is missing, or a policy would find
    the answers that are dropped instead of wrong."""
    for reference in ("x+1", "5", r"\sqrt{2}", r"\{1,2\}", r"(-\infty,2]\cup[3,4)", "f(x) = 2x+1"):
        assert math_match(reference, answer) is False


def test_a_reference_that_cannot_be_read_is_nobodys_fault():
    assert math_match("(" * 29 + "1" + ("!^1" * 15 + ")") * 29, "5") is None


def test_long_answers_are_compared_as_text():
    long = "x+" * 1_001
    assert math_match(long, long) is True and math_match("x", long) is False


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("12", "12 min", True),
        ("12", "12 sec", True),
        ("12", "12 min(2, 3)", False),
        ("5.0", "5.04", True),
        ("5.0", "5.05", True),  # 1 % of the larger
        ("5.0", "5.06", False),
        ("0", "0.005", True),
        ("0", "0.02", False),
        ("5.0", r"thus \boxed{5.04}", True),
        ("5.0", r"\boxed{1} \boxed{5.04}", True),
        ("5.0", r"5.0 is \boxed{7}", False),
        ("5.0", ": 5.04.", True),
        ("5.0", "5.04/", True),
        ("5.0", r"\boxed{\frac{10}{2}}", True),
        ("-3e-5", "-0.00003", True),
        ("1.2e6", "1,200,000", True),
        ("1.2e6", r"1.2\times10^{6}", True),
        ("1.2e6", "1.2×10⁶", True),
        ("1.2e6", r"1.2 \cdot 10^5", False),
        ("120", r"1.2\times 10^2", True),
        ("120", "1.2 x 10^2", True),
        ("120", "1.2x10**2", True),
        ("120", "1.2 x 10^3", False),
        ("120", r"$1.2 \times 10^{2}$", True),
        ("2.5", r"\frac{\sqrt{25}}{2}", True),
        ("0.0025", r"2.5\times10^{-3}", True),
        ("250", r"2.5\times10^{-3}", False),
        ("5.0", "-5.0", False),
        ("5.0", "5.04 Mbps", True),
        *[
            ("0.135", f"0.135 {unit}", True)
            for unit in (
                "ns",
                "ps",
                "mA",
                "mV",
                "nW",
                "pJ",
                "pF",
                "nH",
                "THz",
                "Tbps",
                "Mb/s",
                "b/s",
                "dBW",
                "baud",
                "MBaud",
                "Msymbols/s",
                "frames/s",
                "calls/s",
                "packets/slot",
                "Np/m",
            )
        ],
        *[("0.135", f"0.135 {unit}", False) for unit in ("xs", "XA", "dBx", "bauds per", "nonsense", "Mb/q")],
        ("100 Mbps", "100 Mbit/s", True),
        ("100 Mbps", "100 MB/s", False),
        ("100 mA", "100 MA", False),
        *[
            ("250", text, True)
            for text in (
                "250 Mbps",
                "250 dB",
                "250 MHz",
                "250 km",
                r"\boxed{250\text{ Mbps}}",
                "x=250",
                r"\approx 250",
                "≈ 250",
                "250 m/s",
            )
        ],
        *[
            ("250", text, False)
            for text in (
                "250 squared",
                "250 Mbps dB",
                "250 x",
                "1/x = 250",
                "not 250",
                "x = 3 = 250",
                "250 dozen",
                "minus = 250",
            )
        ],
        *[("0.5", text, True) for text in ("50%", r"50\%", "50.4 %", "50 percent", "0.5%")],
        *[("0.5", text, False) for text in ("52%", "0.52%", "500%", "50 Hz%")],
        *[("50%", text, True) for text in ("50", "0.5", "50.4", r"50.4\%")],
        *[("50%", text, False) for text in ("52", "0.52", "50 Hz", "5000", r"52\%", r"0.5\%")],
        (r"\frac23", "66.7%", True),
        (r"\frac23", "65%", False),
        ("0.5%", "0.9%", False),
        ("250", r"250\%", True),
        ("250 MHz", "250%", False),
        ("250 MHz", "250 MHz", True),
        ("250 MHz", "250", True),
        ("250 MHz", "250 GHz", False),
        ("250 m/s", "250 meters per second", True),
        ("250 m/s", "250 km/h", False),
        ("3 dB", "3 dBm", False),
        ("100 W", "100 watts", True),
        ("100 W", "100 kW", False),
        ("100", "100 W", True),
        ("100", "100 x", False),
        ("3e8", "3 x 10^8 m/s", True),
        ("3e8", r"3\times 10^{8} m s^{-1}", True),
        ("3e8 m/s", "3 x 10^8 km/s", False),
        ("5", "5 x y", False),
        ("5 ms", "5 s", False),
        ("5.0", "nan", False),
        ("5.0", "inf", False),
        ("5.0", "1_0", False),
        ("5.0", "5i", False),
        ("5.0", "5, 5", False),
        ("5.0", "", False),
        ("5.0", None, False),
        ("M/M/1", r"\boxed{M/M/1}", True),  # not a number: text
        ("M/M/1", "5", False),
    ],
)
def test_telemath(reference, answer, right):
    assert telemath(reference, answer) is right
