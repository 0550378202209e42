"""The ids with which all prompts of a run begin: the instruction and the worked examples. They are computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# Fewer ids are not worth a forward of their own.
LEAST = 16


def common_ids(probes: Sequence[np.ndarray], prompts: Sequence[np.ndarray]) -> Int[np.ndarray, "_"]:
    """The longest common beginning of `probes`, prompts whose questions differ from the first character on. It is empty
    if it is short, or if not all prompts begin with it and go on."""
    width = min(len(ids) for ids in (*probes, *prompts)) - 1
    equal = np.all([ids[:width] == probes[0][:width] for ids in probes], 0)
    ids = probes[0][: width if equal.all() else int(equal.argmin())]
    return ids if len(ids) >= LEAST and all_begin_with(prompts, ids) else ids[:0]


def all_begin_with(prompts: Sequence[np.ndarray], ids: np.ndarray) -> bool:
    """Whether every prompt begins with these ids and goes on."""
    n = len(ids)
    return all(len(prompt) > n and np.array_equal(prompt[:n], ids) for prompt in prompts)
