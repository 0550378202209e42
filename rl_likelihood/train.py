"""Train: python -m rl_likelihood.train --config=configs/NAME.py --workdir=DIR.

    [--config.a.b=v ...] [--print_config] [--dry_run]

Same workdir = resume. Read `learn` first: it is the whole loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from rl_likelihood import config as configs
from rl_likelihood import mesh as meshes
from rl_likelihood.cli.command import base, define_processes, from_flags, run_main
from rl_likelihood.cli.summary import summary
from rl_likelihood.data.order import order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.evaluation.evaluate import evaluate
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step, state_shardings
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.report import metrics
from rl_likelihood.report.alarms import FIRST_STEPS, Alarms
from rl_likelihood.report.tracking import ID as TRACKING_ID
from rl_likelihood.rollouts.baseline import FILE as FILE_OF_BASELINE
from rl_likelihood.rollouts.baseline import write_baseline
from rl_likelihood.rollouts.source import Source, write_samples
from rl_likelihood.runtime import checkpoint, distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.lock import FILE as LOCK
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.signals import Stopped, StopRequest
from rl_likelihood.shapes import TrainState, UserError
from rl_likelihood.task import World, known_model, load, make_places, using
from rl_likelihood.training.announcement import announce
from rl_likelihood.training.dry_run import dry_run
from rl_likelihood.training.micro_batch import with_micro_batch
from rl_likelihood.training.warm_start import warm_start, with_worked_examples

CONFIG, INITIAL = "config.json", "initial"


def main() -> None:
    c, overridden = from_flags()
    if flags.FLAGS.print_config:
        print(configs.describe(c, overridden, base()))
    settings = configs.build(c)
    if flags.FLAGS.print_config:
        return
    if flags.FLAGS.dry_run:
        dry_run(settings)
        return
    if flags.FLAGS.workdir is None:
        raise UserError("--workdir is missing; give the folder for this run's files, for example --workdir=runs/first")
    run(settings, Path(flags.FLAGS.workdir), flags.FLAGS.force)


def run(settings: configs.Settings, workdir: Path, force: bool = False) -> None:
    """One run, from its workdir's last checkpoint or from the start, to its last step; STATUS says how it went.

    `force`: go on in the workdir of another config.
    """
    c = settings.config
    finished = False
    with contextlib.ExitStack() as stack:
        held = distributed.by_first(lambda: stack.enter_context(lock(workdir)))
        distributed.refuse_unshared(workdir / LOCK, held)
        resume = checkpoint.agreed_step(workdir)
        folder = stack.enter_context(distributed.folder_of_first(workdir))
        distributed.by_first(lambda: claim(workdir, c, force))
        kept = None if resume is None else checkpoint.describe(workdir)
        if kept is not None:
            distributed.by_first(lambda: go_on_tracking(workdir, kept[-1].get("tracking_id")))
        writer = stack.enter_context(
            metrics.MetricsWriter(
                folder,
                c.train.steps,
                -1 if resume is None else resume,
                c.report.wandb if folder == workdir else "off",
                configs.flatten(c),
            )
        )
        writer.status("running", resume or 0)
        stop = StopRequest()
        try:
            step, finished = learn(settings, workdir, writer, stop, resume, kept and known_model(c, *kept))
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            writer.status(state, checkpoint.latest_step(workdir) or 0, " ".join(str(error).split()) or repr(error))
            raise
        finally:
            stop.restore()
        writer.status("done" if finished else "interrupted", step)
    if finished and distributed.first():
        summary(workdir)
    elif not finished:
        say(f"stopped after step {step}, saved; the same command goes on from there")


def learn(
    settings: configs.Settings,
    workdir: Path,
    writer: metrics.MetricsWriter,
    stop: StopRequest,
    resume: int | None,
    known: tuple[ModelConfig, Params, str] | None = None,
) -> tuple[int, bool]:
    """The loop: weights to the sampler -> rollout -> batch -> step -> metrics. Returns (step, finished).

    `resume`: the step of the checkpoint to go on from, None for a new run; `known`: `known_model` of one that goes on.
    """
    c, s = settings.config, settings
    # Loaded here and not passed in: a caller's reference would keep these parameters for the whole run.
    places = make_places(c)
    world, params = load(settings, places=places, known=known)
    mesh = places.learner
    optimizer = make_optimizer(s.optimizer)
    announce(world, workdir, resume)
    manager = checkpoint.open_manager(workdir, s.checkpoint)
    try:
        state, ref_params, kept = start(world, params, optimizer, manager, workdir, writer, stop, resume is not None)
    except Stopped:
        checkpoint.close(manager)
        return 0, False
    del params
    if c.train.micro_batch_prompts < 0:
        world = with_micro_batch(world, state.params, (ref_params, state.proxy), workdir)
        s = world.settings

    step, steps = int(state.step), c.train.steps
    rows_of = order(len(world.train), c.train.prompts_per_step, c.seed)
    source = Source(world, rows_of, step, steps, workdir, kept)
    save = lambda: checkpoint.save(manager, state, meta_of(world, writer) | {"queue": source.state()})
    alarms = Alarms(c.reward.name, c.reward.truncated)
    if step and distributed.first():  # they compare with the run's own beginning
        path = workdir / run_files.METRICS
        for row in run_files.read(path)[:FIRST_STEPS] if path.exists() else ():
            alarms.check(row["step"], row)
    compiled: dict[tuple, Any] = {}  # one step function for each width of the prompts and of the rows
    first, began, latest = step, time.perf_counter(), {}
    try:
        while True:
            with source.turn:
                latest = evaluate_if_due(world, state.params, step, writer, stop) or latest
                if step >= steps:
                    break
                stop.check()
                source.publish(step, state.params)

            t0 = time.perf_counter()
            failure = None
            try:
                rollout, waited = source.get(step)
            except Exception as error:  # the sampler's own: what was learned is whole, and this ends the run
                failure = error
            if distributed.several():
                with source.turn:
                    failure = distributed.failure_of_any(failure)
            if failure is not None:
                with source.turn:
                    save()
                raise failure
            batch, rollout, graded = source.batch(rollout)
            whole = meshes.from_own_prompts(mesh, batch, places.own, c.train.prompts_per_step)
            shape = batch.prompt.shape[1], batch.completion.shape[2]
            if shape not in compiled:
                if compiled:  # the first one's time is known by the first step's line
                    number = len(compiled) + 1
                    say(f"compiles the step for prompts of {shape[0]} and rows of {shape[1]} tokens, shape {number}")
                compiled[shape] = make_step(world.model, s.step, optimizer, mesh, whole)
            t1 = time.perf_counter()
            with source.turn, using(mesh):
                state, out, per_row = meshes.ready(compiled[shape](state, ref_params, whole))
                out, per_row = {k: float(v) for k, v in out.items()}, jax.tree.map(np.asarray, per_row)
            t2 = time.perf_counter()
            step += 1

            refuse_nan(step, out)
            out |= graded | {
                "queue/lag": step - 1 - rollout.version,
                "queue/depth": len(source.queue),
                "queue/dropped": source.queue.dropped,
                "time/sample": rollout.seconds,
                "time/learn": t2 - t1,
                "time/wait": waited,
                "tokens_per_second": int((rollout.segment != 0).sum()) * jax.process_count() / (t2 - t0),
            }
            writer.metrics(step, out)
            write_samples(world, writer, step, rollout, batch, per_row, rows_of)
            # The first step also compiles, and an evaluation may come before it: neither says how long steps take.
            began = time.perf_counter() if step == first + 1 else began
            each = (time.perf_counter() - began) / (step - first - 1) if step > first + 1 else t2 - t1
            left = each * (steps - step)
            say(metrics.line(step, steps, out | latest, left))
            for sentence in alarms.check(step, out):
                say(f"warning: {sentence}")
            if checkpoint.due(s.checkpoint, step, steps):
                with source.turn:
                    save()
    except Stopped:
        with source.turn:
            save()
    finally:
        source.close()
        checkpoint.close(manager)
    return step, step >= steps


def start(
    world: World,
    params: Params,
    optimizer,
    manager,
    workdir: Path,
    writer: metrics.MetricsWriter,
    stop: StopRequest,
    resumes: bool,
) -> tuple[TrainState, Params | None, dict | None]:
    """The state to go on from, the last checkpoint's or that of step 0; the reference model if one is asked for; the
    queue that the checkpoint kept.

    A warm start comes before step 0. The reference is the model of step 0, kept in the workdir: the same for
    every resume, whatever becomes of model.path. Of `params` a resume needs the shapes.
    """
    cfg, mesh = world.settings.step, world.places.learner
    placed = state_shardings(mesh, world.model, optimizer, cfg)
    if not resumes:
        initial = prepare_start(world, params, mesh, writer, stop)
        state = jax.jit(lambda p: init_state(p, optimizer, cfg), out_shardings=placed)(initial)
        if cfg.with_reference:
            alone = TrainState(step=meshes.put(np.int32(0), placed.step), params=initial, opt_state=())
            checkpoint.save_initial(workdir / INITIAL, alone, meta_of(world, writer))
        if cfg.baseline == "frozen":
            write_baseline(world, initial, workdir, stop.check)
        # Last: a checkpoint says that all that a run starts from is there.
        if world.config.warm_start.steps:
            checkpoint.save(manager, state, meta_of(world, writer))
        return state, init_reference(initial, mesh, world.model, cfg), None
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), params)
    abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract, placed)
    state, meta = checkpoint.restore(manager, abstract)
    writer.rewind(int(state.step))
    warn_of_lost_lines(writer.workdir, meta.get("file_bytes", {}), int(state.step))
    reference = None
    if cfg.with_reference:
        initial = checkpoint.restore_params(workdir / INITIAL, at=lambda _: placed.params)[1]
        reference = init_reference(initial, mesh, world.model, cfg)
    return state, reference, meta.get("queue")


def prepare_start(world: World, params: Params, mesh, writer, stop: StopRequest) -> Params:
    """Parameters of step 0: those given, or those after the warm start, with an evaluation on each side of it."""
    c = world.config
    if not c.warm_start.steps:
        return params
    own = c.warm_start.chains == "own"
    rows, stage = world.heldout, "untouched"
    if own and c.warm_start.examples:  # the format is not yet known: show it
        rows, _ = with_worked_examples(world, rows[: c.eval.prompts], c.warm_start.examples)
        stage = f"untouched ({c.warm_start.examples} examples)"
    evaluation(world, params, 0, stage, writer, stop, rows)
    return warm_start(world, params, mesh, writer.workdir, say, stop.check)


def evaluate_if_due(world: World, params: Params, step: int, writer: metrics.MetricsWriter, stop: StopRequest) -> dict:
    """Before the first step (`train.eval_first`), after the last and, the fast one, every `train.eval_every`, unless
    eval.jsonl has it already."""
    t, reward = world.config.train, world.config.reward.name
    if 0 < step < t.steps and not (t.eval_every and step % t.eval_every == 0):
        return {}
    if step == 0 and not t.eval_first:
        return {}
    stage = f"step {step}"
    if step == 0:
        stage = "untouched"
        if world.config.warm_start.steps:
            stage = "after format SFT" if world.config.warm_start.chains == "own" else "after warm start"
    elif step == t.steps:
        stage = f"after {step} steps of {reward}"
    path = writer.workdir / run_files.EVAL
    rows = [row for row in run_files.read(path) if row.get("stage") == stage] if path.exists() else []
    done = distributed.share(rows[-1] if rows else None)
    if done is not None:
        return {k: done[k] for k in ("greedy_success",) if k in done}
    fast = 0 < step < t.steps
    rows = world.fast if fast and world.fast else world.heldout
    return evaluation(world, params, step, stage, writer, stop, rows, fast)


# What is said of an evaluation, as far as it was asked for.
_SAID = (
    ("greedy_success", "greedy success {:.1%}"),
    ("sampled_success", "sampled {:.1%}"),
    ("perplexity", "perplexity {:.3f}"),
    ("perplexity_no_chain", "{:.3f} without chain"),
    ("chain_length", "chain {:.1f} tokens"),
)


def evaluation(
    world, params, step: int, stage: str, writer, stop: StopRequest, rows: list[EncodedExample], fast: bool = False
) -> dict:
    """Evaluate, write eval.jsonl and the records behind it, say it in one line; returns what the step lines show."""
    if not world.config.eval.prompts:
        return {}
    out = evaluate(world, params, rows, stop.check, fast=fast, step=step, folder=writer.workdir, say=say)
    writer.eval(step, {"stage": stage, **out})
    numbers = ", ".join(words.format(out[k]) for k, words in _SAID if k in out)
    say(f"{stage}: {numbers}, {out['questions']} questions in {out['seconds']:.0f} s")
    return {k: out[k] for k in ("greedy_success",) if k in out}


def refuse_nan(step: int, out: dict[str, float]) -> None:
    """A non-finite loss or gradient ends the run before it is saved."""
    bad = [k for k in ("loss/policy", "loss/answer", "loss/kl", "grad/norm") if not np.isfinite(out[k])]
    if bad:
        raise distributed.SharedRefusal(
            f"step {step}: {', '.join(bad)} is not finite; the checkpoints are untouched: lower optim.lr "
            "in a new workdir, with model.path set to this one"
        )


def claim(workdir: Path, c: ConfigDict, force: bool = False) -> None:
    """The workdir belongs to one config: write it, or refuse another, unless forced, when the workdir becomes this
    one's. A field newer than the workdir has its default."""
    path, new = workdir / CONFIG, configs.flatten(c)
    try:
        if path.exists() and begun(workdir):
            defaults = base()
            old = ({} if defaults is None else configs.flatten(defaults)) | json.loads(path.read_text())
            names = configs.binding_differences(old, new)
            if names and not force:
                both = [f"{k} ({old.get(k, 'absent')!r} there, {new.get(k, 'absent')!r} here)" for k in names[:5]]
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                raise UserError(
                    f"{workdir} belongs to a run with another config: {', '.join(both)}{more}; choose another "
                    "--workdir, or go on all the same with --force"
                )
            if not names:
                return
            say(f"warning: {workdir} goes on with another config (--force): {', '.join(names)}")
        workdir.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(new, indent=1) + "\n")
        part.replace(path)
    except json.JSONDecodeError:
        raise UserError(f"{path}: not JSON; delete it, or choose another --workdir") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another --workdir") from None


def begun(workdir: Path) -> bool:
    """Whether there is something in the workdir to go on from: not where its run was refused at the start."""
    written = (run_files.METRICS, run_files.EVAL, FILE_OF_BASELINE)
    return (
        checkpoint.latest_step(workdir) is not None
        or (workdir / INITIAL).exists()
        or any((workdir / name).exists() and (workdir / name).stat().st_size for name in written)
    )


def go_on_tracking(workdir: Path, tracking_id: str | None) -> None:
    """Writes the id of the run's copy in wandb back, if its file is gone: else the copy would begin anew."""
    if tracking_id and not (workdir / TRACKING_ID).exists():
        (workdir / TRACKING_ID).write_text(tracking_id + "\n")


def warn_of_lost_lines(folder: Path, sizes: dict[str, int], step: int) -> None:
    """Says which files, cut back to `step`, are shorter than when its checkpoint was saved."""
    for name, size in sizes.items():
        have = (folder / name).stat().st_size if (folder / name).exists() else 0
        if have < size:
            say(
                f"warning: {folder / name} has {have} bytes, but had {size} when the checkpoint of step {step} was "
                "saved: lines of earlier steps are lost, which changes tables and figures but not the run"
            )


def meta_of(world: World, writer: metrics.MetricsWriter) -> dict[str, Any]:
    """What a checkpoint says beside its arrays and queue. The data's position follows from the step and the queue,
    the random keys from the seed and the step; the files are cut back to the step."""
    tracking = writer.workdir / TRACKING_ID
    files = (run_files.METRICS, run_files.SAMPLES, run_files.EVAL)
    sizes = {name: (writer.workdir / name).stat().st_size for name in files if (writer.workdir / name).exists()}
    return {
        "model_config": dataclasses.asdict(world.model),
        "model_path": world.model_path,
        "config": configs.flatten(world.config),
        "file_bytes": sizes,
        "tracking_id": tracking.read_text().strip() if tracking.exists() else None,
    }


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run; the same folder again resumes")
    flags.DEFINE_bool("print_config", False, "print every field, with what was overridden, and exit")
    flags.DEFINE_bool("dry_run", False, "load, compile and report; train nothing")
    flags.DEFINE_bool("force", False, "go on in the workdir of another config")
    define_processes()
    run_main(main)
