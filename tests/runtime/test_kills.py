"""The strongest one: a run killed again and again, at any moment, ends byte for byte as the run that nobody touched."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood.runtime import checkpoint, run_files
from tests.runs import config_file

ROOT = Path(__file__).parents[2]
STEPS = 24
SETTINGS = {
    "train.steps": STEPS,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
    "train.keep_every": 10,
    "eval.prompts": 2,
    "eval.samples": 1,
    "report.sample_prompts": 2,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
# What a clock decides.
TIMED = re.compile(r'"(time/\w+|tokens_per_second|seconds|queue/depth)": [-\d.e]+(, )?')


def command(config: Path, workdir: Path) -> list[str]:
    return [sys.executable, "-m", "rl_likelihood.train", f"--config={config}", f"--workdir={workdir}"]


def environment() -> dict[str, str]:
    flags = re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def text(workdir: Path, name: str) -> str:
    """A file without times; the records of an evaluation are named in it, not numbered by a clock."""
    return TIMED.sub("", (workdir / name).read_text())


def moment(workdir: Path, of: str, seconds: float = 240) -> None:
    """Returns when a run that has just been started is setting out, sampling, in its step or saving, by its files.

    A row of metrics.jsonl ends a step and says how long its sampling and its update took: the next ones begin now. Not
    of the first row, which compiles, nor of one that a checkpoint follows.
    """
    folder = workdir / "checkpoints"
    metrics = workdir / "metrics.jsonl"
    rows = lambda: run_files.read(metrics) if metrics.exists() else []
    end, saved, cut = time.monotonic() + seconds, checkpoint.latest_step(workdir) or 0, False
    begun = time.time()

    def half_written() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it may be whole by now
            return any("tmp" in p.name and p.stat().st_mtime >= begun for p in folder.glob("*"))
        return False

    while time.monotonic() < end:
        if of == "saving" and half_written():
            return
        if of in ("sampling", "step"):
            found = rows()
            cut = cut or len(found) <= saved  # rows beyond the checkpoint are of the run before
            last = found[-1] if found else {"step": 0}
            if cut and last["step"] > saved + 1 and last["step"] % SETTINGS["train.checkpoint_every"]:
                sample, learn = last["time/sample"], last["time/learn"]
                time.sleep(sample * random.random() if of == "sampling" else sample + learn * random.random())
                return
        if of == "start" and (workdir / "STATUS").exists():
            time.sleep(random.uniform(0, 2))
            return
        time.sleep(0.002)
    raise AssertionError(f"no {of} in {seconds} s")


@pytest.mark.slow
def test_a_run_killed_in_sampling_in_the_step_and_in_saving_is_the_unbroken_run_byte_for_byte(tmp_path):
    random.seed(0)
    config = config_file(tmp_path, **SETTINGS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(config, whole), cwd=ROOT, env=environment(), check=True, capture_output=True)
    steps = []
    for of in ("start", "sampling", "saving", "step", "saving", "sampling", "step"):
        process = subprocess.Popen(
            command(config, broken), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        moment(broken, of)
        assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()
        steps.append(checkpoint.latest_step(broken) or 0)
    assert steps == sorted(steps) and 0 < steps[-1] < STEPS, steps
    babysit = subprocess.run(
        [str(ROOT / "tpu_setup" / "babysit.sh"), *command(config, broken)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**environment(), "LOCAL": "1", "BACKOFF": "0"},
    )
    assert babysit.returncode == 0, babysit.stderr[-2000:]
    assert "taken over from process" in babysit.stdout
    for name in ("metrics.jsonl", "samples.jsonl", "eval.jsonl"):
        assert text(broken, name) == text(whole, name), name
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    for a, b in zip(*(jax.tree.leaves(checkpoint.restore_params(w)[1]) for w in (whole, broken)), strict=True):
        np.testing.assert_array_equal(a, b)
    names = [sorted(p.name for p in (w / "checkpoints").iterdir()) for w in (whole, broken)]
    assert names[0] == names[1] == ["10", "20", "22", "24"]
