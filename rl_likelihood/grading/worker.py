"""The process that `pool.Pool` starts: takes (function, reference, answer), gives a verdict, until the end.

A request of the function alone is to get ready for it: it is imported, and called once on "x" and "y", so that what it
imports itself is there too and no answer's deadline pays for it.

Messages are JSON, not pickles: what comes back is a word, whatever the graded text did in here. Nothing of this
imports jax. Run as `python -m rl_likelihood.grading.worker FD MEMORY_BYTES PATIENCE`.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType

READY = "ready"


@functools.cache
def find(name: str) -> Callable[[str, str | None], bool | None]:
    """The function "package.module:name", or "/path/of/file.py:name" of a user's own file."""
    module, _, function = name.rpartition(":")
    if module.endswith(".py"):
        return getattr(run_file(module), function)
    return getattr(importlib.import_module(module), function)


@functools.cache
def run_file(path: str, version: int = 0) -> ModuleType:
    """The module of a Python file, which runs once for each `version`. Its name is its path, so that a worker finds a
    function of it by name, and no file of a user hides a module."""
    spec = importlib.util.spec_from_file_location(path, path)
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path]
        raise
    return module


def serve(connection: Connection, patience: float) -> None:
    """Answers each request with [verdict, error]; an exception of the grader is verdict None and its words.

    After `patience` seconds on one request the kernel ends this process, in case nobody is left to do it.
    """
    while True:
        try:
            name, *pair = json.loads(connection.recv_bytes())
        except EOFError:
            return
        if not pair:
            find(name)("x", "y")  # what goes wrong here ends this process, with its words
            connection.send_bytes(READY.encode())
            continue
        signal.setitimer(signal.ITIMER_REAL, patience)
        try:
            verdict, error = find(name)(*pair), ""
        except Exception as e:  # any kind: it goes to the parent, which counts it
            verdict, error = None, f"{type(e).__name__}: {e}"[:500]
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps([verdict if verdict is None else bool(verdict), error]).encode())


def main() -> None:
    fd, memory, patience = sys.argv[1:]
    os.dup2(2, 1)  # standard output belongs to the parent's command
    for stop in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C and a scheduler's signal are for the parent, which ends us
        signal.signal(stop, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory), resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(int(fd)) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(connection, float(patience))
    os._exit(0)


if __name__ == "__main__":
    main()
