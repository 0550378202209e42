"""What a row may carry beside its prompt and its answer, in ids.

Its other answers, as good as the reference or wrong; and its posterior prompt, which shows the reference answer
(`learner.posterior`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl_likelihood.data.prompt_checks import refuse_longer
from rl_likelihood.data.prompts import EncodedExample, PromptConfig, answer_ids, render
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.errors import UserError
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
    answers = answer_ids([e for _, e in flat], tokenizer, cfg, fmt) if flat else []
    encoded = zip(flat, answers, strict=True)
    refuse_longer("max_answer", cfg, [EncodedExample(e, row.prompt_ids, *answer) for (row, e), answer in encoded])
    ids = iter(answers)
    return [
        dataclasses.replace(row, alternatives=tuple(itertools.islice(ids, len(some))))
        for row, some in zip(rows, alternatives, strict=True)
    ]


def _alternatives(example: Example, field: str) -> list[Example]:
    """One copy of the example for each distinct other answer, with that answer as its own."""
    texts = dict.fromkeys(json.loads(example.check or "{}").get(field, []))
    return [dataclasses.replace(example, answer=text) for text in texts if text != example.answer]


def showing(example: Example, added: str) -> Example:
    """The question with `added` at its end, in which {answer} is replaced by the reference answer."""
    text = added.replace("{answer}", example.answer)
    messages = example.messages
    if messages:
        role, content = messages[-1]
        messages = (*messages[:-1], (role, content + text))
    return dataclasses.replace(example, prompt=example.prompt + text, messages=messages)


def with_shown(
    rows: list[EncodedExample],
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    added: str,
    limit: int,
) -> list[EncodedExample]:
    """The rows with the ids of their posterior prompts. UserError if one has more than `limit` tokens."""
    texts = [render(showing(row.example, added), tokenizer, cfg) for row in rows]
    ids = ids_of(tokenizer, fmt.vocab_bytes, texts) if texts else []
    longest = max(map(len, ids), default=0)
    if longest > limit:
        row = rows[[len(x) for x in ids].index(longest)]
        raise UserError(
            f"the prompt that shows the answer of row {row.example.id} has {longest} tokens, more than {limit}; set "
            f"--config.posterior.max_prompt={longest}"
        )
    return [dataclasses.replace(row, shown_ids=np.asarray(x, np.int32)) for row, x in zip(rows, ids, strict=True)]
