"""The reward_model command: trains, resumes, evaluates; its folder is a judge; what is wrong with the data is named."""

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.judged_text import SCORE
from rl_likelihood.data.pairs import Comparison
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.reward_model import reader_for, reward_model
from rl_likelihood.rollouts.local_judge import HEAD, load_head, local_judge, save_head
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.workdir import keep_inputs, write_config
from rl_likelihood.training.comparisons import digest, encode, load_comparisons
from rl_likelihood.weights import files
from tests.runs import small_config
from tests.small import random_params

ROOT = Path(__file__).parents[1]


def write(path, n=60, seed=0):
    """Comparisons whose right answer alone has an x in it."""
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        for i in range(n):
            words = ["".join(rng.choice(list("abcdef"), 4)) for _ in range(3)]
            row = {"prompt": f"Which of {i}?", "chosen": words[0][:2] + "x" + words[0][2:], "rejected": words[1:]}
            file.write(json.dumps(row) + "\n")
    return str(path)


def config(data, **changes):
    values = {
        "data__source": "files",
        "data__train_path": data,
        "data__train_size": 0,
        "data__heldout_size": 8,
        "judge__max_prompt": 40,
        "judge__max_row": 20,
        "preference__head_lr": 0.02,
        "optim__lr": 3e-3,
        "train__steps": 4,
        "train__checkpoint_every": 2,
        "eval__prompts": 8,
        "eval__batch_prompts": 5,
    }
    return build(small_config(**{**values, **changes}))


def test_it_trains_resumes_and_judges(tmp_path, capsys):
    data, run = write(tmp_path / "rows.jsonl"), tmp_path / "run"
    c = config(data, preference__options=2)
    out = reward_model(c, run)
    assert "preference.options is 2" in capsys.readouterr().out, "each row has three answers"
    lines = run_files.read(run / "rm_eval.jsonl")
    assert [line["step"] for line in lines] == [0, 4] and lines[1]["pair_accuracy"] == out["pair_accuracy"]
    assert lines[0]["pair_accuracy"] == 0.5 and lines[0]["nll"] == pytest.approx(np.log(2), abs=1e-6)
    assert lines[0]["length_only_pair_accuracy"] == 1 and "ci95" in lines[0]
    rows = run_files.read(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and not unknown(rows[0])
    again = reward_model(c, run, only_evaluate=True)
    assert again["pair_accuracy"] == out["pair_accuracy"]

    run_files.write_status(run, state="running", step=4, steps=4)  # killed in its last evaluation
    assert reward_model(c, run)["pair_accuracy"] == out["pair_accuracy"]
    assert run_files.read_status(run)["state"] == "done"

    shutil.rmtree(run / "checkpoints" / "4")
    assert reward_model(c, run)["pair_accuracy"] == out["pair_accuracy"]
    resumed = run_files.read(run / "metrics.jsonl")
    assert [row["loss/preference"] for row in resumed] == [row["loss/preference"] for row in rows]

    judge = local_judge(str(run), SCORE, 40, 20)
    _, heldout = load_comparisons(c.data)
    scores = judge([r.prompt for r in heldout], [[(a,) for a in r.answers] for r in heldout])
    right = scores.values[:, :1] > scores.values[:, 1:]
    assert right.mean() == pytest.approx(out["pair_accuracy"], abs=1e-6)

    command = [sys.executable, "-m", "rl_likelihood.export", f"--workdir={run}"]
    done = subprocess.run([*command, f"--out={tmp_path / 'out'}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    asked = [r.prompt for r in heldout], [[(a,) for a in r.answers] for r in heldout]
    (tmp_path / "out" / HEAD).unlink()  # then its head is the classifier's
    exported, ours = (local_judge(str(x), SCORE, 40, 20)(*asked).values for x in (tmp_path / "out", run))
    np.testing.assert_allclose(exported, ours, atol=1e-5)
    with pytest.raises(UserError, match="score.weight"):
        files.load(tmp_path / "out")  # a policy it is not
    save_head(run, load_head(str(run))[0], 1.0, step=2)
    with pytest.raises(UserError, match="of step 2.*of step 4.*--evaluate"):
        local_judge(str(run), SCORE, 40, 20)


@pytest.mark.parametrize(
    "section, field, lr, every, step, what",
    [
        ("optim", "lr", math.inf, 1, 3, "the parameters are"),
        ("preference", "head_lr", math.inf, 1, 3, "the parameters are"),
        ("optim", "lr", 1e38, 2, 4, "loss/preference, grad/norm are"),
    ],
    ids=["a save", "a save of the head", "a step"],
)
def test_what_is_not_finite_is_not_saved_and_a_new_run_starts_from_the_advised_path(
    section, field, lr, every, step, what, tmp_path
):
    data, run = write(tmp_path / "rows.jsonl"), tmp_path / "run"
    reward_model(config(data, train__steps=2), run)
    c = config(data, train__checkpoint_every=every)
    c = dataclasses.replace(c, **{section: dataclasses.replace(getattr(c, section), **{field: lr})})
    with pytest.raises(UserError, match=f"step {step}: {what} not finite; the checkpoint of step 2 is good") as e:
        reward_model(c, run, force=True)
    assert checkpoint.latest_step(run) == 2 and run_files.read_status(run)["state"] == "failed"
    advised = str(e.value).rpartition("model.path=")[2]
    reward_model(config(data, train__steps=1, model__preset="", model__path=advised), tmp_path / "new")
    assert checkpoint.latest_step(tmp_path / "new") == 1


def test_a_signal_in_the_first_evaluation_is_in_status_and_the_run_resumes(tmp_path, monkeypatch):
    data, run = write(tmp_path / "rows.jsonl"), tmp_path / "run"

    class Stopping(io.StringIO):
        """A console whose user stops the run when it reports its evaluation."""

        def write(self, text):
            if "held out:" in text:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nothing handled the signal"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Stopping())
            assert reward_model(config(data), run) == {"step": 0, "stopped": True}
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run_files.read_status(run)["state"] == "interrupted"
    assert reward_model(config(data), run)["step"] == 4 and run_files.read_status(run)["state"] == "done"


def test_its_workdir_travels_without_its_model(tmp_path):
    data, folder, run = write(tmp_path / "rows.jsonl"), tmp_path / "model", tmp_path / "run"
    model, text = random_model("nano"), byte_tokenizer()
    files.save(folder, model, random_params(model, seed=4, scale=0.1))
    text.chat_template = '{{ strftime_now("%d %b") }}' + text.chat_template
    save_tokenizer(text, folder)
    c = config(data, model__preset="", model__path=str(folder), prompt__date="2024-02-29")
    out = reward_model(c, run)
    assert not list(run.glob("*.part"))
    shutil.rmtree(folder)
    # The date is kept too: with another one the scores would differ.
    c = config(data, model__preset="", model__path=str(folder))
    write_config(run, c)
    again = reward_model(c, run, only_evaluate=True)
    assert (again["pair_accuracy"], again["nll"]) == (out["pair_accuracy"], out["nll"])
    shutil.rmtree(run / "checkpoints" / "4")
    assert reward_model(c, run)["nll"] == out["nll"]
    assert checkpoint.describe(run)[2] == str(folder)


def test_a_long_answer_is_counted_once_beside_questions_with_more_answers(tmp_path):
    reader, _ = reader_for(config(write(tmp_path / "rows.jsonl")), None, ["a?"])
    rows = [Comparison("1", "a?", ("b", "x" * 99), (0.0,) * 2), Comparison("2", "c?", tuple("defgh"), (0.0,) * 5)]
    batch, cut = encode(reader, rows, 5)
    assert cut == 1 and batch.present.sum(1).tolist() == [2, 5]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__source": "reasoning_gym"}, "data.source is 'reasoning_gym'"),
        ({"judge__max_prompt": 10}, "judge.max_prompt is 10"),
        ({"judge__max_row": 3000}, "2048 positions"),
        ({"lora__rank": 2}, "lora.rank is 2"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes, words, tmp_path):
    data = write(tmp_path / "rows.jsonl", n=12)
    with pytest.raises(UserError, match=words):
        reward_model(config(data, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    "changes, words", [({"judge__max_prompt": 10}, "judge.max_prompt is 10"), ({"judge__max_row": 3000}, "positions")]
)
def test_what_the_model_cannot_read_is_refused_without_its_weights(changes, words, tmp_path):
    """The weights are read last: without one of them the message is about the reading all the same."""
    folder, model = tmp_path / "model", random_model("nano")
    files.save(folder, model, random_params(model))
    save_tokenizer(byte_tokenizer(), folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layers.1" not in k}
    save_file(weights, folder / "model.safetensors")
    data = write(tmp_path / "rows.jsonl", n=12)
    with pytest.raises(UserError, match=words):
        reward_model(config(data, model__preset="", model__path=str(folder), **changes), tmp_path / "run")


def test_cut_answers_are_counted_once(tmp_path):
    """8 questions in batches of 5. The right answers alone are too long; copies fill the second batch."""
    rows = [{"prompt": f"Which of {i}?", "chosen": "a long answer", "rejected": "no"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = config(str(tmp_path / "rows.jsonl"), judge__max_row=8, train__steps=1)
    assert reward_model(c, tmp_path / "run")["cut"] == 8


@pytest.mark.parametrize(
    "bad, words",
    [({"rejected": "b"}, "rows.jsonl:3: chosen and rejected are equal"), ({"rejected": 5}, "rejected")],
)
def test_a_bad_row_is_named_before_weights_are_read(bad, words, tmp_path):
    data = write(tmp_path / "rows.jsonl", n=2)
    with open(data, "a") as file:
        file.write(json.dumps({"prompt": "Q?", "chosen": "b", **bad}) + "\n")
    with pytest.raises(UserError, match=words):
        reward_model(config(data, model__preset="", model__path="nowhere"), tmp_path / "run")
    write(data, n=30)
    with open(data, "a") as file:
        file.write(json.dumps({"prompt": "Q?", "chosen": "b", **bad}) + "\n")
    train, heldout = load_comparisons(config(data, data__skip_bad_rows=True).data)
    assert len(train) + len(heldout) == 30


def test_no_question_is_on_both_sides(tmp_path):
    data = write(tmp_path / "rows.jsonl", n=30)
    train, heldout = load_comparisons(config(data).data)
    assert len(heldout) == 8 and len(train) == 22
    assert not {r.prompt for r in train} & {r.prompt for r in heldout}
    with pytest.raises(UserError, match="no reward model to evaluate"):
        reward_model(config(data), tmp_path / "none", only_evaluate=True)


def test_comparisons_of_held_out_questions_are_left_out_and_named(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", n=30)
    held = write(tmp_path / "held.jsonl", n=2)
    train, heldout = load_comparisons(config(data, data__heldout_path=held, data__heldout_size=0).data)
    assert (len(train), len(heldout)) == (28, 2)
    assert f"held-out questions: 2 comparisons ({data}:1; {data}:2)" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="data.train_path is '/proc/self/mem', which cannot be read .*permissions"):
        load_comparisons(config("/proc/self/mem").data)


def test_other_comparisons_are_noticed_on_resume(tmp_path):
    data, run = write(tmp_path / "rows.jsonl", n=12), tmp_path / "run"
    sides = load_comparisons(config(data).data)
    keep_inputs(run, "", {"questions": digest(*sides)})
    run_files.append(run / run_files.METRICS, {"step": 1})
    moved = (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    assert digest(*load_comparisons(config(str(moved)).data)) == digest(*sides)
    other = config(write(tmp_path / "rows.jsonl", n=11), model__preset="", model__path="nowhere")
    write_config(run, other)
    with pytest.raises(UserError, match="other questions"):
        reward_model(other, run)


def test_margins_are_refused_where_the_loss_has_none(tmp_path):
    data = write(tmp_path / "rows.jsonl", n=20)
    listwise = config(data, preference__loss="listwise", model__preset="", model__path="nowhere")
    with pytest.raises(UserError, match="nowhere"):
        reward_model(listwise, tmp_path / "without")
    rows = [{"prompt": f"Which {i}?", "chosen": "a", "rejected": "b", "margin": 0.5 * (i > 2)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="preference.loss is 'listwise'.*rows.jsonl:.*margin 0.5"):
        reward_model(listwise, tmp_path / "run")
