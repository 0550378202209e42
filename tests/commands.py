"""Runs command lines of the mains: one in a process of its own, or several of one main after one import."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORKS = """
import importlib, json, os, runpy, sys, tempfile
name = f"rl_likelihood.{sys.argv[1]}"
importlib.import_module(name)
done = []
for arguments in json.loads(sys.argv[2]):
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        sys.argv = [name, *arguments]
        del sys.modules[name]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
    done.append((status, *texts))
print(json.dumps(done))
"""


def run_each(main: str, commands: list[list[str]], **environment: str) -> list[subprocess.CompletedProcess]:
    """The command lines of `python -m rl_likelihood.MAIN`, one after the other."""
    words = [sys.executable, "-c", FORKS, main, json.dumps(commands)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    parent = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert parent.returncode == 0, parent.stderr
    return [subprocess.CompletedProcess(c, *rest) for c, rest in zip(commands, json.loads(parent.stdout), strict=True)]


def command(module: str, *arguments: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"rl_likelihood.{module}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        **kwargs,
    )
