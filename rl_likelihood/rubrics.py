"""Rubrics for training questions: python -m rl_likelihood.rubrics --config=... --workdir=DIR --make|--filter|--show

The config sets reward.name=rubric, a judge, and rubric.path, the file of rubrics in HealthBench's format.
--make: a model writes a rubric for each training question without one, and appends it to rubric.path. Its prompt shows
the most similar questions and criteria of rubric.seeds. The same command resumes.
--filter: the config's model answers each question, and the judge decides which criteria are met. Criteria that too few
or too many answers meet do not separate answers; the others are written to DIR/rubrics.jsonl. A question that keeps no
usable rubric is marked there, and training leaves it out. Rubrics of questions that are not in this run keep all their
criteria.
--show: prints the rubrics of the first questions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from rl_likelihood.cli.command import from_flags, required, run_main
from rl_likelihood.config import build
from rl_likelihood.data import rubrics
from rl_likelihood.data.judged_text import question_of
from rl_likelihood.data.rubrics import Rubric
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.records import make_folder
from rl_likelihood.rollouts import judges
from rl_likelihood.rollouts.policy_answers import policy_answers
from rl_likelihood.rollouts.rubric_judge import RubricJudge, judge_prompts_of, rubrics_of
from rl_likelihood.rollouts.rubric_writer import AT_ONCE, WriterPrompts, writer_of, written
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.settings import Config
from rl_likelihood.task import load

FILE = "rubrics.jsonl"  # in the workdir: what --filter leaves
SHOWN = 3  # questions of --show


def make(c: Config, workdir: Path) -> dict[str, Any]:
    """Adds the missing rubrics to rubric.path, whose lines stay as they are. Returns counts."""
    path = Path(c.rubric.path)
    before = path.read_bytes() if path.is_file() else b""
    if path.suffix != ".jsonl" or before.lstrip()[:1] == b"[":
        raise UserError(f"rubric.path is {c.rubric.path!r}; --make adds lines, so give a .jsonl file of lines")
    rubrics_so_far = rubrics.read_rubrics(c.rubric.path) if before else []
    seeds = rubrics.read_rubrics(c.rubric.seeds, "rubric.seeds") if c.rubric.seeds else []
    done_prompts, made = {rubric.prompt for rubric in rubrics_so_far}, list[Rubric]()
    examples = {question_of(e): e for e in sources.load(c.data)[0]}
    missing, failed = [(q, e) for q, e in examples.items() if q not in done_prompts], 0
    say(f"{len(done_prompts)} questions have a rubric, {len(missing)} have none")
    if missing:
        write, embed = writer_of(c, workdir)
        prompts = WriterPrompts(c, seeds, embed)
        if not seeds:
            say("rubric.seeds is empty, so the writer is shown no examples")
    for start in range(0, len(missing), AT_ONCE):
        part = missing[start : start + AT_ONCE]
        replies = write(prompts.messages([question for question, _ in part]))
        new_rubrics = [written(q, e.id, reply, c.rubric) for (q, e), reply in zip(part, replies, strict=True)]
        made += [rubric for rubric in new_rubrics if rubric]
        rubrics.write_rubrics(path, made, before)
        failed += sum(rubric is None for rubric in new_rubrics)
        say(f"{start + len(part)}/{len(missing)}  {failed} replies without a rubric for {c.rubric.aggregate}")
    return {"rubrics": len(done_prompts) + len(missing) - failed, "made": len(missing) - failed, "failed": failed}


def filter_rubrics(c: Config, workdir: Path) -> dict[str, Any]:
    """Judges answers of the config's model, and writes the criteria that separate answers."""
    aggregate, path = c.rubric.aggregate, workdir / FILE
    if path.resolve() == Path(c.rubric.path).resolve():
        raise UserError(f"rubric.path is {c.rubric.path!r}, which --filter would overwrite; give another --workdir")
    rubrics.refuse(rubrics.read_rubrics(c.rubric.path), aggregate)
    c = dataclasses.replace(c, rubric=dataclasses.replace(c.rubric, aggregate="signed"))  # only the file's criteria
    judges.refuse_judge(c, workdir)
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    rows = list({question_of(row.example): row for row in task.train}.values())
    questions = [question_of(row.example) for row in rows]
    by_question = rubrics_of(c.rubric, questions)
    judge_prompts = [text for question in questions for text in judge_prompts_of(by_question[question], "signed")]
    judge = RubricJudge(judges.outside_judge(c, devices, workdir, judge_prompts), by_question, "signed")
    filtered, answered, criteria_before, verdicts, failures, cut = [], [], 0, 0, 0, 0
    for part, answers in policy_answers(task, params, devices, rows, c.rubric.rollouts):
        questions = [question_of(row.example) for row in part]
        answered += [answer is not None for group in answers for answer in group]
        out, met = judge(questions, answers)
        for question, question_met in zip(questions, met, strict=True):
            filtered.append(rubrics.telling(by_question[question], question_met, c.rubric.low, c.rubric.high))
            criteria_before += len(by_question[question].criteria)
            verdicts += question_met.size
            failures += int(np.isnan(question_met).sum())
        cut += out.cut
    judges.close(judge)
    if not any(answered):
        raise UserError(
            f"none of the {len(answered)} replies of the config's model has an answer; give a model that writes the "
            "run's format, such as a fine-tuned run, as model.path"
        )
    if failures == verdicts:
        raise UserError(f"judge.model {c.judge.model!r} failed on all {failures} verdicts; see its messages above")
    useful = [rubric for rubric in filtered if rubrics.suits(rubric, aggregate)]
    refused = sum(bool(rubric.criteria) for rubric in filtered) - len(useful)
    separating = {rubric.prompt for rubric in useful}
    left_out = [rubric._replace(criteria=()) for rubric in filtered if rubric.prompt not in separating]
    left_out += [rubric for rubric in by_question.values() if not rubric.criteria]  # an earlier filter's
    judged_prompts = {rubric.prompt for rubric in filtered}
    not_judged = [r for r in by_question.values() if r.criteria and r.prompt not in judged_prompts]
    rubrics.write_rubrics(path, [*useful, *left_out, *not_judged])
    counts = {"criteria": criteria_before, "criteria_kept": sum(len(r.criteria) for r in useful)}
    counts |= {"failures": failures, "cut": cut, "answered": float(np.mean(answered))}
    questions_out = {"questions": len(filtered), "questions_kept": len(useful), "questions_refused": refused}
    questions_out["not_judged"] = len(not_judged)
    return {**questions_out, **counts, "file": str(path)}


def show(shown: Sequence[Rubric]) -> str:
    """The first rubrics as text."""
    return "\n\n".join(
        "\n".join([rubric.prompt, *(f"  {c.points:+5g}  {c.text}" for c in rubric.criteria)])
        + ("" if rubric.criteria else "\n  left out of training")
        for rubric in shown[:SHOWN]
    )


def main() -> None:
    c, values = build(from_flags()[0]), flags.FLAGS
    if c.reward.judged != "rubric":
        raise UserError(f"reward.name is {c.reward.name!r}; set it to rubric, with judge.model and rubric.path")
    if values.make + values.filter + values.show != 1:
        raise UserError("give one of --make, --filter and --show")
    if values.show:
        say(show(rubrics.read_rubrics(c.rubric.path)))
        return
    workdir = Path(required("workdir", "runs/rubrics"))
    make_folder(workdir)
    print(json.dumps((make if values.make else filter_rubrics)(c, workdir)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of this command's files")
    flags.DEFINE_bool("make", False, "write a rubric for each training question that has none")
    flags.DEFINE_bool("filter", False, "leave out criteria that nearly all or nearly no answers meet")
    flags.DEFINE_bool("show", False, "print the first rubrics")
    run_main(main)
