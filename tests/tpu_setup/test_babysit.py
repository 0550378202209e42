"""Babysitting processes of this machine, for real."""

import os
import signal
import subprocess
import time

from tests.tpu_setup.scripts import COUNTED, SCRIPTS, TRAINING, script, wait_for


def babysit(command, check=0, **values):
    """Babysit a line of shell here, waiting no time between runs unless told to."""
    values = {"LOCAL": "1", "BACKOFF": "0", **values}
    return script("babysit.sh", "bash", "-c", command, check=check, **values).stderr


def test_a_killed_command_runs_again_until_it_is_done(tmp_path):
    file = tmp_path / "runs"
    said = babysit(COUNTED + "((n > 4)) || kill -9 $$", FILE=str(file), MAX_FAILURES="1")
    assert file.read_text() == "run\n" * 5  # preemptions have no limit
    assert said.splitlines()[-1] == "babysit: done after 5 runs, 4 preemptions, 0 failures"
    assert said.count("preempted (exit 137)") == 4


def test_failures_in_a_row_have_a_limit_and_the_waits_double(tmp_path):
    file = tmp_path / "runs"
    said = babysit(COUNTED + "exit 7", check=1, FILE=str(file), BACKOFF="1", MAX_FAILURES="3")
    assert file.read_text() == "run\n" * 3
    assert "failed (exit 7), 1 in a row" in said and "again in 1 s" in said and "again in 2 s" in said
    assert said.splitlines()[-1].endswith("failed (exit 7), 3 in a row: giving up; 0 preemptions, 3 failures")


def test_the_wait_has_a_greatest_value(tmp_path):
    said = babysit("exit 1", check=1, BACKOFF="1", BACKOFF_MAX="1", MAX_FAILURES="3")
    assert said.count("again in 1 s") == 2


def test_a_crash_is_a_failure_and_preemptions_are_counted_separately(tmp_path):
    said = babysit(
        COUNTED + "case $n in 1) kill -TERM $$ ;; 2) kill -ABRT $$ ;; 3) kill -9 $$ ;; esac",
        FILE=str(tmp_path / "runs"),
        MAX_FAILURES="2",
    )
    assert "preempted (exit 143)" in said and "failed (exit 134)" in said and "preempted (exit 137)" in said
    assert said.splitlines()[-1] == "babysit: done after 4 runs, 2 preemptions, 1 failures"


def test_a_long_run_begins_the_counting_anew(tmp_path):
    values = {"FILE": str(tmp_path / "runs"), "MAX_FAILURES": "2", "HEALTHY": "1"}
    said = babysit(COUNTED + "((n > 3)) && exit 0; sleep 1.2; exit 5", **values)
    assert said.count("failed (exit 5), 1 in a row") == 3


def test_a_refusal_is_not_tried_again(tmp_path):
    said = babysit(COUNTED + "exit 2", check=2, FILE=str(tmp_path / "runs"))
    assert (tmp_path / "runs").read_text() == "run\n" and "refused" in said


def test_a_run_that_saved_and_stopped_goes_on_and_a_done_one_does_not(tmp_path):
    said = babysit(TRAINING, FILE=str(tmp_path / "runs"))
    assert said.splitlines()[-1] == "babysit: done after 2 runs, 1 preemptions, 0 failures"


def test_one_process_killed_ends_the_others_and_all_start_again(tmp_path):
    # Process 1 is killed in the first run; process 0 would go on for ever, as in a collective.
    command = (
        'echo "$PROCESS_ID" >> "$FILE"; n=$(wc -l < "$FILE"); '
        "((n > 2)) && exit 0; [[ $PROCESS_ID == 1 ]] && { sleep 0.3; kill -9 $$; }; sleep 60"
    )
    began = time.monotonic()
    said = babysit(command, FILE=str(tmp_path / "who"), PROCESSES="2", GRACE="1")
    assert time.monotonic() - began < 30
    assert sorted((tmp_path / "who").read_text().split()) == ["0", "0", "1", "1"]
    assert said.splitlines()[-1] == "babysit: done after 2 runs, 1 preemptions, 0 failures"


def test_the_first_to_end_badly_says_how():
    # The failure of process 0 brings process 1 down by a signal: a failure, not a preemption.
    said = babysit("[[ $PROCESS_ID == 0 ]] && exit 3; sleep 0.5; kill -9 $$", check=1, PROCESSES="2", MAX_FAILURES="1")
    assert "failed (exit 3)" in said and "0 preemptions, 1 failures" in said


def test_braces_in_arguments_become_the_number_of_the_process(tmp_path):
    script("babysit.sh", "touch", f"{tmp_path}/process_{{i}}", LOCAL="1", PROCESSES="3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["process_0", "process_1", "process_2"]


def test_a_signal_to_babysit_reaches_the_command_which_saves(tmp_path):
    command = f"trap 'touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; while true; do sleep 0.1; done"
    process = subprocess.Popen(
        ["bash", str(SCRIPTS / "babysit.sh"), "bash", "-c", command],
        env={**os.environ, "LOCAL": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and (tmp_path / "saved").exists()
    assert said.splitlines()[-1] == "babysit: stopped by TERM; 0 preemptions, 0 failures"
