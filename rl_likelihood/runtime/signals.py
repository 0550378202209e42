"""How a person stops a run: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from typing import Any

from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say_at_once


class Stopped(Exception):
    """The user asked to stop, and what was going on need not be finished."""


class StopRequest:
    """Ctrl-C and SIGTERM finish the step and save; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, *_: Any) -> None:
        if self.requested:
            self.restore()
            raise KeyboardInterrupt
        self.requested = True
        say_at_once("stopping after this step (again to stop at once)")

    def check(self) -> None:
        """Raise Stopped if asked to stop: called where nothing is lost by it, by all processes at the same point."""
        if distributed.any_of(self.requested):
            raise Stopped

    def restore(self) -> None:
        """The handlers from before."""
        for s, handler in self._old.items():
            signal.signal(s, handler)
