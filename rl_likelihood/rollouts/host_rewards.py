"""Rewards that are computed on the host, from the text of what was sampled: rules, votes, controls."""

from __future__ import annotations

import functools

import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rewards import rules
from rl_likelihood.rewards.mixture import HOST_REWARDS
from rl_likelihood.shapes import Rollout
from rl_likelihood.task import World

Rewards = dict[str, np.ndarray]  # name -> [P, G] float32

TEXT_RULES = {
    "format": rules.format,
    "format_open_r1": lambda text, _: rules.format_open_r1(text),
    "tag_count": rules.tag_count,
    "repetition": lambda text, _: rules.repetition(text),
}


def candidate(answer: str) -> object:
    """What makes two answers one candidate of a vote: their number, or their text."""
    value = graders.parse_number(answer)
    return answer.strip() if value is None else value


def response_texts(world: World, rollout: Rollout, rows: list[EncodedExample]) -> list[list[str]]:
    """Whole responses [P][G], the prompt's `<think>` included.

    Where answers are not sampled, the reference answer stands after a chain that opened the tag, as it does in
    the row that is scored.
    """
    p = world.settings.prompt
    with_answers = world.settings.step.two_branches

    def whole(text: str, reference: str, truncated: bool) -> str:
        if with_answers:
            return p.think_open + text + (">" if text.endswith(p.answer_close) else "")
        return p.think_open + text + ("" if truncated else f">{reference}{p.answer_close}>")

    groups = zip(world.sampled_text(rollout), rows, rollout.truncated, strict=True)
    return [[whole(t, row.example.answer, cut) for t, cut in zip(g, cuts, strict=True)] for g, row, cuts in groups]


def rewards_of_texts(
    world: World, pool: Pool, rollout: Rollout, rows: list[EncodedExample]
) -> tuple[Rewards, np.ndarray, dict[str, float]]:
    """The terms of the reward that are computed from text, each [P, G]; the rows to keep [P, G]; what to log.

    With sampled answers `exact_match` is there whichever reward trains. A row that a grader failed on (it hung, it
    crashed) is neither right nor wrong: it is not kept, and counted in grader/failures.
    """
    c, settings = world.config, world.settings
    if c.reward.name == "sft":
        return {}, np.ones(rollout.segment.shape[:2], bool), {}
    names = [t.name for t in settings.step.reward.terms if t.name in HOST_REWARDS]
    answers = world.sampled_answers(rollout) if settings.step.two_branches else None
    if answers is not None and "exact_match" not in names:
        names.append("exact_match")
    references = [row.example.answer for row in rows]
    groups, size = rollout.segment.shape[:2]
    metrics: dict[str, float] = {}
    failed = np.zeros((groups, size), bool)
    p = settings.prompt
    tags = rules.Tags(p.think_open, p.think_close, p.answer_open, p.answer_close)

    def graded(name: str) -> list[list[bool | None]]:
        flat = [a for group in answers for a in group]
        goals = [graders.reference_of(name, row.example) for row in rows for _ in range(size)]
        marks = pool.grade(name, goals, flat)
        failed[:] |= np.asarray([mark is None for mark in marks]).reshape(failed.shape)
        return [marks[i * size : (i + 1) * size] for i in range(groups)]

    @functools.cache
    def texts() -> list[list[str]]:
        return response_texts(world, rollout, rows)

    def by_text(rule) -> np.ndarray:
        return np.asarray([[rule(t, tags) for t in g] for g in texts()], np.float32)

    def scaled(outcome, scale: tuple[float, float, float]) -> np.ndarray:
        rows_of = zip(references, answers, strict=True)
        return np.asarray([[rules.scaled(outcome(r, a), scale) for a in g] for r, g in rows_of], np.float32)

    def compute(name: str) -> np.ndarray:
        if name in TEXT_RULES:
            return by_text(TEXT_RULES[name])
        if name == "random":
            return rules.random_reward(rollout.prompts.uid, size, c.seed)
        if name == "majority_vote":
            votes = rules.vote_diagnostics(answers, references, graders.numeric_match, candidate)
            metrics.update({f"vote/{k}": v for k, v in votes.items()})
            return rules.majority_vote(answers, graders.numeric_match, candidate)
        if name == "base_rl":
            return scaled(lambda r, a: None if a is None else graders.exact_match(r, a), tuple(c.reward.base_rl))
        if name == "countdown_tinyzero":
            return scaled(graders.countdown_outcome, rules.TINYZERO)
        return np.asarray([[mark is True for mark in g] for g in graded(name)], np.float32)

    failures = pool.failures
    out = {name: compute(name) for name in names}
    metrics["grader/failures"] = float(pool.failures - failures)
    if "exact_match" in out:  # its numbers are logged with the terms when it is one
        metrics["reward/exact_match"] = float(out["exact_match"].mean())
    return out, ~failed, metrics
