"""Whole runs of a very small model: files, resume, every reward, Ctrl-C, refusals of the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import apply_preset, build
from rl_likelihood.data.order import order
from rl_likelihood.export import export
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.rollouts.asynchronous import Asynchronous
from rl_likelihood.rollouts.batches import Batches, widened
from rl_likelihood.rollouts.source import Given, Synchronous, make_source
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.runtime.signals import Stopped
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.shapes import CHAIN, PAD, Prompts, Rollout, UserError
from rl_likelihood.tables import reward_table
from rl_likelihood.task import load
from tests.commands import run_each
from tests.runs import config_file, small_config

ROOT = Path(__file__).parents[1]
# A judge and an environment have runs of their own (tests/rollouts/test_asked_judge.py, test_conversation_runs.py).
ON_HOST = [name for name, r in reward_table().items() if r.on_host and r.kind != "judge" and not r.conversation]

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


def run(workdir: Path, **overrides) -> Path:
    train.run(build(small_config(**overrides)), workdir)
    return workdir


def rows(workdir: Path, name: str) -> list[dict]:
    """Rows without what a clock decides."""
    timed = ("seconds", "tokens_per_second")
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k not in timed and k != "queue/depth"}
        for row in run_files.read(workdir / name)
    ]


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
    cfg, params, _, path = checkpoint.restore_params(moved)
    export(cfg, params, tokenizer_path(moved, path), tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_other_questions_are_noticed_on_resume(tmp_path, capsys):
    lines = [json.dumps({"prompt": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    data = {"data__source": "jsonl", "data__train_path": str(tmp_path / "train.jsonl"), "data__tasks": ()}
    few = data | {"data__train_size": 0, "data__heldout_size": 4, "eval__prompts": 0, "train__steps": 2}
    run(tmp_path / "run", **few)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    (tmp_path / "train.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="other questions.*data.train_path"):
        run(tmp_path / "run", **few)
    train.run(build(small_config(**few)), tmp_path / "run", force=True)
    assert "other questions (--force)" in capsys.readouterr().out


def test_data_that_moved_are_the_same_data(tmp_path):
    lines = [json.dumps({"prompt": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    data = {"data__source": "files", "data__heldout_size": 2, "data__train_size": 0, "eval__prompts": 0}
    run(tmp_path / "run", **data, data__train_path=str(tmp_path / "train.jsonl"), train__steps=1)
    (tmp_path / "moved").mkdir()
    (tmp_path / "train.jsonl").rename(tmp_path / "moved" / "train.jsonl")
    moved = {**data, "data__train_path": str(tmp_path / "moved" / "train.jsonl"), "train__steps": 2}
    (tmp_path / "train.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="other questions"):
        run(tmp_path / "run", **moved | {"data__train_path": str(tmp_path / "train.jsonl")})
    run(tmp_path / "run", **moved)
    assert run_files.read_status(tmp_path / "run")["step"] == 2


def test_other_prompts_or_code_are_refused_and_leave_the_workdir_as_it_was(tmp_path):
    (tmp_path / "instruction.txt").write_text("Add.")
    (tmp_path / "mine.py").write_text("GRADERS = {}\n")
    own = {"prompt__instruction": "", "prompt__instruction_path": str(tmp_path / "instruction.txt")}
    own |= {"reward__file": str(tmp_path / "mine.py"), "eval__prompts": 0, "train__steps": 1}
    run(tmp_path / "run", **own)
    run_files.append(tmp_path / "run" / "metrics.jsonl", {"step": 2})  # of a step after the checkpoint
    names = ("config.json", "STATUS", "inputs.json", "metrics.jsonl")
    files = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    for name, text, words in (
        ("instruction.txt", "Subtract.", "other prompts.*prompt.instruction_path"),
        ("mine.py", "GRADERS = {}  # changed\n", "other code.*reward.file"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=words):
            run(tmp_path / "run", **own | {"train__steps": 2})
        (tmp_path / name).write_text(before)
        assert files == {name: (tmp_path / "run" / name).read_bytes() for name in files}
    (tmp_path / "run" / "STATUS").unlink()
    (tmp_path / "other.txt").write_text("Divide.")
    with pytest.raises(UserError, match="other prompts"):
        run(tmp_path / "run", **own | {"train__steps": 2, "prompt__instruction_path": str(tmp_path / "other.txt")})
    status = run_files.read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["steps"]) == ("failed", 1, 2) and "other prompts" in status["error"]
    run(tmp_path / "run", **own | {"train__steps": 2})
    assert run_files.read_status(tmp_path / "run")["step"] == 2
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_a_finished_run_only_shows_its_summary(unbroken, capsys):
    before = (unbroken / "metrics.jsonl").read_bytes()
    run(unbroken)
    assert (unbroken / "metrics.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "greedy success" in out and "curves.png" in out


def test_a_workdir_of_another_config_is_refused(unbroken):
    with pytest.raises(UserError, match=r"another config: optim.lr \(was 0.001, is 0.002\)"):
        run(unbroken, optim__lr=2e-3)


@pytest.mark.parametrize("reward", [*OBJECTIVES, "base_rl", "sft"])
def test_every_reward_trains(reward, tmp_path):
    run(tmp_path / "run", reward__name=reward, train__steps=2, eval__prompts=0)
    one, two = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([one["grad/norm"], two["grad/norm"]]).all()
    if reward != "base_rl":  # an untrained model never writes an answer, so its 0/1 reward has no gradient
        assert one["grad/norm"] > 0
    # sft samples nothing: what is made of sampled tokens is absent, and not 0.
    assert [name in one for name in ("policy/entropy", "chain/closed", "ratio/ess")] == [reward != "sft"] * 3
    if reward == "sft":
        assert one["loss/answer"] == pytest.approx(-one["answer/log_prob"], rel=1e-5)


def preset_config(name, **overrides):
    c = small_config(train__steps=2, eval__prompts=0, **overrides)
    c.preset = name
    apply_preset(c, [key.replace("__", ".") for key in overrides])
    return c


@pytest.mark.parametrize("name", ["rlpr", "nover", "intuitor", "ttrl", "dapo", "jepo_tang"])
def test_presets_train(name, tmp_path):
    few = {"ttrl": {"sampler__group_size": 4, "reward__vote_train": 2}}.get(name, {"sampler__group_size": 3})
    train.run(build(preset_config(name, **few)), tmp_path / "run")
    last = run_files.read(tmp_path / "run" / "metrics.jsonl")[-1]
    assert np.isfinite(last["grad/norm"]) and np.isfinite(last["reward/mean"])
    sample = run_files.read(tmp_path / "run" / "samples.jsonl")[-1]
    terms = {"rlpr": ["rlpr", "format", "repetition"], "nover": ["format", "nover_rank"], "ttrl": ["majority_vote"]}
    assert all(f"reward/{term}" in sample for term in terms.get(name, []))
    if name == "ttrl":  # four vote, two are trained on: two steps of two questions
        assert len(run_files.read(tmp_path / "run" / "samples.jsonl")) == 2 * 2 * 2


def test_rewards_from_text_are_computed_side_by_side(tmp_path):
    run(tmp_path / "run", reward__name=" + ".join(ON_HOST), train__steps=1, eval__prompts=0)
    (row,) = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(row[f"reward/{name}"]) for name in ON_HOST) and row["grader/failures"] == 0
    assert row["reward/mean"] == pytest.approx(sum(row[f"reward/{name}"] for name in ON_HOST), abs=1e-5)
    assert {"vote/label_accuracy", "chain/transition_words"} <= set(row)


UNROLLED = {"model__layers": "unroll", "train__micro_batch_prompts": 1, "mesh__fsdp": 1, "mesh__tensor": 8}


@pytest.mark.parametrize("how", [{}, UNROLLED], ids=["scanned", "unrolled"])
def test_a_run_with_state_of_its_own_resumes_bit_for_bit(how, tmp_path):
    """RLPR's threshold and base scores, NOVER's proxy, a reference model."""
    extra = {"reward__name": "0.5*rlpr + format + nover_rank + log_prob", "reward__baseline": "frozen"}
    extra |= {"loss__kl": "k3", "loss__kl_coef": 0.1, **how}
    extra |= {
        "prompt__score_delims": "none",
        "filter__mode": "ema",
        "proxy__every": 2,
        "train__steps": 4,
        "eval__prompts": 0,
    }
    one = run(tmp_path / "one", **extra)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    for step in ("3", "4"):
        shutil.rmtree(two / "checkpoints" / step)
    run(two, **extra)
    assert rows(two, "metrics.jsonl") == rows(one, "metrics.jsonl")
    assert rows(two, "samples.jsonl") == rows(one, "samples.jsonl")


def test_a_start_that_is_interrupted_is_made_again(tmp_path, monkeypatch):
    """Ctrl-C while base scores are computed, after a warm start: nothing half-made is gone on from."""
    extra = {"reward__name": "rlpr", "reward__baseline": "frozen", "prompt__score_delims": "none"}
    extra |= {"warm_start__steps": 1, "warm_start__chains": "given", "warm_start__prompts": 8}
    extra |= {"warm_start__prompts_per_step": 8, "eval__prompts": 0, "train__steps": 2}
    monkeypatch.setattr(train, "write_baseline", lambda *_: (_ for _ in ()).throw(Stopped()))
    run(tmp_path / "run", **extra)
    assert run_files.read_status(tmp_path / "run")["state"] == "interrupted"
    assert checkpoint.latest_step(tmp_path / "run") is None
    monkeypatch.undo()
    run(tmp_path / "run", **extra)
    assert run_files.read_status(tmp_path / "run")["state"] == "done"


def test_base_scores_are_of_the_initial_model_and_kept_by_question(tmp_path):
    extra = {"reward__name": "rlpr", "reward__baseline": "frozen", "prompt__score_delims": "none"}
    one = run(tmp_path / "one", **extra, train__steps=3, eval__prompts=0)
    rows = run_files.read(one / "baseline.jsonl")
    assert len(rows) == len({row["key"] for row in rows}) == 6 and all(0 < row["avg_prob"] < 1 for row in rows)
    samples = run_files.read(one / "samples.jsonl")
    base = {row["id"]: row["avg_prob"] for row in rows}
    for s in samples:
        assert s["reward"] == pytest.approx(min(max(s["reward/avg_prob"] - base[s["id"]], 0), 1), abs=1e-5)


@pytest.mark.parametrize("on", ["answer", "both"])
def test_sft_on_given_chains(on, tmp_path):
    run(tmp_path / "run", reward__name="sft", reward__sft_chain=on, train__steps=3, eval__prompts=0, optim__lr=1e-2)
    one, *_, last = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert last["loss/answer"] < one["loss/answer"]
    tokens = -one["answer/log_prob"] < one["loss/answer"]
    assert tokens == (on == "both"), "the chain's tokens are in the loss, or not"
    sample = run_files.read(tmp_path / "run" / "samples.jsonl")[0]
    assert "=" in sample["chain"]


@pytest.mark.parametrize(
    "extra",
    [
        {"reward__truncated": "drop"},
        {"reward__truncated": "floor", "reward__floor": -3.0},
        {"model__compute_dtype": "bfloat16", "sampler__temperature": 0.8},
        {"report__no_chain": False, "model__remat": "full"},
    ],
    ids=["drop", "floor", "bfloat16", "remat"],
)
def test_policies_and_precisions_train(extra, tmp_path):
    run(tmp_path / "run", train__steps=2, eval__prompts=0, **extra)
    last = run_files.read(tmp_path / "run" / "metrics.jsonl")[-1]
    assert np.isfinite(last["loss/policy"]) and np.isfinite(last["grad/norm"])
    # A model that never learned the tags leaves every chain open: all dropped, or all at the floor.
    assert last["chain/truncated"] == 1
    if extra.get("reward__truncated") == "drop":
        assert last["keep/fraction"] == 0 and last["grad/norm"] == 0
    if extra.get("reward__truncated") == "floor":
        assert last["reward/std"] == 0 and last["reward/mean"] < -3
    assert ("answer/chain_gain" in last) == extra.get("report__no_chain", True)


def test_a_warm_start_on_own_chains_says_when_there_are_none(tmp_path):
    with pytest.raises(UserError, match="there are only 0 chains .warm_start.chains='own'."):
        run(
            tmp_path / "run",
            warm_start__steps=2,
            warm_start__prompts=8,
            warm_start__prompts_per_step=4,
            warm_start__examples=0,
        )


def test_answers_are_graded_by_the_grader_of_the_config(tmp_path):
    run(tmp_path / "run", eval__grader="math", train__steps=0)
    (row,) = run_files.read(tmp_path / "run" / "eval.jsonl")
    assert row["grader_failures"] == 0 and row["greedy_success"] == 0


def test_kl_to_the_initial_model_starts_at_zero_and_grows(tmp_path):
    run(tmp_path / "run", loss__kl="k3", loss__kl_coef=0.1, train__steps=3, eval__prompts=0)
    kl = [row["loss/kl"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-5


@pytest.mark.slow
def test_warm_start_on_given_chains_then_rl_with_the_warm_model_as_reference(tmp_path):
    extra = {"warm_start__steps": 3, "warm_start__chains": "given", "warm_start__prompts": 40}
    extra |= {"warm_start__prompts_per_step": 8, "warm_start__lr": 1e-2}
    extra |= {"train__steps": 2, "loss__kl": "k3", "loss__kl_coef": 0.1}
    one = run(tmp_path / "run", **extra)
    evals = run_files.read(one / "eval.jsonl")
    assert [r["stage"] for r in evals] == ["untouched", "after warm start", "after 2 steps of log_prob"]
    assert evals[1]["perplexity"] < 0.5 * evals[0]["perplexity"]
    assert run_files.read(one / "metrics.jsonl")[0]["loss/kl"] == pytest.approx(0, abs=1e-6)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    shutil.rmtree(two / "checkpoints" / "2")
    run(two, **extra)
    assert rows(two, "metrics.jsonl") == rows(one, "metrics.jsonl")


def test_a_sampler_that_runs_ahead_stays_within_its_bound(tmp_path):
    run(tmp_path / "run", sampler__max_staleness=2, train__steps=6, eval__prompts=0)
    lags = [row["queue/lag"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")]
    assert len(lags) == 6 and min(lags) >= 0 and 1 <= max(lags) <= 2


def test_the_sampler_of_a_shared_device_computes_only_while_the_learner_waits(tmp_path):
    """Two programs with collectives, started by two threads on the same devices, would wait for each other."""
    config = build(small_config(sampler__max_staleness=2))
    devices = make_devices(config)
    task, params = load(config, mesh=devices.learner)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        source.box.publish(0, sampler_weights(params, task.model, devices))
        time.sleep(0.5)
        assert len(source.queue) == 0, "the learner's thread owns the devices"
        with source.devices_free():
            assert source.queue.get(0)[0].version == 0
    finally:
        source.close()
    assert not source.thread.is_alive()


@pytest.mark.parametrize(
    "overrides, kind",
    [({}, Synchronous), ({"sampler__max_staleness": 1}, Asynchronous), ({"reward__name": "sft"}, Given)],
)
def test_every_source_gives_the_batch_of_its_step(overrides, kind, tmp_path):
    config = build(small_config(**overrides))
    devices = make_devices(config)
    task, params = load(config, mesh=devices.learner)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        assert isinstance(source, kind)
        for step in range(2):
            given = source.next(step, params)
            index = order(len(task.train), 2, 0)(step)
            assert [row.example.id for row in given.rows] == [task.train[i].example.id for i in index]
            assert given.batch.completion.shape[:2] == (2, config.rows_per_prompt)
    finally:
        source.close()


def test_a_rollout_is_widened_by_padding_that_no_row_sees():
    ids = np.arange(1, 7).reshape(1, 2, 3)
    two, one = np.array([2]), np.array([1])
    asked = Prompts(np.array([[5, 6]]), two, np.array([[7]]), one, np.array([[True]]), np.array([0]))
    rollout = Rollout(asked, ids, np.full(ids.shape, CHAIN), -1.0 * ids, np.zeros((1, 2), bool))
    wide = widened(rollout, 5, 4, pad_id=9)
    assert wide.prompts.tokens.tolist() == [[5, 6, 9, 9]] and wide.prompts.length.tolist() == [2]
    assert wide.completion.tolist() == [[[1, 2, 3, 9, 9], [4, 5, 6, 9, 9]]]
    assert (wide.segment[..., 3:] == PAD).all() and (wide.sampler_logp[..., 3:] == 0).all()
    assert widened(wide, 5, 4, pad_id=9).completion.shape == wide.completion.shape


def test_prompts_as_wide_as_their_batch_needs_give_the_same_run(tmp_path, capsys, monkeypatch):
    lines = [{"prompt": "1" * (1 + i % 7) + "+1", "answer": str(i), "id": i} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    widths = []

    class Recording(Batches):
        def collate(self, number):
            prompts = super().collate(number)
            widths.append((prompts.tokens.shape[1], int(prompts.length.max())))
            return prompts

    monkeypatch.setattr("rl_likelihood.rollouts.source.Batches", Recording)
    data = {
        "data__source": "jsonl",
        "data__train_path": str(tmp_path / "train.jsonl"),
        "data__tasks": (),
        "data__train_size": 0,
        "data__heldout_size": 4,
        "eval__prompts": 0,
    }
    whole, cut = (run(tmp_path / str(n), prompt__width_multiple=n, **data) for n in (0, 1))
    assert {width for width, _ in widths[:4]} == {40}
    # Up to what fsdp = 2 divides.
    assert all(width == longest + longest % 2 < 40 for width, longest in widths[4:]) and len(set(widths[4:])) > 1
    said = capsys.readouterr().out
    assert all(f"compiles the {what} for prompts of " in said for what in ("step", "sampler"))
    for a, b in zip(rows(whole, "metrics.jsonl"), rows(cut, "metrics.jsonl"), strict=True):
        for name in ("reward/mean", "loss/answer", "grad/norm", "chain/length"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)


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


def test_a_workdir_whose_start_was_refused_may_be_used_with_the_mended_config(tmp_path):
    with pytest.raises(UserError, match="max_prompt"):
        run(tmp_path / "run", prompt__max_prompt=5)
    run(tmp_path / "run", train__steps=1, eval__prompts=0)
    assert run_files.read_status(tmp_path / "run")["state"] == "done"
    with pytest.raises(UserError, match="another config"):
        run(tmp_path / "run", train__steps=1, eval__prompts=0, optim__lr=1e-4)


# -------------------------------------------------------------------------------- as a user runs it


def command(module: str, *arguments: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"rl_likelihood.{module}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        **kwargs,
    )


REFUSED = [
    (["--config=configs/tiny.py", "--config.reward.nam=prob"], ["nam", "name"]),
    (["--config=configs/tiny.py", "--config.train.steps=many"], ["train.steps", "many"]),
    (["--config=configs/tiny.py", "--config.learning_rate=1e-4"], ["no field learning_rate"]),
    (["--config=configs/tiny.py", "--config.sampler.top_p=0.9"], ["no field sampler.top_p", "config.eval.top_p"]),
    (["--config=configs/tiny.py", "--config.train.batch_size=8"], ["no field train.batch_size"]),
    (["--config="], ["--config is empty"]),
    (["--config=configs"], ["which is a folder"]),
    (["--config=configs/tiny.py", "--config.reward=prob"], ["reward is a group", "--config.reward.name=VALUE"]),
    (["--config", "configs/tinny.py"], ["configs/tinny.py does not exist", "did you mean tiny.py?"]),
    (["--config=configs/tiny.py:gruop=4"], ["'gruop' is unknown", "group"]),
    (["--config=configs/tinny.py"], ["configs/tinny.py does not exist", "did you mean tiny.py?"]),
    (["--config=configs/tiny.py", "--wrkdir=x"], ["wrkdir"]),
    (["--config=configs/tiny.py"], ["--workdir is missing"]),
    (["--config=configs/tiny.py", "--workdir=s3://b/run"], ["--workdir is s3://b/run", "gcsfuse"]),
    (["--config=configs/tiny.py", "--workdir=gs://bucket"], ["--workdir is 'gs://bucket'", "gs://bucket/run"]),
    ([], ["--config is missing"]),
]


def test_the_command_line_refuses_in_one_line():
    for done, (_, words) in zip(run_each("train", [arguments for arguments, _ in REFUSED]), REFUSED, strict=True):
        lines = [line for line in done.stderr.strip().splitlines() if line]
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (done.args, done.stderr)
        assert [word for word in words if word not in lines[0]] == [], (done.args, done.stderr)


def test_print_config_shows_who_set_what():
    process = command(
        "train", "--config=configs/tiny.py", "--config.preset=rlpr", "--config.filter.beta=0.9", "--print_config"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for line in (
        '* preset = "rlpr"',
        "* filter.beta = 0.9   (preset: 0.5)",
        'p reward.baseline = "frozen"',
        "p loss.clip_high = 0.27",
        "+ optim.lr = 0.002",
        "  optim.b1 = 0.9",
    ):
        assert line in out.splitlines(), line


def test_dry_run_reports_memory_and_writes_nothing(tmp_path):
    config = config_file(tmp_path, model__layers="unroll", loss__kl="k3", loss__kl_coef=0.1)
    process = command("train", f"--config={config}", "--dry_run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "GiB of state and batch" in out and "tokens   at most" in out
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"small.py"}


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    config = config_file(tmp_path, train__steps=60, train__checkpoint_every=50, eval__prompts=0)
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    process = command("train", *arguments)
    for line in process.stdout:
        if line.startswith("step  3/60"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "run the same command" in out
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "interrupted" and 3 <= status["step"] < 60
    assert checkpoint.latest_step(tmp_path / "run") == status["step"]
    process = command("train", *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 61))


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
