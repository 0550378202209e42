"""Checks that a checkpoint is read as it was saved: checksums of arrays, and whether files are there. Orbax notices
missing and cut files, but not a flipped bit."""

from typing import Any

import jax
import jax.numpy as jnp
import tensorstore
from etils import epath


class DamagedError(Exception):
    """A checkpoint that cannot be read as it was written; the message says why in a few words."""


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """sum_i bits(x_i) (2 i + 1) mod 2^32 over the elements in row order.

    Odd factors, so a change of one element, whichever bit, always shows; positions, so that exchanged
    elements do; integers, so that neither sharding nor the order of the sum matters. A position is made from
    one iota a dimension, not from a reshape, which would gather a sharded array.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.itemsize])
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for i in reversed(range(bits.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[i]
    return jnp.sum(bits.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """One array at a time: host arrays pass through a device that may not hold all of them."""
    return {name: int(checksum(x)) for name, x in arrays.items()}


def check_sums(sums: dict[str, int], saved: dict[str, dict]) -> None:
    """DamagedError unless every array's checksum is the saved one."""
    for name, value in sums.items():
        if value != saved[name]["sum"]:
            raise DamagedError(f"{name} is not what was saved (checksum)")


def check_files(path: epath.Path) -> None:
    """Reads every stored chunk once, this process its share of them.

    Orbax reads chunks in many threads; when one fails the others print tracebacks of their own, past every
    handler. Here the first failure is one exception.
    """
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"{path}/" if "://" in str(path) else {"driver": "file", "path": f"{path}/"}}
    ).result()
    keys = store.list().result()
    if not keys:
        raise DamagedError(f"{path.name} is empty")
    for key in keys[jax.process_index() :: jax.process_count()]:
        # A chunk whose file is gone reads as empty, without an error; a stored one never is.
        if not store.read(key).result().value:
            raise DamagedError(f"a file of {path.name} is gone")
