"""Finds texts that are similar to a query: by shared words (BM25), by vectors (exact cosine), or by both rankings.

Vectors are compared by numpy, by faiss, or by Milvus (in a file or on a server). All three are exact and agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl_likelihood.errors import UserError

Embed = Callable[[Sequence[str]], np.ndarray]  # n texts -> vectors [n, D]
Ranked = list[list[int]]  # for each query the numbers of texts, the most similar first
Index = Callable[[np.ndarray, int], Ranked]  # (query vectors [n, D], number of texts per query) -> Ranked
FUSION = 60  # a text counts 1 / (60 + rank) in each ranking (reciprocal rank fusion)


class Store:
    """A searchable collection of texts. `by`: bm25, a kind of vectors, or both joined with +. `embed`: makes the
    vectors. `where`: what compares vectors, one of STORES."""

    def __init__(self, by: str, embed: Embed | None = None, where: str = "numpy") -> None:
        self.texts: list[str] = []
        self._words, self._embed, self._where = "bm25" in by, embed if by != "bm25" else None, where
        self._vectors: list[np.ndarray] = []
        self._index: Index | None = None
        self._mean = np.zeros(0, np.float32)  # of all vectors
        self._lexical: Any = None  # the index of bm25s

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts. Their numbers continue those of the texts before."""
        self.texts += texts
        self._lexical = None
        if self._embed is not None and texts:
            self._vectors.append(np.asarray(self._embed(texts), np.float32))
            self._index = None

    def search(self, queries: Sequence[str], k: int) -> Ranked:
        """The k texts most similar to each query, the most similar first. BM25 finds only texts that share a word."""
        if not self.texts or k < 1 or not queries:
            return [[] for _ in queries]
        if self._words and self._embed is not None:
            depth = max(k, FUSION)
            pairs = zip(self._by_words(queries, depth), self._by_vectors(queries, depth), strict=True)
            return [fused(rankings)[:k] for rankings in pairs]
        return self._by_words(queries, k) if self._words else self._by_vectors(queries, k)

    def _by_words(self, queries: Sequence[str], k: int) -> Ranked:
        import bm25s

        if self._lexical is None:
            text_tokens = bm25s.tokenize(self.texts, show_progress=False)
            if not text_tokens.vocab:  # no text has a word, as in "2+2?"
                return [[] for _ in queries]
            self._lexical = bm25s.BM25()
            self._lexical.index(text_tokens, show_progress=False)
        query_tokens = bm25s.tokenize(list(queries), show_progress=False)
        numbers, scores = self._lexical.retrieve(query_tokens, k=min(k, len(self.texts)), show_progress=False)
        return [
            [int(i) for i, score in zip(*row, strict=True) if score > 0] for row in zip(numbers, scores, strict=True)
        ]

    def _by_vectors(self, queries: Sequence[str], k: int) -> Ranked:
        assert self._embed is not None
        if self._index is None:
            corpus = np.concatenate(self._vectors)
            self._vectors = [corpus]
            self._mean = corpus.mean(0)  # subtracted, because what all texts have in common does not tell them apart
            name, _, uri = self._where.partition(":")
            self._index = STORES[name](unit(corpus - self._mean), uri)
        return self._index(unit(np.asarray(self._embed(queries), np.float32) - self._mean), min(k, len(self.texts)))


def by_numpy(corpus: np.ndarray, _: str) -> Index:
    """Compares every text with every query, in numpy."""

    def nearest(queries: np.ndarray, k: int) -> Ranked:
        ranked = []
        for row in queries @ corpus.T:
            most = np.sort(np.argpartition(-row, k - 1)[:k])
            ranked.append(most[np.argsort(-row[most], kind="stable")].tolist())
        return ranked

    return nearest


def by_faiss(corpus: np.ndarray, _: str) -> Index:
    """Compares every text with every query, in faiss."""
    import faiss

    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    return lambda queries, k: index.search(queries, k)[1].tolist()


def by_milvus(corpus: np.ndarray, uri: str) -> Index:
    """Uses a collection in a Milvus server or file. It is kept, and reused for the same vectors."""
    from pymilvus import MilvusClient, MilvusException

    name = "rl_likelihood_" + hashlib.sha256(corpus.tobytes()).hexdigest()[:16]
    try:
        client = MilvusClient(uri)
        if client.has_collection(name):
            ((count,),) = (row.values() for row in client.query(name, filter="", output_fields=["count(*)"]))
            if count != len(corpus):  # a process ended while it filled the collection
                client.drop_collection(name)
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


def refuse_store(where: str, by: str = "") -> None:
    """UserError if `where` is not a usable store of vectors, or if the retriever `by` lacks its package."""
    name, _, uri = where.partition(":")
    if name not in STORES or (name == "milvus") != bool(uri):
        raise UserError(
            f"rubric.store is {where!r}; set it to numpy, faiss, or milvus: and a file or address, as milvus:near.db"
        )
    if "bm25" in by and not importlib.util.find_spec("bm25s"):
        raise UserError(
            f"rubric.retriever is {by!r}, which needs bm25s; run pip install -c constraints.txt -e '.[rubrics]'"
        )
    package = PACKAGES.get(name)
    if package and not importlib.util.find_spec(package):
        raise UserError(f"rubric.store is {where!r}, which needs {package}; run pip install -e '.[{name}]'")


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1. Zero vectors are unchanged."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion: one ranking from several, by the sum of 1 / (60 + rank)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, i in enumerate(ranking, 1):
            scores[i] = scores.get(i, 0.0) + 1 / (FUSION + rank)
    return sorted(scores, key=lambda i: (-scores[i], i))
