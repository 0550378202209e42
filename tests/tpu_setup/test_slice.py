"""Babysitting a slice, with a gcloud that plays a cloud."""

import os

import pytest

from tests.tpu_setup.scripts import CLOUD, ROOT, TRAINING, script

# A cloud with one slice: its state is in $CLOUD/state. The first run of the command is preempted, the second loses
# its connection, the third fails, the fourth is done.
GCLOUD = r"""#!/usr/bin/env bash
echo "${*:3:2}" >> "$CLOUD/asked"
case "$3 $4" in
  "queued-resources describe") cat "$CLOUD/state" 2>/dev/null || { echo "NOT_FOUND" >&2; exit 1; } ;;
  "tpu-vm describe") echo READY ;;
  "queued-resources create") echo ACTIVE > "$CLOUD/state" ;;
  "queued-resources delete") rm "$CLOUD/state" ;;
  "tpu-vm ssh")
    verb="$(sed -n 's/.*worker.sh \(run\|restart\) .*/\1/p' <<< "${*: -1}")"
    [[ -n "$verb" ]] || exit 0
    echo "$verb" >> "$CLOUD/runs"
    case "$(wc -l < "$CLOUD/runs")" in
      1) echo "[w-0] exit 143"; echo SUSPENDED > "$CLOUD/state"; exit 1 ;;
      2) exit 1 ;;
      3) echo "[w-1] exit 5"; exit 1 ;;
      4) echo "[w-0] exit 0" ;;
    esac ;;
esac
"""


def babysit_slice(tmp_path, gcloud, *words, check=0, **values):
    """Babysit words on a slice of this gcloud: the lines babysit said, and the folder $CLOUD."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    program, cloud = tmp_path / "bin" / "gcloud", tmp_path / "cloud"
    program.parent.mkdir()
    cloud.mkdir()
    program.write_text(gcloud)
    program.chmod(0o755)
    values = {"BACKOFF": "0", "POLL": "0", "MAX_FAILURES": "2", "LOGS": str(tmp_path / "logs"), **values}
    values |= {"PATH": f"{program.parent}:{os.environ['PATH']}", "CLOUD": str(cloud)}
    done = script("babysit.sh", *words, check=check, **{**CLOUD, "DRY_RUN": "0"}, **values)
    return [line for line in done.stderr.splitlines() if line.startswith("babysit")], cloud


def test_babysit_makes_a_preempted_slice_anew_and_counts_failures_separately(tmp_path):
    said, cloud = babysit_slice(tmp_path, GCLOUD, "train")
    assert said[-1] == "babysit: done after 4 runs, 2 preemptions, 1 failures"
    # Followed, not started again, after the lost connection; started anew after the failure.
    assert (cloud / "runs").read_text().split() == ["run", "restart", "run", "restart"]
    asked = (cloud / "asked").read_text()
    assert asked.count("queued-resources create") == 2 and asked.count("queued-resources delete") == 1
    assert asked.count("tpu-vm scp") == 2


def test_babysit_goes_on_with_a_run_on_the_slice_that_was_told_to_stop_and_saved(tmp_path):
    """The cloud's message reaches the run first: it saves and ends with 0 while the slice still says READY."""
    # The one worker is this machine.
    here = 'bash -c "${command#--command=}"; exit'
    asked = 'command="${*: -1}"; [[ "$command" != *"worker.sh r"* ]] || {'
    gcloud = GCLOUD.replace('"tpu-vm ssh")', f'"tpu-vm ssh") {asked} {here}; }}')
    words = ["bash", "-c", TRAINING]
    values = {"REMOTE_DIR": str(ROOT), "RUNS": str(tmp_path / "runs")}
    said, _ = babysit_slice(tmp_path, gcloud, *words, FILE=str(tmp_path / "times"), **values)
    assert "preempted (exit 143)" in said[1]
    assert said[-1] == "babysit: done after 2 runs, 1 preemptions, 0 failures"


def failing(at, words="PERMISSION_DENIED", code=1, times=10**9, also="true"):
    """GCLOUD, which fails at this so many times, after it did something else also."""
    fails = f'{{ {also}; echo "{words}" >&2; exit {code}; }}'
    what = f'"{at}") echo x >> "$CLOUD/failed"; (($(wc -l < "$CLOUD/failed") > {times})) || {fails} ;;&'
    return GCLOUD.replace('case "$3 $4" in\n', f'case "$3 $4" in\n  {what}\n')


@pytest.mark.parametrize(
    "gcloud",
    [
        failing("queued-resources create"),
        failing("queued-resources create", also="sleep 3.2"),  # longer than HEALTHY
        failing("queued-resources describe"),  # no login: the cloud never says anything
        GCLOUD.replace("echo ACTIVE >", "echo FAILED >"),  # asked for, and then found not to be had
        failing("tpu-vm scp", code=2),  # the other program's 2 is no refusal
        failing("tpu-vm ssh", code=143),
    ],
)
def test_a_slice_that_cannot_be_made_or_set_up_is_a_failure_which_has_a_limit(tmp_path, gcloud):
    said, cloud = babysit_slice(tmp_path, gcloud, "train", check=1, HEALTHY="3")
    assert said[-1].endswith("2 in a row: giving up; 0 preemptions, 2 failures")
    assert not (cloud / "runs").exists()


def test_a_slice_that_is_lost_before_the_run_is_a_preemption(tmp_path):
    """In the queue twice, in set-up twice: more than MAX_FAILURES."""
    gcloud = failing("tpu-vm scp", times=2, also='echo SUSPENDED > "$CLOUD/state"')
    queue = 'n=$(grep -c "s create" "$CLOUD/asked"); ((n > 2)) && s=ACTIVE || s=SUSPENDED; echo $s'
    gcloud = gcloud.replace("echo ACTIVE", queue).replace("[w-1] exit 5", "[w-1] exit 143")
    said, cloud = babysit_slice(tmp_path, gcloud, "train", MAX_FAILURES="1")
    assert said[-1] == "babysit: done after 8 runs, 7 preemptions, 0 failures"
    assert (cloud / "asked").read_text().count("queued-resources delete") == 5


@pytest.mark.parametrize(
    "gcloud",
    [
        failing("queued-resources describe", words="UNAVAILABLE", times=1),  # the first look says nothing
        failing("tpu-vm scp", words="connection refused", times=1),  # set-up fails once
    ],
)
def test_no_run_begins_on_a_slice_that_was_not_set_up(tmp_path, gcloud):
    """The slice is there and READY from the beginning."""
    gcloud = gcloud.replace('case "$3', '[[ -e "$CLOUD/state" ]] || echo ACTIVE > "$CLOUD/state"\ncase "$3', 1)
    done = 'echo "[w-0] exit 0"; echo "$verb" >> "$CLOUD/asked"; exit 0'
    gcloud = gcloud.replace('echo "$verb" >> "$CLOUD/runs"', done)
    said, cloud = babysit_slice(tmp_path, gcloud, "train")
    assert said[-1] == "babysit: done after 2 runs, 0 preemptions, 1 failures"
    asked = [line for line in (cloud / "asked").read_text().splitlines() if not line.endswith("describe")]
    # What runs there is stopped; the last set-up is whole: code, environment, count of devices; then the run.
    assert asked[-6:] == ["tpu-vm ssh", "tpu-vm scp", *["tpu-vm ssh"] * 3, "run"] and asked.count("run") == 1


def test_an_outage_after_the_cloud_has_answered_is_waited_for(tmp_path):
    looks = 'echo x >> "$CLOUD/looks"; n=$(wc -l < "$CLOUD/looks")'
    outage = looks + "; ((n < 4 || n > 6)) || { echo UNAVAILABLE >&2; exit 1; };"
    gcloud = GCLOUD.replace('"queued-resources describe")', f'"queued-resources describe") {outage}')
    said, _ = babysit_slice(tmp_path, gcloud.replace("[w-1] exit 5", "[w-1] exit 143"), "train", MAX_FAILURES="1")
    assert said[-1] == "babysit: done after 6 runs, 5 preemptions, 0 failures"
