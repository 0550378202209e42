"""Which tokens of a batch stand where, so that padding is not computed. Numpy, on the host.

The learner puts the real tokens of a micro-batch into a pool of fixed size (model/pool.py), so a pool must hold the
micro-batch with the most tokens. Prompts are therefore dealt out to micro-batches so that these have about equally many
tokens. For attention, the chains of a prompt share rows as wide as the longest chain: first fit, the longest first.

Every size is rounded up to one of a few, and so is the width of the arrays, so that few programs are compiled. All of
it depends on the lengths of the batch alone, so a resumed run computes the same.
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
from rl_likelihood.learner.step import ENOUGH, at_once
from rl_likelihood.mesh import on_cpu, row_shards
from rl_likelihood.shapes import PAD, Batch, Packing

# Sizes between a number and its double. A pool decides the work; rows decide attention's padding only.
POOLS, WIDTHS, ROWS = 8, 2, 2
EVEN = 8  # sizes are multiples of it, but for the smallest


def rounded(size: int, per_octave: int, most: int) -> int:
    """The least of the sizes 2^(i / per_octave) that is not smaller, or the multiple of EVEN above; at most `most`."""
    size = max(1, size)
    step = math.ceil(per_octave * math.log2(size) - 1e-9)
    up = max(size, math.ceil(2 ** (step / per_octave) - 1e-9))
    return min(most, up if up <= EVEN else -(-up // EVEN) * EVEN)


def real_tokens(batch: Batch) -> Int[np.ndarray, "P G"]:
    """Tokens of each chain and its answers, without padding."""
    tokens = (np.asarray(batch.segment) != PAD).sum(-1)
    if batch.alternatives is not None:
        tokens = tokens + (np.asarray(batch.alternatives.answer) > 0).sum(-1)[:, None]
    return tokens


def first_fit(lengths: Int[np.ndarray, "G"], width: int) -> tuple[Int[np.ndarray, "G"], int]:
    """Where each chain begins, counted through rows of `width` tokens, and how many rows there are. The longest chain
    is placed first, each in the first row that has room for it. None is cut."""
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
    """The prompts in an order in which number j of k parts has those at j, j + k, j + 2k, ...: the one with the most
    tokens first, each to the part that has the fewest and is not full."""
    members: list[list[int]] = [[] for _ in range(parts)]
    total, size = np.zeros(parts, np.int64), len(tokens) // parts
    for i in np.argsort(-tokens, kind="stable"):
        part = min((j for j in range(parts) if len(members[j]) < size), key=lambda j: total[j])
        members[part].append(int(i))
        total[part] += tokens[i]
    return np.array(members, np.int32).T.reshape(-1)


def prompts_at_once(batch: Batch, cfg: StepConfig, total: int, mean: float) -> int:
    """Prompts of a micro-batch, of `total` in the step: as `step.at_once`. Where that goes by tokens, as many as have
    no more real tokens (`mean` a prompt, rounded up) than its rows would have places."""
    if cfg.micro_batch_prompts or not on_cpu() or row_shards() > 1:
        return cfg.micro_batch_prompts or total
    _, g, t = batch.completion.shape
    size, each = at_once(batch, cfg), rounded(math.ceil(mean), WIDTHS, g * t)
    most = max(ENOUGH, size * g * t)
    return max(k for k in range(1, total + 1) if total % k == 0 and (k <= size or k * each <= most))


def others_of(batch: Batch) -> int:
    """Tokens of the other answers that follow every row."""
    return 0 if batch.alternatives is None else batch.alternatives.tokens.shape[-1]


def resized(batch: Batch, width: int) -> Batch:
    """The batch with rows of `width` tokens: padding is added or taken away, which costs a packed batch nothing."""

    def one(x):
        x = np.asarray(x)[..., :width]
        return np.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])

    rows = {name: one(getattr(batch, name)) for name in ("completion", "segment", "scored", "sampler_logp")}
    return batch.replace(**rows)


class Whole(NamedTuple):
    """What a process's batch is a part of. `own`: the numbers of its prompts, of `total`; `width`: of the widest rows;
    `largest`: of each number the largest of all processes."""

    own: Int[np.ndarray, "_"]
    total: int
    width: int
    largest: Callable[[list[int]], list[int]] = list


def pack(batch: Batch, cfg: StepConfig, shared: bool = True, whole: Whole | None = None) -> Batch:
    """The batch with its packing, for the mesh in use. `shared` False: every chain has a row of attention for itself,
    as the splash kernel needs it. `whole`: by default the batch is all there is."""
    lengths = real_tokens(batch)
    (p, g), tokens, shards = lengths.shape, lengths.sum(-1), row_shards()
    whole = whole or Whole(np.arange(p), p, batch.completion.shape[-1])
    size = prompts_at_once(batch, cfg, whole.total, float(tokens.mean()))
    parts, block = whole.total // size, whole.total // shards  # micro-batches; prompts of a device
    ends = (np.asarray(batch.segment) != PAD) * np.arange(1, batch.completion.shape[-1] + 1)
    (longest,) = whole.largest([int(ends.max())])
    batch = resized(batch, rounded(longest, WIDTHS, max(whole.width, batch.completion.shape[-1])))
    width = batch.completion.shape[-1] + others_of(batch)
    fits = [first_fit(row, width) if shared else (np.arange(g, dtype=np.int32) * width, g) for row in lengths]
    orders = [i + balanced(tokens[i : i + block], parts) for i in range(0, p, block)]
    pools = [tokens[order].reshape(-1, parts).sum(0).max() for order in orders]
    most, rows = whole.largest([int(max(pools)), max(n for _, n in fits)])
    return batch.replace(
        packing=Packing(
            start=np.stack([start for start, _ in fits]),
            order=None if parts == 1 else whole.own[np.concatenate(orders)].astype(np.int32),
            prompts=size,
            tokens=rounded(most, POOLS, size // shards * g * width),
            rows=rounded(rows, ROWS, g) if shared else g,
            width=width,
        )
    )


def abstract_packing(batch: Batch, cfg: StepConfig) -> Packing:
    """The packing of the largest batch, as shapes: all rows full, for the mesh in use."""
    p, g, t = batch.completion.shape
    width, shape = t + others_of(batch), jax.ShapeDtypeStruct
    size = prompts_at_once(batch, cfg, p, float(g * width))
    order = None if size == p else shape((p,), jnp.int32)
    return Packing(shape((p, g), jnp.int32), order, size, size // row_shards() * g * width, g, width)
