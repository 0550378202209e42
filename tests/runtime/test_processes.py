"""Two processes of four CPU devices: the same run as one process, its checkpoint for one, and the death of either."""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.runtime import checkpoint, run_files, watch
from rl_likelihood.runtime.lock import lock
from tests.runs import config_file, small_config

ROOT = Path(__file__).parents[2]
# Prompts over data, the chains of each over fsdp: the groups are split between the processes of the first mesh.
MESHES = {
    "groups split": {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "report.no_chain": False},
    "prompts split": {"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 4},
}
TIMED = ("time/", "queue/", "tokens_per_second")


def environment() -> dict[str, str]:
    flags = re.sub(r"(device_count=)\d+", r"\g<1>4", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(config, workdir, *more: str, program=("-m", "rl_likelihood.train")) -> list[str]:
    """One process's, but for its number."""
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    flags = [f"--config={config}", f"--workdir={workdir}", coordinator, "--num_processes=2"]
    return [sys.executable, *program, *flags, *more]


def start(config, workdir, *more: str, **changes) -> list[subprocess.Popen]:
    """Both; {i} in an argument is the number of each."""
    one = command(config, workdir, *more, "--process_id={i}", **changes)
    return [
        subprocess.Popen(
            [word.replace("{i}", str(i)) for word in one],
            cwd=ROOT,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


def said(process: subprocess.Popen, seconds: float = 240) -> list[str]:
    """What it printed to its end, without what gloo does and the log of jax's coordination, where that is quicker."""
    out, _ = process.communicate(timeout=seconds)
    theirs = re.compile(r"\[Gloo\]|is connected to|peer ranks|^\s*\d+$|^[WE]\d{4} .*(coordination|Coordination)")
    return [line for line in out.splitlines() if line and not theirs.search(line)]


def alike(one: Path, two: Path) -> None:
    """The same rows, to rounding, but for what a clock decides and for metrics of the gradient itself."""
    one, two = run_files.read(one), run_files.read(two)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for k, value in a.items():
            if isinstance(value, str) or k == "step":
                assert value == b[k] or k == "records", k
            elif isinstance(value, float) and not k.startswith((*TIMED, "grad/", "corr/", "seconds")):
                assert b[k] == pytest.approx(value, rel=2e-3, abs=2e-4), (a["step"], k)


def untimed(path: Path) -> list[dict]:
    """The rows without what a clock decides."""
    return [{k: v for k, v in row.items() if not k.startswith((*TIMED, "seconds"))} for row in run_files.read(path)]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["groups split", "prompts split"])
def test_two_processes_make_the_run_of_one(mesh, tmp_path):
    overrides = {**MESHES[mesh], "sampler.group_size": 4, "train.steps": 2, "eval.prompts": 3, "eval.samples": 1}
    overrides |= {"report.sample_prompts": 1, "prompt.width_multiple": 1}
    both = start(config_file(tmp_path, **overrides), tmp_path / "two")
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    assert not [line for line in lines[1] if "reward" in line or "step" in line], "only the first talks"
    assert any(line.startswith("step 2/2") for line in lines[0])
    train.run(build(small_config(**{k.replace(".", "__"): v for k, v in overrides.items()})), tmp_path / "one")
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        alike(tmp_path / "one" / name, tmp_path / "two" / name)
    one, two = (checkpoint.restore_params(tmp_path / run)[1] for run in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-5), one, two)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    overrides = {**MESHES["prompts split"], "train.steps": 1, "eval.prompts": 3, "eval.samples": 1}
    config, run, program = config_file(tmp_path, **overrides), tmp_path / "run", ("-m", "rl_likelihood.evaluate")
    train.run(build(small_config(**{k.replace(".", "__"): v for k, v in overrides.items()})), run)
    both = start(config, run, f"--out={tmp_path / 'two'}", program=program)
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    assert lines[0][-1].startswith("{") and not lines[1], "only the first talks"
    alone = [sys.executable, *program, f"--config={config}", f"--workdir={run}", f"--out={tmp_path / 'one'}"]
    subprocess.run(alone, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    alike(tmp_path / "one" / "eval.jsonl", tmp_path / "two" / "eval.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_process_is_said_in_a_line_and_ends_the_other_within_the_heartbeat(victim, tmp_path):
    # No checkpoint meanwhile: orbax would say something too.
    overrides = {"train.steps": 400, "train.checkpoint_every": 400, "eval.prompts": 0, "pod.heartbeat": 10.0}
    both = start(config_file(tmp_path, **overrides), tmp_path / "run")
    wait_for_step(tmp_path / "run", 3)
    began = time.monotonic()
    both[victim].send_signal(signal.SIGKILL)
    lines = said(both[1 - victim], 60)
    assert time.monotonic() - began < 15
    assert both[1 - victim].returncode == 1, lines
    errors = [line for line in lines if "error" in line.lower() or "Traceback" in line]
    assert errors == [f"error: process {victim} is gone; all end; start all again to resume from the last checkpoint"]
    said(both[victim])


# The command, whose sampler fails in process 1 before its third rollout.
FAILS = """
import runpy, sys
from rl_likelihood.rollouts.batches import Batches
collate = Batches.collate

def dragon(self, number):
    if number == 2 and "--process_id=1" in sys.argv:
        raise RuntimeError("here be dragons")
    return collate(self, number)

Batches.collate = dragon
runpy.run_module("rl_likelihood.train", run_name="__main__")
"""


@pytest.mark.slow
def test_a_sampler_that_raises_in_one_process_ends_all_with_its_words_and_a_checkpoint(tmp_path):
    overrides = {"train.steps": 3, "train.checkpoint_every": 50, "eval.prompts": 0, "report.sample_prompts": 1}
    config = config_file(tmp_path, **overrides)
    both = start(config, tmp_path / "run", program=["-c", FAILS])
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [1, 1], lines
    assert "RuntimeError: here be dragons" in lines[1]
    errors = [[line for line in some if line.startswith(("error", "Traceback"))] for some in lines]
    named = "error: process 1 has failed (RuntimeError: here be dragons); all end when they come to this point"
    assert errors == [[], ["Traceback (most recent call last):", named]], lines
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "failed" and status["error"] == "process 1: RuntimeError: here be dragons"
    assert checkpoint.latest_step(tmp_path / "run") == 2  # what was learned is saved, by both
    # One process goes on with it, on eight devices in another mesh, and is not asked for --force: the run is what it
    # would have been in one piece.
    elsewhere = {"mesh.fsdp": 1, "mesh.tensor": 8, "train.micro_batch_prompts": 1}
    for name, values in (("run", overrides | elsewhere), ("whole", overrides)):
        train.run(build(small_config(**{k.replace(".", "__"): v for k, v in values.items()})), tmp_path / name)
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    for name in ("metrics.jsonl", "samples.jsonl"):
        alike(tmp_path / "whole" / name, tmp_path / "run" / name)


# One of three processes, which end when the last of them has read a line.
ONE_OF_THREE = """
import os, sys, time
os.environ["XLA_FLAGS"] = ""
from rl_likelihood.runtime import distributed
distributed.start(sys.argv[1], 3, int(sys.argv[2]), heartbeat=4.0)
print("up", flush=True)
word = sys.stdin.readline().strip()
distributed.any_of(False) if word == "done" else None
distributed.finish(7 if word == "fail" else 0, together=word != "fail", why="no\\nroom")
"""


def processes_of(program: str, count: int, *arguments: object) -> list[subprocess.Popen]:
    """So many processes of a program, which is given the coordinator, its number and these arguments."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, coordinator, str(i), *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]


def three() -> list[subprocess.Popen]:
    out = processes_of(ONE_OF_THREE, 3)
    for process in out:
        while (line := process.stdout.readline()) != "up\n":
            assert line, f"process {out.index(process)} ended with {process.wait()}"
    return out


@pytest.mark.slow
def test_of_three_processes_one_line_names_the_one_that_died_and_all_end():
    """Killed, silent, failed by itself; and nothing is said where all end as they should."""
    again = "; all end; start all again to resume from the last checkpoint"
    killed = lambda p: p.send_signal(signal.SIGKILL)
    stopped = lambda p: p.send_signal(signal.SIGSTOP)
    failed = lambda p: (p.stdin.write("fail\n"), p.stdin.flush())
    for victim, act, speaker, code, words in (
        (2, killed, 0, 1, "is gone"),
        (0, killed, 1, 1, "is gone"),
        (1, stopped, 0, 1, "has not been heard of for 4 s (pod.heartbeat)"),
        (1, failed, 0, 7, "has failed (no room)"),
        (0, failed, None, 7, ""),
    ):
        processes = three()
        began = time.monotonic()
        act(processes[victim])
        survivors = [i for i in range(3) if i != victim]
        for i in survivors:
            processes[i].wait(60)
        assert time.monotonic() - began < 4 + 10
        lines = {i: said(processes[i]) for i in survivors}
        if (victim, act) == (0, killed):
            # With it goes jax's coordinator, and jax may be as quick to abort: a page beside our line.
            assert lines[1].count(f"error: process 0 is gone{again}") == 1, lines
            assert {processes[i].returncode for i in survivors} <= {1, -signal.SIGABRT}
            said(processes[0])
            continue
        assert lines == {i: [f"error: process {victim} {words}{again}"] if i == speaker else [] for i in survivors}
        assert [processes[i].returncode for i in survivors] == [code, code]
        processes[victim].kill()
        said(processes[victim])
    processes = three()
    for process in processes:
        process.stdin.write("done\n")
        process.stdin.flush()
    assert [said(p, 60) for p in processes] == [[], [], []] and [p.returncode for p in processes] == [0, 0, 0]


@pytest.mark.slow
def test_babysit_starts_both_again_after_a_death_and_the_run_is_bit_for_bit_the_unbroken_one(tmp_path):
    overrides = {"train.steps": 12, "eval.prompts": 0, "train.checkpoint_every": 2}
    overrides |= {"report.sample_prompts": 2}
    config = config_file(tmp_path, **overrides)
    one = command(config, tmp_path / "run", "--process_id={i}")
    values = {"LOCAL": "1", "PROCESSES": "2", "BACKOFF": "1", "GRACE": "40"}
    babysit = subprocess.Popen(
        [str(ROOT / "tpu_setup" / "babysit.sh"), *one],
        cwd=ROOT,
        env={**environment(), **values},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for step, number in ((3, 1), (7, 0)):
        wait_for_step(tmp_path / "run", step)
        os.kill(pid_of(tmp_path / "run", number), signal.SIGKILL)
        time.sleep(2)
    lines = said(babysit, 400)
    assert babysit.returncode == 0, lines[-20:]
    assert lines[-1] == "babysit: done after 3 runs, 2 preemptions, 0 failures"
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 13))
    whole = start(config, tmp_path / "whole")
    lines = [said(p) for p in whole]
    assert [p.returncode for p in whole] == [0, 0], lines
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert untimed(tmp_path / "run" / name) == untimed(tmp_path / "whole" / name)
    run, whole = (checkpoint.restore_params(tmp_path / name)[1] for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, run, whole)


def pid_of(workdir: Path, number: int) -> int:
    """The process with this number of the run in `workdir`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--workdir={workdir}" in words and f"--process_id={number}" in words and not words[1].endswith(".sh"):
            return int(path.parent.name)
    raise AssertionError(f"no process {number}")


def wait_for_step(workdir: Path, step: int, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    path = workdir / "metrics.jsonl"
    while not (path.exists() and any(row["step"] >= step for row in run_files.read(path))):
        assert time.monotonic() < end, f"step {step} never came"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--coordinator=127.0.0.1:1"], "--num_processes (JAX_NUM_PROCESSES), --process_id (JAX_PROCESS_ID) missing"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator is 'here'"),
        (["--coordinator=a:b", "--num_processes=2", "--process_id=0"], "--coordinator is 'a:b'"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id is 2, but --num_processes is 2"),
    ],
)
def test_processes_that_cannot_be_are_refused(flags, words, tmp_path):
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "rl_likelihood.train", *arguments],
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_or_in_use_is_refused_by_all_in_one_sentence(tmp_path):
    config = config_file(tmp_path)
    both = start(config, tmp_path / "disk_{i}" / "run")  # as on two hosts without a share
    (tmp_path / "disk_1" / "run").mkdir(parents=True)
    lines = [said(p) for p in both]
    assert lines == [
        [
            f"error: --workdir={tmp_path}/disk_0/run is not shared by all hosts: process 1 cannot see what process 0 "
            "has written there; give a folder that all of them mount, by the same path"
        ],
        [],
    ]
    assert [p.returncode for p in both] == [2, 2]
    with lock(tmp_path / "run"):
        both = start(config, tmp_path / "run")
        lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [2, 2] and lines[1] == [], lines
    assert len(lines[0]) == 1 and f"in use by process {os.getpid()} on this host" in lines[0][0]


def test_a_process_tells_the_others_the_address_from_which_it_reaches_them():
    assert watch.address_towards("127.0.0.1") == "127.0.0.1"


@pytest.mark.slow
def test_a_refusal_of_all_is_one_line_of_the_first_and_no_word_of_a_restart(tmp_path):
    both = start(config_file(tmp_path, **{"mesh.fsdp": 3}), tmp_path / "run")
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [2, 2], lines
    assert len(lines[0]) == 1 and "12 devices, but there are 8" in lines[0][0], lines
    assert "start all again" not in lines[0][0] and len(lines[1]) <= 1, lines


# Two processes, of which one comes to its end later than the other.
LATE = """
import os, sys, time
os.environ["XLA_FLAGS"] = ""
from rl_likelihood.runtime import distributed
me, late, code = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
distributed.start(sys.argv[1], 2, me)
distributed.any_of(False)
time.sleep(4 if me == late else 0)
if code and me == 0:
    distributed.say_error("refused by all")
distributed.finish(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("late, code", [(1, 2), (0, 2), (0, 0), (1, 0)])
def test_all_end_with_one_code_whoever_comes_last(late, code):
    """A refusal of all, or the end of a run, which only process 0 has more to do at."""
    both = processes_of(LATE, 2, late, code)
    lines = [said(p, 90) for p in both]
    assert [p.returncode for p in both] == [code, code], lines
    assert lines == [["error: refused by all"] * bool(code), []]


# Two processes, each with a folder of its own for what a share shows it: late, or never.
SEEN_LATE = """
import os, sys
from pathlib import Path
os.environ["XLA_FLAGS"] = ""
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.watch import Unreachable
me = int(sys.argv[2])
distributed.start(sys.argv[1], 2, me)
seen = Path(sys.argv[3]) / str(me)
distributed.await_file(seen / "late", seconds=60)
distributed.await_file(seen / "gone", there=False, seconds=60)
print("agreed", flush=True)
for there, name in ((True, "never"), (False, "stays")):
    try:
        distributed.await_file(seen / name, there, seconds=0.5)
    except distributed.SharedRefusal as error:
        print(isinstance(error, Unreachable), str(error).partition(": ")[2], flush=True)
distributed.finish()
"""


@pytest.mark.slow
def test_what_one_process_sees_late_is_waited_for_and_what_it_never_sees_is_refused_by_both(tmp_path):
    for folder, names in (("0", ("late", "never")), ("1", ("gone", "stays"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    both = processes_of(SEEN_LATE, 2, tmp_path)
    time.sleep(8)
    assert [p.poll() for p in both] == [None, None]
    (tmp_path / "1" / "late").touch()
    (tmp_path / "1" / "gone").unlink()
    again = "start all again"
    words = [
        "agreed",
        f"True process 1 cannot see it after 0.5 s, though process 0 can; {again}",
        f"True process 1 can see it still after 0.5 s, though process 0 cannot; {again}",
    ]
    assert [said(p, 60) for p in both] == [words, words]


def knock(port: int, said: bytes) -> socket.socket:
    """A connection that says this and no more."""
    stranger = socket.create_connection(("127.0.0.1", port), timeout=10)
    stranger.sendall(said)
    stranger.shutdown(socket.SHUT_WR)
    return stranger


def test_the_watch_admits_only_those_who_know_its_token():
    token, wrong = b"t" * watch.TOKEN, b"w" * watch.TOKEN
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        contextlib.ExitStack() as stack,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        port = server.getsockname()[1]
        # All wait in the server's queue: another run's process, a port scanner, a number that nobody has.
        said = [wrong + (1).to_bytes(4, "big"), b"GET / HTTP/1.0\r\n\r\n", b"", token + (3).to_bytes(4, "big")]
        strangers = [stack.enter_context(knock(port, line)) for line in said]
        waiting = {i: pool.submit(watch.reach, "127.0.0.1", port, token, i, 30) for i in (2, 1)}
        admitted = watch.admit(server, token, 3, "127.0.0.1", 30)
        peers = {i: stack.enter_context(found.result()) for i, found in waiting.items()}
        assert sorted(admitted) == [1, 2]
        for i, peer in peers.items():
            stack.enter_context(admitted[i]).sendall(b"%d" % i)
            assert peer.recv(9) == b"%d" % i
        assert [s.recv(9) for s in strangers] == [b""] * 4, "closed"


def test_processes_that_do_not_meet_are_named_with_the_address():
    token = b"t" * watch.TOKEN
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(watch.Unreachable, match=rf"processes 1, 2 .*process 0 at host:{port} within 0.1 s"):
            watch.admit(server, token, 3, "host", seconds=0.1)
        with pytest.raises(watch.Unreachable, match=rf"process 7 .*127.0.0.1:{port} within 0.2 s"):  # nobody answers
            watch.reach("127.0.0.1", port, token, 7, seconds=0.2)
    with pytest.raises(watch.Unreachable, match=rf"process 7 .*127.0.0.1:{port} within 0.2 s .*refused"):
        watch.reach("127.0.0.1", port, token, 7, seconds=0.2)


def test_another_service_at_the_coordinator_s_port_is_not_taken_for_process_0():
    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        port = server.getsockname()[1]
        waiting = pool.submit(watch.reach, "127.0.0.1", port, b"t" * watch.TOKEN, 1, 2.0)
        with server.accept()[0] as connection:
            connection.sendall(b"SSH-2.0")
        with pytest.raises(watch.Unreachable, match="process 1"):
            waiting.result()
