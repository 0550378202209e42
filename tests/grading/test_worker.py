"""What a grading worker is made of; and graders that misbehave, which workers of the pool's tests import from here."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe

import pytest

from rl_likelihood.grading import worker


def undecided(reference: str, answer: str | None) -> bool | None:
    """Nothing is decided before a worker is asked."""
    return None if answer is not None else False


def misbehave(reference: str, answer: str | None) -> bool | None:
    """Does what the answer says, or compares."""
    match answer:
        case "hang":
            time.sleep(3_600)
        case "spin":
            while True:
                pass
        case "exit":
            os._exit(3)
        case "abort":
            os.abort()
        case "raise":
            raise KeyError("no such thing")
        case "leave":
            sys.exit(0)
        case "nothing":
            return None
        case "memory":
            bytearray(1 << 40)
        case "deep":
            return misbehave(reference, answer)
        case "print":
            print("true\n[true, '']", flush=True)
    return answer == reference


def process_number(reference: str, answer: str | None) -> bool | None:
    """Was this process another one than the last that wrote to the file `reference`?"""
    if not os.path.isabs(reference):
        return False
    with open(reference, "a+") as file:
        file.seek(0)
        seen = file.read().split()
        file.write(f"{os.getpid()}\n")
    return seen[-1:] != [str(os.getpid())]


def without_jax(reference: str, answer: str | None) -> bool | None:
    """Is jax absent from this process, the graders being imported?"""
    importlib.import_module("rl_likelihood.grading.graders")
    return not {"jax", "flax", "numpy", "torch"} & set(sys.modules)


def test_find():
    assert worker.find("json:dumps") is json.dumps
    with pytest.raises(AttributeError):
        worker.find("json:no_such_name")


def test_one_request_one_verdict():
    ours, theirs = Pipe()
    command = [sys.executable, "-m", worker.__name__, str(theirs.fileno()), str(1 << 32), "60"]
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    with (
        ours,
        subprocess.Popen(command, pass_fds=(theirs.fileno(),), env={**os.environ, "PYTHONPATH": path}) as process,
    ):
        theirs.close()
        here = f"{__name__}:misbehave"
        ours.send_bytes(json.dumps([here]).encode())
        assert ours.recv_bytes() == b"ready"
        for number in (signal.SIGINT, signal.SIGUSR1):  # they stop the parent, which still needs its grades
            process.send_signal(number)
        for answer, reply in (
            ("5", [True, ""]),
            ("6", [False, ""]),
            ("nothing", [None, ""]),
            ("raise", [None, "KeyError: 'no such thing'"]),
            ("print", [False, ""]),
            ("\ud800\x00", [False, ""]),
            (None, [False, ""]),
        ):
            ours.send_bytes(json.dumps([here, "5", answer]).encode())
            assert json.loads(ours.recv_bytes()) == reply
        ours.close()
        assert process.wait(30) == 0


def test_a_worker_that_nobody_kills_ends_itself():
    ours, theirs = Pipe()
    command = [sys.executable, "-m", worker.__name__, str(theirs.fileno()), str(1 << 32), "0.5"]
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    with (
        ours,
        subprocess.Popen(command, pass_fds=(theirs.fileno(),), env={**os.environ, "PYTHONPATH": path}) as process,
    ):
        theirs.close()
        ours.send_bytes(json.dumps([f"{__name__}:misbehave", "5", "spin"]).encode())
        assert process.wait(60) < 0
