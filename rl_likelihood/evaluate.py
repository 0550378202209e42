"""Evaluate: python -m rl_likelihood.evaluate --config=... --workdir=DIR [--step=N].

Prints one JSON object (run/evaluation.py says what is in it) and appends it to DIR/eval.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from rl_likelihood import config as configs
from rl_likelihood.pod import checkpoint
from rl_likelihood.report import metrics
from rl_likelihood.run.evaluation import evaluate
from rl_likelihood.run.world import load, model_settings
from rl_likelihood.shapes import UserError


def main() -> None:
    c, _ = configs.from_flags()
    settings = configs.build(c)
    workdir, step = flags.FLAGS.workdir, flags.FLAGS.step
    world, params = load(settings)
    if workdir is not None and checkpoint.latest_step(workdir) is not None:
        model, params, step, _ = checkpoint.restore_params(workdir, step)
        world = dataclasses.replace(world, model=dataclasses.replace(model, **model_settings(c)))
    elif step is not None:
        raise UserError(f"--step={step}, but {workdir} holds no checkpoint; give the --workdir of a run that saved one")
    row: dict[str, Any] = {"step": step or 0, **evaluate(world, jax.tree.map(jnp.asarray, params), world.heldout)}
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        metrics.append(Path(workdir) / metrics.EVAL, row)
    print(json.dumps(row))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run; without a checkpoint in it the untouched model is evaluated")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    configs.run_main(main)
