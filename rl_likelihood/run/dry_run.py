"""`train --dry_run`: load everything, compile the step, report; allocate and train nothing."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from rl_likelihood import config as configs
from rl_likelihood.config import Settings
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_state, make_step
from rl_likelihood.rewards.mixture import OUTSIDE
from rl_likelihood.run.console import announce, say
from rl_likelihood.run.world import World, load, make_places, using
from rl_likelihood.shapes import Bare, Batch


def abstract_batch(world: World) -> Batch:
    """The largest batch of the config, as shapes."""
    c = world.config
    step = world.settings.step
    p, g = c.train.prompts_per_step, c.reward.vote_train or c.sampler.group_size
    tags = max(len(world.fmt.close_think_ids), len(world.fmt.open_answer_ids))
    t = c.sampler.max_chain + configs.sampled_answer(c) + tags + c.prompt.max_answer
    w = len(world.fmt.close_think_ids) + c.prompt.max_answer
    if c.reward.name == "sft":
        g, t = 1, tags + c.prompt.max_answer
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)  # noqa: E731
    i, f, b = jnp.int32, jnp.float32, jnp.bool_
    return Batch(
        prompt=shape(i, p, c.prompt.max_prompt),
        prompt_length=shape(i, p),
        completion=shape(i, p, g, t),
        segment=shape(i, p, g, t),
        scored=shape(b, p, g, t),
        sampler_logp=shape(f, p, g, t),
        outside={t.name: shape(f, p, g) for t in step.reward.terms if t.name in OUTSIDE},
        truncated=shape(b, p, g),
        keep=shape(b, p, g),
        baseline=shape(f, p) if step.baseline == "frozen" else None,
        bare=Bare(shape(i, p, 1, w), shape(i, p, 1, w), shape(b, p, 1, w)) if configs.scores_bare(c) else None,
    )


def dry_run(settings: Settings) -> None:
    """Print what a run would be, and what its compiled step needs on each device."""
    places = make_places(settings.config)
    world, params = load(settings, places=places)
    c, mesh = settings.config, places.learner
    announce(world, None, None)
    optimizer = make_optimizer(settings.optimizer)
    batch = abstract_batch(world)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, settings.step), params)
    step = make_step(world.model, settings.step, optimizer, mesh, batch)
    start = time.perf_counter()
    with using(mesh):
        lowered = step.lower(state, state.params if settings.step.with_reference else None, batch)
    memory = lowered.compile().memory_analysis()
    say(
        f"step     compiled in {time.perf_counter() - start:.1f} s; on each device "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of state and batch, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of intermediate values"
    )
    p, g, t = batch.completion.shape
    say(f"tokens   at most {p * (c.prompt.max_prompt + g * t):,} a step; a prompt is computed once for its {g} chains")
