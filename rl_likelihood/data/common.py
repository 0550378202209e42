"""The ids with which all prompts of a run begin: usually the instruction and worked examples. Computed once."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# Fewer ids are not worth a forward of their own.
LEAST = 16


def common_ids(prompts: Sequence[np.ndarray]) -> Int[np.ndarray, "_"]:
    """The longest common beginning that leaves each prompt an id of its own; empty if it is short."""
    if not prompts:
        return np.zeros(0, np.int32)
    width = min(map(len, prompts)) - 1
    equal = np.all([ids[:width] == prompts[0][:width] for ids in prompts], 0)
    ids = prompts[0][: width if equal.all() else int(equal.argmin())]
    return ids if len(ids) >= LEAST else ids[:0]


def all_begin_with(prompts: Sequence[np.ndarray], ids: np.ndarray) -> bool:
    """Whether every prompt begins with these ids and goes on."""
    n = len(ids)
    return all(len(prompt) > n and np.array_equal(prompt[:n], ids) for prompt in prompts)
