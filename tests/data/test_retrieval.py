"""What is near a query: planted neighbours are found, by words, by vectors and by both."""

import importlib.util
import tracemalloc

import numpy as np
import pytest

from rl_likelihood.data.retrieval import PACKAGES, Store, fused, refuse_store
from rl_likelihood.errors import UserError

TEXTS = ["handover between two cells", "colour of the sky at noon", "price of bread", "a cell phone's battery"]


def vectors(texts):
    """Counts of letters, and a constant that all share."""
    return np.array([[text.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] + [100] for text in texts], float)


@pytest.mark.parametrize("by", ["bm25", "decoder", "bm25+decoder"])
def test_a_planted_neighbour_is_the_nearest(by):
    if "bm25" in by:
        pytest.importorskip("bm25s")
    store = Store(by, vectors)
    store.add(TEXTS[:2])
    store.add(TEXTS[2:])
    found = store.search(["the sky's colour at noon", "bread and its price"], 2)
    assert [row[0] for row in found] == [1, 2]
    assert all(len(row) <= 2 for row in found)


def test_words_are_indexed_once(monkeypatch):
    bm25s, built = pytest.importorskip("bm25s"), []

    class Counted(bm25s.BM25):
        def index(self, *texts, **options):
            built.append(texts)
            return super().index(*texts, **options)

    monkeypatch.setattr(bm25s, "BM25", Counted)
    store = Store("bm25")
    store.add(TEXTS[:3])
    assert [store.search(["the price of bread"], 1) for _ in range(3)] == [[[2]]] * 3 and len(built) == 1
    store.add(TEXTS[3:])
    assert store.search(["a phone's battery"], 1) == [[3]] and len(built) == 2


@pytest.mark.parametrize("where", ["numpy", "faiss", "milvus"])
def test_vectors_are_exact_without_what_all_share(where, tmp_path):
    pytest.importorskip(PACKAGES.get(where, "numpy"))
    where = f"milvus:{tmp_path / 'near.db'}" if where == "milvus" else where
    rng = np.random.default_rng(0)
    corpus, query = rng.normal(size=(50, 8)) + 30, rng.normal(size=8) + 30

    def embed(texts):
        return np.array([corpus[int(t)] if t != "q" else query for t in texts])

    store = Store("http", embed, where)
    store.add([str(i) for i in range(20)])
    assert set(store.search(["q"], 99)[0]) == set(range(20))
    store.add([str(i) for i in range(20, 50)])
    centred, asked = corpus - corpus.mean(0), query - corpus.mean(0)
    cosine = centred @ asked / np.linalg.norm(centred, axis=1) / np.linalg.norm(asked)
    again = Store("http", embed, where)
    again.add(store.texts)
    for each in (store, again):
        assert each.search(["q"], 5)[0] == np.argsort(-cosine)[:5].tolist()


def test_a_search_does_not_copy_the_corpus():
    corpus = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    store = Store("decoder", lambda texts: corpus[[int(t) for t in texts]])
    store.add([str(i) for i in range(len(corpus))])
    store.search(["0"], 1)
    tracemalloc.start()
    assert store.search(["7"], 3)[0][0] == 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < corpus.nbytes / 4


def test_equal_texts_are_found_in_their_order():
    store = Store("decoder", vectors)
    store.add([*TEXTS, TEXTS[2], TEXTS[2]])
    assert store.search([TEXTS[2]], 3) == [[2, 4, 5]]
    assert store.search([TEXTS[1]], 6)[0][0] == 1 and len(store.search([TEXTS[1]], 6)[0]) == 6


@pytest.mark.parametrize("where", ["chroma", "milvus", "numpy:x"])
def test_an_unknown_store_is_refused(where):
    with pytest.raises(UserError, match=f"rubric.store is '{where}'.*numpy, faiss"):
        refuse_store(where)


@pytest.mark.parametrize("where", ["faiss", "milvus:near.db"])
def test_a_store_that_is_not_installed_is_named(where, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"rubric.store is '{where}'.*'\.\[{where.partition(':')[0]}\]"):
        refuse_store(where)


def test_a_word_that_nobody_has_finds_nothing_and_an_empty_store_neither():
    pytest.importorskip("bm25s")
    store = Store("bm25")
    assert store.search(["x"], 3) == [[]]
    store.add(TEXTS)
    assert store.search(["zebra"], 3) == [[]] and store.search(["bread"], 0) == [[]]


def test_texts_without_a_word_are_found_by_nobody():
    pytest.importorskip("bm25s")
    store = Store("bm25")
    store.add(["2+2?", "3*4"])
    assert store.search(["2+2?", "bread"], 1) == [[], []]
    store.add(TEXTS)
    assert store.search(["price of bread"], 1) == [[4]]


def test_two_rankings_become_one():
    assert fused([[3, 1, 2], [1, 3, 0]]) == [1, 3, 0, 2]


def test_a_collection_that_was_not_filled_to_its_end_is_filled_again(tmp_path):
    pymilvus = pytest.importorskip("pymilvus")
    uri = str(tmp_path / "near.db")

    def nearest():
        store = Store("decoder", vectors, f"milvus:{uri}")
        store.add(TEXTS)
        return store.search([TEXTS[2]], 1)

    assert nearest() == [[2]]
    client = pymilvus.MilvusClient(uri)
    (name,) = client.list_collections()
    client.delete(name, ids=[2])
    assert nearest() == [[2]]
