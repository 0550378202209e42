"""tau2 telecom as rows: the four files are read together, splits are by task, rows are counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rl_likelihood.datasets import DATASETS, files, prepare, splitting
from rl_likelihood.errors import UserError
from rl_likelihood.grading.code import tool_call
from rl_likelihood.grading.graders import reference_of
from tests.envs.small_world import REAL, needs_tau2

DB = """
[[plans]]
plan_id = "P1"
name = "Small"
data_limit_gb = 3.0
price_per_month = 12.5
data_refueling_price_per_gb = 1.5

[[lines]]
line_id = "L1"
phone_number = "1-1"
status = "Active"
plan_id = "P1"
"""


def record(name: str, *calls: str) -> dict:
    user = {"func_name": "set_user_info", "arguments": {"name": "Ada", "phone_number": "1-1"}}
    actions = [{"name": call, "arguments": {}, "compare_args": None} for call in calls]
    criteria = {"actions": actions, "env_assertions": [], "reward_basis": ["ENV_ASSERTION"]}
    return {
        "id": name,
        "ticket": "T.",
        "initial_state": {"initialization_actions": [user]},
        "evaluation_criteria": criteria,
    }


def folder(path: Path, *records: dict) -> Path:
    (path / "db.toml").write_text(DB)
    (path / "user_db.toml").write_text("[device]\n")
    (path / "tasks.json").write_text(json.dumps(records))
    (path / "split_tasks.json").write_text(json.dumps({"train": ["[x]a"], "test": ["[x]b"], "base": ["[x]a", "[x]b"]}))
    return path


def read(name: str, source: Path, skip: bool = False):
    return prepare.read_rows(DATASETS[name], files.locate([str(source)], DATASETS[name]), skip)


def test_every_reference_call_is_a_row_in_its_tasks_split(tmp_path):
    source = folder(
        tmp_path,
        record("[x]a", "toggle_data", "reboot_device"),
        record("[x]b", "toggle_data"),
        record("[x]c", "toggle_wifi"),
    )
    rows = read("tau2_telecom_turns", source).rows
    assert [(r.split, r.example.id) for r in rows] == [("train", "[x]a 0"), ("train", "[x]a 1"), ("test", "[x]b 0")]
    assert [json.loads(r.example.answer)["name"] for r in rows] == ["toggle_data", "reboot_device", "toggle_data"]
    assert rows[0].extra["alternatives"] == (rows[1].example.answer,) and "alternatives" not in rows[1].extra
    assert "Mobile Data is now OFF." in rows[1].example.prompt and "OFF" not in rows[0].example.prompt
    everything = read("tau2_telecom_turns_all", source).rows
    assert [(r.split, r.example.id) for r in everything[2:]] == [("test", "[x]b 0"), ("train", "[x]c 0")]
    whole = read("tau2_telecom_whole", source).rows
    assert len(whole) == 2 and "all calls in one message" in whole[0].example.prompt
    for words in ("Look the customer and the line up first", "test after each repair"):
        looks = [words in row.example.prompt for row in (rows[0], whole[0])]
        assert looks == [True, False], "replies come too late for one message"
    question = whole[0].example.prompt.splitlines()[-1]
    assert question.startswith("Which calls solve this ticket?") and question.endswith("without look-ups and done.")
    # Many tasks have one ticket: their first rows ask the same and are not duplicates.
    splits, counts = splitting.split_rows(DATASETS["tau2_telecom_turns_all"], everything, 0)
    assert {name: len(some) for name, some in splits.items()} == {"train": 3, "test": 1} and not any(counts)


def test_what_is_missing_or_wrong_is_named(tmp_path):
    source = folder(tmp_path, record("[x]a", "toggle_data"), {"id": "[x]b"})
    with pytest.raises(UserError, match="tasks.json row 2: .*'evaluation_criteria'"):
        read("tau2_telecom_turns", source)
    assert len(read("tau2_telecom_turns", source, skip=True).rows) == 1
    (source / "user_db.toml").unlink()
    with pytest.raises(UserError, match="user_db.toml is missing"):
        read("tau2_telecom_turns", source)


@needs_tau2
@pytest.mark.parametrize(
    "name, count, train, test, twins",
    [
        ("tau2_telecom_turns", 516, 354, 162, 83),
        ("tau2_telecom_turns_all", 13215, 13053, 162, 146),
        ("tau2_telecom_expert", 2523, 1712, 811, 354),
        ("tau2_telecom_whole", 114, 74, 40, 12),
        ("tau2_telecom", 114, 74, 40, 12),
    ],
)
def test_rows_of_the_real_files(name, count, train, test, twins):
    """`twins`: test rows whose prompt and answer also stand in a training row."""
    rows_read = read(name, REAL)
    splits, _ = splitting.split_rows(DATASETS[name], rows_read.rows, 0)
    assert (rows_read.count, {s: len(rows) for s, rows in splits.items()}) == (count, {"train": train, "test": test})
    trained = {(row.example.prompt, row.example.answer) for row in splits["train"]}
    assert sum((row.example.prompt, row.example.answer) in trained for row in splits["test"]) == twins
    assert all(tool_call(row.example.answer, row.example.answer) for row in rows_read.rows)
    if DATASETS[name].grader == "none":  # conversations: the environment's verdict, reported by kind of issue
        assert {row.example.task for row in rows_read.rows} == {"service_issue", "mobile_data_issue", "mms_issue"}
        return
    pace = "all calls in one message" if name == "tau2_telecom_whole" else "one call at a time"
    assert all(pace in row.example.prompt for row in rows_read.rows)
    transfers = [row for row in rows_read.rows if '"transfer_to_human_agents"' in row.example.answer]
    assert len(transfers) >= 20
    for row in transfers:
        example = dataclasses.replace(row.example, check=json.dumps(row.extra))
        other = json.loads(row.example.answer)
        for call in other if isinstance(other, list) else [other]:
            call["arguments"] = {"summary": "Any."} if "summary" in call["arguments"] else call["arguments"]
        assert tool_call(reference_of("tool_call", example), json.dumps(other))
