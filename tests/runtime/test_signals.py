"""Ctrl-C at the worst moment: in the middle of a line that is being printed."""

import io
import os
import signal
import sys

import pytest

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
                stop._ask(signal.SIGTERM)
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    print("a line of a run", flush=True)
    assert stop.requested and "stopping after this step" in capfd.readouterr().out


def test_hangups_and_the_first_term_after_them_do_not_end_a_run_that_is_about_to_save():
    stop = StopRequest()
    stop.restore()
    for _ in range(3):
        stop._ask(signal.SIGHUP)
    stop._ask(signal.SIGTERM)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGTERM)


def test_usr1_asks_to_stop_and_only_the_second_term_after_it_ends_the_run_at_once():
    stop = StopRequest()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        stop.restore()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        stop.restore()
    finally:
        signal.signal(signal.SIGHUP, before)
