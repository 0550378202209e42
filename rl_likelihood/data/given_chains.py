"""The data's own chains: their tokens, and the rows that a model has too few positions for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.token_ids import ids_after_text
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import ChainFormat

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase


def fitting_chains(
    rows: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase, fmt: ChainFormat, positions: int, skip: bool
) -> tuple[list[EncodedExample], list[str], int]:
    """(rows whose prompt, chain, tags and answer fit into `positions`, descriptions of the others, tokens of the
    longest fitting chain).

    UserError if a row does not fit, unless `skip`, or if none fits.
    """
    if not rows:
        return [], [], 0
    chains = ids_after_text(tokenizer, fmt.vocab_bytes, [row.example.chain for row in rows])
    fits, long, longest = [], [], 0
    for row, chain in zip(rows, chains, strict=True):
        tokens = len(row.prompt_ids) + len(chain) + len(fmt.close_think_ids) + len(row.answer_ids)
        if tokens > positions:
            long.append((row.example.id, tokens))
        else:
            fits.append(row)
            longest = max(longest, len(chain))
    if long and not (skip and fits):
        named = ", ".join(f"{uid} ({n} tokens)" for uid, n in long[:5]) + (", ..." if len(long) > 5 else "")
        skipping = "" if skip else ", or leave such rows out with data.skip_bad_rows=True"
        raise UserError(
            f"the model's {positions} positions do not hold prompt, chain and answer of {len(long)} of {len(rows)} "
            f"rows: {named}; shorten their chains{skipping}"
        )
    return (
        fits,
        [f"{uid}: {n} tokens with its chain, over the model's {positions} positions" for uid, n in long],
        longest,
    )
