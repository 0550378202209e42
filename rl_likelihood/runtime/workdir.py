"""The folder of a run: its config and inputs, its files, and the JSON part of its checkpoints."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_likelihood.config import binding_differences, flatten
from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.runtime import checkpoint, distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.run_files import EVAL, METRICS, SAMPLES, TRACKING_ID, read_object, replace
from rl_likelihood.settings import Config

CONFIG = "config.json"
INPUTS = "inputs.json"  # the inputs of a run besides its config: the date in its prompts, and digests (DEPENDS)
# The inputs whose digests are compared: a description, and the config fields with their paths. The files may move.
DEPENDS = {
    "questions": ("the data", ("data.train_path", "data.heldout_path")),
    "prompts": ("instruction, worked examples or tokenizer", ("prompt.instruction_path", "prompt.examples_path")),
    "requests": ("first.txt or edit.txt", ("reer.prompts",)),
    "code": ("a file of your own", ("reward.file", "env.file", "rubric.path")),
}
BEGINNING = "initial_model"  # the digest of the model that the run began with, for evaluations
EXAMPLES = "examples"  # the digest of the worked examples in every prompt, for evaluations
TOKENIZER = "tokenizer"  # folder with a copy of the tokenizer, because the model's files may move


class OtherInputs(distributed.SharedRefusal):
    """An input of the run has changed since it began. The workdir is not modified."""


def claim(workdir: Path, c: Config, force: bool | None = None) -> None:
    """Writes the config into a new workdir. UserError for a workdir with another config, or of a run whose config is
    lost, unless `force`; a higher train.steps is allowed. A workdir with results keeps its old config until
    `write_config`.

    `force`: None for a command without --force.
    """
    path, new = workdir / CONFIG, flatten(c)
    if not path.exists() and has_run(workdir) and not force:
        raise UserError(
            f"{workdir} holds a run but no {CONFIG}, so it is unknown whether this is its config; put the file back, "
            f"or choose another --workdir{_or_force(force)}"
        )
    if not path.exists() or not has_results(workdir):
        write_config(workdir, c)
        return
    old = read_config(workdir)
    names = binding_differences(old, new)
    if checkpoint.latest_step(workdir) is not None:  # the weights come from the checkpoint
        names = [name for name in names if name != "model.path"]
    compared = [paths for key, (_, paths) in DEPENDS.items() if key in _inputs(workdir)]  # by `keep_inputs`
    names = [name for name in names if not any(name in paths for paths in compared)]
    old_steps = old.get("train.steps", 0)
    if "train.steps" in names and new["train.steps"] > old_steps:
        names.remove("train.steps")
        say(f"{workdir}: train.steps is raised from {old_steps} to {new['train.steps']}; the learning rate follows it")
    if names and not force:
        changes = [f"{k} (was {old.get(k, 'absent')!r}, is {new.get(k, 'absent')!r})" for k in names[:5]]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"{workdir} belongs to a run with another config: {', '.join(changes)}{more}; choose another --workdir"
            + _or_force(force)
        )
    if names:
        say(f"warning: {workdir} resumes with another config (--force): {', '.join(names)}")


def write_config(workdir: Path, c: Config) -> None:
    replace(workdir / CONFIG, json.dumps(flatten(c), indent=1) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """The flattened config that the workdir's run had."""
    return read_object(workdir / CONFIG, "put a whole copy back, or choose another --workdir")


def pinned_date(workdir: Path, date: str, meta: dict[str, Any] | None = None, warn: Callable[[str], None] = say) -> str:
    """prompt.date or, if it is empty, the day on which the run began, so that a resumed run has the same prompts.

    Warns of a run whose file of inputs is lost. Then the day is that of `meta`, the JSON part of a checkpoint.
    """
    inputs = _inputs(workdir)
    saved = ((meta or {}).get("config") or {}).get("prompt.date")
    date = date or inputs.get("date") or saved or datetime.date.today().isoformat()
    if not inputs and has_run(workdir):
        warn(
            f"warning: {workdir / INPUTS} is missing: changes of data, prompts or code since the run began are not "
            f"noticed, and the date in prompts is {date} (prompt.date)"
        )
    return date


def keep_date(folder: Path, date: str) -> None:
    """Saves the date in the prompts of an evaluation, which the same command reads when it resumes."""
    if "date" not in (inputs := _inputs(folder)):
        replace(folder / INPUTS, json.dumps({"date": date, **inputs}) + "\n")


def kept_date(workdir: Path) -> str:
    """The date in the prompts of the workdir's run; "" if it has none."""
    return _inputs(workdir).get("date", "")


def keep_inputs(workdir: Path, date: str, digests: dict[str, str], force: bool | None = None) -> None:
    """Saves the date and the digests of a run's inputs (DEPENDS). OtherInputs if one has changed since the first
    results, unless `force`, as in `claim`."""
    old = _inputs(workdir) if has_results(workdir) else {}
    changed = [name for name in DEPENDS if name in digests and old.get(name) not in (None, digests[name])]
    if changed and not force:
        description, paths = DEPENDS[changed[0]]
        raise OtherInputs(
            f"{workdir} began with other {changed[0]}: {description} ({', '.join(paths)}) changed since, or an update "
            f"of this program reads it differently; restore it, or choose another --workdir{_or_force(force)}"
        )
    if changed:
        say(f"warning: {workdir} resumes with other {changed[0]} (--force)")
    beginning = {BEGINNING: old[BEGINNING]} if BEGINNING in old else {}
    replace(workdir / INPUTS, json.dumps({"date": date, **beginning, **digests}) + "\n")


def _or_force(force: bool | None) -> str:
    return "" if force is None else ", or continue anyway with --force"


def _inputs(workdir: Path) -> dict[str, str]:
    path = workdir / INPUTS
    return read_object(path, "delete it, and the next run of this workdir writes it anew") if path.exists() else {}


def digest_of_beginning(workdir: Path) -> str:
    """The digest of the model that the run began with; "" for runs of older versions."""
    return _inputs(workdir).get(BEGINNING, "")


def digest_of_examples(c: Config) -> str:
    """Identifies the worked examples from files or training rows that every prompt shows."""
    return hashlib.sha256(json.dumps(c.prompt.shots[: c.prompt.examples]).encode()).hexdigest()


def has_examples(workdir: Path, c: Config) -> bool:
    """Whether the run's prompts show these worked examples, wherever their file is now."""
    return _inputs(workdir).get(EXAMPLES) == digest_of_examples(c)


def tokenizer_path(workdir: Path, path: str) -> str:
    """The path of a run's tokenizer: in its workdir or, for runs of older versions, the model's `path`."""
    return str(workdir / TOKENIZER) if (workdir / TOKENIZER).is_dir() else path


def has_results(workdir: Path) -> bool:
    """Whether the workdir holds results. A run that was refused at the start left none."""
    return has_run(workdir) or _is_written(workdir / EVAL)  # `evaluate --out` writes EVAL too


def has_run(workdir: Path) -> bool:
    """Whether the workdir holds what a run would resume from or add to, and not only evaluations."""
    written = (METRICS, "baseline.jsonl", "rounds.jsonl")
    return (
        checkpoint.latest_step(workdir) is not None
        or (workdir / checkpoint.INITIAL).exists()
        or any(_is_written(workdir / name) for name in written)
    )


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def restore_tracking_id(workdir: Path, tracking_id: str | None) -> None:
    """Writes the wandb id again if its file is gone, so that wandb continues the same run."""
    if tracking_id and not (workdir / TRACKING_ID).exists():
        replace(workdir / TRACKING_ID, tracking_id + "\n")


def warn_of_lost_lines(folder: Path, sizes: dict[str, int], step: int) -> None:
    """Warns of files that are shorter than they were when the checkpoint of `step` was saved."""
    for name, size in sizes.items():
        have = (folder / name).stat().st_size if (folder / name).exists() else 0
        if have < size:
            say(
                f"warning: {folder / name} has {have} bytes, but had {size} when the checkpoint of step {step} was "
                "saved: lines of earlier steps are lost, which changes tables and figures but not the run"
            )


def checkpoint_meta(folder: Path, c: Config, model: ModelConfig, model_path: str) -> dict[str, Any]:
    """The JSON part of a checkpoint, without its queue.

    The position in the data follows from the step and the queue, random keys from the seed and the step. On resume, the
    files of `folder` are cut back to the step; `file_bytes` are their sizes now.
    """
    tracking = folder / TRACKING_ID
    files = [folder / name for name in (METRICS, SAMPLES, EVAL)]
    return {
        "model_config": dataclasses.asdict(model),
        "lora": dataclasses.asdict(c.lora) if c.lora.rank else None,
        "model_path": model_path,
        "config": flatten(c),
        "file_bytes": {f.name: f.stat().st_size for f in files if f.exists()},
        "tracking_id": tracking.read_text().strip() if tracking.exists() else None,
    }
