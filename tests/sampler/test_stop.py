"""The stop automaton against searching the text itself, for any spelling in any tokens."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.sampler.stop import first_match, stop_table

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, database=None)

# A small alphabet, so that partial matches, overlaps and restarts are common.
text = st.text("ab<", min_size=1, max_size=4)
vocabularies = st.lists(st.text("ab<", max_size=3).map(str.encode), min_size=1, max_size=8).map(tuple)
patterns = st.lists(text, min_size=1, max_size=3).map(tuple)
rows = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def search(vocab, wanted, ids):
    """Number of ids up to the one after which the text holds a pattern; an id without bytes starts a new text."""
    text = b""
    for i, token in enumerate(ids):
        text = text + vocab[token] if vocab[token] else b""
        if any(p.encode() in text for p in wanted):
            return i + 1
    return -1


@PROPERTY
@given(vocabularies, patterns, rows)
def test_first_match_is_the_first_id_where_the_text_holds_a_pattern(vocab, wanted, ids):
    ids = np.array(ids) % len(vocab)
    table = stop_table(vocab, wanted)
    assert int(first_match(table, ids, np.array(len(ids)))) == search(vocab, wanted, ids)


@PROPERTY
@given(vocabularies, patterns, rows, st.integers(0, 12))
def test_ids_beyond_the_length_do_not_count(vocab, wanted, ids, length):
    ids = np.array(ids) % len(vocab)
    got = int(first_match(stop_table(vocab, wanted), ids, np.array(length)))
    assert got == search(vocab, wanted, ids[:length])


@PROPERTY
@given(vocabularies, patterns, rows)
def test_a_match_is_never_left(vocab, wanted, ids):
    # What the compiled loop relies on: the last state stays, whatever follows, special ids too.
    table = stop_table(vocab, wanted)
    matched = table.shape[1] - 1
    assert (table[:, matched] == matched).all()
    state, hit = 0, search(vocab, wanted, np.array(ids) % len(vocab))
    for i, token in enumerate(ids):
        state = table[token % len(vocab), state]
        assert (state == matched) == (0 < hit <= i + 1)


def test_every_way_to_spell_a_tag_is_found():
    vocab = (b"<", b"answer", b"<ans", b"wer", b" <answer", b">", b"", b"x<", b"answ", b"er>x", b"\xc3", b"\xa9<")
    table = stop_table(vocab, ("<answer",))
    spelt = [[0, 1], [2, 3], [4], [7, 1], [0, 8, 9], [0, 0, 1], [2, 2, 3], [10, 11, 1], [5, 4, 5, 5]]
    for ids in spelt:
        length = np.array(len(ids))
        assert int(first_match(table, np.array(ids), length)) == (2 if ids == [5, 4, 5, 5] else len(ids)), ids
    # Broken by a special id (6), by another byte, or not begun.
    for ids in ([0, 6, 1], [2, 6, 3], [0, 5, 1], [1, 1], [2, 0], [0, 8, 3]):
        assert int(first_match(table, np.array(ids), np.array(len(ids)))) == -1, ids


def test_rows_of_any_shape_and_length():
    vocab = (b"a", b"b", b"ab", b"")
    ids = np.array([[[0, 1, 0], [2, 2, 2]], [[0, 3, 1], [1, 0, 1]]])
    length = np.array([[3, 3], [3, 2]])
    assert first_match(stop_table(vocab, ("ab",)), ids, length).tolist() == [[2, 1], [-1, -1]]


def test_characters_of_several_bytes_match_bytewise():
    vocab = tuple(bytes([b]) for b in "é".encode()) + (b"e",)
    table = stop_table(vocab, ("é",))
    assert int(first_match(table, np.array([2, 0, 1]), np.array(3))) == 3
    assert int(first_match(table, np.array([0, 0, 1]), np.array(3))) == 3
    assert int(first_match(table, np.array([1, 0, 2]), np.array(3))) == -1
