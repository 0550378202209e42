"""Answers of a model to compare with another's: from a run's evaluation, or from a file."""

import random
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.data.records import records, refuse_no_text
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.records import FOLDER
from rl_likelihood.evaluation.statistics import read_records
from rl_likelihood.runtime import run_files


class Answered(NamedTuple):
    """A question, what was answered, and the reference answer ("" without one)."""

    prompt: str
    answer: str
    reference: str


def read_answers(path: str, flag: str) -> dict[str, Answered]:
    """Answers by question: the greedy ones of a workdir's last evaluation, or a file's rows with prompt (or
    instruction) and answer (or output), and a reference where there is one. UserError names `flag`."""
    if Path(path).is_dir():
        answers = _of_run(Path(path), flag)
    elif Path(path).is_file():
        answers = [_of_row(record, f"--{flag}={at}") for at, record in records(path, Path(path).read_bytes())]
    else:
        raise UserError(f"--{flag}={path} is neither a run's folder nor a file; give one of them")
    if not answers:
        raise UserError(f"--{flag}={path} holds no answers")
    by_prompt = {a.prompt: a for a in answers}
    if len(by_prompt) < len(answers):
        raise UserError(f"--{flag}={path} answers a question twice; keep one of the answers")
    return by_prompt


def common(a: dict[str, Answered], b: dict[str, Answered]) -> list[tuple[Answered, Answered]]:
    """Both answers to every question that both have, in the order of `a`."""
    pairs = [(answer, b[prompt]) for prompt, answer in a.items() if prompt in b]
    if len(pairs) < 2:
        raise UserError(f"--a and --b have {len(pairs)} questions in common; a comparison needs at least 2")
    for flag, side in (("a", a), ("b", b)):
        if not any(side[answer.prompt].answer.strip() for answer, _ in pairs):
            raise UserError(
                f"--{flag} has no answer to any of the {len(pairs)} common questions; give a model that writes answers "
                "in its run's format"
            )
    return pairs


def shuffled(references: list[str]) -> list[str]:
    """Each reference answer replaced by another question's, a different text where there is one."""
    others = list(references)
    random.Random(0).shuffle(others)
    for i, own in enumerate(references):
        if others[i] == own:
            j = next((j for j, x in enumerate(others) if x != own and references[j] != others[i]), i)
            others[i], others[j] = others[j], others[i]
    return others


def truncated(reference: str) -> str:
    """The first half of an answer's words."""
    words = reference.split()
    return " ".join(words[: len(words) // 2])


def _of_run(workdir: Path, flag: str) -> list[Answered]:
    path = workdir / run_files.EVAL
    rows = run_files.read(path) if path.exists() else []
    paths = [row["records"] for row in rows if row.get("records", "").startswith(FOLDER)]
    if not paths:
        raise UserError(f"--{flag}={workdir} has no evaluation with records; evaluate the run first")
    own = read_records(str(workdir / paths[-1]))[1]
    if any("answer" not in row["greedy"] for row in own):
        raise UserError(
            f"--{flag}={workdir} has no sampled answers in its last evaluation: eval.grader was none, or its questions "
            "are whole conversations; set another grader, or give a file of answers"
        )
    return [Answered(row["prompt"], row["greedy"]["answer"] or "", row["reference"]) for row in own]


def _of_row(record: object, where: str) -> Answered:
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record}")
    refuse_no_text(record, where)
    values = []
    for names in (("prompt", "instruction"), ("answer", "output"), ("reference",)):
        value = next((record[name] for name in names if name in record), "" if names == ("reference",) else None)
        if not isinstance(value, str):
            raise UserError(f"{where}: field {' or '.join(map(repr, names))} must be text")
        values.append(value)
    return Answered(*values)
