"""Train: python -m rl_likelihood.train --config=configs/NAME.py --workdir=DIR.

    [--config.a.b=v ...] [--print_config] [--dry_run]

Same workdir = resume. Read `learn` first: it is the whole loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from absl import flags

from rl_likelihood.cli.command import define_processes, from_flags, run_main
from rl_likelihood.cli.summary import summary
from rl_likelihood.config import build, describe, flatten
from rl_likelihood.data.byte_tokenizer import BYTES
from rl_likelihood.data.prompts import digest_of_ids
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.datasets.questions import digest, digest_of_files
from rl_likelihood.learner.adversarial import init_run_state, run_state_shardings
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import all_finite, init_reference, models_of
from rl_likelihood.mesh import put
from rl_likelihood.model.decoder import Params
from rl_likelihood.report.alarms import FIRST_STEPS, Alarms
from rl_likelihood.report.metric_table import higher_is_better, without_samples
from rl_likelihood.report.metrics import MetricsWriter, line
from rl_likelihood.report.tracking import Tracker, board
from rl_likelihood.rollouts.asked_judge import judge_of, refuse_judge
from rl_likelihood.rollouts.baseline import write_baseline
from rl_likelihood.rollouts.batches import SamplerFailed, StepInput, means
from rl_likelihood.rollouts.samples import write_samples
from rl_likelihood.rollouts.source import Source, make_source
from rl_likelihood.runtime import checkpoint, distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, make_devices
from rl_likelihood.runtime.disk import checkpoint_config, drop_optimizer, lost_optimizer
from rl_likelihood.runtime.lock import FILE as LOCK
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.profile import Profile
from rl_likelihood.runtime.progress import Progress
from rl_likelihood.runtime.signals import Stopped, StopRequest
from rl_likelihood.runtime.workdir import (
    EXAMPLES,
    INITIAL,
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
from rl_likelihood.shapes import TrainState, UserError
from rl_likelihood.task import Model, Task, known_model, load, param_shardings, trained
from rl_likelihood.training.announcement import announce
from rl_likelihood.training.best import Best
from rl_likelihood.training.dry_run import dry_run
from rl_likelihood.training.micro_batch import with_micro_batch
from rl_likelihood.training.programs import StepPrograms, on_devices
from rl_likelihood.training.session import Run, Session, evaluate_if_due, evaluation, refuse_nan, without_progress
from rl_likelihood.training.warm_start import warm_start, with_worked_examples


def main() -> None:
    c, overridden = from_flags()
    if flags.FLAGS.print_config:
        print(describe(c, overridden))
    config = build(c)
    if flags.FLAGS.print_config:
        return
    if flags.FLAGS.dry_run:
        dry_run(config)
        return
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing; give the folder for this run's files, for example --workdir=runs/first")
    run(config, Path(flags.FLAGS.workdir), flags.FLAGS.force)


def run(c: Config, workdir: Path, force: bool = False) -> None:
    """One run, from its workdir's last checkpoint or from the start, to its last step; STATUS says how it went.

    `force`: go on in the workdir of another config.
    """
    finished, before = False, run_files.read_status(workdir)
    with contextlib.ExitStack() as stack:
        holder = distributed.by_first(lambda: stack.enter_context(lock(workdir)))
        distributed.refuse_unshared(workdir / LOCK, holder)
        resume = checkpoint.agreed_step(workdir)
        folder = stack.enter_context(distributed.folder_of_first(workdir))
        distributed.by_first(lambda: claim(workdir, c, force))
        saved = None if resume is None else checkpoint.describe(workdir)
        if saved is not None:
            distributed.by_first(lambda: restore_tracking_id(workdir, saved[-1].get("tracking_id")))
        date = distributed.by_first(lambda: pinned_date(workdir, c.prompt.date))
        given, c = c, dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date))
        tracking = c.report.wandb if folder == workdir else "off"
        begin = -1 if resume is None else resume
        copy = board(folder, begin) if c.report.tensorboard and distributed.first() else None
        tracker = Tracker(folder, tracking, c.report.wandb_project, flatten(c), copy)
        writer = stack.enter_context(MetricsWriter(folder, c.train.steps, None, tracker))
        writer.status("running", resume or 0)
        stop = StopRequest()
        try:
            session = Session(workdir, writer, stop, given, force)
            step, finished = resume or 0, has_ended(workdir, resume, c.train.steps)
            if not finished:
                if c.reward.judged:
                    refuse_judge(c, workdir)
                step, finished = learn(c, session, resume, saved and known_model(c, workdir, *saved[:3]))
            if finished and not c.train.keep_optimizer:
                distributed.by_first(lambda: drop_optimizer(workdir))
        except OtherInputs as error:  # refused: the run is where it was
            lost = {"state": "failed", "step": resume or 0, "steps": c.train.steps, "error": str(error)}
            run_files.write_status(folder, **(before or lost))
            raise
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
        if checkpoint.latest_step(workdir) is None:
            say("stopped before the first checkpoint; the same command begins again")
        else:
            say(f"stopped after step {step}, saved; the same command goes on from there")


def has_ended(workdir: Path, resume: int | None, steps: int) -> bool:
    """Whether the run was finished and gave up its optimizer state, so that there is nothing to load."""
    return resume is not None and resume >= steps and distributed.share(lost_optimizer(workdir, resume))


def learn(c: Config, session: Session, resume: int | None, known: Model | None = None) -> tuple[int, bool]:
    """The loop: batch -> step -> metrics. Returns (step, finished).

    `resume`: the step of the checkpoint to go on from, None for a new run; `known`: `known_model` of one that goes on.
    """
    # Loaded here and not passed in: a caller's reference would keep these parameters for the whole run.
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner, known=known)
    judge = judge_of(task, devices, session.workdir) if c.reward.judged else None
    announce(task, devices, session.workdir, resume)
    keep_what_it_needs(task, session)
    r, keep, optimizer = open_run(session, task, devices), checkpoint_config(c.train), make_optimizer(c.optimizer)
    try:
        from_state = start if resume is None else resumed
        state, ref_params, queue = from_state(r, params, optimizer)
    except Stopped:
        checkpoint.close(r.checkpoints)
        return 0, False
    del params
    if c.train.micro_batch_prompts < 0:
        task = with_micro_batch(task, devices, state.params, models_of(state, ref_params, c.step), r.workdir)
    programs = StepPrograms(task, devices.learner, optimizer, judge)
    step, steps, over, written = int(state.step), c.train.steps, False, 0.0
    source = make_source(task, devices, r.workdir, step, queue, judge)
    profile, alarms = Profile(r.workdir, c.report.profile), first_alarms(r, step)
    with Progress("trained", steps, "steps", done=step) as progress, closing(source), closing(profile):
        try:
            while True:
                policy = r.policy(state, ref_params)
                evaluate_if_due(r, policy, step)
                if over := without_progress(r, state, source, policy) or step >= steps:
                    break
                r.stop.check()
                profile.before(step + 1)
                begin = time.perf_counter()
                given = next_batch(r, source, state, policy)
                del policy  # the step takes the state's memory
                batch = on_devices(task, devices, given.batch)
                begin_step = time.perf_counter()
                started = programs.start(state, ref_params, batch)
                measured = given.measured()  # while the step runs
                state, out, per_row = programs.finish(started)
                end = time.perf_counter()
                step += 1
                profile.after(step)
                refuse_nan(step, out, r.workdir)
                clock = times(given, (begin, begin_step, end), written)
                out = record(r, step, out | means(measured) | given.logged | clock, given, per_row)
                written = time.perf_counter() - end
                progress.advance()
                say(line(step, steps, out, progress.left()))
                for sentence in alarms.check(step, out):
                    say(f"warning: {sentence}")
                if checkpoint.due(keep, step, steps):
                    r.save(state, source.state())
        except Stopped:
            r.save(state, source.state())
        finally:
            checkpoint.close(r.checkpoints)
    return step, over or step >= steps


def times(given: StepInput, clock: tuple[float, float, float], written: float) -> dict[str, float]:
    """Seconds of a step. `clock`: when it began, when its batch was there, when it ended; `written`: seconds of writing
    the step before."""
    begin, start, end = clock
    tokens = int((given.rollout.segment != 0).sum()) * jax.process_count()
    host = start - begin - given.waited + written
    return {"time/host": host, "time/learn": end - start, "tokens_per_second": tokens / (end - begin)}


def record(r: Run, step: int, out: dict[str, float], given: StepInput, per_row: dict) -> dict[str, float]:
    """Writes what a step measured: its numbers, which are returned, and some chains."""
    out = without_samples(out) if r.config.reward.supervised else out
    r.writer.metrics(step, out)
    write_samples(r.task, r.devices, r.writer, step, given, per_row)
    return out


def open_run(session: Session, task: Task, devices: Devices) -> Run:
    """The run with its checkpoints, of which the best is kept if train.best asks for one."""
    c = task.config.train
    best = Best(session.workdir, c.best, bool(c.best) and higher_is_better(c.best))
    manager = checkpoint.open_manager(session.workdir, checkpoint_config(c), best.is_best if c.best else None)
    return Run(**vars(session), task=task, devices=devices, checkpoints=manager, best=best)


def next_batch(r: Run, source: Source, state: TrainState, policy: Params) -> StepInput:
    """The batch of the next update. If the sampler failed, what was learned is saved first."""
    try:
        return source.next(int(state.step), policy)
    except SamplerFailed as failed:
        r.save(state, source.state())
        raise failed.__cause__ or failed from None


def keep_what_it_needs(task: Task, session: Session) -> None:
    """The workdir keeps its tokenizer and digests of its inputs. So it may be moved, the model's folder may go, and
    changed data, prompts or code are noticed."""

    def keep() -> None:
        c, sides = task.config, [[row.example for row in rows] for rows in (task.train, task.heldout)]
        digests = {"questions": digest(*sides), "prompts": digest_of_ids([*task.train, *task.heldout, *task.fast])}
        digests |= {"code": digest_of_files(c.reward.file, c.env.file), EXAMPLES: digest_of_examples(c)}
        keep_inputs(session.workdir, c.prompt.date, digests, session.force)
        write_config(session.workdir, session.given)
        if task.model_path != BYTES and not (session.workdir / TOKENIZER).exists():
            part = session.workdir / f"{TOKENIZER}.part"
            save_tokenizer(task.tokenizer, part, task.fmt.eos_ids)
            part.rename(session.workdir / TOKENIZER)

    distributed.by_first(keep)


def first_alarms(r: Run, step: int) -> Alarms:
    """The alarms of a run that goes on from `step`: they compare with the run's own beginning."""
    alarms = Alarms(tuple(t.name for t in r.config.reward.terms), r.config.reward.truncated)
    path = r.workdir / run_files.METRICS
    if step and distributed.first() and path.exists():
        for row in run_files.read(path)[:FIRST_STEPS]:
            alarms.check(row["step"], row)
    return alarms


def start(r: Run, params: Params, optimizer) -> tuple[TrainState, Params | None, None]:
    """The state of step 0, the reference model or the base of adapters if one is asked for, and no queue.

    A warm start comes before step 0. The reference, or base, is the model of step 0, kept in the workdir: the same for
    every resume, whatever becomes of model.path.
    """
    c, mesh, model = r.config, r.devices.learner, r.task.model
    at = run_state_shardings(mesh, model, optimizer, c.step)
    r.writer.rewind(-1)
    initial = prepare_start(r, params)
    state = jax.jit(lambda p: init_run_state(trained(r.task, p), optimizer, c.step, model.width), out_shardings=at)(
        initial
    )
    frozen = init_reference(initial, mesh, model, c.step)
    if c.step.with_frozen:
        # A reference's layers may be unstacked, and int8 matrices are made again of what they were made of.
        saved = jax.tree.map(lambda x: x.astype(c.lora.stored_dtype), initial) if c.lora.rank else initial
        alone = TrainState(step=put(np.int32(0), at.step), params=saved, opt_state=())
        checkpoint.save_initial(r.workdir / INITIAL, alone, r.meta() | {"lora": None})
    if c.reward.baseline == "frozen":
        write_baseline(r.task, r.devices, initial, r.workdir, r.stop.check)
    # Last: a checkpoint says that all that a run starts from is there.
    if c.warm_start.steps:
        r.save(state)
    return state, frozen, None


def resumed(r: Run, params: Params, optimizer) -> tuple[TrainState, Params | None, dict | None]:
    """The last checkpoint's state, the reference or base, and what the source of batches kept. Of `params` only the
    shapes are needed."""
    cfg, mesh, model = r.config.step, r.devices.learner, r.task.model
    at = run_state_shardings(mesh, model, optimizer, cfg)
    abstract = jax.eval_shape(lambda p: init_run_state(trained(r.task, p), optimizer, cfg, model.width), params)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, at)
    state, meta = checkpoint.restore(r.checkpoints, abstract)
    r.writer.rewind(int(state.step))
    warn_of_lost_lines(r.writer.workdir, meta.get("file_bytes", {}), int(state.step))
    reference = None
    if cfg.with_frozen:
        initial = checkpoint.restore_params(r.workdir / INITIAL, at=lambda _: param_shardings(mesh, model))[1]
        reference = init_reference(initial, mesh, model, cfg)
    return state, reference, meta.get("queue")


def prepare_start(r: Run, params: Params) -> Params:
    """Parameters of step 0: those given, or those after the warm start, with an evaluation before it. All finite."""
    w = r.config.warm_start
    if not all_finite(params):
        raise distributed.SharedRefusal(
            f"model.path is {r.task.model_path}, whose weights are not finite; fetch them again"
        )
    if not w.steps:
        return params
    rows, stage = r.task.heldout, "untouched"
    if w.chains == "own" and w.examples:  # the format is not yet known: show it
        rows, _ = with_worked_examples(r.task, rows[: r.config.eval.prompts], w.examples)
        stage = f"untouched ({w.examples} examples)"
    evaluation(r, params, 0, stage, rows)
    return warm_start(r.task, r.devices, params, r.writer.workdir, r.stop.check)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run; the same folder again resumes")
    flags.DEFINE_bool("print_config", False, "print every field, with what was overridden, and exit")
    flags.DEFINE_bool("dry_run", False, "load, compile and report; train nothing")
    flags.DEFINE_bool("force", False, "go on in the workdir of another config")
    define_processes()
    run_main(main)
