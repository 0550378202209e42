"""Stops a run on Ctrl-C, SIGTERM, the SIGHUP of a closed terminal, or a scheduler's SIGUSR1."""

import signal
import threading
from types import FrameType

from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say_at_once


class Stopped(Exception):
    """The user asked to stop."""


class StopRequest:
    """After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, the run finishes its step and saves. A second Ctrl-C or SIGTERM ends it
    at once. A second SIGHUP does not, because kernel and shell may both send one when a terminal closes. Nor does the
    first SIGTERM after SIGUSR1: schedulers send SIGUSR1 early, then SIGTERM at the end of the job's time."""

    def __init__(self) -> None:
        self.requested = self._announced = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
                signals.append(signal.SIGHUP)
            self._old = {s: signal.signal(s, self._ask) for s in signals}

    def _ask(self, number: int, _: FrameType | None = None) -> None:
        if self.requested and number in (signal.SIGHUP, signal.SIGUSR1):
            return
        if self.requested and not self._announced:
            self.restore()
            raise KeyboardInterrupt
        self._announced = number == signal.SIGUSR1
        if self.requested:
            return
        self.requested = True
        say_at_once("stopping after this step (again to stop at once)")

    def check(self) -> None:
        """Raises Stopped if the user asked to stop. All processes must call it at the same point, between steps."""
        if distributed.any_of(self.requested):
            raise Stopped

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for s, handler in self._old.items():
            signal.signal(s, handler)
