"""The reward `rubric`: a judge's verdicts on the criteria of a question, combined into one number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_likelihood.data import rubrics
from rl_likelihood.data.rubrics import UNIVERSAL, Rubric
from rl_likelihood.rewards.rubric import Kind, RubricSettings, aggregate
from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.local_judge import LocalJudge, Verdicts


@dataclasses.dataclass(frozen=True)
class RubricJudge:
    """Judges answers by the rubrics of their questions. `rubrics`: question -> rubric."""

    judge: LocalJudge | HttpJudge
    rubrics: dict[str, Rubric]
    kind: Kind

    def __call__(
        self, questions: Sequence[str], answers: Sequence[Sequence[str | None]]
    ) -> tuple[Verdicts, list[np.ndarray]]:
        """(a number for each answer [P, G]; how far each criterion is met [P][G, C], NaN without a verdict). A row with
        a missing verdict has no number."""
        own_rubrics = [self.rubrics[question] for question in questions]
        judge_prompts = [judge_prompts_of(rubric, self.kind) for rubric in own_rubrics]
        flat = [text for texts in judge_prompts for text in texts]
        rows = [[(a,) for a in group] for group, texts in zip(answers, judge_prompts, strict=True) for _ in texts]
        out = self.judge(flat, rows)
        numbers = np.where(out.keep, out.values, np.nan)
        met = [x.T for x in np.split(numbers, np.cumsum([len(texts) for texts in judge_prompts])[:-1])]
        max_criteria = max(map(len, judge_prompts))
        padded = np.stack([np.pad(x, ((0, 0), (0, max_criteria - x.shape[1]))) for x in met])
        points = np.zeros((len(own_rubrics), max_criteria))
        for i, rubric in enumerate(own_rubrics):
            points[i, : met[i].shape[1]] = [c.points for c in rubric.criteria][: met[i].shape[1]]
        total = aggregate(np.nan_to_num(padded), points, self.kind)
        keep = np.isfinite(padded).all(-1) & total.valid[:, None]
        return Verdicts(total.values.astype(np.float32), keep, out.cut), met

    def verdicts(self, question: str, met: np.ndarray) -> list[list[dict[str, Any]]]:
        """The verdicts on each answer to a question, as samples.jsonl stores them."""
        criteria = self.rubrics[question].criteria
        if self.kind == "implicit":
            return [[{"mark": _number(x)} for x in row] for row in met]
        return [
            [{"criterion": c.text, "points": c.points, "met": _number(x)} for c, x in zip(criteria, row, strict=True)]
            for row in met
        ]


def _number(x: float) -> float | None:
    return round(float(x), 4) if np.isfinite(x) else None


def judge_prompts_of(rubric: Rubric, kind: Kind) -> list[str]:
    """The texts that the judge reads before an answer: the question with each criterion, or with all criteria."""
    question = f"Question:\n{rubric.prompt}\n\n"
    if kind == "implicit":
        return [question + "Criteria, with what each is worth:\n" + "\n".join(map(_line, rubric.criteria))]
    return [f"{question}Criterion:\n{c.text}" for c in rubric.criteria]


def _line(criterion: rubrics.Criterion) -> str:
    return f"* {criterion.text} ({criterion.points:+g})"


def rubrics_of(r: RubricSettings, questions: Sequence[str]) -> dict[str, Rubric]:
    """The file's rubrics by question. UserError if a question has none, or if one does not suit rubric.aggregate."""
    by_question = rubrics.by_question(r.path, questions)
    rubrics.refuse([*by_question.values()], r.aggregate)
    if r.aggregate == "checklist":
        return {q: row._replace(criteria=(*row.criteria, UNIVERSAL)) for q, row in by_question.items()}
    return by_question
