"""Win rate of one model over another: python -m rl_likelihood.winrate --a=RUN|FILE --b=RUN|FILE --judge=MODEL

A and B are workdirs with an evaluation, or JSON-lines files with prompt and answer; one of them also needs reference.
The judge is a model's name, folder or .gguf file, a reward model's workdir, or an address that speaks OpenAI's chat
protocol, with --judge_name (the API key is in the environment variable JUDGE_API_KEY). It sees each pair of answers in
both orders.

First the judge is tested: it compares reference answers with reference answers to other questions, and with their own
first halves. If either accuracy is not above chance, there is no win rate, and the exit status is 2. The output also
has the accuracy of a judge that always prefers the longer answer. Prints one JSON object and appends it to --out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from rl_likelihood.cli.command import required, run_main
from rl_likelihood.data.judged_text import BETTER, JudgeSettings, Names, refuse_long
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import winrate
from rl_likelihood.evaluation.answers import Answered, common, read_answers, shuffled, truncated
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.local_judge import LocalJudge, Verdicts, local_judge, reader_of
from rl_likelihood.runtime import run_files

LOSERS = {"shuffled": "another question's", "truncated": "its own first half"}  # what calibration compares with
NAMES = Names("--judge", "--template", "--")
# (P questions, P pairs of answers) -> Verdicts: the preference for the first answer [P], and which pairs were judged.
Compare = Callable[[Sequence[str], Sequence[tuple[str, str]]], Verdicts]


def preference(judge: LocalJudge | HttpJudge, questions: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Verdicts:
    """A judge's preference for the first answer of each pair. A reward model scores each answer by itself."""
    if isinstance(judge, LocalJudge) and judge.params.head is not None:
        out = judge(questions, [[(first,), (second,)] for first, second in pairs])
        return Verdicts(winrate.sigmoid(out.values[:, 0] - out.values[:, 1]), out.keep.all(1), out.cut)
    out = judge(questions, [[pair] for pair in pairs])
    return Verdicts(out.values[:, 0], out.keep[:, 0], out.cut)


def both_orders(
    compare: Compare, questions: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(the preference for A when A is first, the preference for B when B is first, counts of failures and cut rows).
    Preferences are NaN for pairs without a verdict in both orders."""
    a_first = compare(questions, list(zip(a, b, strict=True)))
    b_first = compare(questions, list(zip(b, a, strict=True)))
    keep = a_first.keep & b_first.keep
    return (
        np.where(keep, a_first.values, np.nan),
        np.where(keep, b_first.values, np.nan),
        {"failures": int((~a_first.keep).sum() + (~b_first.keep).sum()), "cut": a_first.cut + b_first.cut},
    )


def refuse_no_references(pairs: Sequence[tuple[Answered, Answered]]) -> None:
    """UserError if there are no two reference answers to measure the judge with."""
    if len({x.reference or y.reference for x, y in pairs if (x.reference or y.reference).strip()}) < 2:
        raise UserError(
            "--a and --b have no reference answers to measure the judge with; give one of them a field reference"
        )


def calibrate(compare: Compare, rows: Sequence[Answered]) -> dict[str, Any]:
    """How often the judge prefers a reference answer to another question's reference, and to its own first half."""
    rows = [row for row in rows if row.reference.strip()]
    questions, references = [row.prompt for row in rows], [row.reference for row in rows]
    out: dict[str, Any] = {}
    for name, losers in (("shuffled", shuffled(references)), ("truncated", [truncated(r) for r in references])):
        pairs = [
            i
            for i, (reference, other) in enumerate(zip(references, losers, strict=True))
            if other.strip() and reference.strip() != other.strip()
        ]
        if not pairs:
            raise UserError(
                "the reference answers of --a and --b are of one word each, so they have no first half to measure the "
                "judge with; give longer ones"
            )
        chosen, rejected = [references[i] for i in pairs], [losers[i] for i in pairs]
        first, second, lost = both_orders(compare, [questions[i] for i in pairs], chosen, rejected)
        judged = np.isfinite(first)
        if not judged.any():
            raise UserError("--judge failed on every pair that it is measured with; see its messages above")
        longer = np.sign([len(x) - len(y) for x, y in zip(chosen, rejected, strict=True)])[judged]  # 1, -1; 0: a tie
        length_only = {"length_only": float((longer + 1).mean() / 2)}
        out[name] = winrate.accuracy(first[judged], second[judged]) | length_only | lost
    return out


def measured(compare: Compare, a: dict[str, Answered], b: dict[str, Answered]) -> dict[str, Any]:
    """The judge's accuracies, and the win rate if the judge is above chance."""
    pairs = common(a, b)
    judge = calibrate(compare, [x._replace(reference=x.reference or y.reference) for x, y in pairs])
    for name, loser in LOSERS.items():
        tested, (low, high) = judge[name], judge[name]["ci95"]
        if not low > 0.5:  # also for NaN
            cut = f"{tested['cut']} comparisons had a cut answer, so raise --max_row, or " if tested["cut"] else ""
            refusal = (
                f"no win rate: the judge prefers a reference answer to {loser} in {100 * tested['accuracy']:.1f} % "
                f"of {tested['pairs']} pairs (95 % interval {100 * low:.1f} to {100 * high:.1f}), which is not "
                f"above chance; {cut}take another judge"
            )
            return {"judge": judge, "refused": refusal}
    answers_a, answers_b = [x.answer for x, _ in pairs], [y.answer for _, y in pairs]
    first, second, lost = both_orders(compare, [x.prompt for x, _ in pairs], answers_a, answers_b)
    judged = np.isfinite(first)
    if judged.sum() < 2:
        failed = len(judged) - judged.sum()
        raise UserError(f"--judge failed on {failed} of {len(judged)} pairs; see its messages above")
    sides = {"a": answers_a, "b": answers_b}
    lengths = [np.asarray([len(x) for x in side], float)[judged] for side in sides.values()]
    answered = {f"answered_{name}": float(np.mean([bool(x.strip()) for x in side])) for name, side in sides.items()}
    return {"judge": judge, **winrate.summary(first[judged], second[judged], *lengths), **answered, **lost}


def measured_by_server(remote: HttpJudge, a: dict[str, Answered], b: dict[str, Answered]) -> dict[str, Any]:
    """`measured` by a server's judge, with the calls and tokens of this command. Closes its connections."""
    remote.endpoint.refuse_unreachable()
    before = remote.endpoint.spent  # of earlier commands with this cache
    out = measured(functools.partial(preference, remote), a, b)
    calls, tokens = (now - then for now, then in zip(remote.endpoint.spent, before, strict=True))
    remote.close()
    return out | {"calls": calls, "tokens": tokens, "failed": dict(remote.endpoint.failures)}


def main() -> None:
    values = flags.FLAGS
    for name, example in (("a", "runs/first"), ("b", "runs/second"), ("judge", "smollm2-135m-instruct")):
        required(name, example)
    a, b = (read_answers(values[name].value, name) for name in ("a", "b"))
    refuse_no_references(common(a, b))
    form = BETTER.after(values.task)
    if "://" in values.judge:
        settings = JudgeSettings(values.judge, name=values.judge_name, max_calls=values.max_calls)
        endpoint = Endpoint(settings, values.cache or ":memory:", "--judge", "--judge_name", "--")
        out = measured_by_server(HttpJudge(endpoint, form), a, b)
    else:
        described = (values.judge, form, values.max_prompt, values.max_row, values.template, NAMES)
        reader = reader_of(*described)[0]
        if values.task and not reader.form.ask:
            raise UserError(f"--task is {values.task!r}, but --judge is a reward model, which reads none; leave it out")
        refuse_long(reader, [x.prompt for x, _ in common(a, b)])
        local = local_judge(*described)
        out = measured(functools.partial(preference, local), a, b)
    row = {"step": 0, "a": values.a, "b": values.b, "by": values.judge, **out}
    print(json.dumps(row))  # first: --out may not be writable
    if values.out:
        run_files.append(values.out, row)
    if "refused" in out:
        raise UserError(out["refused"])


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("a", None, "the model whose wins are counted: a workdir, or a file of answers")
    flags.DEFINE_string("b", None, "what it is compared with")
    flags.DEFINE_string("judge", None, "a model's name, folder or file, a reward model's workdir, or an address")
    flags.DEFINE_string("judge_name", "", "the model's name at the judge's address")
    flags.DEFINE_string("task", "", "a text that explains the task, which the judge reads before each question")
    most = "the most calls to the judge's address of all commands with this --cache; 0: no limit"
    flags.DEFINE_integer("max_calls", 0, most, lower_bound=0)
    flags.DEFINE_string("cache", "winrate.sqlite", "file that stores an address's verdicts; empty: none")
    flags.DEFINE_enum("template", "model", ["model", "plain"], "the judge's chat template: its own (model), or plain")
    flags.DEFINE_integer("max_prompt", 512, "maximum tokens of a question in the judge's template", lower_bound=1)
    flags.DEFINE_integer("max_row", 512, "maximum tokens of both answers; longer answers are cut", lower_bound=8)
    flags.DEFINE_string("out", "winrate.jsonl", "file that gets the numbers; empty: none")


if __name__ == "__main__":
    define_flags()
    run_main(main, config_file=False)
