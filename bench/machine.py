"""The limits of this machine, measured in the same run: the rate of matrix products and of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIDE = 2048  # of the square matrices
TIMES = 12  # repetitions in one call: after other work, the first one or two take a third longer
BYTES = 2**28  # of the array that is scaled: far more than the caches hold


def limits() -> dict[str, Callable[[], Any]]:
    """Calls to time beside the workloads: `matrix` multiplies square matrices, `memory` reads and writes an array."""
    a = jax.random.normal(jax.random.key(0), (SIDE, SIDE))

    @jax.jit
    def products(a):
        return jax.lax.fori_loop(0, TIMES, lambda _, x: (x @ a) * 1e-2, a)

    @functools.partial(jax.jit, donate_argnums=0)
    def scaled(x):  # in place: new pages would cost more than the traffic
        return jax.lax.fori_loop(0, TIMES, lambda _, x: x * 1.0001, x)

    held = [jnp.ones(BYTES // 4)]

    def memory():
        held[0] = scaled(held[0])
        return held[0]

    return {"matrix": lambda: products(a), "memory": memory}


def matrix_rate(seconds: float) -> float:
    """FLOP/s of a call of `matrix`."""
    return TIMES * 2 * SIDE**3 / seconds


def memory_rate(seconds: float) -> float:
    """Bytes/s, read and written, of a call of `memory`."""
    return TIMES * 2 * BYTES / seconds
