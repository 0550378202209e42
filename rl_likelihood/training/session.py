"""One call of the training command: the objects that do not change during it, and its evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.learner.adversarial import NAME
from rl_likelihood.learner.step import all_finite
from rl_likelihood.model.architecture import Params
from rl_likelihood.model.lora import effective
from rl_likelihood.report.metrics import MetricsWriter
from rl_likelihood.report.table_text import evaluation_line
from rl_likelihood.rollouts.source import Source
from rl_likelihood.runtime import checkpoint, distributed, run_files
from rl_likelihood.runtime.bucket import Copy
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.runtime.signals import StopRequest
from rl_likelihood.runtime.workdir import OtherInputs, checkpoint_meta
from rl_likelihood.settings import Config
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import Task
from rl_likelihood.training.best import FAST, Best

# Metrics that are not finite if the critic diverged: before the step, or in it.
OF_CRITIC = ("critic/loss", f"reward/{NAME}")


@dataclasses.dataclass(frozen=True)
class Session:
    """One call of the command. `given`: the config before its date was fixed. `force`: continue with other settings.
    `copy`: the workdir is the copy of a run in a bucket. `model_path`: of a resumed run, the model that it began with.
    """

    workdir: Path
    writer: MetricsWriter
    stop: StopRequest
    given: Config
    force: bool = False
    copy: Copy | None = None
    model_path: str = ""


@contextlib.contextmanager
def failure_in_status(writer: MetricsWriter) -> Iterator[None]:
    """Writes an error of the block into STATUS, but not OtherInputs, which changes nothing in the workdir."""
    try:
        yield
    except OtherInputs:
        raise
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        last = checkpoint.latest_step(writer.workdir) or 0
        writer.status(state, last, " ".join(str(error).split()) or repr(error))
        raise


@dataclasses.dataclass(frozen=True)
class Run(Session):
    """A session with its task, devices, checkpoints and best step. `unsaved`: waits for what the run starts from, which
    is written while the first evaluation runs."""

    task: Task = dataclasses.field(kw_only=True)
    devices: Devices = dataclasses.field(kw_only=True)
    checkpoints: checkpoint.Manager = dataclasses.field(kw_only=True)
    best: Best = dataclasses.field(kw_only=True)
    unsaved: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack, kw_only=True)

    @property
    def config(self) -> Config:
        return self.task.config

    def save(self, state: TrainState, queue: dict | None = None) -> None:
        """Saves a checkpoint of the state. `queue`: the state of the source. Refuses non-finite parameters."""
        if not all_finite(state.params):
            raise distributed.SharedRefusal(not_finite(int(state.step), ["the parameters"], self.workdir))
        self.unsaved.close()  # a checkpoint implies that everything that the run starts from has been written
        checkpoint.save(self.checkpoints, state, self.meta() | ({} if queue is None else {"queue": queue}))
        if self.copy:
            checkpoint.finish(self.checkpoints)
            self.copy.upload()

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self.unsaved:
            checkpoint.close(self.checkpoints)

    def meta(self) -> dict:
        """The JSON part of a checkpoint."""
        path = self.model_path or self.task.model_path
        return checkpoint_meta(self.writer.workdir, self.config, self.task.model, path)

    def policy(self, state: TrainState, frozen: Params | None) -> Params:
        """The parameters for sampling and evaluation. `frozen`: the base of adapters, or a reference model."""
        lora = self.config.lora
        return effective(frozen, state.params, lora) if lora.rank and frozen else state.params


def evaluate_if_due(r: Run, params: Params, step: int) -> None:
    """Evaluates before the first step (if `train.eval_first`), after the last, and fast every `train.eval_every`
    steps."""
    t, c = r.config.train, r.config
    if 0 < step < t.steps and not (t.eval_every and step % t.eval_every == 0):
        return
    if step == 0 and not t.eval_first:
        return
    stage = f"{FAST}{step}"
    if step == 0:
        stage = "untouched"
        if c.warm_start.steps:
            stage = "after format SFT" if c.warm_start.chains == "own" else "after warm start"
    elif step == t.steps:
        stage = last_stage(step, c.reward.name)
    fast = 0 < step < t.steps
    evaluate_once(r, params, step, stage, r.task.fast if fast and r.task.fast else r.task.heldout, fast)


def last_stage(step: int, reward: str) -> str:
    """The stage of a finished run's evaluation: after 8 steps of log_prob. It is an id, so thousands have no commas."""
    return f"after {step} step{'s' * (step != 1)} of {reward}"


def evaluate_once(
    r: Run, params: Params, step: int, stage: str, rows: list[EncodedExample], fast: bool = False
) -> None:
    """Runs `evaluation`, unless eval.jsonl already has one of this stage."""
    path = r.writer.workdir / run_files.EVAL
    if not distributed.share(path.exists() and any(row.get("stage") == stage for row in run_files.read(path))):
        evaluation(r, params, step, stage, rows, fast)


def save_if_best(r: Run, state: TrainState, source: Source) -> None:
    """Saves the state if its evaluation is the best by train.best."""
    if r.config.train.best:
        r.best.look()
        if r.best.is_best(int(state.step)):
            r.save(state, source.state())


def out_of_patience(r: Run, state: TrainState, source: Source, policy: Params) -> bool:
    """Whether train.patience ends the run. If so, evaluates and saves it."""
    t, step = r.config.train, int(state.step)
    if not t.patience or r.best.since < t.patience:
        return False
    say(f"ends after step {step}: {r.best.since} evaluations without a better {t.best} than that of step {r.best.step}")
    evaluate_once(r, policy, step, last_stage(step, r.config.reward.name), r.task.heldout)
    r.save(state, source.state())
    return True


def evaluation(r: Run, params: Params, step: int, stage: str, rows: list[EncodedExample], fast: bool = False) -> None:
    """Evaluates, writes eval.jsonl and the records of the questions, and prints one line."""
    if not r.config.eval.prompts:
        return
    out = evaluate(Evaluation(r.task, params, rows, r.devices, step, r.writer.workdir, r.stop.check, say), fast=fast)
    r.writer.eval(step, {"stage": stage, **out})
    say(evaluation_line(stage, out))


def refuse_nan(step: int, out: dict[str, float], workdir: Path) -> None:
    """Raises if the loss, the gradient or a critic is not finite, before the state is saved."""
    names = (*OF_CRITIC, "loss/policy", "loss/answer", "loss/kl", "grad/norm")
    bad = [k for k in names if not np.isfinite(out.get(k, 0.0))]
    if bad:
        lower = "adversarial.lr and adversarial.head_lr" if bad[0] in OF_CRITIC else "optim.lr"
        raise distributed.SharedRefusal(not_finite(step, bad, workdir, lower))


def not_finite(step: int, values: list[str], workdir: Path, lower: str = "optim.lr") -> str:
    """The message for non-finite values, with the checkpoint from which a new run can start. `lower`: the learning
    rates."""
    last = checkpoint.latest_step(workdir)
    cure = f"no step has been saved: choose another --workdir and lower {lower}"
    if last is not None:
        cure = f"the checkpoint of step {last} is good: lower {lower} in a new workdir, with model.path={workdir}"
    verb = "is" if len(values) == 1 and values[0] != "the parameters" else "are"
    return f"step {step}: {', '.join(values)} {verb} not finite; {cure}"
