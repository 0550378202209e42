"""`train --dry_run`: loads everything, compiles the step and reports its memory, but trains nothing."""

from __future__ import annotations

import time
from pathlib import Path

import jax

from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step
from rl_likelihood.rollouts.judges import StepJudge, judge_of, refuse_judge
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import make_devices, using
from rl_likelihood.settings import Config
from rl_likelihood.task import load, step_batch, trained
from rl_likelihood.training.announcement import announce


def dry_run(c: Config) -> None:
    """Prints the summary of the run, and the memory that its compiled step needs on each device."""
    if c.reward.judged:
        refuse_judge(c, Path())
    devices = make_devices(c)
    mesh = devices.learner
    task, params = load(c, mesh=mesh)
    announce(task, devices, None, None)
    optimizer = make_optimizer(c.optimizer)
    batch = step_batch(c, task.fmt, mesh, task.longest_chain).replace(common=len(task.common))
    state = jax.eval_shape(lambda p: init_state(trained(task, p), optimizer, c.step), params)
    reference = jax.eval_shape(lambda p: init_reference(p, mesh, task.model, c.step), params)
    judge = judge_of(task, devices, Path()) if c.judge_in_step else None
    in_step = (judge.judge, (judge.of_step(reference),)) if isinstance(judge, StepJudge) else (None, ())
    step = make_step(task.model, c.step, optimizer, mesh, batch, in_step[0])
    start = time.perf_counter()
    with using(mesh):
        lowered = step.lower(state, reference, batch, *in_step[1])
    memory = lowered.compile().memory_analysis()
    say(
        f"step     compiled in {time.perf_counter() - start:.1f} s; on each device "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of state and batch, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of intermediate values"
    )
    p, g, t = batch.completion.shape
    say(f"tokens   at most {p * (c.prompt.max_prompt + g * t):,} a step; a prompt is computed once for its {g} chains")
