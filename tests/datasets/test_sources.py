"""Splits do not leak and do not move; bad input is named."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.datasets.procedural import PRESETS
from rl_likelihood.datasets.sources import DataConfig, describe, example_key, load, question_key
from rl_likelihood.shapes import Example, UserError

BOTH = DataConfig("reasoning_gym", ("basic_arithmetic", "chain_sum"), train_size=301, heldout_size=101)


def expression(prompt: str) -> str:
    return prompt.removesuffix(".").removeprefix("Calculate ").rpartition(": ")[2]


# ---------------------------------------------------------------------------------------- procedural


def test_procedural_sets_are_distinct_and_share_nothing():
    train, heldout, report = load(BOTH)
    assert (len(train), len(heldout)) == (301, 101)
    keys = [expression(e.prompt) for e in train + heldout]  # the sum itself, however it is worded
    assert len(set(keys)) == len(keys)
    worked = {expression(q) for shots in WORKED_EXAMPLES.values() for q, _, _ in shots}
    assert not worked & set(keys)
    assert len({e.id for e in train + heldout}) == 402
    assert report.rows == 402 + report.duplicates + report.overlap_removed
    assert report.bad_rows == ()


def test_tasks_are_mixed_evenly_from_the_first_row():
    train, heldout, _ = load(BOTH)
    assert [e.task for e in heldout[:4]] == ["basic_arithmetic", "chain_sum"] * 2
    assert sum(e.task == "chain_sum" for e in train) == 150
    assert sum(e.task == "chain_sum" for e in heldout[:50]) == 25


def test_answers_follow_the_rules_of_precedence():
    train, heldout, _ = load(BOTH)
    for e in train + heldout:
        assert int(e.answer) == eval(expression(e.prompt))  # noqa: S307 the oracle, on our own text
    # The generator works from left to right here; the set must hold cases where that is wrong.
    assert any(" * " in e.prompt.partition(" + ")[2] for e in train)


def test_questions_are_as_easy_as_the_presets_say():
    train, heldout, _ = load(BOTH)
    for e in train + heldout:
        terms = [int(t) for t in expression(e.prompt).split() if t not in "+-*"]
        assert len(terms) in (2, 3)
        assert max(terms) <= (10 if e.task == "basic_arithmetic" else 99)
        assert "(" not in e.prompt and "/" not in e.prompt
        assert e.task == "basic_arithmetic" or "*" not in e.prompt
        assert e.prompt.endswith(".") and not e.prompt.endswith(" .")
        assert e.prompt == PRESETS[e.task].wording.format(expression(e.prompt))


def test_same_settings_same_rows_and_other_seed_other_rows():
    assert load(BOTH) == load(BOTH)
    first, second = (
        load(DataConfig("reasoning_gym", ("chain_sum",), train_size=200, heldout_size=50, seed=s)) for s in (0, 1)
    )
    # The generator's own neighbouring seeds share all items but one.
    assert len({e.prompt for e in first[0]} & {e.prompt for e in second[0]}) < 60
    assert first[1] != second[1]


def test_more_heldout_questions_keep_the_first_ones():
    small, large = (load(DataConfig("reasoning_gym", ("chain_sum",), train_size=9, heldout_size=n)) for n in (20, 40))
    assert large[1][:20] == small[1]
    assert large[2].overlap_removed < 20  # training draws are not the held-out ones again


def test_a_used_up_task_is_refused_with_what_there_is():
    cfg = DataConfig("reasoning_gym", ("basic_arithmetic",), train_size=50_000, heldout_size=10)
    with pytest.raises(UserError, match=r"train_size = 50000 .* ran out after (\d+); set .* at most \1$") as e:
        load(cfg)
    assert 11_500 < int(str(e.value).rsplit(" ", 1)[1]) <= 11**2 * 3 + 11**3 * 9


def test_worked_examples_are_right_and_in_the_wording_of_their_task():
    # Tasks that give chains have no need of worked examples.
    assert set(WORKED_EXAMPLES) == {task for task, preset in PRESETS.items() if preset.fault_rate is None}
    for task, shots in WORKED_EXAMPLES.items():
        assert len(shots) >= 3
        for question, chain, answer in shots:
            assert question == PRESETS[task].wording.format(expression(question))
            assert int(answer) == eval(expression(question))  # noqa: S307
            assert chain.endswith(f"= {answer}.") and "\n" not in chain


def test_question_key_sees_through_wording_and_spacing():
    assert question_key("Calculate 3 +  4.") == question_key("3 + 4 =") == "3 + 4"
    assert question_key("State the final answer to the following arithmetic problem: 3 + 4.") == "3 + 4"
    assert question_key("What is it?\n") == question_key("what is\u00a0it")
    assert question_key("3 + 4") != question_key("3 - 4")


@pytest.mark.parametrize(
    "cfg, words",
    [
        (
            DataConfig("jsonlines"),
            "data.source is 'jsonlines'; choose one of reasoning_gym, jsonl, prepared (did you mean 'jsonl'?)",
        ),
        (DataConfig("reasoning_gym", (), train_size=5), "data.tasks is empty"),
        (
            DataConfig("reasoning_gym", ("chainsum",), train_size=5),
            "data.tasks has 'chainsum'; did you mean 'chain_sum'? It must be basic_arithmetic, one_operation, "
            "chain_sum, faulty_sums, or one of the ",
        ),
        (DataConfig("reasoning_gym", ("chain_sum",) * 2, train_size=5), "names a task twice"),
        (DataConfig("reasoning_gym", ("chain_sum",)), "data.train_size is 0"),
        (DataConfig("reasoning_gym", ("chain_sum",), train_size=-1), "data.train_size is -1"),
        (DataConfig("jsonl", heldout_size=-3), "data.heldout_size is -3"),
        (DataConfig("jsonl"), "data.train_path is empty"),
    ],
)
def test_bad_settings_are_refused(cfg, words):
    with pytest.raises(UserError) as e:
        load(cfg)
    assert words in str(e.value)


# ---------------------------------------------------------------------------------------- JSON lines


def write(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def questions(n, start=0):
    return [{"prompt": f"What is item {i}?", "answer": str(i)} for i in range(start, start + n)]


def test_jsonl_rows_and_all_their_fields(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "2 + 2?", "answer": " 4 \n", "chain": "two and two", "id": 7, "task": "sums", "other": [1]},
            "\n",
            '{"prompt": "line\u2028separator", "answer": "é"}\n',
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hi."},
                    {"role": "user", "content": "Capital of France?"},
                ],
                "answer": "Paris",
            },
            {"messages": [{"role": "user", "content": "Capital of Spain?"}], "answer": "Madrid"},
        ],
    )
    train, heldout, report = load(DataConfig("jsonl", train_path=path))
    assert heldout == [] and report.rows == 4 and report.bad_rows == ()
    assert train[0] == Example("7", "2 + 2?", "4", chain="two and two", task="sums")
    assert train[1] == Example("rows.jsonl:3", "line\u2028separator", "é")
    assert train[2].prompt == "Capital of France?"
    assert train[2].messages[0] == ("system", "Be brief.") and len(train[2].messages) == 4
    assert train[3] == Example("rows.jsonl:5", "Capital of Spain?", "Madrid")


def test_numbers_nulls_and_a_last_turn_of_the_assistant_are_as_other_tools_write_them(tmp_path):
    turns = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris "}]
    nothing = {"chain": None, "task": None, "id": None}
    rows = [{"prompt": "6 * 7?", "answer": 42, "messages": None} | nothing, {"prompt": "1 / 4?", "answer": 0.25}]
    rows += [{"messages": turns, "prompt": None, "answer": None} | nothing, {"messages": turns[:1] * 2 + turns[1:]}]
    path = write(tmp_path / "rows.jsonl", rows)
    train, _, report = load(DataConfig("jsonl", train_path=path))
    assert train[:3] == [
        Example("rows.jsonl:1", "6 * 7?", "42"),
        Example("rows.jsonl:2", "1 / 4?", "0.25"),
        Example("rows.jsonl:3", "Capital of France?", "Paris"),
    ]
    assert (train[3].answer, train[3].messages) == ("Paris", (("user", "Capital of France?"),) * 2)
    assert report.bad_rows == ()


def test_an_id_belongs_to_one_line(tmp_path):
    rows = [row | {"id": i} for row, i in zip(questions(4), (1, 2, "1", 3), strict=True)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows.jsonl:3: id '1' is also that of line 1; mend the line"):
        load(DataConfig("jsonl", train_path=path))
    cfg = DataConfig("jsonl", train_path=path, skip_bad_rows=True)
    train, heldout, report = load(cfg)
    assert [e.id for e in train] == ["1", "2", "3"] and len(report.bad_rows) == 1
    assert f"1 bad row ({path}:3: id '1' is also that of line 1)" in describe(cfg, train, heldout, report)


def test_a_file_from_windows_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a", "answer": "b"}\r\n{"prompt": "c", "answer": "d"}\r\n')
    assert [e.prompt for e in load(DataConfig("jsonl", train_path=str(path)))[0]] == ["a", "c"]


def test_a_compressed_file_is_read_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in questions(3)).encode()))
    assert [e.answer for e in load(DataConfig("jsonl", train_path=str(path)))[0]] == ["0", "1", "2"]
    for data in (b"plain text", path.read_bytes()[:-9], path.read_bytes()[:10] + b"\xff" * 9):
        path.write_bytes(data)
        with pytest.raises(UserError, match="data.train_path = .*rows.jsonl.gz cannot be unpacked"):
            load(DataConfig("jsonl", train_path=str(path)))


def test_split_by_hash_does_not_move(tmp_path):
    rows = questions(50)
    _, heldout, _ = load(DataConfig("jsonl", train_path=write(tmp_path / "a.jsonl", rows), heldout_size=10))
    random.Random(0).shuffle(rows)
    train, moved, _ = load(DataConfig("jsonl", train_path=write(tmp_path / "b.jsonl", rows), heldout_size=10, seed=9))
    assert {e.prompt for e in heldout} == {e.prompt for e in moved}
    assert len(train) == 40 and not {e.prompt for e in train} & {e.prompt for e in moved}
    assert {e.prompt for e in heldout} != {r["prompt"] for r in questions(10)}  # not simply the first rows


def test_overlap_and_duplicates_are_removed_and_counted(tmp_path):
    worked = WORKED_EXAMPLES["basic_arithmetic"][0][0]
    train_path = write(
        tmp_path / "train.jsonl",
        questions(10) + [{"prompt": "what is  item 3", "answer": "3"}, {"prompt": worked, "answer": "6"}],
    )
    heldout_path = write(tmp_path / "test.jsonl", questions(4, start=8) + questions(1, start=8))
    cfg = DataConfig("jsonl", train_path=train_path, heldout_path=heldout_path)
    train, heldout, report = load(cfg)
    assert [e.answer for e in train] == [str(i) for i in range(8)]
    assert [e.answer for e in heldout] == ["8", "9", "10", "11"]
    assert (report.rows, report.duplicates, report.overlap_removed) == (17, 2, 3)
    assert "8 training and 4 held-out questions; removed 2 duplicates, 3 that overlap" in describe(
        cfg, train, heldout, report
    )


def test_conversations_that_end_alike_are_different_questions(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": s}, {"role": "user", "content": "Why?"}], "answer": s}
        for s in ("one", "two", "two")
    ]
    train, _, report = load(DataConfig("jsonl", train_path=write(tmp_path / "a.jsonl", rows)))
    assert len(train) == 2 and report.duplicates == 1
    assert len({example_key(e) for e in train}) == 2


def test_sizes_take_the_first_rows_or_all(tmp_path):
    path = write(tmp_path / "a.jsonl", questions(9))
    other = write(tmp_path / "b.jsonl", questions(5, start=100))
    train, heldout, _ = load(DataConfig("jsonl", train_path=path, heldout_path=other, train_size=4, heldout_size=2))
    assert [e.answer for e in train] == ["0", "1", "2", "3"] and [e.answer for e in heldout] == ["100", "101"]
    with pytest.raises(UserError, match="data.train_size is 10 but .*a.jsonl has 9 .* at most 9"):
        load(DataConfig("jsonl", train_path=path, train_size=10))
    with pytest.raises(UserError, match="data.heldout_size is 6 but .*b.jsonl has 5"):
        load(DataConfig("jsonl", train_path=path, heldout_path=other, heldout_size=6))
    with pytest.raises(UserError, match="data.heldout_size = 9 leaves nothing .* at most 8"):
        load(DataConfig("jsonl", train_path=path, heldout_size=9))
    with pytest.raises(UserError, match="all 9 questions of .*a.jsonl are in data.heldout_path"):
        load(DataConfig("jsonl", train_path=path, heldout_path=path))


BAD_LINES = [
    ("{'prompt': 1}\n", "not JSON"),
    ('{"prompt": "a", "answer": "b"\n', "not JSON"),
    ("[" * 100_000 + "\n", "not JSON"),
    ('{"answer": 1' + "0" * 5000 + "}\n", "not JSON"),
    ("[1, 2]\n", "not a JSON object but a list"),
    ("3\n", "not a JSON object but a number"),
    ("null\n", "not a JSON object but null"),
    ({"answer": "b"}, "field 'prompt' is missing"),
    ({"prompt": "a"}, "field 'answer' is missing"),
    ('{"prompt": "a", "answer": NaN}\n', "field 'answer' must be a string, not a number"),
    ({"prompt": "a", "answer": True}, "field 'answer' must be a string, not true/false"),
    ({"prompt": 7, "answer": "b"}, "field 'prompt' must be a string, not a number"),
    ({"prompt": ["a"], "answer": "b"}, "field 'prompt' must be a string, not a list"),
    ({"prompt": "a", "answer": None}, "field 'answer' is missing"),
    ({"prompt": "a", "answer": "b", "chain": {}}, "field 'chain' must be a string, not an object"),
    ({"prompt": "a", "answer": "b", "task": False}, "field 'task' must be a string, not true/false"),
    ({"prompt": "a", "answer": "b", "id": 1.5}, "field 'id' must be text or an integer"),
    ({"prompt": " \n", "answer": "b"}, "field 'prompt' is empty"),
    ({"prompt": "a", "answer": "\t"}, "field 'answer' is empty"),
    ({"prompt": "a", "answer": "\ud800"}, "field 'answer' holds half of a surrogate pair"),
    ({"prompt": "a", "messages": [], "answer": "b"}, "both 'prompt' and 'messages'"),
    ({"messages": [], "answer": "b"}, "field 'messages' must be a list with at least one"),
    ({"messages": ["hello"], "answer": "b"}, "field 'messages[0]' must be an object"),
    ({"messages": [{"role": "user", "content": None}], "answer": "b"}, "field 'messages[0]' must be an object"),
    ({"messages": [{"role": "human", "content": "a"}], "answer": "b"}, "role' is 'human'; use one of system, user"),
    ({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}, "must be from the user, not the assistant"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "the one before it must be from the user"),
    ({"messages": [{"role": "system", "content": "a"}]}, "must be from the user, not the system"),
    ({"messages": [{"role": "user", "content": "a"}]}, "field 'answer' is missing"),
    ({"messages": [{"role": "user", "content": "\udc00"}], "answer": "b"}, "content' holds half of a surrogate"),
    ({"messages": [{"role": "user", "content": " "}], "answer": "b"}, "field 'prompt' is empty"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_a_bad_line_is_refused_by_file_and_line(tmp_path, line, reason):
    path = write(tmp_path / "rows.jsonl", questions(2) + [line] + questions(1, start=5))
    with pytest.raises(UserError) as e:
        load(DataConfig("jsonl", train_path=path))
    assert str(e.value).startswith(f"{path}:3: ") and reason in str(e.value)
    assert "data.skip_bad_rows=True" in str(e.value) and "\n" not in str(e.value)


def test_bad_lines_are_counted_and_named_when_skipped(tmp_path):
    path = write(tmp_path / "rows.jsonl", questions(2) + [line for line, _ in BAD_LINES])
    with open(path, "ab") as f:
        f.write(b'{"prompt": "\xff", "answer": "b"}')
    train, _, report = load(DataConfig("jsonl", train_path=path, skip_bad_rows=True))
    assert len(train) == 2 and report.rows == 2
    assert len(report.bad_rows) == len(BAD_LINES) + 1
    for i, ((_, reason), said) in enumerate(zip(BAD_LINES, report.bad_rows, strict=False), start=3):
        assert said.startswith(f"{path}:{i}: ") and reason in said
    assert report.bad_rows[-1].endswith("not UTF-8 text")


def test_a_file_that_is_not_there_is_refused_with_its_nearest_sibling(tmp_path):
    write(tmp_path / "train.jsonl", questions(1))
    with pytest.raises(UserError, match=r"data.train_path = .*tran.jsonl does not exist; did you mean .*train.jsonl\?"):
        load(DataConfig("jsonl", train_path=str(tmp_path / "tran.jsonl")))
    with pytest.raises(UserError, match="data.train_path = .*zzz does not exist; check the path"):
        load(DataConfig("jsonl", train_path=str(tmp_path / "nowhere" / "zzz")))
    with pytest.raises(UserError, match="is a folder"):
        load(DataConfig("jsonl", train_path=str(tmp_path)))
    with pytest.raises(UserError, match="data.heldout_path = .*nope"):
        cfg = DataConfig("jsonl", train_path=str(tmp_path / "train.jsonl"), heldout_path=str(tmp_path / "nope"))
        load(cfg)


def test_an_evaluation_needs_no_training_questions(tmp_path):
    path = write(tmp_path / "test.jsonl", questions(5))
    both = DataConfig("jsonl", train_path=path, heldout_path=path, train_size=99)
    train, heldout, _ = load(both, training=False)
    assert train == [] and len(heldout) == 5
    procedural = DataConfig("reasoning_gym", ("chain_sum",), train_size=9, heldout_size=20)
    assert load(procedural, training=False)[:2] == ([], load(procedural)[1]), "the same questions as in training"


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no usable row"):
        load(DataConfig("jsonl", train_path=write(tmp_path / "a.jsonl", ["\n\n"])))
