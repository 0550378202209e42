"""Plans where the tokens of a batch are stored, so that padding is not computed. Numpy, on the host.

The learner copies the real tokens of a micro-batch into a pool of fixed size (model/pool.py). The pool must hold the
micro-batch with the most tokens, so prompts are distributed to give all micro-batches about equally many tokens. For
attention, several chains of a prompt share a row, which is as wide as the longest chain. Chains are assigned to rows by
first fit, the longest chain first. With the splash kernel each chain keeps an attention row of its own; only matrix
products and the vocabulary are packed.

All sizes are rounded up to a few values, so that few programs are compiled. They depend on the lengths in the batch
only, so a resumed run computes the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import ENOUGH, prompts_per_forward
from rl_likelihood.mesh import on_cpu, row_shards
from rl_likelihood.shapes import PAD, WIDTHS, Batch, Packing, rounded

# How many sizes there are between a number and its double (shapes.rounded). Pools have more, because the pool's size is
# the work of all matrix products; the number of rows only adds padding in attention.
POOLS, ROWS = 8, 2


def real_tokens(batch: Batch) -> Int[np.ndarray, "P G"]:
    """The number of tokens in each row (chain and answers), without padding."""
    tokens = (np.asarray(batch.segment) != PAD).sum(-1)
    if batch.alternatives is not None:
        tokens = tokens + (np.asarray(batch.alternatives.answer) > 0).sum(-1)[:, None]
    return tokens


def first_fit(lengths: Int[np.ndarray, "G"], width: int) -> tuple[Int[np.ndarray, "G"], int]:
    """(flat start of each chain in rows of `width` tokens, number of rows). The longest chain is placed first. Each
    goes to the first row with enough free tokens. No chain is cut."""
    used: list[int] = []
    start = np.zeros(len(lengths), np.int32)
    for i in np.argsort(-lengths, kind="stable"):
        row = next((r for r, n in enumerate(used) if n + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        start[i] = row * width + used[row]
        used[row] += int(lengths[i])
    return start, max(1, len(used))


def balanced(tokens: Int[np.ndarray, "P"], parts: int) -> Int[np.ndarray, "P"]:
    """An order of the prompts in which k = `parts` micro-batches have about equally many tokens. Micro-batch j takes
    positions j, j + k, j + 2k, ... The largest prompt is assigned first, each to the micro-batch with the fewest tokens
    among those that are not full."""
    order: list[list[int]] = [[] for _ in range(parts)]
    total, size = np.zeros(parts, np.int64), len(tokens) // parts
    for i in np.argsort(-tokens, kind="stable"):
        part = min((j for j in range(parts) if len(order[j]) < size), key=lambda j: total[j])
        order[part].append(int(i))
        total[part] += tokens[i]
    return np.array(order, np.int32).T.reshape(-1)


def packed_prompts(batch: Batch, cfg: StepConfig, total: int, mean: float) -> int:
    """Prompts per micro-batch, of `total` in the step: as `step.prompts_per_forward`. On one CPU, where that limits
    padded tokens, this limits real tokens instead (`mean` per prompt, rounded up)."""
    if cfg.micro_batch_prompts or not on_cpu() or row_shards() > 1:
        return cfg.micro_batch_prompts or total
    _, g, t = batch.completion.shape
    size, tokens = prompts_per_forward(batch, cfg), rounded(math.ceil(mean), WIDTHS, g * t)
    limit = max(ENOUGH, size * g * t)
    return max(k for k in range(1, total + 1) if total % k == 0 and (k <= size or k * tokens <= limit))


def alternative_tokens(batch: Batch) -> int:
    """Tokens of the alternative answers, which follow every row."""
    return 0 if batch.alternatives is None else batch.alternatives.tokens.shape[-1]


def resized(batch: Batch, width: int) -> Batch:
    """The batch with rows of `width` tokens: padding is added or removed. A packed batch does not compute it."""

    def fit(x):
        x = np.asarray(x)[..., :width]
        return np.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])

    resized_fields = {name: fit(getattr(batch, name)) for name in ("completion", "segment", "scored", "sampler_logp")}
    return batch.replace(**resized_fields)


class Whole(NamedTuple):
    """The global batch of which a process has a part.

    `prompts`: the global indices of this process's prompts; `total`: prompts in the global batch; `width`: tokens of
    the widest row that is allowed; `largest`: the elementwise maximum of a list of numbers over all processes.
    """

    prompts: Int[np.ndarray, "_"]
    total: int
    width: int
    largest: Callable[[list[int]], list[int]] = list


def pack(batch: Batch, cfg: StepConfig, shared: bool = True, whole: Whole | None = None) -> Batch:
    """The batch with its packing, for the mesh in use.

    `shared` False: each chain has an attention row of its own, as the splash kernel requires. `whole`: the global
    batch; by default `batch` is all of it.
    """
    lengths = real_tokens(batch)
    (p, g), tokens, shards = lengths.shape, lengths.sum(-1), row_shards()
    whole = whole or Whole(np.arange(p), p, batch.completion.shape[-1])
    size = packed_prompts(batch, cfg, whole.total, float(tokens.mean()))
    parts, device_prompts = whole.total // size, whole.total // shards  # micro-batches; prompts of a device
    row_ends = (np.asarray(batch.segment) != PAD) * np.arange(1, batch.completion.shape[-1] + 1)
    (longest,) = whole.largest([int(row_ends.max())])
    batch = resized(batch, rounded(longest, WIDTHS, max(whole.width, batch.completion.shape[-1])))
    width = batch.completion.shape[-1] + alternative_tokens(batch)
    fits = [first_fit(row, width) if shared else (np.arange(g, dtype=np.int32) * width, g) for row in lengths]
    orders = [i + balanced(tokens[i : i + device_prompts], parts) for i in range(0, p, device_prompts)]
    pools = [tokens[order].reshape(-1, parts).sum(0).max() for order in orders]
    tokens_needed, rows_needed = whole.largest([int(max(pools)), max(n for _, n in fits)])
    return batch.replace(
        packing=Packing(
            start=np.stack([start for start, _ in fits]),
            order=None if parts == 1 else whole.prompts[np.concatenate(orders)].astype(np.int32),
            prompts=size,
            tokens=rounded(tokens_needed, POOLS, size // shards * g * width),
            rows=rounded(rows_needed, ROWS, g) if shared else g,
            width=width,
        )
    )


def abstract_packing(batch: Batch, cfg: StepConfig) -> Packing:
    """The packing of the largest possible batch (no padding at all), as shapes, for the mesh in use."""
    p, g, t = batch.completion.shape
    width, shape = t + alternative_tokens(batch), jax.ShapeDtypeStruct
    size = packed_prompts(batch, cfg, p, float(g * width))
    order = None if size == p else shape((p,), jnp.int32)
    return Packing(shape((p, g), jnp.int32), order, size, size // row_shards() * g * width, g, width)
