"""Prose and verse as questions: the next paragraph of a story, the last lines of a poem."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rl_likelihood.shapes import Example

if TYPE_CHECKING:  # documents.py imports this module
    import numpy as np

    from rl_likelihood.datasets.documents import DocumentConfig

_BLANK = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\S+")


def blocks(text: str) -> list[str]:
    """What stands between blank lines."""
    return [block.strip("\n") for block in _BLANK.split(text.replace("\r\n", "\n")) if block.strip()]


def next_passages(id: str, text: str, cfg: DocumentConfig, rng: np.random.Generator) -> list[Example]:
    """Paragraphs of a story, each after the `context` words before it. Lines that were broken are joined.

    `cuts` of those of `least` to `continuation` words are drawn, in the order of the story.
    """
    paragraphs = [" ".join(block.split()) for block in blocks(text)]
    words = [len(p.split()) for p in paragraphs]
    fitting = [i for i in range(1, len(paragraphs)) if cfg.least <= words[i] <= cfg.continuation]
    drawn = sorted(rng.choice(fitting, size=min(cfg.cuts, len(fitting)), replace=False)) if fitting else []
    return [Example(f"{id}@{i}", _last_words(paragraphs[: int(i)], cfg.context), paragraphs[i]) for i in drawn]


def _last_words(paragraphs: list[str], count: int) -> str:
    """The last words of the story so far, in their paragraphs."""
    first, n = len(paragraphs), 0
    while first and n < count:
        first -= 1
        n += len(paragraphs[first].split())
    text = "\n\n".join(paragraphs[first:])
    starts = [m.start() for m in _WORD.finditer(text)]
    return text[starts[-count] :] if len(starts) > count else text


def poems(id: str, text: str, cfg: DocumentConfig) -> tuple[list[Example], list[str]]:
    """The poems between blank lines, each its first `shown` lines and the `asked` after them, and what is wrong with
    the others. `asked` 0: all that follow."""
    out, bad = [], []
    for number, block in enumerate(blocks(text), start=1):
        lines = [line.strip() for line in block.splitlines()]
        n = len(lines)
        if (n != cfg.shown + cfg.asked) if cfg.asked else (n <= cfg.shown):
            form = f"data.documents.shown + asked = {cfg.shown} + {cfg.asked}"
            bad.append(f"poem {number} ({lines[0][:40]!r}) has {n} lines, but {form}")
            continue
        out.append(Example(f"{id}@{number}", "\n".join(lines[: cfg.shown]), "\n".join(lines[cfg.shown :])))
    return out, bad
