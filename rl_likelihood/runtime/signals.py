"""Stops a run on Ctrl-C, SIGTERM, the SIGHUP of a closed terminal, or a scheduler's SIGUSR1."""

import signal
import threading
from types import FrameType

from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say_at_once


class Stopped(Exception):
    """The user asked to stop."""


class Requests:
    """Counts requests to stop: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1.

    A SIGHUP or SIGUSR1 after the first request is not counted, because kernel and shell may both send SIGHUP when a
    terminal closes. Nor is the first SIGTERM after SIGUSR1 or SIGHUP: schedulers send SIGUSR1 early, then SIGTERM at
    the end of the job's time, and some terminals send SIGHUP, then SIGTERM. Under nohup, SIGHUP stays ignored."""

    def __init__(self) -> None:
        self.times, self.first = 0, 0  # `first`: the number of the first signal
        self._announced = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
                signals.append(signal.SIGHUP)
            self._old = {s: signal.signal(s, self._ask) for s in signals}

    def _ask(self, number: int, _: FrameType | None = None) -> None:
        if self.times and number in (signal.SIGHUP, signal.SIGUSR1):
            return
        if self._announced and number == signal.SIGTERM:
            self._announced = False
            return
        self.times, self.first = self.times + 1, self.first or number
        self._announced = number in (signal.SIGUSR1, signal.SIGHUP)

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for s, handler in self._old.items():
            signal.signal(s, handler)


class StopRequest(Requests):
    """After the first request, the run finishes its step and saves. The second one ends it at once."""

    @property
    def requested(self) -> bool:
        return self.times > 0

    def _ask(self, number: int, _: FrameType | None = None) -> None:
        before = self.times
        super()._ask(number)
        if self.times > max(before, 1):
            self.restore()
            raise KeyboardInterrupt
        if self.times > before:
            say_at_once("stopping after this step (again to stop at once)")

    def check(self) -> None:
        """Raises Stopped if the user asked to stop. All processes must call it at the same point, between steps."""
        if distributed.any_of(self.requested):
            raise Stopped
