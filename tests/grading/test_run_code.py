"""Programs that nobody has read: what becomes of them, and what they cannot do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rl_likelihood.grading import run_code
from rl_likelihood.grading.run_code import Check, Limits, Outcome, isolation, run_program

QUICK = Limits(seconds=20.0, namespaces=None)  # as far as the machine can; `guaranteed` says how far
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
        assert run_program(program, dataclasses.replace(QUICK, seconds=0.7)).outcome is Outcome.TIMEOUT
        assert time.monotonic() - begin < 20


def test_it_runs_where_there_are_no_namespaces(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alone = Limits(20.0, namespaces=False)
    program = (
        "import os\nopen('mine', 'w').write('x')\nassert os.listdir('.') == ['mine']\n"
        f"assert os.path.dirname(os.getcwd()) == {str(tmp_path)!r}"
    )
    assert run_program(program, alone) == (Outcome.PASSED, "", ())
    assert not list(tmp_path.iterdir())
    assert run_program("import os; os._exit(0)", alone).outcome is Outcome.FAILED
    assert run_program("import os; os.abort()", alone).outcome is Outcome.CRASHED
    assert run_program("while True: pass", Limits(0.7, namespaces=False)).outcome is Outcome.TIMEOUT


@linux
@pytest.mark.parametrize("program", ["x = bytearray(10**10)", "x = []\nwhile True: x.append('a' * 10**7)"])
def test_memory_is_limited(program):
    assert run_program(program, dataclasses.replace(QUICK, memory_bytes=1 << 28)).outcome is Outcome.CRASHED


@linux
def test_a_signal_is_a_crash():
    result = run_program("import os; os.abort()", QUICK)
    assert result.outcome is Outcome.CRASHED and result.detail.startswith("signal ")


@pytest.mark.parametrize("namespaces", [None, False])
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
        "import _posixsubprocess as p; p.fork_exec()",
        "import subprocess as s; s._fork_exec()",
        "import sys; del sys.modules['_posixsubprocess']; import _posixsubprocess",
        "open('big', 'wb').write(b'x' * 2**25)",
    ],
)
def test_refused(program, namespaces):
    result = run_program(program, Limits(20.0, namespaces=namespaces))
    assert result.outcome is Outcome.FAILED
    assert "not allowed here" in result.detail or "OSError" in result.detail or "URLError" in result.detail, result


def test_it_is_alone_in_an_empty_directory_without_our_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET", "password")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, sys\nassert os.listdir('.') == []\n"
        "assert 'A_SECRET' not in os.environ\nassert sys.argv == ['program']\n"
        "open('mine', 'w').write('x')\nassert os.listdir('.') == ['mine']\n"
        "assert len(os.listdir('/proc/self/fd')) < 8 if os.path.exists('/proc/self/fd') else True\n"
        f"assert os.path.dirname(os.getcwd()) == {str(tmp_path)!r}"
    )
    result = run_program(program, QUICK)
    assert result.outcome is Outcome.PASSED, result
    assert not list(tmp_path.iterdir())


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
    assert run_program("import os\nassert os.getpid() == 1", QUICK).outcome is Outcome.PASSED
    devices = (
        "names = [line.split(':')[0].strip() for line in open('/proc/self/net/dev') if ':' in line]\n"
        "assert names == ['lo'], names"
    )
    assert run_program(devices, QUICK) == (Outcome.PASSED, "", guaranteed)


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


BESIDE = (
    "open({0!r}, 'w')",
    "open({0!r}, 'a')",
    "open({0!r}, 'r+')",
    "import os; os.open({0!r}, os.O_RDWR)",
    "import os; os.remove({0!r})",
    "import os; os.rename({0!r}, 'x')",
    "import os; os.truncate({0!r}, 0)",
    "import os; os.mkdir({0!r} + 'x')",
    "import os; os.chmod({0!r}, 0)",
    "import os; os.link({0!r}, 'x')",
    "import os; os.symlink({0!r}, 'x'); open('x', 'w')",
    "import shutil; shutil.rmtree({1!r})",
    "import os; os.remove('mine', dir_fd=os.open({1!r}, 0))",
    "import sqlite3; sqlite3.connect({0!r})",
    "import pathlib; pathlib.Path({0!r}).write_text('')",
    "open('/x_of_a_program', 'w')",
)


@pytest.mark.parametrize("program", BESIDE)
def test_the_audit_hook_keeps_files_where_there_are_no_namespaces(program, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("safe")
    result = run_program(program.format(str(mine), str(tmp_path)), Limits(20.0, namespaces=False))
    assert result.outcome is Outcome.FAILED and "not allowed here" in result.detail, result
    assert mine.read_text() == "safe" and list(tmp_path.iterdir()) == [mine]


def test_the_hook_leaves_a_program_its_own_directory():
    program = (
        "import os, tempfile, sqlite3\nos.mkdir('a'); open('a/b', 'w').close(); os.rename('a/b', 'a/c')\n"
        "os.remove('a/c'); os.rmdir('a'); open('/dev/null', 'w').close(); sqlite3.connect(':memory:')\n"
        "open(__import__('json').__file__).read()"
    )
    result = run_program(program, Limits(20.0, namespaces=False))
    assert result.outcome is Outcome.PASSED, result


def test_without_isolation_nothing_is_run(monkeypatch, tmp_path):
    """As in an ordinary container: the kernel refuses namespaces."""
    text = Path(run_code._SANDBOX).read_text()
    assert "libc.unshare(" in text
    refused = tmp_path / "sandbox.py"
    refused.write_text(text.replace("libc.unshare(", "int.bit_count("))
    monkeypatch.setattr(run_code, "_SANDBOX", str(refused))
    assert isolation() == ()
    with pytest.raises(OSError, match="nothing .*network, processes and files"):
        run_program("open('/x_of_a_program', 'w')", Limits(20.0))
    assert run_program("", Limits(20.0, namespaces=None)).outcome is Outcome.PASSED


def test_a_child_that_cannot_be_set_up_says_why(monkeypatch, tmp_path):
    text = Path(run_code._SANDBOX).read_text()
    monkeypatch.setattr(run_code, "_SANDBOX", str(tmp_path / "nowhere.py"))
    with pytest.raises(OSError, match="could not be set up: .*nowhere.py.*No such file"):
        run_program("", QUICK)
    unlimited = tmp_path / "sandbox.py"
    unlimited.write_text(text.replace("        limit(settings)\n", "        limit({})\n"))
    monkeypatch.setattr(run_code, "_SANDBOX", str(unlimited))
    with pytest.raises(OSError, match="(?s)could not be set up: .*KeyError: 'memory_bytes'"):
        run_program("", QUICK)


CHECK = Check("def f(x):\n", "def check(candidate):\n    assert candidate(2) == 4\n    assert f(3) == 9\n", "f")
ABOVE = "import os\nabove = open('/proc/self/stat').read().split()[3]\n"  # the parent, as /proc numbers it
SAY_PASSED = (
    "opened = 0\nfor fd in os.listdir(f'/proc/{above}/fd'):\n"
    "    try: os.write(os.open(f'/proc/{above}/fd/{fd}', os.O_WRONLY), b'passed\\n'); opened = 1\n"
    "    except OSError: pass\ndef f(x): return x * x if opened else 0"
)
# Programs that would pass if the verdict were formed, or could be said, in their own process.
ATTACKS = {
    "the key": (
        "import os, re\nkey = re.findall('[0-9a-f]{32}', open('/proc/self/cmdline').read() + ' ' + '0' * 32)[0]\n"
        "for fd in range(3, 64):\n"
        "    for line in (f'{key} passed', 'passed', 'ready', 'ended 0'):\n"
        "        try: os.write(fd, (line + chr(10)).encode())\n        except OSError: pass\n"
        "os._exit(0)"
    ),
    "a reply": (
        "import os\nfor fd in range(3, 64):\n"
        '    try: os.write(fd, b\'["reached"]\\n["passed"]\\npassed\\n\')\n    except OSError: pass\nos._exit(0)'
    ),
    "a line in a reason": "raise type('a\\rpassed ', (Exception,), {})",
    "a line in a reply": (
        "import os\nfor fd in range(3, 64):\n"
        '    try: os.write(fd, b\'["failed", "\\\\u2028passed"]\\n\')\n    except OSError: pass\nos._exit(0)'
    ),
    "frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for d in (frame.f_globals, frame.f_locals):\n"
        "        for send in (d.get('send'), d.get('say')):\n"
        "            if send: send('reached'); send('passed')\n"
        "    frame = frame.f_back\ndef f(x): return 0"
    ),
    "equality": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "an int's equality": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(0)",
    "a list's equality": "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "the tests by name": "import builtins\nbuiltins.AssertionError = KeyError\ndef check(f): pass\ndef f(x): return 0",
    "an exit": "import os\ndef f(x): os._exit(0)",
    "an early exit": "import sys\ndef f(x): sys.exit(0)",
    "the judge's memory": f"{ABOVE}assert int(above) > 1\nopen(f'/proc/{{above}}/mem', 'r+b')\ndef f(x): return x * x",
    "the judge's files": f"{ABOVE}{SAY_PASSED}",
    "the caller's files": f"{ABOVE}above = open(f'/proc/{{above}}/stat').read().split()[3]\n{SAY_PASSED}",
    "what is in memory": (
        "import gc\ntexts = [x for x in gc.get_objects() if isinstance(x, (dict, list))]\n"
        "seen = 'candidate(2) == ' + '4' in repr(texts)\ndef f(x): return x * x if seen else 0"
    ),
}


@linux
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_cannot_forge_its_pass(attack, guaranteed):
    if len(guaranteed) < 3:
        pytest.skip("this machine gives no namespaces")
    result = run_program(ATTACKS[attack], QUICK, CHECK)
    assert result.outcome is Outcome.FAILED, result


# It leaves its group, and asks not to die with its parent.
STAYS = "import ctypes, os, time\nos.setsid()\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(60)"


def test_a_program_cannot_change_what_the_hook_refuses():
    change = "import __main__\n__main__.REFUSED = ('nothing',)\n__main__.CHANGES.clear()\nimport os\n"
    assert run_program(f"{change}os.fork()", QUICK).detail.startswith("PermissionError")


@linux
@pytest.mark.parametrize(
    "program, namespaces, outcome",
    [
        (STAYS, None, Outcome.TIMEOUT),
        (STAYS.replace("time.sleep", "time.sleep(0.5)\nos.kill(os.getppid(), 9)\ntime.sleep"), False, Outcome.FAILED),
        ("import os, time\nif os.fork() == 0: time.sleep(60)", False, Outcome.PASSED),
    ],
    ids=["leaves its group", "kills its parent", "leaves a process behind"],
)
def test_nothing_of_a_program_outlives_its_run(program, namespaces, outcome, monkeypatch, tmp_path):
    """Also of one that has found its way around the audit hook."""
    text = Path(run_code._SANDBOX).read_text()
    assert "if event.startswith(refused):" in text
    open_door = tmp_path / "grading_sandbox.py"
    open_door.write_text(text.replace("if event.startswith(refused):", "if False:"))
    monkeypatch.setattr(run_code, "_SANDBOX", str(open_door))

    def running():
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"grading_sandbox.py" in (path / "cmdline").read_bytes():
                    found.add(path.name)
        return found

    before = running()
    assert run_program(program, Limits(2.0, namespaces=namespaces)).outcome is outcome
    end = time.monotonic() + 10
    while running() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not running() - before


def test_tests_call_the_program_and_see_plain_data():
    values = "[1, -2.5, 1e400, 'a\\ud800', b'\\x00', None, True, (1, [2]), {1: (2,)}, {3}, {(4, 5)}, 1j, 10**50]"
    tests = f"def check(f):\n    for x in {values}:\n        y = f(x)\n        assert y == x and type(y) is type(x)\n"
    assert run_program("def f(x): return x", QUICK, Check("def f(x):\n", tests, "f")).outcome is Outcome.PASSED
    raises = "def check(f):\n    try: f(1)\n    except ZeroDivisionError: return\n    assert False"
    assert run_program("def f(x): return x / 0", QUICK, Check("", raises, "f")).outcome is Outcome.PASSED
    assert run_program("def f(x): return x", QUICK, Check("", raises, "f")).outcome is Outcome.FAILED
    early = "def check(f):\n    assert all(map(lambda x: f(x) == x, [1, 2]))"
    for error in ("StopIteration", "StopAsyncIteration"):
        stops = run_program(f"def f(x): raise {error}", QUICK, Check("", early, "f"))
        assert stops.outcome is Outcome.FAILED, stops
    endless = "def f(x):\n    x = [x]; x.append(x)\n    return x"
    for program in ("def f(x): return iter([])", "f = 5", "def g(x): pass", endless):
        result = run_program(program, QUICK, CHECK)
        assert result.outcome is Outcome.FAILED, result
    hungry = "def f(x):\n    while True: x = [x, 'a' * 10**6]"
    assert run_program(hungry, dataclasses.replace(QUICK, memory_bytes=1 << 28), CHECK).outcome is Outcome.CRASHED
    endless = run_program("def f(x):\n    while True: pass", dataclasses.replace(QUICK, seconds=0.7), CHECK)
    assert endless.outcome is Outcome.TIMEOUT
    with pytest.raises(OSError, match="tests of a program cannot be read: SyntaxError"):
        run_program("def f(x): return x", QUICK, Check("", "def check(", "f"))
