"""Searches whose proposer is a server, cannot read a request, or was stopped."""

import copy
import dataclasses
import re

import pytest

from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.reer import REER, finder, search
from rl_likelihood.search.proposer import with_model
from rl_likelihood.search.rounds import Journal, Variant, find, first_chains
from rl_likelihood.weights import files
from tests.search.test_rounds import QUESTIONS, config, long, stub, stubbed
from tests.servers import serving
from tests.small import kept_progress, random_params
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


def test_progress_counts_a_question_once(tmp_path, monkeypatch):
    """Two questions of different batches are asked again. Their batches are computed whole; only they are new."""
    shown = kept_progress(monkeypatch, "rl_likelihood.search.rounds.Progress")
    f = stubbed(tmp_path, reer__candidates=0)
    assert f.size == 2
    told = []
    make = lambda part: [{"chain": "x"} for _ in part]
    f.each("first", 0, range(QUESTIONS), make, told.append)
    assert told == [2, 2, 1]
    for i in (1, 4):
        del f.journal.of("first", 0)[i]
    f.each("first", 0, range(QUESTIONS), make, told.append)
    assert told == [2, 2, 1, 1, 1]
    for _ in range(2):
        find(f, dict.fromkeys(range(QUESTIONS), "x"), Variant("search", 0.2))
    scored = [numbers for what, *numbers in shown if what == "search: scored"]
    assert scored == [[0, QUESTIONS, QUESTIONS], [QUESTIONS, QUESTIONS, QUESTIONS]]


def test_a_server_that_never_replies_is_named_with_its_failures(tmp_path):
    """Every call fails; then the last of two."""
    for good, words in (
        (0, "2 calls to http.* failed (status 400: 2)"),
        (1, "1 call to http.* failed (status 400: 1)"),
    ):

        def behave(handler, n, body, good=good):
            text = f"{long('x0')}\n\n{long('y0')}"
            handler.reply(*((200, said(text)) if n <= good else (400, b"no")))

        with serving(behave) as (url, _):
            changes = {"reer__candidates": 0, "reer__controls": False, "data__train_size": 2}
            folder = tmp_path / str(good)
            folder.mkdir()
            f = finder(
                config(tmp_path, **changes, reer__proposer=url, reer__proposer_name="m", reer__ask="edit"), folder
            )
            lines = []
            f = dataclasses.replace(f, say=lines.append)
            if good:
                search(f, folder)
            else:
                with pytest.raises(UserError, match="reer.proposer is http.* no first chain for any of 2 questions"):
                    search(f, folder)
            (line,) = [line for line in lines if "failed" in line]
            assert re.fullmatch(words.replace("(", r"\(").replace(")", r"\)"), line)
            assert good == ("NLL" in lines[-1])


def test_a_model_that_cannot_read_the_questions_is_named(tmp_path):
    """One has too few positions. The tokenizer of another reads a word of every question as a control token."""
    task = stubbed(tmp_path).task
    short, chatty = dataclasses.replace(task.model, max_position=10), copy.deepcopy(task.tokenizer)
    chatty.add_tokens(["Write"], special_tokens=True)
    wide = dataclasses.replace(task.model, vocab_size=task.model.vocab_size + 1)
    for model, tokenizer, words in (
        (short, task.tokenizer, "reer.other is .*, whose 10 positions do not hold the prompt of row q0; name a model"),
        (wide, chatty, "reer.other is .*, but row q0 contains 'Write', a control token of the tokenizer"),
    ):
        folder = tmp_path / model.family / str(model.max_position)
        files.save(folder, model, random_params(model))
        save_tokenizer(tokenizer, folder, task.fmt.eos_ids)
        with pytest.raises(UserError, match=words):
            with_model(stubbed(tmp_path, reer__other=str(folder)).task, "reer.other", None)


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
