"""Traces some steps for TensorBoard, XProf and Perfetto, and prints one line about the trace."""

from __future__ import annotations

import time
from pathlib import Path

import jax

from rl_likelihood.runtime import trace
from rl_likelihood.runtime.console import say

FOLDER = "profile"  # in a workdir


class Profile:
    """Traces steps into the workdir. `steps`: (first, last), or () for no trace."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps, self.running, self.began = workdir / FOLDER, steps, False, 0.0

    def before(self, step: int) -> None:
        """To be called before step number `step`."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running, self.began = True, time.perf_counter()

    def after(self, step: int) -> None:
        """To be called after step number `step`."""
        if self.running and step >= self.steps[1]:
            wall = time.perf_counter() - self.began
            self.close()
            say(f"profile  steps {self.steps[0]} to {step} in {self.folder}: tensorboard, xprof or ui.perfetto.dev")
            say(f"profile  {trace.summary(self.folder, wall, step - self.steps[0] + 1)}")

    def close(self) -> None:
        """Stops a running trace."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
