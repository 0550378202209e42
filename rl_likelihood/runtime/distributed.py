"""The processes of a run: how they find each other, exchange values, and end.

One process drives the devices of one host. All of them run the same program. Only process 0 writes files and prints.
The collectives here run on all devices: every process must call them at the same point, and never on the sampler's
thread.
"""

import contextlib
import importlib.util
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # the coordinator's address on a TPU, and whether that is this process
from jax.experimental import multihost_utils

from rl_likelihood.runtime import watch
from rl_likelihood.runtime.watch import TOKEN, Unreachable, Watch, processes, write_error
from rl_likelihood.shapes import UserError

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num_processes", "--process_id")
_watching: list[Watch] = []  # the one of this process, if there are several
_number = 0  # this process's, once they have found each other


class SharedRefusal(UserError):
    """A refusal by every process, printed by process 0."""


class SharedUnreachable(SharedRefusal, Unreachable):
    """A refusal by every process, printed by process 0; another start may succeed."""


class SharedFailure(Exception):
    """An error of one process, known to all of them and already printed."""


def start(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, heartbeat: float = 30.0, wait: float = 300.0
) -> None:
    """Joins the other processes, if there are any; before anything else of jax.

    Arguments that are not given come from the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID),
    or, where neither is set, from a Cloud TPU's metadata. Raises Unreachable after `wait` seconds. If a process dies,
    the others notice within `heartbeat` seconds. One of them prints a line, and all end with exit code 1.
    """
    global _number
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
    # jax would wait silently for a wrong coordinator, and abort with a page of C++ after five minutes.
    peers = _meet(arguments, wait) if arguments else None
    timeout = max(1, int(heartbeat))
    try:
        # The watch must notice a death before jax's own heartbeat, which aborts the process.
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=timeout + 30, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as e:
        raise Unreachable(f"--coordinator: the processes of this run did not find each other ({_line(e)})") from e
    if jax.process_count() == 1:
        return
    _number = jax.process_index()  # a TPU counts its hosts itself
    wanted = gather(np.asarray([arguments.get("process_id", _number)])).tolist()
    if wanted != sorted(wanted):
        raise SharedRefusal(
            f"--process_id: the processes {', '.join(map(str, wanted))} are to the devices "
            f"{', '.join(map(str, range(len(wanted))))}; on a Cloud TPU leave {', '.join(FLAGS)} out, or number the "
            "processes as the slice does"
        )
    _watching.append(Watch(_number, peers or _connections(), heartbeat))
    _watching[0].begin()


def _meet(arguments: dict[str, Any], wait: float) -> dict[int, socket.socket]:
    """The watch's connections, made at the coordinator's address before jax uses it."""
    host, _, port = arguments["coordinator_address"].rpartition(":")
    host, number, count = host.strip("[]"), arguments["process_id"], arguments["num_processes"]
    token = f"{count:03d}rl_likelihood"[:TOKEN].encode()  # no secret: it tells this run's processes from other programs
    if number:
        return {0: watch.reach(host, int(port), token, number, wait)}
    try:
        with _listen(int(port), count) as server:
            return watch.admit(server, token, count, host, wait)
    except OSError as e:
        raise Unreachable(f"--coordinator: process 0 cannot listen on port {port} ({e.strerror or e})") from e


def _listen(port: int, count: int) -> socket.socket:
    """A server on every address of this machine; the others may come by IPv4 or IPv6."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=count + 16, dualstack_ipv6=both)


def _connections() -> dict[int, socket.socket]:
    """The watch's connections on a Cloud TPU, where jax finds the processes by itself.

    Process 0 has one with every other process, and they have one with process 0. It listens on a free port, and sends
    the port and a token to the others through jax. Their connections begin with the token.
    """
    if not first():
        host, port, token = share(None)
        return {0: watch.reach(host, port, bytes.fromhex(token), _number)}
    with _listen(0, jax.process_count()) as server:
        host, _, token = share([_address(), server.getsockname()[1], secrets.token_hex(TOKEN)])
        return watch.admit(server, bytes.fromhex(token), jax.process_count(), host)


def _address() -> str:
    """The address at which other processes reach this one: the coordinator's if that is this process, else the one
    from which this process reaches the coordinator."""
    host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
    return host if global_state.process_id == 0 else watch.address_towards(host)


def say_error(text: str) -> None:
    """Prints why this process ends, in one line. The watch prints nothing more."""
    if _watching:
        _watching[0].quiet()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    write_error(text)


def finish(code: int = 0, together: bool = True, why: str = "") -> None:
    """Ends a process of several: `together` with the others, or alone, which ends the others too and tells them `why`.

    With a code other than 0 the process exits here, without waiting for other processes. Process 0 ends the others
    first: jax's coordinator is gone with it, and jax would abort a process that ends a moment later.
    """
    met = global_state.client is not None
    if _watching and together and (not code or not first()):
        if not code:
            _watching[0].await_first()
        _watching[0].leave()
    elif _watching:
        _watching[0].fail(code, _line(why))
    if code and met:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _checked(values: list[str]) -> dict[str, Any]:
    missing = [f"{flag} ({name})" for v, flag, name in zip(values, FLAGS, ENVIRONMENT, strict=True) if not v]
    if missing:
        raise UserError(f"{', '.join(missing)} missing; give all three: {', '.join(FLAGS)}")
    if not re.fullmatch(r".+:\d{1,5}", values[0]) or not 0 < int(values[0].rpartition(":")[2]) < 2**16:
        raise UserError(f"--coordinator is {values[0]!r}; it is HOST:PORT of process 0, such as 10.0.0.2:8476")
    for flag, value in zip(FLAGS[1:], values[1:], strict=True):
        if not value.isdigit():
            raise UserError(f"{flag} is {value!r}; it must be a whole number")
    n, i = int(values[1]), int(values[2])
    if not 0 <= i < n:
        raise UserError(f"--process_id is {i}, but --num_processes is {n}; it must be from 0 to {n - 1}")
    return {"coordinator_address": values[0], "num_processes": n, "process_id": i}


def first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return _number == 0


@contextlib.contextmanager
def folder_of_first(folder: Path) -> Iterator[Path]:
    """Where this process writes what all of them write: process 0 into `folder`, the others into a temporary one."""
    if first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        yield Path(other)


def several() -> bool:
    """Whether this run has more than one process."""
    return bool(_watching)


# ------------------------------------------------------------------------------------------ values between processes


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
    """Whether `flag` is True in any process."""
    return bool(gather(np.asarray([flag])).any())


def failure_of_any(error: Exception | None) -> Exception | None:
    """None if no process has an error; else, in every process, a SharedFailure that names the process and its error.

    The process with the error prints it at once: the others may reach this point much later.
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
    """Runs `act()` in process 0 and gives every process its value, JSON. All of them raise its UserError."""
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


def refuse_unshared(file: Path, text: str, seconds: float = 60.0) -> None:
    """Refuses, in every process, unless all of them read process 0's `text` in `file`: else its folder is not shared.

    `seconds` allows for a slow file server: an NFS client's listing may be a minute old.
    """
    if jax.process_count() == 1:
        return
    who = _without(file, lambda: file.read_text() == text, seconds)
    if who:
        raise SharedRefusal(
            f"--workdir={file.parent} is not shared by all hosts: {who} cannot see what process 0 has written there; "
            "give a folder that all of them mount, by the same path"
        )


def await_file(path: Path, there: bool = True, seconds: float = 120.0) -> None:
    """Waits until every process sees the file or folder that process 0 sees, or, if not `there`, until no process sees
    the one that process 0 has removed. After `seconds` all of them refuse.

    A network share may show one host a listing that is a minute old.
    """
    who = "" if jax.process_count() == 1 else _without(path, lambda: path.exists() == there, seconds)
    if who:
        what = "cannot see it" if there else "can see it still"
        how = "can" if there else "cannot"
        raise SharedUnreachable(f"{path}: {who} {what} after {seconds:g} s, though process 0 {how}; start all again")


def _without(file: Path, test: Callable[[], bool], seconds: float) -> str:
    """The processes, in words, for which `test` is not True within `seconds`."""
    passed, end = False, time.monotonic() + seconds
    while not passed and time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # else the file's absence may be remembered
            passed = test()
        time.sleep(0 if passed else 0.2)
    without = np.flatnonzero(~gather(np.asarray([passed]))).tolist()
    return processes(without) if without else ""


def named(error: BaseException) -> str:
    """An error in one line, with its type."""
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:200]
