"""The judge of a training run: which one the config names, and its numbers beside the host's other rewards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from rl_likelihood.data import judged_text
from rl_likelihood.data.judged_text import Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.learner.judge import Judge, JudgeParams
from rl_likelihood.learner.micro_batches import unstacked
from rl_likelihood.learner.step import judge_shardings
from rl_likelihood.mesh import put
from rl_likelihood.model.decoder import Params
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.rollouts.http_judge import HttpJudge, HttpSettings
from rl_likelihood.rollouts.local_judge import LocalJudge, load_head, local_judge, on_device
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.settings import JudgeSettings
from rl_likelihood.shapes import UserError
from rl_likelihood.task import Task

CACHE = "judge.sqlite"  # in a workdir: the verdicts of an address; of several processes each has its own


@dataclasses.dataclass(frozen=True)
class StepJudge:
    """A judge that the step computes (`make_step`): only what it reads is made here. `params` lie on the learner's
    mesh; None: they are the reference model's."""

    reader: Reader
    judge: Judge
    params: JudgeParams | None

    def of_step(self, reference: Params | None) -> JudgeParams:
        """The step's fourth argument."""
        if self.params is not None:
            return self.params
        assert reference is not None, "the settings see to a reference model"
        return JudgeParams(reference)


AnyJudge = LocalJudge | HttpJudge | StepJudge


def judge_of(task: Task, devices: Devices, workdir: Path) -> AnyJudge:
    """The config's judge: on this process's first sampler device, behind its address, or in the step. Every training
    question must fit it."""
    j = task.config.judge
    if j.remote:
        return HttpJudge(http_settings(j, workdir), judged_text.CORRECT)
    if j.model == "initial":
        return _initial(task)
    name = "judge" if load_head(j.model) is None else "reward_model"
    if name != task.config.reward.judged:
        what = "no reward model" if name == "judge" else "a reward model"
        raise UserError(f"judge.model is {j.model!r}, which is {what}; set reward.name to {name} or name another model")
    judge = local_judge(j.model, judged_text.CORRECT, j.max_prompt, j.max_row, j.template)
    if j.normalise == "none":
        judge = judge.unscaled()
    judged_text.refuse_long(judge.reader, [row.example.prompt for row in task.train])
    if j.where == "outside":
        return on_device(judge, devices.sampler.devices.flat[0])
    params = judge.params._replace(model=unstacked(judge.judge.model, judge.params.model)[0])
    at = judge_shardings(devices.learner, judge.judge.model, params.head is None)
    return StepJudge(judge.reader, judge.judge, put(params, at))


def _initial(task: Task) -> StepJudge:
    """The run's own model of step 0, asked in its own template."""
    j, vocab = task.config.judge, task.fmt.vocab_bytes
    if task.config.reward.judged != "judge":
        raise UserError("judge.model is 'initial', which is no reward model; set reward.name to judge")
    if j.max_prompt + j.max_row > task.model.max_position:
        raise UserError(
            f"judge.max_prompt + judge.max_row = {j.max_prompt + j.max_row}, more than the {task.model.max_position} "
            "positions of the model; lower one"
        )
    reader = Reader(task.tokenizer, vocab, judged_text.CORRECT, j.max_prompt, j.max_row)
    judged_text.refuse_template(reader)
    judged_text.refuse_long(reader, [row.example.prompt for row in task.train])
    yes, no = (judged_text.word_ids(task.tokenizer, vocab, word) for word in judged_text.CORRECT.words)
    return StepJudge(reader, Judge("judge", task.model, yes, no), None)


def http_settings(j: JudgeSettings, workdir: Path) -> HttpSettings:
    """The settings of an address."""
    return HttpSettings(
        url=j.model,
        model=j.name,
        key_variable=j.key_variable,
        concurrency=j.concurrency,
        timeout=j.timeout,
        attempts=j.attempts,
        max_calls=j.max_calls,
        max_tokens=j.max_tokens,
        cache=j.cache or str(workdir / (CACHE if jax.process_count() == 1 else f"{jax.process_index()}-{CACHE}")),
    )


def judged(judge: AnyJudge, task: Task, graded: HostRewards, rows: list[EncodedExample], texts: Texts) -> HostRewards:
    """The host's rewards with the judge's number of each sampled answer. The judge sees question and answer, never the
    chain; a row without an answer is judged as an empty one, a row that it failed on is not kept."""
    questions = [row.example.prompt for row in rows]
    answers = [[(graders.extract_answer(text, task.fmt),) for text in group] for group in texts]
    if isinstance(judge, StepJudge):
        encoded = judged_text.encode(judge.reader, questions, answers)
        logged = {"judge/failures": 0.0, "judge/cut": float(encoded.cut)}
        return graded._replace(logged=graded.logged | logged, judged=encoded.judged)
    out = judge(questions, answers)
    logged = {"judge/failures": float((~out.keep).sum()), "judge/cut": float(out.cut)}
    values = {**graded.values, task.config.reward.judged: np.where(out.keep, out.values, 0).astype(np.float32)}
    return graded._replace(values=values, keep=graded.keep & out.keep, logged=graded.logged | logged)
