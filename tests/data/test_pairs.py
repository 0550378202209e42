"""Comparisons out of prepared rows and out of lines as TRL writes them."""

import pytest

from rl_likelihood.data.pairs import Comparison, of_example, of_record
from rl_likelihood.shapes import Example, UserError


def talk(*messages):
    return [{"role": role, "content": content} for role, content in messages]


def test_lines_and_conversations_give_the_same_comparison():
    want = Comparison("x", "Q?", ("good", "bad"), (0.0, 0.0))
    assert of_record({"prompt": "Q?", "chosen": "good", "rejected": "bad"}, "x") == want
    question, good, bad = ("user", "Q?"), ("assistant", " good"), ("assistant", "bad")
    assert of_record({"prompt": talk(question), "chosen": talk(good), "rejected": talk(bad)}, "x") == want
    assert of_record({"chosen": talk(question, good), "rejected": talk(question, bad)}, "x") == want
    several = of_record({"id": 7, "prompt": "Q?", "chosen": "a", "rejected": ["b", "c"], "margin": [1, 0.5]}, "x")
    assert several == Comparison("7", "Q?", ("a", "b", "c"), (0.0, 1.0, 0.5))


def test_a_prepared_row_has_its_wrong_answers_beside_it():
    extra = '{"rejected": ["b", "c"], "category": "Lexicon", "refers": true}'
    row = of_example(Example("7", "Q?", "a", check=extra))
    assert row == Comparison("7", "Q?", ("a", "b", "c"), (0.0, 0.0, 0.0), "Lexicon", True)
    with pytest.raises(UserError, match="row 7 .*teleqna_pairs"):
        of_example(Example("7", "Q?", "a"))


@pytest.mark.parametrize(
    "record, words",
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "a "}, "x: chosen and rejected are equal"),
        ({"prompt": "Q", "chosen": "a", "rejected": []}, "x: field 'rejected'"),
        ({"prompt": "Q", "rejected": "b"}, "x: field 'chosen'"),
        ({"chosen": "a", "rejected": "b"}, "x: field 'prompt'"),
        ({"prompt": "Q", "chosen": "a", "rejected": ["b", 3]}, "x: field 'rejected'"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": "wide"}, "x: field 'margin' is 'wide'"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin"),
        ("not valid JSON", "x: not valid JSON"),
    ],
)
def test_a_row_that_is_no_comparison_is_named(record, words):
    with pytest.raises(UserError, match=words):
        of_record(record, "x")
