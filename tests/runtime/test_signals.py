"""Ctrl-C at the worst moment: in the middle of a line that is being printed."""

import io
import sys

from rl_likelihood.runtime.signals import StopRequest


def test_a_signal_in_the_middle_of_a_print_asks_to_stop_and_says_so(monkeypatch, capfd):
    stop = StopRequest()
    stop.restore()

    class Interrupted(io.RawIOBase):
        """A file during whose writing a signal comes."""

        def writable(self):
            return True

        def write(self, data):
            if not stop.requested:
                stop._ask()
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    print("a line of a run", flush=True)
    assert stop.requested and "stopping after this step" in capfd.readouterr().out
