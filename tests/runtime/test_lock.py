"""One run at a time in a workdir."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.runtime import lock

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from rl_likelihood.runtime import lock
lock.HEARTBEAT, lock.DURATION = map(float, sys.argv[2:])
with lock.lock(Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def short(monkeypatch):
    """A lease of two seconds."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.2)
    monkeypatch.setattr(lock, "DURATION", 2.0)


def holder(workdir: Path) -> subprocess.Popen:
    """A process that holds the lock of `workdir`."""
    words = [str(workdir), str(lock.HEARTBEAT), str(lock.DURATION)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    return process


def of_another_host(workdir: Path) -> None:
    """The lock says that its process runs on another host."""
    text = (workdir / "LOCK").read_text()
    (workdir / "LOCK").write_text(text.replace(f"host={socket.gethostname()}", "host=elsewhere"))


def end(process: subprocess.Popen) -> str:
    process.kill()
    return process.communicate()[1]


def test_a_second_run_is_refused_by_the_first_s_pid_and_the_lock_goes_with_it(tmp_path, capsys):
    with lock.lock(tmp_path / "run") as text:
        assert f"pid={os.getpid()}\n" in text == (tmp_path / "run" / "LOCK").read_text()
        with (
            pytest.raises(lock.InUse, match=f"run is in use by process {os.getpid()} on this host"),
            lock.lock(tmp_path / "run"),
        ):
            pass
        assert (tmp_path / "run" / "LOCK").exists()
    assert not any((tmp_path / "run").iterdir())
    assert capsys.readouterr().out == "", "a live holder is not waited for in words"


def test_the_lock_of_a_killed_process_is_taken_over_at_once_with_a_line(tmp_path, capsys):
    process = holder(tmp_path)
    with pytest.raises(lock.InUse, match=f"process {process.pid} on this host"), lock.lock(tmp_path):
        pass
    end(process)
    with lock.lock(tmp_path) as text:
        assert f"pid={os.getpid()}\n" in text
    out = capsys.readouterr().out
    assert f"taken over from process {process.pid}" in out and "waiting" not in out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["", '{"host"', '{"host": "h", "pid": 7, "began": "1", "token": "00"}\n'])
def test_a_half_written_lock_and_one_of_an_earlier_version_are_taken_over(left, short, tmp_path):
    (tmp_path / "LOCK").write_text(left)
    with lock.lock(tmp_path) as text:
        assert f"pid={os.getpid()}\n" in text
    assert not any(tmp_path.iterdir())


def test_a_lock_of_another_host_is_stale_when_nobody_touches_it(short, tmp_path, capsys):
    process = holder(tmp_path)
    of_another_host(tmp_path)
    with pytest.raises(lock.InUse, match=f"process {process.pid} on elsewhere"), lock.lock(tmp_path):
        pass
    end(process)
    with lock.lock(tmp_path):
        assert f"taken over from process {process.pid} on elsewhere" in capsys.readouterr().out


def test_where_names_cannot_be_exchanged_a_stale_lock_is_taken_over_all_the_same(short, tmp_path, monkeypatch, capsys):
    """As an NFS client: there filelock waits for ever."""
    for module in [
        m for name, m in sys.modules.items() if name.startswith("filelock") and hasattr(m, "exchange_names")
    ]:
        monkeypatch.setattr(module, "exchange_names", lambda *_: False)
    process = holder(tmp_path)
    with pytest.raises(lock.InUse, match=f"process {process.pid}"), lock.lock(tmp_path):
        pass
    end(process)
    with lock.lock(tmp_path) as text:
        assert f"pid={os.getpid()}\n" in text
    assert f"taken over from process {process.pid}" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_lock_that_came_meanwhile_is_put_back(tmp_path):
    path = tmp_path / "LOCK"
    path.write_text("stale")
    stale = lock._state(path)
    path.unlink()
    path.write_text("another's")
    lock._remove(path, stale)
    assert path.read_text() == "another's" and len(list(tmp_path.iterdir())) == 1
    lock._remove(path, lock._state(path))
    assert not any(tmp_path.iterdir())


def test_a_process_that_was_suspended_for_too_long_ends_when_it_has_lost_its_lock(short, tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with lock.lock(tmp_path):
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 1 and f"taken over by process {os.getpid()}" in said
        assert (tmp_path / "LOCK").exists()


@pytest.mark.parametrize("below", ("", "run"))
def test_a_workdir_that_is_a_file_is_said_to_be_one(below, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match="rows.jsonl.*is a file"), lock.lock(tmp_path / "rows.jsonl" / below):
        pass


def test_a_look_says_who_holds_the_lock_and_neither_waits_nor_writes(tmp_path):
    assert lock.in_use(tmp_path / "not there") == "" and not (tmp_path / "not there").exists()
    process = holder(tmp_path)
    path, now = tmp_path / "LOCK", time.time()
    assert lock.in_use(tmp_path) == f"process {process.pid} on this host"
    text = path.read_text()
    end(process)
    assert lock.in_use(tmp_path) == "", "there is no such process"
    path.write_text(text)
    of_another_host(tmp_path)
    for ago, alive in ((0, True), (0.7 * lock.DURATION, True), (1.1 * lock.DURATION, False), (-3600, False)):
        os.utime(path, (now - ago, now - ago))
        assert lock.in_use(tmp_path) == (f"process {process.pid} on elsewhere" if alive else ""), ago
    os.utime(path, (now - 3600, now - 3600))
    assert lock.in_use(tmp_path, now=now - 3601), "by the clock of the file system"
    path.write_text("filelock/2\npi")
    assert lock.in_use(tmp_path) == "an unknown process", "it is just being written"
    assert [p.name for p in tmp_path.iterdir()] == ["LOCK"]


# Rounds in which six processes want the lock at the same moment. Who has it makes a file that must not be there;
# in two of three rounds it then dies as it is, and the next round begins with a stale lock.
CROWD = """
import os, sys, time
from pathlib import Path
from rl_likelihood.runtime.lock import InUse, lock

folder, alone = Path(sys.argv[1]), Path(sys.argv[1]) / "alone"

def attempt(begin, dies):
    time.sleep(max(0, begin - time.monotonic()))
    try:
        with lock(folder, say=lambda _: time.sleep(0.01)):  # a slow console
            try:
                os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return 3
            time.sleep(0.02)
            alone.unlink()
            return 1 if not dies else os._exit(1)
    except InUse:
        return 0

for number in range(7):
    begin, pids = time.monotonic() + 0.4, []
    for _ in range(6):
        pid = os.fork()
        if not pid:
            code = 4
            try:
                code = attempt(begin, number % 3)
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(*sorted(codes))
print(*sorted(p.name for p in folder.iterdir()))
"""


def test_of_many_processes_at_once_one_has_the_lock_stale_or_not(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", CROWD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX"))},
    )
    *rounds, left = out.stdout.splitlines()
    assert len(rounds) == 7, out.stderr
    for codes in rounds:
        assert set(codes.split()) <= {"0", "1"} and "1" in codes, rounds
    assert left == ""  # the last one gave it back, and nothing else is left
