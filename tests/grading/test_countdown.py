"""Countdown: exact values, each number once, three outcomes; and nothing is ever evaluated by Python."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_likelihood.grading.countdown import countdown, countdown_outcome, evaluate


@pytest.mark.parametrize(
    "text, value, numbers",
    [
        ("(1+2)*3", 9, [1, 2, 3]),
        ("1+2*3", 7, [1, 2, 3]),
        ("10-2-3", 5, [10, 2, 3]),
        ("24/4/2", 3, [24, 4, 2]),
        ("7/2", Fraction(7, 2), [7, 2]),
        ("1/3*3", 1, [1, 3, 3]),
        (" ( 8 )\n", 8, [8]),
        ("-3+5", 2, [3, 5]),
        ("5--3", 8, [5, 3]),
        ("2*-3", -6, [2, 3]),
        ("(1+2)\u00d73\u00f72\u22121\u00b74", Fraction(1, 2), [1, 2, 3, 2, 1, 4]),
        ("-(2+3)*4", -20, [2, 3, 4]),
        ("\uff081\uff0b2\uff09\u22c53\u22174", 36, [1, 2, 3, 4]),
        ("+4", 4, [4]),
        ("007", 7, [7]),
        ("8/(3-8/3)", 24, [8, 3, 8, 3]),
        ("99999999999999999999*99999999999999999999", 99999999999999999999**2, [99999999999999999999] * 2),
    ],
)
def test_evaluate(text, value, numbers):
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "()",
        "1+",
        "*1",
        "(1",
        "1)",
        ")(",
        "1 2",
        "2(3)",
        "(2)3",
        "(2)(3)",
        "1.5",
        "1e3",
        "2**3",
        "7//2",
        "1=1",
        "1/0",
        "1/(2-2)",
        "5/0*0",
        "x",
        "1+x",
        "abs(1)",
        "__import__('os')",
        "1;2",
        "1,2",
        "\u0663",
        "1\x00",
        "3!",
        "5%3",
        "9" * 31,
        "1" + "+1" * 250,
        "9**9**9",
        "(" * 300 + "1" + ")" * 300,
    ],
)
def test_not_an_expression(text):
    assert evaluate(text) is None


@given(st.recursive(st.integers(0, 99).map(str), lambda e: st.builds("({}{}{})".format, e, st.sampled_from("+-*"), e)))
def test_values_are_pythons(text):
    if len(text) <= 500:
        assert evaluate(text)[0] == eval(text)


@pytest.mark.parametrize(
    "answer, outcome",
    [
        ("(1+2)*3", True),
        (" 3 * (2 + 1) ", True),
        *[
            (text, True)
            for text in (
                "**(1+2)*3**",
                "`(1+2)*3`",
                r"$(1+2)\times3$",
                r"\boxed{(1+2)\cdot 3}",
                "(1+2)*3.",
                r"\((1+2)*3\)",
            )
        ],
        *[
            (text, False)
            for text in (
                "**(1+2)*2**",
                "1 *2* 3",
                r"$(1+2)\div3$",
                r"\boxed{3*3}",
                r"\boxed{(1+2)*3} or \boxed{1+2+3}",
                "(1+2)*3..",
            )
        ],
        ("(2+1)/(1/3)", False),  # 9, but with two ones
        ("3*3", False),
        ("(1+2)*3*1", False),
        ("(1+2)*3-0", False),
        ("(1+2)*3+3-3", False),
        ("1+2+3", False),  # every number, another value
        ("9", False),
        ("12-3", False),  # 1 and 2 are not 12
        ("(1+2)*3 = 9", False),  # an expression is asked for
        ("(1+2)*3.0", False),
        ("3**2*1", False),
        ("It is (1+2)*3", False),
        ("(1+2)*3\x00", False),
        ("9**9**9", False),
        ("no idea", None),
        ("", None),
        ("\u0663", None),
        (None, None),
    ],
)
def test_countdown_has_three_outcomes(answer, outcome):
    assert countdown_outcome("(1+2)*3", answer) is outcome
    assert countdown("(1+2)*3", answer) is (outcome is True)


def test_every_number_as_often_as_it_is_given():
    assert countdown_outcome("(1+2)*3+3-3", "(1+2)*3") is False
    assert countdown_outcome("3*3+3", "3+3*3") is True


def test_the_target_is_exact():
    assert countdown("1/3+1/3", "(1+1)/3") is False  # the numbers are 1, 3, 1, 3
    assert countdown("7/3*3", "7*3/3")
    assert not countdown("1000000*1000000+1-1", "1000000*1000000+1/1")  # 1 apart, relative 1e-12


def test_a_reference_that_is_no_expression_is_compared_as_text():
    assert countdown("no solution for 5", "no solution for 5 ")
    assert not countdown("no solution for 5", "5")
