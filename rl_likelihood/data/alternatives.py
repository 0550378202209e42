"""Encodes the other answers of rows: answers that are as good as the reference, or wrong answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_likelihood.data.prompt_checks import refuse_longer
from rl_likelihood.data.prompts import EncodedExample, PromptConfig, answer_ids
from rl_likelihood.shapes import ChainFormat, Example

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


def with_alternatives(
    rows: Sequence[EncodedExample], field: str, tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, fmt: ChainFormat
) -> list[EncodedExample]:
    """The rows with the first `max_alternatives` answers of their `field` in ids. UserError if one exceeds
    `max_answer`."""
    alternatives = [_alternatives(row.example, field)[: cfg.max_alternatives] for row in rows]
    flat = [(row, e) for row, some in zip(rows, alternatives, strict=True) for e in some]
    if not flat:
        return list(rows)
    answers = answer_ids([e for _, e in flat], tokenizer, cfg, fmt)
    encoded = zip(flat, answers, strict=True)
    refuse_longer("max_answer", cfg, [EncodedExample(e, row.prompt_ids, *answer) for (row, e), answer in encoded])
    next_answer = iter(answers)
    rows_with_alternatives = zip(rows, alternatives, strict=True)
    return [
        dataclasses.replace(row, alternatives=tuple(next(next_answer) for _ in some))
        for row, some in rows_with_alternatives
    ]


def _alternatives(example: Example, field: str) -> list[Example]:
    """One copy of the example for each distinct other answer, with that answer as its own."""
    texts = dict.fromkeys(json.loads(example.check or "{}").get(field, []))
    return [dataclasses.replace(example, answer=text) for text in texts if text != example.answer]
