"""The runner for ray, on real clusters of this machine. `make sweeps` installs ray and runs these."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.sweeps import grid, ray_runner
from tests.runs import experiment
from tests.sweeps.test_runners import DONE, QUICK, job, times

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own
def test_ray_runs_retries_and_survives_a_killed_worker(tmp_path):
    """The second job kills its worker, which is the parent of its process."""
    pytest.importorskip("ray")
    jobs = [
        job(tmp_path, DONE, "well"),
        job(tmp_path, f"if [ $n = 1 ]; then kill -9 $PPID; sleep 30; fi; {DONE}", "killed"),
        job(tmp_path, f"if [ $n -lt 5 ]; then kill -9 $$; fi; {DONE}", "preempted"),
        job(tmp_path, "echo error: bad field; exit 2", "fails"),
        job(tmp_path, f"if [ $n -lt 3 ]; then echo error: $n; exit 2; fi; {DONE}", "mends"),
    ]
    said = []
    assert ray_runner.run_ray(jobs, {"CPU": 1}, said.append, QUICK) == 1
    states = {j.name: grid.state(j.workdir) for j in jobs}
    assert {name: s.kind for name, s in states.items()} == {
        "well": "done",
        "killed": "done",
        "preempted": "done",
        "fails": "stopped",
        "mends": "done",
    }
    assert (states["killed"].failures, states["killed"].preemptions) == (0, 1)
    assert (states["preempted"].failures, states["preempted"].preemptions) == (0, 4)
    assert times(tmp_path, "fails") == 2 and times(tmp_path, "mends") == 3
    assert said[-1] == "4 done, 1 stopped" or said[-1] == "1 stopped, 4 done"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_of_real_runs_on_two_nodes_that_stand_in_another_folder(tmp_path, monkeypatch):
    """One node has the resource that points need, none has twice as much; --root is relative."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    path = experiment(tmp_path, mesh__fsdp=1, mesh__tensor=1, eval__prompts=0)
    (tmp_path / "elsewhere").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "rl_likelihood.sweep", path, "--root=runs", "--runner=ray", "--run"]

    def sweep(*arguments):
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )

    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, resources={"chip": 4})
        environment["RAY_ADDRESS"] = cluster.address
        refused = sweep("--resources=chip=8")
        assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith(
            "error: a point needs CPU=1, chip=8, and no node of the ray cluster has that (CPU=1, chip=0; CPU=1, chip=4)"
        ), refused.stderr
        ran = sweep("--resources=chip=4")
        assert ran.returncode == 0 and ran.stdout.endswith("2 done\n"), ran.stdout + ran.stderr
    finally:
        cluster.shutdown()
    for point in grid.load(path).points:
        state = grid.state(tmp_path / "runs" / point.name)
        assert (state.kind, state.step, state.failures, state.preemptions) == ("done", 2, 0, 0)
    assert not any((tmp_path / "elsewhere").iterdir()), "nothing was written where the nodes stand"


def test_a_node_that_does_not_share_the_folders_is_named(tmp_path):
    here = job(tmp_path, DONE)
    for folder in ("workdir", "cwd"):
        missing = dataclasses.replace(here, **{"cwd": tmp_path, folder: tmp_path / "not there"})
        here.workdir.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"not there is not there on {os.uname().nodename}"):
            ray_runner.ray_task(missing, QUICK)


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[ray\]'"):
        ray_runner.run_ray([], {}, print)
