"""The builders on the real files, where there is a copy: in the folder $RL_LIKELIHOOD_DATA.

What is expected are the counts that the files' authors give and those of docs/data.md, and the answers that the
records say in so many words.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import pytest

from rl_likelihood.data import prepared
from rl_likelihood.datasets import DATASETS, countdown, files, prepare, splitting
from rl_likelihood.datasets.common import Row
from rl_likelihood.grading import graders
from rl_likelihood.grading.mathematics import math_match
from rl_likelihood.grading.pool import Pool
from tests.datasets.reading import rows
from tests.programs import isolated

REPOSITORY = Path(__file__).parents[2]

# (data set, folder) -> rows read, rows kept of each split as the files give them, rows after holding out
REAL = {
    ("gsm8k", "gsm8k"): (8792, {"train": 7473, "test": 1319}, {"train": 7473, "test": 1319}),
    ("math", "math"): (
        13000,
        {"train": 7498, "test": 5000, "math500": 500},
        {"train": 6726, "validation": 770, "test": 5000, "math500": 500},
    ),
    ("deepscaler", "deepscaler_parts"): (
        9237,
        {"train": 8445, "aime": 30, "amc": 83, "olympiad_bench": 675},
        {"train": 7341, "validation": 832, "aime": 30, "amc": 83, "olympiad_bench": 675},
    ),
    ("mawps", "easy_word_problems"): (2065, {"train": 2065}, {"train": 1593, "test": 165}),
    ("countdown", "reasoning_gym_generated"): (8400, {"train": 8000, "test": 400}, {"train": 6719, "test": 400}),
    ("cruxeval_o", "cruxeval"): (800, {"test": 800}, {"test": 800}),
    ("humaneval", "humaneval"): (164, {"test": 164}, {"test": 164}),
    ("mmlu_pro", "mmlu_pro"): (12032, {"test": 12032}, {"test": 12032}),
    ("teleqna", "teleqna"): (10000, {"train": 10000}, {"train": 8958, "test": 1039}),
    ("teleqna_free", "teleqna"): (10000, {"train": 9075}, {"train": 8095, "test": 950}),
    ("teleqna_pairs", "teleqna"): (10000, {"train": 9983}, {"train": 8942, "test": 1038}),
    ("minif2f", "proofs"): (244, {"validation": 244}, {"validation": 244}),
    ("proofnet", "proofs"): (371, {"validation": 184, "test": 185}, {"validation": 184, "test": 185}),
}


def copy_of(folder: str) -> Path:
    root = Path(os.environ.get("RL_LIKELIHOOD_DATA", "no such folder"))
    if not (root / folder).is_dir():
        pytest.skip(f"RL_LIKELIHOOD_DATA is no folder with a copy of {folder}")
    if folder == "teleqna":
        pytest.importorskip("pyzipper")
    return root / folder


@functools.cache
def read(name: str, folder: str):
    return rows(name, copy_of(folder))


def sizes(splits: dict[str, list[Row]]) -> dict[str, int]:
    return {name: len(split) for name, split in splits.items()}


@pytest.mark.parametrize("name, folder", REAL)
def test_the_real_files_have_the_rows_that_their_authors_say(name, folder):
    parsed = read(name, folder)
    splits_read: dict[str, list[Row]] = {}
    for row in parsed.rows:
        splits_read.setdefault(row.split, []).append(row)
    assert (parsed.count, sizes(splits_read)) == REAL[name, folder][:2]
    assert parsed.bad == [] and parsed.count == len(parsed.rows) + sum(parsed.left_out.values())
    if name == "countdown":
        assert all(countdown.solves(r.example.answer, r.extra["nums"], r.extra["target"]) for r in parsed.rows)


@pytest.mark.parametrize("name, folder", REAL)
def test_the_real_splits_are_those_of_the_docs(name, folder):
    splits, removed = splitting.split_rows(DATASETS[name], read(name, folder).rows, DATASETS[name].heldout)
    assert sizes(splits) == REAL[name, folder][2]
    gone = len(removed.duplicates) + len(removed.overlap)
    assert sum(sizes(splits).values()) + gone == sum(REAL[name, folder][1].values())
    lines = (REPOSITORY / "docs" / "data.md").read_text().splitlines()
    (said,) = (line for line in lines if line.startswith(f"| `{name}` |") and line.count("|") > 5)
    assert {f"{n:,}" for n in sizes(splits).values()} <= set(re.findall(r"[\d,]*\d", said)), said


def test_both_sets_of_teleqna_hold_out_the_same_stems():
    held = {}
    for name in ("teleqna", "teleqna_free"):
        splits, _ = splitting.split_rows(DATASETS[name], read(name, "teleqna").rows, 0.1)
        held[name] = [{row.group for row in splits[side]} for side in ("train", "test")]
        assert not held[name][0] & held[name][1]
    assert all(free <= choice for free, choice in zip(held["teleqna_free"], held["teleqna"], strict=True))


def test_a_limit_of_length_cuts_no_real_test_set():
    parsed = read("deepscaler", "deepscaler_parts").rows
    splits, _ = splitting.split_rows(DATASETS["deepscaler"], parsed, 0.1)
    given = {row.split for row in parsed} - {"train"}
    splits_read, long = splitting.leave_out_long(DATASETS["deepscaler"], splits, given, 4000)
    assert {name: n for name, n in sizes(splits_read).items() if name in given} == {
        "aime": 30,
        "amc": 83,
        "olympiad_bench": 675,
    }
    assert 0 < len(long) == sum(sizes(splits).values()) - sum(sizes(splits_read).values())


# ---------------------------------------------------------------------------------------- answers


def boxed(record: dict) -> str:
    """The last box of a solution, braces counted by hand."""
    tail = record["solution"].rpartition("\\boxed")[2]
    if not tail.startswith("{"):
        return tail.partition("$")[0].strip()
    depth = 0
    for i, c in enumerate(tail):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return tail[1:i].strip()
    raise AssertionError(record)


def option(record: dict) -> tuple[str, str] | tuple[None, None]:
    """(letter, text) of the one option that the answer repeats word for word."""
    said = record["answer"].partition(":")[2].strip()
    options = [k for k, v in record.items() if k.startswith("option ") and v.strip() == said]
    return (" ABCDE"[int(options[0].split()[1])], said) if len(options) == 1 else (None, None)


def proof(record: dict) -> str:
    return record["nl_proof"].strip().removeprefix("\\begin{proof}").removesuffix("\\end{proof}")


# What the records say that the answer is, those that say it in so many words, and of how many it is compared.
SAID = {
    ("gsm8k", "gsm8k"): (lambda r: r["answer"].split("\n#### ")[1], 8792),
    ("math", "math"): (lambda r: r.get("answer") or boxed(r), 12998),  # the 5,000 of the test set have no field for it
    ("deepscaler", "deepscaler_parts"): (lambda r: r["answer"] if isinstance(r["answer"], str) else None, 8475),
    ("mawps", "easy_word_problems"): (lambda r: r["target"], 2065),
    ("cruxeval_o", "cruxeval"): (lambda r: r["output"], 800),
    ("humaneval", "humaneval"): (lambda r: r["canonical_solution"], 164),
    ("mmlu_pro", "mmlu_pro"): (lambda r: r["answer"], 12032),
    ("teleqna", "teleqna"): (lambda r: option(r)[0], 9993),  # three say an option that is there twice, four none
    ("teleqna_free", "teleqna"): (lambda r: option(r)[1], 9068),
    ("minif2f", "proofs"): (lambda r: r["informal_proof"], 244),
    ("proofnet", "proofs"): (proof, 369),
}


@pytest.mark.parametrize("name, folder", SAID)
def test_the_real_answers_are_those_that_the_records_say(name, folder):
    said, expected = SAID[name, folder]
    compared = 0
    for file, below in files.locate([str(copy_of(folder))], DATASETS[name]):
        for location, record in files.read(file, below, DATASETS[name]):
            row = DATASETS[name].parse(record, location)
            if isinstance(row, Row) and row.example.answer and (answer := said(record)) is not None:
                ours = row.example.answer.strip()
                assert ours == answer.strip() if isinstance(answer, str) else float(ours) == answer, location
                compared += 1
    assert compared == expected


def test_the_solutions_of_math_500_are_graded_as_their_answers():
    """By the rules that need no algebra; the solution of another problem is right only where the answers are alike."""
    ours = [row.example for row in read("math", "math").rows if row.split == "math500"]
    assert all(math_match(e.answer, e.chain) for e in ours) and len(ours) == 500
    others = [math_match(e.answer, other.chain) for e, other in zip(ours, ours[1:] + ours[:1], strict=True)]
    assert sum(bool(right) for right in others) < 15


@pytest.mark.slow
@isolated
def test_the_real_references_of_humaneval_pass_their_tests(tmp_path):
    prepare.prepare("humaneval", str(copy_of("humaneval")), str(tmp_path))
    rows = prepared.read(str(tmp_path), "test")
    goals = [graders.reference_of("code_tests", e) for e in rows]
    with Pool() as pool:
        assert pool.grade("code_tests", goals, [e.answer for e in rows]) == [True] * 164
        assert pool.grade("code_tests", goals, ["    return None"] * 164) == [False] * 164
