import dataclasses
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model import architecture
from rl_likelihood.model.rope import RopeScaling
from rl_likelihood.runtime import checkpoint, checksums
from rl_likelihood.settings import TrainSettings
from rl_likelihood.shapes import TrainState

MODEL = architecture.ModelConfig(
    family="llama",
    vocab_size=32,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp=24,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
)
META = {"position": {"next_index": 7}, "model_config": dataclasses.asdict(MODEL), "model_path": "some/model"}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)))
KEEP_ALL = TrainSettings(keep_checkpoints=100)


def place(tree, mesh):
    """Matrices split over fsdp and tensor where they divide, everything else on every device."""

    def put(x):
        spec = [None] * x.ndim
        for axis, name in zip(range(x.ndim)[-2:], ("fsdp", "tensor"), strict=False):
            if x.shape[axis] % mesh.shape[name] == 0:
                spec[axis] = name
        return jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))

    return jax.tree.map(put, tree)


def make_state(mesh, step, dtype=jnp.float32):
    rng = np.random.default_rng(step)  # numpy: drawing in jax would compile a program a shape
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(dtype),
        architecture.param_specs(MODEL),
        is_leaf=lambda s: isinstance(s, architecture.Spec),
    )
    moments = jax.eval_shape(OPTIMIZER.init, params)
    opt_state = jax.tree.map(lambda x: rng.integers(0, 99, x.shape).astype(x.dtype), moments)
    return place(TrainState(step=np.asarray(step, np.int32), params=params, opt_state=opt_state), mesh)


def abstract(state, mesh=None):
    target = state if mesh is None else place(state, mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)


def saved(workdir, *steps, keep=KEEP_ALL, mesh=None, dtype=jnp.float32):
    """Saves these steps and returns the last state."""
    mesh = mesh or make_mesh((1, 1, 1), jax.devices()[:1])
    manager = checkpoint.open_manager(workdir, keep)
    for step in steps:
        state = make_state(mesh, step, dtype)
        checkpoint.save(manager, state, META | {"step": step})
    checkpoint.close(manager)
    return state


def restored(workdir, target):
    manager = checkpoint.open_manager(workdir, KEEP_ALL)
    try:
        return checkpoint.restore(manager, target)
    finally:
        checkpoint.close(manager)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def data_files(workdir, step, item="params"):
    """The files that hold arrays, largest first."""
    folder = workdir / checkpoint.FOLDER / str(step) / item
    return sorted((f for f in folder.rglob("d/*") if f.is_file()), key=lambda f: -f.stat().st_size)


@pytest.mark.parametrize("before, after", [((1, 1, 1), (1, 1, 1)), ((2, 4, 1), (1, 2, 4)), ((1, 8, 1), (1, 1, 1))])
def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path, before, after):
    meshes = [make_mesh(shape, jax.devices()[: int(np.prod(shape))]) for shape in (before, after)]
    state = saved(tmp_path, 3, mesh=meshes[0])
    target = abstract(state, meshes[1])
    out, meta = restored(tmp_path, target)
    assert_same(state, out)
    assert meta == META | {"step": 3}
    for x, want in zip(jax.tree.leaves(out), jax.tree.leaves(target), strict=True):
        assert x.sharding == want.sharding


def test_bfloat16_parameters_come_back_bit_for_bit(tmp_path):
    state = saved(tmp_path, 2, dtype=jnp.bfloat16)
    assert_same(state, restored(tmp_path, abstract(state))[0])
    _, params, _, _ = checkpoint.restore_params(tmp_path)
    assert_same(params, state.params)


def test_arrays_may_be_donated_right_after_a_save(tmp_path):
    state = make_state(make_mesh(), 1)
    want = jax.tree.map(np.array, state)
    manager = checkpoint.open_manager(tmp_path, KEEP_ALL)
    checkpoint.save(manager, state, META)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 9, s), donate_argnums=0)(state))
    checkpoint.close(manager)
    assert_same(want, restored(tmp_path, abstract(make_state(make_mesh(), 1)))[0])


def test_the_last_ones_and_every_kth_are_kept(tmp_path):
    saved(tmp_path, 5, 10, 15, 20, 23, keep=TrainSettings(keep_checkpoints=2, keep_every=10))
    folders = {p.name for p in (tmp_path / checkpoint.FOLDER).iterdir()}
    assert folders == {"10", "20", "23"}
    assert checkpoint.latest_step(tmp_path) == 23


def test_when_a_save_is_due():
    t = TrainSettings(steps=12, checkpoint_every=5)
    assert [s for s in range(13) if checkpoint.due(t, s)] == [5, 10, 12]


def test_saving_a_step_twice_leaves_it_alone(tmp_path):
    manager = checkpoint.open_manager(tmp_path, KEEP_ALL)
    state = make_state(make_mesh(), 4)
    checkpoint.save(manager, state, META)
    checkpoint.save(manager, state, META | {"second": True})  # Ctrl-C right after a checkpoint
    checkpoint.close(manager)
    assert "second" not in restored(tmp_path, abstract(state))[1]


def test_restore_params_needs_neither_mesh_nor_optimizer(tmp_path):
    state = saved(tmp_path, 4, 6, mesh=make_mesh((1, 4, 2)))
    cfg, params, step, model_path = checkpoint.restore_params(tmp_path)
    assert (cfg, step, model_path) == (MODEL, 6, "some/model")
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    assert_same(params, state.params)
    assert checkpoint.restore_params(tmp_path, 4)[2] == 4


def test_a_description_reads_no_array_and_says_nothing(tmp_path, capsys):
    saved(tmp_path, 4, 6, dtype=jnp.bfloat16)
    for file in data_files(tmp_path, 6):
        file.unlink()
    cfg, params, model_path, meta = checkpoint.describe(tmp_path)
    assert (cfg, model_path, meta["step"]) == (MODEL, "some/model", 6)
    state = make_state(make_mesh(), 6, jnp.bfloat16)
    assert params == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    cut_json(tmp_path, 6)
    assert checkpoint.describe(tmp_path)[3]["step"] == 4
    assert capsys.readouterr().err == ""  # whoever restores says what is damaged


def test_the_initial_state_survives_retention(tmp_path):
    state = make_state(make_mesh(), 0)
    checkpoint.close(checkpoint.save_initial(tmp_path / "initial", state, META))
    saved(tmp_path, 1, 2, 3, keep=TrainSettings(keep_checkpoints=1))
    _, params, step, _ = checkpoint.restore_params(tmp_path / "initial")
    assert step == 0
    assert_same(params, state.params)


def test_half_written_checkpoints_are_never_seen(tmp_path):
    state = saved(tmp_path, 4)
    folder = tmp_path / checkpoint.FOLDER
    shutil.copytree(folder / "4", folder / "9.orbax-checkpoint-tmp")  # as a killed process leaves it
    assert checkpoint.latest_step(tmp_path) == 4
    assert checkpoint.restore_params(tmp_path)[2] == 4
    out, _ = restored(tmp_path, abstract(state))
    assert int(out.step) == 4
    assert [p.name for p in folder.iterdir()] == ["4"]  # and swept up by the next run


def cut(workdir, step):
    """Every file, as what the second half of one holds may be an index that the store has replaced since."""
    for file in data_files(workdir, step):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose(workdir, step):
    data_files(workdir, step)[0].unlink()


def lose_optimizer(workdir, step):
    data_files(workdir, step, "rest")[0].unlink()


def cut_json(workdir, step):
    (workdir / checkpoint.FOLDER / str(step) / "leaves" / "metadata").write_text('{"par')


def exchange(workdir, step):
    """Every file whole, but of another step: only the checksums can tell."""
    folder = workdir / checkpoint.FOLDER
    shutil.rmtree(folder / str(step) / "params")
    shutil.copytree(folder / "3" / "params", folder / str(step) / "params")


@pytest.mark.parametrize("damage", [cut, lose, lose_optimizer, cut_json, exchange])
def test_a_damaged_checkpoint_is_passed_over_and_its_step_can_be_saved_again(tmp_path, damage, capsys):
    warned = f"warning: {tmp_path}/checkpoints/7: damaged checkpoint passed over, going on from step 5 ("
    saved(tmp_path, 3, 5, 7)
    damage(tmp_path, 7)
    mesh = make_mesh()
    target = abstract(make_state(mesh, 0))
    if damage is lose_optimizer:
        assert checkpoint.restore_params(tmp_path)[2] == 7  # the parameters are whole
    else:
        assert checkpoint.restore_params(tmp_path)[2] == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(warned)
    assert checkpoint.latest_step(tmp_path) == 7  # reading for evaluation changes nothing
    manager = checkpoint.open_manager(tmp_path, KEEP_ALL)
    out, meta = checkpoint.restore(manager, target)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(warned)
    assert_same(out, make_state(mesh, 5))
    assert meta["step"] == 5
    checkpoint.save(manager, make_state(mesh, 7), META)
    checkpoint.close(manager)
    assert_same(restored(tmp_path, target)[0], make_state(mesh, 7))
    assert (tmp_path / checkpoint.FOLDER / "7.damaged").is_dir()


def test_a_damaged_checkpoint_asked_for_or_alone_is_one_sentence(tmp_path):
    target = abstract(saved(tmp_path, 3, 5))
    cut(tmp_path, 5)
    with pytest.raises(UserError, match="damaged, no other to go back to: 5"):
        checkpoint.restore_params(tmp_path, 5)
    cut(tmp_path, 3)
    with pytest.raises(UserError, match="damaged, no other to go back to: 5, 3") as e:
        restored(tmp_path, target)
    assert "\n" not in str(e.value)
    assert checkpoint.latest_step(tmp_path) == 5  # nothing renamed when there is nothing to go back to


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.int32, np.uint8, np.bool_])
def test_the_checksum_sees_every_bit_and_every_exchange_and_no_sharding(dtype):
    x = np.random.default_rng(0).integers(0, 2, (8, 6)).astype(dtype)
    want = int(checksums.checksum(x))
    assert want == int(checksums.checksum(jax.device_put(x, jax.NamedSharding(make_mesh((2, 4, 1)), jax.P("fsdp")))))
    raw = x.view(np.uint8).reshape(-1)
    for i in range(raw.size):
        for bit in (1,) if dtype is np.bool_ else (1, 128):
            raw[i] ^= bit
            assert int(checksums.checksum(x)) != want
            raw[i] ^= bit
    i, j = np.argwhere(x[0] != x[0, 0])[0, 0], 0
    x[0, [i, j]] = x[0, [j, i]]
    assert int(checksums.checksum(x)) != want


def test_another_models_checkpoint_is_refused_by_name_not_passed_over(tmp_path):
    state = saved(tmp_path, 3, 5)
    wide = abstract(state)
    wide.params["embed"] = jax.ShapeDtypeStruct((33, 16), jnp.float32, sharding=wide.params["embed"].sharding)
    with pytest.raises(UserError, match=r"params/embed is float32\[32, 16\] in .* float32\[33, 16\] in this run"):
        restored(tmp_path, wide)
    assert checkpoint.latest_step(tmp_path) == 5
    sgd = abstract(state.replace(opt_state=optax.sgd(0.1).init(state.params)))
    with pytest.raises(UserError, match="opt_state/.* and absent in this run"):
        restored(tmp_path, sgd)


def test_a_file_in_place_of_the_checkpoints_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    for look in (checkpoint.latest_step, checkpoint.restore_params):
        with pytest.raises(UserError, match="checkpoints: cannot be read .Not a directory.; move it away"):
            look(tmp_path)


def test_no_checkpoint_is_one_sentence(tmp_path):
    target = abstract(make_state(make_mesh(), 0))
    assert checkpoint.latest_step(tmp_path) is None
    with pytest.raises(UserError, match="no checkpoint here; give the --workdir"):
        checkpoint.restore_params(tmp_path)
    with pytest.raises(UserError, match="no checkpoint here; give the --workdir"):
        restored(tmp_path, target)
    saved(tmp_path, 2, 4)
    with pytest.raises(UserError, match="no checkpoint of step 3; choose one of 2, 4"):
        checkpoint.restore_params(tmp_path, 3)


def test_meta_without_a_model_is_one_sentence(tmp_path):
    manager = checkpoint.open_manager(tmp_path, KEEP_ALL)
    checkpoint.save(manager, make_state(make_mesh(), 1), {"model_path": "x"})
    checkpoint.close(manager)
    with pytest.raises(UserError, match="its meta does not describe the model"):
        checkpoint.restore_params(tmp_path)


def test_a_workdir_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="checkpoint cannot be written .* choose another --workdir"):
        checkpoint.open_manager(tmp_path / "run", KEEP_ALL)


def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_stays(tmp_path, caplog, capfd):
    saved(tmp_path, 3)
    manager = checkpoint.open_manager(tmp_path, KEEP_ALL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the nearest a test gets to a full disk
    try:
        with pytest.raises(UserError, match="checkpoint cannot be written .* free space") as e:
            checkpoint.save(manager, make_state(make_mesh(), 5), META)
            checkpoint.close(manager)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert checkpoint.latest_step(tmp_path) == 3
    assert_same(restored(tmp_path, abstract(make_state(make_mesh(), 3)))[0], make_state(make_mesh(), 3))
