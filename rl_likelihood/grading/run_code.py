"""Runs an untrusted program in a sandbox and reports whether it ran to its end.

On any Unix it starts in an empty temporary directory, gets none of our environment, files or standard input, and is
killed with its process group at the deadline; memory, file sizes, open files and processor time are limited. Linux's
user namespaces, which an ordinary container often refuses, add what `Result.isolation` names:
    network    there is none, not even the loopback interface of the machine; sockets that other programs of our user
               keep in the file system are refused by the audit hook only
    processes  it sees and signals only its own, and all of them end with it, whatever group they moved to
    files      everything is read-only but its directory, which is in memory and goes with it
Without them no program is run: OSError, unless Limits.namespaces allows it. docs/grading.md says what holds then.

With a `Check` the verdict is formed in another process, which calls the program's function and gets plain data back:
the program cannot forge it, but where there are no namespaces a hostile one may still find a way. Without a `Check` a
pass means that the program says it ran to its last line. Leaving early, by sys.exit() or os._exit(0), is no pass.
"""

import contextlib
import dataclasses
import enum
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_SANDBOX = str(Path(__file__).with_name("sandbox.py"))


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
    namespaces: bool | None = True


class Check(NamedTuple):
    """Tests: after `setup` and `tests` (Python source, trusted), check(entry_point) must not raise."""

    setup: str
    tests: str
    entry_point: str


class Result(NamedTuple):
    """`detail`: the exception or signal; `isolation`: see the module."""

    outcome: Outcome
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
        ours = {"check": tests, "entry_point": check.entry_point if check else ""}
        settings = json.dumps({**dataclasses.asdict(limits), **ours})
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-u", "-X", "utf8", _SANDBOX, settings],
                cwd=folder,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=() if check is None else (tests,),
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
            )
        )
        status = errors = b""
        try:
            status, errors = process.communicate(timeout=limits.seconds)
        except subprocess.TimeoutExpired as late:
            status, errors = late.output or b"", late.stderr or b""
        finally:
            # Its words by name. Only "\n" ends a line: the program may have written the others.
            said = dict(line.partition(" ")[::2] for line in status.decode("utf-8", "replace").split("\n"))
            if "ended" not in said:
                _kill(process.pid, said)
        in_time = process.returncode is not None
    return _judge(said, errors.decode("utf-8", "replace"), in_time)


def _kill(sandbox: int, said: dict[str, str]) -> None:
    """The program by its own number, and with it its namespace, for it may have left the group; then the group."""
    with contextlib.suppress(ProcessLookupError):
        if "child" in said:
            os.kill(int(said["child"]), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(sandbox, signal.SIGKILL)


def _judge(said: dict[str, str], errors: str, in_time: bool) -> Result:
    if "refused" in said:
        raise OSError(f"this machine keeps {said['refused']} from a program, not network, processes and files")
    if "ready" not in said:
        why = errors[-500:].strip() or ("it said nothing" if in_time else "there was no time")
        raise OSError(f"the child process for a program could not be set up: {why}")
    isolation = tuple(said["ready"].split())
    if "unreadable" in said:
        raise OSError(f"the tests of a program cannot be read: {said['unreadable']}")
    if "passed" in said:
        return Result(Outcome.PASSED, "", isolation)
    if "memory" in said:
        return Result(Outcome.CRASHED, "MemoryError", isolation)
    if "failed" in said:
        return Result(Outcome.FAILED, said["failed"], isolation)
    if not in_time:
        return Result(Outcome.TIMEOUT, "", isolation)
    code = said.get("ended", "")
    if code.startswith("-"):
        return Result(Outcome.CRASHED, f"signal {code[1:]}", isolation)
    return Result(Outcome.FAILED, f"left before its end with exit code {code}", isolation)


def isolation() -> tuple[str, ...]:
    """Which of network, processes and files this machine can keep from a program: see the module."""
    return run_program("", Limits(seconds=30.0, namespaces=None)).isolation
