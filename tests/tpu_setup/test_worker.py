"""What runs on a worker, for real."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tpu_setup.scripts import SCRIPTS, script, wait_for


def test_a_worker_runs_follows_and_reports_the_exit_code(tmp_path):
    done = script("worker.sh", "run", "one", "bash", "-c", "echo hello; exit 5", check=5, RUNS=str(tmp_path))
    start, first, last = done.stdout.splitlines()
    assert "] == start 1, " in start and start.endswith(": bash -c echo hello; exit 5")
    assert first.endswith("] hello") and last.endswith("] exit 5")
    assert (tmp_path / "one" / "log").read_text().splitlines()[1:] == ["hello"]


def test_a_worker_keeps_the_log_of_the_run_that_crashed(tmp_path):
    script("worker.sh", "run", "one", "printf", "Traceback without an end", RUNS=str(tmp_path))
    done = script("worker.sh", "restart", "one", "echo", "second", RUNS=str(tmp_path))
    log = (tmp_path / "one" / "log").read_text().splitlines()
    assert log[0].startswith("== start 1, ") and log[1] == "Traceback without an end"
    assert log[2].startswith("== start 2, ") and log[2].endswith("Z: echo second") and log[3:] == ["second"]
    # Followed is only the start that goes on.
    assert [line.partition("] ")[2] for line in done.stdout.splitlines()] == [*log[2:], "exit 0"]


def test_a_worker_s_command_outlives_the_connection_and_is_followed_not_started_again(tmp_path):
    values = {"RUNS": str(tmp_path), "GO": str(tmp_path / "go")}
    command = ["bash", "-c", 'echo began; until [[ -e "$GO" ]]; do sleep 0.1; done; echo ended']
    ssh = subprocess.Popen(
        ["bash", str(SCRIPTS / "worker.sh"), "run", "long", *command],
        env={**os.environ, **values},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "] == start 1, " in ssh.stdout.readline() and ssh.stdout.readline().endswith("] began\n")
    os.killpg(ssh.pid, signal.SIGKILL)  # the connection is cut
    ssh.communicate()
    (tmp_path / "go").touch()
    done = script("worker.sh", "run", "long", "false", **values)
    assert [line.partition("] ")[2] for line in done.stdout.splitlines()][-3:] == ["began", "ended", "exit 0"]
    assert (tmp_path / "long" / "log").read_text().splitlines()[1:] == ["began", "ended"]


def test_a_worker_stops_what_runs_before_it_restarts(tmp_path):
    values = {"RUNS": str(tmp_path), "UP": str(tmp_path / "up")}
    command = ["bash", "-c", 'trap "echo saved; exit 0" TERM; touch "$UP"; while true; do sleep 0.1; done']
    first = subprocess.Popen(
        ["bash", str(SCRIPTS / "worker.sh"), "run", "it", *command],
        env={**os.environ, **values},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "up")
    done = script("worker.sh", "restart", "it", "echo", "second", **values)
    assert done.stdout.splitlines()[1].endswith("] second")
    assert "saved" in first.communicate(timeout=60)[0]


def test_a_worker_stops_all_that_runs(tmp_path):
    script("worker.sh", "stop", RUNS=str(tmp_path))  # nothing does
    command = ["bash", "-c", 'trap "exit 4" TERM; touch "$1"; while true; do sleep 0.1; done', "x"]
    runs = [
        subprocess.Popen(
            ["bash", str(SCRIPTS / "worker.sh"), "run", name, *command, str(tmp_path / f"up_{name}")],
            env={**os.environ, "RUNS": str(tmp_path / "runs")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for name in ("one", "two"):
        wait_for(tmp_path / f"up_{name}")
    script("worker.sh", "stop", RUNS=str(tmp_path / "runs"))
    assert [run.communicate(timeout=60)[0].splitlines()[-1].partition("] ")[2] for run in runs] == ["exit 4"] * 2


def test_a_stopped_command_s_own_code_is_kept_and_not_that_of_the_signal(tmp_path):
    values = {"RUNS": str(tmp_path), "UP": str(tmp_path / "up")}
    command = ["bash", "-c", 'trap "sleep 1; exit 5" TERM; touch "$UP"; while true; do sleep 0.1; done']
    ssh = subprocess.Popen(
        ["bash", str(SCRIPTS / "worker.sh"), "run", "it", *command],
        env={**os.environ, **values},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "up")
    script("worker.sh", "stop", "it", **values)  # all of its group is told, as by a machine that goes down
    assert ssh.communicate(timeout=60)[0].splitlines()[-1].endswith("] exit 5")


def test_the_first_process_of_a_pod_passes_a_signal_on(tmp_path):
    """It alone is told. In a namespace of processes of its own, as in a pod."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--map-root-user", "bash", str(SCRIPTS / "worker.sh")]
    if subprocess.run([*inside, "once", "true"], capture_output=True).returncode:
        pytest.skip("this machine has no namespaces of processes")
    command = f"trap 'exit 7' TERM; touch {tmp_path}/up; while true; do sleep 0.1; done"
    pod = subprocess.Popen([*inside, "once", "bash", "-c", command])
    wait_for(tmp_path / "up")
    first = int(Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text())
    os.kill(first, signal.SIGTERM)
    assert pod.wait(60) == 7


def test_keys_reach_the_command_and_no_log(tmp_path):
    (tmp_path / "keys").write_text('# mine\nWANDB_API_KEY=a "b" $c=d\nnot a line\nHF_TOKEN=last')
    values = {"RUNS": str(tmp_path / "runs"), "SECRETS": str(tmp_path / "keys"), "OUT": str(tmp_path / "out")}
    done = script("worker.sh", "run", "one", "bash", "-c", 'echo "$WANDB_API_KEY $HF_TOKEN" > "$OUT"', **values)
    assert (tmp_path / "out").read_text() == 'a "b" $c=d last\n'
    log = (tmp_path / "runs" / "one" / "log").read_text()
    assert "last" not in log + done.stdout and "$c" not in log + done.stdout


@pytest.mark.parametrize("command, code", [('exit "$STOPPED_EXIT"', 143), ("exit 0", 0), ("exit 7", 7)])
def test_a_run_that_is_asked_to_stop_is_told_its_exit_code(command, code):
    script("worker.sh", "once", "bash", "-c", command, check=code)
