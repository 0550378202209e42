"""The records of an evaluation: one file for each way to evaluate one checkpoint step, and what its name stands for."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood import __version__
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.datasets.questions import digest, digest_of_files
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import statistics, verse
from rl_likelihood.grading import graders
from rl_likelihood.model.architecture import Params
from rl_likelihood.runtime import run_files
from rl_likelihood.settings import EvalSettings
from rl_likelihood.tables import grader_table
from rl_likelihood.task import Task

FOLDER = "evaluations"  # of a workdir: the records
FORMAT = 4  # of the records: raise it when they change meaning


def identity_of(
    task: Task, params: Params, rows: list[EncodedExample], samples: int, by_initial: bool = False
) -> dict[str, Any]:
    """All that decides what a record says: weights, questions, settings. Not how many are made, or how many at once.

    by_initial: whether the initial model scores them too. Training has eval.by_initial in its config, but never does.
    """
    c = task.config
    bits = lambda x: jnp.sum(jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32), dtype=jnp.uint32)
    sums = jax.jit(lambda p: [bits(x) for x in jax.tree.leaves(p)])(params)  # whole numbers: sharding changes nothing
    questions = hashlib.sha256()
    for row in rows:
        for part in (row.prompt_ids, row.answer_ids, row.answer_scored):
            questions.update(np.asarray(part, np.int32).tobytes() + b"|")
        questions.update((row.example.answer + row.example.check).encode(errors="replace") + b"\n")
    turns = [c.sampler.max_turns, c.sampler.max_env_tokens, c.prompt.max_answer]
    own = hashlib.sha256(Path(c.env.file).read_bytes()).hexdigest()[:16] if c.env.file else ""
    measured: dict[str, Any] = {}
    if c.eval.texts != "none":  # what is copied is looked up in the training texts
        trained = digest([row.example for row in task.train], [])
        measured = {"texts": [c.eval.texts, trained, verse.with_dictionary()]}
    grader = [c.eval.grader, graders.VERSION, c.eval.grader_seconds, c.eval.unsafe_code]
    if grader_table(c.reward.file).get(c.eval.grader) is not graders.GRADERS.get(c.eval.grader):
        grader.append(digest_of_files(c.reward.file))  # the user's own, which VERSION knows nothing of
    talk = {"env": dataclasses.asdict(c.env), "file": own, "turns": turns} if c.converses else {}
    drawn = {"temperature": c.eval.temperature, "top_p": c.eval.top_p, "top_k": c.eval.top_k, "min_p": c.eval.min_p}
    return {
        "format": FORMAT,
        "version": __version__,
        "weights": hashlib.sha256(repr([int(x) for x in sums]).encode()).hexdigest()[:16],
        "questions": questions.hexdigest()[:16],
        "samples": samples,
        "seed": c.seed,
        "tags": [task.fmt.think_close, task.fmt.answer_open, task.fmt.answer_close],
        "max_chain": c.sampler.max_chain,
        "max_answer": c.eval_answer,
        # With the deadline: answers that were lost to one are graded again with another.
        "grader": grader,
        "compute_dtype": task.model.compute_dtype,
        "transition_words": list(c.report.transition_words),
        **talk,
        **({"trace": True} if c.eval.trace else {}),
        **measured,
        **({"by_initial": True} if by_initial else {}),
        # Nothing where nothing is set, so that records of before are of the same name.
        **({"sampling": drawn} if drawn != {name: getattr(EvalSettings, name) for name in drawn} else {}),
    }


def records_path(folder: str | Path, step: int, identity: dict[str, Any]) -> Path:
    """The file of one checkpoint step, evaluated in one way."""
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return Path(folder) / FOLDER / f"step_{step}-{name}.jsonl"


def read_or_begin(path: Path, step: int, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that the file has; a new file begins with what it is of."""
    if path.exists() and run_files.read(path):
        return statistics.read_records(str(path))[1]
    run_files.append(path, {"step": step, "identity": identity})
    return []


def make_folder(path: Path) -> None:
    """The folder of the records; UserError where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{path}: cannot be made ({e.strerror or e}); choose another folder") from e
