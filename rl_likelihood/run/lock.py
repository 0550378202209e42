"""One run at a time in a workdir, one evaluation at a time on a file of records."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rl_likelihood.run.console import say
from rl_likelihood.shapes import UserError

FILE = "LOCK"
TOUCHED = 10.0  # seconds between touches


@contextlib.contextmanager
def lock(workdir: Path, name: str = FILE, say: Callable[[str], None] = say) -> Iterator[None]:
    """Holds `workdir`/`name`, which says which process of which host runs there; UserError when another does.

    The lock of a process that is no more is taken over, with a line: of this host, if there is no such process; of
    another, if nobody touches the file any more.
    """
    path = workdir / name
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with open(path, "x") as file:
                    file.write(json.dumps(mine) + "\n")
                break
            except FileExistsError:
                _take_over(path, mine, say)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another --workdir") from None
    over = threading.Event()
    threading.Thread(target=_keep_touching, args=(path, over), name="lock", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        path.unlink(missing_ok=True)


def _keep_touching(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCHED):
        with contextlib.suppress(OSError):
            os.utime(path)


def _take_over(path: Path, mine: dict, say: Callable[[str], None]) -> None:
    """Removes a stale lock, or refuses."""
    held = path.parent if path.name == FILE else path
    try:
        other = json.loads(path.read_text())
        host, pid, began = other["host"], int(other["pid"]), other["began"]
    except FileNotFoundError:
        return  # its run has just ended
    except (ValueError, KeyError, TypeError):
        host, pid, began = mine["host"], 0, None  # half-written by a process that was killed
    if host != mine["host"]:
        if _touched(path, say):
            raise UserError(f"{held} is in use by process {pid} on {host}; end it, or choose another --workdir")
    elif pid and _began(pid) == began:
        raise UserError(f"{held} is in use by process {pid} on this host; end it, or choose another --workdir")
    say(f"{held}: taken over from process {pid} on {host}, which is no more")
    path.unlink(missing_ok=True)


def _touched(path: Path, say: Callable[[str], None]) -> bool:
    """Whether its owner lives: it touches the file while we wait for three times as long as that takes at most."""
    with contextlib.suppress(FileNotFoundError):
        before = path.stat().st_mtime_ns
        say(f"{path.parent}: waiting up to {3 * TOUCHED:.0f} s for a sign of the process of another host that held it")
        end = time.monotonic() + 3 * TOUCHED
        while time.monotonic() < end:
            time.sleep(TOUCHED / 10)
            if path.stat().st_mtime_ns != before:
                return True
    return False


def _began(pid: int) -> str | None:
    """When a process of this host began, in the kernel's ticks; None if there is none. A number alone comes again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""  # alive, on a system without /proc
