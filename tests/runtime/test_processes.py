"""Two processes of four CPU devices: the same run as one process, its checkpoint for one, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.lock import lock
from tests.commands import run_each
from tests.runs import config_file, small_config
from tests.runtime.processes import ROOT, alike, command, environment, pid_of, said, start, untimed, wait_for_step
from tests.search.test_rounds import long
from tests.servers import serving
from tests.test_conversation_runs import TALK
from tests.test_distill import said as reply

# Prompts over data, the chains of each over fsdp: the groups are split between the processes of the first mesh.
MESHES = {
    "groups split": {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "report.no_chain": False},
    "prompts split": {"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh, packing", [("groups split", False), ("prompts split", False), ("prompts split", True)])
def test_two_processes_make_the_run_of_one(mesh, packing, tmp_path):
    """With packed rows, the run of one that pads them."""
    overrides = {**MESHES[mesh], "sampler.group_size": 4, "train.steps": 2, "eval.prompts": 3, "eval.samples": 1}
    overrides |= {"report.sample_prompts": 1, "prompt.width_multiple": 1, "train.packing": packing}
    both = start(config_file(tmp_path, **overrides), tmp_path / "two")
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    assert not [line for line in lines[1] if "reward" in line or "step" in line], "only the first talks"
    assert any(line.startswith("step 2/2") for line in lines[0])
    overrides["train.packing"] = False
    train.run(build(small_config(**{k.replace(".", "__"): v for k, v in overrides.items()})), tmp_path / "one")
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        alike(tmp_path / "one" / name, tmp_path / "two" / name)
    one, two = (checkpoint.restore_params(tmp_path / run)[1] for run in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-5), one, two)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["groups split", "prompts split"])
def test_two_processes_hold_the_conversations_of_one(mesh, tmp_path):
    overrides = {**TALK, **MESHES[mesh], "sampler.group_size": 4, "train.steps": 2, "env.credit": "turn"}
    overrides["report.sample_prompts"] = 1  # each process logs its own first prompts
    both = start(config_file(tmp_path, **overrides), tmp_path / "two")
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    train.run(build(small_config(**{k.replace(".", "__"): v for k, v in overrides.items()})), tmp_path / "one")
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        alike(tmp_path / "one" / name, tmp_path / "two" / name)
    assert all(row["env/turns"] == 2 for row in run_files.read(tmp_path / "two" / "metrics.jsonl"))


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
def test_one_of_two_processes_asks_the_server(tmp_path):
    """No two replies are equal, so two processes that both asked would search from different chains."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Write {i}.", "answer": long(f"a{i}")}) + "\n" for i in range(3)))

    def behave(handler, n, body):
        handler.reply(
            200, reply(f"<part>{long(f'p{n}')}</part>" if body["seed"] else f"{long(f'x{n}')}\n\n{long('y')}")
        )

    with serving(behave) as (url, requests):
        files = {"data.source": "files", "data.train_path": str(data), "data.train_size": 0, "data.heldout_size": 1}
        search = {"reer.proposer": url, "reer.proposer_name": "m", "reer.controls": False, "reer.max_segments": 1}
        sizes = {"prompt.max_answer": 140, "sampler.max_chain": 500, "eval.prompts": 1, "reer.candidates": 2}
        config = config_file(tmp_path, **files, **search, **sizes)
        both = start(config, tmp_path / "run", program=("-m", "rl_likelihood.reer"))
        lines = [said(p) for p in both]
        assert [p.returncode for p in both] == [0, 0], lines
        assert len(requests) == 2 + 2 * 2
    caches = [path.name for path in (tmp_path / "run").glob("*.sqlite")]
    assert caches == ["judge.sqlite"], "as of one process, which then asks nothing again"
    rows = run_files.read(tmp_path / "run" / "rounds.jsonl")
    assert [(row["search"], row["step"]) for row in rows] == [("first", 0)] * 2 + [("search", 0)] * 2 + [
        ("search", 1)
    ] * 2


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


JUDGE_FAILS = """
import runpy, sys
from rl_likelihood.rollouts.batches import Batches
from rl_likelihood.errors import UserError
grade = Batches.grade

def spent(self, rollout, rows):
    if rollout.version == 1 and "--process_id=1" in sys.argv:
        raise UserError("judge.max_calls is 3, and that many were made; raise it to continue")
    return grade(self, rollout, rows)

Batches.grade = spent
runpy.run_module("rl_likelihood.train", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_judge_that_fails_in_one_process_ends_all(staleness, tmp_path):
    overrides = {"train.steps": 4, "eval.prompts": 0, "report.sample_prompts": 1, "sampler.max_staleness": staleness}
    both = start(config_file(tmp_path, **overrides), tmp_path / "run", program=["-c", JUDGE_FAILS])
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [2, 2], lines  # again would change nothing
    assert sum(line.startswith("error: ") for of_one in lines for line in of_one) == 1, lines
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "failed" and "process 1: " in status["error"] and "judge.max_calls" in status["error"]


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


IMPOSSIBLE = [
    (["--coordinator=127.0.0.1:1"], "--num_processes (JAX_NUM_PROCESSES), --process_id (JAX_PROCESS_ID) missing"),
    (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator is 'here'"),
    (["--coordinator=a:b", "--num_processes=2", "--process_id=0"], "--coordinator is 'a:b'"),
    (["--coordinator=a:99999", "--num_processes=2", "--process_id=0"], "--coordinator is 'a:99999'"),
    (["--coordinator=a:0", "--num_processes=2", "--process_id=1"], "--coordinator is 'a:0'"),
    (["--coordinator=:1", "--num_processes=2", "--process_id=1"], "--coordinator is ':1'"),
    (["--coordinator=10.0.0..2:1", "--num_processes=2", "--process_id=1"], "--coordinator is '10.0.0..2:1'"),
    ([f"--coordinator={'a' * 64}:1", "--num_processes=2", "--process_id=0"], f"--coordinator is '{'a' * 64}:1'"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id is 2, but --num_processes is 2"),
]


def test_processes_that_cannot_be_are_refused(tmp_path):
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={tmp_path / 'run'}"]
    done = run_each("train", [[*arguments, *flags] for flags, _ in IMPOSSIBLE], **environment())
    for one, (_, words) in zip(done, IMPOSSIBLE, strict=True):
        assert one.returncode == 2 and words in one.stderr and len(one.stderr.splitlines()) == 1, (one.args, one.stderr)


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


@pytest.mark.slow
def test_a_finished_run_with_other_data_is_refused_and_stays_done(tmp_path):
    lines = [json.dumps({"prompt": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    data = {"data.source": "files", "data.train_path": str(tmp_path / "train.jsonl"), "data.train_size": 0}
    config = config_file(tmp_path, **data, **{"data.heldout_size": 2, "eval.prompts": 0, "train.steps": 1})
    code = [sys.executable, "-m", "rl_likelihood.train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    subprocess.run(code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    before = (tmp_path / "run" / "STATUS").read_text()
    (tmp_path / "train.jsonl").write_text("".join(lines[:-1]))
    both = start(config, tmp_path / "run")
    said_by = [said(p) for p in both]
    assert [p.returncode for p in both] == [2, 2], said_by
    assert "other questions" in said_by[0][-1] and "error" not in "".join(said_by[1]), said_by
    assert (tmp_path / "run" / "STATUS").read_text() == before and '"done"' in before


@pytest.mark.slow
def test_a_refusal_of_all_is_one_line_of_the_first_and_no_word_of_a_restart(tmp_path):
    both = start(config_file(tmp_path, **{"mesh.fsdp": 3}), tmp_path / "run")
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [2, 2], lines
    assert len(lines[0]) == 1 and "12 devices, but there are 8" in lines[0][0], lines
    assert "start all again" not in lines[0][0] and len(lines[1]) <= 1, lines
