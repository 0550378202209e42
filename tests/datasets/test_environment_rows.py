"""Own rows with a field `environment`: it, not the prompt, decides which rows are the same question."""

import json

import pytest

from rl_likelihood.datasets.sources import DataConfig, load
from rl_likelihood.errors import UserError


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(code, prompt="Open the safe.", **more):
    return {"prompt": prompt, "answer": "open", "environment": {"code": code, **more}}


def codes(rows):
    return {json.loads(example.check)["environment"]["code"] for example in rows}


def test_rows_with_one_prompt_and_different_tasks_are_split(tmp_path):
    path = written(tmp_path / "rows.jsonl", [row(n) for n in range(10)])
    train, held, _ = load(DataConfig("files", train_path=path, heldout_size=2))
    assert len(train) == 8 and len(held) == 2 and codes(train) | codes(held) == set(range(10))
    other = written(tmp_path / "held.jsonl", [row(n) for n in range(5, 15)])
    train, held, report = load(DataConfig("files", train_path=path, heldout_path=other, heldout_size=0))
    assert codes(train) == set(range(5)) and len(held) == 10 and report.overlap_removed == 5


def test_rows_with_one_task_are_on_the_same_side(tmp_path):
    rows = [row(n, prompt) | {"answer": prompt} for n in range(4) for prompt in ("Open it.", "Please open it.")]
    rows[0]["environment"] = {"size": 1, "code": 0}
    rows[1]["environment"] = {"code": 0, "size": 1}
    train, held, _ = load(DataConfig("files", train_path=written(tmp_path / "a.jsonl", rows), heldout_size=2))
    assert len(held) == 2 and len(codes(held)) == 1 and not codes(held) & codes(train)
    with pytest.raises(UserError, match="has 1 distinct questions"):
        load(DataConfig("files", train_path=written(tmp_path / "b.jsonl", rows[:2]), heldout_size=1))
