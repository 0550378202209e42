"""Runs an untrusted program in a sandbox and reports whether it ran to its end.

Guaranteed on any Unix, with the program alone in its process group and an empty temporary directory as the place it
starts in: it is killed, with its group, at the deadline; its address space, file sizes, open files and processor time
are limited; it gets none of our environment, files or standard input; its output is cut.

Guaranteed where Linux gives unprivileged users namespaces (`Result.isolation` says, and `isolation()` asks):
    network    there is none, not even the loopback interface of the machine; sockets that other programs of our user
               keep in the file system are refused by the audit hook only
    processes  it sees and signals only its own, and all of them end with it, whatever group they moved to
    files      everything is read-only but its directory, which is in memory and goes with it
Where it does not (an ordinary container often refuses), no program is run: OSError, unless Limits.namespaces allows it.
Everywhere Python's audit hook refuses sockets, new processes, signals and ctypes, and without `files` what would change
a file outside of its directory. That stops programs that try, not an attacker of the interpreter. Never guaranteed:
that it cannot read what our user can read (without a network it has few to tell), or, run as root, a limit on the
number of its processes (only their end).

With a `Check` the verdict is formed in another process, which calls the program's function and gets plain data back:
the program cannot forge it, but where there are no namespaces a hostile one may still find a way. Without a `Check` a
pass means that the program says it ran to its last line. Leaving early, by sys.exit() or os._exit(0), is no pass.
"""

import contextlib
import dataclasses
import enum
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_SANDBOX = str(Path(__file__).with_name("sandbox.py"))
_STATUS_BYTES = 65_536


class Outcome(enum.Enum):
    """What became of a program."""

    PASSED = "passed"  # it ran to its end
    FAILED = "failed"  # it raised, or left before its end
    TIMEOUT = "timeout"  # it was killed at the deadline
    CRASHED = "crashed"  # a signal ended it, or it reached its memory limit


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use. `seconds`: wall time; `processes` includes threads, and is not enforced for root.

    namespaces: keep network, processes and files from it. True: or do not run it; None: as far as this machine can;
    False: not at all. See the module.
    """

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20  # of each file, and of its directory where that is in memory
    processes: int = 16
    output_bytes: int = 65_536  # standard output and error together; what comes after is read and dropped
    namespaces: bool | None = True


class Check(NamedTuple):
    """Tests: after `setup` and `tests` (Python source, trusted), check(entry_point) must not raise."""

    setup: str
    tests: str
    entry_point: str


class Result(NamedTuple):
    """`output`: the start of what it printed; `detail`: the exception or signal; `isolation`: see the module."""

    outcome: Outcome
    output: str
    detail: str
    isolation: tuple[str, ...]


def run_program(program: str, limits: Limits | None = None, check: Check | None = None) -> Result:
    """Runs Python source with the standard library of this interpreter, in a fresh process. Takes about 50 ms.

    With a check the program's function is then called by its tests, in a process beside it; arguments and values are
    copies of plain data (numbers, strings, lists, tuples, sets, dicts, bytes, None), anything else is an error.
    Raises OSError where the machine cannot start or isolate it, or the check cannot be read: not the program's failure.
    """
    limits = limits or Limits()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        source = stack.enter_context(tempfile.TemporaryFile())
        source.write(program.encode("utf-8", "surrogatepass"))
        source.seek(0)
        tests = -1
        if check is not None:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(json.dumps(check._asdict()).encode())
            file.seek(0)
            tests = file.fileno()
        status, status_end = os.pipe()
        stack.callback(os.close, status)
        try:
            entry_point = check.entry_point if check else ""
            ours = {"status": status_end, "check": tests, "entry_point": entry_point}
            settings = json.dumps({**dataclasses.asdict(limits), **ours})
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-u", "-X", "utf8", _SANDBOX, settings],
                cwd=folder,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(status_end,) if check is None else (status_end, tests),
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
            )
        finally:
            os.close(status_end)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        said: list[str] = []
        try:
            said, output, in_time = _listen(process.stdout.fileno(), status, limits)
        finally:
            _kill_child(said)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # before wait(): until then the number is nobody else's
            process.wait()
    return _judge(said, output.decode("utf-8", "replace"), in_time)


def _kill_child(said: list[str]) -> None:
    """The program by its own number, and with it its namespace: it may have left the group and its parent's fate."""
    by_name = dict(line.partition(" ")[::2] for line in said)
    if by_name.get("child", "").isdigit() and "ended" not in by_name:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(by_name["child"]), signal.SIGKILL)


def _listen(stdout: int, status: int, limits: Limits) -> tuple[list[str], bytes, bool]:
    """(status lines, output, whether the program came to an end by itself before the deadline)."""
    deadline = time.monotonic() + limits.seconds
    said, output = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(status, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for ready, _ in selector.select(left):
                data = os.read(ready.fd, 65_536)
                if not data:
                    selector.unregister(ready.fd)
                elif ready.fd == stdout:
                    output += data[: limits.output_bytes - len(output)]
                elif len(said) < _STATUS_BYTES:
                    said += data
            if b"\nended " in said or status not in selector.get_map():
                while len(output) < limits.output_bytes and _readable(stdout) and (data := os.read(stdout, 65_536)):
                    output += data[: limits.output_bytes - len(output)]
                return said.decode("utf-8", "replace").split("\n"), output, True
    return said.decode("utf-8", "replace").split("\n"), output, False


def _readable(fd: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(0))


def _judge(said: list[str], output: str, in_time: bool) -> Result:
    words = [line.partition(" ") for line in said]
    by_name = {name: value for name, _, value in words}
    if "refused" in by_name:
        raise OSError(f"this machine keeps {by_name['refused']} from a program, not network, processes and files")
    if "ready" not in by_name:
        why = output[-500:].strip() or ("it said nothing" if in_time else "there was no time")
        raise OSError(f"the child process for a program could not be set up: {why}")
    isolation = tuple(by_name["ready"].split())
    if "unreadable" in by_name:
        raise OSError(f"the tests of a program cannot be read: {by_name['unreadable']}")
    if "passed" in by_name:
        return Result(Outcome.PASSED, output, "", isolation)
    if "memory" in by_name:
        return Result(Outcome.CRASHED, output, "MemoryError", isolation)
    if "failed" in by_name:
        return Result(Outcome.FAILED, output, by_name["failed"], isolation)
    if not in_time:
        return Result(Outcome.TIMEOUT, output, "", isolation)
    code = by_name.get("ended", "")
    if code.startswith("-"):
        return Result(Outcome.CRASHED, output, f"signal {code[1:]}", isolation)
    return Result(Outcome.FAILED, output, f"left before its end with exit code {code}", isolation)


def isolation() -> tuple[str, ...]:
    """Which of network, processes and files this machine can keep from a program: see the module."""
    return run_program("", Limits(seconds=30.0, namespaces=None)).isolation
