"""Comparisons of answers for reward models: one question, its right answer and its wrong answers.

Rows come from a prepared data set (answer and rejected), or from lines with prompt, chosen, rejected and optionally
margin. As in TRL's formats, a text may also be a conversation (a list of messages). `rejected` may be a list of these.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from rl_likelihood.data.judged_text import text_of
from rl_likelihood.data.records import is_number, kind, refuse_no_text
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example

MOST_MARGIN = 1e6


class Comparison(NamedTuple):
    """A question and its answers, the right one first. `margins`: how far the right answer's score should exceed the
    score of each wrong answer. `refers`: whether an answer refers to others, such as "all of the above"."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    margins: tuple[float, ...]
    category: str = ""
    refers: bool = False


def of_example(example: Example) -> Comparison:
    """The comparison in a prepared row."""
    extra = json.loads(example.check or "{}")
    if "rejected" not in extra:
        raise UserError(
            f"row {example.id} has no rejected answers; prepare a data set of comparisons, such as teleqna_pairs"
        )
    row = {"prompt": example.prompt, "chosen": example.answer, "rejected": extra["rejected"]}
    return of_record(row, example.id)._replace(category=extra.get("category", ""), refers=bool(extra.get("refers")))


def of_record(record: Any, where: str) -> Comparison:
    """The comparison in a line, or a UserError that names `where`."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record}")
    refuse_no_text(record, where)
    record = {field: value for field, value in record.items() if value is not None}  # null is missing, as in other rows
    missing = [name for name in ("chosen", "rejected") if name not in record]
    if missing:
        raise UserError(f"{where}: field {missing[0]!r} is missing; a comparison has chosen and rejected")
    chosen, rejected = record["chosen"], record["rejected"]
    if rejected == []:
        raise UserError(f"{where}: field 'rejected' is empty, so there is one option; a comparison needs two")
    if not isinstance(rejected, list) or isinstance(rejected[0], dict):
        rejected = [rejected]
    question = record.get("prompt")
    prompt = _question(question, f"{where}: field 'prompt'") if question else _implicit(chosen, where)
    answers = [_answer(chosen, f"{where}: field 'chosen'")]
    answers += [_answer(text, f"{where}: field 'rejected'") for text in rejected]
    for name, value in (("chosen", chosen), *(("rejected", r) for r in rejected)):
        before = value[:-1] if isinstance(value, list) else []
        spoken = [m for m in before if not (isinstance(m, dict) and m.get("role") == "system")]
        if spoken and prompt not in (text_of(before).strip(), text_of(spoken).strip()):
            raise UserError(
                f"{where}: field {name!r} is a conversation whose earlier messages differ from the question "
                f"({prompt[:60]!r}); a comparison has two answers to one question"
            )
    if answers[0] in answers[1:]:
        raise UserError(f"{where}: chosen and rejected are equal ({answers[0][:60]!r}); remove the row")
    margins = record.get("margin", 0.0)
    margins = margins if isinstance(margins, list) else [margins] * (len(answers) - 1)
    if len(margins) != len(answers) - 1 or not all(is_number(m) and abs(m) <= MOST_MARGIN for m in margins):
        raise UserError(
            f"{where}: field 'margin' is {record['margin']!r}; write one number for each rejected answer, up to "
            f"{MOST_MARGIN:g}"
        )
    return Comparison(
        str(record.get("id", where)), prompt, tuple(answers), (0.0, *map(float, margins)), str(record.get("task", ""))
    )


def _implicit(chosen: Any, where: str) -> str:
    """The question of a comparison without a prompt: the chosen conversation without its last message."""
    if not isinstance(chosen, list):
        raise UserError(f"{where}: field 'prompt' is missing; write it, or conversations in chosen and rejected")
    return _question(chosen[:-1], f"{where}: field 'chosen'")


def _question(value: Any, where: str) -> str:
    """The text itself, or the text of a conversation."""
    text = text_of(value).strip()
    if not text:
        raise UserError(f"{where} holds no text of the user")
    return text


def _answer(value: Any, where: str) -> str:
    """The text itself, or the last message of a conversation."""
    is_conversation = isinstance(value, list) and value and all(isinstance(m, dict) for m in value)
    if not isinstance(value, str) and not is_conversation:
        raise UserError(f"{where} holds {kind(value)}; an answer is a text or a list of messages")
    text = value if isinstance(value, str) else value[-1].get("content")
    if is_conversation and (value[-1].get("role") != "assistant" or not isinstance(text, str)):
        raise UserError(f"{where} holds no text of the assistant; its last message must be the assistant's answer")
    if not text.strip():
        raise UserError(f"{where} holds an empty text; write an answer, or remove the row")
    return text.strip()
