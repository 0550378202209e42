"""The control "whole chains": as many sampled tokens as the search, and an end."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rl_likelihood.reer import TABLE, search
from rl_likelihood.search import reer
from rl_likelihood.search.rounds import MOST_WHOLE, Ended, best_whole, score
from tests.search.test_rounds import QUESTIONS, stub, stubbed
from tests.small import kept_progress


def test_whole_chains_have_as_many_tokens_as_the_search(tmp_path):
    def uneven(asked, call, length):
        """Question i has i + 1 times as long candidates."""
        groups = stub(asked, call, length)
        if length.until != "\n\n":
            return groups
        return [[" ".join([text] * (a.uid + 1)) for text in group] for a, group in zip(asked, groups, strict=True)]

    f = stubbed(tmp_path, uneven, reer__clip=20.0)
    search(f, tmp_path)
    table = json.loads((tmp_path / TABLE).read_text())
    spent = {i: 0 for i in range(QUESTIONS)}
    for step in range(1, 11):
        for i, line in f.journal.of("search", step).items():
            assert line["tokens"] == sum(len(text) for text, *_ in line["offers"])  # a byte is a token
            spent[i] += line["tokens"]
    assert table["search"]["tokens"] == np.mean(list(spent.values()))
    whole = {i: [] for i in spent}
    for step in range(1, MOST_WHOLE + 1):
        for i, line in f.journal.of("whole", step).items():
            whole[i].append(line["tokens"])
    for i, tokens in whole.items():
        assert sum(tokens[:-1]) < spent[i] <= sum(tokens), i
    assert len({len(tokens) for tokens in whole.values()}) > 2
    assert table["whole chains"]["tokens"] == np.mean([sum(tokens) for tokens in whole.values()])
    best = [min([f.journal.of("whole", n)[i]["offers"][0][1] for n in range(1, len(t) + 1)]) for i, t in whole.items()]
    starts = [f.journal.of("search", 0)[i]["nll"] for i in whole]
    assert table["whole chains"]["nll"] == pytest.approx(np.minimum(best, starts).mean())


def test_whole_chains_end_at_their_maximum(tmp_path, monkeypatch):
    shown = kept_progress(monkeypatch, "rl_likelihood.search.rounds.Progress")
    f = stubbed(tmp_path, lambda asked, call, length: [["x"] for _ in asked])
    ended = {0: Ended(reer.Search(("x",), 1.0), 1.0, 2.0, tokens=10**6)}
    assert best_whole(f, {0: "x"}, ended, 0.2) == {0: ("x", 1.0, MOST_WHOLE)}
    assert f.journal.of("whole", MOST_WHOLE) and not f.journal.of("whole", MOST_WHOLE + 1)
    assert shown == [("whole chains: sampled for", 0, 1, 1)]


def test_the_other_model_scores_the_best_whole_chains(tmp_path):
    """A better whole chain for every question but one. Its other chains have markup, so its first chain is the best."""

    def propose(asked, call, length):
        groups = stub(asked, call, length)
        return [["<|end|>"] if a.uid == 0 and call > 1 else group for a, group in zip(asked, groups, strict=True)]

    f = stubbed(tmp_path, propose, reer__clip=20.0, reer__max_segments=1)
    other = jax.tree.map(lambda x: np.asarray(x) * 3, f.params)
    f = dataclasses.replace(f, other=(f.task, other))
    search(f, tmp_path)
    first = {i: line["chain"] for i, line in f.journal.of("first", 0).items()}
    sampled = {i: line["offers"] for i, line in f.journal.of("whole", 1).items()}
    assert all(nll < f.journal.of("search", 0)[i]["nll"] for i in sampled if i for _, nll, _ in sampled[i])
    best = {i: sampled[i][0][0] if i else first[0] for i in first}
    g = dataclasses.replace(f, params=other)
    pairs = [score(g, [g.row(i)], [[first[i], best[i]]])[0] for i in first]
    row = json.loads((tmp_path / TABLE).read_text())["whole chains"]
    assert [row["other_start"], row["other"]] == pytest.approx(np.mean(pairs, 0), abs=1e-5)
    assert row["other_questions"] == QUESTIONS
