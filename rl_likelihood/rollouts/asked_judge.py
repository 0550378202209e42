"""The judge of a training run: which one the config names, and its numbers beside the host's other rewards."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from rl_likelihood.data import judged_text
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.rollouts.http_judge import HttpJudge, HttpSettings
from rl_likelihood.rollouts.local_judge import LocalJudge, load_head, local_judge, on_device
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.settings import JudgeSettings
from rl_likelihood.shapes import UserError
from rl_likelihood.task import Task

CACHE = "judge.sqlite"  # in a workdir: the verdicts of an address; of several processes each has its own


def judge_of(task: Task, devices: Devices, workdir: Path) -> LocalJudge | HttpJudge:
    """The config's judge, on this process's first sampler device or behind its address. Every training question must
    fit it."""
    j = task.config.judge
    if j.remote:
        return HttpJudge(http_settings(j, workdir), judged_text.CORRECT)
    name = "judge" if load_head(j.model) is None else "reward_model"
    if name != task.config.reward.judged:
        what = "no reward model" if name == "judge" else "a reward model"
        raise UserError(f"judge.model is {j.model!r}, which is {what}; set reward.name to {name} or name another model")
    judge = local_judge(j.model, judged_text.CORRECT, j.max_prompt, j.max_row, j.template)
    if j.normalise == "none":
        judge = judge.unscaled()
    judged_text.refuse_long(judge.reader, [row.example.prompt for row in task.train])
    return on_device(judge, devices.sampler.devices.flat[0])


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


def judged(
    judge: LocalJudge | HttpJudge, task: Task, graded: HostRewards, rows: list[EncodedExample], texts: Texts
) -> HostRewards:
    """The host's rewards with the judge's number of each sampled answer. The judge sees question and answer, never the
    chain; a row without an answer is judged as an empty one, a row that it failed on is not kept."""
    questions = [row.example.prompt for row in rows]
    answers = [[(graders.extract_answer(text, task.fmt),) for text in group] for group in texts]
    out = judge(questions, answers)
    logged = {"judge/failures": float((~out.keep).sum()), "judge/cut": float(out.cut)}
    values = {**graded.values, task.config.reward.judged: np.where(out.keep, out.values, 0).astype(np.float32)}
    return HostRewards(values, graded.keep & out.keep, graded.logged | logged)
