"""The user's own rows: which there are, how they may be written, and what is wrong with the others."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import os
import re
import threading
from decimal import Decimal

import pytest

from rl_likelihood.datasets.sources import DataConfig, describe, load
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example


def write(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def questions(n, start=0):
    return [{"prompt": f"What is item {i}?", "answer": str(i)} for i in range(start, start + n)]


def own(path, **fields) -> DataConfig:
    """All rows of a file, none held out."""
    return DataConfig("files", train_path=str(path), **{"heldout_size": 0, **fields})


def test_rows_and_all_their_fields(tmp_path):
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
    train, heldout, report = load(own(path))
    assert heldout == [] and report.rows == 4 and report.bad_rows == ()
    assert train[0] == Example("7", "2 + 2?", "4", chain="two and two", task="sums")
    assert train[1] == Example("rows.jsonl:3", "line\u2028separator", "é")
    assert train[2].prompt == "Capital of France?"
    assert train[2].messages[0] == ("system", "Be brief.") and len(train[2].messages) == 4
    assert train[3] == Example("rows.jsonl:5", "Capital of Spain?", "Madrid")
    old_name = DataConfig("jsonl", train_path=path, heldout_size=0)
    assert load(old_name)[0] == train


def test_nulls_and_a_last_turn_of_the_assistant_are_as_other_tools_write_them(tmp_path):
    turns = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris "}]
    nothing = {"chain": None, "task": None, "id": None}
    rows = [{"prompt": "6 * 7?", "answer": 42, "messages": None} | nothing, {"prompt": turns[:1], "answer": "Lyon"}]
    rows += [{"messages": turns, "prompt": None, "answer": None} | nothing, {"messages": turns[:1] * 2 + turns[1:]}]
    train, _, report = load(own(write(tmp_path / "rows.jsonl", rows)))
    assert train[:2] == [
        Example("rows.jsonl:1", "6 * 7?", "42"),
        Example("rows.jsonl:2", "Capital of France?", "Lyon"),
    ]
    assert (train[2].answer, train[2].messages) == ("Paris", (("user", "Capital of France?"),) * 2)
    assert report.bad_rows == () and report.removed == (
        "rows.jsonl:3 asks the question of rows.jsonl:2 again with another answer ('Paris', not used)",
    )


@pytest.mark.parametrize(
    "number", ["42", "0.25", "0.0000001", "1e-07", "1.50", "-0", "1E5", "12345678901234567890.123456789", "1" * 5000]
)
def test_a_number_stays_as_it_is_written(tmp_path, number):
    line = f'{{"prompt": "How much?", "answer": {number}}}'
    for name, text in (("rows.jsonl", line + "\n"), ("rows.json", f"[{line}]")):
        path = tmp_path / name
        path.write_text(text)
        assert load(own(path))[0][0].answer == number


def test_a_number_in_parquet_is_as_people_write_it(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"prompt": ["a", "b", "c"], "answer": [1e-07, 43.0, 0.5]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert [e.answer for e in load(own(tmp_path / "rows.parquet"))[0]] == ["0.0000001", "43", "0.5"]


def test_integer_ids_of_parquet_with_a_gap_stay_integers(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"prompt": ["a", "b"], "answer": ["1", "2"], "id": [7.0, None]}  # as pandas writes them
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert [e.id for e in load(own(tmp_path / "rows.parquet"))[0]] == ["7", "rows.parquet:2"]


def test_a_damaged_page_of_parquet_is_no_matter_of_permissions(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(questions(12)), path)
    data = path.read_bytes()
    path.write_bytes(data[:30] + b"\xff" * 80 + data[110:])
    with pytest.raises(UserError, match="rows.parquet is not a readable parquet file .*; fetch it again"):
        load(own(path))


def test_wrong_answers_may_be_numbers_and_comparisons_of_messages_are_left_to_reward_models(tmp_path):
    messages = [[{"role": "assistant", "content": "five"}]]
    rows = ['{"prompt": "2 + 2?", "answer": 4, "rejected": [3, "five", 5.0]}\n']
    rows += [{"prompt": "2 + 3?", "answer": 5, "rejected": messages}]
    one, other = load(own(write(tmp_path / "rows.jsonl", rows)))[0]
    assert json.loads(one.check) == {"rejected": ["3", "five", "5.0"]} and other.check == ""


def test_columns_have_the_names_that_the_config_says(tmp_path):
    rows = [{"question": "1 + 1?", "solution": 2, "cot": "one and one"}]
    path = write(tmp_path / "rows.jsonl", rows)
    cfg = own(path, prompt_column="question", answer_column="solution", chain_column="cot")
    assert load(cfg)[0] == [Example("rows.jsonl:1", "1 + 1?", "2", chain="one and one")]
    same = own(path, prompt_column="question", answer_column="solution", chain_column="solution")
    assert load(same)[0][0].chain == "2"
    for fields, words in (
        ({}, "--config.data.prompt_column="),
        ({"prompt_column": "question"}, "--config.data.answer_column="),
    ):
        with pytest.raises(UserError, match="question, solution, cot") as e:
            load(own(path, **fields))
        assert words in str(e.value)


def test_an_id_belongs_to_one_line(tmp_path):
    rows = [row | {"id": i} for row, i in zip(questions(4), (1, 2, "1", 3), strict=True)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows.jsonl:3: id '1' is also that of rows.jsonl:1"):
        load(own(path))
    cfg = own(path, skip_bad_rows=True)
    train, heldout, report = load(cfg)
    assert [e.id for e in train] == ["1", "2", "3"] and len(report.bad_rows) == 1
    assert report.bad_rows[0] in describe(cfg, train, heldout, report)


# ---------------------------------------------------------------------------------------- files


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(row) + "\n" for row in questions(3))
    array = json.dumps(questions(3))
    for name, data in (
        ("rows.jsonl", lines.encode()),
        ("windows.jsonl", b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode()),
        ("rows.txt", lines.encode()),
        ("rows.jsonl.gz", gzip.compress(lines.encode())),
        ("rows.json", array.encode()),
        ("an_array.jsonl", array.encode()),
        ("a_long_array.jsonl", json.dumps(questions(3), indent=1).encode()),
    ):
        (tmp_path / name).write_bytes(data)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(questions(3)), tmp_path / "rows.parquet")
    for path in tmp_path.iterdir():
        assert [e.answer for e in load(own(path))[0]] == ["0", "1", "2"], path


def test_a_broken_file_is_named(tmp_path):
    whole = gzip.compress(b'{"prompt": "a", "answer": "b"}\n' * 9)
    for name, data, words in (
        ("rows.jsonl.gz", b"plain text", "rows.jsonl.gz cannot be unpacked"),
        ("rows.jsonl.gz", whole[:-9], "rows.jsonl.gz cannot be unpacked"),
        ("rows.jsonl.gz", whole[:10] + b"\xff" * 9, "rows.jsonl.gz cannot be unpacked"),
        (
            "rows.jsonl",
            b'[\n{"prompt": "a", "answer": "b"},\n',
            "rows.jsonl:3: the JSON array",
        ),
        ("rows.csv", b"prompt,answer\n1,2\n", "rows.csv is not read: rows of .csv files"),
        ("rows.parquet", b"PAR1", "rows.parquet is not a readable parquet file"),
        ("rows.jsonl", b"\n\n", "has no usable row"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as e:
            load(own(tmp_path / name))
        assert words in str(e.value) and "\n" not in str(e.value)


def test_a_file_that_is_not_there_is_refused_with_its_nearest_sibling(tmp_path):
    path = write(tmp_path / "train.jsonl", questions(1))
    for cfg, words in (
        (own(tmp_path / "tran.jsonl"), ("data.train_path", "tran.jsonl", f"did you mean {path}?")),
        (own(tmp_path / "nowhere" / "zzz"), ("data.train_path", "zzz", "JSON lines")),
        (own("owner/name"), ("data.train_path", "hf:owner/name")),
        (own(path, heldout_path=str(tmp_path / "nope")), ("data.heldout_path", "nope")),
        (own("x" * 300), ("data.train_path=xxx", "cannot be opened")),
    ):
        with pytest.raises(UserError) as e:
            load(cfg)
        assert all(word in str(e.value) for word in words), str(e.value)
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="loop.jsonl does not exist") as e:
        load(own(loop))
    assert "did you mean" not in str(e.value)


BAD_LINES = [
    ("{'prompt': 1}\n", "not JSON"),
    ('{"prompt": "a", "answer": "b"\n', "not JSON"),
    ("[" * 100_000 + "\n", "not JSON"),
    ('{"prompt": 1' + "0" * 5000 + ', "answer": "b"}\n', "field 'prompt' must be a string, not a number"),
    ('{"prompt": "a", "prompt": "c", "answer": "b"}\n', "key 'prompt' stands twice"),
    ('{"prompt": "a", "answer": "b"}, \n', "a comma follows the object; remove it"),
    ("[1, 2]\n", "not a JSON object but a list"),
    ("3\n", "not a JSON object but a number"),
    ("null\n", "not a JSON object but null"),
    ({"answer": "b"}, "field 'prompt' is missing"),
    ({"prompt": "a"}, "field 'answer' is missing"),
    ('{"prompt": "a", "answer": NaN}\n', "field 'answer' must be text or a finite number"),
    ({"prompt": "a", "answer": True}, "field 'answer' must be a string, not true/false"),
    ({"prompt": 7, "answer": "b"}, "field 'prompt' must be a string, not a number"),
    ({"prompt": ["a"], "answer": "b"}, "field 'prompt[0]' must be an object"),
    ({"prompt": "a", "answer": None}, "field 'answer' is null; write the answer"),
    ({"prompt": None, "answer": "b"}, "field 'prompt' is null; write the prompt"),
    ({"prompt": "a", "answer": "b", "chain": {}}, "field 'chain' must be a string, not an object"),
    ({"prompt": "a", "answer": "b", "alternatives": "c"}, "field 'alternatives' must be a list of answers, not a str"),
    (
        {"prompt": "a", "answer": "b", "alternatives": ["c", {}]},
        "field 'alternatives[1]' must be a string, not",
    ),
    ({"prompt": "a", "answer": "b", "alternatives": [" "]}, "field 'alternatives[0]' is empty"),
    ({"prompt": "a", "answer": "b", "task": False}, "field 'task' must be a string, not true/false"),
    ({"prompt": "a", "answer": "b", "id": 1.5}, "field 'id' must be text or an integer"),
    ({"prompt": "a", "answer": "b", "id": True}, "field 'id' must be text or an integer"),
    ({"prompt": " \n", "answer": "b"}, "field 'prompt' is empty"),
    ({"prompt": "a", "answer": "\t"}, "field 'answer' is empty"),
    ({"prompt": "a", "answer": "\ud800"}, "field 'answer' holds half of a surrogate pair"),
    (
        '{"prompt": "a", "answer": "b", "environment": {"n": [1' + "0" * 4300 + "]}}\n",
        "field 'environment' holds an integer of 4,301 digits; write it as text",
    ),
    ({"prompt": "a", "messages": [], "answer": "b"}, "both 'prompt' and 'messages'"),
    ({"messages": [], "answer": "b"}, "field 'messages' must be a list with at least one"),
    ({"messages": ["hello"], "answer": "b"}, "field 'messages[0]' must be an object"),
    ({"messages": [{"role": "user", "content": None}], "answer": "b"}, "field 'messages[0]' must be an object"),
    ({"messages": [{"role": "user", "content": 3}], "answer": "b"}, "field 'messages[0]' must be an object"),
    ({"messages": [{"role": "human", "content": "a"}], "answer": "b"}, "role' is 'human'; use one of system, user"),
    ({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}, "must be from the user, not the assistant"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "the one before it must be from the user"),
    ({"messages": [{"role": "system", "content": "a"}]}, "must be from the user, not the system"),
    ({"messages": [{"role": "user", "content": "a"}]}, "field 'answer' is missing"),
    ({"messages": [{"role": "user", "content": "\udc00"}], "answer": "b"}, "content' holds half of a surrogate"),
    ({"messages": [{"role": "user", "content": " "}], "answer": "b"}, "field 'messages' is empty"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_a_bad_line_is_refused_by_file_and_line(tmp_path, line, reason):
    path = write(tmp_path / "rows.jsonl", questions(2) + [line] + questions(1, start=5))
    with pytest.raises(UserError) as e:
        load(own(path))
    assert str(e.value).startswith(f"{path}:3: ") and reason in str(e.value)
    assert "data.skip_bad_rows=True" in str(e.value) and "\n" not in str(e.value)


def test_bad_lines_are_counted_and_named_when_skipped(tmp_path):
    path = write(tmp_path / "rows.jsonl", questions(2) + [line for line, _ in BAD_LINES])
    with open(path, "ab") as f:
        f.write(b'{"prompt": "\xff", "answer": "b"}')
    train, _, report = load(own(path, skip_bad_rows=True))
    assert len(train) == 2 and report.rows == 2
    assert len(report.bad_rows) == len(BAD_LINES) + 1
    for i, ((_, reason), said) in enumerate(zip(BAD_LINES, report.bad_rows, strict=False), start=3):
        assert said.startswith(f"{path}:{i}: ") and reason in said
    assert report.bad_rows[-1].endswith("not UTF-8 text")


def test_formats_that_are_not_read_are_named(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match="data.train_path=.*00001.arrow, which is not read .*ds.to_parquet"):
        load(own(folder))
    write(folder / "rows.jsonl", questions(3))
    (folder / "more.csv").write_text("prompt,answer\n")
    train, held, report = load(own(folder))
    assert len(train) == 3
    assert "not read: data-00000-of-00001.arrow, more.csv" in describe(own(folder), train, held, report)


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("rows.json", b'{"train": [{"prompt": "a", "answer": "b"}], "n": []}', "field 'train' holds the rows"),
        ("rows.json", b'{"prompt": {"0": "a"}, "answer": {"0": "b"}}', "one object of columns"),
        ("rows.json", b'{"prompt": ["a"], "answer": [1]}', "one object of columns"),
        ("rows.json", b'[\n{"prompt": "a", "prompt": "b"}]', "rows.json: key 'prompt' stands twice"),
        ("rows.jsonl", b"prompt,answer\n2+2,4\n", "is no JSON (it begins 'prompt,answer')"),
        ("rows.jsonl", b"<!DOCTYPE html>\n<html>", "web page"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        *(
            ("rows.jsonl", '{"prompt": "a"}\n'.encode(name), f"rows.jsonl is {name[:6].upper()} text; save it as UTF-8")
            for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
        ),
        ("rows.jsonl", gzip.compress(b"", mtime=0), "compressed by gzip; give it a name that ends in .gz"),
        ("rows.jsonl", b"PK\x03\x04\x14", "a zip archive; give it a name that ends in .zip"),
        ("rows", b"PAR1\x15\x04", "a parquet file; give it a name that ends in .parquet"),
    ],
)
def test_files_that_are_no_rows_at_all_are_named_for_what_they_are(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    for skip in (False, True):
        with pytest.raises(UserError, match=re.escape(words)):
            load(own(tmp_path / name, skip_bad_rows=skip))


def test_lines_may_end_in_cr_alone_and_a_pipe_is_a_file(tmp_path):
    rows = "".join(json.dumps(row) + "\r" for row in questions(4))
    (tmp_path / "rows.jsonl").write_text(rows, newline="")
    assert [e.answer for e in load(own(tmp_path / "rows.jsonl"))[0]] == ["0", "1", "2", "3"]
    os.mkfifo(tmp_path / "pipe.jsonl")
    writer = threading.Thread(target=(tmp_path / "pipe.jsonl").write_text, args=(rows,))
    writer.start()
    assert len(load(own(tmp_path / "pipe.jsonl"))[0]) == 4
    writer.join()


def test_single_floats_of_parquet_stay_as_people_write_them(tmp_path):
    import pyarrow
    import pyarrow.parquet

    answers = pyarrow.array([0.1, 2.7, 3.0], pyarrow.float32())
    others = pyarrow.array([[0.1, 0.7], None, [2.7]], pyarrow.list_(pyarrow.float32()))
    tasks = pyarrow.array(
        [{"load": [{"mean": 0.1}], "price": {"pen": 0.1}}] * 3,
        pyarrow.struct(
            {
                "load": pyarrow.list_(pyarrow.struct({"mean": pyarrow.float16()})),
                "price": pyarrow.map_(pyarrow.string(), pyarrow.float32()),
            }
        ),
    )
    table = pyarrow.table(
        {"prompt": ["a?", "b?", "c?"], "answer": answers, "alternatives": others, "environment": tasks}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = load(own(tmp_path / "rows.parquet"))[0]
    assert [e.answer for e in rows] == ["0.1", "2.7", "3"]
    assert [json.loads(e.check).get("alternatives") for e in rows] == [["0.1", "0.7"], None, ["2.7"]]
    assert json.loads(rows[0].check)["environment"] == {"load": [{"mean": 0.1}], "price": [["pen", 0.1]]}


@pytest.mark.parametrize("value", [datetime.datetime(2026, 1, 2), datetime.date(2026, 1, 2), b"x", Decimal("1.5")])
def test_an_environment_of_parquet_holds_only_what_json_can_hold(value, tmp_path):
    import pyarrow
    import pyarrow.parquet

    pairs = pyarrow.array([[("n", value)]], pyarrow.map_(pyarrow.string(), pyarrow.scalar(value).type))
    environment = pyarrow.StructArray.from_arrays([pairs], ["map"])
    rows = {"prompt": ["a?"], "answer": ["b"], "environment": environment}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    words = f"rows.parquet row 1: field 'environment' holds a {type(value).__name__}, which is not JSON"
    with pytest.raises(UserError, match=words):
        load(own(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    "rows, fields, words",
    [
        (questions(3), {"answer_column": "prompt"}, "data.prompt_column and data.answer_column are both 'prompt'"),
        (questions(3), {"chain_column": "prompt"}, "data.prompt_column and data.chain_column are both 'prompt'"),
        (questions(1), {"heldout_size": -1}, "data.heldout_size=0"),
        ([{"prompt": "a?", "answer": math.nan}], {}, "must be text or a finite number"),
        ([{"prompt": "a?"}] * 2, {"skip_bad_rows": True}, "rows.jsonl:1: field 'answer' is missing"),
    ],
)
def test_messages_name_what_to_change(rows, fields, words, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=re.escape(words)):
        load(own(path, **fields))
