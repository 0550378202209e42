"""The points of a sweep as tasks of a ray cluster, each with its resources; attempts are those of `runners`."""

import collections
import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rl_likelihood.errors import UserError
from rl_likelihood.runtime.signals import Requests
from rl_likelihood.sweeps import grid, runners
from rl_likelihood.sweeps.runners import PAUSE, Job, Say


class TryAgain(Exception):
    """Tells ray to schedule the task again."""


def run_ray(jobs: Sequence[Job], resources: dict[str, float], say: Say, pause: tuple[float, float] = PAUSE) -> int:
    """Run each job as one remote task with these resources ({"CPU": 2}, {"TPU": 4}); an exit code as of run_local.

    The cluster is the one of RAY_ADDRESS, or of this machine alone. Its nodes share this folder and those of the runs,
    under the same names; one of them must have the resources. Ray schedules a task again when its worker dies or when
    it asks for it; the counts are in the run folders, as for other runners.
    """
    try:
        import ray  # an extra, and seconds to import
    except ImportError:
        raise UserError("--runner=ray needs ray; run pip install -c constraints.txt -e '.[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    asked, passed_on = Requests(), 0
    ended = collections.Counter()
    try:
        needs = {"CPU": 1.0, **resources}
        _refuse_too_much(needs, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        waiting = _begin(ray, jobs, needs, pause)
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=0.5)
            for task in ready:
                job = waiting.pop(task)
                try:
                    outcome, seconds = ray.get(task)
                except ray.exceptions.RayError as error:
                    if isinstance(cause := getattr(error, "cause", None), UserError):
                        raise UserError(f"{job.name}: {cause}") from None
                    if not asked.times:
                        raise UserError(f"{job.name}: ray gave it up ({error})") from error
                    outcome, seconds = "preempted", 0.0
                ended[runners.report(job, outcome, seconds, say)] += 1
            if asked.times > passed_on:
                passed_on = asked.times
                say("stopping: the runs save their state")
                for task in waiting:
                    ray.cancel(task, force=passed_on > 1)
    finally:
        asked.restore()
        if ours:
            ray.shutdown()
    if asked.times:
        say(f"interrupted: {ended['done']} done; run the same command to resume")
        return runners.INTERRUPTED
    return runners.verdict(ended, say)


def _begin(ray: ModuleType, jobs: Sequence[Job], needs: dict[str, float], pause: tuple[float, float]) -> dict[Any, Job]:
    """Each job's task, with these resources."""
    remote = ray.remote(
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU", 0),
        max_retries=-1,
        retry_exceptions=[TryAgain],
        resources={k: v for k, v in needs.items() if k not in ("CPU", "GPU")},
    )(ray_task)
    tasks = {}
    for job in jobs:
        job.workdir.mkdir(parents=True, exist_ok=True)  # if a worker does not find it, the folder is not shared
        # A worker may run in another folder.
        there = dataclasses.replace(job, workdir=job.workdir.absolute(), cwd=(job.cwd or Path()).absolute())
        tasks[remote.remote(there, pause)] = job
    return tasks


def _refuse_too_much(needs: dict[str, float], nodes: Sequence[dict[str, float]]) -> None:
    """Refuses resources that no node has: ray would wait for one without a word."""
    if any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes):
        return
    words = lambda values: ", ".join(f"{k}={v:g}" for k, v in values.items())
    have = "; ".join(sorted({words({k: node.get(k, 0) for k in needs}) for node in nodes})) or "there is none"
    raise UserError(
        f"a point needs {words(needs)}, and no node of the ray cluster has that ({have}): give --resources that one "
        "node has, or bring such a node up first; slices of several hosts are run by tpu_setup/sweep.sh"
    )


def ray_task(job: Job, pause: tuple[float, float]) -> tuple[str, float]:
    """One attempt on a worker: (done or failed for good, seconds). Raises TryAgain if there must be another.

    If a worker was killed, its run saves and ends, on this host or another: this waits for it.
    """
    began = time.monotonic()
    if not (job.workdir.is_dir() and job.cwd.is_dir()):
        where = job.workdir if job.cwd.is_dir() else job.cwd
        raise UserError(f"{where} is not there on {os.uname().nodename}; the nodes of a ray cluster must share it")
    while grid.held(job.workdir):
        time.sleep(0.5)
    known = grid.state(job.workdir)
    if known.kind in ("done", "stopped"):
        return ("done" if known.kind == "done" else "failed"), time.monotonic() - began
    attempt = runners.start(job, orphan=False)
    if attempt is None:  # another was quicker
        time.sleep(runners.AGAIN)
        raise TryAgain
    try:
        attempt.process.wait()
    except BaseException:  # cancelled: let the run save (ray's workers block SIGINT, and what they start inherits it)
        os.kill(attempt.process.pid, signal.SIGTERM)
        attempt.process.wait()
        runners.finish(attempt)
        raise
    outcome = runners.finish(attempt)
    if outcome == "preempted":
        time.sleep(runners.pause_of(job.workdir, pause))
    if outcome != "done" and not grid.state(job.workdir).why:
        raise TryAgain
    return outcome, time.monotonic() - began
