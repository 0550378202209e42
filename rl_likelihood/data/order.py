"""The order in which a run uses its questions, and batches of fixed size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from rl_likelihood.errors import UserError


def order(n: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """A function step -> row indices [batch] (int64) into n rows. An epoch has every row once, in a new order.

    The step is the only state, so a resumed run continues with the right row. A step may span two epochs.
    """
    if n < 1 or batch < 1:
        raise UserError(f"{batch} prompts a step from {n} training questions is not possible; both must be at least 1")
    import grain  # here because it takes over a second to import

    stream = grain.MapDataset.range(n).shuffle(seed=seed).repeat()  # repeat() gives each epoch its own seed

    @functools.lru_cache(maxsize=8)  # a step asks several times
    def indices(step: int) -> np.ndarray:
        return np.asarray([stream[step * batch + j] for j in range(batch)], dtype=np.int64)

    return indices


def in_batches(rows: list, size: int) -> Iterator[tuple[int, list]]:
    """Yields (index of the first row, rows) for batches of exactly `size` rows, so that one program serves all. Copies
    of the last row fill the last batch."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield start, part + part[-1:] * (size - len(part))
