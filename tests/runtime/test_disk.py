"""What a run takes of the disk, and a finished run without its optimizer state."""

import jax
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.checkpoint import CheckpointConfig
from rl_likelihood.runtime.disk import disk_bytes, drop_optimizer, tree_bytes
from rl_likelihood.shapes import TrainState, UserError
from tests.runtime.test_checkpoint import abstract, restored, saved

STATE = TrainState(
    step=jax.ShapeDtypeStruct((), np.int32),
    params={"w": jax.ShapeDtypeStruct((10, 10), np.float32)},
    opt_state=({"w": jax.ShapeDtypeStruct((10, 10), np.float32)}, {"w": jax.ShapeDtypeStruct((10, 10), np.float16)}),
)
ONE = 4 + 400 + 400 + 200


@pytest.mark.parametrize(
    "cfg, steps, count",
    [
        (CheckpointConfig(every=10, keep=2), 100, 3),  # two, and one that is being written
        (CheckpointConfig(every=10, keep=2), 15, 2),  # steps 10 and 15
        (CheckpointConfig(every=10, keep=2), 5, 1),
        (CheckpointConfig(every=10, keep=2, keep_every=20), 100, 8),  # 20, 40, 60, 80, 100 besides
        (CheckpointConfig(every=10, keep=100), 100, 10),
    ],
)
def test_the_disk_of_a_run(cfg, steps, count):
    assert disk_bytes(cfg, steps, STATE) == count * ONE
    assert disk_bytes(cfg, steps, STATE, reference=True) == count * ONE + 400


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
