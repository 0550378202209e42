"""How a run is asked to stop: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

import signal
import threading
from types import FrameType

from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say_at_once


class Stopped(Exception):
    """The user asked to stop."""


class StopRequest:
    """Ctrl-C, SIGTERM and SIGHUP finish the step and save. A second Ctrl-C or SIGTERM ends at once. A second SIGHUP
    does not: kernel and shell may both send one when a terminal closes."""

    def __init__(self) -> None:
        self.requested = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            asked = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
                asked.append(signal.SIGHUP)
            self._old = {s: signal.signal(s, self._ask) for s in asked}

    def _ask(self, number: int, _: FrameType | None = None) -> None:
        if self.requested and number == signal.SIGHUP:
            return
        if self.requested:
            self.restore()
            raise KeyboardInterrupt
        self.requested = True
        say_at_once("stopping after this step (again to stop at once)")

    def check(self) -> None:
        """Raises Stopped if the user asked to stop. All processes call it at the same point, where nothing is lost."""
        if distributed.any_of(self.requested):
            raise Stopped

    def restore(self) -> None:
        """The handlers from before."""
        for s, handler in self._old.items():
            signal.signal(s, handler)
