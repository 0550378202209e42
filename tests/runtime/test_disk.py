"""What a run takes of the disk, and a finished run without its optimizer state."""

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.export import export
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import count
from rl_likelihood.planning.programs import abstract_params
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.disk import Disk, checkpoints_at_once, disk_of_run, drop_optimizer, tree_bytes
from rl_likelihood.settings import TrainSettings
from tests.runs import small_config
from tests.runtime.test_checkpoint import abstract, restored, saved


@pytest.mark.parametrize(
    "every, keep, keep_every, steps, most, finished, with_start",
    [
        (10, 2, 0, 100, 3, 2, 3),  # two, and one that is being written
        (10, 2, 0, 15, 2, 2, 3),  # steps 10 and 15; a warm start saves step 0 too
        (10, 2, 0, 5, 1, 1, 2),
        (10, 2, 20, 100, 8, 7, 9),  # 20, 40, 60, 80, 100 besides
        (10, 100, 0, 100, 10, 10, 11),
        (10, 1, 15, 75, 5, 4, 6),  # 30, 60 and, the last, 75
        (50, 2, 0, 2**31 - 1, 3, 2, 3),
    ],
)
def test_how_many_checkpoints_there_are_at_one_time(every, keep, keep_every, steps, most, finished, with_start):
    t = TrainSettings(steps, checkpoint_every=every, keep_checkpoints=keep, keep_every=keep_every)
    assert checkpoints_at_once(t) == most
    assert checkpoints_at_once(t, writing=False) == finished
    assert checkpoints_at_once(t, start=True) == with_start


def test_the_disk_of_a_run_follows_from_its_settings():
    """12 bytes a parameter for each checkpoint, and 4 for the model of step 0 where there is a reference."""
    model = random_model("nano")
    n = count(abstract_params(model))
    half = {"train__steps": 100, "train__checkpoint_every": 10, "train__keep_checkpoints": 2}

    def near(disk: Disk, training: float, finished: float) -> bool:
        return disk == pytest.approx((training * n, finished * n), abs=1000)  # and some counters

    assert near(disk_of_run(build(small_config(**half)), model), 36, 24)
    assert near(disk_of_run(build(small_config(**half, train__keep_optimizer=False)), model), 36, 8)
    assert near(disk_of_run(build(small_config(**half, optim__momentum_dtype="bfloat16")), model), 30, 20)
    assert near(disk_of_run(build(small_config(**half, loss__kl="k3", loss__kl_coef=0.1)), model), 40, 28)


def test_a_run_may_drop_its_optimizer_state_when_it_is_finished(tmp_path, capsys):
    settings = {"train__steps": 2, "train__keep_optimizer": False, "eval__prompts": 2, "eval__samples": 0}
    train.run(build(small_config(**settings)), tmp_path / "run")
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("disk ")]
    assert "MiB of checkpoints" in line and "without optimizer state" in line
    steps = tmp_path / "run" / "checkpoints"
    assert not list(steps.glob("*/rest")) and len(list(steps.glob("*/params"))) == 2
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.jsonl", "eval.jsonl")}
    cfg, params, step, path = checkpoint.restore_params(tmp_path / "run")
    export(cfg, params, path, tmp_path / "exported")
    assert step == 2 and (tmp_path / "exported" / "model.safetensors").exists()

    train.run(build(small_config(**settings)), tmp_path / "run")  # it is finished: its summary, as of any other
    assert "greedy success" in capsys.readouterr().out
    assert run_files.read_status(tmp_path / "run")["state"] == "done"
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}

    with pytest.raises(UserError, match="2: its optimizer state was dropped.*model.path") as refused:
        train.run(build(small_config(**settings | {"train__steps": 3})), tmp_path / "run", force=True)
    assert "\n" not in str(refused.value)


def test_a_finished_run_without_its_optimizer_state_can_be_read_and_not_continued(tmp_path):
    state = saved(tmp_path, 5, 7, mesh=make_mesh())
    before = checkpoint.restore_params(tmp_path)[1]
    on_disk = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    freed = drop_optimizer(tmp_path)
    assert freed > 2 * tree_bytes(state.params)  # two moments, of two checkpoints, compressed
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) == on_disk - freed
    for step in (5, 7):
        assert checkpoint.restore_params(tmp_path, step)[2] == step
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(tmp_path)[1], before)
    with pytest.raises(UserError, match="7: .*optimizer state was dropped.* model.path"):
        restored(tmp_path, abstract(state))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "7"], "none is taken for damaged"
    assert drop_optimizer(tmp_path) == 0 and drop_optimizer(tmp_path / "nothing there") == 0
