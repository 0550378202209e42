"""The learner's step, compiled once for each width of prompts and rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rl_likelihood.learner.adversarial import make_run_step
from rl_likelihood.mesh import ready
from rl_likelihood.model.decoder import Params
from rl_likelihood.rollouts.asked_judge import AnyJudge, StepJudge
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import Batch, TrainState
from rl_likelihood.task import Task


class StepPrograms:
    """step(state, ref_params, batch) -> (state, metrics as floats, per-row values as numpy). `judge`: the
    run's, which the step may have to compute."""

    def __init__(
        self, task: Task, mesh: Mesh, optimizer: optax.GradientTransformation, judge: AnyJudge | None = None
    ) -> None:
        self.task, self.mesh, self.optimizer = task, mesh, optimizer
        self.judge = judge if isinstance(judge, StepJudge) else None
        self._compiled: dict[tuple[int, int], Any] = {}

    def __call__(
        self, state: TrainState, ref_params: Params | None, batch: Batch
    ) -> tuple[TrainState, dict[str, float], dict[str, np.ndarray]]:
        shape = batch.prompt.shape[1], batch.completion.shape[2]
        if shape not in self._compiled:
            if self._compiled:  # the first step's line shows the time of the first one
                number = len(self._compiled) + 1
                say(f"compiles the step for prompts of {shape[0]} and rows of {shape[1]} tokens, shape {number}")
            step = self.task.config.step
            judge = None if self.judge is None else self.judge.judge
            self._compiled[shape] = make_run_step(self.task.model, step, self.optimizer, self.mesh, batch, judge)
        judging = () if self.judge is None else (self.judge.of_step(ref_params),)
        with using(self.mesh):
            state, out, per_row = ready(self._compiled[shape](state, ref_params, batch, *judging))
        return state, {k: float(v) for k, v in out.items()}, jax.tree.map(np.asarray, per_row)
