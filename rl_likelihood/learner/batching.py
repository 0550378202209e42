"""Converts rollouts and supervised examples to batches. Numpy, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from rl_likelihood.shapes import (
    PAD,
    REFERENCE,
    ROW_FIELDS,
    SAMPLED,
    TAG,
    Alternatives,
    Batch,
    NoChainRows,
    Prompts,
    Rollout,
)

# For each answer: its ids [a], and which of them are scored [a].
Answers = Sequence[tuple[Int[np.ndarray, "_"], Bool[np.ndarray, "_"]]]


def scored_mask(segment: Int[np.ndarray, "P G T"], prompts: Prompts) -> Bool[np.ndarray, "P G T"]:
    """`prompts.answer_scored`, moved to the positions of the reference answer in each row."""
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
        common=prompts.common,
    )


def answers_after(prompts: Prompts, scaffold: tuple[int, ...], pad_id: int, width: int = 0) -> Rollout:
    """One row per prompt: the ids of `scaffold` in place of a chain, then the reference answer.

    The training step, evaluation, RLPR's baseline and supervised training all build "the answer without a chain" here.
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
    """The rows of `answers_after` as the step's extra input: it scores them beside the chains."""
    rows = answers_after(prompts, scaffold, pad_id)
    return NoChainRows(rows.completion, rows.segment, scored_mask(rows.segment, prompts))


def concat_rows(*rollouts: Rollout) -> Rollout:
    """Joins rollouts of the same prompts and width T: each prompt's group then has the rows of all of them."""
    fields = ({k: getattr(rollout, k) for k in ROW_FIELDS} for rollout in rollouts)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, 1), *fields)
    return rollouts[0].replace(**joined, seconds=sum(rollout.seconds for rollout in rollouts))


def alternatives_of(answers: Sequence[Answers], count: int, width: int, pad_id: int) -> Alternatives:
    """The alternative answers of P prompts: at most `count` each, concatenated with a gap of one token before each, and
    padded to `width` tokens."""
    p = len(answers)
    tokens, answer = np.full((p, width), pad_id, np.int32), np.zeros((p, width), np.int32)
    scored, present = np.zeros((p, width), bool), np.zeros((p, count), bool)
    for i, row_answers in enumerate(answers):
        end = 0
        for k, (ids, counts) in enumerate(row_answers):
            part = slice(end + 1, end + 1 + len(ids))
            tokens[i, part], answer[i, part], scored[i, part], present[i, k] = ids, k + 1, counts, True
            end = part.stop
    return Alternatives(tokens, answer, scored, present)


def first_rows(rollout: Rollout, n: int) -> Rollout:
    """The first n rows of each group."""
    rows = {k: getattr(rollout, k) for k in ROW_FIELDS}
    return rollout.replace(**jax.tree.map(lambda x: x[:, :n], rows))


def without_sampled(rollout: Rollout, most: int, pad_id: int) -> Rollout:
    """The rollout without its sampled answers, for which rows have room for `most` tokens."""
    sampled = rollout.segment == SAMPLED
    order = np.argsort(sampled, -1, kind="stable")[..., : sampled.shape[-1] - most]
    empty = {"completion": pad_id, "segment": PAD, "sampler_logp": 0}
    rows = {k: np.where(sampled, value, getattr(rollout, k)) for k, value in empty.items()}
    return rollout.replace(**{k: np.take_along_axis(x, order, -1) for k, x in rows.items()})


def given_rollout(
    prompts: Prompts, rows: list[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]], pad_id: int, width: int
) -> Rollout:
    """A rollout of group size 1 from one (ids, segments) row per prompt, padded to `width`."""
    completion = np.full((len(rows), 1, width), pad_id, np.int32)
    segment = np.zeros((len(rows), 1, width), np.int32)
    for i, (ids, kinds) in enumerate(rows):
        completion[i, 0, : len(ids)], segment[i, 0, : len(ids)] = ids, kinds
    truncated = np.zeros((len(rows), 1), bool)
    return Rollout(prompts, completion, segment, np.zeros(segment.shape, np.float32), truncated)
