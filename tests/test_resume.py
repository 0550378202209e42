"""A run that goes on: what it keeps beside its weights, and what may not change meanwhile."""

import json
import shutil

import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.signals import Stopped
from tests.runs import rows, run, small_config


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


def test_a_run_that_lost_its_config_is_resumed_only_when_told_to(tmp_path):
    small = {"eval__prompts": 0, "train__steps": 1}
    config = run(tmp_path / "run", **small) / "config.json"
    kept = config.read_bytes()
    config.unlink()
    with pytest.raises(UserError, match=r"run holds a run but no config.json.*put the file back.*--workdir.*--force"):
        run(tmp_path / "run", **small | {"model__preset": "tiny", "train__steps": 2})
    assert not config.exists()
    train.run(build(small_config(**small)), tmp_path / "run", force=True)
    assert config.read_bytes() == kept
    (tmp_path / "new").mkdir()
    run_files.append(tmp_path / "new" / run_files.EVAL, {"step": 0})  # as evaluate --out=new does
    run(tmp_path / "new", **small)


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
    (tmp_path / "other.txt").write_text("Divide.")
    (tmp_path / "run" / "STATUS").write_text('{"state": "done", "host": "a"}')  # of another version
    with pytest.raises(UserError, match="other prompts"):
        run(tmp_path / "run", **own | {"prompt__instruction_path": str(tmp_path / "other.txt")})
    (tmp_path / "run" / "STATUS").unlink()
    with pytest.raises(UserError, match="other prompts"):
        run(tmp_path / "run", **own | {"train__steps": 2, "prompt__instruction_path": str(tmp_path / "other.txt")})
    status = run_files.read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["steps"]) == ("failed", 1, 2) and "other prompts" in status["error"]
    run(tmp_path / "run", **own | {"train__steps": 2})
    assert run_files.read_status(tmp_path / "run")["step"] == 2
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


UNROLLED = {"model__layers": "unroll", "train__micro_batch_prompts": 1, "mesh__fsdp": 1, "mesh__tensor": 8}


MOVING = {"loss__reference_every": 2, "loss__reference_decay": 0.5}
HOW = {
    "scanned": {},
    "unrolled": UNROLLED,
    "moving": MOVING,
    "moving adapters": MOVING | {"lora__rank": 2, "lora__targets": ("q", "up"), "optim__lr": 1e-2},
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_run_with_state_of_its_own_resumes_bit_for_bit(how, tmp_path):
    """RLPR's threshold and base scores, NOVER's proxy, a reference model that may move."""
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


def test_a_workdir_whose_start_was_refused_may_be_used_with_the_mended_config(tmp_path):
    with pytest.raises(UserError, match="max_prompt"):
        run(tmp_path / "run", prompt__max_prompt=5)
    run(tmp_path / "run", train__steps=1, eval__prompts=0)
    assert run_files.read_status(tmp_path / "run")["state"] == "done"
    with pytest.raises(UserError, match="another config"):
        run(tmp_path / "run", train__steps=1, eval__prompts=0, optim__lr=1e-4)
