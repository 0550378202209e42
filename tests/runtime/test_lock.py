"""One run at a time in a workdir."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_likelihood.runtime import lock as locks
from rl_likelihood.runtime.lock import lock
from rl_likelihood.shapes import UserError


def holder(workdir, **changes):
    """Writes a lock as another process would."""
    row = {"host": socket.gethostname(), "pid": os.getpid(), "began": locks._began(os.getpid()), **changes}
    (workdir / "LOCK").write_text(json.dumps(row) + "\n")


def test_a_second_run_is_refused_by_the_first_s_pid_and_the_lock_goes_with_it(tmp_path):
    with lock(tmp_path / "run"):
        words = f"run is in use by process {os.getpid()} on this host; end it"
        with pytest.raises(UserError, match=words), lock(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / "LOCK").exists()
    assert not (tmp_path / "run" / "LOCK").exists()


def test_the_lock_of_a_process_that_is_no_more_is_taken_over_with_a_line(tmp_path, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, began in ((gone.pid, "1"), (os.getpid(), "1")):  # no such process, or its number given away again
        holder(tmp_path, pid=pid, began=began)
        with lock(tmp_path):
            assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()
        assert f"taken over from process {pid}" in capsys.readouterr().out


def test_a_half_written_lock_is_taken_over_when_nobody_writes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "TOUCHED", 0.1)
    (tmp_path / "LOCK").write_text('{"host"')
    with lock(tmp_path):
        assert "taken over" in capsys.readouterr().out


def test_a_lock_of_another_host_is_stale_when_nobody_touches_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "TOUCHED", 0.3)
    holder(tmp_path, host="elsewhere", pid=7)
    with lock(tmp_path):
        assert "taken over from process 7 on elsewhere" in capsys.readouterr().out
        # Now this process is the one that touches it, and another host comes.
        row = {**json.loads((tmp_path / "LOCK").read_text()), "host": "elsewhere"}
        (tmp_path / "LOCK").write_text(json.dumps(row))
        with pytest.raises(UserError, match="in use by process .* on elsewhere"), lock(tmp_path):
            pass


def test_where_there_are_no_links_a_lock_in_the_making_is_not_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "TOUCHED", 0.5)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "LOCK").touch()  # as it is before it is filled
    fill = threading.Timer(0.3, holder, (tmp_path,))
    fill.start()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on this host"), lock(tmp_path):
        pass
    fill.join()
    (tmp_path / "LOCK").unlink()
    with lock(tmp_path), pytest.raises(UserError, match="in use"), lock(tmp_path):
        pass


def test_a_lock_that_is_no_longer_ours_is_left_alone(tmp_path):
    with lock(tmp_path):
        holder(tmp_path, host="elsewhere")
    assert "elsewhere" in (tmp_path / "LOCK").read_text()


def test_a_look_says_who_holds_the_lock_and_neither_waits_nor_writes(tmp_path):
    assert locks.in_use(tmp_path / "not there") == "" and not (tmp_path / "not there").exists()
    with lock(tmp_path):
        assert locks.in_use(tmp_path) == f"process {os.getpid()} on this host"
    assert locks.in_use(tmp_path) == ""
    holder(tmp_path, began="1")
    assert locks.in_use(tmp_path) == "", "its number was given away again"
    path, now = tmp_path / "LOCK", time.time()
    holder(tmp_path, host="elsewhere", pid=7)
    for ago, alive in ((0, True), (2 * locks.TOUCHED, True), (4 * locks.TOUCHED, False), (-3600, False)):
        os.utime(path, (now - ago, now - ago))
        assert locks.in_use(tmp_path) == ("process 7 on elsewhere" if alive else ""), ago
    os.utime(path, (now - 3600, now - 3600))
    assert locks.in_use(tmp_path, now=now - 3601) == "process 7 on elsewhere", "by the clock of the file system"
    path.write_text('{"host"')
    assert locks.in_use(tmp_path) == "process ? on an unknown host", "it is just being written"
    assert [p.name for p in tmp_path.iterdir()] == ["LOCK"]


# Rounds in which eight processes want the lock at the same moment. Who has it makes a file that must not be there;
# in two of three rounds it then dies as it is, and the next round begins with a stale lock.
CROWD = """
import os, sys, time
from pathlib import Path
from rl_likelihood.runtime.lock import lock
from rl_likelihood.shapes import UserError

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
    except UserError:
        return 0

for number in range(13):
    begin, pids = time.monotonic() + 0.4, []
    for _ in range(8):
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
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX"))},
    )
    *rounds, left = out.stdout.splitlines()
    assert len(rounds) == 13, out.stderr
    for codes in rounds:
        assert set(codes.split()) <= {"0", "1"} and "1" in codes, rounds
    assert left == ""  # the last one gave it back, and nothing else is left
