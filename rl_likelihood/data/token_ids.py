"""Texts to ids, for whole texts and for texts that continue another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_likelihood.shapes import UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer in a message."""
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def bytes_of(vocab_bytes: tuple[bytes, ...], ids: Sequence[int]) -> bytes:
    """The text of ids."""
    return b"".join(vocab_bytes[i] for i in ids)


def ids_of(
    tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str], plain: bool = False
) -> list[list[int]]:
    """Ids of whole texts, without those that a tokenizer puts around a text. `plain`: what looks like chat markup in
    them is none."""
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    largest = max((max(ids, default=0) for ids in rows), default=0)
    if largest >= len(vocab_bytes):  # looked up in the model's embedding it would silently be another token
        raise UserError(
            f"{name_of(tokenizer)} gives id {largest} but the model has {len(vocab_bytes)} tokens; "
            "use the tokenizer that belongs to the model"
        )
    return rows


def ids_after_text(
    tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str], plain: bool = False
) -> list[list[int]]:
    """Ids of texts that continue another text.

    Tokenizers in the style of Llama 2 put a space before every text. There the ids are taken from behind a line feed,
    which never merges.
    """
    if bytes_of(vocab_bytes, ids_of(tokenizer, vocab_bytes, [">"])[0]) == b">":
        return ids_of(tokenizer, vocab_bytes, texts, plain)
    (anchor,) = ids_of(tokenizer, vocab_bytes, ["\n"])
    return [ids[len(anchor) :] for ids in ids_of(tokenizer, vocab_bytes, ["\n" + text for text in texts], plain)]
