"""TRACE (2510.01367): the answer scored after none, a quarter, a half, three quarters and all of its chain.

A chain that does its work moves the log-prob of the answer along the way. A flat curve is a chain that does nothing. A
jump at the end is one that states the answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np

PERCENT = (0, 25, 50, 75, 100)
CUTS = PERCENT[1:-1]  # the ends are scored anyway


def cuts(chain: Sequence[int], own: int) -> list[list[int]]:
    """The beginnings of a chain of ids at CUTS, of its first `own` ids, those before any tag."""
    return [list(chain[: round(own * percent / 100)]) for percent in CUTS]


def curves(records: Sequence[Mapping], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of an evaluation: the log-prob per token after each part, and the area between this curve and the
    constant at its start. The area is what a part adds on average. Without a curve in any record there is no column."""
    if not any(r.get("trace") for r in records):
        return {}
    missing = [np.nan] * len(PERCENT)
    curve = np.asarray([r.get("trace") or missing for r in records], float) / tokens[:, None]
    area = np.trapezoid(curve - curve[:, :1], np.asarray(PERCENT) / 100, axis=1)
    return {f"trace@{percent}": x for percent, x in zip(PERCENT, curve.T, strict=True)} | {"trace_area": area}
