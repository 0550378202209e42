"""The files of a workdir: metrics, samples and evaluations as JSON lines, and STATUS.

Every line is one JSON object with an integer `step`, the number of updates done when it was written. When a run resumes
at step k, lines of later steps are deleted. So a killed and resumed run leaves the same files as an unbroken one.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rl_likelihood import files
from rl_likelihood.errors import UserError
from rl_likelihood.runtime.lock import in_use

METRICS, SAMPLES, EVAL, STATUS = "metrics.jsonl", "samples.jsonl", "eval.jsonl", "STATUS"
TRACKING_ID = "wandb_id"


def _number(x: float) -> tuple[float | None, int]:
    return (x, 0) if math.isfinite(x) else (None, 1)


def plain(value: Any) -> tuple[Any, int]:
    """(`value` as plain JSON, the number of non-finite numbers that became null).

    A float32 gets the fewest digits that give the same float32 back.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value, 0
    if isinstance(value, dict):
        items = {key: plain(v) for key, v in value.items()}
        return {key: v for key, (v, _) in items.items()}, sum(n for _, n in items.values())
    if isinstance(value, (list, tuple)):
        values = [plain(v) for v in value]
        return [v for v, _ in values], sum(n for _, n in values)
    if type(value) is float:
        return _number(value)
    array = np.asarray(value)
    if array.ndim:
        return plain(list(array))
    if array.dtype.kind in "biu":
        return array.item(), 0
    if array.dtype == np.float64:
        return _number(float(array))
    return _number(float(str(array.astype(np.float32)[()])))


def append(path: str | Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Appends `rows` (numbers, strings, arrays, nested, each with an integer `step`), one line each. Returns what was
    written.

    A non-finite number is written as null, so that the file stays valid JSON, and counted in `metrics/non_finite`.
    """
    written = []
    for row in rows:
        values, bad = plain(row)
        written.append(values | {"metrics/non_finite": bad} if bad else values)
    lines = [json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n" for values in written]
    try:
        with open(path, "ab+") as f:
            _end_last_line(f)
            f.write("".join(lines).encode())
    except OSError as e:
        raise cannot_write(path, e) from e
    return written


def _end_last_line(f: BinaryIO) -> None:
    """Makes the file end with a newline. A half-written line, which a killed process may have left, is deleted."""
    if f.seek(0, os.SEEK_END) == 0:
        return
    f.seek(-1, os.SEEK_END)
    if f.read(1) == b"\n":
        return
    f.seek(0)
    content = f.read()
    start = content.rfind(b"\n") + 1
    if _is_json(content[start:]):
        f.write(b"\n")
    else:
        f.truncate(start)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def cannot_write(path: str | Path, e: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({e.strerror or e}); free some space or choose another folder")


def replace(path: Path, text: str) -> None:
    """Writes a file of a workdir whole: if that fails, the old file stays as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode())
    except OSError as e:
        raise cannot_write(path, e) from e


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """The JSON object that a file of a workdir holds. UserError with `cure` for another content."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); check its permissions") from e
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not JSON, or not an object; {cure}")
    return value


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any] | None:
    """The object in one line; None for a half-written last line, which a killed process may have left."""
    valid = _is_json(line)
    if not valid and not line.endswith(b"\n"):
        return None
    row = json.loads(line) if valid else None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise UserError(f"{path}:{number}: not a JSON object with an integer step; delete or repair this line")
    return row


def read(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, in order, without a half-written last line.

    UserError for a missing file, or with file and line number for an invalid line.
    """
    return list(rows(path))


def rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Like `read`, but one row at a time, because a file of samples can be larger than memory."""
    path = Path(path)
    try:
        with open(path, "rb") as f:
            yield from (row for i, line in enumerate(f, 1) if (row := _parse(path, i, line)) is not None)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); give the folder of a run") from e


def truncate(path: str | Path, step: int) -> int:
    """Deletes the lines of `path` beyond `step` and a half-written last line. Returns how many were deleted.

    The file is replaced atomically: a crash leaves the old file or the new one.
    """
    path = Path(path)
    if not path.exists():
        return 0
    part = path.with_name(path.name + ".part")
    cut = 0
    try:
        with open(path, "rb") as old, open(part, "wb") as new:
            for i, line in enumerate(old, 1):
                row = _parse(path, i, line)
                if row is None or row["step"] > step:
                    cut += 1
                else:
                    new.write(line if line.endswith(b"\n") else line + b"\n")
        os.replace(part, path)
    except OSError as e:
        raise cannot_write(path, e) from e
    return cut


_running: dict[Path, tuple[int, int]] = {}  # workdirs for which this process wrote "running": step, steps


def write_status(workdir: str | Path, state: str, step: int, steps: int, error: str = "") -> None:
    """Replaces `workdir`/STATUS atomically by one line of JSON.

    `state` is running, done, failed or interrupted.
    If the disk is full, the status of an ended run overwrites the old file in place.
    """
    path = Path(workdir) / STATUS
    row: dict[str, Any] = {"state": state, "step": int(step), "steps": int(steps), "error": error[:1000]}
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        try:
            files.replace(path, line)
        except OSError:
            if state == "running":
                raise
            with open(path, "r+b") as file:
                file.write(line)
                file.truncate()
    except OSError as e:
        if state in ("failed", "interrupted"):  # a raise would hide why the run ended
            print(f"warning: {cannot_write(path, e)}", file=sys.stderr, flush=True)
            return
        raise cannot_write(path, e) from e
    if state == "running":
        _running[path.parent] = (row["step"], row["steps"])
    else:
        _running.pop(path.parent, None)


def fail_running(error: str) -> None:
    """Sets every STATUS that this process has set to "running" to "failed". For an exit without an exception."""
    for workdir, (step, steps) in list(_running.items()):
        write_status(workdir, "failed", step, steps, error)


def read_status(workdir: str | Path) -> dict[str, Any] | None:
    """What `write_status` wrote to `workdir`/STATUS, or None for a folder in which no run has started.

    A killed run leaves the state "running". If no process holds the workdir's lock, it is returned as "interrupted".
    So is a file that cannot be read, as after a power cut, because a resume does not need it.
    """
    path = Path(workdir) / STATUS
    if not path.exists():
        return None
    row: dict[str, Any] = {"state": "interrupted", "step": 0, "steps": 0, "error": ""}
    try:
        read = read_object(path, "the run counts as interrupted")
        row |= {key: read[key] for key, value in row.items() if isinstance(read.get(key), type(value))}
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
    return row | {"state": "interrupted"} if row["state"] == "running" and not in_use(path.parent) else row
