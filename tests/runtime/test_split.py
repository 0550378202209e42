"""Sampler and learner on devices of their own: the same run, weights that never pass through the host, clean ends."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.asynchronous import restored
from rl_likelihood.rollouts.batches import Batches
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.sampler import decode
from rl_likelihood.task import load
from tests.runs import config_file, small_config
from tests.runtime.processes import said, start

ROOT = Path(__file__).parents[2]

SPLIT = {"sampler__devices": "4", "mesh__fsdp": 2, "mesh__tensor": 2}


def run(workdir, **overrides):
    train.run(build(small_config(**{"eval__prompts": 0, **overrides})), workdir)
    return run_files.read(workdir / "metrics.jsonl")


def test_a_split_run_is_the_shared_run(tmp_path):
    """To the last bit: the same learner's mesh, four devices of which the other run has no more than these."""
    mesh = {"mesh__fsdp": 2, "mesh__tensor": 2}
    split = run(tmp_path / "split", **mesh, sampler__devices="4")
    config = config_file(tmp_path, **mesh, eval__prompts=0)
    four = re.sub(r"(device_count=)\d+", r"\g<1>4", os.environ["XLA_FLAGS"])
    command = ["-m", "rl_likelihood.train", f"--config={config}", f"--workdir={tmp_path / 'shared'}"]
    environment = {**os.environ, "XLA_FLAGS": four, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    shared = run_files.read(tmp_path / "shared" / "metrics.jsonl")
    clock = ("time/", "tokens_per_second", "queue/depth")
    for a, b in zip(shared, split, strict=True):
        assert b["queue/lag"] == b["queue/dropped"] == 0
        assert {k: v for k, v in a.items() if not k.startswith(clock)} == {
            k: v for k, v in b.items() if not k.startswith(clock)
        }
    one, two = (run_files.read(tmp_path / name / "samples.jsonl") for name in ("shared", "split"))
    assert one == two


@pytest.mark.slow
def test_groups_split_over_devices_are_whole_groups(tmp_path):
    """Two prompts on eight devices: prompts over data, the four chains of each over fsdp."""
    common = {"sampler__group_size": 4, "report__no_chain": False, "train__steps": 3}
    whole = run(tmp_path / "whole", **common, mesh__fsdp=1, mesh__tensor=1, sampler__devices="7")
    parts = run(tmp_path / "parts", **common, mesh__data=2, mesh__fsdp=4, mesh__tensor=1)
    for a, b in zip(whole, parts, strict=True):
        for name in ("reward/mean", "reward/std", "loss/answer", "advantage/abs_mean", "grad/norm", "answer/log_prob"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)


@pytest.mark.parametrize("bound", [1, 2])
def test_a_split_sampler_runs_ahead_within_its_bound(bound, tmp_path):
    rows = run(tmp_path / "run", **SPLIT, sampler__max_staleness=bound, train__steps=6)
    lags = [row["queue/lag"] for row in rows]
    assert len(lags) == 6 and min(lags) >= 0 and 1 <= max(lags) <= bound


@pytest.mark.parametrize("changes", [SPLIT, {**SPLIT, "sampler__tensor": 2}, {}, {"sampler__tensor": 4}])
def test_weights_go_from_device_to_device_bit_for_bit(changes):
    settings = build(small_config(**changes))
    devices = make_devices(settings)
    task, params = load(settings, mesh=devices.learner)
    with jax.transfer_guard("disallow_explicit"), jax.transfer_guard_device_to_device("allow"):
        weights = sampler_weights(params, task.model, devices)
    for x in jax.tree.leaves(weights):
        assert x.sharding.device_set == set(devices.sampler.devices.flat)
    assert devices.separate == bool("sampler__devices" in changes)
    wanted = decode.prepare(jax.tree.map(np.asarray, params), task.model)
    jax.tree.map(np.testing.assert_array_equal, weights, wanted)
    part = weights["layers"][0]["gate_up"].addressable_shards[0].data.shape[1]
    assert part == wanted["layers"][0]["gate_up"].shape[1] // settings.sampler.tensor


def test_a_sampler_that_raises_ends_the_run_with_its_own_words_and_a_checkpoint(tmp_path, monkeypatch):
    collate = Batches.collate

    def dragon(self, number):
        if number == 2:
            raise RuntimeError("here be dragons")
        return collate(self, number)

    monkeypatch.setattr(Batches, "collate", dragon)
    with pytest.raises(RuntimeError, match="here be dragons"):
        run(tmp_path / "run", **SPLIT, train__checkpoint_every=50)
    assert checkpoint.latest_step(tmp_path / "run") == 2
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "failed" and "here be dragons" in status["error"]
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


def test_sigterm_finishes_the_step_saves_and_the_run_goes_on_with_its_queue(tmp_path):
    extra = {**SPLIT, "sampler__max_staleness": 2, "train__steps": 30, "train__checkpoint_every": 50}

    def ask():
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    first = run(tmp_path / "run", **extra)
    thread.join()
    assert run_files.read_status(tmp_path / "run")["state"] == "interrupted" and 1 <= len(first) < 30
    assert checkpoint.latest_step(tmp_path / "run") == len(first)
    assert [row["step"] for row in run(tmp_path / "run", **extra)] == list(range(1, 31))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampler__devices": "8"}, "sampler.devices is 8 of the 8 devices .* at most 7"),
        ({"sampler__devices": "half"}, "sampler.devices is 'half'; it must be shared"),
        ({"sampler__devices": "2"}, "data x fsdp x tensor = .* = 8 devices, but there are 6"),
        ({"mesh__context": 3}, "data x fsdp x context x tensor = .* = 24 devices, but there are 8"),
        ({"mesh__context": 2, "train__packing": True}, "mesh.context is 2, but train.packing is True"),
        ({"mesh__context": 2, "reward__name": "cer"}, "mesh.context is 2, but reward.name 'cer'"),
        ({"sampler__tensor": 3}, "sampler.tensor is 3, which does not divide the 8 devices"),
        ({"sampler__tensor": 2}, "sampler.tensor is 2; it must be 1 or equal mesh.tensor, which is 4"),
    ],
)
def test_devices_that_do_not_add_up_are_refused(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        run(tmp_path / "run", **changes)


@pytest.mark.slow
def test_two_processes_with_samplers_of_their_own_run_ahead_and_go_on_over_another_mesh(tmp_path):
    """What waited in the queue was sampled for the rows of the old mesh: it is sampled anew."""
    common = {"sampler.devices": "2", "sampler.max_staleness": 1, "sampler.group_size": 4, "eval.prompts": 0}
    meshes = [{"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 2}, {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 1}]
    for steps, mesh in zip((3, 6), meshes, strict=True):
        config = config_file(tmp_path, **common, **mesh, **{"train.steps": 6})
        stop = ["--config.train.checkpoint_every=3"]
        both = start(config, tmp_path / "run", *stop)
        if steps == 3:
            metrics = tmp_path / "run" / "metrics.jsonl"
            while not (metrics.exists() and len(metrics.read_text().splitlines()) >= steps):
                assert both[0].poll() is None, said(both[0])
                time.sleep(0.1)
            both[0].send_signal(signal.SIGTERM)
        lines = [said(p) for p in both]
        assert [p.returncode for p in both] == [0, 0], lines
    rows = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(0 <= row["queue/lag"] <= 1 for row in rows) and any(row["queue/lag"] for row in rows)


def test_what_waits_is_dropped_where_the_rows_are_others():
    kept = {"rows": [[0, 4, 0, 1]], "dropped": [2], "waiting": [""]}
    assert restored(kept, [0, 4, 0, 1]) == ([], 2) and restored(None, []) == ([], 0)
    assert restored({**kept, "waiting": ["not read"]}, [0, 2, 0, 1]) == ([], 2)
    assert restored({**kept, "waiting": ["", ""], "dropped": [1, 3]}, [0, 4, 0, 1]) == ([], 3)
