"""The rubrics command: writes rubrics with near ones in view, goes on where it stopped, drops what tells nothing."""

import importlib.util
import json
import math
import re

import pytest

from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.rubrics import Criterion, Rubric, read_rubrics, refuse, write_rubrics
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.rollouts.judges import refuse_judge
from rl_likelihood.rollouts.rubric_judge import rubrics_of
from rl_likelihood.rollouts.rubric_writer import WriterPrompts, vector_of, writer_of
from rl_likelihood.rubrics import filter_rubrics, make, show
from rl_likelihood.run_model import random_model
from rl_likelihood.task import load
from rl_likelihood.weights import files
from tests.rollouts.test_judges import rubric_file
from tests.runs import small_config
from tests.servers import serving
from tests.small import random_params

SEEDS = [
    Rubric("What is 1 plus 1?", "s1", (Criterion("The sum is given as one number", 5), Criterion("It is wrong", -5))),
    Rubric("Name a bird", "s2", (Criterion("The bird exists", 3), Criterion("The sum is given as one number!", 2))),
]


def config(url, path, **changes):
    about = {"reward__name": "rubric", "judge__model": url, "judge__name": "m", "judge__attempts": 1}
    return build(small_config(**about, **{"rubric__path": str(path), "data__train_size": 10, **changes}))


@pytest.fixture(autouse=True)
def _no_proxy_and_all_replies_are_answers(monkeypatch):
    monkeypatch.setattr(graders, "extract_answer", lambda text, fmt: text)  # random weights write no answer
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def test_rubrics_are_written_and_the_rest_in_a_second_call(tmp_path):
    pytest.importorskip("bm25s")
    criteria = [{"criterion": f"demand number {i} of its own", "points": i or 7} for i in range(9)]

    def write(handler, number, body):
        if number == 2:
            return handler.reply(200, {"choices": [{"message": {"content": "I would rather not."}}]})
        text = f"Sure!\n```json\n{json.dumps(criteria)}\n```"
        return handler.reply(200, {"choices": [{"message": {"content": text}}]})

    write_rubrics(tmp_path / "seeds.jsonl", SEEDS)
    with serving(write) as (url, requests):
        more = {"rubric__seeds": str(tmp_path / "seeds.jsonl"), "rubric__cases": 1, "rubric__items": 4}
        c = config(url, tmp_path / "rubrics.jsonl", judge__concurrency=1, **more)
        assert make(c, tmp_path) == {"rubrics": 9, "made": 9, "failed": 1}
        made = read_rubrics(str(tmp_path / "rubrics.jsonl"))
        assert len(made) == 9 and all([x.points for x in r.criteria] == [7, 1, 2, 3] for r in made)
        asked = [r[3]["messages"][0]["content"] for r in requests]
        assert all(e.prompt in text for e, text in zip(sources.load(c.data)[0], asked, strict=True))
        before = len(requests)
        assert make(c, tmp_path)["made"] == 1 and len(requests) == before + 1
        assert "demand number 3" in show(made)


def test_lines_that_a_user_wrote_stay_byte_for_byte(tmp_path, capsys):
    pytest.importorskip("bm25s")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    criteria = [{"criterion": "It is right", "points": 3}]
    own = json.dumps({"prompt": messages, "rubrics": criteria, "source": "mine"}, indent=None, separators=(", ", " : "))

    def write(handler, number, body):
        handler.reply(200, {"choices": [{"message": {"content": json.dumps(criteria)}}]})

    with serving(write) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=3)
        (tmp_path / "r.jsonl").write_text(own)
        assert make(c, tmp_path) == {"rubrics": 4, "made": 3, "failed": 0}
        assert "rubric.seeds is empty" in capsys.readouterr().out
        assert (tmp_path / "r.jsonl").read_text().startswith(own + "\n")
        assert len(read_rubrics(c.rubric.path)) == 4
        for name in ("r.json", "list.jsonl"):
            (tmp_path / name).write_text(f"[{own}]")
            with pytest.raises(UserError, match=f"rubric.path.*{name}.*a .jsonl file"):
                make(config(url, tmp_path / name), tmp_path)
            assert (tmp_path / name).read_text() == f"[{own}]"


def test_what_is_shown_is_near_and_said_once():
    pytest.importorskip("bm25s")
    left_out = Rubric("What sum is 2 plus 2, as one number?", "", ())
    shown = WriterPrompts(config("http://h/v1", "x", rubric__cases=1, rubric__pool=2), [*SEEDS, left_out], None)
    assert len(shown.criteria) == 3, "two criteria with the same words are one"
    (message,) = shown.messages(["What sum is 2 plus 2, as one number?"])
    near = json.loads(message.partition("Criteria of questions that are near:\n")[2].partition("\n")[0])
    assert near[0] == {"criterion": "The sum is given as one number", "points": 5.0}
    assert "The bird exists" not in [x["criterion"] for x in near]
    assert "What is 1 plus 1?" in message and "Name a bird" not in message
    assert "What sum is 2 plus 2" in message.rpartition("Question:")[2]


def test_the_writer_is_asked_for_points_that_the_run_allows():
    pytest.importorskip("bm25s")
    for kind, negative in (("signed", True), ("healthbench", True), ("rar", False), ("checklist", False)):
        shown = WriterPrompts(config("http://h/v1", "x", rubric__aggregate=kind), SEEDS[1:], None)
        (message,) = shown.messages(["Why?"])
        most = 100 if kind == "checklist" else 10
        assert ("-10" in message) == negative and re.search(rf"from 1 to {most}\b", message)


@pytest.mark.parametrize("kind, points", [("rar", -2), ("healthbench", -2), ("signed", "\\ud800")])
def test_a_written_rubric_that_training_refuses_is_dropped_and_counted(tmp_path, kind, points):
    """The first question gets it. It is not stored as the server's reply, so the next call asks again."""
    pytest.importorskip("bm25s")

    def write(handler, number, body):
        good = '[{"criterion": "It is right", "points": 3}]'
        bad = f'[{{"criterion": "It is wrong", "points": {points}}}]'
        if kind == "rar":
            bad = good[:-1] + ", " + bad[1:]
        if kind == "signed":
            bad = f'[{{"criterion": "Half a pair {points}", "points": 3}}]'
        handler.reply(200, {"choices": [{"message": {"content": bad if number == 1 else good}}]})

    with serving(write) as (url, _):
        about = {"rubric__aggregate": kind, "judge__concurrency": 1, "data__train_size": 3}
        c = config(url, tmp_path / "rubrics.jsonl", **about)
        assert make(c, tmp_path) == {"rubrics": 2, "made": 2, "failed": 1}
        refuse(read_rubrics(c.rubric.path), kind)
        assert make(c, tmp_path) == {"rubrics": 3, "made": 1, "failed": 0}


def test_vectors_come_from_the_writers_address(tmp_path):
    def embed(handler, number, body):
        letters = [float(body["input"].count(c)) for c in "abcdefghijklmnopqrstuvwxyz"]
        return handler.reply(200, {"data": [{"embedding": letters if "broken" not in body["input"] else ["x"]}]})

    with serving(embed) as (url, requests):
        c = config(url, "x", rubric__retriever="http")
        _, vectors = writer_of(c, tmp_path)
        assert vectors(["aab", "b"])[:, :2].tolist() == [[2, 1], [0, 1]] and requests[0][1] == "/v1/embeddings"
        with pytest.raises(UserError, match="rubric.retriever.*no vectors"):
            vectors(["broken"])
    assert all(vector_of({"data": [{"embedding": [1.0, x]}]}) is None for x in (1e300, math.nan, -math.inf))
    for retriever, model, words in (("http", "nano", "no address"), ("decoder", url, "is an address")):
        with pytest.raises(UserError, match=words):
            writer_of(config(model, "x", rubric__retriever=retriever), tmp_path)
    with pytest.raises(UserError, match="rubric.writer is an address, but rubric.writer_name is empty"):
        writer_of(build(small_config(rubric__writer="http://h/v1")), tmp_path)


def test_a_question_without_a_rubric_is_refused_before_weights_are_read(tmp_path):
    write_rubrics(tmp_path / "r.jsonl", SEEDS)
    c = config("http://h/v1", tmp_path / "r.jsonl", model__preset="", model__path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no rubric for 10 of 10 training questions"):
        load(c)


def test_a_local_model_writes_and_makes_vectors(tmp_path, capsys):
    """Of random weights: no rubric can be read in its replies, which are counted."""
    model, scorer = random_model("nano"), tmp_path / "model"
    files.save(scorer, model, random_params(model))
    save_tokenizer(byte_tokenizer(), scorer)
    write_rubrics(tmp_path / "seeds.jsonl", SEEDS)
    more = {"rubric__retriever": "decoder", "rubric__seeds": str(tmp_path / "seeds.jsonl"), "rubric__max_new": 16}
    c = config(str(scorer), tmp_path / "rubrics.jsonl", data__train_size=3, rubric__cases=1, rubric__pool=1, **more)
    assert make(c, tmp_path) == {"rubrics": 0, "made": 0, "failed": 3}
    write, vectors = writer_of(c, tmp_path)
    assert "too long" not in capsys.readouterr().out
    assert write(["Hi", "x" * 5000])[1] is None and isinstance(write(["Hi"])[0], str)
    assert "too long for its 2048 positions for 1 question; lower rubric.cases" in capsys.readouterr().out
    assert vectors(["one", "two"]).shape[0] == 2


def unsure(handler, number, body):
    """Every answer contains the empty text, and none contains a zebra. It never says less than 0.45."""
    p = 0.45 if "has 'zebra'" in body["messages"][0]["content"] else 0.9
    pairs = [{"token": "yes", "logprob": math.log(p)}, {"token": "no", "logprob": math.log(1 - p)}]
    handler.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": pairs}]}}]})


@pytest.mark.parametrize("low, high, kept", [(0.0, 0.8, "it has 'zebra'"), (0.3, 1.0, "it has ''"), (0.3, 0.8, None)])
def test_criteria_that_all_or_no_answers_meet_are_left_out(tmp_path, low, high, kept):
    """The criterion that a checklist adds to all questions is not in the file."""
    limits = {"rubric__low": low, "rubric__high": high, "rubric__aggregate": "checklist"}

    with serving(unsure) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=5, rubric__rollouts=3, **limits)
        rubric_file(tmp_path / "r.jsonl", c, ("it has ''", 5.0), ("it has 'zebra'", 3.0))
        out = filter_rubrics(c, tmp_path)
    count = 5 if kept else 0
    assert out["criteria"] == 10 and out["criteria_kept"] == out["questions_kept"] == count and out["questions"] == 5
    written = read_rubrics(out["file"])
    assert [r.prompt for r in written] == [e.prompt for e in sources.load(c.data)[0]]
    assert all([x.text for x in r.criteria] == ([kept] if kept else []) for r in written)


def test_a_filter_leaves_the_rubrics_of_other_questions_as_they_are(tmp_path):
    """Of five questions with a rubric the run has two, and the file has one that no run has."""
    with serving(unsure) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=5)
        rubric_file(tmp_path / "r.jsonl", c, ("it has ''", 5.0), ("it has 'zebra'", 3.0))
        other = Rubric("Name a bird", "mine", (Criterion("it has ''", 5.0), Criterion("it has 'zebra'!", -4.0)))
        before = [*read_rubrics(c.rubric.path), other]
        write_rubrics(c.rubric.path, before)
        few = config(url, c.rubric.path, data__train_size=2, rubric__rollouts=3, rubric__low=0.0, rubric__high=0.8)
        out = filter_rubrics(few, tmp_path)
    assert (out["questions"], out["questions_kept"], out["not_judged"]) == (2, 2, 4)
    asked = {e.prompt for e in sources.load(few.data)[0]}
    written = {r.prompt: r for r in read_rubrics(out["file"])}
    assert len(written) == 6 and [written[r.prompt] for r in before if r.prompt not in asked] == [
        r for r in before if r.prompt not in asked
    ]
    assert all([x.text for x in written[q].criteria] == ["it has 'zebra'"] for q in asked)


def test_training_takes_what_a_filter_wrote_and_leaves_out_the_questions_without_a_rubric(tmp_path):
    """No answer meets the zebras, and all meet the other criterion, which is dropped. Two questions are left with
    faults alone, and one with nothing."""
    good, fault = Criterion("it has 'zebra'", 3.0), Criterion("has 'zebra'!", -3.0)
    dropped = Criterion("it has ''", 5.0)
    with serving(unsure) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=5, rubric__rollouts=3, rubric__low=0.0, rubric__high=0.8)
        questions = [e.prompt for e in sources.load(c.data)[0]]
        criteria = [(dropped, fault), (fault, dropped), (dropped,), (good, dropped), (good, fault)]
        write_rubrics(c.rubric.path, [Rubric(q, "", x) for q, x in zip(questions, criteria, strict=True)])
        out = filter_rubrics(c, tmp_path)
        assert (out["questions"], out["questions_kept"], out["questions_refused"]) == (5, 2, 2)
        again = config(url, out["file"], data__train_size=5, rubric__rollouts=3, rubric__low=0.0, rubric__high=0.8)
        refuse_judge(again, tmp_path)
        task = load(again)[0]
        kept = [row.example.prompt for row in task.train]
        assert kept == questions[3:] and "3 " in task.data_line and "left out by its rubric" in task.data_line
        by_question = rubrics_of(again.rubric, kept)
        assert [by_question[q].criteria for q in kept] == [(good,), (good, fault)]
        assert "left out of training" in show([by_question[questions[0]]])
        assert filter_rubrics(again, tmp_path / "second")["questions"] == 2
        assert load(again)[0].data_line == task.data_line, "a second filter keeps the marks"
        with pytest.raises(UserError, match="rubric.path.*leaves out every"):
            write_rubrics(out["file"], [Rubric(q, "", ()) for q in questions])
            load(again)
        with pytest.raises(UserError, match="has -3 points.*rar"):
            filter_rubrics(config(url, c.rubric.path, rubric__aggregate="rar"), tmp_path)


def test_a_filter_does_not_write_over_its_own_input(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="rubric.path is '.*link/rubrics.jsonl'.*another --workdir"):
        filter_rubrics(config("http://nobody", tmp_path / "link" / "rubrics.jsonl"), tmp_path)


@pytest.mark.parametrize("working", [True, False])
def test_a_filter_counts_failed_verdicts_and_needs_some(tmp_path, working):
    def often_fails(handler, number, body):
        if working and "has 'zebra'" in body["messages"][0]["content"]:
            return handler.reply(200, {"choices": [{"message": {"content": "yes"}}]})
        return handler.reply(400, {})

    with serving(often_fails) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=2, rubric__rollouts=3)
        rubric_file(tmp_path / "r.jsonl", c, ("it has ''", 5.0), ("it has 'zebra'", 3.0))
        if working:
            out = filter_rubrics(c, tmp_path)
            assert out["failures"] == 2 * 3 and out["answered"] == 1
        else:
            with pytest.raises(UserError, match="judge.model.*failed on all 12 verdicts"):
                filter_rubrics(c, tmp_path)


def test_a_filter_of_replies_without_an_answer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graders, "extract_answer", extract_answer)
    with serving(unsure) as (url, _):
        c = config(url, tmp_path / "r.jsonl", data__train_size=2, rubric__rollouts=3)
        rubric_file(tmp_path / "r.jsonl", c, ("it has ''", 5.0), ("it has 'zebra'", 3.0))
        with pytest.raises(UserError, match="none of the 6 replies.*model.path"):
            filter_rubrics(c, tmp_path)
    assert not (tmp_path / "rubrics.jsonl").exists()


def test_a_package_that_is_missing_is_named_before_the_writer_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    c = config(str(tmp_path / "nowhere"), tmp_path / "r.jsonl", rubric__seeds="seeds.jsonl")
    with pytest.raises(UserError, match="rubric.retriever is 'bm25', which needs bm25s"):
        writer_of(c, tmp_path)
    with pytest.raises(UserError, match="rubric.writer '.*nowhere' is neither"):
        writer_of(config("x", "x", rubric__writer=str(tmp_path / "nowhere")), tmp_path)
