"""Calls of a user's environment, each with a deadline: it may raise anything, or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Failed(NamedTuple):
    """The result of a call to the environment that raised or timed out."""

    why: str
    kind: str  # the exception's type


def in_time(calls: Iterable[Callable[[], Any]], seconds: float) -> list[Any]:
    """The result of each call, or `Failed`. Each call runs on its own thread; all share one deadline of `seconds`.

    A call that hangs keeps its thread, and its later result is ignored.
    """
    calls = list(calls)
    late = Failed(f"no reply within env.seconds = {seconds:g}", "TimeoutError")
    results: list[Any] = [late] * len(calls)

    def run(k: int) -> None:
        try:
            results[k] = calls[k]()
        except BaseException as e:  # a user's environment may raise anything, even SystemExit
            results[k] = Failed(f"{type(e).__name__}: {e}", type(e).__name__)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(results)
