"""Evaluate: python -m rl_likelihood.evaluate --config=... [--workdir=DIR] [--step=N] [--out=DIR].

Prints a table on a terminal; elsewhere, or with --json, one JSON object. Appends that object to DIR/eval.jsonl
(docs/metrics.md defines its numbers). DIR/evaluations has a record of each question. After Ctrl-C or a kill,
the same command resumes. Without --workdir, the model that the config starts from is evaluated; --out=DIR then names
the folder for the files.

For each question, `eval.samples` chains are sampled. configs/math.py also samples eval.mc_samples = 32 chains for
the first eval.mc_prompts questions: log_prob_mc32, pass@k, majority@k. A run may be evaluated with the config of
another data set, if tags and scoring are the same. Several processes share the questions: --coordinator etc. as in
`train`.
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
from jax.sharding import Mesh

from rl_likelihood import fields
from rl_likelihood.cli.command import define_processes, from_flags, run_main
from rl_likelihood.cli.summary import evaluation_text
from rl_likelihood.config import build, differences, flatten
from rl_likelihood.datasets.sources import DataConfig, resolve_prompt
from rl_likelihood.errors import INTERRUPTED, UserError
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.model.architecture import Params
from rl_likelihood.model.lora import LoraConfig, merged
from rl_likelihood.progress import tell
from rl_likelihood.run_model import param_shardings, run_on
from rl_likelihood.runtime import bucket, checkpoint, checksums, distributed, run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.runtime.workdir import (
    CONFIG,
    digest_of_beginning,
    has_examples,
    keep_date,
    pinned_date,
    read_config,
)
from rl_likelihood.settings import Config
from rl_likelihood.task import checkpoint_model, load, load_model

# Fields that must be equal in training and evaluation: the format of answers, and the scored tokens. The questions,
# their maximum lengths and their instruction may differ.
_OF_PROMPT = "use_system examples score_delims template examples_path think_open think_close answer_open answer_close"
SAME = [f"prompt.{name}" for name in _OF_PROMPT.split()]


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
    if workdir is None:
        run(c, None, None, out and Path(out))
        return
    if bucket.is_address(workdir) and out is None:
        raise UserError(f"--workdir is {workdir}, where only training writes; give a folder for the results: --out=DIR")
    with bucket.copied(workdir, step) as copy:
        run(c, copy, step, Path(out or copy))


def run(c: Config, workdir: Path | None, step: int | None, folder: Path | None) -> None:
    """Evaluates a checkpoint of `workdir`, or with None the model that the config starts from. The files are written to
    `folder`."""
    saved = None
    if workdir is not None:
        distributed.by_first(lambda: check_workdir(workdir, c))
        saved = checkpoint.describe(workdir)
    if dated := workdir or folder:
        given, meta = c.prompt.date, saved and saved[-1]
        date = distributed.by_first(lambda: pinned_date(dated, given, meta, tell))
        c = dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date))
    devices = make_devices(c)
    saved_model = checkpoint_model(c, workdir, *saved[:3]) if workdir and saved else None
    # The metric `copied` compares answers with the training texts.
    read = dataclasses.replace(c, rubric=dataclasses.replace(c.rubric, path=""))  # only training reads rubrics
    task, params = load(read, training=c.eval.texts != "none", mesh=devices.learner, saved_model=saved_model)
    initial = initial_model(c, workdir, saved[-1], devices.learner) if workdir and saved and c.eval.by_initial else None
    if workdir is not None:
        sharding_of = functools.partial(param_shardings, devices.learner)
        model, params, step, _ = checkpoint.restore_params(workdir, step, sharding_of)
        task = dataclasses.replace(task, model=run_on(model, c, jax.default_backend()))
    with contextlib.ExitStack() as stack:
        written = folder and stack.enter_context(distributed.folder_of_first(folder))
        if folder is not None and workdir is None:
            distributed.by_first(lambda: keep_date(folder, c.prompt.date))
        try:
            evaluation = Evaluation(task, params, task.heldout, devices, step or 0, written or None)
            request = dataclasses.replace(evaluation, say=tell, stream=sys.stderr, initial=initial)
            numbers = evaluate(request)
        except KeyboardInterrupt:
            further = "run the same command to resume" if folder else "nothing is kept without --out=DIR"
            tell(f"stopped; {further}")
            sys.exit(INTERRUPTED)
    if not distributed.first():
        return
    row: dict[str, Any] = {"step": step or 0, "data": data_name(c.data), **numbers}
    if folder is not None:
        run_files.append(folder / run_files.EVAL, row)
    print(json.dumps(row) if flags.FLAGS.json or not sys.stdout.isatty() else evaluation_text(row))


def initial_model(c: Config, workdir: Path, meta: dict[str, Any], mesh: Mesh) -> Params:
    """The model that the run began with: from the workdir if it is there, else the config's. UserError if that is
    another one. `meta`: the JSON part of a checkpoint."""
    if distributed.share((workdir / checkpoint.INITIAL).is_dir()) and not meta["config"]["warm_start.steps"]:
        sharding_of = functools.partial(param_shardings, mesh)
        if not meta.get("lora"):
            return checkpoint.restore_params(workdir / checkpoint.INITIAL, at=sharding_of)[1]
        lora = fields.read(LoraConfig, meta["lora"], "lora.")
        return merged(checkpoint.restore_base(workdir, lora, sharding_of), {"layers": {}}, lora)
    params, known = load_model(c, mesh)[1], distributed.share(digest_of_beginning(workdir))
    name = model_name(c.model.path, c.model.preset, c.seed)
    if not known:
        tell(f"warning: {workdir} is of an older version; {name} is taken for the model that it began with")
    elif known != checksums.digest(params):
        old = meta["config"]
        began = model_name(old["model.path"], old["model.preset"], old["seed"])
        raise distributed.SharedRefusal(
            f"eval.by_initial compares with the model that {workdir} began with, which {name} is not; give that model, "
            f"{began}"
        )
    return params


def model_name(path: str, preset: str, seed: int) -> str:
    return f"model.path = {path}" if path else f"model.preset = {preset} with seed = {seed}"


def data_name(data: DataConfig) -> str:
    """The name of the evaluated data set, because a run may be evaluated on several."""
    if data.source == "reasoning_gym":
        return ", ".join(data.tasks)
    return (data.heldout_path or data.train_path) + (f", {data.heldout_split}" if data.heldout_split else "")


def check_workdir(workdir: Path, c: Config) -> None:
    """UserError for a folder without checkpoints, or for a run whose SAME fields differ from this config's."""
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
    flags.DEFINE_string("workdir", None, "folder of a run, or gs://BUCKET/RUN; without it, the config's model")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    flags.DEFINE_bool("json", False, "print one JSON object even on a terminal; elsewhere it is always printed")
    flags.DEFINE_string("out", None, "folder for eval.jsonl and the records; the workdir by default")
    define_processes()
    run_main(main, in_bucket=True)
