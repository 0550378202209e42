"""reasoning_gym's own rules: what they accept, what they never see, and what becomes of them in the pool."""

from __future__ import annotations

import itertools
import os

import pytest

from rl_likelihood.datasets.procedural import generate
from rl_likelihood.grading.gym import gym_match, gym_quick, is_formula, is_literal, pack, unpack
from rl_likelihood.grading.pool import Pool


def asked(text: str):
    """The first question of a task."""
    return next(generate(text, 0, "test"))


COUNTDOWN = pack(
    "countdown",
    {},
    {
        "question": "?",
        "answer": "19 + 3 - 9",
        "metadata": {"numbers": [19, 9, 3], "target": 13, "expression": "19 + 3 - 9"},
    },
)
SPIRAL = pack("spiral_matrix", {}, {"question": "?", "answer": "1 2 3", "metadata": {}})
INTEGRAL = pack(
    "simple_integration",
    {},
    {
        "question": "?",
        "answer": "x**2 + C",
        "metadata": {"integrand": "2*x", "variable": "x", "expected_answer_expression": "x**2"},
    },
)
TEXT = pack("reverse_sentence", {}, {"question": "?", "answer": "b a", "metadata": {}})

TABLE = [
    (COUNTDOWN, "19 + 3 - 9", True),
    (COUNTDOWN, " 3 - 9 + 19\n", True),  # another solution
    (COUNTDOWN, "(19 - 9) + 3", True),
    (COUNTDOWN, "19 - 9 - 3", False),  # 0.05: the numbers, not the value
    (COUNTDOWN, "10 + 3", False),
    (COUNTDOWN, "19 + 3 - 9 = 13", False),
    (SPIRAL, "1 2 3", True),
    (SPIRAL, "[1, 2, 3]", False),  # 0.1
    (SPIRAL, "1 2 3 4", False),  # 5/7 of a substring
    (INTEGRAL, "x**2 + C", True),
    (INTEGRAL, "C + x*x", True),
    (INTEGRAL, "x**2 + sin(x) - sin(x) + C", True),
    (INTEGRAL, "x**3 + C", False),
    *[(INTEGRAL, text, False) for text in ("x**2 + oo", "x**2 + y", "x**2 + C!", "x**2 + E", "x**2 + k")],
    (INTEGRAL, "x is x^2, and so on", False),
    (TEXT, "b a", True),
    (TEXT, "a b", False),
    (TEXT, "", False),
    (TEXT, None, False),
    ("42", "42", True),  # no item: compared as text
    ("42", "43", False),
]


@pytest.mark.parametrize("reference, answer, right", TABLE)
def test_its_own_rule_with_all_of_its_points(reference, answer, right):
    assert gym_match(reference, answer) is right
    assert gym_quick(reference, answer) in (right, None)


def test_half_points_and_substrings_are_wrong():
    e = asked("letter_counting")
    assert gym_match(e.check, e.answer) and not gym_match(e.check, f"{e.answer}.") and not gym_match(e.check, "no")


def test_an_item_comes_back_as_it_was():
    item = {"answer": "a", "metadata": {"grid": ((1, 2), (3,)), "rows": [1, (2, [3])], "none": None, "é": "\u2028"}}
    found = unpack(pack("x", {"pair": (1, 2)}, item))
    assert (found.dataset, found.item) == ("x", item)
    for text in (
        "",
        "5",
        "[]",
        "{}",
        "null",
        "{" * 10_000,
        '{"reasoning_gym": 1}',
        '{"reasoning_gym": "x", "parameters": {}, "item": 5}',
        '{"reasoning_gym": [], "parameters": {}, "item": {}}',
    ):
        assert unpack(text) is None


MARK = "RL_LIKELIHOOD_TEST_WAS_EVALUATED"
ATTACKS = [
    f"__import__('os').environ.__setitem__('{MARK}', '1')",
    f"[__import__('os').environ.__setitem__('{MARK}', '1')]",
    f'\'__import__("os").environ.__setitem__("{MARK}", "1")\'',
    f"[x for x in [__import__('os').environ.update({MARK}='1')]]",
    f"(lambda: __import__('os').environ.update({MARK}='1'))()",
    f"  __import__('os').environ.update({MARK}='1')",
    f"__import__('os').environ.update({MARK}='1')!",
    f"S('__import__(\"os\").environ.update({MARK}=1)')",
    f"f'{{__import__(\"os\").environ.update({MARK}=1)}}'",
    f"getattr(x, '__class__') or open('{MARK}', 'w')",
]


@pytest.mark.parametrize("answer", ATTACKS)
@pytest.mark.parametrize(
    "reference",
    [
        COUNTDOWN,
        SPIRAL,
        INTEGRAL,
        *(
            pack(
                name,
                {},
                {"question": "?", "answer": "1", "metadata": {"valid_answers": ["1"], "numbers": [1], "solution": "1"}},
            )
            for name in (
                "n_queens",
                "binary_matrix",
                "string_insertion",
                "puzzle24",
                "polynomial_multiplication",
                "intermediate_integration",
            )
        ),
    ],
)
def test_a_models_answer_is_never_evaluated(reference, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gym_match(reference, answer) in (False, None)
    assert MARK not in os.environ and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["x**2/2 + C", "(19-9)*3", "sin(x)*exp(2*x)", "1, 2; 3".replace(";", ","), "-1.5", "[1]"]
)
def test_formulas(text):
    assert is_formula(text)


@pytest.mark.parametrize(
    "text", ["'a'", "x.real", "1 .real", "a_b", "chr(1)", "x\\y", "__", "é", "S('1')", "`a`", "\u0663"]
)
def test_not_formulas(text):
    assert not is_formula(text)


def test_literals_and_what_is_no_python_at_all():
    assert is_literal("['a', (1, 2)]") and is_literal("1 2 3") and is_literal("Q _\n_ Q") and is_literal("\x00")
    assert not is_literal("f(1)") and not is_literal("[x for x in y]") and not is_literal("(" * 150 + ")" * 150 + "()")


def test_a_rule_that_cannot_read_the_answer_says_wrong_and_one_that_breaks_down_nothing():
    e = asked("prime_factorization")
    assert gym_match(e.check, "hello") is False  # it raises ValueError
    broken = pack("prime_factorization", {}, {"question": "?", "answer": "two", "metadata": {}})
    assert gym_match(broken, "2 × 2") is None and gym_match(broken, "2 x 2") is False
    assert gym_match(pack("no_such_set", {}, {"answer": "1"}), "1.0") is None
    assert gym_match(pack("leg_counting", {"bad": 1}, {"answer": "1"}), "1.0") is None


@pytest.mark.parametrize(
    "dataset, junk",
    [("game_of_life_halting", "hello"), ("coin_flip", "0"), ("complex_arithmetic", "nan"), ("chain_sum()", "inf")],
)
def test_no_answer_is_right_whatever_was_asked(dataset, junk):
    e = asked(dataset)
    assert gym_match(e.check, e.answer) and not gym_match(e.check, junk)


PUZZLE = pack("puzzle24", {}, {"question": "?", "answer": "1*(7*4 - 4)", "metadata": {"numbers": [7, 4, 4, 1]}})
NUMBERS = pack("number_sorting", {}, {"question": "?", "answer": "['-25.9', '-50.51', '-74.0']", "metadata": {
    "direction": "descending"}})  # fmt: skip
SUM = pack("chain_sum", {}, {"question": "?", "answer": "42", "metadata": {}})
HALF = pack(
    "fraction_simplification",
    {},
    {"question": "?", "answer": "1/2", "metadata": {"simplified_numerator": 1, "simplified_denominator": 2}},
)
LIFE = pack(
    "game_of_life", {}, {"question": "?", "answer": "[[0,1],[1,0]]", "metadata": {"solution": [[0, 1], [1, 0]]}}
)


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        *[(PUZZLE, text, True) for text in ("1*(7*4 - 4)", "(7*4-4)*1", "(7 * 4 - 4) / 1", "7*4-4*1", "1 * 7 * 4 - 4")],
        *[(PUZZLE, text, False) for text in (
            "1*2*3*4", "24", "7*4-4", "7*4-4+1-1", "6*4*1*1", "1*9*3 - 3", "7*4-4*1 = 24", "7+4+4+1", "24*1",
            "74-41-9", "",
        )],
        (NUMBERS, '["-25.9", "-50.51", "-74.0"]', True), (NUMBERS, "[-25.9, -50.51, -74]", True),
        *[(NUMBERS, text, False) for text in (
            "['-25.9', '-50.51', '-74.1']", "['-25.0', '-50.51', '-74.0']", "['-25.9', '-50.51']",
            "-25.9, -50.51, -74.0",
            "['-74.0', '-50.51', '-25.9']", "[]", "[null, 1, 2]",
        )],
        *[(SUM, text, True) for text in ("42", "**42**", r"\boxed{42}", "$42$", r"so \boxed{**42**}")],
        *[(SUM, text, False) for text in ("**43**", r"\boxed{43}", "$4 2$", "not **42**", "**42** or 43")],
        (SUM, r"\boxed{42} \boxed{43}", False),
        (TEXT, "**b a**", True), (TEXT, r"\boxed{a b}", False), (COUNTDOWN, r"$19+3-9$", True),
        (INTEGRAL, "$x**2 + C$", True), (INTEGRAL, "$x**3 + C$", False),
        (HALF, r"\boxed{1/2}", True), (HALF, r"\boxed{2/4}", False), (HALF, "**2/4**", False),
        (LIFE, "[[0, 1], [1, 0]]", True), (LIFE, "[[0,1],[1,1]]", False), (LIFE, "[[0,0],[0,0]]", False),
    ],
)  # fmt: skip
def test_rules_that_do_not_test_the_question_are_replaced(reference, answer, right):
    assert gym_match(reference, answer) is right


def item(dataset: str, answer: str, **metadata) -> str:
    return pack(dataset, {}, {"question": "?", "answer": answer, "metadata": metadata})


GSM = item("gsm_symbolic", "405")
DEGREES = item("advanced_geometry", "54.7\u00b0")
BACKWARD = item("spell_backward", "olleh")
FRACTION = item("fraction_simplification", "$\\frac{3}{4}$",
                simplified_numerator=3, simplified_denominator=4, numerator=6, denominator=8)  # fmt: skip
ROWS = item("survo", "1 2\n3 4", board_size=2, solution=[[1, 2], [3, 4]])
KAKURASU = item("kakurasu", "1 0\n0 1", row_sums=[1, 2], col_sums=[1, 2], n_rows=2, n_cols=2)
KNIGHTS = item("knights_knaves", "Zoey is a hero, and Aria is a villain.")
PRIMES = item("prime_factorization", "3 × 5")
ROOTS = item("polynomial_equations", "-0.5, 1.5")
LOCK = asked("quantum_lock").check


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        *[(GSM, text, True) for text in ("405", "405.0", " 405 ")],
        *[(GSM, text, False) for text in ("405 \u0663\u0664", "405\u0663", "405\u00b0", "405\u00b2")],
        *[(BACKWARD, text, False) for text in ("olleh\u0663", "olleh\u00b0", "olleh_")],
        (FRACTION, "$\\frac{3}{4}$\u0663", False),
        (DEGREES, "54.7\u00b0 3", False),
        (DEGREES, "54.7\u00b0\u0663", False),
        *[(GSM, text, False) for text in ("-405", "not 405", "405 or 7", "405\n1090", "$405 - 1", "x = 405")],
        *[(BACKWARD, text, True) for text in ("olleh", "OLLEH")],
        *[(BACKWARD, text, False) for text in ("olleh or 7", "olleh olleh", "not olleh", "olleh0", "o l l e h")],
        *[(FRACTION, text, True) for text in ("$\\frac{3}{4}$", "$\\frac{ 3 }{ 4 }$")],
        *[
            (FRACTION, text, False)
            for text in ("$\\frac{3}{4}$ or 7", "$\\frac{3}{4}$ $\\frac{1}{4}$", "-$\\frac{3}{4}$")
        ],
        *[(ROWS, text, True) for text in ("1 2\n3 4", "1  2 \n3 4\n")],
        *[(ROWS, text, False) for text in ("not 1 2\n3 4", "1 2\n3 4 or 7", "-1 2\n3 4")],
        *[(KAKURASU, text, True) for text in ("1 0\n0 1", "1  0\n0 1\n")],
        *[(KAKURASU, text, False) for text in ("-1 0\n0 1", "not 1 0\n0 1", "1 0\n0 1 or 7", "1 1\n0 1")],
        *[
            (KNIGHTS, text, True)
            for text in (
                "Aria is a villain, and Zoey is a hero.",
                "Zoey is a hero, Aria is a villain",
            )
        ],
        *[
            (KNIGHTS, text, False)
            for text in (
                "not Zoey is a hero, and Aria is a villain.",
                "Zoey is a hero, and Aria is a villain, or not",
                "Zoey is a hero, and Aria is not a villain.",
                "Zoey is a hero, and Aria is a villain, and Zoey is a villain",
            )
        ],
        *[(PRIMES, text, True) for text in ("5 × 3", "3×5")],
        *[(PRIMES, text, False) for text in ("3 × 5 × ", "3 × 5 or 7", "-3 × -5", "15", "3 × 5 × 1")],
        *[(ROOTS, text, True) for text in ("1.5, -0.5", "-0.50,1.5")],
        *[(ROOTS, text, False) for text in ("-0.5, 1.5, x", "not -0.5, 1.5", "-0.5", "-0.5, 1.5, 1.5", "0.5, 1.5")],
        *[
            (LOCK, change(asked("quantum_lock").answer), False)
            for change in (
                "not {}".format,
                "not A → {}".format,
                "{} or 7".format,
                "{}...C0".format,
                "{} → C".format,
            )
        ],
        (LOCK, asked("quantum_lock").answer.replace("→", "->"), True),
    ],
)
def test_a_rule_is_asked_only_about_what_it_reads_whole(reference, answer, right):
    assert gym_match(reference, answer) is right


def test_the_degrees_of_a_reference_may_be_left_out():
    assert gym_quick(DEGREES, "54.7") is None and gym_quick(GSM, "405\u00b0") is False


def test_a_partition_written_twice_is_wrong():
    item = {"answer": '[["a", "a"], ["aa"]]', "metadata": {"string": "aa", "solution": [["a", "a"], ["aa"]]}}
    reference = pack("palindrome_partitioning", {}, item)
    assert gym_match(reference, '[["aa"], ["a", "a"]]') is True
    assert gym_match(reference, '[["aa"], ["a", "a"], ["aa"]]') is False
    assert gym_match(reference, '[["aa"]]') is False


def test_one_wrong_cell_of_a_hundred_is_wrong():
    e = asked("game_of_life")
    grid = e.answer.replace("0", "2", 1)
    assert gym_match(e.check, e.answer.replace(",", ", ")) and not gym_match(e.check, grid)
    at = e.answer.index("0")
    assert not gym_match(e.check, e.answer[:at] + "1" + e.answer[at + 1 :])


def test_in_the_pool_a_formula_without_end_is_a_counted_failure():
    with Pool(workers=1, deadline=3.0) as pool:
        answers = ["C + x*x", "9**9**9**9", "x**3", None]
        assert pool.grade("reasoning_gym", [INTEGRAL] * 4, answers) == [True, None, False, False]
        assert pool.failures == 1


def test_long_answers_are_compared_as_text():
    assert gym_quick(COUNTDOWN, "1+" * 6000 + "1") is False
    assert gym_quick(TEXT, "b a" + " " * 1_000_000) is True


def test_seeds_of_tests_and_items_do_not_matter_to_a_rule():
    for e in itertools.islice(generate("countdown(min_numbers=3, max_numbers=3)", 0, "train"), 3):
        assert gym_match(e.check, e.answer) and not gym_match(e.check, "1")
