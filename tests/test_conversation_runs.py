"""Whole runs of conversations with the calculator: files, resume bit for bit, a sampler that runs ahead, evaluation."""

import json
import shutil

import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.report.page.chains import groups_of
from rl_likelihood.runtime import run_files
from tests.runs import small_config

TALK = {
    "env__name": "calculator",
    "env__style": "json",
    "data__tasks": ("calculator",),
    "data__train_size": 16,
    "data__heldout_size": 4,
    "prompt__max_prompt": 352,
    "prompt__max_answer": 16,
    "sampler__max_chain": 10,
    "sampler__max_turns": 2,
    "sampler__max_env_tokens": 48,
    "reward__name": "environment + 0.1*avg_log_prob",
    "eval__grader": "none",
    "eval__prompts": 3,
    "eval__samples": 2,
    "train__steps": 3,
}


def run(workdir, **changes):
    train.run(build(small_config(**TALK | changes)), workdir)
    return workdir


def rows(workdir, name):
    timed = ("seconds", "tokens_per_second", "queue/depth")
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k not in timed}
        for row in run_files.read(workdir / name)
    ]


def cut_back(workdir, to, step):
    """The workdir as a kill after checkpoint `step` leaves it."""
    shutil.copytree(workdir, to)
    for path in (to / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    return to


@pytest.mark.parametrize("how", [{"env__credit": "turn"}, {"sampler__max_staleness": 1}])
def test_a_run_of_conversations_resumes_bit_for_bit(how, tmp_path):
    unbroken = run(tmp_path / "unbroken", **how)
    metrics = rows(unbroken, "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    for row in metrics:
        assert not unknown(row) and np.isfinite(row["grad/norm"]) and row["grad/norm"] > 0
        assert row["env/turns"] == 2 and row["env/failures"] == 0 and row["env/bad_calls"] > 0
    sample, second = run_files.read(unbroken / "samples.jsonl")[:2]
    assert "calculate" in sample["start"] and "start" not in second
    assert [m["role"] for m in sample["messages"]] == ["assistant", "environment", "assistant"]
    assert sample["reward/environment"] == 0 and sample["turns"] == 2
    by_turn = "env__credit" in how
    assert by_turn == (len(sample.get("turn_advantage", ())) == 2)
    shown = groups_of([sample])[0]["chains"][0]["messages"]
    assert ["advantage" in message for message in shown] == [by_turn, False, by_turn]
    resumed = cut_back(unbroken, tmp_path / "resumed", 1)
    assert run(resumed, **how)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert rows(resumed, name) == rows(unbroken, name)


def test_an_evaluation_of_conversations_has_its_numbers_and_its_records(tmp_path):
    workdir = run(tmp_path / "run", train__steps=0)
    (row,) = run_files.read(workdir / "eval.jsonl")
    assert not unknown(row)
    assert row["greedy_success"] == row["sampled_success"] == row["pass^2"] == 0
    assert row["turns"] == 2 and row["out_of_turns"] == 1 and row["ci95"]["pass^2"][0] == 0 < row["ci95"]["pass^2"][1]
    _, *records = [json.loads(line) for line in (workdir / row["records"]).read_text().splitlines()]
    assert len(records) == 3 and [m["role"] for m in records[0]["greedy"]["messages"]][1] == "environment"
    assert all(len(r["samples"]) == 2 and "calculate" in r["start"] for r in records)
