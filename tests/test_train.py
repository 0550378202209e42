"""A whole run of a very small model: its files, resume bit for bit, and how it is computed."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.export import export
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.training.compiled_steps import StepPrograms
from tests.commands import command
from tests.runs import config_file, rows, run, small_config

METRICS = [
    *(f"reward/{name}" for name in ("mean", "std", *OBJECTIVES)),
    "advantage/abs_mean",
    "chain/length",
    "chain/truncated",
    "answer/log_prob",
    "answer/perplexity",
    "loss/policy",
    "loss/answer",
    "loss/kl",
    "grad/norm",
    "policy/entropy",
    "policy/self_certainty",
    "ratio/mean",
    "ratio/max",
    "ratio/kl",
    "reward/zero_std_groups",
    "reward/underflow",
    "grad/answer_share",
    "answer/chain_gain",
    "chain/transition_words",
    "chain/closed",
    *(f"corr/{name}" for name in ("log_prob", "avg_prob", "chain_length")),
    "queue/lag",
    "queue/depth",
    "time/sample",
    "time/learn",
    "time/wait",
    "time/host",
    "tokens_per_second",
]
EVAL = [
    "greedy_success",
    "sampled_success",
    "pass@2",
    "log_prob_mc1",
    "log_prob_mc2",
    "perplexity",
    "perplexity_no_chain",
    "chain_length",
]
SAMPLE = [
    "prompt",
    "chain",
    "reference_answer",
    "answer_logp",
    "reward",
    "reward/log_prob",
    "reward/prob",
    "advantage",
    "version",
]


def test_metrics_that_outlast_the_step_are_time_of_the_host():
    given = SimpleNamespace(rollout=SimpleNamespace(segment=np.ones((1, 2, 5))), waited=3.0)
    clock = train.times(given, (10.0, 15.0, 19.0, 20.0), 0.5)
    assert clock == {"time/host": 5 - 3 + 1 + 0.5, "time/learn": 4.0, "tokens_per_second": 1.0}


def test_the_step_ends_before_what_takes_longer_beside_it():
    read = threading.Event()

    class Loss:
        def __float__(self):
            read.set()
            return 0.5

    def longer():
        assert read.wait(60)
        time.sleep(0.5)
        return {"end": time.perf_counter()}

    finished, beside, end = StepPrograms.finish((None, {"loss": Loss()}, {}), longer)
    assert finished == (None, {"loss": 0.5}, {}) and end < beside["end"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken") / "run")


def test_a_run_leaves_what_the_design_says(unbroken):
    metrics = run_files.read(unbroken / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    for row in metrics:
        assert not [name for name in METRICS if name not in row] and not unknown(row)
        assert np.isfinite([row[name] for name in METRICS]).all()
        assert row["queue/lag"] == 0
        assert abs(row["ratio/mean"] - 1) < 1e-3, "sampler and learner disagree about the sampled ids"
    evals = run_files.read(unbroken / "eval.jsonl")
    assert [(row["step"], row["stage"]) for row in evals] == [(0, "untouched"), (4, "after 4 steps of log_prob")]
    assert not [name for name in EVAL if name not in evals[0]] and not unknown(evals[0])
    samples = run_files.read(unbroken / "samples.jsonl")
    assert len(samples) == 4 * 2 * 3 and not [name for name in SAMPLE if name not in samples[0]]
    assert run_files.read_status(unbroken) == {"state": "done", "step": 4, "steps": 4, "error": ""}
    assert (unbroken / "curves.png").stat().st_size > 10_000
    assert json.loads((unbroken / "config.json").read_text())["model.preset"] == "nano"


def test_the_reward_can_be_recomputed_from_samples(unbroken):
    for row in run_files.read(unbroken / "samples.jsonl"):
        logp = np.asarray(row["answer_logp"])[np.asarray(row["scored"], bool)]
        assert row["reward"] == pytest.approx(logp.sum(), abs=1e-3)
        assert row["reward/avg_prob"] == pytest.approx(np.exp(logp).mean(), abs=1e-3)
        assert "".join(row["answer_tokens"]) == f">{row['reference_answer']}</answer>"
        assert len(row["answer_logp_no_chain"]) == len(row["answer_logp"])


def test_samples_say_what_the_answer_scores_without_a_chain(unbroken):
    metrics = {row["step"]: row for row in run_files.read(unbroken / "metrics.jsonl")}
    for step in metrics:
        samples = [row for row in run_files.read(unbroken / "samples.jsonl") if row["step"] == step]
        bare = [sum(np.asarray(row["answer_logp_no_chain"])[np.asarray(row["scored"], bool)]) for row in samples]
        assert len(samples) == 2 * 3 and len(set(bare)) <= 2, "the same for all chains of a prompt"
        assert np.mean(bare) == pytest.approx(metrics[step]["answer/no_chain_log_prob"], abs=1e-3)


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(unbroken, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(unbroken, broken)
    for step in (3, 4):
        shutil.rmtree(broken / "checkpoints" / str(step))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "half a li')  # as a kill leaves it
    run(broken)
    for name in ("metrics.jsonl", "samples.jsonl", "eval.jsonl"):
        assert rows(broken, name) == rows(unbroken, name)
    for a, b in zip(*(jax.tree.leaves(checkpoint.restore_params(w)[1]) for w in (broken, unbroken)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resume_needs_no_weights_and_says_what_has_been_lost(unbroken, tmp_path, capsys):
    start = shutil.copytree(unbroken, tmp_path / "start")  # stands for a folder of weights
    extra = {"model__preset": "", "model__path": str(start), "train__steps": 2, "eval__prompts": 0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    (whole / "wandb_id").write_text("kept\n")
    run(whole, **extra)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "2")
    shutil.rmtree(start)
    (broken / "wandb_id").unlink()
    (broken / "samples.jsonl").unlink()
    capsys.readouterr()
    run(broken, **extra)
    assert rows(broken, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    assert rows(broken, "samples.jsonl") == [row for row in rows(whole, "samples.jsonl") if row["step"] == 2]
    for a, b in zip(*(jax.tree.leaves(checkpoint.restore_params(w)[1]) for w in (broken, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (broken / "wandb_id").read_text() == "kept\n"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " bytes" in line]
    assert line.startswith(f"warning: {broken}/samples.jsonl has 0 bytes, but had ") and "step 1 was saved" in line
    # The checkpoint has the weights: model.path may name another place by now.
    train.run(build(small_config(**extra | {"model__path": str(start) + "2"})), broken)


def test_a_workdir_travels_without_its_model(unbroken, tmp_path):
    """Its tokenizer is in it, its weights are in its checkpoints: the model's folder may go, and it may move."""
    folder, workdir = tmp_path / "model", tmp_path / "run"
    cfg, params, _, path = checkpoint.restore_params(unbroken)
    export(cfg, params, path, folder)
    of_folder = {"model__preset": "", "model__path": str(folder), "train__steps": 2, "eval__prompts": 2}
    run(workdir, **of_folder)
    shutil.rmtree(workdir / "checkpoints" / "2")
    moved = tmp_path / "moved" / "run"
    shutil.copytree(workdir, moved)
    shutil.rmtree(workdir)
    shutil.rmtree(folder)
    run(moved, **of_folder)
    assert run_files.read_status(moved)["state"] == "done"
    process = command("evaluate", f"--config={config_file(tmp_path, **of_folder)}", f"--workdir={moved}")
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    assert json.loads(out)["step"] == 2
    cfg, params, _, path = checkpoint.restore_params(moved)
    export(cfg, params, tokenizer_path(moved, path), tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_a_finished_run_only_shows_its_summary(unbroken, capsys):
    before = (unbroken / "metrics.jsonl").read_bytes()
    run(unbroken)
    assert (unbroken / "metrics.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "greedy success" in out and "curves.png" in out


def test_a_workdir_of_another_config_is_refused(unbroken):
    with pytest.raises(UserError, match=r"another config: optim.lr \(was 0.001, is 0.002\)"):
        run(unbroken, optim__lr=2e-3)


def test_answers_are_graded_by_the_grader_of_the_config(tmp_path):
    run(tmp_path / "run", eval__grader="math", train__steps=0)
    (row,) = run_files.read(tmp_path / "run" / "eval.jsonl")
    assert row["grader_failures"] == 0 and row["greedy_success"] == 0


@pytest.mark.slow
def test_micro_batches_and_meshes_do_not_change_a_run(unbroken, tmp_path):
    other = run(tmp_path / "run", train__micro_batch_prompts=1, mesh__fsdp=1, mesh__tensor=8)
    for a, b in zip(rows(unbroken, "metrics.jsonl"), rows(other, "metrics.jsonl"), strict=True):
        for name in ("reward/mean", "loss/answer", "grad/norm"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)


def test_what_a_run_on_one_cpu_chooses_changes_none_of_its_numbers(tmp_path, capsys):
    """One part of the batch at a time, layers unrolled: against all at once, scanned."""
    # Its rows are on one device, as in a run of a laptop; this model's heads are on all.
    one = {
        "mesh__fsdp": 1,
        "mesh__tensor": 8,
        "train__prompts_per_step": 4,
        "sampler__group_size": 8,
        "sampler__max_chain": 24,
        "train__steps": 2,
        "eval__prompts": 0,
        "loss__kl": "k3",
        "loss__kl_coef": 0.1,
    }
    left = run(tmp_path / "left", **one, model__layers="auto")
    said = capsys.readouterr().out
    assert "layers unrolled" in said and ", micro-batches of 2 prompts, " in said
    assert "the sampler's copy, a copy of the layers, the reference model, on 8 devices" in said
    told = run(tmp_path / "told", **one, model__layers="scan", train__micro_batch_prompts=4)
    said = capsys.readouterr().out
    assert "layers scanned" in said and ", micro-batches of 4 prompts, " in said
    for a, b in zip(rows(left, "metrics.jsonl"), rows(told, "metrics.jsonl"), strict=True):
        for name in ("reward/mean", "loss/policy", "loss/answer", "loss/kl", "grad/norm", "chain/length"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)


def test_a_failed_run_says_so_in_status(tmp_path):
    with pytest.raises(UserError, match="max_prompt"):
        run(tmp_path / "run", prompt__max_prompt=5)
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "failed" and "max_prompt" in status["error"]


def test_evaluate_prints_one_object_and_keeps_it(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    config = config_file(tmp_path)
    process = command("evaluate", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--step=4")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    row = json.loads(out)
    (kept,) = [r for r in run_files.read(tmp_path / "run" / "eval.jsonl") if "stage" not in r]
    assert row == kept
    last = run_files.read(unbroken / "eval.jsonl")[-1]
    # One program sampled from sharded weights, the other from whole ones: sums differ in the last bit.
    assert {k: row[k] for k in EVAL} == pytest.approx({k: last[k] for k in EVAL}, rel=1e-6)
