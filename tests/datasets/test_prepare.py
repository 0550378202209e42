"""Preparing and reading back: splits that never move, nothing lost uncounted, no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rl_likelihood.data import prepared
from rl_likelihood.datasets import DATASETS, files, prepare, sources, splitting
from rl_likelihood.datasets.common import Row
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.shapes import Example
from tests.programs import isolated

ALPACA = DATASETS["alpaca"]


def row(i: int, split: str = "train", key: str = "", **extra) -> Row:
    example = Example(f"{split}-{i}", f"What is {i}?", str(i))
    key = key or f"what is {i}"
    return Row(example, split, key, key, extra)


def prompts(rows) -> set[str]:
    return {r.example.prompt for r in rows}


def gsm8k(folder: Path, train: int = 20, test: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        rows = [{"question": f"{split} {i}é?", "answer": f"It is {i}.\n#### {i}"} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return folder


# ---------------------------------------------------------------------------------------- splits


def test_a_share_is_held_out_by_each_question_alone():
    rows = [row(i) for i in range(2000)]
    splits, _ = splitting.split_rows(ALPACA, rows, 0.1)
    held = prompts(splits["validation"])
    assert 150 < len(held) < 250  # 200 with a deviation of 13
    some = rows[::3] + [row(i) for i in range(5000, 5400)]
    random.Random(0).shuffle(some)
    again, _ = splitting.split_rows(ALPACA, some, 0.1)
    assert prompts(again["validation"]) & prompts(rows) == held & prompts(some)  # others came and went: none moved


def test_a_count_is_held_out_exactly_and_does_not_move_with_the_order():
    rows = [row(i) for i in range(300)]
    splits, removed = splitting.split_rows(ALPACA, rows, 50)
    assert [len(splits[s]) for s in ("train", "validation")] == [250, 50]
    assert splitting.split_rows(ALPACA, rows[::-1], 50)[0]["validation"][::-1] == splits["validation"]
    larger = prompts(splitting.split_rows(ALPACA, rows, 80)[0]["validation"])
    assert prompts(splits["validation"]) < larger
    assert removed == ((), (), ())
    with pytest.raises(UserError, match=r"--heldout = 300 .* 300 .* 299"):
        splitting.split_rows(ALPACA, rows, 300)


def test_training_loses_duplicates_and_questions_of_given_sets_which_stay_whole():
    train = [row(i) for i in range(10)] + [row(20, key="what is 3"), row(21, key="what is 3")]
    test = [row(0, "test"), row(30, "test"), row(31, "test", key="what is 30")]
    splits, removed = splitting.split_rows(dataclasses.replace(ALPACA, heldout_split="test"), train + test, 5)
    assert removed.duplicates == (
        "train-20 asks the question of train-3 again with another answer ('20', not used)",
        "train-21 asks the question of train-3 again with another answer ('21', not used)",
    )
    assert removed.overlap == ("train-0 asks what test-0 does",)
    assert [text.split()[0] for text in removed.repeats] == ["test-31"]
    assert [r.example.id for r in splits["train"]] == [f"train-{i}" for i in range(1, 10)]  # the first of each
    assert splits["test"] == test  # given, so nothing is held out for it
    splits, _ = splitting.split_rows(ALPACA, train + test, 5)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4, "validation": 5, "test": 3}
    with pytest.raises(UserError, match="nothing of alpaca is left to train on"):
        splitting.split_rows(ALPACA, [row(0), *test], 0)


def test_the_group_decides_the_side_of_a_row_and_not_its_id_or_its_key():
    def rows(name):
        return [
            Row(Example(f"{name} {i}", f"{i}?", "1"), "train", f"key {name} {i}", f"group {i // 2}") for i in range(80)
        ]

    for share in (0.3, 20):
        (one, _), (other, _) = (splitting.split_rows(ALPACA, rows(name), share) for name in ("a", "b"))
        assert 0 < len(one["validation"]) < 60 and prompts(one["validation"]) == prompts(other["validation"])
        assert not {r.group for r in one["train"]} & {r.group for r in one["validation"]}


def test_variants_of_a_given_test_question_are_not_trained_on():
    test = [Row(Example("t", "Compute 4!", "24"), "test", "Compute 4!", "compute 4")]
    train = [
        Row(Example("a", "Compute 4", "4"), "train", "Compute 4", "compute 4"),
        Row(Example("b", "Compute 5", "5"), "train", "Compute 5", "compute 5"),
    ]
    splits, removed = splitting.split_rows(ALPACA, train + test, 0)
    assert [r.example.id for r in splits["train"]] == ["b"] and removed.overlap == ("a asks what t does",)


def test_a_row_without_keys_gets_those_of_its_question(tmp_path):
    records = [{"instruction": text, "input": "", "output": "x"} for text in ("Compute 4!", "compute 4", "Compute  4!")]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    read = prepare.read_rows(ALPACA, files.locate([str(tmp_path / "alpaca.json")], ALPACA), False)
    assert len({r.key for r in read.rows}) == 2 and len({r.group for r in read.rows}) == 1


def test_a_limit_of_length_moves_no_question_and_cuts_no_given_set(tmp_path):
    """A row may be short enough or not; who is held out is decided before, and a given set stays whole."""
    records = [{"instruction": f"Say {i}.", "input": "", "output": "x" * (i % 100)} for i in range(1000)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    sides = {}
    for limit in (0, 60):
        prepare.prepare("alpaca", str(tmp_path / "alpaca.json"), str(tmp_path / f"{limit}"), limit, heldout=100)
        sides[limit] = [set(rows) for rows in prepared.load(str(tmp_path / f"{limit}"))]
    assert len(sides[0][1]) == 100
    for all_rows, short in zip(sides[0], sides[60], strict=True):
        assert short == {e for e in all_rows if len(e.prompt + e.answer) <= 60} and 0 < len(short) < len(all_rows)
    splits = {"train": [row(1)], "test": [row(2, "test")]}
    with pytest.raises(UserError, match="--max_chars = 3 .* 1 .*alpaca.* train.* 11 "):
        splitting.leave_out_long(ALPACA, splits, {"test"}, 3)
    splits["train"].append(row(12345))
    short, long = splitting.leave_out_long(ALPACA, splits, {"test"}, 11)
    assert (len(short["train"]), len(short["test"]), long) == (1, 1, ("train-12345",))
    assert splitting.leave_out_long(ALPACA, splits, {"test"}, 11)[0]["test"] == splits["test"]


def test_without_training_rows_nothing_is_held_out():
    splits, _ = splitting.split_rows(ALPACA, [row(i, "test") for i in range(5)], 2)
    assert {name: len(rows) for name, rows in splits.items()} == {"test": 5}


# ---------------------------------------------------------------------------------------- storage


def test_what_is_prepared_is_read_back(tmp_path):
    source, out = gsm8k(tmp_path / "source"), str(tmp_path / "out")
    report = prepare.prepare("gsm8k", str(source), out)
    assert report.splits == prepared.splits(out) == {"train": 20, "test": 5}
    train, heldout = prepared.load(out)
    expected = {Example(f"train.jsonl:{i + 1}", f"train {i}é?", str(i), f"It is {i}.", "gsm8k") for i in range(20)}
    assert len(train) == 20 and set(train) == expected
    assert {e.answer for e in heldout} == set("01234")
    # In a fixed order, which is not the file's: the first rows are a sample.
    assert prepared.read(report.folder, "train") == train
    assert [e.id for e in train] != sorted((e.id for e in train), key=lambda s: int(s.split(":")[1]))
    prepare.prepare("gsm8k", str(source), str(tmp_path / "again"))
    assert prepared.read(str(tmp_path / "again"), "train") == train

    written = json.loads((Path(report.folder) / prepared.REPORT).read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(report)))
    assert written["rows"] == 25 and written["files"] == 2 and len(written["sha256"]) == 64
    assert not (tmp_path / "out" / "downloads").exists()


@isolated
def test_tests_come_back_for_the_grader(tmp_path):
    record = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps({**record, "test": "def check(c):\n    assert c()\n"}))
    prepare.prepare("humaneval", str(tmp_path / "HumanEval.jsonl"), str(tmp_path / "out"))
    extra = {"prompt": "def f():\n", "test": "def check(c):\n    assert c()\n", "entry_point": "f"}
    train, heldout = prepared.load(str(tmp_path / "out"))
    assert train == [] and [e.id for e in heldout] == ["T/0"]
    # The reference is scored, the tests grade.
    reference = graders.reference_of("code_tests", heldout[0])
    assert heldout[0].answer == "    return 1" and json.loads(reference) == extra
    assert graders.code_tests(reference, heldout[0].answer) and not graders.code_tests(reference, "    return 0")
    assert graders.reference_of("exact_match", heldout[0]) == "    return 1"


def test_a_set_for_evaluation_alone_is_evaluated_and_not_trained_on(tmp_path):
    rows = [{"code": "def f(x):\n    return x", "input": str(i), "output": str(i), "id": f"s{i}"} for i in range(3)]
    (tmp_path / "cruxeval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare.prepare("cruxeval_o", str(tmp_path / "cruxeval.jsonl"), str(tmp_path / "out"))
    cfg = DataConfig("prepared", train_path=str(tmp_path / "out"), train_size=99, heldout_size=2)
    train, heldout, _ = sources.load(cfg, training=False)
    assert train == [] and len(heldout) == 2
    with pytest.raises(UserError, match="out .*evaluation.* test"):
        sources.load(cfg)


def test_a_given_split_that_is_trained_on_loses_its_held_out_questions(tmp_path):
    records = {"valid": ["a?", "b?", "C", "d?", "b?"], "test": ["a?", "c!", "e?"]}
    for split, asked in records.items():
        rows = [{"id": f"{split}{i}", "nl_statement": q, "nl_proof": "p"} for i, q in enumerate(asked)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare.prepare("proofnet", f"{tmp_path}/valid.jsonl,{tmp_path}/test.jsonl", str(tmp_path / "out"))
    cfg = DataConfig("prepared", train_path=str(tmp_path / "out"), train_split="validation", heldout_split="test")
    train, heldout, report = sources.load(cfg)
    assert sorted(e.id for e in train) == ["valid1", "valid3", "valid4"]
    assert sorted(e.id for e in heldout) == ["test0", "test1", "test2"] and report.overlap_removed == 2
    line = sources.describe(cfg, train, heldout, report)
    assert all(f"valid{i} asks a held-out question, or a variant of it" in line for i in (0, 2)), line
    assert sources.load(cfg, training=False)[1] == heldout
    (tmp_path / "valid.jsonl").write_text('{"id": "v", "nl_statement": "a?", "nl_proof": "p"}\n')
    prepare.prepare("proofnet", f"{tmp_path}/valid.jsonl,{tmp_path}/test.jsonl", str(tmp_path / "none"))
    with pytest.raises(UserError, match="data.train_split is 'validation'.*all held out.*name another"):
        sources.load(dataclasses.replace(cfg, train_path=str(tmp_path / "none")))


def test_no_tensorflow_and_no_warning_is_needed(tmp_path):
    program = """
import sys
from importlib.machinery import PathFinder

ABSENT, find_spec = ("tensorflow", "importlib_resources"), PathFinder.find_spec  # not there, installed or not
PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in ABSENT else find_spec(name, *where)
from rl_likelihood.data import prepared
from rl_likelihood.datasets import prepare, sources
assert prepare.main(["--dataset=gsm8k", f"--source={sys.argv[1]}", f"--out={sys.argv[2]}"]) == 0
train, heldout = prepared.load(sys.argv[2])
assert (len(train), len(heldout)) == (20, 5)
assert not {"tensorflow", "importlib_resources"} & set(sys.modules)
"""
    source = gsm8k(tmp_path / "source")
    command = [sys.executable, "-W", "error", "-c", program, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bars
    (paragraph,) = done.stdout.splitlines()
    assert paragraph.startswith("gsm8k: 25 rows of 2 files (0.00 MB) read; kept 20 train, 5 test; removed from")


def test_a_folder_above_one_set_is_enough_and_above_two_is_not(tmp_path):
    source, out = gsm8k(tmp_path / "source"), tmp_path / "out"
    prepare.prepare("gsm8k", str(source), str(out))
    one = prepared.read(str(out), "test")
    for path in (out / "gsm8k", out / "gsm8k" / "1.0.0"):
        assert prepared.read(str(path), "test") == one
    (tmp_path / "SVAMP.json").write_text(json.dumps([{"Body": "b", "Question": "q?", "Answer": 1.0, "ID": "c-1"}]))
    prepare.prepare("svamp", str(tmp_path / "SVAMP.json"), str(out))
    assert prepared.read(str(out / "gsm8k"), "test") == one
    with pytest.raises(UserError, match=r"holds 2 prepared data sets \(.*gsm8k.*svamp.*\); name one"):
        prepared.read(str(out), "test")
    with pytest.raises(UserError, match="gsm8k has no split 'dev'; it has "):
        prepared.read(str(out / "gsm8k"), "dev")
    with pytest.raises(UserError, match="'test' of .* is named for training and as held out"):
        prepared.load(str(out / "svamp"), train_split="test", heldout_split="test")
    with pytest.raises(UserError, match="is no folder"):
        prepared.read(str(tmp_path / "nowhere"), "test")
    with pytest.raises(UserError, match="holds no prepared data set; write one with python -m"):
        prepared.read(str(source), "test")
    (out / "svamp" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"svamp.1\.0\.0 cannot be read as a prepared data set"):
        prepared.read(str(out / "svamp"), "test")


# ---------------------------------------------------------------------------------------- the command


def test_the_report_accounts_for_every_row(tmp_path, capsys):
    records = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(40)]
    records += [{"instruction": "Say  3.", "input": "", "output": "three"}]  # a duplicate but for its spelling
    records += [{"instruction": "Tell.", "input": "", "output": "x" * 200}]  # too long
    records += [{"instruction": "Be silent.", "input": "", "output": ""}]
    records += [{"instruction": "No output."}]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    out = str(tmp_path / "out")
    flags = ["--dataset=alpaca", f"--source={tmp_path / 'alpaca.json'}", f"--out={out}"]
    flags += ["--max_chars=100", "--heldout=10", "--skip_bad_rows"]
    assert prepare.main(flags) == 0
    report = json.loads((Path(out) / "alpaca" / "1.0.0" / prepared.REPORT).read_text())
    assert report["splits"] == {"train": 30, "validation": 10}
    assert report["left_out"] == {"no answer": 1}
    assert report["duplicates"] == [
        "alpaca.json:41 asks the question of alpaca.json:4 again with another answer ('three', not used)"
    ]
    assert report["too_long"] == ["alpaca.json:42"] and report["max_chars"] == 100
    (bad,) = report["bad_rows"]
    assert bad.startswith("alpaca.json row 44: field 'input' is missing")
    gone = len(report["too_long"]) + len(report["bad_rows"]) + sum(report["left_out"].values())
    assert report["rows"] == 44 == sum(report["splits"].values()) + gone + len(report["duplicates"] + report["overlap"])
    paragraph = capsys.readouterr().out
    for words in (
        "alpaca: 44 rows of 1 file (",
        "kept 30 train, 10 validation; 1 row left out: no answer;",
        "1 duplicate (alpaca.json:41 asks",
        "1 long row (alpaca.json:42) of over 100 characters",
        "1 bad row (alpaca.json row 44: field 'input' is missing",
    ):
        assert words in paragraph
    assert paragraph.count("\n") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset=gsm8"], "--dataset is 'gsm8'; did you mean 'gsm8k'?"),
        (["--dataset=reasoning_gym"], "no files to prepare; train with data.source=reasoning_gym"),
        (["--dataset=gsm8k", "--source=SOURCE", "--max_chars=-1"], "--max_chars is -1"),
        (["--dataset=gsm8k", "--source=SOURCE", "--heldout=1.5"], "--heldout is 1.5"),
        (["--dataset=gsm8k", "--source=SOURCE", "--heldout=nan"], "--heldout is nan"),
        (["--dataset=gsm8k", "--source=SOURCE", "--heldout=inf"], "--heldout is inf"),
        (["--dataset=gsm8k", "--source=SOURCE", "--heldout=many"], "argument --heldout: invalid float value: 'many'"),
        (["--dataset=gsm8k", "--source=SOURCE", "--max_char=5"], "unrecognized arguments: --max_char=5"),
        (
            ["--dataset=gsm8k", "--source=SOURCE", "--max_chars=5"],
            "--max_chars = 5 leaves none of the 20 rows of gsm8k for train",
        ),
        (["--dataset=gsm8k", "--source=SOURCE/none"], "none does not exist; give train.jsonl"),
        (["--dataset=teleqna", "--source=SOURCE"], "test.jsonl:1: field 'answer' is"),
        (["--dataset=minif2f", "--source=SOURCE"], "holds no file of minif2f; it needs the folder informal"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, flags, words):
    source = gsm8k(tmp_path / "source")
    flags = [f.replace("SOURCE", str(source)) for f in flags] + [f"--out={tmp_path / 'out'}"]
    assert prepare.main(flags) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and words in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_prepared_folder_is_never_overwritten(tmp_path):
    source = str(gsm8k(tmp_path / "source"))
    prepare.prepare("gsm8k", source, str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"gsm8k.1\.0\.0 .*--out"):
        prepare.prepare("gsm8k", source, str(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        prepare.prepare("gsm8k", source, str(tmp_path / "file"))


@pytest.mark.parametrize("rows, size", [(400, 10_000), (20, 100_000)], ids=["the rows", "the report"])
def test_a_full_disk_is_one_sentence_and_leaves_no_folder(rows, size, tmp_path):
    source, out = str(gsm8k(tmp_path / "source", rows)), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "source" / "train.jsonl").open("a") as f:  # duplicates, which the report names
        f.writelines(json.dumps({"question": "train 1é?", "answer": "#### 1"}) + "\n" for _ in range(400_000 // rows))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"out cannot be written .File too large.; .*--out"):
            prepare.prepare("gsm8k", source, str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(out.rglob("*.*"))


def test_several_sources_have_commas_between_them(tmp_path):
    source = gsm8k(tmp_path / "source")
    both = f"{source / 'test.jsonl'},{source / 'train.jsonl'}"
    assert prepare.prepare("gsm8k", both, str(tmp_path / "out")).splits == {"train": 20, "test": 5}
