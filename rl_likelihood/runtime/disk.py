"""The disk space of a run, and the part of it that a finished run no longer needs."""

import functools
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rl_likelihood.errors import UserError
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_state
from rl_likelihood.model.architecture import ModelConfig, abstract, param_specs
from rl_likelihood.model.lora import trained_specs
from rl_likelihood.runtime.checkpoint import DROPPED, FOLDER, REST, latest_step
from rl_likelihood.settings import Config, TrainSettings


class Disk(NamedTuple):
    """Bytes of a run's checkpoints before compression: the maximum during training, and after the end."""

    training: int
    finished: int


def disk_of_run(c: Config, model: ModelConfig) -> Disk:
    """The disk space of a run's checkpoints. Metrics, samples and evaluations are not included."""
    params, whole = abstract(trained_specs(model, c.lora)), abstract(param_specs(model))
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(c.optimizer), c.step), params)
    at_once = functools.partial(checkpoints_at_once, c.train, start=bool(c.warm_start.steps))
    reference = tree_bytes(whole) if c.step.with_frozen else 0  # the model of step 0
    if c.lora.rank and c.lora.stored_dtype == "bfloat16":
        reference //= 2
    training = at_once() * tree_bytes(state)
    finished = at_once(writing=False) * tree_bytes(state if c.train.keep_optimizer else params)
    return Disk(training + reference, finished + reference)


def checkpoints_at_once(t: TrainSettings, start: bool = False, writing: bool = True) -> int:
    """The maximum number of a run's checkpoints on disk. `start`: step 0 is saved too. `writing`: includes the one
    being written, while the old ones still exist."""
    steps, every, best = t.steps, t.checkpoint_every, bool(t.best)
    saved = steps // every + (steps % every > 0) + start
    marked = 0
    if t.keep_every:
        marked = steps // math.lcm(every, t.keep_every) + (steps % every > 0 and steps % t.keep_every == 0) + start
    return min(saved + best, marked + t.keep_checkpoints + best + writing)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) in a tree."""
    return sum(int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def drop_optimizer(workdir: Path) -> int:
    """Deletes everything but the parameters from the checkpoints of a finished run. Returns the freed bytes.

    The run can still be evaluated and exported. It cannot be resumed; `checkpoint.restore` refuses it.
    """
    if latest_step(workdir) is None:
        return 0
    freed = 0
    steps = [step for step in (workdir / FOLDER).iterdir() if step.name.isdigit() and (step / REST).is_dir()]
    for step in sorted(steps, key=lambda step: int(step.name)):  # the newest last: until then the run can resume
        size = sum(file.stat().st_size for file in (step / REST).rglob("*") if file.is_file())
        try:
            (step / DROPPED).touch()  # first, so that a half-deleted checkpoint does not count as damaged
            shutil.rmtree(step / REST)
        except OSError as e:
            raise UserError(f"{step / REST}: cannot be deleted ({e.strerror or e})") from e
        freed += size
    return freed


def lost_optimizer(workdir: Path, step: int) -> bool:
    """Whether `drop_optimizer` has deleted the optimizer state of the checkpoint of `step`."""
    return (workdir / FOLDER / str(step) / DROPPED).exists()
