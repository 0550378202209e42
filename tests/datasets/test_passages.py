"""The next paragraph of a story and the last lines of a poem, from folders of text files."""

import dataclasses
import gzip

import numpy as np
import pytest

from rl_likelihood.datasets import sources
from rl_likelihood.datasets.documents import DocumentConfig, next_passages, poems
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.errors import UserError

STORY = "CHAPTER 1\n\n\nOne two\nthree four.\n\nFive six seven.\r\n \r\nEight\nnine.\n\n\n\nTen."
PROSE = DocumentConfig(form="next_passage", context=4, continuation=3, least=2, cuts=9)
VERSE = DocumentConfig(form="verse", shown=2, asked=1)


def config(path, documents, **changes):
    return DataConfig(source="documents", train_path=str(path), documents=documents, **changes)


def test_a_paragraph_follows_the_words_before_it():
    rows = next_passages("a", STORY, PROSE, np.random.default_rng(0))
    assert [(r.id, r.prompt, r.answer) for r in rows] == [
        ("a@2", "One two three four.", "Five six seven."),
        ("a@3", "four.\n\nFive six seven.", "Eight nine."),
    ]
    assert len(next_passages("a", STORY, DocumentConfig(form="next_passage", cuts=1), np.random.default_rng(0))) == 1
    assert next_passages("a", "", PROSE, np.random.default_rng(0)) == []


def test_poems_of_the_form_and_the_others():
    rows, bad = poems("p", "a\n b\nc\n\nd\ne\n\nf\ng\n  h\n", VERSE)
    assert [(r.id, r.prompt, r.answer) for r in rows] == [("p@1", "a\nb", "c"), ("p@3", "f\ng", "h")]
    hint = "(for poems of stanzas set data.documents.blank_lines=2)"
    assert bad == [f"poem 2 ('d') has 2 lines, but data.documents.shown + asked = 2 + 1 {hint}"]
    rows, bad = poems("p", "a\nb\nc\nd\n\ne\nf", DocumentConfig(form="verse", shown=2, asked=0))
    assert [r.answer for r in rows] == ["c\nd"] and len(bad) == 1


def test_a_poem_of_stanzas():
    """Two blank lines separate poems, one the stanzas of a poem: it is kept, and is no line."""
    sonnet = "a\nb\n\nc\nd\n \ne\n\nf"
    stanzas = DocumentConfig(form="verse", shown=4, asked=2, blank_lines=2)
    rows, bad = poems("p", f"\n\n\n{sonnet}\n\n \nshort\n\n\n\n\r\n{sonnet}\n", stanzas)
    want = ("a\nb\n\nc\nd", "e\n\nf")
    assert [(r.id, r.prompt, r.answer) for r in rows] == [("p@1", *want), ("p@3", *want)]
    assert bad == ["poem 2 ('short') has 1 lines, but data.documents.shown + asked = 4 + 2"]
    rows, bad = poems("p", sonnet, DocumentConfig(form="verse", shown=3, asked=0, blank_lines=2))
    assert [(r.prompt, r.answer) for r in rows] == [("a\nb\n\nc", "d\n\ne\n\nf")] and not bad


def test_a_folder_of_texts_is_split_by_work(tmp_path):
    for i in range(4):
        text = "\n\n".join(f"w{i} {n} x." for n in range(6)).encode()
        name = f"{i}.txt" if i else f"{i}.txt.gz"
        (tmp_path / name).write_bytes(text if i else gzip.compress(text))
    train, held, _ = sources.load(config(tmp_path, PROSE, heldout_size=4))
    of = lambda rows: {r.id.partition("@")[0] for r in rows}
    assert len(of(train)) == 3 and len(of(held)) == 1 and not of(train) & of(held)
    assert len(train) == 15 and len(held) == 4
    with pytest.raises(UserError, match="one work"):
        sources.load(config(tmp_path / "1.txt", PROSE))
    train, held, _ = sources.load(config(tmp_path / "1.txt", PROSE, heldout_path=str(tmp_path / "2.txt")))
    assert of(train) == {"1.txt"} and of(held) == {"2.txt"}


@pytest.mark.parametrize("first", ["[Illustration]", "{1}", '{"text": "one"}'])
def test_a_text_may_begin_as_json_does(first, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{first}\n{name}\nthree")
    train, held, _ = sources.load(config(tmp_path, VERSE, heldout_size=1))
    assert {row.prompt for row in (*train, *held)} == {f"{first}\na", f"{first}\nb"}


def test_a_work_of_verse_is_a_poem_or_a_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name}{i}\ny\nz" for i in range(5)))
    train, held, _ = sources.load(config(tmp_path, VERSE, heldout_size=1))
    assert (len(train), len(held)) == (9, 1)
    by_file = DocumentConfig(form="verse", shown=2, asked=1, work="file")
    train, held, _ = sources.load(config(tmp_path, by_file, heldout_size=1))
    assert (len(train), len(held)) == (5, 1) and train[0].id[0] != held[0].id[0]


@pytest.mark.parametrize(
    "name, data, cfg, words",
    [
        ("a.txt", b" \n", PROSE, ["a.txt", "empty"]),
        ("a.txt", b"caf\xe9", PROSE, ["a.txt", "not UTF-8 text (byte 3)"]),
        ("a.txt", b"one\n\ntwo", PROSE, ["a.txt", "2 to 3 words", "data.documents.least"]),
        ("a.txt", b"one\ntwo", VERSE, ["a.txt", "poem 1", "2 lines", "2 + 1"]),
    ],
)
def test_what_cannot_be_used_is_refused_or_counted_and_named(name, data, cfg, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    for other in "bc":
        good = f"{other}\ntwo\nthree" if cfg is VERSE else f"{other} two\n\nthree four"
        (tmp_path / f"{other}.txt").write_text(good)
    with pytest.raises(UserError) as error:
        sources.load(config(tmp_path, cfg))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in [*words, "skip_bad_rows"])
    train, held, report = sources.load(config(tmp_path, cfg, skip_bad_rows=True))
    assert len(train) == len(held) == 1 and len(report.bad_rows) == 1
    assert all(word in report.bad_rows[0] for word in words)


def test_texts_of_which_none_is_usable_are_refused_with_the_first_reason(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    for name in "abc":
        for folder in (good, bad):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.txt").write_text(f"{name}\ntwo\nthree" if folder == good else f"{name}\ntwo")
    for train, held in ((bad, ""), (bad, good), (good, bad)):
        cfg = config(train, VERSE, heldout_path=str(held), skip_bad_rows=True)
        with pytest.raises(UserError, match=r"/bad has no usable text \(.*/bad/a.txt row 1: poem 1 .* has 2 lines"):
            sources.load(cfg)
    assert len(sources.load(config(bad, VERSE, heldout_path=str(good), skip_bad_rows=True), training=False)[1]) == 3
    (bad / "b.txt").write_text("b\ntwo\nthree")
    with pytest.raises(UserError, match=r"/bad holds one work \(left out: .*/bad/a.txt row 1: poem 1"):
        sources.load(config(bad, VERSE, skip_bad_rows=True))


def test_a_folder_without_texts_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(UserError, match="data.train_path.*text files"):
        sources.load(config(tmp_path, PROSE))


def test_a_poem_of_two_books_is_on_one_side(tmp_path):
    poem = lambda i: f"first {i}\nsecond {i}\nthird {i}"
    for name, numbers in (("a", (0, 1, 2, 1)), ("b", (3, 1)), ("held", (2, 4))):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(map(poem, numbers)))
    a, held = tmp_path / "a.txt", tmp_path / "held.txt"
    train, test, report = sources.load(config(a, VERSE, heldout_path=str(held)))
    assert sorted(row.id for row in train) == ["a.txt@1", "a.txt@2"] and len(test) == 2
    assert report.removed == ("a.txt@4 asks what a.txt@2 does", "a.txt@3 asks a held-out question, or a variant of it")
    held.unlink()
    books = dataclasses.replace(VERSE, work="file")
    train, test, report = sources.load(config(tmp_path, books, heldout_size=1))
    assert not {row.prompt for row in train} & {row.prompt for row in test} and report.duplicates == 1
    assert report.removed == ("b.txt@2 asks what a.txt@2 does",)
