"""Does it learn? configs/tiny.py to its end: a minute or two, so `make test` leaves it out and `make learn` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_likelihood.runtime import run_files


@pytest.mark.slow
def test_rl_raises_the_success_on_held_out_questions(tmp_path):
    # In a process of its own: the tests' compiler flags make compiling fast and running slow.
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.startswith("JAX_")}
    command = ["-m", "rl_likelihood.train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}"]
    subprocess.run([sys.executable, *command], check=True, cwd=Path(__file__).parents[1], env=plain)
    before, after = (
        next(row for row in run_files.read(tmp_path / "run" / "eval.jsonl") if row["stage"].startswith(stage))
        for stage in ("after warm start", "after 40 steps")
    )
    # 128 questions that were never trained on: five standard errors.
    for name in ("greedy_success", "sampled_success"):
        assert after[name] > before[name] + 5 * before[f"{name}_se"], name
    assert after["log_prob_mc1"] > before["log_prob_mc1"]
