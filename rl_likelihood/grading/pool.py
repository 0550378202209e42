"""Grading that cannot stop a run: graders that may hang or crash work in processes that are killed at a deadline.

    with Pool() as pool:
        right = pool.grade("math", references, answers)  # [True, False, None, ...]

None is a failure of the grader, never a wrong answer: leave it out of the reward's mean or count it as you say, and
show `pool.failures`.

Workers are plain subprocesses. Those of `multiprocessing`, and so pebble's, import the parent's main module, a whole
training program: 204 MB and 2 s for a worker, here 30 MB and 0.6 s. Replies are JSON, because a hostile text could
forge a pickle.
"""

import collections
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import GRADERS, GradeFunction, Grader, reference_of
from rl_likelihood.grading.run_code import isolation
from rl_likelihood.grading.worker import READY
from rl_likelihood.shapes import Example

Pair = tuple[str, str | None]  # reference, answer
Judgement = tuple[bool | None, str, str]  # verdict; the kind of failure or nothing; why

_MEMORY = 4 << 30  # bytes of address space of a worker
_WORKER = "rl_likelihood.grading.worker"
ITEMS_PER_WORKER = 500  # items after which a worker is replaced (caches grow, others' code leaks)
_START = 120.0  # seconds for a worker to start and import, on a busy machine


class _Worker:
    """One process. `pair`: what it works on; `due`: when its next word must have come; both None when it is idle."""

    def __init__(self, deadline: float):
        self.connection, theirs = Pipe()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        arguments = map(str, (theirs.fileno(), _MEMORY, deadline * 2 + 10))
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-m", _WORKER, *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "PYTHONPATH": path},
                )
        except OSError as error:
            raise UserError(f"a grading process could not start: {error}; make room or set fewer workers") from None
        self.function = ""  # what it is ready for
        self.pair: Pair | None = None
        self.due: float | None = None
        self.done = 0  # pairs

    def send(self, seconds: float, *request: str | None) -> None:
        """Asks for something that must be done in so many seconds."""
        self.due = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # the process has just ended, which `_hear` will find out
            self.connection.send_bytes(json.dumps(request).encode())

    def end(self, kill: bool) -> None:
        """Ends the process: at once, or when it sees that nobody is there."""
        self.connection.close()
        if kill:
            self.process.kill()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _refuse_without_isolation(name: str, unsafe: bool) -> tuple[str, ...]:
    """What this machine keeps from programs; UserError if that is not all, unless `unsafe`."""
    guards = isolation()
    if len(guards) < 3 and not unsafe:
        raise UserError(
            f"grader {name} runs programs of a model, but this machine keeps {' and '.join(guards) or 'nothing'} "
            "from them, not network, processes and files (its kernel or container refuses user namespaces); allow "
            "these, or set eval.unsafe_code=True where nothing can be lost"
        )
    return guards


def _in_this_process(grade: GradeFunction, pair: Pair) -> tuple[bool | None, str]:
    """The verdict, and why there is none. A grader of the user's own may raise anything."""
    try:
        return grade(*pair), "the grader could not judge it"
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:500]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Grades batches with any grader of the table; one call at a time, whichever thread makes it.

    workers:   processes at most; 0: one a core. None is started before an item needs one
    deadline:  seconds for one item, after which its worker is killed
    unsafe_code: run programs even where the machine keeps neither network nor files from them
    table:     the graders by name; those with `quick` must be importable, a worker finds them by module and name

    counts: "graded" items, "hangs", "crashes" and "errors" among them, "workers" started. `failures` is the sum of
    hangs, crashes and errors, `last_failure` says what the last one was.
    """

    def __init__(
        self,
        workers: int = 2,
        deadline: float = 10.0,
        unsafe_code: bool = False,
        table: Mapping[str, Grader] = GRADERS,
    ):
        self.workers, self.deadline = workers or _cores(), deadline
        self.table, self._unsafe = table, unsafe_code
        self._guards: tuple[str, ...] | None = None  # what this machine keeps from programs, once asked
        self._running: list[_Worker] = []
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.last_failure = ""

    @property
    def failures(self) -> int:
        """Items that no grader could judge."""
        return self.counts["hangs"] + self.counts["crashes"] + self.counts["errors"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. The pool can be used again; it then starts new ones."""
        with self._lock:
            for worker in self._running:
                worker.end(kill=False)
            self._running.clear()

    def grade(self, name: str, references: Sequence[str], answers: Sequence[str | None]) -> list[bool | None]:
        """Is each answer right? In the order given; None where the grader failed. Equal pairs are graded once.

        Raises ValueError for unequal lengths, UserError for an unknown grader, if no worker can start, or for
        code_tests where programs cannot be isolated. What is kept from programs is said on standard error.
        """
        pairs = list(zip(references, answers, strict=True))
        if name not in self.table:
            raise UserError(f"grader {name!r} is unknown; choose one of: {', '.join(sorted(self.table))}")
        row = self.table[name]
        if row.quick is None:
            self.counts["graded"] += len(pairs)
            judged = {pair: _in_this_process(row.grade, pair) for pair in dict.fromkeys(pairs)}
            self._note("errors", [(pair, judged[pair][1]) for pair in pairs if judged[pair][0] is None])
            return [judged[pair][0] for pair in pairs]
        if row.unsafe is not None and self._guards is None:
            self._guards = _refuse_without_isolation(name, self._unsafe)
            kept = ", ".join(self._guards) or "nothing"
            print(f"programs are graded in a sandbox that keeps from them: {kept}", file=sys.stderr)
        grade = row.unsafe if row.unsafe is not None and self._unsafe else row.grade
        with self._lock:
            self.counts["graded"] += len(pairs)
            verdicts: dict[Pair, bool | None] = {pair: row.quick(*pair) for pair in dict.fromkeys(pairs)}
            judged = self._judge(grade, [pair for pair, verdict in verdicts.items() if verdict is None])
            for pair in pairs:
                if pair in judged:
                    verdicts[pair], failure, why = judged[pair]
                    if failure:
                        self._note(failure, [(pair, why)])
            return [verdicts[pair] for pair in pairs]

    def grade_groups(
        self, name: str, examples: Sequence[Example], groups: Sequence[Sequence[str | None]]
    ) -> list[list[bool | None]]:
        """`grade` for several answers to each question: its marks of each group."""
        references = [
            reference_of(name, e, self.table) for e, group in zip(examples, groups, strict=True) for _ in group
        ]
        marks = iter(self.grade(name, references, [answer for group in groups for answer in group]))
        return [[next(marks) for _ in group] for group in groups]

    def _note(self, failure: str, items: list[tuple[Pair, str]]) -> None:
        """Counts failures of one kind, and keeps the words of the last."""
        for (reference, answer), why in items:
            self.counts[failure] += 1
            self.last_failure = f"{why}; reference {reference[:80]!r}, answer {(answer or '')[:80]!r}"

    def _judge(self, grade: GradeFunction, pairs: list[Pair]) -> dict[Pair, Judgement]:
        """The workers' judgement of each pair."""
        function = f"{grade.__module__}:{grade.__qualname__}"
        waiting = collections.deque(pairs)
        judged: dict[Pair, Judgement] = {}
        try:
            while len(judged) < len(pairs):
                self._hand_out(function, waiting)
                due = {w: w.due for w in self._running if w.due is not None}
                wait([w.connection for w in due], max(min(due.values()) - time.monotonic(), 0))
                for worker in due:
                    self._hear(worker, judged)
        finally:  # on Ctrl-C: a worker at work would answer the wrong question next time
            for worker in [w for w in self._running if w.pair is not None]:
                self._discard(worker, kill=True)
        return judged

    def _hand_out(self, function: str, waiting: collections.deque[Pair]) -> None:
        """A worker for every waiting pair, as far as there are."""
        for worker in [w for w in self._running if w.due is None and w.process.poll() is not None]:
            self._discard(worker, kill=True)  # ended while it had nothing to do: no pair's fault
        free = sum(w.pair is None for w in self._running)
        while free < len(waiting) and len(self._running) < self.workers:
            self._running.append(_Worker(self.deadline))
            self.counts["workers"] += 1
            free += 1
        for worker in self._running:
            if not waiting or worker.due is not None:
                continue
            if worker.function != function:
                worker.function = function
                worker.send(_START, function)
            else:
                worker.pair = waiting.popleft()
                worker.send(self.deadline, function, *worker.pair)

    def _hear(self, worker: _Worker, judged: dict[Pair, Judgement]) -> None:
        """What a worker says, if anything. To end (b""), or to be late (None), is a failure too."""
        try:
            said = worker.connection.recv_bytes() if worker.connection.poll() else None
        except (EOFError, OSError):
            said = b""
        if said is None and worker.due is not None and time.monotonic() < worker.due:
            return
        if worker.pair is None:  # it was to get ready
            if said != READY.encode():
                self._discard(worker, kill=said is None)
                raise UserError(
                    f"a grading process could not get ready (exit code {worker.process.returncode}): its own words are "
                    f"above; {_WORKER} and {worker.function.partition(':')[0]} must import in a fresh "
                    f"{sys.executable}, in less than {_START:g} s"
                )
            worker.due = None
            return
        pair, worker.pair, worker.due = worker.pair, None, None
        if said:
            verdict, error = json.loads(said)
            failure = "errors" if verdict is None else ""
            judged[pair] = (verdict, failure, error or "the grader could not judge it")
            worker.done += 1
            if worker.done >= ITEMS_PER_WORKER:
                self._discard(worker, kill=True)
        elif said is None:
            self._discard(worker, kill=True)
            judged[pair] = (None, "hangs", f"no verdict after {self.deadline:g} s")
        else:
            self._discard(worker, kill=False)
            judged[pair] = (None, "crashes", f"its process ended with exit code {worker.process.returncode}")

    def _discard(self, worker: _Worker, kill: bool) -> None:
        self._running.remove(worker)
        worker.end(kill)
