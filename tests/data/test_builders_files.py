"""Every format of a source, what is wrong with it in words, and the real files where there is a copy of them."""

from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import pytest

from rl_likelihood.data import grading, prepare, prepared
from rl_likelihood.data.builders import DATASETS, countdown, files
from rl_likelihood.data.builders.common import Row, split_in
from rl_likelihood.data.grading_pool import Pool
from rl_likelihood.shapes import UserError
from tests.data.test_builders import lines, rows


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
        found = rows("gsm8k", tmp_path / name).rows
        assert [(r.example.prompt, r.example.answer) for r in found] == [(f"q{i} \u2028é", str(i)) for i in range(3)]
    assert len(rows("gsm8k", tmp_path).rows) == 18


def test_a_file_that_is_missing_is_hinted_at(tmp_path):
    with pytest.raises(UserError, match=r"owner/name does not exist; give train.jsonl .* \(from the hub: hf:owner"):
        rows("gsm8k", Path("owner/name"))
    with pytest.raises(UserError, match="holds no file of gsm8k; it needs train.jsonl"):
        rows("gsm8k", tmp_path)


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("train.jsonl", b'{"question": "q", "answer": "#### 1"}\n{"question": "q"', "train.jsonl:2: not JSON"),
        ("train.jsonl", b'{"question": "q"}', "train.jsonl:1: field 'answer' is missing (it has question)"),
        ("train.jsonl", b'{"question": 3, "answer": "#### 1"}', "1: field 'question' must be text, not int"),
        ("train.jsonl", b"[1]", "train.jsonl:1: not a JSON object but list"),
        ("train.jsonl", b"\xff", "train.jsonl:1: not UTF-8"),
        ("train.jsonl", b'{"question": "\\ud800", "answer": "#### 1"}', "train.jsonl:1: a text holds half"),
        ("train.jsonl", b"", "no row of gsm8k is left of 0 (the files are empty)"),
        ("train.jsonl", b'{"question": "q", "answer": "####"}', "no row of gsm8k is left of 1 (1 no answer)"),
        ("train.jsonl", b'{"question": "q", "answer": "1"}', "train.jsonl:1: field 'answer' has no '####'"),
        ("train.json", b'[{"question": "q", "answer": "#### 1"}, 5]', "train.json row 2: not a JSON object but int"),
        ("train.json", b'[\n{"question": "q",\n]', "train.json:3: not JSON"),
        ("train.json", b"3", "train.json holds no records but one int"),
        ("train.json", b"\xff\xfe", "train.json is not UTF-8"),
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


def test_every_data_set_says_what_to_fetch_and_where():
    assert set(DATASETS) >= {"gsm8k", "math", "deepscaler", "alpaca", "numina_proof", "svamp", "mawps", "countdown"}
    for name, dataset in DATASETS.items():
        assert name == dataset.name and dataset.fetch and dataset.addresses
        pinned = r"https://.*[/@][0-9a-f]{40}[/.].*|hf:[^@]+@[0-9a-f]{40}"  # to a commit
        assert all(re.fullmatch(pinned, a) or a == "hf:netop/TeleMath" for a in dataset.addresses), dataset.addresses
        assert dataset.split in ("", "train", "test") and (dataset.heldout == 0 or dataset.split != "test")


# ---------------------------------------------------------------------------------------- the real files

# (data set, folder or file below $RL_LIKELIHOOD_DATA) -> rows read, rows kept of each split as the files give them
REAL = {
    ("gsm8k", "gsm8k"): (8792, {"train": 7473, "test": 1319}),
    ("math", "math"): (13000, {"train": 7498, "test": 5000, "math500": 500}),
    ("deepscaler", "deepscaler_parts"): (9237, {"train": 8445, "aime": 30, "amc": 83, "olympiad_bench": 675}),
    ("mawps", "easy_word_problems"): (2065, {"train": 2065}),
    ("countdown", "reasoning_gym_generated"): (8400, {"train": 8000, "test": 400}),
    ("cruxeval_o", "cruxeval"): (800, {"test": 800}),
    ("humaneval", "humaneval"): (164, {"test": 164}),
    ("mmlu_pro", "mmlu_pro"): (12032, {"test": 12032}),
    ("teleqna", "teleqna"): (10000, {"train": 10000}),
    ("teleqna_free", "teleqna"): (10000, {"train": 9075}),
    ("minif2f", "proofs"): (244, {"validation": 244}),
    ("proofnet", "proofs"): (371, {"validation": 184, "test": 185}),
}


def copy_of(folder: str) -> Path:
    root = os.environ.get("RL_LIKELIHOOD_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"RL_LIKELIHOOD_DATA names no folder with a copy of {folder}")
    return Path(root) / folder


# What the records say that the answer is, those that say it in so many words, and of how many it is compared.
SAID = {
    ("gsm8k", "gsm8k"): (lambda r: r["answer"].split("\n#### ")[1], 8792),
    ("math", "math"): (lambda r: r.get("answer"), 7998),  # the 5,000 of the test set have no such field
    ("deepscaler", "deepscaler_parts"): (lambda r: r["answer"] if isinstance(r["answer"], str) else None, 8475),
    ("mawps", "easy_word_problems"): (lambda r: r["target"], 2065),
    ("cruxeval_o", "cruxeval"): (lambda r: r["output"], 800),
    ("humaneval", "humaneval"): (lambda r: r["canonical_solution"], 164),
    ("mmlu_pro", "mmlu_pro"): (lambda r: r["answer"], 12032),
    ("minif2f", "proofs"): (lambda r: r["informal_proof"], 244),
}


@pytest.mark.parametrize("name, folder", SAID)
def test_the_real_answers_are_those_that_the_records_say(name, folder):
    said, expected = SAID[name, folder]
    compared = 0
    for file, below in files.locate([str(copy_of(folder))], DATASETS[name]):
        for place, record in files.read(file, below, DATASETS[name]):
            row, answer = DATASETS[name].parse(record, place), said(record)
            if isinstance(row, Row) and row.example.answer and answer is not None:
                ours = row.example.answer.strip()
                assert ours == answer.strip() if isinstance(answer, str) else float(ours) == answer, place
                compared += 1
    assert compared == expected


@pytest.mark.slow
def test_the_real_references_of_humaneval_pass_their_tests(tmp_path):
    prepare.prepare("humaneval", str(copy_of("humaneval")), str(tmp_path))
    rows = prepared.read(str(tmp_path), "test")
    goals = [grading.reference_of("code_tests", e) for e in rows]
    with Pool() as pool:
        assert pool.grade("code_tests", goals, [e.answer for e in rows]) == [True] * 164
        assert pool.grade("code_tests", goals, ["    return None"] * 164) == [False] * 164


@pytest.mark.parametrize("name, folder", REAL)
def test_the_real_files_have_the_rows_that_their_authors_say(name, folder):
    if name.startswith("teleqna"):
        pytest.importorskip("pyzipper")
    read = rows(name, copy_of(folder))
    kept: dict[str, int] = {}
    for row in read.rows:
        kept[row.split] = kept.get(row.split, 0) + 1
    assert (read.count, kept) == REAL[name, folder]
    assert read.bad == [] and read.count == len(read.rows) + sum(read.left_out.values())
    if name == "countdown":
        assert all(countdown.solves(r.example.answer, r.extra["nums"], r.extra["target"]) for r in read.rows)
