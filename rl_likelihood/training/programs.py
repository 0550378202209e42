"""Compiles the learner's step once for each width of prompts and rows, or for each size of a packed batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rl_likelihood.learner.adversarial import make_run_step
from rl_likelihood.learner.packing import Whole, pack
from rl_likelihood.mesh import global_batch, ready
from rl_likelihood.model.decoder import Params
from rl_likelihood.rollouts.asked_judge import AnyJudge, StepJudge
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.shapes import Batch, TrainState
from rl_likelihood.task import Task, abstract_batch


def on_devices(task: Task, devices: Devices, batch: Batch) -> Batch:
    """Moves this process's batch to the devices, as the step takes it; with train.packing, adds its packing. A
    collective of all processes."""
    c = task.config.train

    def largest(numbers: list[int]) -> list[int]:
        return distributed.gather(np.asarray([numbers])).max(0).tolist()

    if c.packing:
        widest = abstract_batch(task.config, task.fmt).completion.shape[-1]
        whole = Whole(devices.prompts, c.prompts_per_step, widest, largest)
        with using(devices.learner):
            batch = pack(batch, task.config.step, task.model.attention != "splash", whole)
    return global_batch(devices.learner, batch, devices.prompts, c.prompts_per_step)


# The step's (state, metrics, values of each row), which may still be being computed.
Started = tuple[TrainState, dict[str, Any], dict[str, Any]]


class StepPrograms:
    """The compiled steps. `start` launches a step and returns at once; `finish` waits for its results. `judge`: the
    run's judge, which the step may have to compute."""

    def __init__(
        self, task: Task, mesh: Mesh, optimizer: optax.GradientTransformation, judge: AnyJudge | None = None
    ) -> None:
        self.task, self.mesh, self.optimizer = task, mesh, optimizer
        self.judge = judge if isinstance(judge, StepJudge) else None
        self._compiled: dict[tuple[int, ...], Any] = {}

    def start(self, state: TrainState, ref_params: Params | None, batch: Batch) -> Started:
        """Compiles the step if the batch has a new size, and launches it. `state` is donated."""
        packing = batch.packing
        shape: tuple[int, ...] = (batch.prompt.shape[1], batch.completion.shape[2])
        if packing is not None:
            shape += (packing.prompts, packing.tokens, packing.rows, packing.width)
        if shape not in self._compiled:
            if self._compiled:  # the first compilation is part of the first step's time
                number = len(self._compiled) + 1
                size = f"prompts of {shape[0]} and rows of {shape[1]} tokens"
                size += f", packed into {packing.tokens} for {packing.prompts} prompts" if packing else ""
                say(f"compiles the step for {size}, shape {number}")
            step = self.task.config.step
            judge = None if self.judge is None else self.judge.judge
            self._compiled[shape] = make_run_step(self.task.model, step, self.optimizer, self.mesh, batch, judge)
        judging = () if self.judge is None else (self.judge.of_step(ref_params),)
        with using(self.mesh):
            return self._compiled[shape](state, ref_params, batch, *judging)

    def finish(self, started: Started) -> tuple[TrainState, dict[str, float], dict[str, np.ndarray]]:
        """Waits for a started step: (state, metrics as floats, values of each row as numpy). No other program may be
        launched between `start` and this (`mesh.ready`)."""
        state, out, per_row = ready(started)
        return state, {k: float(v) for k, v in out.items()}, jax.tree.map(np.asarray, per_row)
