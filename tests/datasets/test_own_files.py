"""The user's own files: what is trained on, what is held out, what is removed, and the worked examples."""

from __future__ import annotations

import dataclasses
import random
import sys
import types

import pytest

from rl_likelihood.data.prompts import PromptConfig, render
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.datasets.questions import digest, example_key, group_key, question_key, variant_key
from rl_likelihood.datasets.sources import DataConfig, describe, load, resolve_prompt
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example
from tests.datasets.test_own_rows import own, questions, write


def prompts(rows) -> list[str]:
    return [row.prompt for row in rows]


# ---------------------------------------------------------------------------------------- keys


def test_one_question_whatever_its_spacing_and_the_wording_of_an_arithmetic_preset():
    assert question_key("Calculate 3 +  4.") == question_key("3 + 4") == "3 + 4"
    assert question_key("State the final answer to the following arithmetic problem: 3 + 4.") == "3 + 4"
    assert question_key("What is it?\n") == question_key("What\u00a0is  it?")
    assert question_key("Caf\u00e9?") == question_key("Cafe\u0301?")


@pytest.mark.parametrize(
    "one, other",
    [
        ("Compute 4", "Compute 4!"),
        ("What is x²?", "What is x2?"),
        ("Is A larger?", "Is a larger?"),
        ("Is 3 = 4", "Is 3 = 4?"),
        ("Calculate n.", "n"),
        ("１", "1"),
        ("for i in a:\n  f()\n  g()", "for i in a:\n  f()\ng()"),
        ("1 2\n3 4 5", "1 2 3\n4 5"),
    ],
)
def test_distinct_questions_stay_distinct_and_on_one_side(tmp_path, one, other):
    assert question_key(one) != question_key(other)
    rows = questions(30) + [{"prompt": one, "answer": "1"}, {"prompt": other, "answer": "2"}]
    path = write(tmp_path / "rows.jsonl", rows)
    train, _, report = load(own(path))
    assert len(train) == 32 and report.duplicates == 0
    if variant_key(one) == variant_key(other):
        for size in (5, 15, 25):
            train, held, _ = load(own(path, heldout_size=size))
            assert len(held) == size
            assert not {group_key(e) for e in train} & {group_key(e) for e in held}


def test_questions_that_differ_in_spaces_and_answers_are_both_used_on_one_side(tmp_path):
    one, two = "How many spaces are in 'a b'?", "How many spaces are in 'a  b'?"
    asked = [(one, "1"), (two, "2"), (two, "3"), ("How  many spaces are in 'a b'?", "1")]
    path = write(tmp_path / "rows.jsonl", questions(20) + [{"prompt": q, "answer": a} for q, a in asked])
    train, _, report = load(own(path))
    assert [(e.prompt, e.answer) for e in train[20:]] == [(one, "1"), (two, "2")]
    assert report.removed == (
        "rows.jsonl:23 asks the question of rows.jsonl:22 again with another answer ('3', not used)",
        "rows.jsonl:24 asks the question of rows.jsonl:21 again",
    )
    for size in (5, 10, 15):
        train, held, _ = load(own(path, heldout_size=size))
        assert not {group_key(e) for e in train} & {group_key(e) for e in held}


def test_one_sentence_in_another_role_or_over_another_environment_is_another_question(tmp_path):
    row = {"prompt": "Help the caller.", "answer": "done"}
    tasks = [row | {"environment": {"ticket": i}} for i in (1, 2)]
    turns = [{"role": role, "content": "Be brief."} for role in ("system", "user")]
    asked = [{"prompt": [turn, {"role": "user", "content": "Why?"}], "answer": "x"} for turn in turns]
    path = write(tmp_path / "rows.jsonl", questions(10) + tasks + [tasks[0]] + asked)
    train, _, report = load(own(path))
    assert len(train) == 14 and report.duplicates == 1


def test_the_digest_changes_with_every_field_but_the_id_and_with_the_side():
    a, b = Example("1", "a?", "x"), Example("2", "b?", "y", messages=(("system", "s"), ("user", "b?")))
    assert digest([a], [b]) == digest([a], [b])
    others = [digest([b], [a]), digest([a, b], []), digest([], [a, b]), digest([a], [])]
    others += [digest([Example(**{**vars(a), name: "other"})], [b]) for name in ("prompt", "answer", "chain")]
    assert len({digest([a], [b]), *others}) == 1 + len(others)


def test_a_digest_is_the_same_after_a_file_is_renamed(tmp_path):
    rows = [load(own(write(tmp_path / name, questions(3))))[0] for name in ("a.jsonl", "b.jsonl")]
    assert rows[0][0].id != rows[1][0].id
    assert digest(rows[0], []) == digest(rows[1], []) != digest(rows[0][:2], [])


# ---------------------------------------------------------------------------------------- what is held out


def test_held_out_questions_do_not_move(tmp_path):
    rows = questions(50)
    _, heldout, _ = load(own(write(tmp_path / "a.jsonl", rows), heldout_size=10))
    renamed = [row | {"id": f"other {i}"} for i, row in enumerate(rows)]
    random.Random(0).shuffle(renamed)
    train, moved, _ = load(own(write(tmp_path / "b.jsonl", renamed), heldout_size=10, seed=9))
    assert set(prompts(heldout)) == set(prompts(moved))
    assert len(train) == 40 and not set(prompts(train)) & set(prompts(moved))
    assert set(prompts(heldout)) != {r["prompt"] for r in questions(10)}, "not simply the first rows"


def test_variants_of_a_held_out_question_are_held_out_with_it(tmp_path):
    variants = ("What is item {}?", "what is item {}", "WHAT IS ITEM {}!")
    rows = [{"prompt": v.format(i), "answer": str(i)} for i in range(20) for v in variants]
    path = write(tmp_path / "a.jsonl", rows)
    train, heldout, report = load(own(path, heldout_size=7))
    assert len(heldout) == 7 and len(train) == 51, "three groups are held out, of the last one row"
    assert not {group_key(e) for e in train} & {group_key(e) for e in heldout}
    assert report.overlap_removed == 2 and all("variant" in text for text in report.removed)


def test_variants_of_a_test_question_are_never_trained_on(tmp_path):
    test = write(tmp_path / "test.jsonl", [{"prompt": "Compute 4!", "answer": "24"}])
    rows = [{"prompt": p, "answer": "1"} for p in ("compute 4", "Compute 4!", "Compute  4!", "Compute 5!")]
    path = write(tmp_path / "train.jsonl", rows)
    train, heldout, report = load(own(path, heldout_path=test))
    assert prompts(train) == ["Compute 5!"] and prompts(heldout) == ["Compute 4!"]
    assert (report.duplicates, report.overlap_removed) == (1, 2)
    assert [text.split()[0] for text in report.removed] == ["train.jsonl:3", "train.jsonl:1", "train.jsonl:2"]


def test_what_is_removed_is_counted_and_named(tmp_path):
    worked = WORKED_EXAMPLES["basic_arithmetic"][0][0]
    more = [{"prompt": "What is item 3?", "answer": "three"}]
    more += [{"prompt": worked, "answer": "6", "task": "basic_arithmetic"}]
    path = write(tmp_path / "train.jsonl", questions(10) + more)
    test = write(tmp_path / "test.jsonl", questions(4, start=8) + questions(1, start=8))
    cfg = own(path, heldout_path=test)
    train, heldout, report = load(cfg)
    assert [e.answer for e in train] == [str(i) for i in range(8)]
    assert [e.answer for e in heldout] == ["8", "9", "10", "11"]
    assert (report.rows, report.duplicates, report.overlap_removed) == (17, 2, 3)
    line = describe(cfg, train, heldout, report)
    assert "8 training and 4 held-out" in line
    assert "train.jsonl:11 asks the question of train.jsonl:4 again with another answer ('three', not used)" in line
    assert "test.jsonl:5 asks the question of test.jsonl:1 again;" in line
    for row in ("train.jsonl:12", "train.jsonl:9", "train.jsonl:10"):
        assert any(text.startswith(f"{row} ") for text in report.removed)


def test_conversations_that_end_alike_are_different_questions(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": s}, {"role": "user", "content": "Why?"}], "answer": s}
        for s in ("one", "two", "two")
    ]
    train, _, report = load(own(write(tmp_path / "a.jsonl", rows)))
    assert len(train) == 2 and report.duplicates == 1
    assert len({example_key(e) for e in train}) == 2


def test_sizes_take_the_first_rows_or_all(tmp_path):
    path, other = write(tmp_path / "a.jsonl", questions(9)), write(tmp_path / "b.jsonl", questions(5, start=100))
    train, heldout, _ = load(own(path, heldout_path=other, train_size=4, heldout_size=2))
    assert [e.answer for e in train] == ["0", "1", "2", "3"] and [e.answer for e in heldout] == ["100", "101"]
    for fields, words in (
        ({"train_size": 10}, ("data.train_size is 10", "--config.data.train_size=9")),
        ({"heldout_path": other, "heldout_size": 6}, ("data.heldout_size is 6", "--config.data.heldout_size=5")),
        ({"heldout_size": 9}, ("data.heldout_size = 9", "at most 8")),
        ({"heldout_path": path}, ("all 9 questions",)),
        ({"heldout_path": write(tmp_path / "empty.jsonl", [])}, ("empty.jsonl has no usable row",)),
        ({"train_split": "dev"}, ("data.train_split is 'dev'", "named for no split; drop it")),
        ({"heldout_path": other, "heldout_split": "test"}, ("data.heldout_path is", "data.heldout_split 'test'")),
    ):
        with pytest.raises(UserError) as e:
            load(own(path, **fields))
        assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("rows, heldout", [(5, 1), (40, 4), (999, 99), (2000, 100)])
def test_a_tenth_is_held_out_by_default_and_at_most_100(tmp_path, rows, heldout):
    train, held, _ = load(DataConfig("files", train_path=write(tmp_path / "a.jsonl", questions(rows))))
    assert (len(train), len(held)) == (rows - heldout, heldout)


def test_a_held_out_file_of_any_size_is_taken_whole_by_default(tmp_path):
    path, test = write(tmp_path / "a.jsonl", questions(60)), write(tmp_path / "b.jsonl", questions(40, start=100))
    train, held, _ = load(DataConfig("files", train_path=path, heldout_path=test))
    assert (len(train), len(held)) == (60, 40)


def test_an_evaluation_needs_no_training_questions(tmp_path):
    path = write(tmp_path / "test.jsonl", questions(5))
    train, heldout, _ = load(own(path, heldout_path=path, train_size=99), training=False)
    assert train == [] and len(heldout) == 5
    cfg = own(path, heldout_size=2)
    assert load(cfg, training=False)[1] == load(cfg)[1]


# ---------------------------------------------------------------------------------------- several files


def test_files_named_for_splits_are_trained_on_and_held_out(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "train-00000.jsonl", questions(6))
    write(folder / "train-00001.jsonl", questions(6, start=6))
    write(folder / "test.jsonl", questions(3, start=20))
    train, heldout, _ = load(DataConfig("files", train_path=str(folder)))
    assert [len(train), len(heldout)] == [12, 3] and heldout[0].id == "test.jsonl:1"
    write(folder / "validation.jsonl", questions(2, start=30))
    assert len(load(DataConfig("files", train_path=str(folder)))[1]) == 2
    assert len(load(DataConfig("files", train_path=str(folder), heldout_split="test"))[1]) == 3
    assert len(load(own(folder, train_split="test"))[0]) == 3
    for fields, words in (
        ({"heldout_split": "dev"}, ("data.heldout_split is 'dev'", "train", "test", "validation")),
        ({"train_split": "test", "heldout_split": "test"}, ("'test'", "two splits")),
    ):
        with pytest.raises(UserError) as e:
            load(own(folder, **fields))
        assert all(word in str(e.value) for word in words)


def test_files_named_for_no_split_beside_others_are_not_used_and_named(tmp_path):
    folder = tmp_path / "rows"
    (folder / "old").mkdir(parents=True)
    for i, name in enumerate(("train", "more", "test", "old/rest")):
        write(folder / f"{name}.jsonl", questions(2, start=10 * i))
    cfg = DataConfig("files", train_path=str(folder))
    train, heldout, report = load(cfg)
    assert [e.answer for e in train + heldout] == ["0", "1", "20", "21"]
    assert "; not used: more.jsonl, old/rest.jsonl (named for no split)" in describe(cfg, train, heldout, report)
    other = write(tmp_path / "other.jsonl", questions(1, start=90))
    assert load(dataclasses.replace(cfg, heldout_path=other))[2].unused == report.unused == load(cfg, False)[2].unused
    (folder / "train.jsonl").unlink()
    train, heldout, report = load(cfg)
    assert len(train) == 4 and "not used" not in describe(cfg, train, heldout, report)


def test_a_data_set_of_the_hub_is_trained_on_by_its_name(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    for split, n in (("train", 6), ("test", 3)):
        table = pyarrow.Table.from_pylist([{"q": f"{split} {i}?", "a": i} for i in range(n)])
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    library = types.SimpleNamespace(snapshot_download=lambda repository, **_: str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    cfg = DataConfig("files", train_path="hf:owner/name", prompt_column="q", answer_column="a")
    train, heldout, _ = load(cfg)
    assert prompts(train) == [f"train {i}?" for i in range(6)] and prompts(heldout) == [f"test {i}?" for i in range(3)]
    assert heldout[2].answer == "2"


# ---------------------------------------------------------------------------------------- worked examples, instruction


def with_chains(n, start=0):
    return [row | {"chain": f"It is {row['answer']}."} for row in questions(n, start)]


def test_worked_examples_are_rows_of_the_training_data(tmp_path):
    cfg = own(write(tmp_path / "train.jsonl", questions(2) + with_chains(6, start=2)), heldout_size=2)
    prompt = resolve_prompt(PromptConfig(examples=1), cfg, most=2)
    assert prompt.shots == (("What is item 2?", "It is 2.", "2"), ("What is item 3?", "It is 3.", "3"))
    train, heldout, report = load(cfg, shown=prompt.shots)
    assert len(train) + len(heldout) == 6 and report.overlap_removed == 2
    assert not {"What is item 2?", "What is item 3?"} & set(prompts(train + heldout)), "no prompt shows its answer"
    assert resolve_prompt(PromptConfig(), cfg, most=0).shots == ()


def test_worked_examples_of_conversations_are_in_neither_set(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    said = [system, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    rows = [row | {"prompt": [system, {"role": "user", "content": row["prompt"]}]} for row in with_chains(8)]
    longer = {"messages": [*said, {"role": "user", "content": "What is item 0?"}], "answer": "0", "chain": "It is 0."}
    called = {"prompt": "What is item 9?", "answer": "9", "chain": "It is 9.", "environment": {"ticket": 1}}
    cfg = own(write(tmp_path / "train.jsonl", [longer, called, *rows]), heldout_size=2)
    prompt = resolve_prompt(PromptConfig(examples=2), cfg, most=2)
    assert prompt.shots == (("What is item 0?", "It is 0.", "0"), ("What is item 1?", "It is 1.", "1"))
    train, heldout, report = load(cfg, shown=prompt.shots)
    assert len(train) + len(heldout) == 8 and report.overlap_removed == 2
    assert [text.split()[0] for text in report.removed] == ["train.jsonl:3", "train.jsonl:4"]
    own_messages = [e.prompt for e in train + heldout if len(e.messages) == 2]
    assert sorted(own_messages) == [f"What is item {i}?" for i in range(2, 8)]


def test_worked_examples_come_from_a_file(tmp_path, tokenizer):
    cfg = own(write(tmp_path / "train.jsonl", questions(5)), prompt_column="prompt")
    shown = write(tmp_path / "shown.jsonl", with_chains(2, start=90))
    prompt = resolve_prompt(PromptConfig(examples=2, examples_path=shown), cfg, most=2)
    text = render(load(cfg, shown=prompt.shots)[0][0], tokenizer, prompt)
    assert text.index("It is 90.") < text.index("It is 91.") < text.index("What is item 0?")
    gym = DataConfig("reasoning_gym", ("chain_sum",))
    assert resolve_prompt(PromptConfig(examples=2, examples_path=shown), gym, most=2).shots == prompt.shots
    with pytest.raises(UserError, match="prompt.examples_path = .* has 2 single-turn rows with a chain, but 3"):
        resolve_prompt(PromptConfig(examples=3, examples_path=shown), cfg, most=3)


def test_a_question_that_no_prompt_shows_stays(tmp_path):
    worked = {"prompt": WORKED_EXAMPLES["basic_arithmetic"][0][0], "answer": "24"}
    train, _, report = load(own(write(tmp_path / "train.jsonl", [*questions(2), worked])))
    assert prompts(train)[2] == worked["prompt"] and report.removed == ()


def test_bad_rows_of_worked_examples_are_left_out_where_the_config_says_so(tmp_path):
    shown = PromptConfig(examples=2, examples_path=write(tmp_path / "shown.jsonl", [{"prompt": "?"}, *with_chains(2)]))
    cfg = own(write(tmp_path / "train.jsonl", questions(5, start=9)))
    with pytest.raises(UserError, match="shown.jsonl:1.*--config.data.skip_bad_rows=True"):
        resolve_prompt(shown, cfg, most=2)
    assert len(resolve_prompt(shown, dataclasses.replace(cfg, skip_bad_rows=True), most=2).shots) == 2


def test_rows_without_chains_are_no_worked_examples(tmp_path, tokenizer):
    cfg = own(write(tmp_path / "train.jsonl", questions(5)))
    prompt = resolve_prompt(PromptConfig(examples=2), cfg, most=2)
    with pytest.raises(UserError, match="prompt.examples is 2.*--config.prompt.examples_path="):
        render(load(cfg)[0][0], tokenizer, prompt)


def test_prompts_may_show_fewer_worked_examples_than_the_warm_start_asks_for(tmp_path, tokenizer):
    cfg = own(write(tmp_path / "train.jsonl", with_chains(3) + questions(3, start=3)))
    prompt = resolve_prompt(PromptConfig(examples=2), cfg, most=4)
    text = render(load(cfg, shown=prompt.shots)[0][0], tokenizer, prompt)
    assert text.index("It is 0.") < text.index("It is 1.") < text.index("What is item 3?")
    for_warm_start = dataclasses.replace(prompt, examples=4, examples_field="warm_start.examples")
    with pytest.raises(UserError, match="warm_start.examples is 4, but there are 3 .*--config.warm_start.examples=3"):
        render(load(cfg, shown=prompt.shots)[0][0], tokenizer, for_warm_start)
    sums = [row | {"task": "basic_arithmetic"} for row in with_chains(1) + questions(3, start=3)]
    cfg = own(write(tmp_path / "sums.jsonl", sums))
    assert resolve_prompt(PromptConfig(examples=2), cfg, most=2).shots == (), "those of the task are enough"


def test_the_instruction_comes_from_a_file(tmp_path, tokenizer):
    path = tmp_path / "system.txt"
    path.write_text("Antworte kurz.\n")
    cfg = DataConfig()
    prompt = resolve_prompt(PromptConfig(instruction_path=str(path)), cfg, most=0)
    assert prompt.instruction == "Antworte kurz." in render(Example("a", "b?", "c"), tokenizer, prompt)
    path.write_text("Antworte kurz.", encoding="utf-8-sig")  # as Windows saves it
    assert resolve_prompt(PromptConfig(instruction_path=str(path)), cfg, most=0) == prompt
    for fields, words in (
        ({"instruction": "x", "instruction_path": str(path)}, "both set"),
        ({"instruction_path": str(tmp_path / "no.txt")}, "prompt.instruction_path = .*no.txt cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            resolve_prompt(PromptConfig(**fields), cfg, most=0)


@pytest.fixture
def tokenizer():
    from rl_likelihood.data.byte_tokenizer import byte_tokenizer

    return byte_tokenizer()
