"""From verdicts on the criteria of a rubric to one number a row."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Kind = Literal["signed", "healthbench", "rar", "checklist", "implicit"]


class Aggregated(NamedTuple):
    """Each row's number, and which prompts have criteria that it can be made of; the others' numbers are 0."""

    values: Float[np.ndarray, "P G"]
    there: Bool[np.ndarray, "P"]


def aggregate(met: Float[np.ndarray, "P G C"], points: Float[np.ndarray, "P C"], kind: Kind) -> Aggregated:
    """`met`: how far each criterion holds, 0 to 1; `points`: what it is worth. A criterion of 0 points is padding.

    signed: the points of what holds (ORBIT). healthbench: of all points that there are to win. rar, checklist: the
    weighted mean, of criteria that are all good. implicit: one mark for all criteria.
    """
    if kind == "implicit":
        return Aggregated(met[..., 0], (points != 0).any(-1))
    total = (met * points[:, None]).sum(-1)
    if kind == "signed":
        return Aggregated(total, (points != 0).any(-1))
    most = np.maximum(points, 0).sum(-1)
    return Aggregated(total / np.where(most > 0, most, 1)[:, None] * (most > 0)[:, None], most > 0)
