"""What runners make of processes that end well, fail, crash, are killed, or are interrupted. Small shell commands."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.lock import lock
from rl_likelihood.sweeps import grid, runners

QUICK = (0.0, 0.0)  # no pause before a preempted run goes on
DONE = """printf '{"state": "done", "step": 2, "steps": 2, "error": ""}' > STATUS"""
# $n: how often it has run, from 1.
COUNT = "n=$(cat n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > n; "


def job(tmp_path, script, name="run"):
    workdir = tmp_path / name
    return runners.Job(name, workdir, ("sh", "-c", f"cd {shlex.quote(str(workdir))}; {COUNT}{script}"))


def run(*jobs, at_once=1):
    said = []
    code = runners.run_local(jobs, at_once, said.append, QUICK)
    return code, said


def times(tmp_path, name="run"):
    return int((tmp_path / name / "n").read_text())


def test_a_run_that_ends_well_is_done_and_never_run_again(tmp_path):
    code, said = run(job(tmp_path, f"echo working; {DONE}"))
    assert code == 0 and said[-1] == "1 done"
    assert [row["event"] for row in grid.read_attempts(tmp_path / "run")] == ["start", "done"]
    assert "working" in (tmp_path / "run" / "log.txt").read_text()
    assert run(job(tmp_path, DONE))[0] == 0
    assert times(tmp_path) == 1


def test_a_failed_run_is_retried_three_times(tmp_path):
    code, said = run(job(tmp_path, "echo error: number $n; exit 2"))
    assert code == 1 and times(tmp_path) == 4
    state = grid.state(tmp_path / "run")
    assert (state.kind, state.failures, state.preemptions) == ("stopped", 4, 0)
    assert state.why == "failed 4 times: number 4"
    assert sum("retry" in line for line in said) == 4 and said[-1] == "1 stopped"  # the last names --retry


def test_the_same_error_twice_in_a_row_stops_it(tmp_path):
    code, said = run(job(tmp_path, "echo error: no such model; exit 2"), job(tmp_path, DONE, "other"))
    assert code == 1 and times(tmp_path) == 2
    assert any(line.startswith("stopped    run: the same error twice in a row: no such model") for line in said)
    assert grid.state(tmp_path / "other").kind == "done", "the others go on"


def test_preemption_has_no_limit_and_is_no_failure(tmp_path):
    code, said = run(job(tmp_path, f"if [ $n -lt 8 ]; then kill -9 $$; fi; {DONE}"))
    assert code == 0 and times(tmp_path) == 8
    state = grid.state(tmp_path / "run")
    assert (state.kind, state.failures, state.preemptions) == ("done", 0, 7)


def test_a_run_that_saved_and_ended_because_it_was_asked_to_goes_on(tmp_path):
    status = """printf '{"state": "interrupted", "step": 1, "steps": 2, "error": ""}' > STATUS; exit 0"""
    assert run(job(tmp_path, f"if [ $n = 1 ]; then {status}; fi; {DONE}"))[0] == 0
    assert grid.state(tmp_path / "run").preemptions == 1 and times(tmp_path) == 2


def test_failures_between_preemptions(tmp_path):
    script = f"case $n in 1|3) kill -TERM $$;; 2) echo Error: odd; exit 1;; esac; {DONE}"
    assert run(job(tmp_path, script))[0] == 0
    state = grid.state(tmp_path / "run")
    assert (state.failures, state.preemptions, state.error) == (1, 2, "Error: odd")


def test_a_crash_is_a_failure(tmp_path):
    assert run(job(tmp_path, "kill -SEGV $$"))[0] == 1
    assert times(tmp_path) == 2 and "crashed with SIGSEGV" in grid.state(tmp_path / "run").why


def test_exit_code_0_is_not_enough(tmp_path):
    assert run(job(tmp_path, "true"))[0] == 1
    assert "STATUS does not say done" in grid.state(tmp_path / "run").why


def test_the_error_is_that_of_status_if_this_attempt_wrote_it(tmp_path):
    said = """printf '{"state": "failed", "step": 1, "steps": 2, "error": "number %s"}' $n > STATUS"""
    run(job(tmp_path, f"if [ $n = 1 ]; then {said}; echo the log; exit 2; fi; echo another log; exit 2"))
    errors = [row["error"] for row in grid.read_attempts(tmp_path / "run") if row["event"] == "failed"]
    assert errors[:2] == ["number 1", "another log"], "an old STATUS is not this attempt's"


def test_a_command_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no-such-program cannot be started"):
        run(runners.Job("run", tmp_path / "run", ("no-such-program",)))
    assert not grid.held(tmp_path / "run")


def test_a_preempted_run_that_gets_nowhere_waits_longer_each_time(tmp_path):
    pauses = []
    for step in (0, 0, 0, 5, 5):
        run_files.append(tmp_path / run_files.METRICS, {"step": step})
        grid.note(tmp_path, "start") if not pauses else None
        grid.note(tmp_path, "preempted")
        pauses.append(runners.pause_of(tmp_path, (1.0, 60.0)))
        grid.note(tmp_path, "start")
    assert pauses == [1.0, 2.0, 4.0, 0.0, 1.0]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_runs_at_once_have_cores_of_their_own(tmp_path):
    # Each waits for the other, so that they are surely at work together.
    script = "grep Cpus_allowed_list /proc/self/status > cores; touch ../$0.up; "
    jobs = []
    for mine, other in (("a", "b"), ("b", "a")):
        wait = script.replace("$0", mine) + f"while [ ! -e ../{other}.up ]; do sleep 0.05; done; {DONE}"
        jobs.append(job(tmp_path, wait, mine))
    before = os.sched_getaffinity(0)
    assert run(*jobs, at_once=2)[0] == 0
    cores = [(tmp_path / name / "cores").read_text() for name in "ab"]
    assert cores[0] != cores[1]
    assert os.sched_getaffinity(0) == before


def test_more_runs_than_cores_are_refused():
    with pytest.raises(UserError, match="--jobs is 10000, but there are"):
        runners.shares(10_000)
    mine = runners.shares(1)
    assert mine == [os.sched_getaffinity(0)]


STATUS = '{\\"state\\": \\"interrupted\\", \\"step\\": 1, \\"steps\\": 2, \\"error\\": \\"\\"}'
SAVES = f"""trap 'printf "{STATUS}" > STATUS; exit 0' INT USR1
touch up; while true; do sleep 0.05; done"""


def when_up(path, act):
    def wait():
        while not path.exists():
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_runs_save_and_starts_no_more(number, tmp_path):
    when_up(tmp_path / "run" / "up", lambda: os.kill(os.getpid(), number))
    handler = signal.getsignal(number)
    code, said = run(job(tmp_path, SAVES), job(tmp_path, DONE, "other"))
    assert code == runners.INTERRUPTED and signal.getsignal(number) is handler
    assert grid.state(tmp_path / "run").kind == "preempted" and not (tmp_path / "other" / "n").exists()
    assert run_files.read_status(tmp_path / "run")["state"] == "interrupted"
    assert "run the same command" in said[-1]


def test_the_third_ctrl_c_kills_what_will_not_end(tmp_path):
    def three_times():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    when_up(tmp_path / "run" / "up", three_times)
    code, _ = run(job(tmp_path, "trap '' INT; touch up; while true; do sleep 0.05; done"))
    assert code == runners.INTERRUPTED and not grid.held(tmp_path / "run")


def test_a_second_hangup_or_the_term_after_usr1_does_not_reach_the_runs(tmp_path):
    """A terminal closes: kernel and shell both send SIGHUP. A job's time ends: SIGUSR1, then SIGTERM."""
    root = Path(__file__).parents[2]
    script = f"""trap 'echo HUP >> got' HUP; trap 'echo USR1 >> got' USR1; trap 'echo more >> got' INT TERM
touch up; while [ ! -e end ]; do sleep 0.05; done; printf "{STATUS}" > STATUS"""
    for signals, got in (((signal.SIGHUP, signal.SIGHUP), "HUP"), ((signal.SIGUSR1, signal.SIGTERM), "USR1")):
        stopped = job(tmp_path, script, got)
        code = (
            "import signal\nfrom pathlib import Path\nfrom rl_likelihood.sweeps import runners\n"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup, which may run the tests, ignores it
            f"run = runners.Job('run', Path({str(stopped.workdir)!r}), {stopped.command!r})\n"
            "exit(runners.run_local([run], 1, print))"
        )
        runner = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
        while not (stopped.workdir / "up").exists():
            time.sleep(0.05)
        for number in signals:
            runner.send_signal(number)
            time.sleep(0.5)
        while not (stopped.workdir / "got").exists():
            time.sleep(0.05)
        (stopped.workdir / "end").touch()
        assert "stopping at once" not in runner.communicate()[0] and runner.returncode == runners.INTERRUPTED
        assert (stopped.workdir / "got").read_text().split() == [got]
        assert grid.state(stopped.workdir).kind == "preempted"


# Holds the workdir's lock and ends when it is told to, as a run does.
LOCKED = f"""
import subprocess, time
from pathlib import Path
from rl_likelihood.runtime.lock import lock
with lock(Path(".")):
    Path("up").touch()
    while not Path("stop").exists():
        time.sleep(0.05)
    subprocess.run(["sh", "-c", {DONE!r}])
"""


def test_a_run_outlives_its_killed_runner_and_is_not_started_twice(tmp_path):
    root = Path(__file__).parents[2]
    long = job(tmp_path, shlex.join(["env", f"PYTHONPATH={root}", sys.executable, "-c", LOCKED]))
    code = (
        "from pathlib import Path\nfrom rl_likelihood.sweeps import runners\n"
        f"runners.run_local([runners.Job('run', Path({str(long.workdir)!r}), {long.command!r})], 1, print)"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.DEVNULL)
    while not (long.workdir / "up").exists():
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    assert grid.state(long.workdir).kind == "running"
    said = []

    def say(text):  # the second runner has met it: now it may end
        said.append(text)
        (long.workdir / "stop").touch()

    assert runners.run_local([long, job(tmp_path, DONE, "other")], 1, say, QUICK) == 0
    assert said[0].startswith("elsewhere  run: ") and said[-1] == "2 done" and times(tmp_path) == 1
    assert sum("elsewhere" in line for line in said) == 1, "it is said once"


def test_an_attempt_that_finds_the_folder_taken_is_no_failure(tmp_path):
    """As where a run was begun by hand meanwhile: the attempt's own run refuses, and the other one ends later."""
    holds = contextlib.ExitStack()
    said = []

    def say(text):
        said.append(text)
        if text.startswith("starts") and len(said) == 1:
            holds.enter_context(lock(tmp_path / "run"))
        if text.startswith("elsewhere"):
            holds.close()

    refused = f"if [ $n = 1 ]; then while [ ! -e LOCK ]; do sleep 0.05; done; exit 2; fi; {DONE}"
    assert runners.run_local([job(tmp_path, refused)], 1, say, QUICK) == 0
    state = grid.state(tmp_path / "run")
    assert (state.kind, state.failures, state.preemptions) == ("done", 0, 0) and times(tmp_path) == 2
    assert [row["event"] for row in grid.read_attempts(tmp_path / "run")] == ["start", "elsewhere", "start", "done"]
    assert said[1].startswith("elsewhere  run: ")


def test_printed_commands_can_be_pasted(tmp_path):
    command = (sys.executable, "-m", "rl_likelihood.train", "--config.reward.name=0.9*rlpr + 0.1*format")
    said = []
    assert runners.print_commands([runners.Job("a", tmp_path, command)], said.append) == 0
    assert shlex.split(said[0]) == ["python", *command[1:]]
