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
from rl_likelihood.grading.text import choice, multiple_choice
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
        ("50%", "5000", False), ("50", "50%%", False),
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
    "text, number",
    [
        ("B", 2), ("b", 2), ("(B)", 2), ("(b) Text", None),
        ("(b) text", None), ("[C]", 3), ("B.", 2), ("B. 5G core", None), ("B) 5G core", None),
        ("B: 5G core", None), ("B - 5G core", None), ("**B**", 2), ("**B.** Text", None),
        ("B!", 2), ("B;", 2), ('The answer is "B"', 2), ("I think it is B", 2),
        ("Clearly, B", 2), ("B\u3002", 2), ("`B`", 2), ("\\boxed{B}", 2),
        ("$\\boxed{\\text{B}}$", 2), ("\\text{(B)}.", 2), ("option 2", 2),
        ("Option 2: 5G core", None), ("OPTION 2.", 2),
        ("(option 2)", 2), ("option B", 2), ("choice c", 3), ("option 12", 12), ("Answer: B", 2),
        ("answer is (D)", 4),
        ("The correct answer is B.", 2), ("The answer is: option 3", 3), ("  J \n", 10), ("A\nbecause", None),
        ("I say A, so \\boxed{C}", 3), ("Answer: **B**", 2), ("**Answer:** B", 2), ("The answer is **(B)**.", 2),
        ("The correct option is C.", 3), ("The correct choice is (C)", 3), ("The right option is: C) 5G", None),
        ("So the answer is C", 3), ("Therefore, the correct answer is option C.", 3), ("I choose C.", 3),
        ("I would pick (C)", 3),
        ("The best choice would be C", 3), ("Option C is correct.", 3), ("Correct option: C", 3),
        ("Final Answer: C", 3),
        ("The answer is C which is a cat", None), ("C is the correct option", 3), ("It's C.", 3), ("#### C", 3),
        ("\uff23", 3),
        ("\uff08\uff23\uff09", 3), ("The correct answer would be: **C**", 3), ("My answer is C", 3), ("<C>", 3),
        (r"\boxed{\text{(C)}}", 3), (r"\boxed{\textbf{C}}", 3), (r"\boxed{\mathrm{C}}", 3),
        (r"\boxed{\mathbf{(C)}}", 3),
        (r"\boxed{\text{Option C}}", 3), (r"\boxed{(C)\ 5G}", None), (r"\boxed{\text{C) 5G}}", None),
        (r"$\boxed{\textbf{(C)}\ 12}$", None),
        (r"\boxed{\text{The answer is C}}", 3), (r"The answer is \(C\).", 3), (r"\boxed{\left(C\right)}", 3),
        ("(D) Both (A) and (B)", None), ("D. Both A and B", None), ("D) Neither A nor B", None),
        ("option 4: Both (A) and (B)", None),
        ("(D) All of the above", None), ("(E) Only A and C", None), ("(D) A and B", None), ("D. Options A and B", None),
        ("\\boxed{(D) Both (A) and (B)}", None), ("The answer is (D) Both (A) and (B).", None),
        ("(D) Both (A) and (B). No: (C)", None),
        ("(D) or (A)", None), ("(A) (B) and (C)", None), ("Both (A) and (B)", None), ("A and B", None),
        ("The answer is A or B", None),
        ("The correct options are A and B", None), ("The answer is a cat", None), ("The answer is A cat", None),
        ("The option", None),
        ("not C", None), ("The answer is not C", None), ("The incorrect option is C", None),
        ("C or D is right", None),
        ("**B** is right", 2), ("B because it is", None), ("B, since it is", None), ("B is the answer.", 2),
        ("__B__", 2),
        ("B. USB type C.", None),
        ("B: Packet(s) of f(x), U.S. rules", None), ("B. 25 C and F = ma", None), ("B. A cat", None),
        ("(B) is right, so (B)", 2),
        ("b. i.e. this", None), ("A.B.C.D.", None), ("Answer: A. B. C. D.", None), ("Answer: A.B.C.", None),
        ("(A) or (B)", None), ("A. B. C. D.", None), ("(A)(B)(C)(D)", None), ("B) and C)", None),
        ("A\nB\nC\nD", None),
        ("option 1, option 2", None), ("Answer: A. Answer: B", None), ("(A), (B), (C)", None), ("**A** **B**", None),
        ("\\boxed{(A) or (B)}", None), ("A) or B", None), ("A: x; B: y", None), ("option A or option B", None),
        ("B or C", None), ("A cat", None), ("I think B", None), ("Beta", None), ("2", None), ("", None), ("BB", None),
        ("option", None), ("option 0", None), ("option 123", None), ("optional", None), ("(B", 2), ("B, C", None),
        *[(text, None) for text in (
            "Option B is wrong", "Option B is incorrect, C is right", "(B) is wrong", "(B) is false",
            "B because C is right", "B\n\nActually C", "B is wrong", "B. is wrong", "B: wrong",
            "B. No. C is right", "B. No. A is right",
            "B - C",
            "B is right? No", "B is right, no C", "B is correct because C", "option 2 or 3", "option 2.5", "option 2/3",
            "I choose B not", "I pick B over C", "it is B or", "B as in C", "B. I mean C", "B. Rather than C", "(B) A",
            "B because " + "it is " * 100 + "C",
        )],
        ("\u0412", None), ("B2", None), ("the answer is", None), ("\\boxed{A} \\boxed{B", None),
    ],
)  # fmt: skip
def test_choice(text, number):
    assert choice(text) == number


# What follows or leads to a name says that it is wrong, names another, or is not read; none of it is the option's text.
NOT_B = (
    """
B. This is wrong|B: Incorrect|B) Wrong answer|(B) Not the right option|B. Not correct|B. False|Option B: Eliminated
B. The third option is right|B. Only C is right|B because B is wrong|B since it is not B|B, which is wrong
B, as c is right|B because (c) is right|B as the answer is c|B is right. Answer: c|~B|~~B~~|\\neg B|\u00acB
\\overline{B}|B'|B?|not B|B is not right|The answer is not B|B is the wrong answer|B.2|B2|-B|!B|B^c|B: C|B (C)|B > C
Is it B|B is the best answer of the worst|Anything but B|I would not choose B|B isn't right|B is right, C is right
The answer is B because C is right|The answer is B since it is not A|The answer is B because it is small. Actually C
The answer is B because option C is small|The answer is B because|The answer is B because of x: C|It is B because of C
B (incorrect)|B (wrong)|B, the wrong answer|Only B is wrong|Not only B is right|The least appropriate answer is B
The answer to the question is not B|The incorrect one is B|We do not choose B|B (correct) C|that would not be B
\\cancel{B}|B is true is false|The answer is B is wrong|2|C|B#|B++|the second option|B and C
\\boxed{B} is wrong, \\boxed{C}
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
IS_B = (
    """
I'd choose B|I'll go with B|Definitely B|It must be B|(B|B)|Ans: B|Answer - B|Answer = B|b|[B]|'B'|"B"
The answer is (B).|Option B|choice B|**B** is right|B is the correct option.|So the answer is B|B is right, so (B)
The answer is B because A and C are too small.|The correct answer is (B), since 5G has it|The option is B because of x
It has to be B|ANSWER: B|Option B is correct. Answer: B|The right answer is definitely B|The correct choice must be B
The most appropriate answer is B|The correct answer choice is B|The correct one is B|We choose B|that would be B
B (correct)|B, the correct answer|The answer to the question is B|Only B is correct|### B
B is clearly right|option 2|\\boxed{\\text{(B)}}|the letter B|$\\mathbf{B}$|Final answer - (b)
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


def test_a_bare_letter_is_named_and_nothing_else_is_said():
    assert len(NOT_B) > 40 and len(IS_B) > 25
    assert [text for text in NOT_B if multiple_choice("B", text)] == []
    assert [text for text in IS_B if not multiple_choice("B", text)] == []


@pytest.mark.parametrize(
    "reference, right, wrong",
    [
        (
            "option 2: 5G core",
            "B|b|2|2.|(2)|option 2|2. 5G core|B: 5g core|B (5G core)|the answer is B, 5G core.|"
            "B - 5G core is right|choice B",
            "C|3|-2|2.5|2/3|22|2 or 3|5G core|2. 4G|B. packets|B. 5G core, or C|B. 5G cores",
        ),
        ("option 4: Both (A) and (B)", "D|4|(D) Both (A) and (B)|D is right", "A|B|Both (A) and (B)"),
        ("(b) text", "B|b) text|(B) Text.", "2|(b) texts|(a) text"),
        ("B. Yes", "B|b. yes|B: Yes is correct", "B. No|B. Yes is wrong|2|Yes"),
        ("B", "option 2", "not B|B. packets"),
        ("C", "c", "(c) 7"),
        ("option 12", "12|L", "2|1"),
        ("Paris", " Paris ", "P|B"),  # no choice: compared as text
        ("A, B", "A, B", "A|B"),
        ("A cat", "A cat", "A"),
        ("The answer is 5", "The answer is 5", "5|E"),
        ("2", "2", "B|option 2"),
    ],
)
def test_the_options_own_text_may_follow_where_it_is_known(reference, right, wrong):
    assert [text for text in right.split("|") if not multiple_choice(reference, text)] == []
    assert [text for text in wrong.split("|") if multiple_choice(reference, text)] == []
    assert not multiple_choice(reference, None)


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
    table = re.findall(
        r"^\| `(\w+)` \|", (Path(__file__).parents[2] / "docs" / "data.md").read_text().split("## Grading")[1], re.M
    )
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
