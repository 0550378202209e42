"""The scripts of tpu_setup: what each would do (DRY_RUN=1), refusals, and babysitting and worker's runs for real."""

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

from rl_likelihood.planning import aot

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_setup"
CLOUD = {"PROJECT": "p", "ZONE": "z-a", "DRY_RUN": "1"}
WHERE = ["--project=p", "--zone=z-a"]


def script(name, *arguments, check=0, **values):
    """Output of a script, run from another folder with these environment variables and no others of its own."""
    clean = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
    done = subprocess.run(
        ["bash", str(SCRIPTS / name), *arguments],
        env={**clean, **values},
        capture_output=True,
        text=True,
        timeout=100,
        cwd="/",
    )
    assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def commands(done):
    """The printed commands as lists of words, as a shell would read them."""
    return [shlex.split(line) for line in done.stdout.splitlines()]


def gcloud(words):
    return ["gcloud", "compute", "tpus", *words.split()]


def test_every_script_is_executable_but_the_shared_values():
    assert {p.name for p in SCRIPTS.glob("*.sh") if not os.access(p, os.X_OK)} == {"common.sh"}


def test_shellcheck_finds_nothing():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"  # of the extra test
    files = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "topology, accelerator, runtime",
    [
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e:2x2", "v6e-4", "v2-alpha-tpuv6e"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_create_asks_for_the_chips_of_the_topology(topology, accelerator, runtime):
    out = commands(script("create.sh", **CLOUD, TOPOLOGY=topology))
    options = [*WHERE, f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--spot"]
    assert out == [[*gcloud("queued-resources create rl-likelihood --node-id=rl-likelihood"), *options]]


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e"])
def test_the_shapes_are_those_that_plan_knows(kind):
    """Others do not exist, or are another torus than the one that the number of chips stands for."""
    known = aot.SHAPES[aot.CHIPS[kind].dims]
    others = {"v4": ("2x2x8", "2x2"), "v5e": ("3x5", "4x4x4", "2x2 2x4"), "v5p": ("2x2", "4x2x2"), "v6e": ("1x2",)}
    for shape in others[kind]:
        (line,) = script("create.sh", **CLOUD, TOPOLOGY=f"{kind}:{shape}", check=2).stderr.splitlines()
        assert f"'{kind}:{shape}'" in line
        assert " " in shape or line.endswith(f"; {kind} has {', '.join(known)}")
    chips = aot.chips_of(f"{kind}:{known[-1]}")
    (out,) = commands(script("create.sh", **CLOUD, TOPOLOGY=f"{kind}:{known[-1]}"))
    assert out[-3].endswith(f"-{2 * chips if kind in ('v4', 'v5p') else chips}")


def test_create_without_queue_at_full_price():
    out = commands(script("create.sh", **CLOUD, QUEUED="0", PRICING="on-demand", TPU_NAME="mine", RUNTIME="r"))
    options = [*WHERE, "--accelerator-type=v5litepod-16", "--runtime-version=r"]
    assert out == [[*gcloud("tpu-vm create mine"), *options]]


def test_delete():
    (out,) = commands(script("delete.sh", **CLOUD))
    assert out == [*gcloud("queued-resources delete rl-likelihood"), *WHERE, "--quiet", "--force"]
    (out,) = commands(script("delete.sh", **CLOUD, QUEUED="0"))
    assert out == [*gcloud("tpu-vm delete rl-likelihood"), *WHERE, "--quiet"]


def test_setup_sends_the_commit_and_makes_the_environment_on_all_workers(tmp_path):
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    if not commit:
        pytest.skip("not a git checkout")
    archive, send, make, check = commands(script("setup.sh", **CLOUD, TMPDIR=str(tmp_path), NFS="10.0.0.2:/share"))
    file = f"{tmp_path}/rl_likelihood-{commit[:12]}.tar.gz"
    assert archive == [*git, "archive", "--format=tar.gz", "--prefix=rl_likelihood/", f"--output={file}", commit]
    assert send == [*gcloud("tpu-vm scp"), file, "rl-likelihood:code.tar.gz", *WHERE, "--worker=all"]
    ssh = [*gcloud("tpu-vm ssh rl-likelihood"), *WHERE, "--worker=all"]
    assert make[:-1] == check[:-1] == ssh
    assert make[-1].startswith("--command=tar -xzf code.tar.gz && ") and commit in make[-1]
    assert make[-1].endswith("NFS='10.0.0.2:/share' bash rl_likelihood/tpu_setup/worker.sh setup")
    assert "jax.device_count()" in check[-1]
    assert not list(tmp_path.iterdir())  # nothing was done


def test_run_sends_one_command_to_all_workers_word_for_word():
    words = ["python", "-m", "x", "--config=configs/tiny.py:reward=jepo", "--name=two words"]
    (out,) = commands(script("run.sh", *words, **CLOUD, RUN_NAME="first"))
    assert out[:-1] == [*gcloud("tpu-vm ssh rl-likelihood"), *WHERE, "--worker=all"]
    remote = shlex.split(out[-1].removeprefix("--command="))
    assert remote == ["bash", "rl_likelihood/tpu_setup/worker.sh", "run", "first", *words]
    (again,) = commands(script("run.sh", *words, **CLOUD, RESTART="1"))
    assert " restart run " in again[-1]


def test_logs():
    (out,) = commands(script("logs.sh", **CLOUD, RUN_NAME="first", TAIL="5"))
    assert out[-1].startswith("--command=tail -n 5 runs/first/log")


def test_babysit_makes_the_slice_sets_it_up_and_runs():
    out = commands(script("babysit.sh", "python", "-m", "x", **CLOUD))
    assert [" ".join(line[3:5]) for line in out] == [
        "queued-resources create",
        "archive --format=tar.gz",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    assert out[-1][-1].endswith("worker.sh run run python -m x")


def test_a_sweep_is_its_points_commands_one_after_the_other(tmp_path):
    values = {**CLOUD, "ROOT": "../share/runs/mine", "PYTHON": sys.executable}
    out = commands(script("sweep.sh", "experiments/cpu_grid.py", "--only", "task=short", "--only", "seed=0", **values))
    assert [words[0] for words in out] == [str(SCRIPTS / "babysit.sh")] * 9
    assert out[0][1:] == ["python", "-m", "rl_likelihood.sweep", "experiments/cpu_grid.py", "--prepare"]
    assert all(words[1:4] == ["python", "-m", "rl_likelihood.train"] for words in out[1:])
    workdirs = [words[-1] for words in out[1:]]
    assert len(set(workdirs)) == 8 and all(w.startswith("--workdir=../share/runs/mine/reward=") for w in workdirs)
    assert "--config.preset=kw_base_rl" in out[1]


def test_a_sweep_goes_on_after_a_point_that_fails_and_names_it(tmp_path):
    """With a python that prints two commands as the sweep and fails in the first of them."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\nif [[ $2 == rl_likelihood.sweep ]]; then printf '%s\\n' "
        f"'{python} one \"a b\" --workdir=x' '{python} two --workdir=y'; exit; fi\n"
        f'echo "$1,$2" >> {tmp_path}/ran; [[ $1 == two ]]\n'
    )
    python.chmod(0o755)
    values = {"LOCAL": "1", "ROOT": "runs", "PYTHON": str(python), "MAX_FAILURES": "1", "BACKOFF": "0"}
    done = script("sweep.sh", "experiments/x.py", check=1, **values)
    assert (tmp_path / "ran").read_text().split("\n")[:2] == ["one,a b", "two,--workdir=y"]
    assert done.stderr.splitlines()[-2:] == ["left:", "  --workdir=x (exit 1)"]


def test_jobset_speaks_of_the_same_slice():
    values = {"IMAGE": "r/i:t", "CLAIM": "disk", "SLICES": "2", "TOPOLOGY": "v5e:4x8", "TPU_NAME": "mine"}
    text = script("jobset.sh", "python", "-c", 'print("a\\b")', **values).stdout
    for line in (
        "name: mine",
        "replicas: 2",
        "parallelism: 8",
        "completions: 8",
        "google.com/tpu: 4",
        "claimName: disk",
        "gke-tpu-topology: 4x8",
        "gke-tpu-accelerator: tpu-v5-lite-podslice",
        'gke-spot: "true"',
        'image: "r/i:t"',
    ):
        assert line in text, line
    assert "spot" not in script("jobset.sh", "x", **values, PRICING="reserved").stdout
    for wrong in ("0", "3", "8", "64", "x"):
        (line,) = script("jobset.sh", "x", **values, CHIPS_PER_HOST=wrong, check=2).stderr.splitlines()
        assert line.endswith(f"CHIPS_PER_HOST is '{wrong}'; a machine of v5e:4x8 has 4 chips")
    for given, hosts, chips in (({}, 1, 8), ({"CHIPS_PER_HOST": "4"}, 2, 4)):
        small = script("jobset.sh", "x", **{**values, **given, "TOPOLOGY": "v5e:2x4"}).stdout
        assert f"parallelism: {hosts}" in small and f"google.com/tpu: {chips}" in small
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["bash", "tpu_setup/worker.sh", "once", "python", "-c", 'print("a\\b")']


def test_jobset_does_not_try_a_refused_command_again():
    spec = yaml.safe_load(script("jobset.sh", "x", IMAGE="i", CLAIM="c", RESTARTS="7").stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (name,) = (container["name"] for container in job["template"]["spec"]["containers"])
    # Exit code 2 fails the Job at once, with a reason by which the JobSet knows it; all else is run again.
    refused = {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": [2]}}
    assert job["podFailurePolicy"] == {"rules": [refused]}
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    rule = {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"] == {"maxRestarts": 7, "rules": [rule]}


@pytest.mark.parametrize(
    "name, arguments, values, words",
    [
        ("create.sh", [], {}, ["PROJECT", "ZONE"]),
        ("run.sh", ["x"], {"PROJECT": "p"}, ["not set: ZONE"]),
        ("run.sh", [], CLOUD, ["no command"]),
        ("babysit.sh", [], {"LOCAL": "1"}, ["no command"]),
        ("babysit.sh", ["x"], {}, ["PROJECT", "ZONE"]),
        ("create.sh", [], {**CLOUD, "TOPOLOGY": "v5litepod-16"}, ["v5litepod-16", "v5e:4x4"]),
        ("create.sh", [], {**CLOUD, "PRICING": "cheap"}, ["cheap", "spot, on-demand or reserved"]),
        ("setup.sh", [], {**CLOUD, "COMMIT": "nowhere"}, ["nowhere", "no commit"]),
        ("setup.sh", [], {**CLOUD, "NFS": "gs://bucket"}, ["NFS is 'gs://bucket'", "HOST:/SHARE"]),
        ("run.sh", ["x", "--workdir=gs://b/run"], CLOUD, ["--workdir=gs://b/run is no folder", "gcsfuse"]),
        ("babysit.sh", ["x", "--workdir", "gs://b/run"], {"LOCAL": "1"}, ["gs://b/run is no folder"]),
        ("jobset.sh", ["x", "--workdir=gs://b"], {"IMAGE": "i", "CLAIM": "c"}, ["gs://b is no folder"]),
        ("jobset.sh", ["x"], {}, ["IMAGE", "CLAIM"]),
    ],
)
def test_refusals_are_one_line_that_names_what_is_missing(name, arguments, values, words):
    done = script(name, *arguments, check=2, **values)
    assert len(done.stderr.splitlines()) == 1 and all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


# --------------------------------------------------------------------------------------- babysit, for real


def babysit(command, check=0, **values):
    """Babysit a line of shell here, waiting no time between runs unless told to."""
    values = {"LOCAL": "1", "BACKOFF": "0", **values}
    return script("babysit.sh", "bash", "-c", command, check=check, **values).stderr


# Appends a line to FILE at each run and sets n to the number of this one.
COUNTED = 'echo run >> "$FILE"; n=$(wc -l < "$FILE"); '


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


def test_a_crash_is_a_failure_and_preemptions_are_counted_apart(tmp_path):
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


# A training run as babysit sees it: the first is asked to stop, saves and ends with 0; the second is done.
TRAINING = (
    COUNTED
    + """
state() { echo '{"state": "'$1'", "step": 3, "steps": 9, "error": ""}' > "$DIR/STATUS"; }
if ((n > 1)); then state done; exit 0; fi
state running; trap 'state interrupted; exit 0' TERM; kill -TERM $$; exit 9"""
)


def test_a_run_that_saved_and_stopped_goes_on_and_a_done_one_does_not(tmp_path):
    values = {"LOCAL": "1", "BACKOFF": "0", "FILE": str(tmp_path / "runs"), "DIR": str(tmp_path)}
    for workdir in ([f"--workdir={tmp_path}"], ["--workdir", str(tmp_path)]):
        (tmp_path / "runs").unlink(missing_ok=True)
        words = ["bash", "-c", TRAINING, "rl_likelihood.train", *workdir]
        said = script("babysit.sh", *words, **values).stderr
        assert said.splitlines()[-1] == "babysit: done after 2 runs, 1 preemptions, 0 failures"
    # An evaluation of a run that is not done is done itself; and so is a dry run, which leaves no STATUS.
    (tmp_path / "STATUS").write_text('{"state": "interrupted", "step": 3}\n')
    for words in (["rl_likelihood.evaluate", *workdir], ["rl_likelihood.train", f"--workdir={tmp_path}/none"]):
        assert "done after 1 runs" in script("babysit.sh", "bash", "-c", "exit 0", *words, **values).stderr


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


def test_babysit_makes_a_preempted_slice_anew_and_counts_failures_apart(tmp_path):
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
    words = ["bash", "-c", TRAINING, "rl_likelihood.train", f"--workdir={tmp_path}"]
    values = {"REMOTE_DIR": str(ROOT), "RUNS": str(tmp_path / "runs")}
    said, _ = babysit_slice(tmp_path, gcloud, *words, FILE=str(tmp_path / "times"), DIR=str(tmp_path), **values)
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
        failing("queued-resources create", also="sleep 1.2"),  # longer than HEALTHY
        failing("queued-resources describe"),  # no login: the cloud never says anything
        GCLOUD.replace("echo ACTIVE >", "echo FAILED >"),  # asked for, and then found not to be had
        failing("tpu-vm scp", code=2),  # the other program's 2 is no refusal
        failing("tpu-vm ssh", code=143),
    ],
)
def test_a_slice_that_cannot_be_made_or_set_up_is_a_failure_which_has_a_limit(tmp_path, gcloud):
    said, cloud = babysit_slice(tmp_path, gcloud, "train", check=1, HEALTHY="1")
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


# --------------------------------------------------------------------------------------- worker.sh, for real


def wait_for(path, seconds=60):
    """Until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


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
