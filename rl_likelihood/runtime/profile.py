"""A trace of some steps, which TensorBoard, XProf and Perfetto open."""

from __future__ import annotations

from pathlib import Path

import jax

from rl_likelihood.runtime.console import say

FOLDER = "profile"  # of a workdir


class Profile:
    """Traces the steps first to last into the workdir; nothing for ()."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps, self.running = workdir / FOLDER, steps, False

    def before(self, step: int) -> None:
        """Before step number `step`."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running = True

    def after(self, step: int) -> None:
        """After it."""
        if self.running and step >= self.steps[1]:
            self.close()
            say(f"profile  steps {self.steps[0]} to {step} in {self.folder}: tensorboard, xprof or ui.perfetto.dev")

    def close(self) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
