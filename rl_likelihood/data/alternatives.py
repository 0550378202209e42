"""Other answers to a row's question that are as good as its reference answer, in ids."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_likelihood.data.prompt_checks import refuse_longer
from rl_likelihood.data.prompts import EncodedExample, PromptConfig, answer_ids
from rl_likelihood.shapes import ALTERNATIVES, ChainFormat, Example

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


def with_alternatives(
    rows: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, fmt: ChainFormat
) -> list[EncodedExample]:
    """The rows with the first `max_alternatives` of their `alternatives` in ids; refuses those of over `max_answer`."""
    others = [_alternatives(row.example)[: cfg.max_alternatives] for row in rows]
    flat = [(row, e) for row, some in zip(rows, others, strict=True) for e in some]
    if not flat:
        return list(rows)
    answers = answer_ids([e for _, e in flat], tokenizer, cfg, fmt)
    both = zip(flat, answers, strict=True)
    refuse_longer("max_answer", cfg, [EncodedExample(e, row.prompt_ids, *answer) for (row, e), answer in both])
    each = iter(answers)
    counted = zip(rows, others, strict=True)
    return [dataclasses.replace(row, alternatives=tuple(next(each) for _ in some)) for row, some in counted]


def _alternatives(example: Example) -> list[Example]:
    """The example with each of its other answers, every answer once."""
    texts = dict.fromkeys(json.loads(example.check or "{}").get(ALTERNATIVES, []))
    return [dataclasses.replace(example, answer=text) for text in texts if text != example.answer]
