"""In which order a run sees its questions, and questions in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from rl_likelihood.shapes import UserError


def order(n: int, batch: int, seed: int, host: int = 0, hosts: int = 1) -> Callable[[int], np.ndarray]:
    """step -> row indices [batch / hosts] (int64) into n rows: every row once an epoch, each epoch in a new order.

    Random access by step: the step is all the state there is, and a resumed run goes on with the very row. A step may
    span two epochs. Of `hosts` processes each takes its own part of every step's rows; the parts of all, in the order
    of their numbers, are the rows of one process alone.
    """
    if n < 1 or batch < 1:
        raise UserError(f"{batch} prompts a step from {n} training questions is not possible; both must be at least 1")
    if batch % hosts or not 0 <= host < hosts:
        raise UserError(
            f"train.prompts_per_step = {batch} cannot be shared evenly by {hosts} processes (this is number {host}); "
            f"set it to a multiple of {hosts}"
        )
    import grain  # here because it takes over a second to import

    stream = grain.MapDataset.range(n).shuffle(seed=seed).repeat()  # repeat() gives each epoch its own seed
    part = batch // hosts

    def rows_of(step: int) -> np.ndarray:
        first = step * batch + host * part
        return np.asarray([stream[first + j] for j in range(part)], dtype=np.int64)

    return rows_of


def in_batches(rows: list, size: int) -> Iterator[tuple[int, list]]:
    """(index of its first row, rows) of batches of exactly `size`, which need one program. The last row fills up the
    last batch."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield start, part + part[-1:] * (size - len(part))
