"""A trace of some steps, which TensorBoard, XProf and Perfetto open, and one line on what is in it."""

from __future__ import annotations

import time
from pathlib import Path

import jax

from rl_likelihood.runtime import trace
from rl_likelihood.runtime.console import say

FOLDER = "profile"  # of a workdir


class Profile:
    """Traces the steps first to last into the workdir; nothing for ()."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps, self.running, self.began = workdir / FOLDER, steps, False, 0.0

    def before(self, step: int) -> None:
        """Before step number `step`."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running, self.began = True, time.perf_counter()

    def after(self, step: int) -> None:
        """After it."""
        if self.running and step >= self.steps[1]:
            wall = time.perf_counter() - self.began
            self.close()
            say(f"profile  steps {self.steps[0]} to {step} in {self.folder}: tensorboard, xprof or ui.perfetto.dev")
            say(f"profile  {trace.summary(self.folder, wall, step - self.steps[0] + 1)}")

    def close(self) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
