"""The files of a workdir on a full disk, and a terminal that lacks characters."""

import dataclasses
import datetime
import json
import os
import resource
import subprocess
import sys
import types

import pytest

from rl_likelihood import evaluate, train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import BYTES
from rl_likelihood.errors import UserError
from rl_likelihood.report.metrics import MetricsWriter
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.workdir import BEGINNING, INPUTS, OtherInputs, keep_date, keep_inputs, pinned_date
from rl_likelihood.shapes import Example
from rl_likelihood.training.session import Session, failure_in_status
from tests.runs import small_config


def test_a_full_disk_leaves_the_inputs_of_the_run_as_they_were(tmp_path):
    keep_inputs(tmp_path, "2026-01-02", {"questions": "a"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UserError, match=f"{INPUTS}: cannot be written"):
            keep_inputs(tmp_path, "2026-01-02", {"questions": "a", "prompts": "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads((tmp_path / INPUTS).read_text()) == {"date": "2026-01-02", "questions": "a"}
    assert [path.name for path in tmp_path.iterdir()] == [INPUTS]


def test_a_character_that_stdout_lacks_is_replaced():
    code = "from rl_likelihood.runtime.console import outlive_the_terminal, say; outlive_the_terminal(); "
    code += "say('\\u00e9 \\u221a3'); say('end')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"? ?3\nend\n"), done.stderr.decode()


def test_the_date_of_a_run_is_kept_and_a_lost_file_of_inputs_is_said(tmp_path, capsys):
    today = datetime.date.today().isoformat()
    meta = {"config": {"prompt.date": "2026-01-02"}}
    assert pinned_date(tmp_path, "") == today and pinned_date(tmp_path, "2026-01-01") == "2026-01-01"
    run_files.append(tmp_path / run_files.METRICS, {"step": 1})
    assert capsys.readouterr().out == ""
    assert pinned_date(tmp_path, "", meta) == "2026-01-02"
    said = capsys.readouterr().out
    assert INPUTS in said and "not noticed" in said and "2026-01-02" in said and said.count("\n") == 1
    keep_date(tmp_path, "2026-01-03")
    keep_date(tmp_path, "2026-01-04")
    assert pinned_date(tmp_path, "", meta) == "2026-01-03" and capsys.readouterr().out == ""


def test_an_evaluation_of_no_run_keeps_its_date_beside_its_records(tmp_path, monkeypatch):
    dates = []

    def stop(c, **_):
        dates.append(c.prompt.date)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "load", stop)
    keep_date(tmp_path, "2026-01-02")
    for c in (build(small_config()), build(small_config(prompt__date="2026-01-01"))):
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(c, None, None, tmp_path)
    assert dates == ["2026-01-02", "2026-01-01"]


def test_inputs_may_change_until_there_are_results(tmp_path):
    keep_inputs(tmp_path, "2026-01-02", {"questions": "a"})
    keep_inputs(tmp_path, "2026-01-02", {"questions": "b"})
    run_files.append(tmp_path / run_files.METRICS, {"step": 1})
    with pytest.raises(OtherInputs, match="other questions.*another --workdir$"):
        keep_inputs(tmp_path, "2026-01-02", {"questions": "a"})
    with pytest.raises(OtherInputs, match="--force$"):
        keep_inputs(tmp_path, "2026-01-02", {"questions": "a"}, force=False)


def test_a_resume_keeps_the_digest_of_the_model_that_the_run_began_with(tmp_path):
    keep_inputs(tmp_path, "2026-01-02", {BEGINNING: "a"})
    run_files.append(tmp_path / run_files.METRICS, {"step": 1})
    keep_inputs(tmp_path, "2026-01-02", {"questions": "b"})
    assert json.loads((tmp_path / INPUTS).read_text()) == {"date": "2026-01-02", BEGINNING: "a", "questions": "b"}


@pytest.mark.parametrize(
    "error, state",
    [(UserError("no space"), "failed"), (KeyboardInterrupt(), "interrupted"), (OtherInputs(), "running")],
)
def test_status_says_how_a_run_ended(tmp_path, error, state):
    with pytest.raises(type(error)), MetricsWriter(tmp_path, 9) as writer:
        writer.status("running", 0)
        with failure_in_status(writer):
            raise error
    assert json.loads((tmp_path / run_files.STATUS).read_text())["state"] == state


def test_a_file_of_questions_may_be_renamed_before_a_resume(tmp_path):
    rows = [types.SimpleNamespace(example=Example(f"a.jsonl:{i}", f"{i}?", str(i))) for i in (1, 2)]
    renamed = [types.SimpleNamespace(example=dataclasses.replace(r.example, id="b" + r.example.id[1:])) for r in rows]
    session = Session(tmp_path, None, None, build(small_config()), force=False)

    def begin(train_rows):
        ids = dict.fromkeys(("prompt_ids", "answer_ids", "shown_ids"))
        encoded = [types.SimpleNamespace(**vars(row), **ids) for row in train_rows]
        task = types.SimpleNamespace(config=session.given, train=encoded, heldout=[], fast=[], model_path=BYTES)
        train.keep_inputs_of_run(task, session)

    run_files.append(tmp_path / run_files.METRICS, {"step": 1})
    begin(rows)
    begin(renamed)
    with pytest.raises(OtherInputs, match="other questions"):
        begin(rows[:1])
    (tmp_path / INPUTS).write_text(json.dumps({"date": "2026-01-02", "questions": "of an earlier version"}))
    with pytest.raises(OtherInputs, match="other questions.*an update of this program"):
        begin(rows)


def test_other_rubrics_are_other_inputs(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    c = build(small_config())
    c = dataclasses.replace(c, rubric=dataclasses.replace(c.rubric, path=str(path)))
    task = types.SimpleNamespace(config=c, train=[], heldout=[], fast=[], model_path=BYTES)
    session = Session(tmp_path, None, None, c, force=False)
    path.write_text("a")
    train.keep_inputs_of_run(task, session)
    run_files.append(tmp_path / run_files.METRICS, {"step": 1})
    train.keep_inputs_of_run(task, session)
    path.write_text("b")
    with pytest.raises(OtherInputs, match="other code.*rubric.path"):
        train.keep_inputs_of_run(task, session)
