"""Answers out of text, and whether they are right: `extract_answer`, and the table `GRADERS`.

A grader takes (reference, answer) and says whether the answer is right; an answer of None (there was none) is wrong.
Graders take any text. Those of `ISOLATED` can still hang, or end the process, on a text made for that: runs call
all graders through `grading_pool.Pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from rl_likelihood.grading.code import (
    code_output,
    code_output_outcome,
    code_output_quick,
    code_tests,
    code_tests_outcome,
    code_tests_quick,
    tool_call,
)
from rl_likelihood.grading.countdown import countdown, countdown_outcome
from rl_likelihood.grading.gym import gym_match, gym_outcome, gym_quick
from rl_likelihood.grading.mathematics import math_match, math_outcome, math_quick, telemath
from rl_likelihood.grading.text import exact_match, multiple_choice, numeric_match, parse_number
from rl_likelihood.shapes import Example

VERSION = 2

__all__ = [
    "GRADERS",
    "ISOLATED",
    "VERSION",
    "Grader",
    "Isolated",
    "Tags",
    "code_output",
    "code_tests",
    "countdown",
    "countdown_outcome",
    "exact_match",
    "extract_answer",
    "gym_match",
    "math_match",
    "multiple_choice",
    "numeric_match",
    "parse_number",
    "reference_of",
    "telemath",
    "tool_call",
]


class Tags(Protocol):
    """The part of `shapes.ChainFormat` and `prompts.PromptConfig` that grading reads."""

    think_close: str
    answer_open: str
    answer_close: str


def extract_answer(text: str, tags: Tags) -> str | None:
    """The text between `<answer>` and `</answer` at their first occurrence after the chain; None if absent.

    The chain ends at the first `</think>`; a text without one is searched from its start.
    """
    chain_end = text.find(tags.think_close)
    opening = tags.answer_open + ">"
    start = text.find(opening, max(chain_end, 0))
    if start < 0:
        return None
    start += len(opening)
    end = text.find(tags.answer_close, start)
    return None if end < 0 else text[start:end]


Grader = Callable[[str, str | None], bool]
Outcome = Callable[[str, str | None], bool | None]


class Isolated(NamedTuple):
    """A grader that needs a process of its own. None from `quick` is undecided; from `outcome`, the grader failed."""

    quick: Outcome  # what is decided at once, safely, in any process
    outcome: Outcome  # all of it; a function at the top of its module


GRADERS: dict[str, Grader] = {
    "exact_match": exact_match,
    "numeric": numeric_match,
    "math": math_match,
    "countdown": countdown,
    "multiple_choice": multiple_choice,
    "telemath": telemath,
    "tool_call": tool_call,
    "code_output": code_output,
    "code_tests": code_tests,
    "reasoning_gym": gym_match,
}

ISOLATED: dict[str, Isolated] = {
    "math": Isolated(math_quick, math_outcome),
    "code_output": Isolated(code_output_quick, code_output_outcome),
    "code_tests": Isolated(code_tests_quick, code_tests_outcome),
    "reasoning_gym": Isolated(gym_quick, gym_outcome),
}

# Those that compare with more than the answer: the example's `check`, if it has one.
OF_CHECK = ("code_tests", "reasoning_gym")


def reference_of(name: str, example: Example) -> str:
    """What the grader `name` compares answers to this question with."""
    return example.check or example.answer if name in OF_CHECK else example.answer
