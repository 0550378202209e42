"""Progress of long work: a bar on a terminal, or a line from time to time in a log.

with Progress("evaluated", 96, "questions", say) as progress:
    for batch in batches:
        ...
        progress.advance(len(batch))
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, RenderableColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

shown = True  # False in every process of a run but the first
EVERY, EVERY_AT_FIRST = 15.0, 5.0  # seconds between two lines of a log, and in its first minute
RECENT = 50  # reports that the estimate uses, because the speed may change

# jax reports the end of a program's lowering, which its compilation follows, and then the end of that.
_LOWERED, _COMPILED = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))
_compiling = threading.Event()


def _of_jax(event: str, *_, **__) -> None:
    if event == _LOWERED:
        _compiling.set()
    elif event == _COMPILED:
        _compiling.clear()


jax.monitoring.register_event_duration_secs_listener(_of_jax)


def duration(seconds: float) -> str:
    """Seconds for people: 42s, 3m12s, 2h05m, 3d04h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


def counted(n: int, what: str) -> str:
    """ "1 question", "8 questions"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def time_left(reports: Sequence[tuple[float, int]], total: int, now: float) -> float | None:
    """An estimate of the seconds until `total` is done; None if there are too few reports.

    reports: (time, amount done). The first is from the start, so that steps before a resume do not count. The first
        piece of work does not count either, because it also compiles.
    now: the estimate falls between two reports, but not below the time for the pieces after the current one.
    """
    if reports and reports[-1][1] >= total:
        return 0.0
    if len(reports) < 3:
        return None
    recent = reports[1:][-RECENT:]
    (began, first), (last, done) = recent[0], recent[-1]
    seconds_per_piece, piece = (last - began) / max(done - first, 1), done - recent[-2][1]
    return max(seconds_per_piece * (total - done) - (now - last), seconds_per_piece * max(total - done - piece, 0))


class Progress:
    """A context manager that shows the progress of `total` pieces of work. `done`: pieces done before it starts.

    what, unit: words such as "evaluated", "questions" for the line "evaluated 16 of 96 questions, 2m10s left"
    say:    prints a line of a log; None for work whose log has its own lines
    stream: where the bar is shown if it is a terminal, stdout by default; other output appears above the bar

    The bar is redrawn twice a second; it swings until the first report. The line says when jax compiles. With several
    processes, only process 0 shows it.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        say: Callable[[str], None] | None = None,
        *,
        done: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.note = ""  # extra text for the line, which the caller may change
        self._reports = [(time.monotonic(), done)]
        self._say, self._over = say, threading.Event()
        self._bar: Bar | None = None
        self._thread: threading.Thread | None = None
        console = Console(file=stream or sys.stdout)
        if not shown:
            self._say = None
        elif console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(16), RenderableColumn(self))
            to_stdout = console.file is sys.stdout
            self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=to_stdout, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total if self.done else None, completed=self.done)
        elif self._say is not None:
            self._thread = threading.Thread(target=self._lines, args=(self._say,), name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def advance(self, n: int = 1) -> None:
        """Reports that `n` more pieces are done."""
        self.done += n
        self._reports.append((time.monotonic(), self.done))
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)

    def left(self) -> float | None:
        """An estimate of the seconds until all is done; None if it is unknown."""
        return time_left(self._reports, self.total, time.monotonic())

    def __rich__(self) -> Text:
        return Text(self._words())

    def _words(self) -> str:
        left = self.left()
        spent = duration(time.monotonic() - self._reports[0][0])
        times = f"{spent} so far" if left is None else f"{duration(left)} left"
        parts = (f"{self.done} of {self.total} {self.unit}", self.note, "compiling" * _compiling.is_set(), times)
        return ", ".join(filter(None, parts))

    def _lines(self, say: Callable[[str], None]) -> None:
        last_line, begin = "", time.monotonic()
        while not self._over.wait(EVERY if time.monotonic() - begin > 60 else min(EVERY, EVERY_AT_FIRST)):
            if (words := f"{self.what} {self._words()}") != last_line:
                last_line = words
                say(words)


@contextlib.contextmanager
def of_bytes(what: str, total: float) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how much of a file of `total` bytes is there. Yields a function that is told its size so far."""
    megabytes = max(1, round(total / 1e6))
    with Progress(what, megabytes, "MB", tell, stream=sys.stderr) as progress:

        def told(size: int) -> None:
            if new := min(round(size / 1e6), megabytes) - progress.done:
                progress.advance(new)

        yield told


def tell(text: str) -> None:
    """Prints a line to stderr, in the first of several processes."""
    if shown:
        print(text, file=sys.stderr, flush=True)
