"""Combines a judge's verdicts on the criteria of a rubric into one number per row."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rl_likelihood.fields import field

Kind = Literal["signed", "healthbench", "rar", "checklist", "implicit"]


@dataclasses.dataclass(frozen=True)
class RubricSettings:
    """The rubrics of the reward `rubric`, and how python -m rl_likelihood.rubrics makes them."""

    path: str = field("", "file of rubrics, one for each training question, in HealthBench's format")
    aggregate: Kind = field("healthbench", "how verdicts become a number (docs/judges.md)")
    writer: str = field("", "the model that writes rubrics: as in model.path, or a server; empty: judge.model")
    writer_name: str = field("", "the model's name on that server; empty: judge.name")
    seeds: str = field("", "file of rubrics that the writer is shown examples from")
    retriever: Literal["bm25", "decoder", "http", "bm25+decoder", "bm25+http"] = field(
        "bm25",
        "how similar examples are found: shared words, hidden states of the writer, its server's embeddings; +: both",
    )
    store: str = field("numpy", "what compares vectors: numpy, faiss, or milvus:FILE_OR_ADDRESS")
    cases: int = field(3, "similar questions shown to the writer, with their rubrics", least=0)
    pool: int = field(15, "similar criteria shown to the writer", least=0)
    items: int = field(12, "maximum criteria of a rubric", least=1)
    max_new: int = field(768, "maximum tokens of a written rubric", least=16)
    rollouts: int = field(8, "answers per question that --filter samples and judges", least=1)
    low: float = field(0.05, "--filter drops criteria met by a smaller share of the answers", least=0, most=1)
    high: float = field(0.95, "--filter drops criteria met by a larger share of the answers", least=0, most=1)


class Aggregated(NamedTuple):
    """`values`: each row's number. `valid`: prompts whose criteria allow such a number; elsewhere it is 0."""

    values: Float[np.ndarray, "P G"]
    valid: Bool[np.ndarray, "P"]


def aggregate(met: Float[np.ndarray, "P G C"], points: Float[np.ndarray, "P C"], kind: Kind) -> Aggregated:
    """One number per row from P rubrics with up to C criteria.

    `met`: how far each criterion is met, from 0 to 1. `points`: its points; 0 marks padding.

    signed: the sum of the points of met criteria (ORBIT). healthbench: that sum over the sum of all positive points.
    rar, checklist: the same formula, where all points are positive: a weighted mean. implicit: `met[..., 0]`, the
    judge's one mark for all criteria.
    """
    if kind == "implicit":
        return Aggregated(met[..., 0], (points != 0).any(-1))
    total = (met * points[:, None]).sum(-1)
    if kind == "signed":
        return Aggregated(total, (points != 0).any(-1))
    attainable = np.maximum(points, 0).sum(-1)
    return Aggregated(
        total / np.where(attainable > 0, attainable, 1)[:, None] * (attainable > 0)[:, None], attainable > 0
    )
