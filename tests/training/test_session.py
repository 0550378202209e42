"""What is saved is finite, and after what the run starts from. A new run starts from what the message advises."""

import dataclasses
import math
import shutil
import types

import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.mesh import make_mesh
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.training.session import Run
from tests.runs import run, small_config
from tests.runtime.test_checkpoint import MODEL, make_state

SHORT = {"train__steps": 2, "eval__prompts": 0}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return run(tmp_path_factory.mktemp("good") / "run", **SHORT)


@pytest.mark.parametrize(
    "lr, every, step, what",
    [(math.inf, 1, 3, "the parameters are"), (1e38, 2, 4, "grad/norm is")],
    ids=["a save", "a step"],
)
def test_what_is_not_finite_is_not_saved_and_a_new_run_starts_from_the_advised_path(
    good, tmp_path, lr, every, step, what
):
    workdir = shutil.copytree(good, tmp_path / "run")
    config = build(small_config(**SHORT | {"train__steps": 4, "train__checkpoint_every": every}))
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr))
    with pytest.raises(UserError, match=f"step {step}: {what} not finite; the checkpoint of step 2 is good") as e:
        train.run(config, workdir, force=True)
    assert checkpoint.latest_step(workdir) == 2 and run_files.read_status(workdir)["state"] == "failed"
    advised = str(e.value).rpartition("model.path=")[2]
    assert advised == str(workdir)
    new = run(tmp_path / "new", **SHORT, model__preset="", model__path=advised)
    assert checkpoint.latest_step(new) == 2


def test_a_checkpoint_comes_after_what_the_run_starts_from(tmp_path):
    c, mesh, seen = build(small_config()), make_mesh(), []
    task, writer = (
        types.SimpleNamespace(config=c, model=MODEL, model_path="path"),
        types.SimpleNamespace(workdir=tmp_path),
    )
    manager = checkpoint.open_manager(tmp_path, c.train)
    r = Run(tmp_path, writer, None, c, task=task, devices=None, checkpoints=manager, best=None)
    initial = checkpoint.save_initial(tmp_path / checkpoint.INITIAL, make_state(mesh, 0), r.meta())
    r.unsaved.callback(lambda: seen.append(checkpoint.latest_step(tmp_path)))
    r.unsaved.callback(checkpoint.close, initial)
    r.save(make_state(mesh, 1))
    assert seen == [None] and checkpoint.latest_step(tmp_path / checkpoint.INITIAL) == 0
    checkpoint.close(manager)
    assert checkpoint.latest_step(tmp_path) == 1
