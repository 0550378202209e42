"""Finds stop strings inside a compiled loop: a byte automaton, compiled into a table over token ids.

A model may spell `<answer` with any tokens. table[id, state] is the automaton's state after the bytes of `id`. So each
token costs one lookup, on the device or in numpy.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=16)
def stop_table(vocab_bytes: tuple[bytes, ...], patterns: tuple[str, ...]) -> np.ndarray:
    """Transitions [V, states], int8. State 0 means no match so far. The last state is a complete match and is final.

    An id without bytes (a special token) resets the state to 0.
    """
    targets = [p.encode() for p in patterns]
    prefixes = sorted({t[:i] for t in targets for i in range(len(t))}, key=lambda p: (len(p), p))
    number = {p: i for i, p in enumerate(prefixes)}
    matched = len(prefixes)
    byte_step = np.full((matched + 1, 256), matched, np.int8)
    for prefix, i in number.items():
        for b in range(256):
            text = prefix + bytes([b])
            if any(text.endswith(t) for t in targets):
                continue
            byte_step[i, b] = next(number[text[k:]] for k in range(len(text) + 1) if text[k:] in number)

    lengths = np.array([len(b) for b in vocab_bytes])
    table = np.tile(np.arange(matched + 1, dtype=np.int8), (len(vocab_bytes), 1))
    for position in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > position)
        byte = np.array([vocab_bytes[r][position] for r in rows])
        table[rows] = byte_step[table[rows], byte[:, None]]
    table[lengths == 0, :matched] = 0
    return table


def first_match(table: np.ndarray, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    """[..., N] -> [...]: the number of ids up to and including the id that completes a match; -1 without a match."""
    matched = table.shape[1] - 1
    state = np.zeros(ids.shape[:-1], np.int8)
    end = np.full(ids.shape[:-1], -1)
    for i in range(ids.shape[-1]):
        state = np.where(i < length, table[ids[..., i], state], state)
        end = np.where((end < 0) & (state == matched), i + 1, end)
    return end
