"""Ids of texts: whole texts, texts that continue another text, and the ids with which all prompts begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rl_likelihood.errors import UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

LEAST_COMMON = 16  # fewer ids that all prompts share are not worth a forward of their own


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


def common_ids(prompts: Sequence[np.ndarray]) -> Int[np.ndarray, "_"]:
    """The longest common beginning that leaves each prompt an id of its own; empty if it is short. It is usually the
    instruction and worked examples, and computed once."""
    if not prompts:
        return np.zeros(0, np.int32)
    width = min(map(len, prompts)) - 1
    equal = np.all([ids[:width] == prompts[0][:width] for ids in prompts], 0)
    ids = prompts[0][: width if equal.all() else int(equal.argmin())]
    return ids if len(ids) >= LEAST_COMMON else ids[:0]


def all_begin_with(prompts: Sequence[np.ndarray], ids: np.ndarray) -> bool:
    """Whether every prompt begins with these ids and goes on."""
    n = len(ids)
    return all(len(prompt) > n and np.array_equal(prompt[:n], ids) for prompt in prompts)
