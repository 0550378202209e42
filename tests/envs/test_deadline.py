"""Calls of an environment end in time, whatever they do."""

import functools
import subprocess
import sys
import threading
import time
from pathlib import Path

from rl_likelihood.envs.deadline import Failed, in_time
from rl_likelihood.envs.protocol import Reply, problem_of


def test_hanging_calls_wait_together():
    start = time.monotonic()
    results = in_time([lambda: time.sleep(30)] * 20 + [lambda: "there"], 0.3)
    assert results[-1] == "there" and all("env.seconds = 0.3" in r.why for r in results[:-1])
    assert time.monotonic() - start < 10, "not 20 times as long"


def test_a_call_that_is_late_is_ended():
    ended = threading.Event()

    def endless():
        try:
            while True:
                pass
        finally:
            ended.set()

    assert isinstance(in_time([endless], 0.2)[0], Failed) and ended.wait(30)


def test_what_holds_the_interpreter_s_lock_ends_the_process_and_is_named():
    program = (
        "import re\n"
        "from rl_likelihood.envs import deadline\n"
        "deadline.LOCKED = 0.5\n"
        "def backtracks(): return re.match('(a+)+b', 'a' * 60)\n"
        "deadline.in_time([backtracks], 0.1)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 1 and "in backtracks" in done.stderr


class Hard:
    """Text that cannot be compared."""

    def __eq__(self, other):
        raise ValueError("neither equal nor not")


def test_what_cannot_even_be_checked_is_a_failure():
    (failed,) = in_time([lambda: Reply("x", Hard())], 5, functools.partial(problem_of, kind=Reply))
    assert failed == Failed("ValueError: neither equal nor not", "ValueError")
