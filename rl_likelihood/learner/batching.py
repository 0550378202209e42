"""Rollouts into batches, and supervised examples into batches of the same shape. Numpy, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from rl_likelihood.shapes import REFERENCE, ROW_FIELDS, TAG, Alternatives, Batch, NoChainRows, Prompts, Rollout

# Answers in ids [a], and which of these count [a].
Answers = Sequence[tuple[Int[np.ndarray, "_"], Bool[np.ndarray, "_"]]]


def scored_mask(segment: Int[np.ndarray, "P G T"], prompts: Prompts) -> Bool[np.ndarray, "P G T"]:
    """`prompts.answer_scored`, at the positions of the reference answer in each row."""
    is_reference = segment == REFERENCE
    rank = np.clip(np.cumsum(is_reference, -1) - 1, 0, prompts.answer.shape[1] - 1)
    answer_scored = np.broadcast_to(prompts.answer_scored[:, None], (*segment.shape[:2], prompts.answer.shape[1]))
    return is_reference & np.take_along_axis(answer_scored, rank, -1)


def to_batch(
    rollout: Rollout,
    host_rewards: dict[str, Float[np.ndarray, "P G"]] | None = None,
    keep: Bool[np.ndarray, "P G"] | None = None,
    baseline: Float[np.ndarray, "P"] | None = None,
) -> Batch:
    """A rollout as the learner's input. Without `keep` every row is kept."""
    prompts = rollout.prompts
    return Batch(
        prompt=prompts.tokens,
        prompt_length=prompts.length,
        completion=rollout.completion,
        segment=rollout.segment,
        scored=scored_mask(rollout.segment, prompts) if rollout.outcomes is None else rollout.segment == REFERENCE,
        sampler_logp=rollout.sampler_logp,
        host_rewards={k: v.astype(np.float32) for k, v in (host_rewards or {}).items()},
        truncated=rollout.truncated,
        keep=np.ones(rollout.segment.shape[:2], bool) if keep is None else keep,
        baseline=baseline,
    )


def answers_after(prompts: Prompts, scaffold: tuple[int, ...], pad_id: int, width: int = 0) -> Rollout:
    """Each prompt's reference answer after the ids of `scaffold` instead of a chain, one row per prompt.

    Steps, evaluation, RLPR's baseline and supervised training all take "the answer without a chain" from here.
    """
    p, a = prompts.answer.shape
    n = len(scaffold)
    ids = np.full((p, 1, max(width, n + a)), pad_id, np.int32)
    kinds = np.zeros(ids.shape, np.int32)
    for i, length in enumerate(prompts.answer_length):
        ids[i, 0, : n + length] = [*scaffold, *prompts.answer[i, :length]]
        kinds[i, 0, : n + length] = [TAG] * n + [REFERENCE] * int(length)
    return Rollout(prompts, ids, kinds, np.zeros(ids.shape, np.float32), np.zeros((p, 1), bool))


def no_chain_rows(prompts: Prompts, scaffold: tuple[int, ...], pad_id: int) -> NoChainRows:
    """`answers_after`, as the step scores it beside the chains."""
    rows = answers_after(prompts, scaffold, pad_id)
    return NoChainRows(rows.completion, rows.segment, scored_mask(rows.segment, prompts))


def beside(*rollouts: Rollout) -> Rollout:
    """The rows of all of them, of one width, in one group for each prompt."""
    rows = ({k: getattr(rollout, k) for k in ROW_FIELDS} for rollout in rollouts)
    return rollouts[0].replace(**jax.tree.map(lambda *parts: np.concatenate(parts, 1), *rows))


def alternatives_of(answers: Sequence[Answers], count: int, width: int, pad_id: int) -> Alternatives:
    """The other answers of P prompts, at most `count` each, in `width` tokens with a gap before each."""
    p = len(answers)
    tokens, answer = np.full((p, width), pad_id, np.int32), np.zeros((p, width), np.int32)
    scored, there = np.zeros((p, width), bool), np.zeros((p, count), bool)
    for i, others in enumerate(answers):
        at = 0
        for k, (ids, counts) in enumerate(others):
            part = slice(at + 1, at + 1 + len(ids))
            tokens[i, part], answer[i, part], scored[i, part], there[i, k] = ids, k + 1, counts, True
            at = part.stop
    return Alternatives(tokens, answer, scored, there)


def slice_rows(rollout: Rollout, start: int, stop: int | None) -> Rollout:
    """Rows start to stop of each group."""
    rows = {k: getattr(rollout, k) for k in ROW_FIELDS}
    return rollout.replace(**jax.tree.map(lambda x: x[:, start:stop], rows))


def given_rollout(
    prompts: Prompts, rows: list[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]], pad_id: int, width: int
) -> Rollout:
    """Given rows (ids, segments), one per prompt, as a rollout of group size 1 and width `width`."""
    completion = np.full((len(rows), 1, width), pad_id, np.int32)
    segment = np.zeros((len(rows), 1, width), np.int32)
    for i, (ids, kinds) in enumerate(rows):
        completion[i, 0, : len(ids)], segment[i, 0, : len(ids)] = ids, kinds
    none = np.zeros((len(rows), 1), bool)
    return Rollout(prompts, completion, segment, np.zeros(segment.shape, np.float32), none)
