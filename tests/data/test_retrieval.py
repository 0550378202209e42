"""What is near a query: planted neighbours are found, by words, by vectors and by both."""

import numpy as np
import pytest

from rl_likelihood.data.retrieval import Store, fused

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


def test_vectors_are_exact_without_what_all_share():
    rng = np.random.default_rng(0)
    corpus, query = rng.normal(size=(50, 8)) + 30, rng.normal(size=8) + 30
    store = Store("http", lambda texts: np.array([corpus[int(t)] if t != "q" else query for t in texts]))
    store.add([str(i) for i in range(50)])
    centred, asked = corpus - corpus.mean(0), query - corpus.mean(0)
    cosine = centred @ asked / np.linalg.norm(centred, axis=1) / np.linalg.norm(asked)
    assert store.search(["q"], 5)[0] == np.argsort(-cosine)[:5].tolist()


def test_a_word_that_nobody_has_finds_nothing_and_an_empty_store_neither():
    pytest.importorskip("bm25s")
    store = Store("bm25")
    assert store.search(["x"], 3) == [[]]
    store.add(TEXTS)
    assert store.search(["zebra"], 3) == [[]] and store.search(["bread"], 0) == [[]]


def test_two_rankings_become_one():
    assert fused([[3, 1, 2], [1, 3, 0]]) == [1, 3, 0, 2]
