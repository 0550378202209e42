"""Processes of a run on this machine, and what they said and wrote."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_likelihood.runtime import run_files

ROOT = Path(__file__).parents[2]
TIMED = ("time/", "queue/", "tokens_per_second")


def environment() -> dict[str, str]:
    flags = re.sub(r"(device_count=)\d+", r"\g<1>4", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(config, workdir, *more: str, program=("-m", "rl_likelihood.train")) -> list[str]:
    """One process's, but for its number."""
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    flags = [f"--config={config}", f"--workdir={workdir}", coordinator, "--num_processes=2"]
    return [sys.executable, *program, *flags, *more]


def start(config, workdir, *more: str, **changes) -> list[subprocess.Popen]:
    """Both; {i} in an argument is the number of each."""
    one = command(config, workdir, *more, "--process_id={i}", **changes)
    return [
        subprocess.Popen(
            [word.replace("{i}", str(i)) for word in one],
            cwd=ROOT,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


def processes_of(program: str, count: int, *arguments: object) -> list[subprocess.Popen]:
    """So many processes of a program, which is given the coordinator, its number and these arguments."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, coordinator, str(i), *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]


def said(process: subprocess.Popen, seconds: float = 240) -> list[str]:
    """What it printed to its end, without what gloo does and the log of jax's coordination, where that is quicker."""
    out, _ = process.communicate(timeout=seconds)
    theirs = re.compile(r"\[Gloo\]|is connected to|peer ranks|^\s*\d+$|^[WE]\d{4} .*(coordination|Coordination)")
    return [line for line in out.splitlines() if line and not theirs.search(line)]


def alike(one: Path, two: Path) -> None:
    """The same rows, to rounding, but for what a clock decides and for metrics of the gradient itself."""
    one, two = run_files.read(one), run_files.read(two)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for k, value in a.items():
            if isinstance(value, str) or k == "step":
                assert value == b[k] or k == "records", k
            elif isinstance(value, float) and not k.startswith((*TIMED, "grad/", "corr/", "seconds")):
                assert b[k] == pytest.approx(value, rel=2e-3, abs=2e-4), (a["step"], k)


def untimed(path: Path) -> list[dict]:
    """The rows without what a clock decides."""
    return [{k: v for k, v in row.items() if not k.startswith((*TIMED, "seconds"))} for row in run_files.read(path)]


def pid_of(workdir: Path, number: int) -> int:
    """The process with this number of the run in `workdir`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--workdir={workdir}" in words and f"--process_id={number}" in words and not words[1].endswith(".sh"):
            return int(path.parent.name)
    raise AssertionError(f"no process {number}")


def wait_for_step(workdir: Path, step: int, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    path = workdir / "metrics.jsonl"
    while not (path.exists() and any(row["step"] >= step for row in run_files.read(path))):
        assert time.monotonic() < end, f"step {step} never came"
        time.sleep(0.1)
