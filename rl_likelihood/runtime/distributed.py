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

from rl_likelihood import progress
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import watch
from rl_likelihood.runtime.watch import TOKEN, Unreachable, Watch, processes, write_error

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num_processes", "--process_id")
_watching: list[Watch] = []  # this process's Watch, if there are several processes
_number = 0  # this process's number, once the processes are connected


class SharedRefusal(UserError):
    """A refusal by every process, printed by process 0."""


class SharedUnreachable(SharedRefusal, Unreachable):
    """A refusal by every process, printed by process 0; another start may succeed."""


class SharedFailure(Exception):
    """An error of one process, known to all of them and already printed."""


def start(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, heartbeat: float = 30.0, wait: float = 300.0
) -> None:
    """Connects to the other processes, if there are any. Must be called before any other use of jax.

    Missing arguments come from the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or, if
    none is set, from a Cloud TPU's metadata. Raises Unreachable after `wait` seconds. If a process dies, the others
    notice within `heartbeat` seconds. One of them prints a line, and all end with exit code 1.
    """
    global _number
    arguments_given = (coordinator, str(num_processes or ""), "" if process_id < 0 else str(process_id))
    values = [value or os.environ.get(name, "") for value, name in zip(arguments_given, ENVIRONMENT, strict=True)]
    # /dev/vfio/0 exists on machines without a TPU too.
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
    # With a wrong coordinator, jax would wait silently for five minutes and abort with a page of C++.
    peers = _meet(arguments, wait) if arguments else None
    timeout = max(1, int(heartbeat))
    try:
        # The watch must notice a death before jax's own heartbeat, which aborts the process.
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=timeout + 30, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as e:
        raise Unreachable(f"--coordinator: the processes of this run did not find each other ({_line(e)})") from e
    if jax.process_count() == 1:
        return
    _number = jax.process_index()  # a TPU numbers its hosts itself
    progress.shown = first()
    numbers = gather(np.asarray([arguments.get("process_id", _number)])).tolist()
    if numbers != sorted(numbers):
        raise SharedRefusal(
            f"--process_id: the slice numbers the processes {', '.join(map(str, numbers))} as "
            f"{', '.join(map(str, range(len(numbers))))}; on a Cloud TPU leave {', '.join(FLAGS)} out, or number the "
            "processes as the slice does"
        )
    _watching.append(Watch(_number, peers or _connections(), heartbeat))
    _watching[0].begin()


def _meet(arguments: dict[str, Any], wait: float) -> dict[int, socket.socket]:
    """The watch's connections. They are made at the coordinator's address before jax uses it."""
    host, _, port = arguments["coordinator_address"].rpartition(":")
    host, number, count = host.strip("[]"), arguments["process_id"], arguments["num_processes"]
    token = f"{count:03d}rl_likelihood"[:TOKEN].encode()  # not a secret; it marks the processes of this run
    if number:
        return {0: watch.reach(host, int(port), token, number, wait)}
    try:
        with _listen(int(port), count) as server:
            return watch.admit(server, token, count, host, wait)
    except OSError as e:
        raise Unreachable(f"--coordinator: process 0 cannot listen on port {port} ({e.strerror or e})") from e


def _listen(port: int, count: int) -> socket.socket:
    """A server on every address of this machine, for IPv4 and IPv6."""
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=count + 16, dualstack_ipv6=dual_stack)


def _connections() -> dict[int, socket.socket]:
    """The watch's connections on a Cloud TPU, where jax finds the processes by itself.

    Process 0 connects with every other process. It listens on a free port, and sends the port and a token to the others
    through jax. Their connections begin with the token.
    """
    if not first():
        host, port, token = share(None)
        return {0: watch.reach(host, port, bytes.fromhex(token), _number)}
    with _listen(0, jax.process_count()) as server:
        host, _, token = share([_address(), server.getsockname()[1], secrets.token_hex(TOKEN)])
        return watch.admit(server, bytes.fromhex(token), jax.process_count(), host)


def _address() -> str:
    """The address at which other processes reach this one. If this process is the coordinator, it is the coordinator's
    address; else it is the address from which this process reaches the coordinator."""
    host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
    return host if global_state.process_id == 0 else watch.address_towards(host)


def say_error(text: str) -> None:
    """Prints in one line why this process ends. The watch then prints nothing more."""
    if _watching:
        _watching[0].quiet()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    write_error(text)


def finish(code: int = 0, together: bool = True, why: str = "") -> None:
    """Ends this process of a run. `together`: all processes end now. Otherwise only this one does, with an error: the
    others are told `why` and end too.

    With a code other than 0 the process exits here, without waiting for the others. Process 0 ends the others first:
    jax's coordinator ends with process 0, and jax would abort any process that ends a moment later.
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
    host, _, port = values[0].rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16 or not _is_name(host.strip("[]")):
        raise UserError(f"--coordinator is {values[0]!r}; it is HOST:PORT of process 0, such as 10.0.0.2:8476")
    for flag, value in zip(FLAGS[1:], values[1:], strict=True):
        if not value.isdecimal():
            raise UserError(f"{flag} is {value!r}; it must be a whole number")
    n, i = int(values[1]), int(values[2])
    if not 0 <= i < n:
        raise UserError(f"--process_id is {i}, but --num_processes is {n}; it must be from 0 to {n - 1}")
    return {"coordinator_address": values[0], "num_processes": n, "process_id": i}


def _is_name(host: str) -> bool:
    """Whether the resolver accepts the name; it raises UnicodeError for an empty part, or one of over 63 characters."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return _number == 0


@contextlib.contextmanager
def folder_of_first(folder: Path) -> Iterator[Path]:
    """The folder for files that every process writes: `folder` in process 0, a temporary folder in the others."""
    if first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def several() -> bool:
    return bool(_watching)


# ------------------------------------------------------------------------------------------ values between processes


def share(value: Any) -> Any:
    """Process 0's `value` (JSON), in every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.zeros(size, np.uint8)
    data[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)).decode())


def gather(tree: Any) -> Any:
    """Concatenates all processes' numpy arrays [N, ...], which have one shape, to [processes * N, ...]."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of every process, in the order of processes."""
    if jax.process_count() == 1:
        return [data]
    sizes = gather(np.asarray([len(data)], np.int64))
    padded = np.zeros((1, max(1, int(sizes.max()))), np.uint8)
    padded[0, : len(data)] = np.frombuffer(data, np.uint8)
    return [bytes(row[:n]) for row, n in zip(gather(padded), sizes, strict=True)]


def any_of(flag: bool) -> bool:
    """Whether `flag` is True in any process."""
    return bool(gather(np.asarray([flag])).any())


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """If an error is raised inside in any process, every process raises one that names the processes and their errors:
    a SharedRefusal if all are UserErrors, else a SharedFailure. A single process raises its own error.

    A process with another error prints it at once, because the others may reach this point much later.
    """
    if not several():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    unexpected = error is not None and not isinstance(error, UserError)
    if error is not None and unexpected:
        traceback.print_exception(error)
        line = f"error: process {jax.process_index()} has failed ({named(error)}); all end when they come to this point"
        print(line, file=sys.stderr, flush=True)
    if not any_of(error is not None):
        return
    texts = gather_bytes(b"" if error is None else (named(error) if unexpected else str(error)).encode())
    words = "; ".join(f"process {i}: {text.decode()}" for i, text in enumerate(texts) if text)
    refusal = SharedUnreachable if any_of(isinstance(error, Unreachable)) else SharedRefusal
    raise SharedFailure(words) if any_of(unexpected) else refusal(words)


def by_first(act: Callable[[], Any]) -> Any:
    """Runs `act()` in process 0 and returns its value (JSON) in every process. If it raises UserError, all raise it."""
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


def refuse_unshared(file: Path, text: str) -> None:
    """SharedRefusal unless every process reads process 0's `text` in `file`. Otherwise the folder is not shared."""
    if jax.process_count() == 1:
        return
    who = _without(file, lambda: file.read_text() == text, 60.0)  # an NFS client's listing may be a minute old
    if who:
        raise SharedRefusal(
            f"--workdir={file.parent} is not shared by all hosts: {who} cannot see what process 0 has written there; "
            "give a folder that all of them mount, by the same path"
        )


def await_file(path: Path, exists: bool = True, seconds: float = 120.0) -> None:
    """Waits until the file or folder exists in the view of every process, or with `exists` False until it is gone.

    On a network share, a host may see a listing that is a minute old. After `seconds`, all processes refuse.
    """
    blind = "" if jax.process_count() == 1 else _without(path, lambda: path.exists() == exists, seconds)
    if blind:
        problem = "cannot see it" if exists else "can see it still"
        first_sees = "can" if exists else "cannot"
        raise SharedUnreachable(
            f"{path}: {blind} {problem} after {seconds:g} s, though process 0 {first_sees}; start all again"
        )


def _without(file: Path, test: Callable[[], bool], seconds: float) -> str:
    """The processes, in words, for which `test` is not True within `seconds`."""
    passed, end = False, time.monotonic() + seconds
    while not passed and time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # refreshes a cached listing without the file
            passed = test()
        time.sleep(0 if passed else 0.2)
    without = np.flatnonzero(~gather(np.asarray([passed]))).tolist()
    return processes(without) if without else ""


def named(error: BaseException) -> str:
    """An error in one line, with its type."""
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:200]
