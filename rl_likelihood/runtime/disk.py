"""The disk that a run takes, and what of it a finished run can do without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_likelihood.runtime.checkpoint import DROPPED, FOLDER, REST, CheckpointConfig, due, latest_step
from rl_likelihood.shapes import TrainState, UserError


def disk_bytes(cfg: CheckpointConfig, steps: int, state: TrainState, reference: bool = False) -> int:
    """Bytes that the checkpoints of a run of `steps` updates take at most, before compression.

    `state` has arrays or their shapes. A new checkpoint is whole before an old one goes. `reference`: the model of
    step 0 is kept too. Metrics, samples and evaluations come on top.
    """
    saved = [step for step in range(1, steps + 1) if due(cfg, step, steps)]
    marked = [step for step in saved if cfg.keep_every and step % cfg.keep_every == 0]
    count = min(len(saved), len(marked) + cfg.keep + 1)
    return count * tree_bytes(state) + reference * tree_bytes(state.params)


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
    for step in sorted((workdir / FOLDER).iterdir()):
        if not step.name.isdigit() or not (step / REST).is_dir():
            continue
        size = sum(file.stat().st_size for file in (step / REST).rglob("*") if file.is_file())
        try:
            (step / DROPPED).touch()  # first: what is half deleted is not taken for damaged
            shutil.rmtree(step / REST)
        except OSError as e:
            raise UserError(f"{step / REST}: cannot be deleted ({e.strerror or e})") from e
        freed += size
    return freed
