"""The search as data: the clipped NLL, what of an answer counts, and one segment's candidates."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.search import reer
from rl_likelihood.search.reer import Offer, Search
from rl_likelihood.search_settings import ReerSettings
from rl_likelihood.shapes import Example

CFG = ReerSettings()
START = Search(("one\n\n", "two\n\n", "three"), 1.0)


def test_the_nll_of_clipped_tokens():
    logp = np.array([-0.1, -0.5, -3.0, -0.2, -8.0, -5.0])
    mask = np.array([True] * 5 + [False])
    assert reer.clipped_nll(logp, mask, 2.0) == pytest.approx(0.96)
    assert reer.clipped_nll(logp, mask, 100.0) == pytest.approx(2.36)
    assert reer.clipped_nll(np.array([1e-3]), np.array([True]), 2.0) == 0  # a rounded log-prob above 0
    assert reer.clipped_nll(logp, np.zeros(6, bool), 2.0) == 0


def test_a_better_segment_is_taken_and_only_it_changes():
    s = reer.advanced(dataclasses.replace(START, at=1), [Offer("worse", 1.5, 0), Offer(" better ", 0.5, 0)], 0.2)
    assert s == Search(("one\n\n", "better\n\n", "three"), 0.5, at=2, taken=1)


@pytest.mark.parametrize("nll", [1.0, 1.1, math.inf, math.nan])
def test_what_is_not_strictly_better_is_not_taken(nll):
    assert reer.advanced(START, [Offer("x", nll, 0)], 0.2) == dataclasses.replace(START, at=1)
    assert reer.advanced(START, [], 0.2) == dataclasses.replace(START, at=1)


def test_what_copies_too_much_is_not_taken_unless_copying_is_allowed():
    offers = [Offer("copied", 0.1, 0.5), Offer("own", 0.9, 0.2)]
    assert reer.advanced(START, offers, 0.2).chain == "own\n\ntwo\n\nthree"
    assert reer.advanced(START, offers, math.inf).chain == "copied\n\ntwo\n\nthree"


@given(st.lists(st.lists(st.floats(0, 3), max_size=3), min_size=3, max_size=3))
def test_the_nll_never_rises(rounds):
    s = START
    for values in rounds:
        new = reer.advanced(s, [Offer(f"t{v}", v, 0) for v in values], 0.2)
        assert new.nll == min([s.nll, *values]) and new.at == s.at + 1
        s = new
    assert s.at == 3 and s.taken <= 3


def test_when_a_search_is_over():
    assert reer.left(START, CFG) == 3
    assert reer.left(dataclasses.replace(START, at=3), CFG) == 0
    assert reer.left(START, dataclasses.replace(CFG, max_segments=2)) == 2
    assert reer.left(dataclasses.replace(START, nll=0.24), CFG) == 0
    assert reer.left(START, dataclasses.replace(CFG, candidates=0)) == 0


def test_the_first_segment_of_the_answer_is_given():
    first, second = "a" * 120 + "\n\n", "b" * 120
    text = f">{first}{second}</answer>"
    vocab = tuple(bytes([i]) for i in range(256))
    ids, scored = np.frombuffer(text.encode(), np.uint8), np.zeros(len(text), bool)
    scored[1:-9] = True
    row = EncodedExample(Example("q", "p", first + second), np.zeros(1, np.int32), ids.astype(np.int32), scored)
    later = reer.scored_from(row, vocab, CFG)
    assert "".join(np.array(list(text))[later.answer_scored]) == second
    assert reer.scored_from(row, vocab, dataclasses.replace(CFG, score_from="start")) is row
    short = dataclasses.replace(row, example=Example("q", "p", "one segment"))
    assert reer.scored_from(short, vocab, CFG) is short


def test_first_chains_that_start_no_search():
    two = "x" * 120 + "\n\n" + "y" * 120
    assert reer.unfit(two, 100, "an answer", CFG) == ""
    assert "short" in reer.unfit(two, 99, "an answer", CFG)
    assert "one segment" in reer.unfit("x" * 300, 100, "an answer", CFG)
    assert "copies" in reer.unfit(two + " an answer", 100, "an answer", CFG)
