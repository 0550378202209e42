"""The strongest one: a run killed again and again, at any moment, ends byte for byte as the run that nobody touched."""

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

from rl_likelihood.pod import checkpoint
from rl_likelihood.report import metrics as reports
from tests.runs import config_file

ROOT = Path(__file__).parents[2]
STEPS = 24
SETTINGS = {
    "train.steps": STEPS, "train.checkpoint_every": 2, "train.keep_checkpoints": 2, "train.keep_every": 10,
    "eval.prompts": 2, "eval.samples": 1, "report.sample_prompts": 2, "mesh.fsdp": 1, "mesh.tensor": 1,
}  # fmt: skip
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


def moment(workdir: Path, of: str, seconds: float = 120) -> None:
    """Returns when a run is sampling, in its step or saving, as far as that is seen from outside."""
    folder = workdir / "checkpoints"
    metrics = workdir / "metrics.jsonl"
    lines = lambda: len(reports.read(metrics)) if metrics.exists() else 0  # noqa: E731
    begun, end = lines(), time.monotonic() + seconds
    while time.monotonic() < end:
        if of == "saving" and any("tmp" in p.name for p in folder.glob("*")):
            return
        if of == "step" and lines() > begun:  # a step has just been written: the next is sampled or computed
            time.sleep(random.uniform(0, 0.3))
            return
        if of == "start" and (workdir / "STATUS").exists():
            time.sleep(random.uniform(0, 2))
            return
        time.sleep(0.002)
    raise AssertionError(f"no {of} in {seconds} s")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_unbroken_run_byte_for_byte(tmp_path):
    random.seed(0)
    config = config_file(tmp_path, **SETTINGS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(config, whole), cwd=ROOT, env=environment(), check=True, capture_output=True)
    steps = []
    for of in ("start", "step", "saving", "step", "saving", "step", "step"):
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
        [str(ROOT / "tpu_setup" / "babysit.sh"), *command(config, broken)], cwd=ROOT, text=True, capture_output=True,
        env={**environment(), "LOCAL": "1", "BACKOFF": "0"},
    )  # fmt: skip
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
