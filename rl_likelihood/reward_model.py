"""Train and measure a reward model: python -m rl_likelihood.reward_model --config=configs/reward_model.py --workdir=DIR

Comparisons come from a prepared data set (teleqna_pairs), or from files of lines with prompt, chosen, rejected. Before
and after training it evaluates the held-out comparisons, prints one JSON object and appends it to DIR/rm_eval.jsonl.
With --evaluate it does only that. Every accuracy is printed beside the accuracies of an answer's length alone and of
its words alone. The same workdir resumes. To use it in RL: --config.reward.name=reward_model --config.judge.model=DIR.

With --best_of=N the config's model answers each held-out question N times. For the answer with the highest score of 1,
2, 4 ... N answers, it prints the score, and how often that answer is right.
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

from rl_likelihood.cli.command import from_flags, required, run_main
from rl_likelihood.config import build
from rl_likelihood.data import judged_text, tokenizer
from rl_likelihood.data.byte_tokenizer import BYTES
from rl_likelihood.data.judged_text import SCORE, Reader, question_of
from rl_likelihood.data.order import order
from rl_likelihood.data.pairs import Comparison
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import preference
from rl_likelihood.evaluation.preference import Scored
from rl_likelihood.learner.judge import Judge, JudgeParams, make_judge
from rl_likelihood.learner.reward_step import init_state, make_optimizers, make_reward_step, state_shardings
from rl_likelihood.learner.step import all_finite
from rl_likelihood.mesh import put, ready
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.progress import Progress, duration
from rl_likelihood.report.metrics import MetricsWriter
from rl_likelihood.rollouts.host_rewards import grader_pool
from rl_likelihood.rollouts.local_judge import (
    LocalJudge,
    describe_decoder,
    load_head,
    local_judge,
    reader_of,
    save_head,
)
from rl_likelihood.rollouts.policy_answers import policy_answers
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import make_devices, using
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.signals import StopRequest
from rl_likelihood.runtime.workdir import TOKENIZER, checkpoint_meta, claim, keep_inputs, pinned_date, write_config
from rl_likelihood.settings import Config
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import Model, checkpoint_model, load, load_model, load_tokenizer
from rl_likelihood.training.comparisons import digest, encode, load_comparisons, scores_of
from rl_likelihood.training.session import failure_in_status, not_finite


@dataclasses.dataclass(frozen=True)
class Setup:
    """The fixed inputs of a run."""

    config: Config
    workdir: Path
    reader: Reader
    model: ModelConfig
    model_path: str  # of the model that the run began with
    train: list[Comparison]
    heldout: list[Comparison]
    judge: Judge
    run: Any  # the jitted judge of evaluations


def main() -> bool:
    c = build(from_flags()[0])
    workdir = Path(required("workdir", "runs/rm"))
    if flags.FLAGS.best_of:
        print(json.dumps(best_of(c, workdir, flags.FLAGS.best_of)))
        return False
    numbers = reward_model(c, workdir, flags.FLAGS.evaluate, flags.FLAGS.force)
    print(json.dumps(numbers))
    return "stopped" in numbers


def best_of(c: Config, workdir: Path, count: int) -> dict[str, Any]:
    """The reward model's score and the grader's mark of the best of n answers (`preference.best_of_curve`). `count`:
    answers per question.

    A reply without an answer is judged as an empty answer; `answered` is the share of replies with one. Questions on
    which the grader failed are left out.
    """
    if c.data.source in ("files", "jsonl"):
        raise UserError(f"data.source is {c.data.source!r}; --best_of asks questions, so set it to prepared")
    if c.eval.grader == "none":
        raise UserError("eval.grader is 'none', but --best_of grades every answer; name a grader")
    if not c.eval.prompts:
        raise UserError("eval.prompts is 0, but --best_of asks held-out questions; set it to their number")
    if load_head(str(workdir)) is None:
        raise UserError(f"{workdir} holds no reward model; leave --best_of out to train one")
    described = str(workdir), SCORE, c.judge.max_prompt, c.judge.max_row, c.judge.template
    reader, _ = reader_of(*described)
    prompt = sources.resolve_prompt(c.prompt, c.data, c.worked_examples)
    heldout = sources.load(c.data, False, prompt.shots)[1]
    judged_text.refuse_long(reader, [question_of(e) for e in heldout])  # before weights are read
    devices = make_devices(c)
    task, params = load(c, training=False, mesh=devices.learner)
    judge = local_judge(*described)
    proxy, gold, answered, cut = [], [], [], 0
    asked = task.heldout[: c.eval.prompts]
    with grader_pool(c) as pool, Progress("answered", len(asked), "questions", say) as progress:
        for rows, answers in policy_answers(task, params, devices, asked, count):
            questions = [question_of(r.example) for r in rows]
            scored = judge(questions, [[(a,) for a in group] for group in answers])
            proxy.append(scored.values)
            cut += scored.cut
            answered += [a is not None for group in answers for a in group]
            marks = pool.grade_groups(c.eval.grader, [r.example for r in rows], answers)
            gold.append(np.asarray(marks, float))  # None is NaN
            progress.advance(len(rows))
    graded = np.isfinite(np.concatenate(gold)).all(1)
    if not graded.any():
        raise UserError(f"eval.grader is {c.eval.grader!r}, which failed on every question; choose another")
    curve = preference.best_of_curve(np.concatenate(proxy)[graded], np.concatenate(gold)[graded])
    out = {"best_of": curve, "questions": int(graded.sum()), "answered": float(np.mean(answered))}
    step = checkpoint.latest_step(workdir) or 0
    row = {"step": step, **out, "grader": c.eval.grader, "cut": cut}
    return run_files.append(workdir / preference.RM_EVAL, row)[0]


def reward_model(c: Config, workdir: Path, only_evaluate: bool = False, force: bool = False) -> dict[str, Any]:
    """Trains to the last step, or only evaluates. Returns the numbers of the held-out comparisons. `force`: resume the
    workdir with another config or other comparisons."""
    if jax.process_count() > 1:
        raise UserError("reward_model runs in one process; give it one host's devices")
    if c.lora.rank:
        raise UserError(f"lora.rank is {c.lora.rank}, but reward_model trains all parameters; set it to 0")
    train, heldout = load_comparisons(c.data)
    if c.preference.loss == "listwise" and (row := next((r for r in train if any(r.margins)), None)):
        raise UserError(
            f"preference.loss is 'listwise', which has no margins, but {row.id} has the margin "
            f"{next(m for m in row.margins if m):g}; remove it or set preference.loss=bradley_terry"
        )
    if only_evaluate and checkpoint.latest_step(workdir) is None:
        raise UserError(f"{workdir} holds no reward model to evaluate; leave --evaluate out to train one")
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(workdir))
        claim(workdir, c, force)
        saved = None if checkpoint.latest_step(workdir) is None else checkpoint.describe(workdir)
        date = pinned_date(workdir, c.prompt.date, saved and saved[-1])
        keep_inputs(workdir, date, {"questions": digest(train, heldout)}, force)
        write_config(workdir, c)
        c = dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, date=date))
        devices = make_devices(c)
        saved_model = saved and checkpoint_model(c, workdir, *saved[:3])
        reader, eos_ids = reader_for(c, saved_model, [r.prompt for r in (*train, *heldout)])
        model, params, path = saved_model or load_model(c, devices.learner)
        if path != BYTES:
            tokenizer.keep_tokenizer(reader.tokenizer, workdir / TOKENIZER, eos_ids)
        path = saved[2] if saved else path
        judge = Judge("reward_model", model)
        setup = Setup(c, workdir, reader, model, path, train, heldout, judge, make_judge(judge))
        say(f"{len(train)} comparisons to train on, {len(heldout)} held out")
        if more := sum(len(row.answers) > c.preference.options for row in train):
            say(f"preference.options is {c.preference.options}: training leaves out answers of {more} comparisons")
        return _learn(setup, devices, params, stack, only_evaluate)


def reader_for(c: Config, saved: Model | None, questions: list[str]) -> tuple[Reader, tuple[int, ...]]:
    """(the reader of the `checkpoint_model` or else the config's model, the ids that end a text). UserError, before
    weights are read, for a template, too few positions, or a question that is too long."""
    if saved:
        model, _, path = saved
    else:
        model, path = (random_model(c.model.preset), BYTES) if c.model.preset else describe_decoder(c.model.path)
    text, eos_ids = load_tokenizer(path, c.judge.template, "judge.template")
    vocab = tokenizer.vocab_bytes(text, model.vocab_size)
    reader = Reader(text, vocab, SCORE._replace(date=c.prompt.date), c.judge.max_prompt, c.judge.max_row)
    judged_text.refuse_template(reader, model.max_position)
    judged_text.refuse_long(reader, questions)
    return reader, eos_ids


def _learn(s: Setup, devices, params: Params, stack: contextlib.ExitStack, only_evaluate: bool) -> dict[str, Any]:
    """The training loop, from the last checkpoint or from the start."""
    c, mesh = s.config, devices.learner
    optimizers = make_optimizers(c.optimizer, c.preference.head_lr)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizers), params)
    state_at = state_shardings(mesh, s.model, optimizers)
    manager = checkpoint.open_manager(s.workdir, c.train)
    stack.callback(checkpoint.close, manager)
    if checkpoint.latest_step(s.workdir) is None:
        state = put(init_state(params, optimizers), state_at)
    else:
        abstract = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, state_at
        )
        state, _ = checkpoint.restore(manager, abstract)
    del params
    step, steps = int(state.step), c.train.steps
    if only_evaluate:
        return _evaluate(s, state)
    stop = StopRequest()
    stack.callback(stop.restore)
    writer = stack.enter_context(MetricsWriter(s.workdir, steps, step))
    writer.status("running", step)
    stack.enter_context(failure_in_status(writer))
    if step == 0:
        _evaluate(s, state)
    rows_of, program = order(len(s.train), c.train.prompts_per_step, c.seed), None
    progress = stack.enter_context(Progress("trained", steps, "steps", done=step))
    while step < steps:
        if stop.requested:
            _save(s, manager, state)
            checkpoint.finish(manager)
            writer.status("interrupted", step)
            say(f"stopped after step {step}, saved; run the same command to resume")
            return {"step": step, "stopped": True}
        begin = time.perf_counter()
        batch, cut = encode(s.reader, [s.train[i] for i in rows_of(step)], c.preference.options)
        if program is None:
            size = max(0, c.train.micro_batch_prompts)
            program = make_reward_step(s.model, c.preference, optimizers, mesh, batch, size)
        with using(mesh):
            state, out = ready(program(state, batch))
        step += 1
        out = {k: float(v) for k, v in out.items()}
        if bad := [k for k in ("loss/preference", "grad/norm") if not np.isfinite(out[k])]:
            raise UserError(not_finite(step, bad, s.workdir))
        writer.metrics(step, out | {"judge/cut": cut, "time/learn": time.perf_counter() - begin})
        progress.advance()
        words = f"step {step}/{steps}  loss {out['loss/preference']:.4f}  pairs right {out['preference/accuracy']:.1%}"
        say(words + (f"  {duration(left)} left" if (left := progress.left()) else ""))
        if checkpoint.due(c.train, step):
            _save(s, manager, state)
    checkpoint.finish(manager)
    numbers = _evaluate(s, state)
    writer.status("done", step)
    return numbers


def _save(s: Setup, manager: checkpoint.Manager, state: TrainState) -> None:
    """Saves a checkpoint. Refuses non-finite parameters."""
    if not all_finite({"model": state.params, "head": state.opt_state.head}):
        raise UserError(not_finite(int(state.step), ["the parameters"], s.workdir))
    checkpoint.save(manager, state, checkpoint_meta(s.workdir, s.config, s.model, s.model_path))


def _evaluate(s: Setup, state: TrainState) -> dict[str, Any]:
    """Evaluates the held-out comparisons, and appends the numbers to rm_eval.jsonl. Also saves the head with the spread
    of its scores, as judges read it."""
    head = state.opt_state.head
    size = min(len(s.heldout), s.config.eval.batch_prompts)
    scores, cut = scores_of(LocalJudge(s.reader, s.judge, JudgeParams(state.params, head), s.run, size), s.heldout)
    rows = [Scored(r.prompt, r.answers, x, r.category, r.refers) for r, x in zip(s.heldout, scores, strict=True)]
    out = preference.summary(rows)
    spread = float(np.concatenate(scores).std())
    save_head(s.workdir, head, spread or 1.0, int(state.step))
    line = {"step": int(state.step), **out, "score_spread": spread, "cut": cut}
    run_files.append(s.workdir / preference.RM_EVAL, line)
    say(
        f"held out: {out['pair_accuracy']:.1%} of {out['pairs']} pairs right; the longer answer alone gets "
        f"{out['length_only_pair_accuracy']:.1%}"
    )
    return line


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the reward model; the same folder again resumes")
    flags.DEFINE_integer("best_of", 0, "only judge the best of so many answers of the config's model", lower_bound=0)
    flags.DEFINE_bool("force", False, "resume the workdir with another config or other comparisons")
    flags.DEFINE_bool("evaluate", False, "only measure the reward model of the workdir")
    run_main(main)
