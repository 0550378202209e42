"""The folder of a run: which config it belongs to, its files, and what a checkpoint holds besides arrays."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from rl_likelihood.config import binding_differences, flatten
from rl_likelihood.model.decoder import ModelConfig
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.run_files import EVAL, METRICS, SAMPLES
from rl_likelihood.settings import Config
from rl_likelihood.shapes import UserError

CONFIG = "config.json"
INITIAL = checkpoint.INITIAL
TRACKING_ID = "wandb_id"
INPUTS = "inputs.json"  # what a run depends on beside its config: the date in its prompts, its questions
# What else a run depends on, in words, and the fields with its files. These may move: their contents are compared.
DEPENDS = {
    "questions": ("the data", ("data.train_path", "data.heldout_path")),
    "prompts": ("instruction, worked examples or tokenizer", ("prompt.instruction_path", "prompt.examples_path")),
    "code": ("a file of your own", ("reward.file", "env.file")),
}
TOKENIZER = "tokenizer"  # folder: the model's own files may move


class OtherInputs(UserError):
    """The run depends on something that has changed since it began. The workdir stays as it was."""


def claim(workdir: Path, c: Config, force: bool = False) -> None:
    """Writes the config into a new workdir. Refuses the workdir of another config, unless `force`. More steps are no
    other config. A workdir that has results keeps its config until `write_config`."""
    path, new = workdir / CONFIG, flatten(c)
    if not path.exists() or not begun(workdir):
        write_config(workdir, c)
        return
    try:
        old = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise UserError(f"{path}: not JSON; delete it, or choose another --workdir") from None
    names = binding_differences(old, new)
    if checkpoint.latest_step(workdir) is not None:  # it holds the weights: where they came from is history
        names = [name for name in names if name != "model.path"]
    compared = [paths for key, (_, paths) in DEPENDS.items() if key in _inputs(workdir)]  # by `keep_inputs`
    names = [name for name in names if not any(name in paths for paths in compared)]
    before = old.get("train.steps", 0)
    if "train.steps" in names and new["train.steps"] > before:
        names.remove("train.steps")
        say(f"{workdir}: train.steps is raised from {before} to {new['train.steps']}; the learning rate follows it")
    if names and not force:
        both = [f"{k} ({old.get(k, 'absent')!r} there, {new.get(k, 'absent')!r} here)" for k in names[:5]]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"{workdir} belongs to a run with another config: {', '.join(both)}{more}; choose another --workdir, or go "
            "on all the same with --force"
        )
    if names:
        say(f"warning: {workdir} goes on with another config (--force): {', '.join(names)}")


def write_config(workdir: Path, c: Config) -> None:
    """The workdir is of this config from now on."""
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(flatten(c), indent=1) + "\n")
        part.replace(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another --workdir") from None


def pinned_date(workdir: Path, date: str) -> str:
    """prompt.date, or the day on which the run began, so that a resumed run has the same prompts."""
    return date or _inputs(workdir).get("date") or datetime.date.today().isoformat()


def keep_inputs(workdir: Path, date: str, digests: dict[str, str], force: bool = False) -> None:
    """Saves the date and the digests of what a run depends on (DEPENDS). Refuses what has changed since it began."""
    before = _inputs(workdir)
    changed = [name for name in DEPENDS if name in digests and before.get(name, digests[name]) != digests[name]]
    if changed and not force:
        what, paths = DEPENDS[changed[0]]
        raise OtherInputs(
            f"{workdir} began with other {changed[0]}: {what} ({', '.join(paths)}) changed since; restore it, choose "
            "another --workdir, or go on all the same with --force"
        )
    if changed:
        say(f"warning: {workdir} goes on with other {changed[0]} (--force)")
    (workdir / INPUTS).write_text(json.dumps({"date": date, **digests}) + "\n")


def _inputs(workdir: Path) -> dict[str, str]:
    path = workdir / INPUTS
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path}: not JSON; delete it, and the next run of this workdir writes it anew") from None


def tokenizer_path(workdir: Path, path: str) -> str:
    """The tokenizer of a run: in its workdir, or, for runs of older versions, beside the model."""
    return str(workdir / TOKENIZER) if (workdir / TOKENIZER).is_dir() else path


def begun(workdir: Path) -> bool:
    """Whether the run has written results. A run that was refused at the start has not."""
    written = (METRICS, EVAL, "baseline.jsonl", "rounds.jsonl")
    return (
        checkpoint.latest_step(workdir) is not None
        or (workdir / INITIAL).exists()
        or any((workdir / name).exists() and (workdir / name).stat().st_size for name in written)
    )


def restore_tracking_id(workdir: Path, tracking_id: str | None) -> None:
    """Writes the wandb id again if its file is gone, so that wandb continues the same run."""
    if tracking_id and not (workdir / TRACKING_ID).exists():
        (workdir / TRACKING_ID).write_text(tracking_id + "\n")


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
    """What a checkpoint holds besides its arrays and its queue.

    The position in the data follows from the step and the queue, random keys from the seed and the step. On resume the
    files of `folder` are cut back to the step.
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
