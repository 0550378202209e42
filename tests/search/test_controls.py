"""The table of controls: what each search may copy, which answer another model reads, and the numbers by hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from rl_likelihood.search.controls import controls, numbers, row
from rl_likelihood.search.reer import Search
from rl_likelihood.search.rounds import Ended, Variant, best_whole, find, first_chains, score
from tests.evaluation.bigrams import sharp
from tests.search.test_rounds import QUESTIONS, long, stubbed
from tests.small import kept_progress

LETTERS = "abcdefgh"


def with_rest(text):
    """A chain of three segments, of which `text` is the first."""
    return "\n\n".join([text, long("y"), long("z")])


def test_only_with_copying_allowed_a_chain_may_copy(tmp_path):
    """Two candidates: one copies nothing, and a better one copies half of the answer. The whole chains that are sampled
    hold the second. Of eight texts of each kind, the worst two and the best make this order."""
    f = stubbed(tmp_path, reer__clip=20.0, reer__max_segments=1)
    f = dataclasses.replace(f, params=sharp(f.params))
    firsts, clean, copies = [], [], []
    for i in range(QUESTIONS):
        half = f.task.train[i].example.answer.split("\n\n")[0]
        kinds = [long(letter) for letter in LETTERS], [f"{half} {letter * 50}" for letter in LETTERS]
        fresh, copying = ([with_rest(text) for text in texts] for texts in kinds)
        (nll,) = score(f, [f.row(i)], [[*fresh, *copying]])
        order, best = np.argsort(nll[: len(fresh)]), int(np.argmin(nll[len(fresh) :]))
        assert nll[len(fresh) + best] < nll[order[-2]] - 1e-4 < nll[order[-1]] - 2e-4, "else the test says nothing"
        firsts.append(fresh[order[-1]])
        clean.append(kinds[0][order[-2]])
        copies.append(kinds[1][best])

    def propose(asked, call, length):
        if length.until == "\n\n":
            return [[clean[a.uid], copies[a.uid]] for a in asked]
        return [[with_rest(copies[a.uid]) if call else firsts[a.uid]] for a in asked]

    f = dataclasses.replace(f, propose=propose)
    chains = dict(enumerate(first_chains(f)))
    ended = find(f, chains, Variant("search", f.task.config.reer.max_copied))
    table = controls(f, chains, ended)
    copied = {name: table[name]["copied"] for name in ("search", "copying allowed")}
    assert copied["search"] < 0.1 < 0.45 < copied["copying allowed"]
    assert table["search"]["taken"] == table["copying allowed"]["taken"] == 1
    assert table["copying allowed"]["nll"] < table["search"]["nll"]
    assert table["whole chains"]["nll"] == table["search"]["nll_start"], "the first chain is the best that may be taken"
    taken = best_whole(f, chains, ended, math.inf)
    assert all(best.chain == with_rest(copies[i]) for i, best in taken.items())


def test_another_model_reads_the_other_answer_too(tmp_path, monkeypatch):
    shown = kept_progress(monkeypatch, "rl_likelihood.search.controls.Progress")
    f = stubbed(tmp_path, reer__candidates=0)  # the last chain is the first
    other = jax.tree.map(lambda x: np.asarray(x) * 3, f.params)
    f = dataclasses.replace(f, other=(f.task, other))
    chains = dict(enumerate(first_chains(f)))
    table = controls(f, chains, find(f, chains, Variant("search", 0.2)))
    g = dataclasses.replace(f, params=other)
    for name, shift in (("search", 0), ("another answer", 1), ("copying allowed", 0)):
        want = np.mean([score(g, [g.row(i, shift)], [[chain]])[0][0] for i, chain in chains.items()])
        assert [table[name]["other_start"], table[name]["other"]] == pytest.approx([want, want], abs=1e-5), name
    assert abs(table["another answer"]["other"] - table["search"]["other"]) > 1e-3
    names = [f"{name}, another model: scored chains of" for name in ("search", "another answer", "copying allowed")]
    assert shown == [(name, 0, QUESTIONS, QUESTIONS) for name in names]


def test_the_numbers_of_a_row_by_hand(tmp_path):
    """Falls of 1 and 4 nats: their standard deviation is 3 / sqrt(2), that of their mean 1.5."""
    want = {"nll_none": 5.0, "nll_start": 4.0, "nll": 1.5, "fall": 2.5, "fall_se": pytest.approx(1.5)}
    assert numbers({0: (3.0, 4.0, 2.0), 1: (5.0, 6.0, 1.0)}) == want
    f = stubbed(tmp_path)
    words = f.task.train[0].example.answer.split()
    chain = " ".join(words[: len(words) // 2])
    ended = {
        0: Ended(Search((chain,), 2.0, taken=1), nll_start=3.0, nll_none=4.0, tokens=10),
        1: Ended(Search(("nothing of it",), 1.0, taken=3), nll_start=5.0, nll_none=6.0, tokens=40),
    }
    assert row(f, ended) == want | {"tokens": 25.0, "taken": 2.0, "copied": (len(words) // 2) / len(words) / 2}
