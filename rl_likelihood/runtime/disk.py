"""The disk that a run takes, and what of it a finished run can do without."""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood.learner.adversarial import begin
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.model.decoder import ModelConfig, is_spec, param_specs
from rl_likelihood.model.lora import trained_specs
from rl_likelihood.runtime.checkpoint import DROPPED, FOLDER, REST, CheckpointConfig, latest_step
from rl_likelihood.settings import Config, TrainSettings
from rl_likelihood.shapes import UserError


class Disk(NamedTuple):
    """Bytes of a run's checkpoints before compression: at most while it trains, and once it is finished."""

    training: int
    finished: int


def disk_of_run(c: Config, model: ModelConfig) -> Disk:
    """What the checkpoints of a run take. Metrics, samples and evaluations come on top."""
    shape = lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32)
    params = jax.tree.map(shape, trained_specs(model, c.lora), is_leaf=is_spec)
    whole = jax.tree.map(shape, param_specs(model), is_leaf=is_spec)
    state = jax.eval_shape(lambda p: begin(p, make_optimizer(c.optimizer), c.step, model.width), params)
    cfg, steps, start = checkpoint_config(c.train), c.train.steps, bool(c.warm_start.steps)
    reference = tree_bytes(whole) if c.step.with_frozen else 0  # the model of step 0
    if c.lora.rank and c.lora.stored_dtype == "bfloat16":
        reference //= 2
    training = checkpoints_at_once(cfg, steps, start) * tree_bytes(state)
    finished = checkpoints_at_once(cfg, steps, start, writing=False) * tree_bytes(
        state if c.train.keep_optimizer else params
    )
    return Disk(training + reference, finished + reference)


def checkpoint_config(t: TrainSettings) -> CheckpointConfig:
    """When a run saves, and what it keeps."""
    return CheckpointConfig(t.checkpoint_every, t.keep_checkpoints, t.keep_every, bool(t.best))


def checkpoints_at_once(cfg: CheckpointConfig, steps: int, start: bool = False, writing: bool = True) -> int:
    """How many checkpoints of a run of `steps` updates there are at most. `start`: it saves step 0 too.

    While a new one is being written, the old ones are still there.
    """
    saved = steps // cfg.every + (steps % cfg.every > 0) + start
    marked = 0
    if cfg.keep_every:
        both = math.lcm(cfg.every, cfg.keep_every)
        marked = steps // both + (steps % cfg.every > 0 and steps % cfg.keep_every == 0) + start
    return min(saved + cfg.best, marked + cfg.keep + cfg.best + writing)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def drop_optimizer(workdir: Path) -> int:
    """Deletes all but the parameters from the checkpoints of a finished run; the bytes that were freed.

    The run can be evaluated and exported as before, and cannot go on: `checkpoint.restore` says so.
    """
    if latest_step(workdir) is None:
        return 0
    freed = 0
    steps = [step for step in (workdir / FOLDER).iterdir() if step.name.isdigit() and (step / REST).is_dir()]
    for step in sorted(steps, key=lambda step: int(step.name)):  # the newest last: until then the run can go on
        size = sum(file.stat().st_size for file in (step / REST).rglob("*") if file.is_file())
        try:
            (step / DROPPED).touch()  # first: what is half deleted is not taken for damaged
            shutil.rmtree(step / REST)
        except OSError as e:
            raise UserError(f"{step / REST}: cannot be deleted ({e.strerror or e})") from e
        freed += size
    return freed


def lost_optimizer(workdir: Path, step: int) -> bool:
    """Whether `drop_optimizer` has been at the checkpoint of `step`."""
    return (workdir / FOLDER / str(step) / DROPPED).exists()
