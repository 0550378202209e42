"""How processes meet, notice the death of one, and end together."""

import concurrent.futures
import contextlib
import re
import signal
import socket
import subprocess
import time

import pytest

from rl_likelihood.runtime import watch
from tests.runs import config_file
from tests.runtime.processes import processes_of, said, start, wait_for_step


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
    # With process 0 goes jax's coordinator, and jax may be as quick to abort: a page beside our line.
    assert both[1 - victim].returncode in ({1} if victim else {1, -signal.SIGABRT}), lines
    lines = lines if victim else [line for line in lines if not re.match(r"F\d{4} ", line)]
    errors = [line for line in lines if "error" in line.lower() or "Traceback" in line]
    assert errors == [f"error: process {victim} is gone; all end; start all again to resume from the last checkpoint"]
    said(both[victim])


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


def test_a_process_tells_the_others_the_address_from_which_it_reaches_them():
    assert watch.address_towards("127.0.0.1") == "127.0.0.1"


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
distributed.await_file(seen / "gone", exists=False, seconds=60)
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
