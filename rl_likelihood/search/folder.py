"""The folder of a command that makes chains: its lock, its config, and its result rows."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rl_likelihood.datasets.questions import digest
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.workdir import claim, keep_inputs, pinned_date, write_config
from rl_likelihood.search.rounds import Finder
from rl_likelihood.settings import Config
from rl_likelihood.shapes import ALTERNATIVES, ENVIRONMENT, REJECTED, Example
from rl_likelihood.task import Task

DROPPED, HELDOUT = "dropped.jsonl", "heldout.jsonl"


@contextlib.contextmanager
def claimed(
    c: Config, workdir: Path, make: Callable[[Config, Path], Finder], prompt_files: bool = False
) -> Iterator[Finder]:
    """Locks the folder and writes its config. Yields the finder, made with the date of the folder's first run. Refuses
    other training questions than those of the first run and, with `prompt_files`, other texts of reer.prompts."""
    with contextlib.ExitStack() as stack:
        distributed.by_first(lambda: stack.enter_context(lock(workdir)))
        distributed.by_first(lambda: claim(workdir, c))
        date = distributed.by_first(lambda: pinned_date(workdir, c.prompt.date))
        f = make(dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date)), workdir)
        digests = {"questions": digest([row.example for row in f.task.train], [])}
        if prompt_files:
            digests["requests"] = f.asks.digest
        distributed.by_first(lambda: keep_inputs(workdir, date, digests))
        distributed.by_first(lambda: write_config(workdir, c))
        yield f


def refuse_no_chat(c: Config, command: str) -> None:
    """UserError for prompts that are no questions to a chat model, or that have more than one answer."""
    if c.prompt.template == "raw":
        raise UserError(f"prompt.template is 'raw', but {command} asks a chat model; set it to model or plain")
    if c.converses:
        raise UserError(f"env.name is {c.env.name!r}, but {command} is for one answer to a question; set it to none")


Row = dict[str, Any]


def row_of(e: Example) -> Row:
    """A question as a row that data.source=files reads. What only a grader of a data set reads, a program's tests for
    instance, is not kept."""
    turns = [{"role": role, "content": content} for role, content in e.messages]
    check = json.loads(e.check) if e.check else {}
    more = {key: check[key] for key in (ENVIRONMENT, ALTERNATIVES, REJECTED) if key in check}
    return {"id": e.id, "prompt": turns or e.prompt, "answer": e.answer, "task": e.task, **more}


def write_results(workdir: Path, name: str, good: list[Row], dropped: list[Row], task: Task) -> str:
    """Writes the rows with chains, the dropped rows, and the held-out questions, which a run on these chains needs.
    Returns in words why rows were dropped, and how many.

    Process 0 replaces each file atomically.
    """
    results = {name: good, DROPPED: dropped, HELDOUT: [row_of(row.example) for row in task.heldout]}

    def write() -> None:
        for file, rows in results.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            run_files.replace(workdir / file, text)

    distributed.by_first(write)
    counts = collections.Counter(row["dropped"] for row in dropped).items()
    return "".join(f", {n} ({reason})" for reason, n in counts)
