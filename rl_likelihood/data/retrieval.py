"""Texts that are near a query: by shared words (BM25), by vectors (exact cosine), or by both ranks together.

Vectors are compared by numpy, by faiss, or by Milvus, in a file or on a server: all three are exact and find the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from rl_likelihood.shapes import UserError

Embed = Callable[[Sequence[str]], np.ndarray]  # [n] texts to [n, D]
Ranked = list[list[int]]  # for each query the numbers of texts, nearest first
Index = Callable[[np.ndarray, int], Ranked]  # vectors [n, D] of queries, and how many texts of each
FUSION = 60  # a text counts 1 / (60 + rank) in each ranking (reciprocal rank fusion)


class Store:
    """Texts, and for each query the numbers of those nearest to it. `embed` makes vectors, where `by` has them; `where`
    is one of STORES, and compares them."""

    def __init__(self, by: str, embed: Embed | None = None, where: str = "numpy") -> None:
        self.texts: list[str] = []
        self._words, self._embed, self._where = "bm25" in by, embed if by != "bm25" else None, where
        self._vectors: list[np.ndarray] = []
        self._index: Index | None = None

    def add(self, texts: Sequence[str]) -> None:
        """More texts, numbered from where the last ones end."""
        self.texts += texts
        if self._embed is not None and texts:
            self._vectors.append(np.asarray(self._embed(texts), np.float32))
            self._index = None

    def search(self, queries: Sequence[str], k: int) -> Ranked:
        """The k texts nearest to each query, nearest first; fewer where fewer share a word with it."""
        if not self.texts or k < 1 or not queries:
            return [[] for _ in queries]
        if self._words and self._embed is not None:
            depth = max(k, FUSION)
            pairs = zip(self._by_words(queries, depth), self._by_vectors(queries, depth), strict=True)
            return [fused(rankings)[:k] for rankings in pairs]
        return self._by_words(queries, k) if self._words else self._by_vectors(queries, k)

    def _by_words(self, queries: Sequence[str], k: int) -> Ranked:
        try:
            import bm25s
        except ImportError:
            raise UserError("rubric.retriever needs bm25s; install rl_likelihood[rubrics]") from None
        index = bm25s.BM25()
        index.index(bm25s.tokenize(self.texts, show_progress=False), show_progress=False)
        asked = bm25s.tokenize(list(queries), show_progress=False)
        found, scores = index.retrieve(asked, k=min(k, len(self.texts)), show_progress=False)
        return [[int(i) for i, score in zip(*row, strict=True) if score > 0] for row in zip(found, scores, strict=True)]

    def _by_vectors(self, queries: Sequence[str], k: int) -> Ranked:
        assert self._embed is not None
        corpus = np.concatenate(self._vectors)
        mean = corpus.mean(0)  # what all texts share says nothing
        if self._index is None:
            name, _, uri = self._where.partition(":")
            self._index = STORES[name](unit(corpus - mean), uri)
        return self._index(unit(np.asarray(self._embed(queries), np.float32) - mean), min(k, len(corpus)))


def by_numpy(corpus: np.ndarray, _: str) -> Index:
    """Every text is compared with every query."""

    def nearest(queries: np.ndarray, k: int) -> Ranked:
        return [np.argsort(-row, kind="stable")[:k].tolist() for row in queries @ corpus.T]

    return nearest


def by_faiss(corpus: np.ndarray, _: str) -> Index:
    """The same, in C++."""
    import faiss

    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    return lambda queries, k: index.search(queries, k)[1].tolist()


def by_milvus(corpus: np.ndarray, uri: str) -> Index:
    """A collection of a Milvus server or file, which stays there and is used again for the same vectors."""
    from pymilvus import MilvusClient, MilvusException

    name = "rl_likelihood_" + hashlib.sha256(corpus.tobytes()).hexdigest()[:16]
    try:
        client = MilvusClient(uri)
        if not client.has_collection(name):
            client.create_collection(name, corpus.shape[1], metric_type="IP", consistency_level="Strong")
            client.insert(name, [{"id": i, "vector": row.tolist()} for i, row in enumerate(corpus)])
    except MilvusException as e:
        raise UserError(f"rubric.store: Milvus at {uri} refuses ({e.message}); set rubric.store=numpy") from e

    def nearest(queries: np.ndarray, k: int) -> Ranked:
        return [[hit["id"] for hit in hits] for hits in client.search(name, queries.tolist(), limit=k)]

    return nearest


STORES: dict[str, Callable[[np.ndarray, str], Index]] = {"numpy": by_numpy, "faiss": by_faiss, "milvus": by_milvus}
PACKAGES = {"faiss": "faiss", "milvus": "pymilvus"}


def refuse_store(where: str) -> None:
    """UserError where vectors cannot be compared so."""
    name, _, uri = where.partition(":")
    if name not in STORES or (name == "milvus") != bool(uri):
        raise UserError(
            f"rubric.store is {where!r}; set it to numpy, faiss, or milvus: and a file or address, as milvus:near.db"
        )
    package = PACKAGES.get(name)
    if package and not importlib.util.find_spec(package):
        raise UserError(f"rubric.store is {where!r}, which needs {package}; install rl_likelihood[{name}]")


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
