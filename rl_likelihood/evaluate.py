"""Evaluate: python -m rl_likelihood.evaluate --config=... [--workdir=DIR] [--step=N] [--out=DIR].

Prints a table on a terminal, elsewhere and with --json one JSON object, and appends that object to DIR/eval.jsonl
(evaluation/statistics.py says what is in it). The records of the questions are in DIR/evaluations. After Ctrl-C or a
kill the same command goes on from there. Without --workdir: the model that the config starts from, whose files --out
keeps.

`eval.samples` chains are sampled of each question. The papers' configs also take eval.mc_samples = 32 of the first
eval.mc_prompts questions: log_prob_mc32, pass@k, majority@k. A run may be evaluated with the config of another data
set, if tags and scoring are the same. Several processes share the questions: --coordinator and so on as in `train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from rl_likelihood.cli.command import define_processes, from_flags, run_main
from rl_likelihood.cli.summary import evaluation_text
from rl_likelihood.config import build, differences, flatten
from rl_likelihood.datasets.sources import DataConfig, resolve_prompt
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.runtime import checkpoint, distributed, run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.runtime.workdir import CONFIG, has_examples, pinned_date, read_config
from rl_likelihood.settings import Config
from rl_likelihood.shapes import UserError
from rl_likelihood.task import known_model, load, load_model, param_shardings, run_on

# What a checkpoint was trained with and an evaluation of it must share: how it is to answer, and what is scored.
# Its questions may be others, in their lengths and with their instruction.
SAME = (
    "prompt.use_system",
    "prompt.examples",
    "prompt.score_delims",
    "prompt.template",
    "prompt.examples_path",
    "prompt.think_open",
    "prompt.think_close",
    "prompt.answer_open",
    "prompt.answer_close",
)


def main() -> None:
    values, _ = from_flags()
    c = build(values)
    workdir, step, out = flags.FLAGS.workdir, flags.FLAGS.step, flags.FLAGS.out
    if not c.eval.prompts:
        raise UserError("eval.prompts is 0; set it to the number of held-out questions to use")
    if workdir is None and step is not None:
        raise UserError(f"--step={step} needs the --workdir of a run")
    if c.eval.by_initial and workdir is None:
        raise UserError("eval.by_initial compares a run with the model that it began with; give the run's --workdir")
    if workdir is not None:
        distributed.by_first(lambda: check_workdir(Path(workdir), c))
        prompt = dataclasses.replace(c.prompt, date=pinned_date(Path(workdir), c.prompt.date))
        c = dataclasses.replace(c, prompt=prompt)
    devices = make_devices(c)
    known = None if workdir is None else known_model(c, Path(workdir), *checkpoint.describe(workdir)[:3])
    # What an answer copies is looked up in the training texts.
    task, params = load(c, training=c.eval.texts != "none", mesh=devices.learner, known=known)
    initial = load_model(c, devices.learner)[1] if c.eval.by_initial else None
    if workdir is not None:
        at = functools.partial(param_shardings, devices.learner)
        model, params, step, _ = checkpoint.restore_params(workdir, step, at)
        task = dataclasses.replace(task, model=run_on(model, c, jax.default_backend()))
    folder = out or workdir
    with contextlib.ExitStack() as stack:
        written = folder and stack.enter_context(distributed.folder_of_first(Path(folder)))
        try:
            begun = Evaluation(task, params, task.heldout, devices, step or 0, written or None)
            of = dataclasses.replace(begun, say=tell, stream=sys.stderr, initial=initial)
            numbers = evaluate(of)
        except KeyboardInterrupt:
            further = "the same command goes on from here" if folder else "nothing is kept without --out=DIR"
            tell(f"stopped; {further}")
            sys.exit(130)
    if not distributed.first():
        return
    row: dict[str, Any] = {"step": step or 0, "data": asked(c.data), **numbers}
    if folder is not None:
        run_files.append(Path(folder) / run_files.EVAL, row)
    print(json.dumps(row) if flags.FLAGS.json or not sys.stdout.isatty() else evaluation_text(row))


def asked(data: DataConfig) -> str:
    """Where the questions come from: one run may be evaluated on several sets."""
    if data.source == "reasoning_gym":
        return ", ".join(data.tasks)
    return (data.heldout_path or data.train_path) + (f", {data.heldout_split}" if data.heldout_split else "")


def tell(text: str) -> None:
    """Progress, where it does not disturb the one JSON object; by the first process."""
    if distributed.first():
        print(text, file=sys.stderr, flush=True)


def check_workdir(workdir: Path, c: Config) -> None:
    """Refuse a folder without checkpoints, or one whose run asked its questions in another way."""
    config = flatten(c)
    if checkpoint.latest_step(workdir) is None:
        raise UserError(f"{workdir} holds no checkpoint; leave --workdir out to evaluate the untouched model")
    old = read_config(workdir) if (workdir / CONFIG).exists() else config
    names = [k for k in differences(old, config) if k in SAME]
    if "prompt.examples_path" in names:  # the file may have moved
        shown = dataclasses.replace(c, prompt=resolve_prompt(c.prompt, c.data, c.worked_examples))
        names = [k for k in names if k != "prompt.examples_path" or not has_examples(workdir, shown)]
    if names:
        first = names[0]
        raise UserError(
            f"{workdir} was trained with {first} = {old.get(first)!r}, this config has {config.get(first)!r}; "
            "evaluate with the config of the run"
        )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run; without it, the model that the config starts from")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    flags.DEFINE_bool("json", False, "one JSON object on a terminal too; without a terminal it is always that")
    flags.DEFINE_string("out", None, "folder for eval.jsonl and the records; the workdir by default")
    define_processes()
    run_main(main)
