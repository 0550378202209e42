"""Documents as questions: where they are cut, which side they are on, what is refused."""

import dataclasses
import json

import pytest

from rl_likelihood.config import build
from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.datasets import sources
from rl_likelihood.datasets.documents import DocumentConfig, questions_of
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.errors import UserError
from rl_likelihood.task import load
from tests.runs import small_config

TEXT = "one  two three\nfour five six, seven eight."


def file_of(folder, texts, name="texts.jsonl"):
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / name)


def test_a_cut_shows_the_words_before_and_asks_for_the_words_after():
    every = questions_of("a", TEXT, DocumentConfig(context=2, continuation=3, cuts=100), 0)
    assert [row.id for row in every] == [f"a@{at}" for at in range(1, 6)], "each place once"
    assert [row.prompt for row in every] == ["one", "one  two", "two three", "three\nfour", "four five"]
    assert every[0].answer == "two three\nfour" and every[-1].answer == "six, seven eight."
    assert questions_of("a", "one two three", DocumentConfig(continuation=3), 0) == []


def test_cuts_depend_on_the_seed_and_the_document_alone():
    cfg = DocumentConfig(context=4, continuation=1, cuts=2)
    long = " ".join(f"word{i}" for i in range(200))
    assert questions_of("a", long, cfg, 0) == questions_of("a", long, cfg, 0)
    assert questions_of("a", long, cfg, 0) != questions_of("a", long, cfg, 1)
    assert [r.prompt for r in questions_of("a", long, cfg, 0)] != [r.prompt for r in questions_of("b", long, cfg, 0)]


def documents(path, **changes):
    return DataConfig(source="documents", train_path=path, documents=DocumentConfig(continuation=2, cuts=2), **changes)


def test_a_document_is_on_one_side(tmp_path):
    path = file_of(tmp_path, [f"{i} alpha beta gamma delta epsilon" for i in range(20)])
    train, held, report = sources.load(documents(path, heldout_size=5))
    of = lambda rows: {row.id.partition("@")[0] for row in rows}
    assert len(held) == 5 and len(train) == 34 and not of(train) & of(held) and report.rows == 39
    other = file_of(tmp_path, ["x y z w v"], "held.jsonl")
    train, held, _ = sources.load(documents(path, heldout_path=other))
    assert len(train) == 40 and len(held) == 2
    assert sources.load(documents(path), training=False)[0] == []


def test_the_next_question_is_seldom_of_the_same_document(tmp_path):
    """Controls compare with it. Of 8 questions of each of 20 documents, 8 in 160 are expected to."""
    path = file_of(tmp_path, [f"{i} " + "alpha beta gamma delta epsilon " * 4 for i in range(20)])
    other = file_of(tmp_path, [f"{i} " + "one two three four five " * 4 for i in range(20)], "held.jsonl")
    cuts = DocumentConfig(continuation=2, cuts=8)
    for changes in ({"heldout_size": 80}, {"heldout_path": other}):
        for rows in sources.load(dataclasses.replace(documents(path, **changes), documents=cuts))[:2]:
            of = [row.id.partition("@")[0] for row in rows]
            assert len(of) >= 80 and sum(map(str.__eq__, of, of[1:])) < len(of) / 5


def test_a_text_is_read_once_and_never_on_both_sides(tmp_path):
    texts = [f"{i} alpha beta gamma delta epsilon" for i in range(8)]
    path = file_of(tmp_path, [*texts, texts[3].upper()])
    held_path = file_of(tmp_path, ["9 a b c d e", texts[5].replace(" ", "\n"), texts[5]], "held.jsonl")
    train, held, report = sources.load(documents(path, heldout_path=held_path))
    assert {row.id.partition("@")[0] for row in train} == {f"texts.jsonl:{i}" for i in (1, 2, 3, 4, 5, 7, 8)}
    assert {row.id.partition("@")[0] for row in held} == {"held.jsonl:1", "held.jsonl:2"}
    assert report.duplicates == 3 and report.removed == (
        f"{tmp_path}/texts.jsonl:6 is the text of {tmp_path}/held.jsonl:2 again",
        f"{tmp_path}/texts.jsonl:9 is the text of {tmp_path}/texts.jsonl:4 again",
        f"{tmp_path}/held.jsonl:3 is the text of {tmp_path}/held.jsonl:2 again",
    )
    with pytest.raises(UserError, match="every document of data.train_path .* is also in data.heldout_path"):
        sources.load(documents(held_path, heldout_path=held_path))
    for size in (3, 8, 13):
        train, held, report = sources.load(documents(path, heldout_size=size))
        assert not {row.prompt.split()[0] for row in train} & {row.prompt.split()[0] for row in held}
        assert report.duplicates == 1


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"text": "one two"}], ["texts.jsonl:1", "2 words", "data.documents.continuation is 2"]),
        ([{"text": "a b c d"}, {"body": "x"}], ["texts.jsonl:2", "field 'text' is None", "skip_bad_rows"]),
    ],
)
def test_a_document_shorter_than_its_cut_is_refused_by_file_and_line(rows, words, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        sources.load(documents(str(tmp_path / "texts.jsonl")))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    if len(rows) > 1:
        cfg = documents(str(tmp_path / "texts.jsonl"), skip_bad_rows=True, heldout_size=0)
        train, _, report = sources.load(cfg)
        assert len(train) == 2 and len(report.bad_rows) == 1


def test_a_null_id_is_missing(tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": f"{TEXT} {TEXT}", "id": None}) + "\n")
    cfg = DataConfig("documents", train_path=str(tmp_path / "texts.jsonl"), heldout_size=0)
    assert sources.load(cfg)[0][0].id.startswith("texts.jsonl:1@")


def test_worked_examples_of_documents_come_from_a_file(tmp_path):
    cfg = DataConfig("documents", train_path=file_of(tmp_path, [TEXT]))
    with pytest.raises(UserError, match="'documents'.*prompt.examples_path.*prompt.examples=0 .*warm_start.examples=0"):
        sources.resolve_prompt(PromptConfig(examples=1), cfg, most=1)
    (tmp_path / "shown.jsonl").write_text('{"prompt": "a", "chain": "b", "answer": "c"}\n')
    prompt = PromptConfig(examples=1, examples_path=str(tmp_path / "shown.jsonl"))
    assert sources.resolve_prompt(prompt, cfg, most=1).shots == (("a", "b", "c"),)


def test_all_held_out_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.heldout_size = 4 leaves no document"):
        sources.load(documents(file_of(tmp_path, ["a b c d", "e f g h"]), heldout_size=4))
    with pytest.raises(UserError, match=r"texts.jsonl holds one work.*data.heldout_path"):
        sources.load(documents(file_of(tmp_path, ["a b c d"])))


def test_a_raw_prompt_is_the_text_and_the_tag(tmp_path):
    path = file_of(tmp_path, [f"{i} alpha beta gamma" for i in range(12)])
    data = {"data__source": "documents", "data__train_path": path, "data__train_size": 0, "data__heldout_size": 2}
    c = small_config(**data, prompt__template="raw", eval__prompts=2, warm_start__examples=0)
    c.data.documents.continuation = 1
    task, _ = load(build(c))
    for row in task.train:
        assert task.tokenizer.decode(row.prompt_ids) == row.example.prompt + "<think>"
    with pytest.raises(UserError, match=r"prompt.template is 'raw'.*worked examples.*2"):
        build(small_config(prompt__template="raw", prompt__examples=2))
