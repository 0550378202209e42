"""One run at a time in a workdir."""

import json
import os
import socket
import subprocess
import sys

import pytest

from rl_likelihood.run import lock as locks
from rl_likelihood.run.lock import lock
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


def test_a_half_written_lock_is_taken_over(tmp_path, capsys):
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
