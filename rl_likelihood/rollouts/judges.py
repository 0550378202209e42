"""The judge of a training run: builds the one that the config names, and adds its numbers to the host's rewards."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from rl_likelihood.data import judged_text, prompts, rubrics
from rl_likelihood.data.judged_text import Form, Names, Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.learner.judge import Judge, JudgeParams
from rl_likelihood.learner.micro_batches import unstacked
from rl_likelihood.learner.step import judge_shardings
from rl_likelihood.mesh import put
from rl_likelihood.model.architecture import Params
from rl_likelihood.rewards.adversarial import VERDICTS
from rl_likelihood.rollouts.endpoint import Endpoint, cache_of
from rl_likelihood.rollouts.experts import Experts
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.local_judge import HEAD, LocalJudge, describe_decoder, load_head, local_judge, reader_of
from rl_likelihood.rollouts.pairwise_judge import PairwiseJudge
from rl_likelihood.rollouts.rubric_judge import RubricJudge, judge_prompts_of, rubrics_of
from rl_likelihood.rollouts.similar_answers import SimilarAnswers, similar_answers
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.runtime.watch import Unreachable
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example
from rl_likelihood.task import Task

OWN = Names("model.path", "prompt.template")  # of a judge that is the run's own model


@dataclasses.dataclass(frozen=True)
class StepJudge:
    """A judge that the training step computes (`make_step`). On the host only its inputs are prepared. `params` are on
    the learner's mesh; None: the reference model is the judge."""

    reader: Reader
    judge: Judge
    params: JudgeParams | None

    def of_step(self, reference: Params | None) -> JudgeParams:
        """The judge's parameters, the fourth argument of the step."""
        if self.params is not None:
            return self.params
        assert reference is not None, "the settings ensure that there is a reference model"
        return JudgeParams(reference)


AnyJudge = LocalJudge | HttpJudge | StepJudge | RubricJudge | PairwiseJudge | Experts | SimilarAnswers


def refuse_judge(c: Config, workdir: Path) -> None:
    """UserError for a judge that cannot be used, before any weights are read: an address where nobody answers, a folder
    without a model, an unsuitable template, too few positions, or unreadable rubrics."""
    j = c.judge
    if c.reward.judged == "rubric":
        rubrics.refuse(rubrics.read_rubrics(c.rubric.path), c.rubric.aggregate)
    if c.reward.judged == "similar_share":
        describe_decoder(j.model)
    elif j.remote:
        with contextlib.closing(Endpoint(j)) as endpoint:
            endpoint.refuse_unreachable()
    elif j.model not in ("initial", ""):
        if j.normalise == "whiten" and not (Path(j.model) / HEAD).is_file():
            raise UserError(
                f"judge.normalise is 'whiten', but {j.model} has no {HEAD} with its scores' spread; set it to none"
            )
        _refuse_kind(c)
        reader_of(j.model, form_for(c), j.max_prompt, j.max_row, j.template)
    elif c.model.path and not c.raro and checkpoint.latest_step(workdir) is None:
        # Judged by the run's own model, or by the critic of adversarial training. A resumed run has a copy of it. The
        # form raro reads in the run's own prompt format (judge_of).
        reader_of(c.model.path, form_for(c), j.max_prompt, j.max_row, c.prompt.template, OWN)


def form_for(c: Config) -> Form:
    """The form of the judge's prompt for the config's reward, after judge.task, with the run's date."""
    critics = {"head": judged_text.SCORE, "label": judged_text.EXPERT, "raro": judged_text.CRITIQUE}
    others = {
        "adversarial": critics[c.adversarial.form],
        "pairwise": judged_text.BETTER,
        "rubric": judged_text.MARK if c.rubric.aggregate == "implicit" else judged_text.MEETS,
    }
    return others.get(c.reward.judged, judged_text.CORRECT).after(c.judge.task)._replace(date=c.prompt.date)


def judge_of(task: Task, devices: Devices, workdir: Path) -> AnyJudge:
    """The config's judge: at an HTTP address, on this process's first sampler device, or in the step. UserError if a
    training question is too long for it."""
    c, j, form = task.config, task.config.judge, form_for(task.config)
    questions = [judged_text.question_of(row.example) for row in task.train]
    if c.reward.judged == "similar_share":
        references = [row.example.answer for row in task.train]
        return similar_answers(j.model, devices.sampler.devices.flat[0], references, j.cosine)
    if c.reward.judged == "rubric":
        rubrics_by_question, kind = rubrics_of(c.rubric, questions), c.rubric.aggregate
        judge_prompts = [
            text
            for question in dict.fromkeys(questions)
            for text in judge_prompts_of(rubrics_by_question[question], kind)
        ]
        return RubricJudge(outside_judge(c, devices, workdir, judge_prompts), rubrics_by_question, kind)
    if c.reward.judged == "pairwise":
        return PairwiseJudge(outside_judge(c, devices, workdir, questions), c.seed)
    if c.reward.judged == "adversarial":
        if jax.process_count() > 1:
            raise UserError("reward.name is 'adversarial', which runs in one process; give it one host's devices")
        return Experts(_own_reader(task, form), c.seed, c.adversarial.replay)
    if j.model == "initial":
        reader = _own_reader(task, form)
        return StepJudge(reader, Judge("judge", task.model, judged_text.words_of(reader)), None)
    if j.remote or j.where == "outside":
        return outside_judge(c, devices, workdir, questions)
    judge = _local(c, questions)
    params = judge.params._replace(model=unstacked(judge.judge.model, judge.params.model)[0])
    params_at = judge_shardings(devices.learner, judge.judge.model, params.head is None)
    return StepJudge(judge.reader, judge.judge, put(params, params_at))


def outside_judge(c: Config, devices: Devices, workdir: Path, questions: Sequence[str]) -> LocalJudge | HttpJudge:
    """A judge outside the step: at an HTTP address, or on this process's first sampler device. On one device it has no
    collectives, so no other thread's program waits for it."""
    if c.judge.remote:
        return HttpJudge(Endpoint(c.judge, cache_of(c.judge, workdir)), form_for(c))
    judge = _local(c, questions)
    return dataclasses.replace(judge, params=jax.device_put(judge.params, devices.sampler.devices.flat[0]))


def _local(c: Config, questions: Sequence[str]) -> LocalJudge:
    """The judge's model, loaded on the host. UserError, before that, if a question is too long for it."""
    j = c.judge
    described = (j.model, form_for(c), j.max_prompt, j.max_row, j.template)
    judged_text.refuse_long(reader_of(*described)[0], questions)
    judge, head = local_judge(*described), load_head(j.model)
    return judge.whitened(head[1]) if j.normalise == "whiten" and head is not None else judge


def _refuse_kind(c: Config) -> None:
    """UserError if judge.model is a reward model and the reward needs another model, or the other way round."""
    kind = "no reward model" if load_head(c.judge.model) is None else "a reward model"
    model, reward = c.judge.model, c.reward.judged
    if (kind == "a reward model") != (reward == "reward_model"):
        raise UserError(f"judge.model is {model!r}, which is {kind}, but the reward is {reward}; name another model")


def computes_on_sampler(judge: AnyJudge | None) -> bool:
    """Whether the judge's programs run on the sampler's devices."""
    return isinstance(_asked(judge), LocalJudge | SimilarAnswers)


def cancel(judge: AnyJudge | None) -> None:
    """Ends the calls of an HTTP judge that another thread asks."""
    inner = _asked(judge)
    if isinstance(inner, HttpJudge):
        inner.cancel()


def close(judge: AnyJudge | None) -> None:
    """Closes the connections of an HTTP judge."""
    inner = _asked(judge)
    if isinstance(inner, HttpJudge):
        inner.close()


def _asked(judge: AnyJudge | None) -> AnyJudge | None:
    """The judge that another one asks, or the judge itself."""
    return judge.judge if isinstance(judge, (RubricJudge, PairwiseJudge)) else judge


def _own_reader(task: Task, form: Form) -> Reader:
    """The reader for the run's own model, with its own template."""
    j, vocab = task.config.judge, task.fmt.vocab_bytes
    render = _verdict_prompt(task) if task.config.raro else None
    reader = Reader(task.tokenizer, vocab, form, j.max_prompt, j.max_row, OWN, render)
    judged_text.refuse_template(reader, task.model.max_position)
    judged_text.refuse_long(reader, [judged_text.question_of(row.example) for row in task.train])
    return reader


def _verdict_prompt(task: Task) -> Callable[[str], str]:
    """How a critic that is the policy reads a message: as a question of the run, without worked examples. UserError
    if prompt.max_answer is too short for a verdict."""
    c = task.config.prompt
    examples = [Example("critic", "", verdict) for verdict in VERDICTS]
    longest = max(len(ids) for ids, _ in prompts.answer_ids(examples, task.tokenizer, c, task.fmt))
    if longest > c.max_answer:
        raise UserError(
            f"prompt.max_answer is {c.max_answer}, but the critic's verdicts ({', '.join(VERDICTS)}) have up to "
            f"{longest} tokens; set it to at least that"
        )
    return lambda text: prompts.render(Example("critic", text, ""), task.tokenizer, c, ())


def judged(judge: AnyJudge, task: Task, graded: HostRewards, rows: list[EncodedExample], texts: Texts) -> HostRewards:
    """The host's rewards with the judge's number for each sampled answer, or with the inputs of a judge in the step.

    The judge sees question and answer, never the chain. A row without an answer is judged as an empty answer. A row on
    which the judge failed is dropped. Unreachable if it failed on all: the run would go on and learn nothing.
    """
    questions = [judged_text.question_of(row.example) for row in rows]
    plain = [[graders.extract_answer(text, task.fmt) for text in group] for group in texts]
    answers = [[(answer,) for answer in group] for group in plain]
    if isinstance(judge, StepJudge):
        encoded = judged_text.encode(judge.reader, questions, answers)
        logged = {"judge/cut": float(encoded.cut)}  # the step counts failures
        return graded._replace(logged=graded.logged | logged, judged=encoded.judged)
    if isinstance(judge, Experts):
        compared, replayed, cut = judge.read(rows, plain)
        logged = {"judge/cut": float(cut)}  # a critic has no failures: its NaN ends the run
        return graded._replace(logged=graded.logged | logged, compared=compared, replayed=replayed)
    verdicts, further = None, dict[str, float]()
    if isinstance(judge, SimilarAnswers):
        out, further = judge([row.example.answer for row in rows], plain)
    elif isinstance(judge, RubricJudge):
        out, met = judge(questions, plain)
        verdicts = [judge.verdicts(question, of_row) for question, of_row in zip(questions, met, strict=True)]
    elif isinstance(judge, PairwiseJudge):
        out, further = judge(questions, plain)
    else:
        out = judge(questions, answers)
    if not out.keep.any():
        raise Unreachable(  # a restart may succeed, as of a pod's script
            f"judge.model {task.config.judge.model!r} gave no verdict on all {out.keep.size} answers that this process "
            "judged in a step; see the messages above, then run the same command to resume from the last checkpoint"
        )
    logged = further | {"judge/failures": float((~out.keep).sum()), "judge/cut": float(out.cut)}
    values = {**graded.values, task.config.reward.judged: np.where(out.keep, out.values, 0).astype(np.float32)}
    return graded._replace(values=values, keep=graded.keep & out.keep, logged=graded.logged | logged, verdicts=verdicts)
