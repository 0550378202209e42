"""Plain documents as questions: a text is cut at random, and what follows the cut is the reference answer.

RLP (2510.01265) and RPT (2506.08007) train a model to think before it goes on with a text. The prompt is the text
itself (prompt.template=raw), at most `context` words of it before the cut; the answer is the next `continuation` words.
Cuts depend on the seed and on the document's id alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from rl_likelihood.data.records import Location
from rl_likelihood.fields import field
from rl_likelihood.shapes import Example, UserError

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class DocumentConfig:
    """How documents are cut, in words."""

    column: str = field("text", "the field with the document")
    context: int = field(64, "words before a cut that are shown, at most", least=1)
    continuation: int = field(8, "words after it: the reference answer", least=1)
    cuts: int = field(1, "cuts of each document, at different words as far as it has so many", least=1)


def questions_of(id: str, text: str, cfg: DocumentConfig, seed: int) -> list[Example]:
    """A document's cuts, in the order of the text; none where it is shorter than a cut."""
    words = list(_WORD.finditer(text))
    last = len(words) - cfg.continuation  # of the words that an answer may begin with
    if last < 1:
        return []
    entropy = int.from_bytes(hashlib.sha256(id.encode(errors="replace")).digest()[:8], "big")
    rng = np.random.default_rng((seed, entropy))
    places = sorted(1 + rng.choice(last, size=min(cfg.cuts, last), replace=False))
    out = []
    for at in map(int, places):
        start, end = words[max(0, at - cfg.context)].start(), words[at - 1].end()
        answer = text[words[at].start() : words[at + cfg.continuation - 1].end()]
        out.append(Example(f"{id}@{at}", text[start:end], answer))
    return out


def read_documents(
    located: Iterable[tuple[Location, Any]], folder: str, cfg: DocumentConfig, seed: int, skip_bad_rows: bool
) -> tuple[list[list[Example]], list[str]]:
    """The questions of each document, and what is wrong with other rows ("file:line: reason").

    The first bad row is refused unless `skip_bad_rows`.
    """
    documents, bad = [], []
    for location, record in located:
        problem = _problem(record, cfg)
        if not problem:
            documents.append(questions_of(str(record.get("id", location.id)), record[cfg.column], cfg, seed))
            continue
        bad.append(f"{folder}{location}: {problem}")
        if not skip_bad_rows:
            raise UserError(f"{bad[0]}; mend the row, or leave such rows out with --config.data.skip_bad_rows=True")
    return documents, bad


def _problem(record: Any, cfg: DocumentConfig) -> str:
    """What is wrong with a row, or nothing."""
    if isinstance(record, str):
        return record
    text = record.get(cfg.column)
    if not isinstance(text, str):
        return f"field {cfg.column!r} is {text!r}, not a text"
    words = len(_WORD.findall(text))
    if words <= cfg.continuation:
        return (
            f"the document has {words} words, too short for a cut: data.documents.continuation is {cfg.continuation}, "
            "and one word must stand before it"
        )
    return ""


def sides(documents: list[list[Example]], heldout: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): whole documents on either side, held-out ones drawn until they have so many questions."""
    order = np.random.default_rng(seed).permutation(len(documents))
    held: list[Example] = []
    chosen: set[int] = set()
    for i in order:
        if len(held) >= heldout:
            break
        chosen.add(int(i))
        held += documents[i]
    return [row for i, rows in enumerate(documents) if i not in chosen for row in rows], held[:heldout]
