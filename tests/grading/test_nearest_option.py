"""The grader nearest_option: an answer in own words is nearer to the right option than to the wrong ones, or not."""

import json

import pytest

from rl_likelihood.grading.graders import reference_of
from rl_likelihood.grading.text import nearest_option
from rl_likelihood.shapes import Example

OPTIONS = ["The base station sends it", "The user equipment sends it", "Nobody"]


@pytest.mark.parametrize(
    "answer, right",
    [
        ("The base station sends it", True),
        ("a BASE station", True),
        ("user equipment", False),
        ("sends it", False),  # the second option is as near
        ("The base station sends it. The user equipment sends it. Nobody", False),  # all of the options at once
        ("", False),
        (None, False),
    ],
)
def test_the_nearest_option_counts_and_a_tie_is_wrong(answer, right):
    example = Example("1", "Who?", OPTIONS[0], check=json.dumps({"rejected": OPTIONS[1:]}))
    assert nearest_option(reference_of("nearest_option", example), answer) is right


def test_without_wrong_answers_the_text_is_compared():
    reference = reference_of("nearest_option", Example("1", "Who?", "The base station"))
    assert reference == "The base station"
    assert nearest_option(reference, " The base station ") and not nearest_option(reference, "base station")
