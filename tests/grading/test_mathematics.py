"""Mathematical answers: boxes, exact numbers, TeleMath's tolerance, and with math-verify equal expressions."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest

from rl_likelihood.config import build
from rl_likelihood.grading import mathematics
from rl_likelihood.grading.graders import math_match, telemath
from rl_likelihood.grading.mathematics import last_boxed, latex_number, math_outcome, math_quick
from rl_likelihood.shapes import UserError
from tests.runs import small_config


@pytest.mark.parametrize(
    "text, content",
    [
        (r"\boxed{5}", "5"),
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{a{b{c}}d} and {more}", "a{b{c}}d"),
        (r"\boxed {5}", "5"),
        (r"$\boxed 5$.", "5"),
        (r"\fbox{12}", "12"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        (r"\boxed{5", ""),
        (r"\boxed{1} \boxed{{2}", ""),  # the last one counts, and it never closes
        ("5", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text, value",
    [
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{-1}{2}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1{20}", Fraction(1, 20)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-1\frac{4}{5}", Fraction(-9, 5)),
        (r"\frac{1,200}{0.5}", 2400),
        ("1,200", 1200),
        ("-3.5", Fraction(-7, 2)),
        (r"\frac{1}{0}", None),
        (r"\frac{x}{2}", None),
        (r"\frac{\frac{1}{2}}{2}", None),
        (r"1\frac{-4}{5}", None),
        (r"2\cdot 3", None),
        (r"\frac", None),
        ("", None),
    ],
)
def test_latex_number(text, value):
    assert latex_number(text) == value


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
    ("1200", "1,200", True),
    ("1200", "1{,}200", True),
    (r"10\%", "10", True),
    (r"\$12", "12.00", True),
    ("90^\\circ", "90", True),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})", True),
    ("p - q", "p-q", True),
    ("50", r"50\%", True),
    ("50", "50%", True),
    ("0.1", r"10\%", True),
    (r"10\%", "0.1", True),
    (r"10\%", r"\boxed{\frac{1}{10}}", True),
    ("10", "0.1", False),
    ("0.1", "10", False),
    (r"10\%", r"0.1\%", False),
    *[
        ("5", text, False)
        for text in (
            "4=5",
            "6=5",
            "5=5",
            "2+3=5",
            "x+1=5",
            "x=4=5",
            "1=2=3=4=5",
            "7; $5$",
            "$1$ $2$ $3$ $4$ $5$",
            "5,5",
            "4,5",
            "5; 5",
            "$6$ and $5$",
            r"$x=4=5$",
            r"6 \implies 5",
            r"6 \Rightarrow 5",
            "5 & 6",
            "5|6",
            "x=6, x=5",
            "x=5 or x=6",
            "$4=5$",
            r"\boxed{4=5}",
            r"\boxed{5,5}",
            "6, or $5$",
        )
    ],
    ("5", None, False),
    ("5", "", False),
    ("", "", False),
    ("5", r"\boxed{5} or maybe \boxed{6}", False),
    ("5", r"\boxed{5", False),
    ("5", "6", False),
    ("5", "5.000001", False),
    (r"\frac{1}{3}", "0.333333", False),  # exact, where both are numbers
    ("12", "1 2", False),
    (r"\frac{1}{2}", r"\frac{2}{1}", False),
    (r"\text{Evelyn}", "evelyn", False),
]

# Decided by algebra alone.
ALGEBRA = [
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt 2}", True),
    ("5", "x=5", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("2^{10}", "1024", True),
    ("5", "f(x) = 5", True),
    ("5", "x_1=5", True),
    ("5", "the answer is $5$", True),
    ("(1,2)", "x=1, y=2", True),
    ("(1,2)", "(x,y)=(1,2)", True),
    ("1,2", "$x=1$ and $x=2$", True),
    ("1,2", "2,1", True),
    (r"\{1,2\}", "1,2", True),
    (r"1 \pm 2", "3,-1", True),
    ("x^2+y^2=1", "y^2+x^2=1", True),
    ("y=2x+1", "y=1+2x", True),
    ("0.5", r"\frac{1}{\sqrt{4}}", True),
    ("x+1", "x+2", False),
    ("(1,2)", "(2,1)", False),
    ("[0,1]", "(0,1)", False),
    (r"\sqrt{2}", "1.41", False),
    ("5", "five", False),
    ("x", "y", False),
]


@pytest.mark.parametrize("reference, answer, right", PLAIN)
def test_without_algebra(reference, answer, right, monkeypatch):
    monkeypatch.setattr(mathematics, "has_math_verify", lambda: False)
    assert math_quick(reference, answer) is right
    assert math_match(reference, answer) is right


@pytest.mark.parametrize("reference, answer, right", [row for row in ALGEBRA if row[2]])
def test_without_math_verify_algebra_is_wrong_and_never_undecided(reference, answer, right, monkeypatch):
    monkeypatch.setattr(mathematics, "has_math_verify", lambda: False)
    assert math_quick(reference, answer) is False
    assert math_match(reference, answer) is False


@pytest.mark.parametrize("reference, answer, right", PLAIN + ALGEBRA)
def test_with_math_verify(reference, answer, right):
    pytest.importorskip("math_verify")
    assert math_outcome(reference, answer) is right
    assert math_match(reference, answer) is right


@pytest.mark.parametrize("reference, answer, right", ALGEBRA)
def test_algebra_is_left_to_a_worker(reference, answer, right):
    pytest.importorskip("math_verify")
    assert math_quick(reference, answer) is None


@pytest.mark.parametrize(
    "field, values",
    [
        ("eval.grader", {"eval__grader": "math"}),
        ("reward.name", {"reward__name": "0.5*math + prob"}),
    ],
)
def test_a_config_that_needs_math_verify_is_refused_without_it(field, values, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    mathematics.has_math_verify.cache_clear()
    try:
        with pytest.raises(UserError, match=rf"{field} is .*pip install -e '\.\[math\]'"):
            build(small_config(**values))
        build(small_config(eval__grader="numeric"))
    finally:
        mathematics.has_math_verify.cache_clear()


def test_what_math_verify_never_sees():
    pytest.importorskip("math_verify")
    assert math_quick("x", "x+" * 1_001) is False  # over 2,000 characters
    assert math_quick("x", "(" * 21 + "y" + ")" * 21) is False


def test_a_breakdown_of_math_verify_is_no_verdict(monkeypatch):
    verifier = pytest.importorskip("math_verify")

    def broken(*_, **__):
        raise RecursionError("too deep")

    monkeypatch.setattr(verifier, "verify", broken)
    assert math_outcome("x+1", "1+x") is None
    assert math_match("x+1", "1+x") is False


@pytest.mark.parametrize(
    "reference, answer, right",
    [
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
        ("5.0", "-5.0", False),
        ("5.0", "5.04 Mbps", False),
        ("5.0", "nan", False),
        ("5.0", "inf", False),
        ("5.0", "1_0", False),
        ("5.0", "", False),
        ("5.0", None, False),
        ("M/M/1", r"\boxed{M/M/1}", True),  # not a number: text
        ("M/M/1", "5", False),
    ],
)
def test_telemath(reference, answer, right):
    assert telemath(reference, answer) is right


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("2516_8", "2516_7", False),
        ("2516_8", "2516_{8}", True),
        ("2516_8", "2516", False),
        ("5", r"6 \equiv 5", False),
        ("5", r"5 \approx 6", False),
        ("5", r"6 \Longrightarrow 5", False),
        ("5", r"\(6\) \(5\)", False),
        ("5", "5? 6", False),
        ("5", r"\(5\)", True),
    ],
)
def test_another_base_or_step_is_another_answer(reference, answer, right):
    assert math_match(reference, answer) is right
