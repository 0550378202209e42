"""An answer that repeats a formula of its question is wrong, unless it is written as the reference is."""

from __future__ import annotations

import pytest

from rl_likelihood.grading.copied import parted, with_question, written
from rl_likelihood.grading.graders import GRADERS, reference_of
from rl_likelihood.grading.mathematics import math_match
from rl_likelihood.shapes import Example


def right(question: str, reference: str, answer: str) -> bool | None:
    return math_match(reference_of("math", Example("1", question, reference)), answer)


# question, reference, answer, with the question, without it
CASES = [
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7x^2-63", False, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", r"\boxed{-63 + 7 \cdot x^{2}}", False, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "y = 7x^2-63", False, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7(x-3)(x+3)", True, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7x^2-63 = 7(x+3)(x-3)", True, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7(x^2-9)", True, True),  # as far as the values say
    (r"Compute $\sin 30^\circ$.", r"\frac{1}{2}", r"$\sin 30^{\circ}$", False, True),
    (r"Compute $\sin 30^\circ$.", r"\frac{1}{2}", "1/2", True, True),
    (r"What is \(\log_264 = ?\)", "6", r"\log_2 64", False, True),
    (r"\[\dbinom{15}{2}\] Compute it.", "105", r"\binom{15}{2}", False, True),
    (r"Rationalize $\frac{5}{\sqrt{3}}$.", r"\frac{5\sqrt3}{3}", r"\frac{5}{\sqrt3}", False, True),
    (r"Rationalize $x = \frac{5}{\sqrt{3}}$.", r"\frac{5\sqrt3}{3}", r"5/\sqrt3", False, True),
    (r"Express $0.\overline{5}$ as a fraction.", r"\frac59", r"0.\overline{5}", False, True),
    (r"Convert $60^\circ$ to radians.", r"\frac{\pi}{3}", r"60^\circ", False, True),
    (r"Write $60\%$ as a fraction.", r"\frac35", r"60\%", False, True),
    (r"Simplify $\frac{3}{6}$.", r"\frac12", r"\frac{3}{6}", False, True),
    (r"Compute \[2^4 - 4 \times 1^4 \, .\]", "12", r"2^4 - 4 \times 1^4", False, True),
    (r"Compute $.0\overline{3} \div .\overline{03}$.", "1.1", r".0\overline{3} \div .\overline{03}", False, True),
    (r"\begin{align*} y &= 2x + 2 \end{align*} Factor it.", "2(x+1)", "2x+2", False, True),
    # The same with what changes no value.
    ("Compute $1+2+3+4$.", "10", r"1+2+3+4 \text{ units}", False, True),
    ("Compute $1+2+3+4$.", "10", r"\{1+2+3+4\}", False, True),
    ("Compute $1+2+3+4$.", "10", "1+2+3+4+0", False, True),
    ("Compute $1+2+3+4$.", "10", "(1+2)+(3+4)", False, True),
    ("Compute $1+2+3+4$.", "10", r"\frac{1+2+3+4}{1}", False, True),
    ("Compute $1+2+3+4$.", "10", "(1+2+3+4)^1", False, True),
    ("Compute $1+2+3+4$.", "10", "-(-(1+2+3+4))", False, True),
    ("Compute $1+2+3+4$.", "10", r"10\text{ units}", True, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "1(7x^2-63)", False, True),
    (r"What is $5!$?", "120", r"1\cdot5!", False, True),
    (r"Simplify $x^1+0$.", "x", "x", True, True),
    # The same with other signs and powers.
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7xx-63", False, True),
    ("Factor $7x^2-63$.", "7(x+3)(x-3)", "-(63-7x^2)", False, True),
    (r"What is $\binom{5}{2}$?", "10", r"\binom{5}{3}", False, True),
    (r"Add $\sqrt{50}+\sqrt8$.", r"7\sqrt2", r"\sqrt{50}-(-\sqrt8)", False, True),
    (r"Add $\sqrt{50}+\sqrt8$.", r"7\sqrt2", "50^{1/2}+8^{1/2}", False, True),
    (r"Compute $\sin^2 60^\circ$.", r"\frac34", r"\sin60^\circ\sin60^\circ", False, True),
    (r"Write $\sqrt{x}$ as a power.", "x^{1/2}", r"\sqrt{x}", False, True),
    (r"Write $\sqrt{x}$ as a power.", "x^{1/2}", "x^{0.5}", True, True),
    (r"Simplify $x \cdot x$.", "x^2", "x^{2}", True, True),
    # The same inside of what gives its value again.
    ("Compute $1+2+3+4$.", "10", "|1+2+3+4|", False, True),
    ("Compute $1+2+3+4$.", "10", r"100(1+2+3+4)\%", False, True),
    ("Compute $1+2+3+4$.", "10", r"\max(1+2+3+4, 0)", False, True),
    ("Compute $1+2+3+4$.", "10", "1+2+3+4+5-5", False, True),
    ("Compute $1+2+3+4$.", "10", r"\frac{2(1+2+3+4)}{2}", False, True),
    ("Compute $1+2+3$; add $4$.", "10", "1+2+3+4", True, True),
    (r"Rationalize $\frac{5}{\sqrt{3}}$.", r"\frac{5\sqrt3}{3}", r"\frac53\sqrt3", True, True),
    (r"Write $60\%$ as a fraction.", r"\frac35", r"\frac{60}{100}", True, True),
    ("For $x > 0$, what is the domain?", r"(0,\infty)", "x > 0", True, True),
    # A unit makes another number of a number of the question.
    ("Of $100$ balls $20$ are red.", r"\frac{1}{5}", r"20\%", True, True),
    ("There are $50$ heads in $100$ tosses.", "0.5", r"50\%", True, True),
    ("It takes $0.5$ hour to go.", r"\frac{1}{2}\text{ hour}", r"0.5\text{ hour}", True, True),
    # A number or a letter of the question, and what is written as the reference is.
    ("The first of $5$ and $6$?", "5", "5", True, True),
    ("There are $5$ of them; how many?", r"5\text{ ways}", "5", True, True),
    (r"A rope has $12\text{ cm}$.", "12", r"12\text{ cm}", True, True),
    ("The chance of heads is $0.5$; of tails?", r"\frac12", "0.5", True, True),
    ("Is $x$ or $y$ larger?", "x", "x", True, True),
    (r"Which is larger, $2\sqrt3$ or $\sqrt{10}$?", r"2\sqrt{3}", r"2 \sqrt 3", True, True),
    (r"Which is larger, $\frac12$ or $\frac13$?", r"\frac{1}{2}", "1/2", True, True),
    ("The point $(3, 4)$ or its mirror image?", "(3,4)", "(3, 4)", True, True),
    ("It costs \\$5 and \\$6.", r"\frac{1}{2}", "0.5", True, True),
    ("Compute [asy] $x+x$ [/asy]", "2x", "x+x", True, True),
]


@pytest.mark.parametrize("question, reference, answer, asked, alone", CASES)
def test_a_formula_of_the_question_is_no_answer(question, reference, answer, asked, alone):
    assert right(question, reference, answer) is asked
    assert math_match(reference, answer) is alone


def test_a_reference_travels_with_its_question_only_if_that_has_formulas():
    assert GRADERS["math"].reads == "question"
    assert with_question("5", "How many?") == "5" and parted("5") == ("5", "")
    assert parted(with_question('"5"', "$x$ {")) == ('"5"', "$x$ {")
    for odd in ('{"answer": ', '{"answer": 1}', '{"answer": "5"', "{" * 9_000):
        assert parted(odd) == (odd, "") and math_match(odd, "5") is False
    assert written(r"$a$ and \(b\), \[c\] $$d$$ \$5 \begin{align*}e\end{align*}") == ["a", "b", "c", "d", "e"]
