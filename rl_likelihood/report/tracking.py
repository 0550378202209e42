"""An optional copy of a run in wandb. The files of the workdir are the record. If wandb is missing or fails, one line
says so and the run goes on without it."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError
from rl_likelihood.runtime.run_files import TRACKING_ID, cannot_write

BOARD = "tensorboard"  # folder of a workdir


class Tracker:
    """Copies of a run's numbers: one run in wandb, and with `board` TensorBoard's files in the workdir.

    wandb's id is saved in the workdir, so that a resumed run continues it.

    `mode` is off, offline (a folder wandb/ in the workdir, for `wandb sync`) or online. wandb shows `config` as the
    run's settings.
    """

    def __init__(self, workdir: Path, mode: str, project: str, config: dict[str, Any], board: Board | None = None):
        self._run, self._board = None, board

        def start() -> None:
            self._run = _start(workdir, mode, project, config)

        if mode != "off":
            _tried("wandb did not start", start)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        if self._run is not None and not _tried("wandb failed", lambda: self._run.log(numbers, step=int(step))):
            self._run = None
        if self._board is not None and not _tried("TensorBoard failed", lambda: self._board.log(int(step), numbers)):
            self._board = None

    def close(self, failed: bool = False) -> None:
        if self._board is not None:
            _tried("TensorBoard did not end", self._board.close)
        if self._run is not None:
            _tried("wandb did not end", lambda: self._run.finish(exit_code=int(failed)))
            self._run = None


def _tried(what: str, act: Callable[[], Any]) -> bool:
    """Whether `act` succeeds. A copy never stops the run that it copies."""
    try:
        act()
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {what} ({said}); the run goes on without it, its files have everything", flush=True)
        return False
    return True


class Board:
    """TensorBoard's files in a workdir. Numbers after `step`, from which the run goes on, are hidden there.

    tensorboardX's SummaryWriter has a thread that a full disk ends with a traceback; the next writes would wait for it.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        try:
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter
        except ImportError as e:
            raise UserError(
                "report.tensorboard is True, but tensorboardX is missing; run pip install -c constraints.txt -e "
                "'.[tensorboard]', or set it to False"
            ) from e
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        path = workdir / BOARD / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(path))
            self._write(file_version="brain.Event:2")
            if step > 0:
                begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(step=step + 1, session_log=begin)
        except OSError as e:
            raise cannot_write(path, e) from e

    def log(self, step: int, numbers: dict[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _write(self, **event: Any) -> None:
        try:
            self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
            self._file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                self._file.close()
            raise


def _start(workdir: Path, mode: str, project: str, config: dict[str, Any]):
    import wandb  # it takes over a second to import, and most runs do without it

    path = workdir / TRACKING_ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return wandb.init(
        project=project,
        name=workdir.name,
        id=path.read_text().strip(),
        resume="allow" if mode == "online" else None,
        dir=str(workdir),
        mode=mode,
        config=config,
    )
