"""One run at a time in a workdir, one evaluation at a time on a file of records: a lease of filelock.

The holder touches the lock file every HEARTBEAT seconds. A second process is refused as soon as it sees a touch. The
lock of a killed process of this host is taken over at once, that of another host after DURATION seconds without a
touch. filelock takes a lock over by exchanging two names. A network file system cannot do that, and there filelock
would wait for ever; `_remove` is for that case.
"""

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from rl_likelihood.shapes import UserError

FILE = "LOCK"
HEARTBEAT, DURATION = 2.0, 30.0  # seconds; every process that wants a lock must have the same DURATION
Say = Callable[[str], None]
State = tuple[str, int, int] | None  # of a lock file: its text, its inode, the time of the last touch


class InUse(UserError):
    """Another process holds the lock."""


def say_line(text: str) -> None:
    """Instead of the console's `say`, which imports jax: sweeps and ray's workers take locks without it."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


@contextlib.contextmanager
def lock(workdir: Path, name: str = FILE, say: Say = say_line) -> Iterator[str]:
    """Holds `workdir`/`name`, which says which process of which host runs there; InUse when another does.

    Gives the text of the file, which is of this process alone.
    """
    lease = _lease(workdir / name)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _acquire(lease, workdir if name == FILE else workdir / name, say)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{workdir}: is a file, or stands below one; name a folder") from None
    except OSError as e:
        raise UserError(f"{workdir / name}: cannot be written ({e.strerror or e}); choose another folder") from None
    try:
        yield Path(lease.lock_file).read_text()
    finally:
        lease.release()


def in_use(workdir: Path, now: float | None = None, name: str = FILE) -> str:
    """Who holds the lock, as "process 7 on this host", or "". Waits for nothing and writes nothing.

    A holder is alive if it touched the file within DURATION and, on this host, if the process exists. `now` is the
    time by the file system's clock; by default it is this host's, and where the two differ the answer may be wrong.
    `lock` watches for a touch and has the last word.
    """
    path = workdir / name
    try:
        with open(path) as file:  # an NFS client asks its server when a file is opened
            touched = os.fstat(file.fileno()).st_mtime
    except OSError:
        return ""
    fresh = abs((time.time() if now is None else now) - touched) < DURATION
    owner = _lease(path).owner
    if owner is not None and _host(owner.hostname) == "this host" and not _exists(owner.pid):
        return ""
    return _holder(path) if fresh else ""


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=DURATION, heartbeat_interval=HEARTBEAT, on_compromise=_lost)


def _acquire(lease: SoftFileLease, what: Path, say: Say) -> None:
    """Takes the lock, or refuses. `what`: how a message names it."""
    path = Path(lease.lock_file)
    before, holder = _state(path), _holder(path)
    if not _try(lease, HEARTBEAT + 1, before) and _state(path) == before:
        say(f"{what}: waiting up to {DURATION:.0f} s for a sign of {holder}")
        if not _try(lease, DURATION, before) and _state(path) == before:
            _remove(path, before)
            _try(lease, 0.2, None)
    if not lease.is_locked:
        raise InUse(f"{what} is in use by {_holder(path)}; end it, or choose another --workdir")
    if before is not None:
        say(f"{what}: taken over from {holder}, which no longer runs")


def _try(lease: SoftFileLease, seconds: float, before: State) -> bool:
    """Whether the lock could be had within so many seconds; gives up at once when somebody touches the file."""
    changed = lambda: before is not None and _state(Path(lease.lock_file)) != before
    with contextlib.suppress(Timeout):
        lease.acquire(timeout=seconds, poll_interval=0.05, cancel_check=changed)
    return lease.is_locked


def _remove(path: Path, stale: State) -> None:
    """Removes the stale lock. If another process has replaced it meanwhile, puts that one back."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.stale")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)  # of several processes one succeeds
        if _state(aside) != stale:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _state(path: Path) -> State:
    try:
        with open(path) as file:
            stat = os.fstat(file.fileno())
            return file.read(), stat.st_ino, stat.st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(path: Path) -> str:
    owner = _lease(path).owner
    return "an unknown process" if owner is None else f"process {owner.pid} on {_host(owner.hostname)}"


def _host(name: str) -> str:
    """filelock adds the container's process namespace after a question mark."""
    name = name.partition("?")[0]
    return "this host" if name == socket.gethostname() else name


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lost(loss: LeaseCompromise) -> None:
    """This process was suspended for longer than DURATION and another has begun: it may not write any more."""
    if loss.reason == "owner-changed":
        sys.stderr.write(f"error: {loss.lock_file} was taken over by {_holder(Path(loss.lock_file))}; this one ends\n")
        os._exit(1)
