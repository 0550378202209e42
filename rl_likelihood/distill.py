"""Chains of a teacher: python -m rl_likelihood.distill --config=... --workdir=DIR --config.distill.teacher=...

The teacher is a server that speaks OpenAI's chat protocol, or any model that model.path accepts. It answers each
training question. DIR/distill.jsonl has the chains whose answer the grader calls right or, with
distill.accept=likelihood, the chains that make the reference likelier. Its rows are for warm_start.chains=given and
reward.sft_chain. DIR/heldout.jsonl has the held-out questions, DIR/dropped.jsonl the training questions without an
accepted chain and the reasons. After Ctrl-C or a kill, the same command resumes and repeats no request. The config
group `judge` has the settings of a server (limits, the API key's variable).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from rl_likelihood.cli.command import define_processes, from_flags, required, run_main
from rl_likelihood.config import build
from rl_likelihood.data.judged_text import question_of
from rl_likelihood.data.prompts import INSTRUCTION
from rl_likelihood.errors import UserError
from rl_likelihood.progress import Progress
from rl_likelihood.rollouts.endpoint import of_first
from rl_likelihood.rollouts.host_rewards import grader_pool
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import make_devices, sampler_weights
from rl_likelihood.search.folder import claimed, refuse_no_chat, row_of, write_results
from rl_likelihood.search.proposer import (
    Ask,
    Drawing,
    Length,
    asked_ids,
    asks_of,
    model_proposer,
    with_all_positions,
    with_model,
)
from rl_likelihood.search.rounds import Finder, Journal
from rl_likelihood.search.teacher import chosen, http_proposer, parsed
from rl_likelihood.settings import Config
from rl_likelihood.task import Task, load

DISTILL = "distill.jsonl"


def main() -> None:
    values, _ = from_flags()
    workdir = Path(required("workdir", "runs/teacher"))
    with claimed(build(values), workdir, finder) as f:
        distill(f, workdir)


def finder(c: Config, workdir: Path) -> Finder:
    """The teacher, the questions, and the config's model, which scores with distill.accept=likelihood."""
    d = c.distill
    if not d.teacher:
        raise UserError("distill.teacher is empty; name a model or the address of a server, as http://HOST:PORT/v1")
    if d.accept == "grader" and c.eval.grader == "none":
        raise UserError("eval.grader is none, but distill.accept is 'grader'; name a grader or accept by likelihood")
    refuse_no_chat(c, "distill")
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    task = with_all_positions(task)  # a teacher's chains may be longer than the model's own
    failed = lambda: ""
    if "://" in d.teacher:
        endpoint = of_first(c.judge, d.teacher, d.name, workdir, "distill.teacher", "distill.name")
        failed = endpoint.failed
        propose = http_proposer(endpoint, Drawing(d.temperature), task.fmt)
    else:
        teacher_task, weights = with_model(task, "distill.teacher", devices.learner)
        refuse_too_long(teacher_task)
        weights = sampler_weights(weights, teacher_task.model, devices)
        propose = model_proposer(teacher_task, weights, Drawing(d.temperature))
    return Finder(task, params, asks_of(task), propose, Journal(workdir), devices, say=say, failed=failed)


def asks_teacher(task: Task, questions: Sequence[int]) -> list[Ask]:
    """The requests for chains and answers to these questions."""
    instruction = task.config.prompt.instruction or INSTRUCTION
    return [Ask(i, f"{instruction}\n\n{question_of(task.train[i].example)}", "") for i in questions]


def refuse_too_long(teacher: Task) -> None:
    """UserError if a question and a reply to it have more tokens than a local teacher has positions."""
    d, positions = teacher.config.distill, teacher.model.max_position
    longest = max(len(asked_ids(teacher, ask)) for ask in asks_teacher(teacher, range(len(teacher.train))))
    if longest + d.max_new > positions:
        raise UserError(
            f"distill.max_new is {d.max_new} and the longest question has {longest} tokens, but the teacher "
            f"(distill.teacher={d.teacher}) has {positions} positions; set distill.max_new to "
            f"{max(1, positions - longest)} or less, or name a teacher with more positions"
        )


def distill(f: Finder, workdir: Path) -> None:
    """Gets the teacher's missing replies, then writes the chains and the dropped questions."""
    c, n = f.task.config, len(f.task.train)
    length = Length(c.distill.replies, f.task.fmt.answer_close + ">", c.distill.max_new)
    answered = f.journal.of("teacher", 0)
    for i in [i for i, line in answered.items() if len(line["replies"]) < c.distill.replies]:
        del answered[i]  # repeats failed calls; those that did not fail are in the cache

    def make(part: list[int]) -> list[dict[str, Any]]:
        return [{"replies": group} for group in f.replies(asks_teacher(f.task, part), 0, length)]

    with Progress("asked the teacher", n, "questions", f.say, done=len(answered)) as progress:
        lines = f.each("teacher", 0, range(n), make, progress.advance)
    good: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    by_grader = c.distill.accept == "grader"
    with (
        grader_pool(c) if by_grader else contextlib.nullcontext() as grades,
        Progress("graded the replies to" if by_grader else "scored the replies to", n, "questions", f.say) as progress,
    ):
        for start in range(0, n, f.size):
            part = list(range(start, min(start + f.size, n)))
            replies = [[r for text in lines[i]["replies"] if (r := parsed(text, f.task.fmt))] for i in part]
            for i, group, (reply, why) in zip(part, replies, chosen(f, part, replies, grades), strict=True):
                row = row_of(f.task.train[i].example)
                if reply is not None:
                    good.append(row | {"chain": reply[0], "teacher_answer": reply[1]})
                else:
                    unread = "not in the format" if lines[i]["replies"] else "no reply"
                    dropped.append(row | {"dropped": why if group else unread})
            progress.advance(len(part))
    reasons = write_results(workdir, DISTILL, good, dropped, f.task)
    f.say_failed()
    f.say(f"{len(good)} chains in {workdir / DISTILL}; dropped {len(dropped)}{reasons}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder for the chains; an existing one resumes")
    define_processes()
    run_main(main)
