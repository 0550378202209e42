"""Questions of the tests here."""

import json

import pytest


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    (path / "train.jsonl").write_text('{"prompt": "0 + 0", "answer": "0"}\n')
    answers = ["5", "57", "7", "5", "75", "5"]
    rows = [{"prompt": f"{i} + 5", "answer": answer} for i, answer in enumerate(answers, 1)]
    (path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data__source": "jsonl",
        "data__train_path": str(path / "train.jsonl"),
        "data__train_size": 0,
        "data__heldout_path": str(path / "test.jsonl"),
        "data__heldout_size": 0,
        "eval__prompts": 6,
    }
