"""What ends a run from outside, as a user does it: `| head`, a closed terminal, a wrong coordinator, a full disk."""

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.model import architecture
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.lock import lock
from rl_likelihood.weights import files
from tests.runs import config_file
from tests.runtime.processes import free_port

ROOT = Path(__file__).parents[2]
ONE = {"mesh.fsdp": 1, "mesh.tensor": 1, "eval.prompts": 0}


def one_device() -> dict[str, str]:
    """The environment of a run on one CPU device."""
    flags = re.sub(r"(device_count=)\d+", r"\g<1>1", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def train(folder: Path, *flags: str, workdir: Path | None = None, **changes) -> subprocess.Popen:
    """A run of the two-layer model on one device."""
    config = config_file(folder, **{**ONE, **changes})
    words = ["-m", "rl_likelihood.train", f"--config={config}", f"--workdir={workdir or folder / 'run'}", *flags]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=one_device(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    path = workdir / run_files.METRICS
    while not (path.exists() and any(row["step"] >= step for row in run_files.read(path))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def status(workdir: Path) -> dict:
    """STATUS as the file has it."""
    return json.loads((workdir / "STATUS").read_text())


def test_a_reader_that_has_seen_enough_does_not_end_the_run(tmp_path):
    process = train(tmp_path)
    process.stdout.readline()  # as `| head -n 1`
    process.stdout.close()
    process.stderr.close()
    assert process.wait(300) == 0
    assert status(tmp_path / "run")["state"] == "done"
    assert len(run_files.read(tmp_path / "run" / run_files.METRICS)) == 4


def on_a_terminal(folder: Path, **changes) -> tuple[subprocess.Popen, int]:
    """`train` on a pseudo terminal, and the side of it that a terminal program reads."""
    config = config_file(folder, **{**ONE, **changes})
    words = ["-m", "rl_likelihood.train", f"--config={config}", f"--workdir={folder / 'run'}"]
    screen, stdout = os.openpty()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=one_device(), stdin=stdout, stdout=stdout, stderr=stdout
    )
    os.close(stdout)
    return process, screen


def test_on_a_terminal_a_run_shows_its_bar_and_its_lines(tmp_path):
    process, screen = on_a_terminal(tmp_path, **{"eval.prompts": 5, "train.steps": 3})
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    assert process.wait(300) == 0, shown.decode()
    assert all(words in shown.decode() for words in ("1 of 3 steps", "step 3/3", "5 questions")), shown.decode()


def test_a_terminal_that_is_gone_ends_no_run(tmp_path):
    process, screen = on_a_terminal(tmp_path, **{"train.steps": 30, "train.checkpoint_every": 30})
    metrics = tmp_path / "run" / run_files.METRICS
    while not metrics.exists():
        if select.select([screen], [], [], 0.1)[0]:
            os.read(screen, 65536)
        assert process.poll() is None
    os.close(screen)  # the kernel sends HUP
    assert process.wait(300) == 0
    assert status(tmp_path / "run")["state"] in ("done", "interrupted") and status(tmp_path / "run")["step"] > 0


def test_a_run_started_without_stdout_and_stderr_runs(tmp_path):
    config = config_file(tmp_path, **{**ONE, "train.steps": 1})
    words = f"-m rl_likelihood.train --config={config} --workdir={tmp_path / 'run'} <&- >&- 2>&-"
    done = subprocess.run(f"{sys.executable} {words}", shell=True, cwd=ROOT, env=one_device(), timeout=300)
    assert done.returncode == 0
    assert status(tmp_path / "run")["state"] == "done"


def test_a_closed_terminal_finishes_the_step_saves_and_ends_with_0(tmp_path):
    process = train(tmp_path, **{"train.steps": 5000, "train.checkpoint_every": 5000})
    wait_for_step(process, tmp_path / "run", 2)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # of the shell, after the kernel's
    assert process.wait(300) == 0
    step = status(tmp_path / "run")["step"]
    assert status(tmp_path / "run")["state"] == "interrupted" and 2 <= step < 5000
    assert checkpoint.latest_step(tmp_path / "run") == step


def test_a_scheduler_that_will_stop_the_run_lets_it_save(tmp_path, monkeypatch):
    monkeypatch.setenv("STOPPED_EXIT", "143")  # as tpu_setup/worker.sh does, whose caller must know that it is not done
    process = train(tmp_path, **{"train.steps": 5000, "train.checkpoint_every": 5000})
    wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)  # at the end of the time that the job had
    said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    step = status(tmp_path / "run")["step"]
    assert status(tmp_path / "run")["state"] == "interrupted" and 2 <= step < 5000
    assert checkpoint.latest_step(tmp_path / "run") == step


@pytest.mark.parametrize("number", [0, 1])
def test_a_wrong_coordinator_is_said_within_seconds_and_ends_with_1(number, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    process = train(
        tmp_path,
        f"--coordinator={address}",
        "--num_processes=2",
        f"--process_id={number}",
        "--coordinator_wait=5",
    )
    out, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    waiting, error = said.splitlines()
    assert waiting.startswith("waiting for ") and address in waiting
    assert error.startswith("error: process 1 ") and address in error and "5 s" in error
    assert not (tmp_path / "run").exists()


def model_with_a_tokenizer(folder: Path) -> Path:
    """A model's folder, whose chat template is longer than the limit below."""
    cfg, tokenizer = random_model("nano"), byte_tokenizer()
    tokenizer.chat_template += "{# a comment #}" * 2000
    files.save(folder, cfg, jax.tree.map(np.asarray, architecture.init(jax.random.key(0), cfg)), "float32", {})
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.parametrize("what", ["checkpoint", "tokenizer"])
def test_a_file_that_may_not_grow_ends_the_run_in_one_sentence_and_status_says_so(what, tmp_path):
    """As a quota. The limit is below the size of a checkpoint's parameters, and of a tokenizer's file."""
    changes = {}
    if what == "tokenizer":
        changes = {"model.preset": "", "model.path": str(model_with_a_tokenizer(tmp_path / "model"))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        process = train(tmp_path, **changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert status(tmp_path / "run")["state"] == "failed"
    assert f"{what}" in status(tmp_path / "run")["error"] and "cannot be written" in status(tmp_path / "run")["error"]
    assert [line for line in said.splitlines() if line.startswith("error: ")], said
    assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_on_a_full_disk_status_says_failed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        process = train(tmp_path, workdir=disk / "run", **{"train.steps": 400, "train.keep_checkpoints": 400})
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        with open(disk / "fill", "wb") as fill, pytest.raises(OSError):
            fill.write(b"0" * 400_000)
            fill.flush()
        assert status(disk / "run")["state"] == "failed" and "No space" in status(disk / "run")["error"]
        assert "Traceback" not in said
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_end_of_a_run_is_told_where_no_new_file_can_be_made(tmp_path):
    run_files.write_status(tmp_path, "running", 0, 9)
    (tmp_path / "STATUS.part").mkdir()  # in the way, as a full disk is
    run_files.write_status(tmp_path, "failed", 3, 9, "no space")
    assert status(tmp_path) == {"state": "failed", "step": 3, "steps": 9, "error": "no space"}


def test_a_status_that_a_killed_run_left_is_read_as_interrupted(tmp_path):
    with lock(tmp_path):
        run_files.write_status(tmp_path, "running", 2, 9)
        assert run_files.read_status(tmp_path)["state"] == "running"
    assert run_files.read_status(tmp_path)["state"] == "interrupted"
    run_files.fail_running("process 1 is gone")
    assert status(tmp_path) == {"state": "failed", "step": 2, "steps": 9, "error": "process 1 is gone"}


def test_a_sampled_chain_does_not_command_the_terminal(capsys):
    say("a\x1b[2J\tb\x07\x9b1m\r\nc é")
    assert capsys.readouterr().out == "a\ufffd[2J\tb\ufffd\ufffd1m\ufffd\nc é\n"
