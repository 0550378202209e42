"""Calls of a user's environment, each with a deadline: it may raise anything, or hang."""

from __future__ import annotations

import ctypes
import faulthandler
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Code that holds the interpreter's lock (a regular expression that backtracks) stops every thread. If the deadline has
# passed by so many seconds, the process prints where that code is, and ends.
LOCKED = 300.0
_GUARD = threading.Lock()  # a process has one timer for this; sampling and an evaluation may call at the same time


class Failed(NamedTuple):
    """The result of a call to the environment that raised, timed out, or returned a wrong value."""

    why: str
    kind: str  # the exception's type, or the wrong value's


def in_time(
    calls: Iterable[Callable[[], Any]], seconds: float, problem: Callable[[Any], str] = lambda value: ""
) -> list[Any]:
    """The result of each call, or `Failed`, also where `problem` says what is wrong with the result.

    Each call runs on its own thread; all share one deadline of `seconds`. One that is late is ended at its next line of
    Python, and its later result is ignored.
    """
    calls = list(calls)
    late = Failed(f"no reply within env.seconds = {seconds:g}", "TimeoutError")
    results: list[Any] = [late] * len(calls)

    def run(k: int) -> None:
        try:
            value = calls[k]()
            why = problem(value)
            results[k] = Failed(why, type(value).__name__) if why else value
        except BaseException as e:  # a user's environment may raise anything, even SystemExit
            results[k] = Failed(f"{type(e).__name__}: {e}"[:500], type(e).__name__)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(calls))]
    with _GUARD:
        faulthandler.dump_traceback_later(seconds + LOCKED, exit=True, file=2)
        try:
            for thread in threads:
                thread.start()
            end = time.monotonic() + seconds
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        finally:  # an interrupted call must not end the process later
            faulthandler.cancel_dump_traceback_later()
    done = list(results)
    for thread in threads:
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    return done
