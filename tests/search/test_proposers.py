"""Searches whose proposer is a server, cannot read a request, or was stopped."""

import dataclasses

import pytest

from rl_likelihood.reer import REER, finder, search
from rl_likelihood.search.rounds import Journal, Variant, find, first_chains
from tests.search.test_rounds import QUESTIONS, config, long, stub, stubbed
from tests.servers import serving
from tests.test_distill import rows_in, said


def test_a_search_with_a_server_asks_nothing_twice(tmp_path):
    """Two questions and edits of marked parts. The second run of the command makes no request."""

    def behave(handler, n, body):
        marked, seed = "[MARKED]\ny0" in body["messages"][0]["content"], body["seed"]
        edit = f"<analysis>It lacks a part.</analysis>\n<part>{long(f'new{marked}{seed}')}</part>"
        handler.reply(200, said(edit if seed else f"{long('x0')}\n\n{long('y0')}"))

    with serving(behave) as (url, requests):
        c = config(
            tmp_path,
            data__train_size=2,
            reer__ask="edit",
            reer__proposer=url,
            reer__proposer_name="writer",
            reer__clip=20.0,
            reer__controls=False,
        )
        folder = tmp_path / "w"
        folder.mkdir()
        search(finder(c, folder), folder)
        rows, asked = rows_in(folder / REER), len(requests)
        assert len(rows) == 2 and asked == 2 + 2 * 2 * c.reer.candidates
        for step, marked in ((1, False), (2, True)):  # the second part is marked in the second step
            lines = Journal(folder).of("search", step).values()
            want = [long(f"new{marked}{2 * step + j}") for j in (0, 1)]
            assert [[text for text, *_ in line["offers"]] for line in lines] == [want] * 2
        assert any(row["steps"] for row in rows)
        assert all(("new" in row["chain"]) == (row["steps"] > 0) for row in rows)
        before = (folder / REER).read_bytes()
        search(finder(c, folder), folder)
        assert len(requests) == asked and (folder / REER).read_bytes() == before


def test_progress_counts_a_question_once(tmp_path):
    """Two questions of different batches are asked again. Their batches are computed whole; only they are new."""
    f = stubbed(tmp_path)
    assert f.size == 2
    told = []
    make = lambda part: [{"chain": "x"} for _ in part]
    f.each("first", 0, range(QUESTIONS), make, told.append)
    assert told == [2, 2, 1]
    for i in (1, 4):
        del f.journal.of("first", 0)[i]
    f.each("first", 0, range(QUESTIONS), make, told.append)
    assert told == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("server", ["", "http://h/v1"])
def test_requests_that_the_proposer_cannot_read_are_counted(tmp_path, server):
    """Question 1 gets no candidate for its three segments. A resumed search says the same."""

    def short(asked, call, length):
        groups = stub(asked, call, length)
        return [[] if a.uid == 1 and length.until == "\n\n" else g for a, g in zip(asked, groups, strict=True)]

    for _ in range(2):
        lines = []
        f = dataclasses.replace(stubbed(tmp_path, short, reer__proposer=server), say=lines.append)
        find(f, dict(enumerate(first_chains(f))), Variant("search", 0.2))
        lines = [line for line in lines if "no candidate" in line]
        assert len(lines) == (0 if server else 1)
        assert server or f"search: 3 of {3 * QUESTIONS} segments" in lines[0] and "reer.max_segment = 256" in lines[0]
