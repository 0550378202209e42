"""A run whose reward is a critic that learns in its step; what the critic reads; what does not go with it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.judged_text import EXPERT, SCORE, Reader
from rl_likelihood.errors import UserError
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rollouts.experts import Experts
from rl_likelihood.rollouts.judges import judge_of
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import abstract_batch, load
from tests.runs import small_config

FEW = {"reward__name": "adversarial", "eval__prompts": 0, "judge__max_prompt": 60, "judge__max_row": 40}
WIDE = {"judge__max_prompt": 300, "judge__max_row": 200}  # for two answers and what stands around them
TEXT = byte_tokenizer()


def few(**changes):
    return build(small_config(**{**FEW, "train__steps": 2, "adversarial__replay": 4, **changes}))


def metrics(workdir):
    return run_files.read(workdir / "metrics.jsonl")


@pytest.mark.parametrize("form", ["head", "label"])
def test_a_run_learns_critic_and_policy_and_resumes_to_the_same_numbers(form, tmp_path):
    changes = {"adversarial__form": form} | (WIDE if form == "label" else {})
    train.run(few(**changes), tmp_path / "a")
    rows = metrics(tmp_path / "a")
    assert not unknown(rows[0]) and all(np.isfinite(row["reward/adversarial"]) for row in rows)
    if form == "head":
        assert rows[0]["critic/loss"] == pytest.approx(np.log(2), abs=1e-5), "a head of zeros knows nothing"
    else:
        assert all(0 < row["critic/tie"] < 1 and 0 < row["reward/adversarial"] < 1 for row in rows)
    assert rows[1]["critic/loss"] != rows[0]["critic/loss"] and 0 <= rows[1]["critic/accuracy_replay"] <= 1
    assert "critic/accuracy_replay" not in rows[0], "nothing was seen before"
    assert not any("metrics/non_finite" in row for row in rows)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "2")
    train.run(few(**changes), tmp_path / "a")
    again = metrics(tmp_path / "a")
    for name in ("critic/loss", "critic/accuracy_replay", "reward/adversarial", "loss/policy", "grad/norm"):
        assert again[1][name] == rows[1][name], name


def test_earlier_answers_come_again_behind_their_reference():
    task = load(few(data__train_size=4))[0]
    rows = task.train[:2]
    experts = Experts(Reader(TEXT, task.fmt.vocab_bytes, SCORE, 60, 40), seed=0, keep=3)
    fresh, replayed, _ = experts.read(rows, [["one", None], ["two", "three"]])
    assert fresh.judged.rows.shape[:2] == (2, 3) and not replayed.present.any(), "nothing was seen before"

    def row(judged, i, j):
        return TEXT.decode(judged.rows[i, j][: judged.row_length[i, j]])

    assert rows[0].example.answer in row(fresh.judged, 0, 0) and "one" in row(fresh.judged, 0, 1)
    before = list(experts.seen)
    saved = json.loads(json.dumps(experts.state()))
    again = Experts(experts.reader, seed=0, keep=3)
    again.restore(saved)
    for reader in (experts, again):
        _, old, _ = reader.read(rows, [["four"], ["five"]])
        assert old.present.all() and len(reader.seen) == 3
        taken = [(row(old.judged, i, 0), row(old.judged, i, 1)) for i in range(2)]
        assert all(any(e in a and x in b for _, e, x in before) for a, b in taken)
    assert experts.seen == again.seen


def test_with_labels_each_answer_stands_beside_its_reference_in_either_order():
    task = load(few(data__train_size=4))[0]
    rows, answers = task.train[:2], [["one", "two", "three", None]] * 2
    experts = Experts(Reader(TEXT, task.fmt.vocab_bytes, EXPERT, 400, 200), seed=0, keep=3)
    for step in range(2):
        compared, replayed, _ = experts.read(rows, answers)
        assert compared.margins.shape == (2, 4) and set(np.unique(compared.margins)) == {-1, 1}
        assert [TEXT.decode([i]) for i in compared.labels[0]] == ["1", "2", "0"]
        for i, j in np.ndindex(2, 4):
            text = TEXT.decode(compared.judged.rows[i, j][: compared.judged.row_length[i, j]])
            shown = [part.partition(">>>")[0].strip() for part in text.split("<<<")[1:3]]
            pair = [rows[i].example.answer, answers[i][j] or ""]
            assert shown == (pair if compared.margins[i, j] > 0 else pair[::-1])
        assert replayed.present.all() == (step > 0) and (replayed.margins == [1, -1]).all()


@pytest.mark.parametrize("form", ["head", "label"])
def test_what_it_reads_has_the_shapes_of_the_plan(form):
    c = few(data__train_size=4, adversarial__form=form, **WIDE)
    devices = make_devices(c)
    task = load(c, mesh=devices.learner)[0]
    compared, replayed, _ = judge_of(task, devices, Path()).read(task.train[:2], [["a", "b", None]] * 2)
    planned = abstract_batch(c, task.fmt)
    for ours, theirs in ((compared, planned.compared), (replayed, planned.replayed)):
        same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), ours, theirs)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "changes",
    [
        {"judge__model": "x"},
        {"sampler__max_staleness": 1},
        {"filter__mode": "std_zero"},
        {"adversarial__steps": 2, "adversarial__form": "raro"},
        {"reward__baseline": "live", "adversarial__form": "raro"},
        {"judge__where": "step", "adversarial__form": "raro"},
        {"judge__where": "step"},
        {"judge__normalise": "whiten", "adversarial__form": "label"},
        {"rubric__path": "x"},
        {"reward__name": "adversarial + exact_match", "adversarial__form": "raro"},
    ],
)
def test_what_does_not_go_with_a_critic_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes)).replace("__", ".")):
        few(**changes)
