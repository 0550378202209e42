"""Train: python -m rl_likelihood.train --config=configs/NAME.py --workdir=DIR.

    [--config.a.b=v ...] [--print_config] [--dry_run] [--force]

The same workdir resumes its run. With --force it resumes even if the config has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from rl_likelihood.cli.command import define_processes, from_flags, required, run_main
from rl_likelihood.cli.summary import summary
from rl_likelihood.config import build, describe, flatten
from rl_likelihood.data.byte_tokenizer import BYTES
from rl_likelihood.data.prompts import digest_of_ids
from rl_likelihood.data.tokenizer import keep_tokenizer
from rl_likelihood.datasets.questions import digest, digest_of_files
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import all_finite, init_reference, init_state, models_of, state_shardings
from rl_likelihood.mesh import put
from rl_likelihood.model.architecture import Params
from rl_likelihood.progress import Progress
from rl_likelihood.report.alarms import FIRST_STEPS, Alarms
from rl_likelihood.report.metric_table import without_samples
from rl_likelihood.report.metrics import MetricsWriter, line
from rl_likelihood.report.table import evaluations
from rl_likelihood.report.tracking import Board, Tracker
from rl_likelihood.rollouts.baseline import write_baseline
from rl_likelihood.rollouts.batches import SamplerFailed, StepInput, means
from rl_likelihood.rollouts.judges import judge_of, refuse_judge
from rl_likelihood.rollouts.resample import LearnerFilter
from rl_likelihood.rollouts.samples import write_samples
from rl_likelihood.rollouts.source import Source, make_source
from rl_likelihood.run_model import param_shardings
from rl_likelihood.runtime import bucket, checkpoint, checksums, distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, make_devices
from rl_likelihood.runtime.disk import drop_optimizer, lost_optimizer
from rl_likelihood.runtime.lock import FILE as LOCK
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.profile import Profile
from rl_likelihood.runtime.signals import Stopped, StopRequest
from rl_likelihood.runtime.workdir import (
    BEGINNING,
    EXAMPLES,
    TOKENIZER,
    OtherInputs,
    claim,
    digest_of_examples,
    keep_inputs,
    pinned_date,
    restore_tracking_id,
    warn_of_lost_lines,
    write_config,
)
from rl_likelihood.settings import Config
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import Model, Task, checkpoint_model, load, trained
from rl_likelihood.training.announcement import announce
from rl_likelihood.training.best import Best, best_line
from rl_likelihood.training.compiled_steps import StepPrograms, on_devices
from rl_likelihood.training.dry_run import dry_run
from rl_likelihood.training.micro_batch import with_micro_batch
from rl_likelihood.training.session import (
    Run,
    Session,
    evaluate_if_due,
    evaluation,
    failure_in_status,
    out_of_patience,
    refuse_nan,
    save_if_best,
)
from rl_likelihood.training.warm_start import warm_start, with_worked_examples

# Of a program that runs once: fewer optimizations compile in 1 s instead of 5 (two cores), with the same numbers.
RUNS_ONCE = {"xla_backend_optimization_level": 1}


def learn(c: Config, session: Session, resume: int | None, saved_model: Model | None = None) -> tuple[int, bool]:
    """The training loop: batch -> step -> metrics. Returns (last step, whether the run is finished).

    `resume`: the checkpoint to resume; None: a new run. `saved_model`: the `checkpoint_model` of a resumed run.
    """
    # Loaded here, because a caller's reference would keep these parameters in memory for the whole run.
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner, saved_model=saved_model)
    judge = judge_of(task, devices, session.workdir) if c.reward.judged else None
    announce(task, devices, session.workdir, resume)
    keep_inputs_of_run(task, session, checksums.digest(params) if resume is None else "")
    r, optimizer = open_run(session, task, devices), make_optimizer(c.optimizer)
    try:
        from_state = start if resume is None else resumed
        state, ref_params, queue = from_state(r, params, optimizer)
    except Stopped:
        r.close()
        return 0, False
    del params
    if c.train.micro_batch_prompts < 0:
        task = with_micro_batch(task, devices, state.params, models_of(state, ref_params, c.step), r.workdir)
    programs = StepPrograms(task, devices, optimizer, judge)
    step, steps, ended, write_seconds = int(state.step), c.train.steps, False, 0.0
    source = make_source(task, devices, r.workdir, step, queue, judge)
    profile, alarms = Profile(r.workdir, c.report.profile, step), first_alarms(r, step)
    with Progress("trained", steps, "steps", done=step) as progress, closing(source), closing(profile):
        try:
            while True:
                policy = r.policy(state, ref_params)
                evaluate_if_due(r, policy, step)
                save_if_best(r, state, source)
                if ended := out_of_patience(r, state, source, policy) or step >= steps:
                    break
                r.stop.check()
                profile.before(step + 1)
                begin = time.perf_counter()
                step_input = next_batch(r, source, state, policy, functools.partial(programs.groups, state, ref_params))
                del policy  # the step takes the state's memory
                batch = on_devices(task, devices, step_input.batch)
                begin_step = time.perf_counter()
                in_flight = programs.start(state, ref_params, batch, step_input.spread)
                (state, out, per_row), measured, end_step = programs.finish(in_flight, step_input.measured)
                end = time.perf_counter()
                step += 1
                profile.after(step)
                refuse_nan(step, out, r.workdir)
                clock = times(step_input, (begin, begin_step, end_step, end), write_seconds)
                out = record(r, step, out | means(measured) | step_input.logged | clock, step_input, per_row)
                write_seconds = time.perf_counter() - end
                progress.advance()
                say(line(step, steps, out, progress.left()))
                for sentence in alarms.check(step, out):
                    say(f"warning: {sentence}")
                if checkpoint.due(c.train, step):
                    r.save(state, source.state())
        except Stopped:
            r.save(state, source.state())
        finally:
            r.close()
    return step, ended or step >= steps


def times(step_input: StepInput, clock: tuple[float, float, float, float], write_seconds: float) -> dict[str, float]:
    """The times of a step, in seconds. `clock`: the times of its begin, of its batch being ready, of the learner's end,
    and of the end of `measured`. `write_seconds`: seconds spent writing the previous step's metrics."""
    step_begin, batch_ready, learned, end = clock
    tokens = int((step_input.rollout.segment != 0).sum()) * jax.process_count()
    host = batch_ready - step_begin - step_input.waited + end - learned + write_seconds
    return {"time/host": host, "time/learn": learned - batch_ready, "tokens_per_second": tokens / (end - step_begin)}


def record(r: Run, step: int, out: dict[str, float], step_input: StepInput, per_row: dict) -> dict[str, float]:
    """Writes a step's metrics, which are returned, and some of its chains."""
    out = without_samples(out) if r.config.reward.supervised else out
    r.writer.metrics(step, out)
    write_samples(r.task, r.devices, r.writer, step, step_input, per_row)
    return out


def open_run(session: Session, task: Task, devices: Devices) -> Run:
    """The run, with its checkpoint manager. The best checkpoint is kept if train.best names a metric."""
    c = task.config.train
    best = Best(session.workdir, c.best, bool(task.fast))
    manager = checkpoint.open_manager(session.workdir, c, best.is_best if c.best else None)
    return Run(**vars(session), task=task, devices=devices, checkpoints=manager, best=best)


def next_batch(
    r: Run, source: Source, state: TrainState, policy: Params, by_learner: LearnerFilter | None
) -> StepInput:
    """The batch of the next update. If the sampler failed, the state is saved before the error is raised."""
    try:
        return source.next(int(state.step), policy, by_learner)
    except SamplerFailed as failed:
        r.save(state, source.state())
        raise failed.__cause__ or failed from None


def keep_inputs_of_run(task: Task, session: Session, model: str = "") -> None:
    """Saves the tokenizer and digests of the inputs in the workdir. So the workdir does not need the model's folder,
    and a resumed run notices changed data, prompts or code. A run that is accepted takes its bucket over. `model`: the
    digest of a new run's parameters."""

    def keep() -> str:
        c = task.config
        rows, held = ([row.example for row in side] for side in (task.train, task.heldout))
        digests = {
            "questions": digest(rows, held),
            "prompts": digest_of_ids([*task.train, *task.heldout, *task.fast]),
        }
        digests |= {"code": digest_of_files(c.reward.file, c.env.file, c.rubric.path), EXAMPLES: digest_of_examples(c)}
        digests |= {BEGINNING: model} if model else {}
        try:
            keep_inputs(session.workdir, c.prompt.date, digests, session.force)
        except OtherInputs as error:
            return str(error)
        write_config(session.workdir, session.given)
        if task.model_path != BYTES:
            keep_tokenizer(task.tokenizer, session.workdir / TOKENIZER, task.fmt.eos_ids)
        return ""

    if refused := distributed.by_first(keep):
        raise OtherInputs(refused)  # in every process
    if session.copy:
        session.copy.own()


def first_alarms(r: Run, step: int) -> Alarms:
    """The alarms of a run that starts or resumes at `step`. They compare with the first steps of the run, so a resumed
    run reads those from metrics.jsonl."""
    c = r.config
    parts_earn = c.step.turn_credit or c.posterior.distill > 0
    alarms = Alarms(c.reward.terms, c.reward.truncated, parts_earn)
    path = r.workdir / run_files.METRICS
    if step and distributed.first() and path.exists():
        for row in run_files.read(path)[:FIRST_STEPS]:
            alarms.check(row["step"], row)
    return alarms


def start(r: Run, params: Params, optimizer) -> tuple[TrainState, Params | None, None]:
    """(the state at step 0; the reference model, or the base of adapters, or None; no state of a source).

    A warm start comes before step 0. The reference or base is the model of step 0. It is saved in the workdir, so that
    every resume has the same one, even if model.path changes.
    """
    c, mesh, model = r.config, r.devices.learner, r.task.model
    state_at = state_shardings(mesh, model, optimizer, c.step)
    r.writer.rewind(-1)
    initial = prepare_start(r, params)
    create = lambda p: init_state(trained(r.task, p), optimizer, c.step)
    state = jax.jit(create, out_shardings=state_at, compiler_options=RUNS_ONCE)(initial)
    frozen = init_reference(initial, mesh, model, c.step)
    if c.step.with_frozen:
        # Saves `initial`, not `frozen`: its layers are stacked, and an int8 base is quantised again on resume.
        stored = jax.tree.map(lambda x: x.astype(c.lora.stored_dtype), initial) if c.lora.rank else initial
        initial_state = TrainState(step=put(np.int32(0), state_at.step), params=stored, opt_state=())
        saving = checkpoint.save_initial(r.workdir / checkpoint.INITIAL, initial_state, r.meta() | {"lora": None})
        r.unsaved.callback(checkpoint.close, saving)
    if c.reward.baseline == "frozen":
        write_baseline(r.task, r.devices, initial, r.workdir, r.stop.check)
    if c.warm_start.steps:
        r.save(state)
    return state, frozen, None


def resumed(r: Run, params: Params, optimizer) -> tuple[TrainState, Params | None, dict | None]:
    """(the last checkpoint's state; the reference or base, or None; the saved state of the source). Only the shapes of
    `params` are used."""
    cfg, mesh, model = r.config.step, r.devices.learner, r.task.model
    state_at = state_shardings(mesh, model, optimizer, cfg)
    abstract = jax.eval_shape(lambda p: init_state(trained(r.task, p), optimizer, cfg), params)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state_at)
    state, meta = checkpoint.restore(r.checkpoints, abstract)
    r.writer.rewind(int(state.step))
    warn_of_lost_lines(r.writer.workdir, meta.get("file_bytes", {}), int(state.step))
    reference = None
    if cfg.with_frozen:
        at = param_shardings(mesh, model)
        initial = checkpoint.restore_params(r.workdir / checkpoint.INITIAL, at=lambda _: at)[1]
        reference = init_reference(initial, mesh, model, cfg)
    return state, reference, meta.get("queue")


def prepare_start(r: Run, params: Params) -> Params:
    """The parameters at step 0: `params`, or with a warm start the parameters after it. It first evaluates `params`."""
    w = r.config.warm_start
    if not all_finite(params):
        raise distributed.SharedRefusal(
            f"model.path is {r.task.model_path}, whose weights are not finite; fetch them again"
        )
    if not w.steps:
        return params
    rows, stage = r.task.heldout, "untouched"
    if w.chains == "own" and w.examples:  # the model does not know the format yet, so its prompts show examples
        rows, _ = with_worked_examples(r.task, rows[: r.config.eval.prompts], w.examples)
        stage = f"untouched ({w.examples} examples)"
    evaluation(r, params, 0, stage, rows)
    return warm_start(r.task, r.devices, params, r.writer.workdir, r.stop.check)


def main() -> bool:
    c, overridden = from_flags()
    if flags.FLAGS.print_config:
        print(describe(c, overridden))
    config = build(c)
    if flags.FLAGS.print_config:
        return False
    if flags.FLAGS.dry_run:
        dry_run(config)
        return False
    with bucket.opened(required("workdir", "runs/first")) as (workdir, copy):
        return not run(config, workdir, flags.FLAGS.force, copy)


def run(c: Config, workdir: Path, force: bool = False, copy: bucket.Copy | None = None) -> bool:
    """Trains from the workdir's last checkpoint, or from the start, to the last step. STATUS holds the outcome. Returns
    whether the run is finished.

    `force`: resume the workdir with another config. `copy`: the workdir is the copy of a run in a bucket.
    """
    finished, old_status = False, run_files.read_status(workdir)
    with contextlib.ExitStack() as stack:
        holder = distributed.by_first(lambda: stack.enter_context(lock(workdir)))
        distributed.refuse_unshared(workdir / LOCK, holder)
        resume = checkpoint.agreed_step(workdir)
        folder = stack.enter_context(distributed.folder_of_first(workdir))
        distributed.by_first(lambda: claim(workdir, c, force))
        saved = None if resume is None else checkpoint.describe(workdir)
        if saved is not None:
            distributed.by_first(lambda: restore_tracking_id(workdir, saved[-1].get("tracking_id")))
        date = distributed.by_first(lambda: pinned_date(workdir, c.prompt.date, saved and saved[-1]))
        original, c = c, dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date))
        tracking = c.report.wandb if folder == workdir else "off"
        start_step = -1 if resume is None else resume
        tensorboard = Board(folder, start_step) if c.report.tensorboard and distributed.first() else None
        tracker = Tracker(folder, tracking, c.report.wandb_project, flatten(c), tensorboard)
        writer = stack.enter_context(MetricsWriter(folder, c.train.steps, None, tracker))
        writer.status("running", resume or 0)
        stop = StopRequest()
        try:
            with failure_in_status(writer):
                session = Session(workdir, writer, stop, original, force, copy, saved[2] if saved else "")
                step, finished = resume or 0, has_ended(workdir, resume, c.train.steps, old_status)
                if not finished:
                    if c.reward.judged:
                        refuse_judge(c, workdir)
                    step, finished = learn(c, session, resume, saved and checkpoint_model(c, workdir, *saved[:3]))
                if finished and not c.train.keep_optimizer:
                    writer.status("done", step)  # first: after a kill, only this says that the state is not needed
                    distributed.by_first(lambda: drop_optimizer(workdir))
        except OtherInputs as error:  # refused before anything changed: keep the old status
            lost = {"state": "failed", "step": resume or 0, "steps": c.train.steps, "error": str(error)}
            run_files.write_status(folder, **(old_status or lost))
            raise
        finally:
            stop.restore()
        writer.status("done" if finished else "interrupted", step)
    if finished and distributed.first():
        summary(workdir)
        if c.train.best and (evaluated := evaluations(workdir)):
            say(best_line(workdir, evaluated, c.train.best, bool(c.data.fast_split)))
    elif not finished:
        if checkpoint.latest_step(workdir) is None:
            say("stopped before the first checkpoint; run the same command to start again")
        else:
            say(f"stopped after step {step}, saved; run the same command to resume")
    return finished


def has_ended(workdir: Path, resume: int | None, steps: int, status: dict[str, Any] | None) -> bool:
    """Whether the run is finished and its optimizer state was deleted, so that it cannot be loaded. With train.patience
    it may have ended before `steps`; then `status` says so."""
    if resume is None or not distributed.share(lost_optimizer(workdir, resume)):
        return False
    early = status is not None and status["state"] == "done" and status["steps"] == steps
    return resume >= steps or distributed.share(early)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run, or gs://BUCKET/RUN; the same again resumes")
    flags.DEFINE_bool("print_config", False, "print every field, with what was overridden, and exit")
    flags.DEFINE_bool("dry_run", False, "load, compile and report; train nothing")
    flags.DEFINE_bool("force", False, "resume the workdir with another config")
    define_processes()
    run_main(main, in_bucket=True)
