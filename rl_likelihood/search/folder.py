"""The folder of a command that makes chains: its lock, its config, and its result rows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.workdir import claim, pinned_date, write_config
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example

DROPPED = "dropped.jsonl"


@contextlib.contextmanager
def claimed(c: Config, workdir: Path) -> Iterator[Config]:
    """Locks the folder and writes its config. Yields the config with the date of the folder's first run."""
    with contextlib.ExitStack() as stack:
        distributed.by_first(lambda: stack.enter_context(lock(workdir)))
        distributed.by_first(lambda: claim(workdir, c))
        distributed.by_first(lambda: write_config(workdir, c))
        date = distributed.by_first(lambda: pinned_date(workdir, c.prompt.date))
        yield dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date))


def row_of(e: Example) -> dict[str, Any]:
    """A question as a row that data.source=files reads."""
    turns = [{"role": role, "content": content} for role, content in e.messages]
    return {"id": e.id, "prompt": turns or e.prompt, "answer": e.answer, "task": e.task}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the file atomically, in process 0."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    distributed.by_first(lambda: run_files.replace(path, text))
