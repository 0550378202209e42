"""Checkpoints of a run, by orbax: saved asynchronously, restored onto the run's current mesh.

    workdir/checkpoints/STEP/params   the parameters
                            /rest     every other field of TrainState
                            /meta     JSON from the caller: data position, model_config, model_path, ...
                            /leaves   JSON: shape, dtype and checksum of every array

A checkpoint appears under its name only when all of it is on disk. The checksum of an array does not depend on its
sharding (checksums.py). `disk.drop_optimizer` replaces rest by a file optimizer_dropped.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from rl_likelihood import fields
from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import ModelConfig, Params, Spec, from_values, is_spec, param_specs
from rl_likelihood.model.lora import LoraConfig, as_base, merged, trained_specs
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.checksums import DamagedError, check_files, check_sums, checksums
from rl_likelihood.runtime.quiet import quiet_orbax
from rl_likelihood.settings import TrainSettings
from rl_likelihood.shapes import TrainState

FOLDER, REST, DROPPED = "checkpoints", "rest", "optimizer_dropped"
INITIAL = "initial"  # folder of a workdir: the model of step 0, for a reference model, or the base of adapters
Manager = ocp.CheckpointManager


@dataclasses.dataclass
class Chosen:
    """A preservation policy for orbax: keeps the steps that a function chooses."""

    chosen: Callable[[int], bool]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [self.chosen(c.step) for c in checkpoints]


def due(t: TrainSettings, step: int) -> bool:
    """Whether to save the state after `step` updates."""
    return step == t.steps or (step > 0 and step % t.checkpoint_every == 0)


def open_manager(
    workdir: str | Path, t: TrainSettings, is_best: Callable[[int], bool] | None = None
) -> ocp.CheckpointManager:
    """The checkpoint manager of `workdir`. Creates the folder if necessary, and deletes checkpoints that a killed run
    left unfinished.

    `is_best`: steps to keep. Close the manager with `close`. Raises UserError if the folder cannot be written.
    """
    quiet_orbax()
    policies: list[Any] = [LatestN(t.keep_checkpoints)]
    policies += [EveryNSteps(t.keep_every)] if t.keep_every else []
    policies += [Chosen(is_best)] if is_best else []
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies), cleanup_tmp_directories=True
    )
    directory = epath.Path(workdir).absolute() / FOLDER
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(directory, options=options)


def latest_step(workdir: str | Path) -> int | None:
    """The step of the newest finished checkpoint; None without one."""
    folder = epath.Path(workdir).absolute() / FOLDER
    try:
        return max(ocp.path.step.checkpoint_steps(folder), default=None)
    except OSError as e:
        raise UserError(f"{folder}: cannot be read ({e.strerror}); move it away, or choose another --workdir") from e


def agreed_step(workdir: str | Path) -> int | None:
    """The step of the newest checkpoint, as process 0 sees it. Returns in every process once all of them see its
    folder."""
    step = distributed.share(latest_step(workdir))
    if step is not None:
        distributed.await_file(Path(workdir).absolute() / FOLDER / str(step))
    return step


def save(manager: ocp.CheckpointManager, state: TrainState, meta: dict[str, Any]) -> None:
    """Starts to save `state` under its step. Arrays are copied before this returns, so they may be donated.

    `meta` is JSON, with at least `model_config` (dataclasses.asdict) and `model_path` for `restore_params`. A step that
    is already saved is skipped. If this save or the one before it fails (disk full), UserError is raised here or in
    `close`. All processes must call this, and every array of the state must be on the global mesh, even scalars.
    """
    step = int(state.step)
    if distributed.share(step in manager.all_steps()):
        return
    arrays = _named(state)
    sums = checksums(arrays)
    leaves = {k: {"shape": list(x.shape), "dtype": str(x.dtype), "sum": sums[k]} for k, x in arrays.items()}
    params, rest = _split(state)
    arrays_of = {"params": ocp.args.PyTreeSave(params), REST: ocp.args.PyTreeSave(rest)}
    items = ocp.args.Composite(**arrays_of, meta=ocp.args.JsonSave(meta), leaves=ocp.args.JsonSave(leaves))
    with _writing(manager.directory):
        manager.save(step, args=items, force=True)


def save_initial(workdir: str | Path, state: TrainState, meta: dict[str, Any]) -> ocp.CheckpointManager:
    """Starts to save the state from which a run starts, in a separate folder, so that no retention rule deletes it.
    `close` of the returned manager waits until it is on disk."""
    manager = open_manager(workdir, TrainSettings(keep_checkpoints=1))
    save(manager, state, meta)
    return manager


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until every save is on disk. UserError if a save failed."""
    with _writing(manager.directory):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager) -> None:
    """`finish`, then closes the manager."""
    try:
        finish(manager)
    finally:
        manager.close()


def restore(manager: ocp.CheckpointManager, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """(state, meta) of the newest readable checkpoint.

    `abstract_state` is a TrainState of jax.ShapeDtypeStruct with shardings. Arrays are read directly onto that mesh,
    even if they were saved from another one. Damaged checkpoints are skipped with a warning, and renamed to
    STEP.damaged so that the run can save that step again. UserError if no checkpoint is readable, or if its arrays do
    not match `abstract_state`.
    """

    def read(candidate: int) -> tuple[TrainState, dict[str, Any]]:
        path = manager.directory / str(candidate)
        if distributed.share((path / DROPPED).exists()):
            raise UserError(
                f"{path}: its optimizer state was dropped, so this run cannot train further; it can be evaluated "
                "and exported, and a new run in another --workdir can begin from it, with model.path set to this one"
            )
        leaves, meta = _read_json(manager, candidate)
        _check_shapes(path, _named(abstract_state), leaves)
        params, rest = _split(abstract_state)
        out = _read_arrays(manager, candidate, {"params": params, REST: rest})
        state = abstract_state.replace(params=out["params"], **out[REST])
        check_sums(checksums(_named(state)), leaves)
        return state, meta

    restored, _, damaged = _newest_readable(manager, None, read)
    for bad in damaged:
        _set_aside(manager.directory / str(bad))
    if damaged:
        manager.reload()
    return restored


def restore_params(
    workdir: str | Path, step: int | None = None, at: Callable[[ModelConfig], Any] | None = None, alone: bool = False
) -> tuple[ModelConfig, dict, int, str]:
    """(model settings, parameters, step, model path) of `step`, by default of the newest readable checkpoint.

    Needs neither the mesh nor the optimizer of the run, and changes nothing on disk. `at`: the function from a model to
    its shardings; without it, parameters are numpy arrays. With LoRA, the adapters are added to the base; `alone`: only
    the adapters are returned. UserError as in `restore`.
    """
    with _opened(workdir) as manager:

        def read(candidate: int) -> tuple[ModelConfig, dict, str]:
            path = manager.directory / str(candidate)
            leaves, meta = _read_json(manager, candidate)
            cfg, model_path = _model(path, meta)
            lora = fields.read(LoraConfig, meta["lora"], "lora.") if meta.get("lora") else LoraConfig()
            leaves = {k: v for k, v in leaves.items() if k.startswith("params/")}
            target = {"params": _params(trained_specs(cfg, lora), leaves)}
            _check_shapes(path, _named(target), leaves)
            if at is not None and not lora.rank:
                put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
                target = {"params": jax.tree.map(put, target["params"], at(cfg))}
            out = _read_arrays(manager, candidate, target, host=at is None or lora.rank > 0)
            check_sums(checksums(_named(out)), leaves)
            params = out["params"]
            if lora.rank and not alone:
                params = merged(restore_base(workdir, lora, at), params, lora)
            return cfg, params, model_path

        (cfg, params, model_path), step, _ = _newest_readable(manager, step, read)
    return cfg, params, step, model_path


def restore_base(workdir: str | Path, lora: LoraConfig, at: Callable[[ModelConfig], Any] | None = None) -> Params:
    """The base of a run's adapters, rounded as in training. `at` as in `restore_params`."""
    return as_base(restore_params(Path(workdir) / INITIAL, at=at)[1], lora)


def describe(workdir: str | Path) -> tuple[ModelConfig, Params, str, dict[str, Any]]:
    """(model settings, shapes of the parameters, model path, meta) of the newest checkpoint with readable JSON.

    Reads no array, so `restore` may skip this checkpoint as damaged. UserError as in `restore`.
    """
    with _opened(workdir) as manager:

        def read(candidate: int) -> tuple[ModelConfig, Params, str, dict[str, Any]]:
            leaves, meta = _read_json(manager, candidate)
            cfg, model_path = _model(manager.directory / str(candidate), meta)
            return cfg, _params(param_specs(cfg), leaves), model_path, meta

        return _newest_readable(manager, None, read, warn=False)[0]


@contextlib.contextmanager
def _opened(workdir: str | Path) -> Iterator[ocp.CheckpointManager]:
    """A read-only checkpoint manager of a workdir."""
    directory = epath.Path(workdir).absolute() / FOLDER
    if agreed_step(workdir) is None:
        raise UserError(f"{directory}: no checkpoint here; give the --workdir of a run that has saved one")
    quiet_orbax()
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, enable_async_checkpointing=False)
    with contextlib.closing(ocp.CheckpointManager(directory, options=options)) as manager:
        yield manager


def _params(specs: dict[str, Any], leaves: dict[str, dict]) -> Params:
    """Parameters as jax.ShapeDtypeStruct, with the saved dtypes."""

    def abstract(path, spec: Spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, leaves.get("params/" + _name(path), {}).get("dtype", "float32"))

    return jax.tree.map_with_path(abstract, specs, is_leaf=is_spec)


def _split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """(parameters, the other fields by name). They are separate items, so that parameters can be read alone."""
    parts = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    if state.reference is None:  # as in checkpoints of older versions without this field
        del parts["reference"]
    return parts.pop("params"), parts


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as params/layers/q."""
    return {_name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def _read_json(manager: ocp.CheckpointManager, step: int) -> tuple[dict, dict]:
    items = ocp.args.Composite(leaves=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
    out = _reading(lambda: manager.restore(step, args=items))
    return out["leaves"], out["meta"]


def _read_arrays(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any], host: bool = False) -> dict:
    """Reads the items of `abstract` onto its shardings, or with `host` as numpy arrays."""

    def restore_args(x: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if host:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=x.shape, dtype=x.dtype)

    items = {
        name: ocp.args.PyTreeRestore(item=tree, restore_args=jax.tree.map(restore_args, tree))
        for name, tree in abstract.items()
    }
    for name in abstract:
        _reading(functools.partial(check_files, manager.directory / str(step) / name))
    out = _reading(lambda: manager.restore(step, args=ocp.args.Composite(**items)))
    return {name: out[name] for name in abstract}


def _reading(read):
    """The result of `read()`. If it fails in any process, DamagedError in every process."""
    reason, out = "", None
    try:
        out = read()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory: the file may be fine
    except Exception as e:  # orbax raises bare Exception for some unreadable files
        reason = " ".join(str(e).split())[:200] or type(e).__name__
    if distributed.any_of(bool(reason)):
        reason = reason or "another process could not read it"
    if reason:
        raise DamagedError(reason)
    return out


def _check_shapes(path: epath.Path, expected: dict[str, Any], saved: dict[str, dict]) -> None:
    """UserError unless the saved arrays are the expected ones. If not, the checkpoint is another run's, not damaged."""
    show = lambda shape, dtype: f"{dtype}[{', '.join(map(str, shape))}]"
    expected_text = {k: show(x.shape, jnp.dtype(x.dtype)) for k, x in expected.items()}
    saved_text = {k: show(v["shape"], v["dtype"]) for k, v in saved.items()}
    for name in [*expected_text, *saved_text]:
        if expected_text.get(name) != saved_text.get(name):
            raise UserError(
                f"{path}: {name} is {saved_text.get(name, 'absent')} in the checkpoint and "
                f"{expected_text.get(name, 'absent')} in this run; give the config that the workdir was made with, or "
                "another --workdir"
            )


def _newest_readable(
    manager: ocp.CheckpointManager, step: int | None, read, warn: bool = True
) -> tuple[Any, int, list[int]]:
    """(the result of `read(step)`, the step, the damaged steps that were skipped). `warn`: prints the latter."""
    steps = distributed.share(sorted(manager.all_steps(), reverse=True))
    if not steps:
        raise UserError(f"{manager.directory}: no checkpoint here; give the --workdir of a run that has saved one")
    if step is not None and step not in steps:
        available = ", ".join(map(str, reversed(steps)))
        raise UserError(f"{manager.directory}: no checkpoint of step {step}; choose one of {available}")
    damaged, reason = [], ""
    for candidate in steps if step is None else [step]:
        distributed.await_file(Path(manager.directory) / str(candidate))
        try:
            result = read(candidate)
        except DamagedError as e:
            damaged.append(candidate)
            reason = str(e)
            continue
        for bad in damaged if warn and distributed.first() else ():
            message = f"{manager.directory / str(bad)}: damaged checkpoint passed over, going on from step {candidate}"
            print(f"warning: {message} ({reason})", file=sys.stderr, flush=True)
        return result, candidate, damaged
    which = ", ".join(map(str, damaged))
    raise UserError(
        f"{manager.directory}: damaged, no other to go back to: {which} ({reason}); "
        "choose another step or start in another --workdir"
    )


def _set_aside(path: epath.Path) -> None:
    """Renames a damaged checkpoint to STEP.damaged, with a number if that name is taken. Deletes nothing. Waits until
    every process sees the change."""
    if distributed.first():
        name, i = f"{path.name}.damaged", 1
        while (path.parent / name).exists():
            i += 1
            name = f"{path.name}.damaged{i}"
        with _writing(path.parent):
            path.rename(path.parent / name)
    distributed.await_file(Path(path), exists=False)


def _model(path: epath.Path, meta: dict[str, Any]) -> tuple[ModelConfig, str]:
    """(ModelConfig, model path) from a checkpoint's meta."""
    try:
        return from_values(meta["model_config"]), meta["model_path"]
    except (KeyError, TypeError) as e:
        raise UserError(
            f"{path}: its meta does not describe the model ({e}); read it with the version that wrote it"
        ) from e


@contextlib.contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Turns write errors into a UserError. Orbax wraps them in a ValueError that names the error code."""
    try:
        yield
    except (OSError, ValueError) as e:
        text = str(e)
        if not isinstance(e, OSError) and "os_error_code" not in text:
            raise
        reason = getattr(e, "strerror", None) or text.split(" [os_error_code")[0].rsplit(": ", 1)[-1]
        raise UserError(
            f"{directory}: checkpoint cannot be written ({reason}); free space or choose another --workdir"
        ) from e
