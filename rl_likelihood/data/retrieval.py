"""Texts that are near a query: by shared words (BM25), by vectors (exact cosine), or by both ranks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rl_likelihood.shapes import UserError

Embed = Callable[[Sequence[str]], np.ndarray]  # [n] texts to [n, D]
FUSION = 60  # a text counts 1 / (60 + rank) in each ranking (reciprocal rank fusion)


class Store:
    """Texts, and for each query the numbers of those nearest to it. `embed` makes vectors, where `by` has them."""

    def __init__(self, by: str, embed: Embed | None = None) -> None:
        self.texts: list[str] = []
        self._words, self._embed = "bm25" in by, embed if by != "bm25" else None
        self._vectors: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        """More texts, numbered from where the last ones end."""
        self.texts += texts
        if self._embed is not None and texts:
            self._vectors.append(np.asarray(self._embed(texts), np.float32))

    def search(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """The k texts nearest to each query, nearest first; fewer where fewer share a word with it."""
        if not self.texts or k < 1 or not queries:
            return [[] for _ in queries]
        if self._words and self._embed is not None:
            depth = max(k, FUSION)
            pairs = zip(self._by_words(queries, depth), self._by_vectors(queries, depth), strict=True)
            return [fused(rankings)[:k] for rankings in pairs]
        return self._by_words(queries, k) if self._words else self._by_vectors(queries, k)

    def _by_words(self, queries: Sequence[str], k: int) -> list[list[int]]:
        try:
            import bm25s
        except ImportError:
            raise UserError("rubric.retriever needs bm25s; install rl_likelihood[rubrics]") from None
        index = bm25s.BM25()
        index.index(bm25s.tokenize(self.texts, show_progress=False), show_progress=False)
        asked = bm25s.tokenize(list(queries), show_progress=False)
        found, scores = index.retrieve(asked, k=min(k, len(self.texts)), show_progress=False)
        return [[int(i) for i, score in zip(*row, strict=True) if score > 0] for row in zip(found, scores, strict=True)]

    def _by_vectors(self, queries: Sequence[str], k: int) -> list[list[int]]:
        assert self._embed is not None
        corpus = np.concatenate(self._vectors)
        mean = corpus.mean(0)  # what all texts share says nothing
        near = unit(np.asarray(self._embed(queries), np.float32) - mean) @ unit(corpus - mean).T
        return [np.argsort(-row, kind="stable")[:k].tolist() for row in near]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those of no length stay as they are."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several, by the sum of 1 / (60 + rank)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, i in enumerate(ranking, 1):
            scores[i] = scores.get(i, 0.0) + 1 / (FUSION + rank)
    return sorted(scores, key=lambda i: (-scores[i], i))
