"""The processes of a run: how they find each other, what they tell each other, and what happens when one dies.

One process drives the devices of one host. All of them run the same program; process 0 alone writes files and talks.
The collectives here run on all devices, so every process must call them at the same point, and never on the
sampler's thread.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib.util
import json
import os
import secrets
import selectors
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed as runtime  # the coordinator's address on a TPU, our number before there are devices
from jax.experimental import multihost_utils

from rl_likelihood.shapes import UserError

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num_processes", "--process_id")
LOST = 1  # exit code of a process that has lost another
ADVICE = "hosts must be able to reach each other on any port: open the firewall between the workers"
_watching: list[Watch] = []  # the one of this process, if there are several


class SharedRefusal(UserError):
    """A refusal that every process makes, and the first has said."""


class Unreachable(UserError):
    """The processes did not find each other: no fault of the settings, and another start may succeed."""


class SharedFailure(Exception):
    """An error of one process that all of them know of; it has been said."""


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1, heartbeat: float = 30.0) -> None:
    """Joins the other processes, if there are any; before anything else of jax.

    What the arguments leave open the environment says (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID);
    with neither, a Cloud TPU's own metadata, where there are chips. A process that dies is noticed by the others
    within `heartbeat` seconds: one of them says so in a line, and all end with exit code 1.
    """
    given = (coordinator, str(num_processes or ""), "" if process_id < 0 else str(process_id))
    values = [value or os.environ.get(name, "") for value, name in zip(given, ENVIRONMENT, strict=True)]
    # The second is there on other machines too.
    devices = any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))
    chips = devices and importlib.util.find_spec("libtpu") is not None
    if not any(values):
        if not chips or jax.config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS", "") == "cpu":
            return
        arguments: dict[str, Any] = {}
    else:
        arguments = _checked(values)
        if arguments["num_processes"] == 1:
            return
    timeout = max(1, int(heartbeat))
    try:
        # Ours is quicker, and says it in a line; jax's own, which aborts, is behind it.
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=timeout + 30, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as e:
        raise Unreachable(f"--coordinator: the processes of this run did not find each other ({_line(e)})") from e
    if arguments and jax.process_index() != runtime.global_state.process_id:  # a TPU counts its hosts itself
        raise UserError(
            f"--process_id is {runtime.global_state.process_id}, but the devices say {jax.process_index()}: on a Cloud "
            f"TPU leave {', '.join(FLAGS)} out, or number the processes as the slice does"
        )
    if jax.process_count() > 1:
        host = runtime.global_state.coordinator_address.rpartition(":")[0].strip("[]")
        _watching.append(Watch(host, heartbeat))
        _watching[0].begin()


def finish(code: int = 0, together: bool = True, why: str = "") -> None:
    """Before the end of a process of several: `together` with the others, or by itself, which ends them too and says
    `why`.

    With a code other than 0 it ends here: nothing that waits for other processes may be waited for.
    """
    if not _watching:
        return
    if together:
        _watching[0].leave()
    else:
        _watching[0].fail(code, _line(why))
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _checked(values: list[str]) -> dict[str, Any]:
    missing = [f"{flag} ({name})" for v, flag, name in zip(values, FLAGS, ENVIRONMENT, strict=True) if not v]
    if missing:
        raise UserError(f"{', '.join(missing)} missing; give all three: {', '.join(FLAGS)}")
    if ":" not in values[0]:
        raise UserError(f"--coordinator is {values[0]!r}; it is HOST:PORT of process 0, such as 10.0.0.2:8476")
    for flag, value in zip(FLAGS[1:], values[1:], strict=True):
        if not value.isdigit():
            raise UserError(f"{flag} is {value!r}; it must be a whole number")
    n, i = int(values[1]), int(values[2])
    if not 0 <= i < n:
        raise UserError(f"--process_id is {i}, but --num_processes is {n}; it must be from 0 to {n - 1}")
    return {"coordinator_address": values[0], "num_processes": n, "process_id": i}


def first() -> bool:
    """Whether this process writes files and talks."""
    return runtime.global_state.process_id == 0


@contextlib.contextmanager
def folder_of_first(folder: Path) -> Iterator[Path]:
    """Where this process writes what all of them write alike: `folder` in the first, elsewhere one that nobody reads
    and that is gone afterwards."""
    if first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        yield Path(other)


def several() -> bool:
    """Whether this run has more than one process."""
    return bool(_watching)


# ------------------------------------------------------------------------------------------ what they tell each other


def share(value: Any) -> Any:
    """Process 0's `value`, JSON, in every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.zeros(size, np.uint8)
    data[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)).decode())


def gather(tree: Any) -> Any:
    """The processes' numpy arrays [N, ...], of one shape, one after the other [processes * N, ...]."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def gather_bytes(data: bytes) -> list[bytes]:
    """Every process's bytes, by process."""
    if jax.process_count() == 1:
        return [data]
    sizes = gather(np.asarray([len(data)], np.int64))
    padded = np.zeros((1, max(1, int(sizes.max()))), np.uint8)
    padded[0, : len(data)] = np.frombuffer(data, np.uint8)
    return [bytes(row[:n]) for row, n in zip(gather(padded), sizes, strict=True)]


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return bool(gather(np.asarray([flag])).any())


def failure_of_any(error: Exception | None) -> Exception | None:
    """None if no process has an error; else, in every process, one that says whose, and what it is.

    The process whose it is says it at once: it may be long until the others come to this point.
    """
    if error is not None:
        traceback.print_exception(error)
        line = f"error: process {jax.process_index()} has failed ({named(error)}); all end when they come to this point"
        print(line, file=sys.stderr, flush=True)
    if not any_of(error is not None):
        return None
    texts = gather_bytes(b"" if error is None else named(error).encode())
    return SharedFailure("; ".join(f"process {i}: {text.decode()}" for i, text in enumerate(texts) if text))


def by_first(act: Callable[[], Any]) -> Any:
    """What `act()` gives in process 0, JSON, in every process; its UserError is everybody's."""
    if jax.process_count() == 1:
        return act()
    value, refused = None, ""
    if first():
        try:
            value = act()
        except UserError as e:
            refused = str(e)
    value, refused = share([value, refused])
    if refused:
        raise SharedRefusal(refused)
    return value


def refuse_unshared(file: Path, text: str, seconds: float = 10.0) -> None:
    """Refuses, in every process, unless all of them find `text`, process 0's, in `file`: else its folder is not shared.

    A file server may take some of `seconds` until it shows to one host what another has written.
    """
    if jax.process_count() == 1:
        return
    who = _without(file, lambda: file.read_text() == text, seconds)
    if who:
        raise SharedRefusal(
            f"--workdir={file.parent} is not shared by all hosts: {who} cannot see what process 0 has written there; "
            "give a folder that all of them mount, by the same path"
        )


def await_file(path: Path, seconds: float = 120.0) -> None:
    """Waits until every process sees the file or folder that process 0 sees; refuses, in all, after `seconds`.

    A host of a network share may go by a listing that is a minute old.
    """
    who = "" if jax.process_count() == 1 else _without(path, path.exists, seconds)
    if who:
        raise SharedRefusal(f"{path}: {who} cannot see it after {seconds:g} s, though process 0 can; start all again")


def _without(file: Path, seen: Callable[[], bool], seconds: float) -> str:
    """The processes, in words, that do not see a file within `seconds`."""
    found, end = False, time.monotonic() + seconds
    while not found and time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # else the file's absence may be remembered
            found = seen()
        time.sleep(0 if found else 0.2)
    without = np.flatnonzero(~gather(np.asarray([found]))).tolist()
    return _processes(without) if without else ""


def _processes(numbers: list[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


# ------------------------------------------------------------------------------------------ who is alive


TOKEN = 16  # bytes


def admit(
    server: socket.socket, token: bytes, count: int, host: str, seconds: float = 60.0
) -> dict[int, socket.socket]:
    """The connections of processes 1 to `count` - 1, by number, each of which begins with the token and the number (4
    bytes); a stranger's is closed. UserError if one does not come within `seconds`."""
    peers: dict[int, socket.socket] = {}
    end = time.monotonic() + seconds
    while missing := [i for i in range(1, count) if i not in peers]:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            where = f"process 0 at {host}:{server.getsockname()[1]}"
            raise Unreachable(f"{_processes(missing)} did not reach {where} within {seconds:g} s; {ADVICE}") from None
        got = b""
        connection.settimeout(min(5.0, seconds))  # who says nothing does not keep the others out
        with contextlib.suppress(OSError):
            while len(got) < TOKEN + 4 and (part := connection.recv(TOKEN + 4 - len(got))):
                got += part
        number = int.from_bytes(got[TOKEN:], "big")
        if hmac.compare_digest(got[:TOKEN], token) and number in missing:
            peers[number] = connection
        else:
            connection.close()
    return peers


def reach(host: str, port: int, token: bytes, number: int, seconds: float = 60.0) -> socket.socket:
    """Process `number`'s connection with process 0, which listens there; UserError if it cannot be made."""
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
        connection.sendall(token + number.to_bytes(4, "big"))
    except OSError as e:
        why = e.strerror or str(e)
        raise Unreachable(f"process {number} cannot reach process 0 at {host}:{port} ({why}); {ADVICE}") from e
    return connection


class Watch:
    """A connection of every process with process 0, over which each says now and then that it lives.

    jax's own service notices a dead process too, and aborts the others with a page of C++. A dead process's
    connections are closed by its kernel at once, a silent host's are quiet: either is said here first, in one line, by
    process 0, which ends the others, or by process 1 if it is process 0 that died. Lines of the connection:

        .                 alive
        quit              about to end as all do, so the closing of the connection is no death
        failed CODE WHY   to process 0: about to end by an error of its own
        end CODE          from process 0, which has said why

    Process 0 listens on a port that is free, and tells the others which through jax, with a token that their
    connections begin with.
    """

    def __init__(self, host: str, heartbeat: float) -> None:
        self.heartbeat = heartbeat
        self.over = False
        count, me = jax.process_count(), jax.process_index()
        server, known = None, np.zeros(2 + TOKEN, np.uint8)  # the port, the token
        if me == 0:
            server = socket.create_server(("", 0), backlog=count + 16)
            port = server.getsockname()[1].to_bytes(2, "big")
            known = np.frombuffer(port + secrets.token_bytes(TOKEN), np.uint8)
        known = bytes(np.asarray(multihost_utils.broadcast_one_to_all(known), np.uint8))
        port, token = int.from_bytes(known[:2], "big"), known[2:]
        if me == 0:
            with server:
                self.peers = admit(server, token, count, host)
        else:
            self.peers = {0: reach(host, port, token, me)}

    def begin(self) -> None:
        """Watch from now to the end of the process."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def leave(self) -> None:
        """No more: this process is about to end as it should."""
        self.over = True
        self._send("quit")

    def fail(self, code: int, why: str) -> None:
        """This process is about to end by an error of its own, with `code`: the others end with it too."""
        self.over = True
        self._send(f"end {code}" if runtime.global_state.process_id == 0 else f"failed {code} {why}")

    def _send(self, line: str) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line.encode() + b"\n")

    def _watch(self) -> None:
        heard = dict.fromkeys(self.peers, time.monotonic())
        waiting = dict.fromkeys(self.peers, b"")  # the beginning of a line
        said = 0.0
        with selectors.DefaultSelector() as ready:
            for number, peer in self.peers.items():
                peer.settimeout(self.heartbeat)
                ready.register(peer, selectors.EVENT_READ, number)
            while heard and not self.over:
                for key, _ in ready.select(min(1.0, self.heartbeat / 4)):
                    number = key.data
                    try:
                        got = key.fileobj.recv(4096)
                    except OSError:
                        got = b""
                    *lines, waiting[number] = (waiting[number] + got).split(b"\n")
                    for line in lines:
                        self._heed(number, line.decode(errors="replace"))
                    if b"quit" in lines:
                        ready.unregister(key.fileobj)
                        heard.pop(number)
                    elif got:
                        heard[number] = time.monotonic()
                    else:
                        self._lost(number, "is gone")
                now = time.monotonic()
                for number, when in heard.items():
                    if now - when > self.heartbeat:
                        self._lost(number, f"has not been heard of for {self.heartbeat:g} s (pod.heartbeat)")
                if now - said > self.heartbeat / 4:
                    said = now
                    for number in heard:
                        try:
                            self.peers[number].sendall(b".\n")
                        except OSError:
                            self._lost(number, "is gone")

    def _heed(self, number: int, line: str) -> None:
        word, _, rest = line.partition(" ")
        code, _, why = rest.partition(" ")
        if word == "end" and not self.over:
            os._exit(int(code))
        if word == "failed":
            self._lost(number, f"has failed ({why})", int(code))

    def _lost(self, number: int, how: str, code: int = LOST) -> None:
        if self.over:
            return
        me = runtime.global_state.process_id
        if me <= 1:
            line = f"error: process {number} {how}; all end; start all again to resume from the last checkpoint\n"
            os.write(sys.stderr.fileno(), line.encode())
        if me == 0:
            self._send(f"end {code}")
        os._exit(code)  # nothing that waits for the lost one may be waited for


def named(error: BaseException) -> str:
    """An error in one line, with its type."""
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:200]
