"""Compiles the learner's step once for each width of prompts and rows, or for each size of a packed batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax

from rl_likelihood.learner.adversarial import REPLAYED
from rl_likelihood.learner.packing import Whole, pack
from rl_likelihood.learner.step import group_spreads, make_step, models_of
from rl_likelihood.mesh import global_batch, ready, replicated
from rl_likelihood.model.architecture import Params
from rl_likelihood.rewards import group_filter
from rl_likelihood.rollouts.judges import AnyJudge, StepJudge
from rl_likelihood.rollouts.resample import Groups
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.shapes import Batch, TrainState
from rl_likelihood.task import Task, abstract_batch


def on_devices(task: Task, devices: Devices, batch: Batch) -> Batch:
    """Moves this process's batch to the devices, as the step takes it; with train.packing, adds its packing. A
    collective of all processes."""
    c, own = task.config, task.config.own_prompts(devices.prompts)

    def largest(numbers: list[int]) -> list[int]:
        return distributed.gather(np.asarray([numbers])).max(0).tolist()

    if c.train.packing:
        widest = abstract_batch(task.config, task.fmt, task.longest_chain).completion.shape[-1]
        whole = Whole(own, c.batch_prompts, widest, largest)
        with using(devices.learner):
            batch = pack(batch, task.config.step, task.model.attention != "splash", whole)
    return global_batch(devices.learner, batch, own, c.batch_prompts)


# The step's (state, metrics, values of each row), which may still be being computed; and when they are, on the host.
Started = tuple[TrainState, dict[str, Any], dict[str, Any]]
Values = dict[str, float]
Finished = tuple[TrainState, Values, dict[str, np.ndarray]]


class StepPrograms:
    """The compiled steps. `start` launches a step and returns at once; `finish` waits for its results. `judge`: the
    run's judge, which the step may have to compute."""

    def __init__(
        self, task: Task, devices: Devices, optimizer: optax.GradientTransformation, judge: AnyJudge | None = None
    ) -> None:
        self.task, self.devices, self.mesh, self.optimizer = task, devices, devices.learner, optimizer
        self.judge = judge if isinstance(judge, StepJudge) else None
        self._compiled: dict[tuple[int, ...], Any] = {}
        cfg = task.config.step

        def filter_drawn(state: TrainState, ref_params: Params | None, batch: Batch):
            std = group_spreads(state.params, models_of(state, ref_params, cfg), batch, task.model, cfg)
            return group_filter.filter_groups(std, cfg.filter, state.filter, state.step), std.mean()

        self._filter_drawn = jax.jit(filter_drawn, out_shardings=replicated(self.mesh))

    def groups(self, state: TrainState, ref_params: Params | None, batch: Batch) -> Groups:
        """The filter's result for the groups of this process's batch, by the learner's rewards. A collective."""
        with using(self.mesh):
            accepted, spread = self._filter_drawn(state, ref_params, on_devices(self.task, self.devices, batch))
        return Groups(np.asarray(accepted)[self.devices.prompts], float(spread))

    def start(self, state: TrainState, ref_params: Params | None, batch: Batch, spread: float | None = None) -> Started:
        """Compiles the step if the batch has a new size, and launches it. `state` is donated. `spread`: as in
        StepInput."""
        if spread is not None:
            cfg = self.task.config.filter
            state = state.replace(filter=group_filter.update(state.filter, state.step, spread, cfg))
        packing = batch.packing
        shape: tuple[int, ...] = (batch.prompt.shape[1], batch.completion.shape[2])
        if packing is not None:
            shape += (packing.prompts, packing.tokens, packing.rows, packing.width)
        if shape not in self._compiled:
            size = f"prompts of {shape[0]} and rows of {shape[1]} tokens"
            size += f", packed into {packing.tokens} for {packing.prompts} prompts" if packing else ""
            say(f"compiles the step for {size}, shape {len(self._compiled) + 1}")
            step = self.task.config.step
            judge = None if self.judge is None else self.judge.judge
            self._compiled[shape] = make_step(self.task.model, step, self.optimizer, self.mesh, batch, judge)
        judging = () if self.judge is None else (self.judge.of_step(ref_params),)
        with using(self.mesh):
            return self._compiled[shape](state, ref_params, batch, *judging)

    @staticmethod
    def finish(started: Started, beside: Callable[[], Values]) -> tuple[Finished, Values, float]:
        """Waits for a started step, while another thread computes `beside`: (the step's results, those of `beside`, the
        time at which the step ended). No program may be launched between `start` and this (`mesh.ready`)."""
        with ThreadPoolExecutor(1) as thread:
            computing = thread.submit(beside)
            state, out, per_row = ready(started)
            out, per_row = jax.device_get((out, per_row))  # all copies at once
            numbers = {k: float(v) for k, v in out.items()}
            if math.isnan(numbers.get(REPLAYED, 0.0)):
                del numbers[REPLAYED]  # there are no earlier answers yet
            finished = state, numbers, per_row
            end = time.perf_counter()
            return finished, computing.result(), end
