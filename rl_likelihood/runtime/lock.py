"""One run at a time in a workdir, one evaluation at a time on a file of records."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rl_likelihood.shapes import UserError

FILE = "LOCK"
TOUCHED = 10.0  # seconds between touches
_SAY = functools.partial(print, flush=True)  # not the console's: sweeps and ray's workers look here, without jax
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)  # of a mounted bucket


@contextlib.contextmanager
def lock(workdir: Path, name: str = FILE, say: Callable[[str], None] = _SAY) -> Iterator[str]:
    """Holds `workdir`/`name`, which says which process of which host runs there; UserError when another does.

    The lock of a process that is no more is taken over, with a line: of this host, if there is no such process; of
    another, if nobody touches the file any more. Gives what the file says of this process alone.
    """
    path, mine = workdir / name, _mine()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        while not _create(path, mine):
            _take_over(path, say)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another --workdir") from None
    over = threading.Event()
    threading.Thread(target=_keep_touching, args=(path, over), name="lock", daemon=True).start()
    try:
        yield mine
    finally:
        over.set()
        _release(path, mine)


def in_use(workdir: Path, now: float | None = None, name: str = FILE) -> str:
    """Who holds the lock, as "process 7 on this host", or "": a look that waits for nothing and writes nothing.

    Of this host it is right. A process of another host holds it if the file was touched within the time in which that
    is due. `now`: by the clock of the file system; without it, by this host's, and where they differ a look may be
    wrong. `lock`, which waits for a touch, has the last word.
    """
    try:
        with open(workdir / name) as file:  # opened and not only looked at: that is when NFS asks its server
            text, touched = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError:
        return ""
    host, pid, began = _owner(text)
    alive = _began(pid) == began if host == socket.gethostname() else abs((now or time.time()) - touched) < 3 * TOUCHED
    return f"process {pid or '?'} on {_here(host)}" if alive else ""


def _mine() -> str:
    """What a lock of this process says: one line, never written by another, nor twice by this one."""
    pid = os.getpid()
    row = {"host": socket.gethostname(), "pid": pid, "began": _began(pid), "token": secrets.token_hex(8)}
    return json.dumps(row) + "\n"


def _create(path: Path, text: str) -> bool:
    """Makes the file, with all of `text` in it at once; False if there is one already."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    part.write_text(text)
    try:
        os.link(part, path)
        return True
    except FileExistsError:
        return part.stat().st_nlink == 2  # a file server that was asked twice says so of the link it has made
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
    finally:
        part.unlink(missing_ok=True)
    try:
        with open(path, "x") as file:  # empty for a moment, which `_alive` allows for
            file.write(text)
        return True
    except FileExistsError:
        return False


def _release(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        if path.read_text() == text:  # not another's that found ours untouched for too long
            path.unlink(missing_ok=True)


def _keep_touching(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCHED):
        with contextlib.suppress(OSError):
            os.utime(path)


def _take_over(path: Path, say: Callable[[str], None]) -> None:
    """Removes a stale lock, or refuses."""
    held = path.parent if path.name == FILE else path
    seen = _seen(path)
    if seen is None:
        return  # its run has just ended
    host, pid, alive = _alive(path, seen, say)
    if alive and pid:
        raise UserError(f"{held} is in use by process {pid} on {host}; end it, or choose another --workdir")
    if not alive and _remove(path, seen):
        say(f"{held}: taken over from process {pid} on {host}, which is no more")


def _remove(path: Path, seen: tuple[str, int, int]) -> bool:
    """Removes the stale lock that was `seen`; whether it was still there.

    Several may find it stale, and one of them be late: it must not remove the lock of the one that was first. So who
    removes it holds, for that moment, a lock named after this very one, and looks again.
    """
    claim = path.with_name(f"{path.name}.{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}")
    mine = _mine()
    while not _create(claim, mine):
        other = _seen(claim)
        if other is not None and not _alive(claim, other, lambda _: None)[2]:
            _remove(claim, other)  # of one that died meanwhile
        time.sleep(0.01)
    try:
        found = _seen(path) == seen
        if found:
            path.unlink()
        return found
    finally:
        _release(claim, mine)


def _seen(path: Path) -> tuple[str, int, int] | None:
    """(text, inode, time of the last touch) of a file, by which it is known again; None if there is none."""
    try:
        stat = path.stat()
        return path.read_text(), stat.st_ino, stat.st_mtime_ns
    except FileNotFoundError:
        return None


def _alive(path: Path, seen: tuple[str, int, int], say: Callable[[str], None]) -> tuple[str, int, bool]:
    """(host, process, whether it is alive) of who made this lock."""
    host, pid, began = _owner(seen[0])
    alive = _began(pid) == began if host == socket.gethostname() else _touched(path, seen, say)
    return _here(host), pid, alive


def _owner(text: str) -> tuple[str, int, str | None]:
    """(host, process, when it began) that a lock says."""
    try:
        row = json.loads(text)
        return row["host"], int(row["pid"]), row["began"]
    except (ValueError, KeyError, TypeError):  # being written, where there are no links, or by one that was killed
        return "an unknown host", 0, None


def _here(host: str) -> str:
    return "this host" if host == socket.gethostname() else host


def _touched(path: Path, seen: tuple[str, int, int], say: Callable[[str], None]) -> bool:
    """Whether its owner lives: it touches the file while we wait for three times as long as that takes at most."""
    say(f"{path.parent}: waiting up to {3 * TOUCHED:.0f} s for a sign of the process of another host that held it")
    end = time.monotonic() + 3 * TOUCHED
    while time.monotonic() < end:
        time.sleep(TOUCHED / 10)
        if (now := _seen(path)) != seen:
            return now is not None
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
