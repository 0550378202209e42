"""Comparisons of answers: conversations are read whole, and what is no comparison is named."""

import pytest

from rl_likelihood.data.pairs import of_record
from rl_likelihood.errors import UserError

ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"chosen": said("Hi", "Yes?", "More", "a"), "rejected": said("Hi", "Yes?", "More", "b")}, True),
        ({"prompt": said("Hi", "Yes?", "More"), "chosen": said("x", "a")[1:], "rejected": "b"}, True),
        ({"prompt": said("Hi"), "chosen": "a", "rejected": ["b"]}, "Hi"),
        ({"chosen": said("Hi", "a"), "rejected": said("Hi", "b")}, "Hi"),
        ({"prompt": "Hi", "chosen": said("Hi", "a"), "rejected": [said("Hi", "b")]}, "Hi"),
    ],
)
def test_a_question_is_all_that_was_said_before_the_answers(row, prompt):
    read = of_record(row, "f:1")
    assert read.answers == ("a", "b")
    assert read.prompt == ("user: Hi\n\nassistant: Yes?\n\nuser: More" if prompt is True else prompt)


def test_null_is_missing():
    empty = dict.fromkeys(("id", "task", "margin"))
    assert of_record({**ROW, **empty}, "f:1") == of_record(ROW, "f:1")
    assert of_record(ROW, "f:1") == ("f:1", "q", ("a", "b"), (0.0, 0.0), "", False)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"margin": 1e300}, "'margin' is 1e"),
        ({"margin": 10**400}, "'margin'"),
        ({"chosen": "\ud800"}, "surrogate"),
        ({"prompt": [{"role": "user", "content": None}]}, "'prompt' holds no text of the user"),
        ({"chosen": said("x")}, "'chosen' holds no text of the assistant; its last message"),
        ({"rejected": 5}, "'rejected' holds a number; an answer is a text or a list of messages"),
        ({"rejected": ["b", 0]}, "'rejected' holds a number"),
        ({"rejected": said("x", "b")[1]}, "'rejected' holds an object"),
        ({"rejected": [*said("x", "b"), "c"]}, "'rejected' holds a list"),
        (
            {"prompt": None, "chosen": said("q", "x", "r", "a"), "rejected": said("q", "y", "s", "b")},
            "'rejected'.*'user: q",
        ),
        ({"chosen": said("q", "x", "r", "a")}, "'chosen' is a conversation.*'q'"),
        ({"chosen": ["a"]}, "'chosen' holds a list"),
        ({"rejected": []}, "there is one option; a comparison needs two"),
        ({"rejected": ""}, "'rejected' holds an empty text"),
        ({"chosen": " "}, "'chosen' holds an empty text"),
        ({"rejected": None}, "'rejected' is missing"),
        ({"prompt": None, "chosen": said("x", "a")[1:]}, "'chosen' holds no text of the user"),
    ],
)
def test_what_is_no_comparison_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        of_record({**ROW, **change}, "f:1")
