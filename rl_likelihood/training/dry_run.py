"""`train --dry_run`: load everything, compile the step, report; allocate and train nothing."""

from __future__ import annotations

import time

import jax

from rl_likelihood.config import Settings
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step
from rl_likelihood.runtime.console import say
from rl_likelihood.task import abstract_batch, load, make_places, using
from rl_likelihood.training.announcement import announce


def dry_run(settings: Settings) -> None:
    """Print what a run would be, and what its compiled step needs on each device."""
    places = make_places(settings.config)
    world, params = load(settings, places=places)
    c, mesh = settings.config, places.learner
    announce(world, None, None)
    optimizer = make_optimizer(settings.optimizer)
    batch = abstract_batch(world)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, settings.step), params)
    reference = jax.eval_shape(lambda p: init_reference(p, mesh, world.model, settings.step), params)
    step = make_step(world.model, settings.step, optimizer, mesh, batch)
    start = time.perf_counter()
    with using(mesh):
        lowered = step.lower(state, reference, batch)
    memory = lowered.compile().memory_analysis()
    say(
        f"step     compiled in {time.perf_counter() - start:.1f} s; on each device "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of state and batch, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of intermediate values"
    )
    p, g, t = batch.completion.shape
    say(f"tokens   at most {p * (c.prompt.max_prompt + g * t):,} a step; a prompt is computed once for its {g} chains")
