"""Locks: one run at a time in a workdir, one evaluation at a time on a file of records. Built on filelock's lease.

The holder touches the lock file every HEARTBEAT seconds. A second process is refused as soon as it sees a touch. The
lock of a killed process is taken over at once on the same host, and after DURATION seconds without a touch from another
host. filelock takes a lock over by exchanging two file names. Network file systems cannot do that, so filelock would
wait for ever; `_remove` handles that case.
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

from rl_likelihood.errors import UserError

FILE = "LOCK"
HEARTBEAT, DURATION = 2.0, 30.0  # seconds; all processes must have the same DURATION
Say = Callable[[str], None]
State = tuple[str, int, int] | None  # a lock file's text, inode, and time of the last touch; None: no file


class InUse(UserError):
    """Another process holds the lock."""


def say_line(text: str) -> None:
    """Like `console.say`, which cannot be imported here: it imports run_files, which imports this module."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


@contextlib.contextmanager
def lock(workdir: Path, name: str = FILE, say: Say = say_line) -> Iterator[str]:
    """Holds the lock file `workdir`/`name`, which names the process and host of its holder. InUse if another process
    holds it.

    Yields the text of the file, which is unique to this process.
    """
    lease = _lease(workdir / name)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _acquire(lease, workdir if name == FILE else workdir / name, say)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{workdir}: it or a parent of it is a file; name a folder") from None
    except OSError as e:
        raise UserError(f"{workdir / name}: cannot be written ({e.strerror or e}); choose another folder") from None
    try:
        yield Path(lease.lock_file).read_text()
    finally:
        lease.release()


def in_use(workdir: Path, now: float | None = None, name: str = FILE) -> str:
    """The holder of the lock, as "process 7 on this host", or "". It does not wait and writes nothing.

    A holder counts as alive if it touched the file within DURATION and, on this host, if its process exists. `now`: the
    time by the file system's clock. The default is this host's clock, so the answer may be wrong if the clocks differ.
    `lock` waits for a touch, so its answer is reliable.
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


def _acquire(lease: SoftFileLease, target: Path, say: Say) -> None:
    """Takes the lock, or raises InUse. `target`: the path that messages name."""
    path = Path(lease.lock_file)
    old_state, holder = _state(path), _holder(path)
    if not _try(lease, HEARTBEAT + 1, old_state) and _state(path) == old_state:
        say(f"{target}: waiting up to {DURATION:.0f} s for a sign of {holder}")
        if not _try(lease, DURATION, old_state) and _state(path) == old_state:
            _remove(path, old_state)
            _try(lease, 0.2, None)
    if not lease.is_locked:
        raise InUse(f"{target} is in use by {_holder(path)}; end it, or choose another --workdir")
    if old_state is not None:
        say(f"{target}: taken over from {holder}, which no longer runs")


def _try(lease: SoftFileLease, seconds: float, old_state: State) -> bool:
    """Tries to take the lock for `seconds`; returns whether it did. Stops at once if the lock file changes."""
    changed = lambda: old_state is not None and _state(Path(lease.lock_file)) != old_state
    with contextlib.suppress(Timeout):
        lease.acquire(timeout=seconds, poll_interval=0.05, cancel_check=changed)
    return lease.is_locked


def _remove(path: Path, stale: State) -> None:
    """Removes the stale lock. If another process has replaced it in the meantime, restores that process's lock."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.stale")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)  # only one of several processes succeeds
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
    """The host in words. filelock appends the container's process namespace after a question mark."""
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
    """Ends this process if another one has taken its lock, which happens if it was suspended longer than DURATION."""
    if loss.reason == "owner-changed":
        sys.stderr.write(f"error: {loss.lock_file} was taken over by {_holder(Path(loss.lock_file))}; this one ends\n")
        os._exit(1)
