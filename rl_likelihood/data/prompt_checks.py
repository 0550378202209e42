"""Refuses texts and vocabularies whose ids would not mean what the text says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_likelihood.data.token_ids import name_of
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example

if TYPE_CHECKING:  # prompts.py imports this module; transformers takes over a second
    from transformers import PreTrainedTokenizerBase

    from rl_likelihood.data.prompts import EncodedExample, PromptConfig


def refuse_token_across_boundary(name: str, vocab_bytes: tuple[bytes, ...], answer_open: str) -> None:
    """UserError if a token, such as "r>" or "answer>", could span the boundary between `answer_open` and ">".

    A token "br>" cannot, because "<abr>" is not the tag.
    """
    boundary, last = answer_open.encode() + b">", answer_open[-1:].encode() + b">"
    for i, token in enumerate(vocab_bytes):
        found_at = token.find(last)
        while found_at >= 0:
            left = token[: found_at + len(last)]
            if boundary.endswith(left) or left.endswith(boundary):
                raise UserError(
                    f"{name} has a token {token.decode(errors='replace')!r} (id {i}) across the boundary of "
                    f"{answer_open!r} and '>', so a reference answer cannot be spliced there; "
                    f"use another prompt.answer_open or another tokenizer"
                )
            found_at = token.find(last, found_at + 1)


def problems(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig) -> list[str]:
    """What is wrong with each row, or "". Wrong are an empty answer, reasoning in an answer, a control token, and a tag
    that ends the answer or chain that contains it."""
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content.strip()]
    markup = re.compile("|".join(map(re.escape, control)) or r"(?!)")

    def problem(e: Example) -> str:
        if not e.answer.strip():
            return f"row {e.id} has an empty answer; give it a reference answer or remove it"
        if cfg.answer_close in e.answer:
            return (
                f"the answer of row {e.id} contains {cfg.answer_close!r}, which ends an answer; "
                "remove the row or choose another prompt.answer_close"
            )
        for tag in (cfg.think_open, cfg.think_close):
            if tag in e.answer:
                return f"the answer of row {e.id} contains {tag!r}; give the reasoning in the field chain, or remove it"
        for tag in (cfg.think_close, cfg.answer_open):
            if tag in e.chain:
                return f"the chain of row {e.id} contains {tag!r}, which ends a chain; give the reasoning alone"
        for text in (e.prompt, e.answer, e.chain, *(content for _, content in e.messages)):
            if match := markup.search(text):
                return (
                    f"row {e.id} contains {match[0]!r}, a control token of {name_of(tokenizer)}; "
                    "give plain text, without the model's chat markup"
                )
        return ""

    return [problem(e) for e in examples]


def refuse_worked(tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig) -> None:
    """UserError if a worked example would end early in a prompt, or holds a control token: see `problems`."""
    shown = [Example(str(i), question, answer, chain) for i, (question, chain, answer) in enumerate(cfg.shots, start=1)]
    for words in filter(None, problems(shown, tokenizer, cfg)):
        raise UserError(f"worked examples ({cfg.examples_path or 'the first training rows with a chain'}): {words}")


def longer(row: EncodedExample, cfg: PromptConfig) -> dict[str, int]:
    """{setting: the row's number of tokens} for each of max_prompt and max_answer that the row exceeds."""
    sizes = {"max_prompt": len(row.prompt_ids), "max_answer": len(row.answer_ids)}
    return {name: n for name, n in sizes.items() if n > getattr(cfg, name)}


def refuse_longer(name: str, cfg: PromptConfig, rows: list[EncodedExample]) -> None:
    long = [(row.example.id, n) for row in rows if (n := longer(row, cfg).get(name))]
    if long:
        named = ", ".join(f"{uid} ({n})" for uid, n in long[:5]) + (", ..." if len(long) > 5 else "")
        raise UserError(
            f"prompt.{name} = {getattr(cfg, name)} tokens is too short for the {name.removeprefix('max_')} of "
            f"{len(long)} of {len(rows)} rows: {named}; set --config.prompt.{name}={max(n for _, n in long)} or remove "
            "them (data.skip_bad_rows=True leaves such training rows out, held-out rows never)"
        )
