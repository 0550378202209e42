"""Plans where the tokens of a batch are stored, so that padding is not computed. Numpy, on the host.

Each device copies the real tokens of its part of a micro-batch into a pool of fixed size (model/pool.py). The pool must
hold the part with the most tokens, so prompts are distributed to give all parts about equally many tokens. A prompt may
change its device, but not its process. For attention, several chains of a prompt share a row, which is as wide as the
longest chain. Chains are assigned to rows by first fit, the longest chain first. With the splash kernel each chain
keeps an attention row of its own; only matrix products and the vocabulary are packed.

All sizes are rounded up to a few values, so that few programs are compiled. They depend on the lengths in the batch
only, so a resumed run computes the same numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import ENOUGH
from rl_likelihood.mesh import on_cpu, row_shards
from rl_likelihood.shapes import PAD, WIDTHS, Batch, Packing, rounded

# How many sizes there are between a number and its double (shapes.rounded). Pools have more, because the pool's size is
# the work of all matrix products; the number of rows only adds padding in attention.
POOLS, ROWS = 12, 2


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


def balanced(tokens: Int[np.ndarray, "P"], devices: int, parts: int) -> tuple[Int[np.ndarray, "P"], int]:
    """(an order of the prompts in which the pools have about equally many tokens, the tokens of the largest pool).

    Each device has P / `devices` consecutive positions, and a pool for each of k = `parts` micro-batches: micro-batch j
    takes positions j, j + k, j + 2k, ... of the device. The largest prompt is assigned first, each to the pool with the
    fewest tokens among those that are not full.
    """
    count = devices * parts
    pools: list[list[int]] = [[] for _ in range(count)]
    size, largest = len(tokens) // count, 0
    open_pools = [(0, j) for j in range(count)]  # a heap of (tokens, pool)
    for i in np.argsort(-tokens, kind="stable"):
        total, pool = heapq.heappop(open_pools)
        pools[pool].append(int(i))
        total += int(tokens[i])
        largest = max(largest, total)
        if len(pools[pool]) < size:
            heapq.heappush(open_pools, (total, pool))
    order = np.array(pools, np.int32).reshape(devices, parts, size).swapaxes(1, 2).reshape(-1)
    return order, largest


def packed_prompts(tokens: Int[np.ndarray, "P"], cfg: StepConfig, total: int) -> int:
    """Prompts per micro-batch, of `total` in the step: as `step.prompts_per_forward`, but where that counts padded
    tokens (on one CPU), this counts those of the largest pool. `tokens`: of each prompt.

    The pool has at least half of `ENOUGH` tokens, and at most the larger of 2 `ENOUGH` and 2.5 times the largest
    prompt. The fewest prompts whose pools have at most 5 % padding are taken, or else those with the least. Where no
    allowed size has half of `ENOUGH`, the largest one is taken.
    """
    if cfg.micro_batch_prompts or not on_cpu() or row_shards() > 1:
        return cfg.micro_batch_prompts or total
    pools = {k: balanced(tokens, 1, total // k)[1] for k in range(1, total + 1) if total % k == 0}
    allowed = [k for k, n in pools.items() if n <= max(2 * ENOUGH, 2.5 * tokens.max())]
    large = [k for k in allowed if pools[k] >= ENOUGH // 2] or allowed[-1:]
    computed = {k: total // k * pools[k] for k in large}
    return next((k for k in large if computed[k] <= 1.05 * tokens.sum()), min(large, key=lambda k: computed[k]))


def packed_prompt_width(longest: int, common: int, limit: int) -> int:
    """The width of prompts with at most `longest` tokens, of which all begin with the same `common` ones. The width is
    part of a step's size, so it has few values; the common tokens are computed only once and are not rounded up."""
    return common + rounded(longest - common, WIDTHS, limit - common)


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
    size = packed_prompts(tokens, cfg, whole.total)
    parts, devices = whole.total // size, p * shards // whole.total  # micro-batches; devices of this process
    row_ends = (np.asarray(batch.segment) != PAD) * np.arange(1, batch.completion.shape[-1] + 1)
    (longest,) = whole.largest([int(row_ends.max())])
    batch = resized(batch, rounded(longest, WIDTHS, max(whole.width, batch.completion.shape[-1])))
    width = batch.completion.shape[-1] + alternative_tokens(batch)
    fits = [first_fit(row, width) if shared else (np.arange(g, dtype=np.int32) * width, g) for row in lengths]
    order, largest = balanced(tokens, devices, parts)
    tokens_needed, rows_needed = whole.largest([largest, max(n for _, n in fits)])
    return batch.replace(
        packing=Packing(
            start=np.stack([start for start, _ in fits]),
            order=None if parts * shards == 1 else whole.prompts[order].astype(np.int32),
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
    size = packed_prompts(np.full(p, g * width), cfg, p)
    order = None if size == p and row_shards() == 1 else shape((p,), jnp.int32)
    return Packing(shape((p, g), jnp.int32), order, size, size // row_shards() * g * width, g, width)
