"""The search on a two-layer model: its scores, its journal, its files, and a search that was killed."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.own_rows import Columns, to_example
from rl_likelihood.data.prompts import completion_ids
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.reer import REER, TABLE, finder, run, search
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import sampler_weights
from rl_likelihood.search import reer
from rl_likelihood.search.controls import text_of, under_other
from rl_likelihood.search.folder import DROPPED, HELDOUT, row_of
from rl_likelihood.search.proposer import Drawing, Length, asks_of, model_proposer, with_model
from rl_likelihood.search.rounds import FILE, Finder, Journal, Variant, find, first_chains, score
from rl_likelihood.shapes import CHAIN, TAG, Example
from rl_likelihood.task import load
from rl_likelihood.training.warm_start import chains_to_learn
from rl_likelihood.weights import files
from tests.evaluation.bigrams import saved
from tests.runs import small_config
from tests.small import kept_progress, log_softmax, reference_logits

QUESTIONS = 5
CLIP = 5.5  # near log 256: the tokens of a model of random weights are on both sides


def long(word: str) -> str:
    """A segment: 100 characters or more, no trigram twice."""
    return " ".join(f"{word}{n}" for n in range(10, 10 + 100 // (len(word) + 3) + 1))


def stub(asked, call, length):
    """Distinct texts, without a model: a chain of three segments, or candidates."""
    if length.until == "\n\n":
        return [[long(f"c{a.uid}{call}{j}") for j in range(length.replies)] for a in asked]
    chain = lambda uid, j: "\n\n".join(long(f"{part}{uid}{call}{j}") for part in "xyz")
    return [[chain(a.uid, j) for j in range(length.replies)] for a in asked]


def config(folder, **changes):
    rows = [{"id": f"q{i}", "prompt": f"Write {i}.", "answer": f"{long(f'a{i}')}\n\n{long(f'b{i}')}"} for i in range(6)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "data__source": "files",
        "data__train_path": str(path),
        "data__train_size": 0,
        "data__heldout_size": 1,
        "prompt__max_answer": 260,
        "sampler__max_chain": 500,
        "eval__prompts": 1,
        "eval__batch_prompts": 2,
        "reer__ask": "resample",
        "reer__clip": CLIP,
    }
    return build(small_config(**{**values, **changes}))


def stubbed(folder, propose=stub, **changes) -> Finder:
    task, params = load(config(folder, **changes))
    assert len(task.train) == QUESTIONS
    return Finder(task, params, asks_of(task), propose, Journal(folder))


def test_scores_are_those_of_the_reference_decoder(tmp_path):
    f = stubbed(tmp_path)
    rows = [f.row(0), f.row(1)]
    got = score(f, rows, [["", "two words", None], ["other", "x" * 501, "<|end|>"]])
    for row, group, chains in zip(rows, got, (["", "two words"], ["other"]), strict=True):
        for chain, nll in zip(chains, group, strict=False):
            ids, _ = completion_ids(row, chain, f.task.tokenizer, f.task.fmt)
            whole = np.concatenate([row.prompt_ids, ids])
            logp = log_softmax(reference_logits(f.params, f.task.model, whole))
            at = len(whole) - len(row.answer_ids) + np.flatnonzero(row.answer_scored)
            assert len(at) == len(long("b0")) + 1  # the second segment and "<"
            assert nll == pytest.approx(np.clip(-logp[at - 1, whole[at]], 0, CLIP).mean(), abs=1e-5)
    assert got[0][2] == got[1][1] == math.inf


def test_the_best_candidate_of_each_round_is_in_the_chain(tmp_path):
    f = stubbed(tmp_path, reer__clip=20.0, reer__max_segments=2)
    chains = dict(enumerate(first_chains(f)))
    ended = find(f, chains, Variant("search", 0.2))
    improved = 0
    for i, one in ended.items():
        start, parts = f.journal.of("search", 0)[i], chains[i].split("\n\n")
        assert (one.nll_start, one.nll_none) == (start["nll"], start["nll_none"])
        nll, taken = start["nll"], 0
        for step in (1, 2):
            offers = f.journal.of("search", step)[i]["offers"]
            assert len(offers) == 2
            text, best, _ = min(offers, key=lambda o: o[1])
            if best < nll:
                parts[step - 1], nll, taken = text, best, taken + 1
        assert one.search.chain == "\n\n".join(parts) and (one.search.nll, one.search.taken) == (nll, taken)
        improved += taken
        ids_nll = score(f, [f.row(i)], [[one.search.chain]])[0][0]
        assert ids_nll == pytest.approx(one.search.nll, abs=1e-5)
    assert improved  # else the test says nothing


def test_no_candidates_return_the_first_chain(tmp_path):
    f = stubbed(tmp_path, reer__candidates=0)
    chains = dict(enumerate(first_chains(f)))
    assert {i: one.search.chain for i, one in find(f, chains, Variant("search", 0.2)).items()} == chains


def test_a_killed_search_is_the_unbroken_one(tmp_path):
    class Killed(Exception):
        pass

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    search(stubbed(tmp_path / "a"), tmp_path / "a")
    for most in (2, 7, 1000):
        calls = iter(range(most))

        def between(calls=calls):
            if next(calls, None) is None:
                raise Killed

        f = dataclasses.replace(stubbed(tmp_path / "b"), between=between)
        try:
            search(f, tmp_path / "b")
        except Killed:
            lines = (tmp_path / "b" / FILE).read_bytes().splitlines(keepends=True)
            (tmp_path / "b" / FILE).write_bytes(b"".join(lines[:-1]) + lines[-1][:7])  # within a batch, within a line
    for name in (REER, DROPPED, TABLE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_row_is_read_as_the_question_that_it_was():
    check = json.dumps({"environment": {"n": 1}, "alternatives": ["b"], "rejected": ["c"]})
    for messages in ((), (("system", "s"), ("user", "q"))):
        e = Example("i", "q", "a", task="t", messages=messages, check=check)
        assert to_example(row_of(e), "", Columns()) == e


def test_the_files_and_the_table(tmp_path):
    said = []
    f = dataclasses.replace(stubbed(tmp_path, reer__clip=20.0), say=said.append)
    search(f, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / REER).read_text().splitlines()]
    assert len(rows) == QUESTIONS and not (tmp_path / DROPPED).read_text()
    (heldout,) = [json.loads(line) for line in (tmp_path / HELDOUT).read_text().splitlines()]
    assert {"id", "prompt", "answer"} <= set(heldout) and heldout["id"] not in {row["id"] for row in rows}
    table = json.loads((tmp_path / TABLE).read_text())
    assert list(table) == ["search", "another answer", "copying allowed", "whole chains"]
    assert table["search"]["nll"] == pytest.approx(np.mean([r["nll"] for r in rows]))
    assert table["search"]["fall"] == pytest.approx(np.mean([r["nll_start"] - r["nll"] for r in rows]))
    assert table["whole chains"]["nll_start"] == table["search"]["nll_start"] != table["another answer"]["nll_start"]
    assert all(line["fall"] >= 0 for line in table.values())
    assert all(name in said[-1] for name in table)
    # The other answer is the next question's.
    want = score(f, [dataclasses.replace(f.row(1), prompt_ids=f.task.train[0].prompt_ids)], [[rows[0]["start_chain"]]])
    assert f.journal.of("another answer", 0)[0]["nll"] == pytest.approx(want[0][0], abs=1e-5)


def test_a_model_that_took_no_part_scores_the_chains(tmp_path):
    f = stubbed(tmp_path)
    other = jax.tree.map(lambda x: np.asarray(x) * 3, f.params)
    files.save(tmp_path / "other", f.task.model, other)
    save_tokenizer(f.task.tokenizer, tmp_path / "other", f.task.fmt.eos_ids)
    # The limits count the tokens of the model that searches; the other model is limited by its positions alone.
    f = stubbed(tmp_path, reer__controls=False, reer__other=str(tmp_path / "other"), prompt__max_answer=260)
    f = dataclasses.replace(f, other=with_model(f.task, "reer.other", None))
    search(f, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / REER).read_text().splitlines()]
    numbers = json.loads((tmp_path / TABLE).read_text())["search"]
    g = dataclasses.replace(f, params=other)
    pairs = [score(g, [g.row(i)], [[row["start_chain"], row["chain"]]])[0] for i, row in enumerate(rows)]
    assert [numbers["other_start"], numbers["other"]] == pytest.approx(np.mean(pairs, 0), abs=1e-5)
    assert numbers["other"] != pytest.approx(numbers["nll"], abs=1e-3) and numbers["other_questions"] == QUESTIONS


@pytest.mark.parametrize("server, why", [("http://h/v1", "no reply"), ("", "question too long for the proposer")])
def test_a_question_without_a_first_chain_says_why_and_is_asked_again_of_a_server(tmp_path, monkeypatch, server, why):
    shown = kept_progress(monkeypatch, "rl_likelihood.search.rounds.Progress")

    def failing(asks, call, length):
        return [group if a.uid != 2 else [] for a, group in zip(asks, stub(asks, call, length), strict=True)]

    changes = {"reer__proposer": server, "reer__controls": False, "reer__max_segments": 1}
    search(stubbed(tmp_path, failing, **changes), tmp_path)
    (dropped,) = [json.loads(line) for line in (tmp_path / DROPPED).read_text().splitlines()]
    assert (dropped["prompt"], dropped["dropped"]) == ("Write 2.", why)
    search(stubbed(tmp_path, **changes), tmp_path)
    assert len((tmp_path / DROPPED).read_text().splitlines()) == (0 if server else 1)
    rows = [json.loads(line) for line in (tmp_path / REER).read_text().splitlines()]
    assert len(rows) == QUESTIONS - (0 if server else 1)
    first = [numbers for what, *numbers in shown if what == "wrote first chains of"]
    assert first == [[0, QUESTIONS, QUESTIONS], [QUESTIONS - bool(server), QUESTIONS, QUESTIONS]]


def test_chains_that_the_other_model_cannot_read_are_counted(tmp_path):
    """The other model has so few positions that only short chains fit."""
    f = stubbed(tmp_path)
    answers = max(len(r.prompt_ids) + len(r.answer_ids) for r in f.task.train) + len(f.task.fmt.close_think_ids)
    for positions, questions in ((answers + 200, 0), (answers + 400, QUESTIONS)):
        folder = tmp_path / str(positions)
        files.save(
            folder, dataclasses.replace(f.task.model, max_position=positions), jax.tree.map(np.asarray, f.params)
        )
        save_tokenizer(f.task.tokenizer, folder, f.task.fmt.eos_ids)
        g = stubbed(tmp_path, reer__other=str(folder))
        chains = {i: f"{long('x')}\n\n{long('y')}" for i in range(QUESTIONS)}
        g = dataclasses.replace(g, journal=Journal(folder), other=with_model(g.task, "reer.other", None))
        asked = dataclasses.replace(g, task=g.other[0], params=g.other[1])
        ((_, numbers),) = under_other(asked, chains, {"search": chains})
        assert numbers["other_questions"] == questions


def test_the_table_says_that_no_other_model_was_asked():
    line = {"nll": 1.0}
    assert "another model: not measured; set reer.other" in text_of({"search": line}, 2)
    assert "not measured" not in text_of({"search": line | {"other_questions": 0}}, 2)


def test_the_chains_are_read_by_warm_start_and_fine_tuning(tmp_path):
    search(stubbed(tmp_path), tmp_path)
    again = {"data__train_path": str(tmp_path / REER), "warm_start__chains": "given", "prompt__examples": 0}
    sides = {"data__heldout_size": 1, "warm_start__prompts_per_step": 2, "warm_start__prompts": 2}
    (tmp_path / "next").mkdir()
    c = config(tmp_path / "next", **again, **sides)
    task, params = load(c)
    rows = {r["prompt"]: r["chain"] for r in map(json.loads, (tmp_path / REER).read_text().splitlines())}
    learned = chains_to_learn(task, None, params, tmp_path)
    assert len(learned) == 4 and all(row.example.chain == rows[row.example.prompt] for row in learned)


def test_a_run_learns_the_chains(tmp_path):
    """One step of fine-tuning on chains and answers of reer.jsonl: its loss is the NLL of both."""
    search(stubbed(tmp_path), tmp_path)
    (tmp_path / "next").mkdir()
    c = config(
        tmp_path / "next",
        data__train_path=str(tmp_path / REER),
        reward__name="sft",
        reward__sft_chain="both",
        train__steps=1,
        train__prompts_per_step=4,
        eval__prompts=0,
    )
    train.run(c, tmp_path / "run")
    (step,) = run_files.read(tmp_path / "run" / run_files.METRICS)
    task, params = load(c)
    assert len(task.train) == 4
    learned = []
    for row in task.train:
        ids, kinds = completion_ids(row, row.example.chain, task.tokenizer, task.fmt)
        whole = np.concatenate([row.prompt_ids, ids])
        logp = log_softmax(reference_logits(params, task.model, whole))[np.arange(len(whole) - 1), whole[1:]]
        of = logp[-len(ids) :]
        answer = of[-len(row.answer_ids) :][row.answer_scored].sum()
        chain = (kinds == CHAIN) | (kinds == TAG)
        learned.append((of[chain].sum() + answer, answer, chain.sum()))
    both, answer, length = np.mean(learned, 0)
    assert step["chain/length"] == length > 300
    assert step["answer/log_prob"] == pytest.approx(answer, rel=1e-5)
    assert step["loss/answer"] == pytest.approx(-both, rel=1e-5)


def test_a_models_replies_depend_on_no_other_question(tmp_path):
    f = stubbed(tmp_path)
    propose = model_proposer(f.task, sampler_weights(f.params, f.task.model, None), Drawing(0.8))
    asked = [f.asks.chain(i, f.task.train[i].example) for i in range(3)]
    all_three = propose(asked, 1, Length(2, "</think", 8))
    assert all_three == propose(asked, 1, Length(2, "</think", 8))
    assert propose([asked[2]], 1, Length(2, "</think", 8)) == [all_three[2]]
    assert propose(asked, 2, Length(2, "</think", 8)) != all_three
    assert len({text for group in all_three for text in group}) == 6
    likeliest = model_proposer(f.task, sampler_weights(f.params, f.task.model, None), Drawing(0.8, top_p=1e-6))
    greedy = model_proposer(f.task, sampler_weights(f.params, f.task.model, None), Drawing(0.0))
    assert likeliest(asked, 1, Length(2, "</think", 8)) == greedy(asked, 1, Length(2, "</think", 8))
    assert propose(asked, 1, Length(2, "</think", 5000)) == [[], [], []]  # more than the model has positions


def test_what_is_asked(tmp_path):
    f = stubbed(tmp_path)
    example, s = f.task.train[0].example, reer.Search(("one\n\n", "two\n\n", "three"), 1.0, at=1)
    whole, again = f.asks.chain(0, example), f.asks.segment(0, example, s)
    assert example.prompt in whole.message and example.answer in whole.message and whole.reply == "<think>"
    assert again == whole._replace(reply="<think>one\n\n")
    edit = dataclasses.replace(f.asks, cfg=dataclasses.replace(f.asks.cfg, ask="edit"))
    asked = edit.segment(0, example, s)
    assert "one\n\n[MARKED]\ntwo\n[/MARKED]\nthree" in asked.message and asked.reply == "<analysis>"
    assert edit.part_in("It lacks a <part>.</analysis> <part> more </part>") == "more" and edit.part_in("no part") == ""
    assert edit.part_in("It lacks.</analysis> <part> cut off") == ""
    assert f.asks.chain_in(" a chain </think> <answer>x") == "a chain"


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"reer.min_chain is 100000.*5 \(first chain too short\)"):
        search(stubbed(tmp_path, reer__min_chain=100000), tmp_path)
    dropped = [json.loads(line) for line in (tmp_path / DROPPED).read_text().splitlines()]
    assert len(dropped) == QUESTIONS and all("short" in row["dropped"] for row in dropped)
    (tmp_path / "first.txt").write_text("Of $question and $nothing")
    with pytest.raises(UserError, match=r"reer.prompts.*first.txt.*nothing"):
        stubbed(tmp_path, reer__prompts=str(tmp_path))
    with pytest.raises(UserError, match="reer.prompts.*cannot be read"):
        stubbed(tmp_path, reer__prompts=str(tmp_path / "none"))
    with pytest.raises(UserError, match="prompt.template is 'raw'"):
        finder(config(tmp_path, prompt__template="raw", warm_start__examples=0), tmp_path)


def test_the_command_refuses_and_keeps_what_it_wrote(tmp_path):
    """Random bytes are no chains: the nano model's are all of no use."""
    with pytest.raises(UserError, match="reer.min_chain is 10, .* at most 9 tokens"):
        run(config(tmp_path, sampler__max_chain=12, reer__min_chain=10), tmp_path / "w")
    with pytest.raises(UserError, match="none is of use"):
        run(config(tmp_path, sampler__max_chain=12, reer__min_chain=9), tmp_path / "w2")
    assert len(run_files.read(tmp_path / "w2" / FILE)) == QUESTIONS


@pytest.mark.parametrize("file", ["first.txt", "edit.txt"])
def test_a_search_does_not_resume_with_other_prompt_files(tmp_path, file):
    """The folder may move, its texts may not change; else one table would mix two searches."""
    texts = {"first.txt": "First: $question $answer", "edit.txt": "Edit: $before $part $after"}
    for folder in ("mine", "moved"):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(text)

    def resume(folder):
        changes = {"sampler__max_chain": 12, "reer__min_chain": 9, "reer__prompts": str(tmp_path / folder)}
        with pytest.raises(UserError) as refused:
            run(config(tmp_path, **changes), tmp_path / "w")
        return str(refused.value)

    assert "none is of use" in resume("mine") and "none is of use" in resume("moved")
    (tmp_path / "moved" / file).write_text(texts[file] + " More.")
    assert "began with other requests: first.txt or edit.txt (reer.prompts)" in resume("moved")


# What follows what in the replies of a model that writes paragraphs of letters, and sometimes a marked part.
WRITER = {
    ">": {"b": 1.0},
    "b": {"c": 0.46, "d": 0.4, "<": 0.07, "\n": 0.07},
    "c": {"b": 0.5, "d": 0.3, " ": 0.2},
    "d": {"b": 0.6, "c": 0.2, " ": 0.2},
    " ": {"c": 0.5, "d": 0.5},
    "\n": {"\n": 0.5, "b": 0.5},
    "<": {"p": 0.6, "/": 0.4},
    "/": {"p": 0.7, "think": 0.3},
    "think": {">": 1.0},
    "p": {"a": 1.0},
    "a": {"r": 1.0},
    "r": {"t": 1.0},
    "t": {">": 1.0},
}


@pytest.mark.parametrize("ask", ["resample", "edit"])
def test_the_command_with_models_and_its_resume(tmp_path, ask):
    """One model writes, the small one scores. A search whose journal was cut ends with the same files."""
    writer = saved(tmp_path / "writer", WRITER)
    c = config(
        tmp_path,
        reer__ask=ask,
        reer__proposer=str(writer),
        reer__clip=20.0,
        reer__max_segments=2,
        reer__max_segment=300,
        reer__max_copied=1.0,
        reer__top_p=1.0,
    )
    run(c, tmp_path / "w")
    folder = tmp_path / "w"
    lines = run_files.read(folder / FILE)
    searched = [line for line in lines if line["search"] == "search" and line["step"]]
    offers = [offer for line in searched for offer in line["offers"]]
    assert offers and {line["step"] for line in searched} == {1, 2}
    # Edits think first, and that is sampled too. Of a segment, only the blank lines at its end are left out.
    extra = sum(line["tokens"] for line in searched) - sum(len(text) for text, *_ in offers)
    assert extra > len("<part></part>") * len(offers) if ask == "edit" else extra >= 0
    rows = [json.loads(line) for name in (REER, DROPPED) for line in (folder / name).read_text().splitlines()]
    rows = [row for row in rows if "nll" in row]
    assert sum(row["steps"] for row in rows) > 0 and all(row["nll"] <= row["nll_start"] for row in rows)
    files_of = lambda: {name: (folder / name).read_bytes() for name in (FILE, REER, DROPPED, TABLE)}
    unbroken = files_of()
    for part in (0.2, 0.7):
        (folder / FILE).write_bytes(unbroken[FILE][: int(part * len(unbroken[FILE]))])
        for name in (REER, DROPPED, TABLE):
            (folder / name).unlink()
        run(c, folder)
        assert {k: v for k, v in files_of().items() if k != FILE} == {k: v for k, v in unbroken.items() if k != FILE}
