"""Answers out of text, and whether they are right: `extract_answer`, and the table `GRADERS`.

A grader is one row of `GRADERS`. Nothing else names it: config, rewards, evaluation and the pool read the row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from rl_likelihood.grading.bfcl import bfcl
from rl_likelihood.grading.code import (
    COMPARED,
    code_output,
    code_output_quick,
    code_tests,
    code_tests_quick,
    code_tests_unsafe,
    tool_call,
)
from rl_likelihood.grading.copied import with_question
from rl_likelihood.grading.countdown import countdown, countdown_outcome
from rl_likelihood.grading.gym import gym_match, gym_quick
from rl_likelihood.grading.mathematics import math_match, telemath
from rl_likelihood.grading.text import (
    exact_match,
    multiple_choice,
    nearest_option,
    numeric_match,
    parse_number,
    prefix_match,
)

if TYPE_CHECKING:  # workers import this module, and shapes imports jax
    from rl_likelihood.shapes import Example, Tags

VERSION = 14  # of the rules: evaluation records of an older version are graded again

OTHER_ANSWERS = {"alternatives", "rejected", "taught"}  # keys of `check` that training reads, and no grader

# Also what other packages ask of a text by itself.
__all__ = ["GRADERS", "Grader", "countdown_outcome", "exact_match", "extract_answer", "parse_number", "reference_of"]


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


GradeFunction = Callable[[str, str | None], bool | None]


@dataclasses.dataclass(frozen=True)
class Grader:
    """A row of the table.

    grade:  (reference, answer) -> is it right? None: the grader failed, which is nobody's wrong answer. An answer of
            None (there was none) is wrong. It takes any text.
    about:  one line for the documents
    quick:  for a grader that may hang, or end its process, on a text made for that: what is decided at once and safely,
            None where `grade` must be asked, in a process of the pool. `grade` is then a function at the top of its
            module. Without `quick`, `grade` is called in this process
    reads:  what of the example an answer is compared with: its answer; its `check`, if it has one; its answer with
            the arguments that count, if its `check` names them ("compared"); its answer and its wrong answers, if it
            has any ("options"); or its answer and its question, if that has formulas ("question")
    unsafe: for a grader that runs programs of a model: `grade` for a machine that cannot isolate them
    """

    grade: GradeFunction
    about: str
    quick: GradeFunction | None = None
    reads: Literal["answer", "check", "compared", "options", "question"] = "answer"
    unsafe: GradeFunction | None = None


GRADERS: dict[str, Grader] = {
    "exact_match": Grader(exact_match, "the same text, but for white space around it"),
    "numeric": Grader(numeric_match, "the same number, exactly; as text where the reference is none"),
    "math": Grader(
        math_match,
        "the same mathematics, read whole: LaTeX, Unicode or plain text, with or without units",
        reads="question",
    ),
    "prefix": Grader(prefix_match, "the beginning of the reference, up to the end of one of its words"),
    "countdown": Grader(countdown, "an expression of exactly the given numbers that has the target's value"),
    "multiple_choice": Grader(multiple_choice, "the same option: B, (B), option 2, the answer is B; read to the end"),
    "nearest_option": Grader(
        nearest_option, "nearer to the reference than to every wrong answer, by shared words", reads="options"
    ),
    "telemath": Grader(telemath, "a number that differs by at most 1 % of the larger, or 0.01"),
    "tool_call": Grader(tool_call, "the same calls in the same order: names and arguments", reads="compared"),
    "bfcl": Grader(bfcl, "calls that the Berkeley leaderboard's rule of possible answers allows", reads="check"),
    "code_output": Grader(code_output, "the same value as a Python literal", quick=code_output_quick),
    "code_tests": Grader(
        code_tests,
        "a program that passes the example's tests, in a sandbox",
        quick=code_tests_quick,
        reads="check",
        unsafe=code_tests_unsafe,
    ),
    "reasoning_gym": Grader(
        gym_match, "the rule of the reasoning_gym data set that asked", quick=gym_quick, reads="check"
    ),
}


def reference_of(name: str, example: Example, table: Mapping[str, Grader] = GRADERS) -> str:
    """What the grader `name` compares answers to this question with."""
    reads = table[name].reads
    if reads == "answer":
        return example.answer
    if reads == "question":
        return with_question(example.answer, example.prompt)
    check = json.loads(example.check or "{}")
    if reads == "compared":
        compared = check.get(COMPARED)
        return example.answer if compared is None else json.dumps({"calls": example.answer, COMPARED: compared})
    if reads == "options":
        rejected = check.get("rejected")
        return json.dumps([example.answer, *rejected]) if rejected else example.answer
    return example.check if check.keys() - OTHER_ANSWERS else example.answer
