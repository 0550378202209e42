"""The file of an evaluation: what it holds, whose it is, interrupted and gone on with."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.records import identity_of, records_path
from rl_likelihood.grading import graders
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.lock import lock
from rl_likelihood.task import load
from tests.evaluation.bigrams import evaluated, letters, numbers, records_of, sharp, task_of
from tests.runs import config_file, small_config

ROOT = Path(__file__).parents[2]


def test_the_numbers_are_recomputed_from_the_file_exactly(questions, tmp_path, capsys):
    task, params = letters(task_of(**questions, eval__samples=4)[0])
    out = evaluated(task, params, task.heldout, folder=tmp_path, step=3)
    again = statistics.summary(records_of(tmp_path, out))
    assert again == {k: out[k] for k in again}
    assert set(out) - set(again) == {"samples", "seconds", "records", "examples"}
    assert statistics.main([str(tmp_path / out["records"])]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 3, **again}


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    task, params = task_of(eval__batch_prompts=2)
    params = sharp(params)

    class Stop(Exception):
        pass

    def run(folder, stop_before=None):
        """The batches that were made, and the numbers."""
        batches = []

        def between():
            if len(batches) == stop_before:
                raise Stop
            batches.append(1)

        said = []
        out = evaluated(task, params, task.heldout, between=between, folder=folder, say=said.append)
        return len(batches), out, said

    whole, expected, _ = run(tmp_path / "unbroken")
    assert whole == 3
    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        run(folder, stop_before=1)
    (path,) = (folder / "evaluations").iterdir()
    kept = path.read_bytes()
    assert kept.count(b"\n") == 1 + 2
    path.write_bytes(kept + b'{"step": 0, "index": 2, "half a')  # as a kill leaves it
    batches, out, said = run(folder)
    assert batches == 2 and "2 of 5 questions have been evaluated already" in said[0]
    assert path.read_bytes().startswith(kept)
    assert records_of(folder, out) == records_of(tmp_path / "unbroken", expected)
    assert numbers(out) == numbers(expected)
    batches, out, _ = run(folder)
    assert batches == 0 and numbers(out) == numbers(expected)


def test_records_belong_to_one_step_one_set_of_weights_and_one_way_to_ask(tmp_path):
    task, params = task_of(eval__prompts=2)

    def file_of(params=params, step=0, rows=task.heldout, **changes):
        """The file, and whether it was new."""
        there = set(tmp_path.rglob("*.jsonl"))
        c = small_config(eval__prompts=2)
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        other = dataclasses.replace(task, config=build(c))
        path = tmp_path / evaluated(other, params, rows, folder=tmp_path, step=step)["records"]
        return path, path not in there

    first, new = file_of()
    assert new and first.name.startswith("step_0-")
    assert file_of(eval__batch_prompts=1) == (first, False), "how many at once decides nothing"
    longer, new = file_of(eval__prompts=4)
    assert (longer, new) == (first, False) and len(statistics.read_records(str(first))[1]) == 4
    assert file_of() == (first, False), "the first two of them are there"
    moved = jax.tree.map(np.array, params)
    moved["layers"]["q"][0, 0, 0, 0] += 1e-6
    changes = [
        {"params": moved},
        {"step": 1},
        {"rows": task.heldout[1:]},
        {"eval__samples": 1},
        {"eval__grader": "numeric"},
        {"seed": 1},
        {"sampler__max_chain": 11},
    ]
    files = [file_of(**change) for change in changes]
    assert all(new for _, new in files) and len({path for path, _ in files} | {first}) == 8


def test_marks_of_older_rules_are_not_kept(tmp_path, monkeypatch):
    task, params = task_of()
    first = identity_of(task, params, task.heldout, 1)
    assert first == identity_of(task, params, task.heldout, 1)
    monkeypatch.setattr(graders, "VERSION", graders.VERSION + 1)
    again = identity_of(task, params, task.heldout, 1)
    assert records_path(tmp_path, 0, again) != records_path(tmp_path, 0, first)


OWN = """
from rl_likelihood.grading.graders import Grader
GRADERS = {name: Grader(lambda reference, answer: %s, "own") for name in ("mine", "numeric")}
"""


def test_marks_of_an_older_version_of_your_own_grader_are_not_kept(tmp_path):
    file = tmp_path / "mine.py"

    def grader_of(verdict, name):
        file.write_text(OWN % verdict)
        task, params = task_of(reward__file=str(file), eval__grader=name)
        return identity_of(task, params, task.heldout, 1)["grader"]

    for name in ("mine", "numeric"):  # the second has the name of one of ours
        assert grader_of("True", name) == grader_of("True", name) != grader_of("False", name)
    assert grader_of("True", "exact_match") == grader_of("False", "exact_match")


def test_one_evaluation_at_a_time_writes_a_file_and_says_how_far_it_is(tmp_path, monkeypatch):
    task, params = task_of(eval__prompts=2)
    monkeypatch.setattr("rl_likelihood.progress.EVERY", 0.01)
    said = []
    out = evaluated(task, params, task.heldout, between=lambda: time.sleep(0.1), folder=tmp_path, say=said.append)
    assert said[0] == "evaluating 2 questions, 1 greedy and 2 sampled chains each"
    assert said[1].startswith("evaluated 0 of 2 questions, ")
    path = tmp_path / out["records"]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "the lock is gone"
    with lock(path.parent, path.with_suffix(".lock").name):
        with pytest.raises(UserError, match=f"{path.stem}.lock .*process {os.getpid()} "):
            evaluated(task, params, task.heldout, folder=tmp_path)
        moved = jax.tree.map(lambda x: np.asarray(x) * 2, params)
        assert evaluated(task, moved, task.heldout, folder=tmp_path)["records"] != out["records"], "another file"


def test_damaged_records_and_folders_are_refused(tmp_path):
    task, params = task_of(eval__prompts=2)
    path = tmp_path / evaluated(task, params, task.heldout, folder=tmp_path)["records"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(UserError, match="delete it and evaluate again"):
        evaluated(task, params, task.heldout, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        evaluated(task, params, task.heldout, folder=tmp_path / "file")


def test_the_command_goes_on_with_records_that_are_there(tmp_path):
    c = small_config()
    task, params = load(build(c))
    out = evaluated(task, params, task.heldout, folder=tmp_path / "out")
    arguments = f"--config={config_file(tmp_path)}", f"--out={tmp_path / 'out'}", "--config.prompt.date=2026-01-02"
    process = subprocess.run(
        [sys.executable, "-m", "rl_likelihood.evaluate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    assert "5 of 5 questions have been evaluated already" in process.stderr
    row = json.loads(process.stdout)
    assert numbers(row) == {"step": 0, "data": "faulty_losses", **numbers(out)} and row["records"] == out["records"]
    assert run_files.read(tmp_path / "out" / "eval.jsonl") == [row]
    assert json.loads((tmp_path / "out" / "inputs.json").read_text()) == {"date": "2026-01-02"}
