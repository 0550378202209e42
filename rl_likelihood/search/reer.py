"""The search for a chain of thought behind a text that exists (REER, 2509.06160), as data and pure functions.

    min over chains of the mean NLL of the answer after the chain,

each token's NLL cut at reer.clip. A first chain is cut into segments. From left to right each of them gets candidates
to replace it. The best one does if the NLL falls strictly. One pass, until the NLL is below reer.stop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.search.segments import copied, replaced, segments
from rl_likelihood.search_settings import ReerSettings


class Offer(NamedTuple):
    """A candidate for a segment. `nll`: of the answer after the chain that has it, inf where that cannot be scored;
    `copied`: of that chain."""

    text: str
    nll: float
    copied: float


@dataclasses.dataclass(frozen=True)
class Search:
    """A question's chain so far. `at`: the segment that gets candidates next; `taken`: how many were replaced."""

    segments: tuple[str, ...]
    nll: float
    at: int = 0
    taken: int = 0

    @property
    def chain(self) -> str:
        return "".join(self.segments)


def begun(chain: str, nll: float) -> Search:
    """The search that starts from a chain."""
    return Search(tuple(segments(chain)), nll)


def left(s: Search, cfg: ReerSettings) -> int:
    """How many segments still get candidates."""
    if not cfg.candidates or s.nll < cfg.stop:
        return 0
    return max(0, min(len(s.segments), cfg.max_segments) - s.at)


def chain_with(s: Search, text: str) -> str:
    """The chain with this text instead of the current segment."""
    parts = list(s.segments)
    parts[s.at] = replaced(parts[s.at], text)
    return "".join(parts)


def advanced(s: Search, offers: Sequence[Offer], max_copied: float) -> Search:
    """The search after one segment's candidates. Equal is not better."""
    allowed = [o for o in offers if o.copied <= max_copied and o.text.strip()]
    best = min(allowed, key=lambda o: o.nll, default=Offer("", math.inf, 0.0))
    if not best.nll < s.nll:
        return dataclasses.replace(s, at=s.at + 1)
    new = replaced(s.segments[s.at], best.text)
    return Search((*s.segments[: s.at], new, *s.segments[s.at + 1 :]), best.nll, s.at + 1, s.taken + 1)


def clipped_nll(
    logp: Float[np.ndarray, "*rows T"], mask: Bool[np.ndarray, "*rows T"], clip: float
) -> Float[np.ndarray, "*rows"]:
    """Mean NLL over the tokens of the mask, each cut to [0, clip]."""
    cut = np.clip(-logp.astype(np.float64), 0, clip)
    return np.where(mask, cut, 0).sum(-1) / np.maximum(mask.sum(-1), 1)


def scored_from(row: EncodedExample, vocab_bytes: tuple[bytes, ...], cfg: ReerSettings) -> EncodedExample:
    """The row with the tokens that the search scores: those after the answer's first segment, if it has several."""
    parts = segments(row.example.answer)
    if cfg.score_from == "start" or len(parts) < 2:
        return row
    ends = np.cumsum([len(vocab_bytes[i]) for i in row.answer_ids])
    starts = ends - [len(vocab_bytes[i]) for i in row.answer_ids]
    later = row.answer_scored & (starts >= len((">" + parts[0]).encode()))
    return dataclasses.replace(row, answer_scored=later if later.any() else row.answer_scored)


def unfit(chain: str, tokens: int, answer: str, cfg: ReerSettings) -> str:
    """Why no search starts from a first chain; "" if one does."""
    if tokens < cfg.min_chain:
        return "first chain too short"
    if len(segments(chain)) < 2:
        return "first chain of one segment"
    return "first chain copies the answer" if copied(chain, answer) > cfg.max_copied else ""
