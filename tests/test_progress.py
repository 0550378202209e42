"""Progress: how the time left is estimated, the bar of a terminal, the lines of a log."""

import io
import re
import sys
import time

import jax
import numpy as np
import pytest

from rl_likelihood import progress
from rl_likelihood.progress import Progress, of_bytes, time_left


def test_the_first_piece_also_compiles_and_is_not_counted():
    reports = [(0.0, 0), (60.0, 1), (62.0, 2), (64.0, 3)]
    assert time_left(reports[:1], 10, 1.0) is time_left(reports[:2], 10, 60.0) is None
    assert time_left(reports[:3], 10, 62.0) == 16.0
    assert time_left(reports, 10, 64.0) == 14.0


def test_steps_before_a_resume_are_not_counted():
    assert time_left([(0.0, 400), (60.0, 401), (62.0, 402)], 500, 62.0) == 2.0 * 98


def test_the_time_left_falls_between_two_reports_but_not_below_what_must_follow():
    reports = [(0.0, 0), (30.0, 16), (40.0, 32)]
    left = [time_left(reports, 64, now) for now in (40.0, 45.0, 50.0, 90.0)]
    assert left == [20.0, 15.0, 10.0, 10.0], "16 questions follow those in work"
    assert time_left([*reports, (50.0, 48), (60.0, 64)], 64, 61.0) == 0.0


def test_only_recent_reports_make_the_estimate():
    slow = [(10.0 * i, i) for i in range(200)]
    fast = [(slow[-1][0] + i, slow[-1][1] + i) for i in range(1, progress.RECENT + 1)]
    last, done = fast[-1]
    assert time_left(slow + fast, done + 100, last) == pytest.approx(100.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_moves_while_the_work_does_not_report(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with Progress("evaluated", 96, "questions", pytest.fail, done=32) as bar:
        bar.advance(16)
        before = len(out.getvalue())
        deadline = time.monotonic() + 30
        while len(out.getvalue()) <= before + 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(out.getvalue()) > before + 200, "it is drawn again and again"
        print("a line that is printed meanwhile")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "evaluated" in plain and "48 of 96 questions" in plain and "a line that is printed meanwhile\n" in plain


def test_in_a_log_a_new_state_is_a_line_and_the_same_is_not_said_twice(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    said = []
    with Progress("evaluated", 3, "questions", said.append, stream=io.StringIO()) as lines:
        while len(said) < 1:
            time.sleep(0.01)
        lines.note = "sampling"
        progress._of_jax(progress._LOWERED)
        while "sampling, compiling, " not in said[-1]:
            time.sleep(0.01)
        progress._of_jax(progress._COMPILED)
        lines.advance(3)
        while "0s left" not in said[-1]:
            time.sleep(0.01)
        time.sleep(0.1)
    assert said[0].startswith("evaluated 0 of 3 questions, ") and said[0].endswith("s so far")
    assert said.count(said[-1]) == 1
    assert said[-1] == "evaluated 3 of 3 questions, sampling, 0s left"


def test_what_jax_reports_while_it_compiles_are_the_two_events(monkeypatch):
    seen = []
    monkeypatch.setattr(progress._compiling, "set", lambda: seen.append("begin"))
    monkeypatch.setattr(progress._compiling, "clear", lambda: seen.append("end"))
    jax.jit(lambda x: x * 3 + 1)(np.float32(2))
    assert seen[:2] == ["begin", "end"]


def test_work_with_lines_of_its_own_says_nothing_in_a_log():
    out = io.StringIO()
    with Progress("step", 3, "steps", stream=out) as steps:
        steps.advance()
    assert out.getvalue() == "" and steps.left() is None


def test_a_download_says_on_stderr_how_much_is_there(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with of_bytes("downloaded", 93e6) as told:
        for size, words in ((0, "downloaded 0 of 93 MB, "), (12_400_000, "downloaded 12 of 93 MB, ")):
            told(size)
            said = ""
            end = time.monotonic() + 60
            while words not in said and time.monotonic() < end:
                time.sleep(0.01)
                out, err = capsys.readouterr()
                said += err
                assert out == ""
            assert words in said
        told(200_000_000)  # a second copy
    capsys.readouterr()
    monkeypatch.setattr(progress, "shown", False)
    with of_bytes("downloaded", 1e6) as told:
        told(1_000_000)
        time.sleep(0.1)
    progress.tell("of another process")
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_bar_may_stand_inside_another(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress("step", 3, "steps", stream=out) as steps:
        with Progress("evaluated", 2, "questions", stream=out) as bar:
            bar.advance(2)
        steps.advance(3)
    assert "3 of 3 steps" in out.getvalue()
