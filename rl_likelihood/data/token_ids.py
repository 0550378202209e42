"""Encodes texts to ids: whole texts, and texts that continue another text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl_likelihood.shapes import UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's name for messages."""
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def bytes_of(vocab_bytes: tuple[bytes, ...], ids: Sequence[int]) -> bytes:
    """The bytes of a sequence of ids."""
    return b"".join(vocab_bytes[i] for i in ids)


def padded(rows: Sequence[Sequence[int] | np.ndarray], width: int, fill: int = 0) -> np.ndarray:
    """Rows of ids (or of flags) as one int32 array [n, width], filled up on the right."""
    out = np.full((len(rows), width), fill, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def ids_of(
    tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str], plain: bool = False
) -> list[list[int]]:
    """The ids of whole texts, without the special ids that a tokenizer adds around a text. `plain`: chat markup in them
    is encoded as plain text."""
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    highest = max((max(ids, default=0) for ids in rows), default=0)
    if highest >= len(vocab_bytes):  # the model's embedding would silently return another token
        raise UserError(
            f"{name_of(tokenizer)} gives id {highest} but the model has {len(vocab_bytes)} tokens; "
            "use the tokenizer that belongs to the model"
        )
    return rows


def ids_after_text(
    tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str], plain: bool = False
) -> list[list[int]]:
    """The ids of texts that continue another text.

    Tokenizers like Llama 2's add a space before every text. For them, the text is encoded after a line feed, which
    never merges with it.
    """
    if bytes_of(vocab_bytes, ids_of(tokenizer, vocab_bytes, [">"])[0]) == b">":
        return ids_of(tokenizer, vocab_bytes, texts, plain)
    (anchor,) = ids_of(tokenizer, vocab_bytes, ["\n"])
    return [ids[len(anchor) :] for ids in ids_of(tokenizer, vocab_bytes, ["\n" + text for text in texts], plain)]
