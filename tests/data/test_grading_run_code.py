"""Programs that nobody has read: what becomes of them, and what they cannot do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from rl_likelihood.data.run_code import Limits, Outcome, isolation, run_program

QUICK = Limits(seconds=20.0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux keeps them")


@pytest.fixture(scope="module")
def guaranteed():
    return isolation()


@pytest.mark.parametrize(
    "program, outcome, detail",
    [
        ("assert sum([1, 2]) == 3", Outcome.PASSED, ""),
        ("", Outcome.PASSED, ""),
        (
            "import dataclasses, math, re\n@dataclasses.dataclass\nclass A:\n    x: int\nassert A(1).x",
            Outcome.PASSED,
            "",
        ),
        ("if __name__ == '__main__':\n    input()", Outcome.PASSED, ""),
        ("assert 1 == 2, 'no'", Outcome.FAILED, "AssertionError: 'no'"),
        ("def f(:", Outcome.FAILED, "SyntaxError"),
        ("x = '\x00'", Outcome.FAILED, "SyntaxError"),
        ("x = '\ud800'", Outcome.FAILED, "UnicodeEncodeError"),
        ("input()", Outcome.FAILED, "EOFError"),
        ("def f(): f()\nf()", Outcome.FAILED, "RecursionError"),
        ("import sys; sys.exit(0)", Outcome.FAILED, "SystemExit"),
        ("import os; os._exit(0)", Outcome.FAILED, "left before its end with exit code 0"),
        ("import numpy", Outcome.FAILED, "ModuleNotFoundError"),  # the standard library only
        ("import rl_likelihood", Outcome.FAILED, "ModuleNotFoundError"),
        ("print(1)\n" * 100 + "raise type('A\\nb', (Exception,), {})('c\\nd')", Outcome.FAILED, "A b"),
        ("import sys\nprint(len(sys._current_frames()))\nraise KeyboardInterrupt", Outcome.FAILED, "KeyboardInterrupt"),
    ],
)
def test_outcomes(program, outcome, detail):
    result = run_program(program, QUICK)
    assert result.outcome is outcome, result
    assert result.detail.startswith(detail)


def test_a_program_without_end_is_killed_at_the_deadline():
    for program in ("while True: pass", "import time; time.sleep(60)", "while True: print('x' * 1000)"):
        begin = time.monotonic()
        assert run_program(program, Limits(seconds=0.7)).outcome is Outcome.TIMEOUT
        assert time.monotonic() - begin < 20


def test_output_is_cut():
    result = run_program("import sys\nprint('a' * 10)\nsys.stderr.write('b' * 10**6)", Limits(20.0, output_bytes=100))
    assert result.outcome is Outcome.PASSED
    assert result.output == "a" * 10 + "\n" + "b" * 89


def test_it_runs_where_there_are_no_namespaces():
    alone = Limits(20.0, namespaces=False)
    program = "import os\nopen('mine', 'w').write('x')\nassert os.listdir('.') == ['mine']\nprint(os.getcwd())"
    result = run_program(program, alone)
    assert result.outcome is Outcome.PASSED and result.isolation == ()
    assert not Path(result.output.strip()).exists()
    assert run_program("import os; os._exit(0)", alone).outcome is Outcome.FAILED
    assert run_program("import os; os.abort()", alone).outcome is Outcome.CRASHED
    assert run_program("while True: pass", Limits(0.7, namespaces=False)).outcome is Outcome.TIMEOUT


@linux
@pytest.mark.parametrize("program", ["x = bytearray(10**10)", "x = []\nwhile True: x.append('a' * 10**7)"])
def test_memory_is_limited(program):
    assert run_program(program, Limits(20.0, memory_bytes=1 << 28)).outcome is Outcome.CRASHED


@linux
def test_a_signal_is_a_crash():
    result = run_program("import os; os.abort()", QUICK)
    assert result.outcome is Outcome.CRASHED and result.detail.startswith("signal ")


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.killpg(0, 9)",
        "import ctypes; ctypes.CDLL(None).getpid()",
        "import multiprocessing as m; m.Process(target=print).start()",
        "open('big', 'wb').write(b'x' * 2**25)",
    ],
)
def test_refused(program, namespaces):
    result = run_program(program, Limits(20.0, namespaces=namespaces))
    assert result.outcome is Outcome.FAILED
    assert "not allowed here" in result.detail or "OSError" in result.detail or "URLError" in result.detail, result


def test_it_is_alone_in_an_empty_directory_without_our_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "password")
    program = (
        "import os, sys\nassert os.listdir('.') == []\n"
        "assert 'A_SECRET' not in os.environ\nassert sys.argv == ['program']\n"
        "open('mine', 'w').write('x')\nassert os.listdir('.') == ['mine']\n"
        "assert len(os.listdir('/proc/self/fd')) < 8 if os.path.exists('/proc/self/fd') else True\nprint(os.getcwd())"
    )
    result = run_program(program, QUICK)
    assert result.outcome is Outcome.PASSED, result
    assert not Path(result.output.strip()).exists()


def test_files_are_read_only(guaranteed, tmp_path):
    if "files" not in guaranteed:
        pytest.skip("this machine gives no mount namespaces")
    mine = tmp_path / "mine"
    mine.write_text("safe")
    for program in (
        f"open({str(mine)!r}, 'w')",
        f"import os; os.remove({str(mine)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ):
        assert run_program(program, QUICK).outcome is Outcome.FAILED
    assert mine.read_text() == "safe"


def test_processes_and_network_are_its_own(guaranteed):
    if "processes" not in guaranteed:
        pytest.skip("this machine gives no user namespaces")
    # Straight to C, where no audit hook looks.
    escape = (
        "import os, sys, _posixsubprocess\n"
        "assert os.getpid() == 1\n"
        "r, w = os.pipe()\n"
        "_posixsubprocess.fork_exec([b'sleep', b'31.4159'], [b'/bin/sleep'],"
        " True, (), None, None, -1, -1, -1, -1, -1, -1, r, w,"
        " False, True, *([-1] if sys.version_info >= (3, 11) else []), None, None, None, -1, None,"
        " *([False] if sys.version_info >= (3, 11) else []))\n"
    )
    result = run_program(escape, QUICK)
    assert result.outcome is Outcome.PASSED, result
    alive = [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.read_bytes() == b"sleep\x0031.4159\x00"]
    assert alive == []
    devices = run_program("print(open('/proc/self/net/dev').read())", QUICK)
    assert [line.split(":")[0].strip() for line in devices.output.splitlines() if ":" in line] == ["lo"]


def test_the_caller_is_left_as_it_was():
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for program in ("", "1/0", "import os; os._exit(3)", "import os; os.close(0); os.close(1); os.close(2)"):
        run_program(program, QUICK)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_a_program_cannot_say_that_it_passed():
    program = (
        "import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'x passed\\n passed\\nended 0\\n')\n    except OSError: pass\nos._exit(0)"
    )
    assert run_program(program, QUICK).outcome is Outcome.FAILED
