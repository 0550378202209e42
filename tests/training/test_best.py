"""The best evaluation, the checkpoint that is kept for it, the end of a run without progress, and a longer run."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import BYTES
from rl_likelihood.errors import UserError
from rl_likelihood.report.metric_table import higher_is_better
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.disk import drop_optimizer
from rl_likelihood.runtime.workdir import checkpoint_meta, write_config
from rl_likelihood.shapes import TrainState
from rl_likelihood.training import best
from tests.runs import rows, run, small_config


def best_of(*args, **kwargs):
    row, since = best.best_of(*args, **kwargs)
    return row["step"], since


def evaluations(*values, questions=4, samples=1):
    made = {"questions": questions, "samples": samples}
    return [{"step": 10 * i, "greedy_success": value, **made} for i, value in enumerate(values)]


def test_the_best_is_the_first_of_the_best_and_later_ones_are_counted():
    assert best_of(evaluations(0.1, 0.5, 0.3, 0.5), "greedy_success", True) == (10, 2)
    assert best_of(evaluations(0.1, 0.5, 0.3, 0.5), "greedy_success", False) == (0, 3)
    assert best_of(evaluations(0.1, 0.2), "greedy_success", True) == (10, 0)


def test_an_evaluation_of_other_questions_or_samples_is_not_compared():
    full = evaluations(0.9, questions=100)
    assert best_of([*full, *evaluations(0.1, 0.5, 0.3)], "greedy_success", True) == (10, 1)
    assert best_of([*evaluations(0.9, samples=3), *evaluations(0.1)], "greedy_success", True) == (0, 0)


def test_a_finished_run_names_its_best_step(tmp_path):
    (tmp_path / checkpoint.FOLDER / "10").mkdir(parents=True)
    line = best.best_line(tmp_path, evaluations(0.25, 0.75, 0.5), "greedy_success", fast_split=False)
    assert line == "best     greedy_success 75.0% after step 10; evaluate and export take --step=10"


def staged(stage, step, value, questions):
    return {"step": step, "stage": stage, "greedy_success": value, "questions": questions, "samples": 1}


def test_the_last_full_evaluation_does_not_hide_the_fast_ones():
    fast = [staged(f"step {s}", s, value, 4) for s, value in ((2, 0.5), (4, 0.3), (6, 0.2))]
    rows = [staged("untouched", 0, 0.1, 100), *fast, staged("after 6 steps of log_prob", 6, 0.9, 100)]
    assert best_of(rows, "greedy_success", True) == (2, 2), "a run that has ended stays ended"
    rows[0]["questions"] = rows[-1]["questions"] = 4
    assert best_of(rows, "greedy_success", True) == (6, 0)
    assert best_of(rows, "greedy_success", True, fast_split=True) == (2, 2), "as many questions, but others"
    ends = [rows[0], rows[-1]]
    assert best_of(ends, "greedy_success", True, fast_split=True) == (6, 0), "without fast ones"


# What the command evaluate appends to eval.jsonl: an easier set, and one that is not graded.
BY_THE_USER = [
    {"step": 4, "data": "easier.jsonl", "greedy_success": 0.9, "questions": 4, "samples": 1},
    {"step": 4, "data": "prose.jsonl", "perplexity": 2.0, "questions": 4, "samples": 1},
]
OWN = [staged("untouched", 0, 0.1, 4), staged("step 2", 2, 0.5, 4), staged("step 4", 4, 0.3, 4)]


def append(folder, rows_of_file):
    for row in rows_of_file:
        run_files.append(folder / run_files.EVAL, row)


def test_rows_that_the_command_evaluate_wrote_do_not_count(tmp_path):
    append(tmp_path, [*OWN, *BY_THE_USER])
    found = best.Best(tmp_path, "greedy_success", False)
    assert (found.step, found.since) == (2, 1)


def test_a_run_that_has_ended_names_the_best_of_its_own_evaluations(tmp_path, capsys):
    c = build(small_config(train__eval_every=2, train__best="greedy_success"))
    state = TrainState(step=jnp.int32(4), params={"embed": jnp.zeros(1)}, opt_state={})
    checkpoint.close(
        checkpoint.save_initial(tmp_path, state, checkpoint_meta(tmp_path, c, random_model("nano"), BYTES))
    )
    drop_optimizer(tmp_path)
    write_config(tmp_path, c)
    append(tmp_path, BY_THE_USER)
    assert train.run(c, tmp_path)
    assert "best " not in capsys.readouterr().out
    append(tmp_path, OWN)
    assert train.run(c, tmp_path)
    assert "best     greedy_success 50.0% after step 2" in capsys.readouterr().out


def test_a_metric_that_is_none_is_refused():
    assert higher_is_better("greedy_success") and not higher_is_better("perplexity")
    for name in ("succes", "grad/norm", "chain_length", "greedy_success_se", "grader_failures", "seconds"):
        with pytest.raises(UserError, match=f"train.best is '{name}'"):
            higher_is_better(name)
    with pytest.raises(UserError, match="train.best is 'pass@64'"):
        best_of(evaluations(0.1), "pass@64", True)


@pytest.mark.parametrize("fields", [{"train__best": "perplexity"}, {"train__eval_every": 1, "train__patience": 2}])
def test_fields_that_need_one_another(fields):
    with pytest.raises(UserError, match="train.best"):
        build(small_config(**fields))


def test_a_run_without_progress_ends_keeps_its_best_step_and_stays_ended(tmp_path, capsys):
    """At a learning rate of nearly 0 no evaluation beats the one before training."""
    few = {"train__steps": 9, "train__eval_every": 1, "train__best": "perplexity", "train__patience": 2}
    few |= {"optim__lr": 1e-30, "train__keep_checkpoints": 1, "train__checkpoint_every": 1, "eval__samples": 1}
    run(tmp_path / "run", **few)
    evaluated = run_files.read(tmp_path / "run" / "eval.jsonl")
    assert [row["step"] for row in evaluated] == [0, 1, 2, 2] and evaluated[-1]["stage"].startswith("after 2 steps")
    out = capsys.readouterr().out
    assert "without a better perplexity than that of step 0" in out
    value = evaluated[0]["perplexity"]
    assert out.splitlines()[-1] == f"best     perplexity {value:.3f} after step 0; evaluate and export take --step=0"
    assert checkpoint.latest_step(tmp_path / "run") == 2
    assert checkpoint.restore_params(tmp_path / "run", 0)[2] == 0, "the best one"
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()
    assert run_files.read(tmp_path / "run" / "STATUS")[0]["state"] == "done"
    run(tmp_path / "run", **few)
    assert len(run_files.read(tmp_path / "run" / "metrics.jsonl")) == 2


def test_a_best_step_of_a_run_that_did_not_keep_it_is_not_offered(tmp_path, capsys):
    """Without train.best only the newest checkpoints are kept, and the first evaluation is the best of equal ones."""
    few = {"train__eval_every": 1, "train__keep_checkpoints": 2, "optim__lr": 1e-30, "eval__samples": 1}
    folder = run(tmp_path / "run", **few)
    assert checkpoint.latest_step(folder) == 4 and not (folder / "checkpoints" / "0").exists()
    assert "best " not in capsys.readouterr().out
    run(folder, train__best="perplexity", **few)
    assert re.search(
        r"^best     perplexity [\d.]+ after step 0 \(its checkpoint was not kept\)$", capsys.readouterr().out, re.M
    )


def test_a_run_ended_by_smaller_evaluations_stays_ended(tmp_path):
    few = {"train__steps": 9, "train__eval_every": 1, "train__best": "perplexity", "train__patience": 1}
    few |= {"optim__lr": 1e-30, "eval__samples": 1, "eval__fast_prompts": 2}
    run(tmp_path / "run", **few)
    evaluated = run_files.read(tmp_path / "run" / "eval.jsonl")
    assert [row["questions"] for row in evaluated[:-1]] == [5] + [2] * (len(evaluated) - 2)
    assert evaluated[-1]["questions"] == 5
    run(tmp_path / "run", **few)
    assert run_files.read(tmp_path / "run" / "eval.jsonl") == evaluated


def test_a_longer_run_of_the_same_workdir_is_the_longer_run(tmp_path):
    few = {"eval__prompts": 0, "optim__schedule": "constant", "optim__warmup_steps": 1}
    whole = run(tmp_path / "whole", train__steps=3, **few)
    run(tmp_path / "grown", train__steps=2, **few)
    grown = run(tmp_path / "grown", train__steps=3, **few)
    assert rows(grown, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    one, other = (checkpoint.restore_params(folder)[1] for folder in (whole, grown))
    np.testing.assert_array_equal(one["embed"], other["embed"])
    with pytest.raises(UserError, match="train.steps"):
        train.run(build(small_config(train__steps=2, **few)), grown)


@pytest.mark.parametrize("state, steps, ended", [("done", 9, True), ("failed", 9, False), ("done", 7, False)])
def test_a_run_without_progress_stays_ended_without_its_optimizer(tmp_path, monkeypatch, state, steps, ended):
    monkeypatch.setattr(train, "lost_optimizer", lambda *_: True)
    assert train.has_ended(tmp_path, 3, 9, {"state": state, "steps": steps}) is ended
