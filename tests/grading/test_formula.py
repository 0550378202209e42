"""Formulas: what they are read as, and that what is not read whole is refused."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from rl_likelihood.grading import units
from rl_likelihood.grading.formula import Formulas
from rl_likelihood.grading.notation import latex, without_markdown
from rl_likelihood.grading.statements import read
from rl_likelihood.grading.tokens import Unreadable, tokens
from rl_likelihood.grading.tree import Node, call, number
from rl_likelihood.grading.values import proportional, real, same_value

X, Y = Node("name", ("x",)), Node("name", ("y",))


@pytest.mark.parametrize(
    "text, node",
    [
        ("12", number(12)),
        ("x", X),
        ("2x", Node("mul", (number(2), X))),
        ("x/y", Node("div", (X, Y))),
        ("x^2", Node("pow", (X, number(2)))),
        ("-x", Node("neg", (X,))),
        ("x, y", Node("list", (X, Y))),
        ("(x, y]", Node("sequence", ("(", "]", X, Y))),
        (r"\{x\}", Node("set", (X,))),
        (r"\sqrt x", call("root", X, number(2))),
        (r"x = y", Node("relation", (("=",), X, Y))),
        (r"2\text{ cm}", Node("unit", (number(2), "cm", True))),
        (r"2\text{ ways}", Node("unit", (number(2), "ways", False))),
        ("2 m/s", Node("measure", (number(2), "m / s", read("2(m)/s")))),
        ("f(x)", Node("apply", ("f", X))),
        ("x(y)", Node("mul", (X, Y))),
        ("x < 1 or x > 2", Node("or", (read("x < 1"), read("x > 2")))),
        ("x = 1 or x = 2", Node("list", (read("x = 1"), read("x = 2")))),
        ("xyz", Node("run", ("xyz",))),
        (r"\frac12", Node("div", (number(1), number(2)))),
        (r"\begin{pmatrix}x&y\end{pmatrix}", Node("matrix", ("matrix", (X, Y)))),
        ("2 1/2", number(Fraction(5, 2))),
        (r"3{\frac{1}{2}}", number(Fraction(7, 2))),
        (r"3\frac{x}{2}", Node("mul", (number(3), Node("div", (X, number(2)))))),
        (r"3\frac{0}{2}", Node("mul", (number(3), Node("div", (number(0), number(2)))))),
    ],
)
def test_read(text, node):
    assert read(text) == node


@pytest.mark.parametrize(
    "text",
    ["", "x +", "+", "(x", "x)", "[x)", r"\foo", "x y z $", "1 2", "x = ", "5 cm cm 3", r"\frac{1}", r"\|x\|", "x^",
     "x_",     "x^{2}^{3}", "5!!", "5.", "1.2.3", r"\sqrt[3", "a @ b", "{",
     r"\begin{pmatrix}1", r"\begin{pmatrix}1&2\\3\end{pmatrix}",
     "5{1}", "{5}{1}", "x<1 and x>2 or x>3", "[[1],[2,3]]",
     r"\{x | x = 0\}", r"\{x | y > 0\}", r"\{x : x > 0", "0.12...", "5 % %", r"x million", "word word = 3 ."],
)  # fmt: skip
def test_what_is_not_read_whole_is_refused(text):
    with pytest.raises(Unreadable):
        read(text)


def test_a_number_before_nested_fractions_is_read_once(monkeypatch):
    """Each fraction was read twice, and so were the fractions in it: 2 to the power of the levels."""
    read_factors, factor = [], Formulas.factor
    monkeypatch.setattr(Formulas, "factor", lambda self: read_factors.append(1) or factor(self))
    with pytest.raises(Unreadable):
        read(r"2\frac{" * 16 + "x" + "}{3}" * 16)  # too deep
    assert len(read_factors) <= 2 * 16
    read_factors.clear()
    read(r"2\frac{" * 9 + "x" + "}{3}" * 9)
    assert len(read_factors) == 9 * 3 + 1  # 2, the fraction and the 3 of each level; x


def test_tokens_are_numbers_names_words_and_signs():
    kinds = [token.kind for token in tokens(r"1,200 x + \pi \text{ cm}")]
    assert kinds == ["number", "name", "op", "command", "word"]
    assert tokens("58,500")[0].value == 58500 and tokens("(58,500)")[1].value == 58
    assert tokens(r"0.1\overline{6}")[0].value == Fraction(1, 6) and tokens("2.5e-3")[0].value == Fraction(1, 400)
    assert [token.text for token in tokens("2_8")] == ["2_8"]


@pytest.mark.parametrize(
    "text, written",
    [("x²", "x^{2}"), ("√3", r"\surd 3"), ("½", r"\frac{1}{2}"), ("³⁄₄", r"\frac{3}{4}"), ("５", "5"), ("π", r"\pi "),
     ("a₁₂", "a_{12}"), ("3̅", r"\overline{3}"), ("−5", "-5"), ("≤", r"\le "), ("五", "五"), ("é", "é"), ("x", "x")],
)  # fmt: skip
def test_unicode_as_latex(text, written):
    assert latex(text) == written


@pytest.mark.parametrize(
    "text, bare",
    [("**58**", "58"), ("*a* and __b__", "a and b"), ("x**2", "x**2"), ("2*3*4", "2*3*4"), ("x_1 + x_2", "x_1 + x_2"),
     ("```py\n5\n```", "5"), ("## 5", "5"), ("`5`", "5"), ("***5***", "5"), ("* 5 *", "* 5 *"), ("**5", "**5")],
)  # fmt: skip
def test_markdown(text, bare):
    assert without_markdown(text) == bare


@pytest.mark.parametrize(
    "words, found",
    [
        ("cm", (1, "cm", True)),
        ("square centimeters", (1, "cm^2", True)),
        ("cm ^2", (1, "cm^2", True)),
        ("million", (10**6, "", True)),
        ("million dollars", (10**6, "dollar", True)),
        ("ways", (1, "ways", False)),
        ("miles per hour", (1, "mile / h", True)),
        ("mph", (1, "mile / h", True)),
        ("square", (1, "square", False)),
        ("a.m.", (1, "am", True)),
        ("inches", (1, "inch", True)),
        ("centuries", (1, "century", True)),
        ("Celsius", (1, "C", True)),
        ("degrees Celsius", (1, "degree C", True)),
        ("m / s ^2", (1, "m / s^2", True)),
        ("kg m / s", (1, "kg * m / s", True)),
        ("cm cm", (1, "cm cm", False)),
        ("cm per", (1, "cm per", False)),
        ("per hour", (1, "per hour", False)),
        ("squared", (1, "squared", False)),
        ("square cm squared", (1, "square cm squared", False)),
    ],
)
def test_units(words, found):
    assert dataclasses.astuple(units.canonical(words)) == found


def test_values_are_equal_exactly():
    assert same_value(read("(x+1)^2"), read("x^2+2x+1")) and not same_value(read("(x+1)^2"), read("x^2+2x+2"))
    assert same_value(read(r"\sin^2 x + \cos^2 x"), number(1)) and not same_value(read(r"\sin x"), read(r"\cos x"))
    assert same_value(read("e^{i\\pi}"), number(-1)) and same_value(read(r"\frac{x^2-1}{x-1}"), read("x+1"))
    assert not same_value(read(r"\sqrt{2}"), read("1." + "41421356237309504880168872420969807856967"))
    assert not same_value(read(r"\frac{1}{0}"), read(r"\frac{2}{0}"))
    with pytest.raises(Unreadable):
        same_value(read("2^{10^{10}} x"), read("x"))


def test_equations_are_equal_up_to_a_factor():
    assert proportional(read("x-2y"), read("4y-2x")) and not proportional(read("x-2y"), read("x+2y"))
    assert not proportional(read("x-2y"), read("x-2y+1")) and not proportional(number(1), number(2))


def test_real_values():
    assert real(read(r"\frac{\sqrt{25}}{2}")) == 2.5 and real(X) is None and real(read("3i")) is None
    assert real(read(r"\frac{1}{0}")) is None and real(read(r"10^{400}")) is None
