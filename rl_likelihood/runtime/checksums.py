"""Checks that a checkpoint is read as it was saved, by checksums of arrays and a read of all files. Orbax notices
missing and truncated files, but not a flipped bit."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import tensorstore
from etils import epath


class DamagedError(Exception):
    """A checkpoint that cannot be read as it was written. The message gives the reason in a few words."""


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """sum_i bits(x_i) (2 i + 1) mod 2^32 over the elements in row order.

    The factors are odd, so that any change of one element changes the sum. They depend on the position, so that
    exchanged elements change it too. Integers make it independent of sharding and of the order of the sum. Positions
    come from one iota per dimension, because a reshape would gather a sharded array.
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
    """The checksum of each array. They are computed one by one, because a device may not hold all of them."""
    return {name: int(checksum(x)) for name, x in arrays.items()}


def digest(params: Any) -> str:
    """Identifies parameters, however they are sharded: sha256 of their checksums."""
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
    return hashlib.sha256(json.dumps(checksums(named)).encode()).hexdigest()


def check_sums(sums: dict[str, int], saved: dict[str, dict]) -> None:
    """DamagedError unless every array has its saved checksum."""
    for name, value in sums.items():
        if value != saved[name]["sum"]:
            raise DamagedError(f"{name} is not what was saved (checksum)")


def check_files(path: epath.Path) -> None:
    """Reads every stored chunk once; each process reads its share.

    Orbax reads chunks in many threads. When one fails, the others print tracebacks that no handler can catch. Here the
    first failure is a single exception.
    """
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"{path}/" if "://" in str(path) else {"driver": "file", "path": f"{path}/"}}
    ).result()
    keys = store.list().result()
    if not keys:
        raise DamagedError(f"{path.name} is empty")
    for key in keys[jax.process_index() :: jax.process_count()]:
        # A chunk whose file is missing reads as empty, without an error. A stored chunk is never empty.
        if not store.read(key).result().value:
            raise DamagedError(f"a file of {path.name} is gone")
