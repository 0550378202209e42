"""Answers are found, compared and never cost time or an exception."""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.grading.graders import (
    GRADERS,
    exact_match,
    extract_answer,
    numeric_match,
    parse_number,
    reference_of,
)
from rl_likelihood.grading.gym import pack
from rl_likelihood.shapes import Example

TAGS = PromptConfig()


@pytest.mark.parametrize(
    "text, answer",
    [
        ("7 + 4 = 11.</think>\n<answer>11</answer>", "11"),
        ("7 + 4 = 11.</think>\n<answer>11</answer", "11"),  # sampling stops before the last >
        ("no thinking tag <answer> 11 </answer>", " 11 "),
        ("write <answer>x</answer> they say</think><answer>11</answer>", "11"),  # a tag inside the chain is chain
        ("a</think><answer>1</answer><answer>2</answer>", "1"),
        ("a</think><answer>1</think>2</answer>", "1</think>2"),
        ("a</think><answer></answer>", ""),
        ("<answer>11</answer></think> and nothing after the chain", None),
        ("a</think><answer>11", None),
        ("a</think><answer>11</answe", None),
        ("a</think>11</answer>", None),
        ("a</think><answers>11</answer>", None),
        ("a</think><answers>1</answers><answer>2</answer>", "2"),
        ("", None),
        ("<answer>é\x00\n2</answer>", "é\x00\n2"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text, TAGS) == answer


def test_extract_answer_obeys_the_tags_of_the_settings():
    tags = PromptConfig(think_close="[/t]", answer_open="[a", answer_close="[/a")
    assert extract_answer("x[/t][a>5[/a>", tags) == "5"
    assert extract_answer("x</think><answer>5</answer>", tags) is None


def test_exact_match_strips_white_space_and_nothing_else():
    assert exact_match("-12", " -12\n")
    assert not exact_match("-12", None)
    assert not exact_match("12", "12.")
    assert not exact_match("Paris", "paris")
    assert not exact_match("12", "1 2")
    assert not exact_match("0", "")


@pytest.mark.parametrize(
    "text, value",
    [
        ("42", 42),
        (" +42 ", 42),
        ("-3.50", Fraction(-7, 2)),
        ("\u22123", -3),
        (".5", Fraction(1, 2)),
        ("1,200", 1200),
        ("12,345,678.9", Fraction(123456789, 10)),
        ("$1,200", 1200),
        ("-$5", -5),
        ("$-5", -5),
        ("3/4", Fraction(3, 4)),
        ("-6 / 8", Fraction(-3, 4)),
        ("1.5/3", Fraction(1, 2)),
        ("15%", Fraction(3, 20)),
        ("12.5 %", Fraction(1, 8)),
        ("7.", 7),
        ("1/0", None),
        ("1,20", None),
        ("1200,000", None),
        ("--5", None),
        ("-$-5", None),
        ("", None),
        (".", None),
        ("$", None),
        ("%", None),
        ("1e5", None),
        ("1 1/2", None),
        ("5 apples", None),
        ("1.2.3", None),
        ("\u0663", 3),
        ("５", 5),
        ("58{,}500", 58500),
        (r"58\,500", 58500),
        (r"58,\!500", 58500),
        ("58 500", 58500),
        ("58\u202f500.5", Fraction(117001, 2)),
        ("58, 500", None),
        ("58 50", None),
        ("1,234 567", None),
        ("**58**", 58),
        ("$**58**$", 58),
        ("`58`.", 58),
        ("#### 58", 58),
        ("5*8", None),
        ("²", None),
        ("9" * 201, None),
    ],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


def test_numeric_match():
    assert numeric_match("0.5", "1/2")
    assert numeric_match("1200", "$1,200.00")
    assert not numeric_match("0.333", "1/3")  # exact, no tolerance
    assert not numeric_match("0.1", "0.1000000000000000001")
    assert not numeric_match("5", "five")
    assert not numeric_match("5", None)
    assert numeric_match("x + 1", " x + 1 ")  # not a number: compared as text
    assert not numeric_match("x + 1", "1 + x")


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("72", r"\boxed{72}", True), ("72", r"It is $\boxed{72}$.", True), ("72", "$72$", True),
        ("72", "$$72$$", True),
        ("72", "72$", True), ("72", "= 72", True), ("72", "$= 72$", True), ("72", r"\( 72 \)", True),
        ("72", r"\[72\]", True), ("72", r"\$72", True), ("72", r"$\$72$", True), ("72", "$72$.", True),
        (r"\boxed{72}", "72", True), ("72", r"\boxed{72} or \boxed{73}", False), ("72", r"\boxed{72", False),
        ("72", "x = 72", False), ("72", "71 = 72", False), ("72", "$7$2$", False), ("72", "-72", False),
        ("50", "50%", True), ("50%", "50", True), ("50%", "0.5", True), ("0.5", "50%", True), ("0.5", r"50\%", True),
        ("50%", "50 %", True), (r"\boxed{50\%}", "1/2", True),
        ("50", "0.5", False), ("0.5", "50", False), ("50%", "5000%", False), ("50%", "0.5%", False),
        ("50%", "5000", False), ("50%", "0.005", False), ("50", "50%%", False),
    ],
)  # fmt: skip
def test_numeric_in_boxes_and_dollars_and_per_cent(reference, answer, right):
    assert numeric_match(reference, answer) is right


@given(st.fractions(max_denominator=10**6))
def test_numbers_survive_writing(value):
    assert parse_number(f"{value.numerator}/{value.denominator}") == value
    assert parse_number(f"{value.numerator:,}") == value.numerator


# What may be called in any process: the graders, and of those that need a process of their own the safe part.
SAFE = {name: row.quick or row.grade for name, row in GRADERS.items()}
ISOLATED = {name for name, row in GRADERS.items() if row.quick is not None}


@given(st.text(), st.one_of(st.none(), st.text()))
def test_graders_are_total(reference, answer):
    for name, grade in SAFE.items():
        assert grade(reference, answer) in ((True, False, None) if name in ISOLATED else (True, False)), name
        assert grade(reference, None) is False
    extract_answer(reference + "</think><answer>" + (answer or ""), TAGS)


REFERENCES = {
    "exact_match": "5", "numeric": "5", "math": "5", "countdown": "(1+2)*3", "multiple_choice": "option 2: five",
    "telemath": "5.0", "tool_call": '{"name": "f", "arguments": {"x": 5}}', "code_output": "[5]", "prefix": "5 of them",
    "nearest_option": '["five cells", "six cells"]',
    "bfcl": '{"functions": [{"name": "f", "parameters": {"properties": {}, "required": []}}], "possible": [{"f": {}}]}',
    "code_tests": '{"prompt": "def f():\\n", "test": "def check(f):\\n    assert f() == 5", "entry_point": "f"}',
    "reasoning_gym": pack("countdown", {}, {"answer": "19 + 3 - 9", "metadata": {"numbers": [19, 9, 3], "target": 13}}),
}  # fmt: skip
HOSTILE = [
    "(" * 1_000_000, "[" * 1_000_000, '{"a":' * 200_000, "-" * 1_000_000, "9" * 1_000_000, " " * 1_000_000,
    "\x00" * 1_000_000, "9**9**9", "9" * 150 + "/" + "9" * 149, "\\boxed{" * 150_000, "\\boxed" + " " * 1_000_000,
    "\\boxed{5" + "}" * 1_000_000 + "\\boxed{", "\\frac{" * 150_000, "$" * 1_000_000, "<tool_call>" * 100_000,
    "```" * 300_000, "~" * 900_000 + "\n~",
    "```python\n" * 100_000, "answer " * 150_000, "answer" + " " * 1_000_000 + ":", "**" * 500_000,
    "(1+2)*3" + "+0" * 500_000, "\u0663", "\ud800", "\udfff\x00", "1e999999999", "nan", "inf", "NaN",
    "__import__('os')", "option " + "9" * 1_000_000, "", " ", "\n" * 1_000_000,
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_not_right_and_cost_nothing(answer):
    """A linear scan of these takes milliseconds; a quadratic one would not come back."""
    assert set(REFERENCES) == set(GRADERS)
    for name, grade in SAFE.items():
        verdict = grade(REFERENCES[name], answer)
        assert verdict is False or (verdict is None and name in ISOLATED and len(answer) <= 100_000)


@pytest.mark.parametrize("name", sorted(set(SAFE) - ISOLATED))
def test_a_hostile_reference_is_only_compared(name):
    for text in HOSTILE:
        assert SAFE[name](text, "4") is False


@pytest.mark.parametrize(
    "text",
    [
        "<answer" * 150_000,
        "</think>" * 150_000,
        "</think><answer>" + "<" * 1_000_000,
        "\x00" * 1_000_000,
        "</think><answer>" + "9" * 1_000_000 + "</answer>",
        "</think><answer>" + "1," * 500_000 + "</answer>",
        "</think><answer>" + " " * 1_000_000 + "/</answer>",
        "</think><answer>" + "$" * 1_000_000 + "</answer>",
        "\ud800</think><answer>\udfff</answer>",
    ],
)
def test_hostile_text_is_only_wrong(text):
    """A linear scan of these takes milliseconds; a quadratic one would not come back."""
    answer = extract_answer(text, TAGS)
    assert not exact_match("5", answer)
    assert not numeric_match("5", answer)
    numeric_match(answer or text, answer)


def test_a_grader_is_one_row_and_the_documents_have_it():
    """Everything else is read from the row: what it is compared with, where it runs, what it says about itself."""
    page = (Path(__file__).parents[2] / "docs" / "grading.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert set(GRADERS) <= set(table)
    for name, row in GRADERS.items():
        assert row.about and "\n" not in row.about, name
        if row.quick is not None:  # a worker finds it by its module and name
            assert getattr(sys.modules[row.grade.__module__], row.grade.__name__) is row.grade
    check = '{"test": "check"}'
    example = Example("1", "?", "answer", check=check)
    compared = {name: reference_of(name, example) for name in GRADERS}
    assert compared == {
        name: check if name in ("bfcl", "code_tests", "reasoning_gym") else "answer" for name in GRADERS
    }
    for check in ("", '{"rejected": ["few"], "alternatives": ["many"]}'):
        assert reference_of("code_tests", Example("1", "?", "answer", check=check)) == "answer"


@pytest.mark.parametrize(
    "answer, right",
    [
        ("the cat", True),
        (" the cat sat. ", True),
        ("the", True),
        ("the cat sat", True),  # before the full stop
        ("th", False),
        ("the ca", False),
        ("The", False),
        ("cat", False),
        ("", False),
        (None, False),
        ("the cat sat. on", False),
    ],
)
def test_a_prefix_ends_where_a_word_ends(answer, right):
    assert GRADERS["prefix"].grade("the cat sat.", answer) is right
