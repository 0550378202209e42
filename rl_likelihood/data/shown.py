"""The posterior prompt of a question, which shows its reference answer (`learner.posterior`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rl_likelihood.data.prompts import EncodedExample, PromptConfig, render
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.shapes import ChainFormat, Example, UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


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
