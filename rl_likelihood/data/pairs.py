"""Comparisons of answers for reward models: one question, its right answer and the wrong ones.

Rows are those of a prepared data set (answer and rejected), or lines with prompt, chosen, rejected and perhaps margin,
where each may be text or a conversation (a list of messages), as TRL writes them. `rejected` may be a list of texts.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from rl_likelihood.data.records import is_number
from rl_likelihood.shapes import Example, UserError


class Comparison(NamedTuple):
    """A question and its answers, the right one first. `margins`: by how much its score should exceed each wrong one's.
    `refers`: an answer refers to others, as "all of the above"."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    margins: tuple[float, ...]
    category: str = ""
    refers: bool = False


def of_example(example: Example) -> Comparison:
    """The comparison of a prepared row."""
    extra = json.loads(example.check or "{}")
    if "rejected" not in extra:
        raise UserError(
            f"row {example.id} has no rejected answers; prepare a data set of comparisons, such as teleqna_pairs"
        )
    row = {"prompt": example.prompt, "chosen": example.answer, "rejected": extra["rejected"]}
    return of_record(row, example.id)._replace(category=extra.get("category", ""), refers=bool(extra.get("refers")))


def of_record(record: Any, where: str) -> Comparison:
    """The comparison of a line; UserError naming `where` for anything else."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record}")
    missing = [name for name in ("chosen", "rejected") if not record.get(name)]
    if missing:
        raise UserError(f"{where}: field {missing[0]!r} is missing or empty; a comparison has chosen and rejected")
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(rejected, str) or (isinstance(rejected, list) and rejected and isinstance(rejected[0], dict)):
        rejected = [rejected]
    asked = record.get("prompt")
    prompt = _last(asked, "user", f"{where}: field 'prompt'") if asked else _implicit(chosen, where)
    answers = [_last(chosen, "assistant", f"{where}: field 'chosen'")]
    answers += [_last(text, "assistant", f"{where}: field 'rejected'") for text in rejected]
    if answers[0] in answers[1:]:
        raise UserError(f"{where}: chosen and rejected are equal ({answers[0][:60]!r}); remove the row")
    margins = record.get("margin", 0.0)
    margins = margins if isinstance(margins, list) else [margins] * (len(answers) - 1)
    if len(margins) != len(answers) - 1 or not all(is_number(m) and float(m) == float(m) for m in margins):
        raise UserError(f"{where}: field 'margin' is {record['margin']!r}; write one number for each rejected answer")
    return Comparison(
        str(record.get("id", where)), prompt, tuple(answers), (0.0, *map(float, margins)), str(record.get("task", ""))
    )


def _implicit(chosen: Any, where: str) -> str:
    """The user's last message of a conversation that holds question and answer."""
    if not isinstance(chosen, list):
        raise UserError(f"{where}: field 'prompt' is missing; write it, or conversations in chosen and rejected")
    return _last(chosen, "user", f"{where}: field 'chosen'")


def _last(value: Any, role: str, where: str) -> str:
    """A text, or the last message of that role in a conversation."""
    if isinstance(value, list):
        own = [m.get("content") for m in value if isinstance(m, dict) and m.get("role") == role]
        value = own[-1] if own else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} holds no text of the {role}")
    return value.strip()
