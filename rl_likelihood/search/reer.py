"""The search for a chain of thought that leads to a given text (REER, 2509.06160), as data and pure functions.

    min over chains of the mean NLL of the answer after the chain,

with each token's NLL clipped at reer.clip. A first chain is split into segments. From left to right, each segment gets
candidates. The best candidate replaces the segment if it strictly lowers the NLL. There is one pass, which stops early
if the NLL is below reer.stop.
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
    """A candidate for a segment. `nll`: the answer's NLL after the chain with the candidate, inf if it cannot be
    scored. `copied`: the share of the answer that this chain copies."""

    text: str
    nll: float
    copied: float


@dataclasses.dataclass(frozen=True)
class Search:
    """A question's chain so far. `at`: the index of the next segment to get candidates. `taken`: the number of replaced
    segments."""

    segments: tuple[str, ...]
    nll: float
    at: int = 0
    taken: int = 0

    @property
    def chain(self) -> str:
        return "".join(self.segments)


def left(s: Search, cfg: ReerSettings) -> int:
    """The number of segments that still get candidates."""
    if not cfg.candidates or s.nll < cfg.stop:
        return 0
    return max(0, min(len(s.segments), cfg.max_segments) - s.at)


def chain_with(s: Search, text: str) -> str:
    """The chain in which `text` replaces the current segment."""
    parts = list(s.segments)
    parts[s.at] = replaced(parts[s.at], text)
    return "".join(parts)


def advanced(s: Search, offers: Sequence[Offer], max_copied: float) -> Search:
    """The search after the candidates for one segment. A candidate with equal NLL does not replace it."""
    allowed = [o for o in offers if o.copied <= max_copied and o.text.strip()]
    best = min(allowed, key=lambda o: o.nll, default=Offer("", math.inf, 0.0))
    if not best.nll < s.nll:
        return dataclasses.replace(s, at=s.at + 1)
    new = replaced(s.segments[s.at], best.text)
    return Search((*s.segments[: s.at], new, *s.segments[s.at + 1 :]), best.nll, s.at + 1, s.taken + 1)


def clipped_nll(
    logp: Float[np.ndarray, "*rows T"], mask: Bool[np.ndarray, "*rows T"], clip: float
) -> Float[np.ndarray, "*rows"]:
    """The mean over the tokens in the mask of their NLL (nats), clipped to [0, clip]."""
    cut = np.clip(-logp.astype(np.float64), 0, clip)
    return np.where(mask, cut, 0).sum(-1) / np.maximum(mask.sum(-1), 1)


def scored_from(row: EncodedExample, vocab_bytes: tuple[bytes, ...], cfg: ReerSettings) -> EncodedExample:
    """The row with a new `answer_scored`: only the tokens after the answer's first segment, if it has several."""
    parts = segments(row.example.answer)
    if cfg.score_from == "start" or len(parts) < 2:
        return row
    ends = np.cumsum([len(vocab_bytes[i]) for i in row.answer_ids])
    starts = ends - [len(vocab_bytes[i]) for i in row.answer_ids]
    later = row.answer_scored & (starts >= len((">" + parts[0]).encode()))
    return dataclasses.replace(row, answer_scored=later if later.any() else row.answer_scored)


def unfit(chain: str, tokens: int, answer: str, cfg: ReerSettings) -> str:
    """Why a first chain cannot be searched from, or ""."""
    if tokens < cfg.min_chain:
        return "first chain too short"
    if len(segments(chain)) < 2:
        return "first chain of one segment"
    return "first chain copies the answer" if copied(chain, answer) > cfg.max_copied else ""
