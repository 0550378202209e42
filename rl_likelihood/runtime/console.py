"""Printing to the console, by the first of several processes. A lost terminal never ends a run."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from rl_likelihood.progress import counted
from rl_likelihood.runtime import distributed


class Console:
    """Standard output or error without write errors: a closed pipe, a closed terminal or a full disk ends no run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._ignoring_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._ignoring_errors():
            self._stream.flush()

    @contextlib.contextmanager
    def _ignoring_errors(self):
        try:
            yield
        except OSError as e:
            if e.errno in (errno.EPIPE, errno.EIO, errno.EBADF):  # closed for good
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_the_terminal() -> None:
    """From now on no `print` of this process fails, even if it was started without stdout or stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get this number, and the printed text
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sampled chain may have characters that the terminal lacks
        sys.stdout.reconfigure(errors="replace")
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout, sys.stderr = Console(sys.stdout or nowhere), Console(sys.stderr or nowhere)


# Characters of a sampled chain that would command the terminal, such as the escape that clears it.
_CONTROL = dict.fromkeys([c for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"], "\ufffd")


def say(text: str) -> None:
    """Print one line, unbuffered, in the first of several processes."""
    if distributed.first():
        print(text.translate(_CONTROL), flush=True)


def say_at_once(text: str) -> None:
    """`say` for signal handlers. They may interrupt a print, and Python's buffer allows no print inside a print, so
    this bypasses the buffer."""
    if distributed.first():
        with contextlib.suppress(OSError):
            os.write(1, f"{text}\n".encode())


def excerpt(text: str) -> str:
    """A text on one line: the middle of one with over 240 characters is replaced by [...]."""
    line = " ".join(text.split())
    return line if len(line) <= 240 else f"{line[:120].rstrip()} [...] {line[-120:].lstrip()}"


def size(count: float) -> str:
    """Bytes for people: 16.9 MiB, 2.3 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def chains_words(samples: int) -> str:
    return f"1 greedy and {counted(samples, 'sampled chain')} each" if samples else "1 greedy chain each"
