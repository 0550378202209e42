"""Ways to run the points of a sweep: processes of this machine, printed commands, and (`ray_runner`) tasks of ray.

Each attempt is a process of its own, with its output in log.txt of the run folder. Its exit code and STATUS say how it
ended, and the runner notes that in the run folder. A failed attempt is repeated up to three times, a preempted one
without limit. The same error twice in a row stops the point (`grid.history`). If the runner itself is killed, its runs
go on, and the next runner waits for them.
"""

import collections
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rl_likelihood.errors import INTERRUPTED, UserError
from rl_likelihood.progress import duration
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.signals import Requests
from rl_likelihood.sweeps import grid

# Signals of a crash. Any other signal that kills a process counts as preemption.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS}
# Seconds before a preempted run that made no step is started again; doubled each time, up to the second number.
PAUSE = (1.0, 60.0)
AGAIN = 1.0  # seconds until the next look at a run that another process holds
# Linux: sends the program SIGTERM, on which it saves, when its parent process dies.
_DIES_WITH_PARENT = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to make: its name for people, its folder, the command that begins it or goes on with it.

    `cwd`: the folder that the command is run from; None: this process's.
    """

    name: str
    workdir: Path
    command: tuple[str, ...]
    cwd: Path | None = None


@dataclasses.dataclass
class Attempt:
    """A process at work on a job. `lock` is the folder's; `log_from` where its own output begins."""

    job: Job
    process: subprocess.Popen
    lock: contextlib.ExitStack
    log_from: int
    status_before: int  # when STATUS was written last, ns
    began: float


Say = Callable[[str], None]


# ------------------------------------------------------------------------------------------- one attempt


def start(job: Job, cores: set[int] | None = None, orphan: bool = True) -> Attempt | None:
    """Starts an attempt on these CPU cores; None if another process holds the job.

    `orphan`: the attempt goes on if this process is killed. Otherwise it saves and ends.
    """
    lock = grid.hold(job.workdir)
    if lock is None:
        return None
    try:
        status_before = _status_time(job.workdir)
        wrapper = () if orphan or sys.platform != "linux" else _DIES_WITH_PARENT
        with (job.workdir / grid.LOG).open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(job.command)}\n".encode())
            log.flush()
            log_from = log.tell()
            with _pinned(cores):
                # A session of its own: Ctrl-C reaches the runner alone, which passes it on once.
                process = subprocess.Popen(
                    [*wrapper, *job.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=job.cwd,
                )
        grid.note(job.workdir, "start", time=round(time.time()), host=os.uname().nodename, pid=process.pid)
    except BaseException as error:
        lock.close()
        if isinstance(error, OSError):
            raise UserError(f"{job.workdir}: {job.command[0]} cannot be started ({error.strerror})") from error
        raise
    return Attempt(job, process, lock, log_from, status_before, time.monotonic())


@contextlib.contextmanager
def _pinned(cores: set[int] | None):
    """What this thread starts runs on these cores: a process inherits them, and its thread pools count them."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _status_time(workdir: Path) -> int:
    path = workdir / run_files.STATUS
    return path.stat().st_mtime_ns if path.exists() else 0


def finish(attempt: Attempt) -> str:
    """Notes how an attempt ended, and returns it: done, failed, preempted, or elsewhere.

    elsewhere: another process held the folder, which this attempt noticed only after its start.
    """
    job, code = attempt.job, attempt.process.returncode
    status = run_files.read_status(job.workdir) if _status_time(job.workdir) != attempt.status_before else None
    said = (status or {}).get("state", "")
    killed = -code if code < 0 else code - 128 if 128 < code < 160 else 0  # a shell adds 128
    values = {"code": code, "seconds": round(time.monotonic() - attempt.began, 1)}
    if code == 0 and said in ("done", "interrupted"):
        outcome = "done" if said == "done" else "preempted"
    elif killed and killed not in CRASHES:
        outcome = "preempted"
    elif code and grid.taken(job.workdir):
        outcome = "elsewhere"
    else:
        outcome = "failed"
        values["error"] = _why(attempt, code, killed, status or {})
    grid.note(job.workdir, outcome, **values)
    attempt.lock.close()
    return outcome


def _why(attempt: Attempt, code: int, killed: int, status: dict) -> str:
    """The error of a failed attempt in one line: from STATUS, or the last line of its log."""
    if status.get("state") == "failed" and status.get("error"):
        return status["error"]
    if killed:
        return f"crashed with {signal.Signals(killed).name}"
    if code == 0:
        return f"ended without error, but {run_files.STATUS} does not say done"
    with (attempt.job.workdir / grid.LOG).open("rb") as log:
        log.seek(attempt.log_from)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ")[:500] if lines else f"exit code {code} without a word"


def pause_of(workdir: Path, pause: tuple[float, float] = PAUSE) -> float:
    """Seconds to wait before a preempted run is started again: more each time that it made no step."""
    still = 0
    rows = grid.read_attempts(workdir)
    for before, after in zip(rows[-2::-1], rows[:0:-1], strict=False):
        if after["event"] == "preempted":
            if after["step"] > before["step"]:
                break
            still += 1
    return min(pause[1], pause[0] * 2 ** (still - 1)) if still else 0.0


# ------------------------------------------------------------------------------------------- this machine


def shares(at_once: int) -> list[set[int] | None]:
    """The cores of this process in `at_once` equal shares; None where cores cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * at_once
    cores = sorted(os.sched_getaffinity(0))
    if at_once > len(cores):
        raise UserError(f"--jobs is {at_once}, but there are {len(cores)} CPU cores; it must be at most that")
    return [set(cores[i * len(cores) // at_once : (i + 1) * len(cores) // at_once]) for i in range(at_once)]


def run_local(jobs: Sequence[Job], at_once: int, say: Say, pause: tuple[float, float] = PAUSE) -> int:
    """Run the jobs as processes of this machine, `at_once` at a time on equal shares of its cores; an exit code.

    0: all are done; 1: some are stopped; 130: interrupted, which saves every run.
    A job that must be tried again goes to the back of the queue. So does one that another process holds: if that
    process dies, this one takes over.
    """
    free = shares(at_once)
    queue = collections.deque((job, 0.0) for job in jobs)  # (job, not before)
    running: dict[int, tuple[Attempt, set[int] | None]] = {}
    ended, met = collections.Counter(), set()  # met: runs that other processes hold
    asked, passed_on = Requests(), 0
    try:
        while running or (queue and not asked.times):
            while asked.times > passed_on and running:
                passed_on += 1
                number = asked.first if passed_on == 1 else signal.SIGINT
                _pass_on([attempt for attempt, _ in running.values()], passed_on, number, say)
            for _ in range(len(queue) if free and not asked.times else 0):
                job, not_before = queue.popleft()
                if not free or time.monotonic() < not_before:
                    queue.append((job, not_before))
                    continue
                known = grid.state(job.workdir).kind
                if known in ("done", "stopped"):  # another sweep has finished it meanwhile
                    ended[known] += 1
                    continue
                cores = free.pop(0)
                attempt = start(job, cores)
                if attempt is None:
                    if job.name not in met:
                        met.add(job.name)
                        who = grid.held(job.workdir) or "another process"
                        say(f"elsewhere  {job.name}: {who} is at work on it; its end is waited for")
                    free.insert(0, cores)
                    queue.append((job, time.monotonic() + AGAIN))
                    continue
                where = f"cores {','.join(map(str, sorted(cores)))}" if cores else "all cores"
                say(f"starts     {job.name}  ({where}; {job.workdir / grid.LOG})")
                running[attempt.process.pid] = attempt, cores
            for pid in [pid for pid, (attempt, _) in running.items() if attempt.process.poll() is not None]:
                attempt, cores = running.pop(pid)
                free.append(cores)
                outcome = report(attempt.job, finish(attempt), time.monotonic() - attempt.began, say)
                if outcome in ("failed", "preempted", "elsewhere"):
                    wait = pause_of(attempt.job.workdir, pause) if outcome == "preempted" else 0.0
                    queue.append((attempt.job, time.monotonic() + wait))
                else:
                    ended[outcome] += 1
            time.sleep(0.05)
    finally:
        asked.restore()
    if asked.times:
        say(f"interrupted: {ended['done']} done, {len(queue)} to go; run the same command to resume")
        return INTERRUPTED
    return verdict(ended, say)


def _pass_on(attempts: Iterable[Attempt], times: int, number: int, say: Say) -> None:
    """Passes a request to stop on to the runs: the first two as the signal `number`, the third as a kill of all their
    processes."""
    words = ("stopping after their steps (again: at once)", "stopping at once (again: kill)", "killing")
    say(f"{words[min(times, 3) - 1]}: the runs at work")
    for attempt in attempts:
        with contextlib.suppress(ProcessLookupError):  # ended by itself in between
            if times < 3:
                os.kill(attempt.process.pid, number)
            else:
                os.killpg(attempt.process.pid, signal.SIGKILL)


def report(job: Job, outcome: str, seconds: float, say: Say) -> str:
    """Prints how an attempt ended, and returns it: "stopped" instead of failed if it is not tried again."""
    state = grid.state(job.workdir)
    took = duration(seconds)
    if outcome == "done":
        say(f"done       {job.name}  ({took})")
    elif outcome == "preempted":
        say(f"preempted  {job.name} after step {state.step} ({took}; {state.preemptions} times so far): it resumes")
    elif outcome == "elsewhere":
        say(f"elsewhere  {job.name}: another process was first; its end is waited for")
    elif state.why:
        outcome = "stopped"
        say(f"stopped    {job.name}: {state.why}; mend it, then --retry")
    else:
        say(f"failed     {job.name}: {state.error} (retry {state.failures} of {grid.RETRIES})")
    return outcome


def verdict(ended: dict[str, int], say: Say) -> int:
    say(", ".join(f"{n} {kind}" for kind, n in ended.items() if n) or "nothing to do")
    return int(any(n for kind, n in ended.items() if kind != "done"))


# ------------------------------------------------------------------------------------------- print


def print_commands(jobs: Sequence[Job], say: Say) -> int:
    """The commands, one a line, for any other scheduler; the same command again resumes."""
    for job in jobs:
        command = ["python" if part == sys.executable else part for part in job.command]
        say(shlex.join(command))
    return 0
