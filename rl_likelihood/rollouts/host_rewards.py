"""Rewards that are computed on the host, from the text of what was sampled: rules, graders, votes, controls."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rewards import rules
from rl_likelihood.rewards.reward import HostInputs
from rl_likelihood.shapes import CHAIN, SAMPLED, ChainFormat, Compared, Judged, Outcomes, Rollout
from rl_likelihood.task import Task

Rewards = dict[str, np.ndarray]  # name -> [P, G] float32
Texts = list[list[str]]  # [P][G]: chain, tags the policy wrote itself, sampled answer


# What three-valued rewards ask: right, wrong, or None for an answer that cannot be read at all.
OUTCOMES = {
    "exact_match": lambda reference, answer: None if answer is None else graders.exact_match(reference, answer),
    "countdown": graders.countdown_outcome,
}


class HostRewards(NamedTuple):
    """The terms that come with the batch, the rows to keep, what to log, what a judge or critic in the step reads, and
    the verdicts of a rubric [P][G]."""

    values: Rewards
    keep: np.ndarray
    logged: dict[str, float]
    judged: Judged | None = None
    compared: Compared | None = None
    replayed: Compared | None = None
    verdicts: list[list[list[dict[str, Any]]]] | None = None


def candidate(answer: str) -> object:
    """What makes two answers one candidate of a vote: their number, or their text."""
    value = graders.parse_number(answer)
    return answer.strip() if value is None else value


def sampled_texts(task: Task, rollout: Rollout) -> Texts:
    """The text of what was sampled."""
    sampled = (rollout.segment == CHAIN) | (rollout.segment == SAMPLED)
    return [
        [task.tokenizer.decode(ids[row], skip_special_tokens=True) for ids, row in zip(*group, strict=True)]
        for group in zip(rollout.completion, sampled, strict=True)
    ]


def responses(task: Task, rollout: Rollout, rows: list[EncodedExample], texts: Texts) -> Texts:
    """Whole responses, the prompt's `<think>` included.

    Where answers are not sampled, the reference answer stands after a chain that opened the tag, as it does in
    the row that is scored.
    """
    p, with_answers = task.config.prompt, task.config.sampled_answer > 0

    def whole(text: str, reference: str, truncated: bool) -> str:
        if with_answers:
            return p.think_open + text + (">" if text.endswith(p.answer_close) else "")
        return p.think_open + text + ("" if truncated else f">{reference}{p.answer_close}>")

    groups = zip(texts, rows, rollout.truncated, strict=True)
    return [[whole(t, row.example.answer, cut) for t, cut in zip(g, cuts, strict=True)] for g, row, cuts in groups]


def host_rewards(
    task: Task, pool: Pool, rollout: Rollout, rows: list[EncodedExample], texts: Texts | None
) -> HostRewards:
    """The host's terms of the reward. `texts`: `sampled_texts`, which no term and no answer need where they are None.

    With sampled answers `exact_match` is there whichever reward trains. A row that a grader failed on (it hung, it
    crashed) is neither right nor wrong: it is not kept, and counted in grader/failures.
    """
    c = task.config
    terms = c.reward.host_terms
    size = rollout.segment.shape[1]
    answers: list[list[str | None]] = [[None] * size for _ in rows]
    if c.sampled_answer and texts is not None:
        answers = [[graders.extract_answer(t, task.fmt) for t in group] for group in texts]
    failed = np.zeros(rollout.segment.shape[:2], bool)
    failures = pool.failures

    def marks(name: str) -> np.ndarray:
        flat = [a for group in answers for a in group]
        goals = [graders.reference_of(name, row.example, pool.table) for row in rows for _ in range(size)]
        graded = np.asarray([-1 if m is None else m for m in pool.grade(name, goals, flat)]).reshape(failed.shape)
        failed[:] |= graded < 0
        return (graded > 0).astype(np.float32)

    def outcome(name: str) -> list[list[bool | None]]:
        grade = OUTCOMES[name]
        pairs = zip(rows, answers, strict=True)
        return [[grade(graders.reference_of(name, row.example), a) for a in group] for row, group in pairs]

    references = [row.example.answer for row in rows]
    who = rollout.prompts.uid, size, c.seed, c.reward
    how = outcome, graders.numeric_match, candidate
    ends = lambda: [token_ends(row, task.fmt) for row in rows]
    inputs = HostInputs(answers, references, *who, *how, rollout.outcomes, ends)
    tags = task.fmt
    reads = any(r.kind == "text" for r in terms.values())
    whole = responses(task, rollout, rows, texts) if reads and texts is not None else []
    values: Rewards = {}
    for name, reward in terms.items():
        if reward.kind == "judge":  # `asked_judge.judged` adds it
            continue
        if reward.kind == "grader" or reward.function is None:
            values[name] = marks(name)
        elif reward.kind == "host":
            values[name] = reward.function(inputs)
        else:
            values[name] = np.asarray([[reward.function(t, tags) for t in group] for group in whole], np.float32)
    logged: dict[str, float] = {}
    if "majority_vote" in terms:
        votes = rules.vote_diagnostics(answers, references, graders.numeric_match, candidate)
        logged |= {f"vote/{k}": v for k, v in votes.items()}
    if c.sampled_answer:
        right = values["exact_match"] if "exact_match" in values else marks("exact_match")
        logged["reward/exact_match"] = float(right.mean())
    logged["grader/failures"] = float(pool.failures - failures)
    if rollout.outcomes is not None:
        logged |= of_conversations(rollout.outcomes, rollout.truncated)
        failed |= rollout.outcomes.failed
    return HostRewards(values, ~failed, logged)


def token_ends(row: EncodedExample, fmt: ChainFormat) -> frozenset[int]:
    """Bytes of the reference answer after which one of its tokens ends. Its ids begin with those of a ">"."""
    ends = np.cumsum([len(fmt.vocab_bytes[i]) for i in row.answer_ids]) - len(b">")
    return frozenset(int(n) for n in ends if 0 < n <= len(row.example.answer.encode(errors="surrogatepass")))


def of_conversations(o: Outcomes, cut: np.ndarray) -> dict[str, float]:
    """How a step's conversations went, those left out that failed. `cut`: which of them did not end by themselves."""
    ran = ~o.failed
    mean = lambda x: float(x[ran].mean()) if ran.any() else 0.0
    return {
        "env/reward": mean(o.reward),
        "env/success": mean(o.reward >= 1),
        "env/calls_f1": mean(o.calls_f1),
        "env/turns": mean(o.turns),
        "env/calls": mean(o.calls),
        "env/bad_calls": mean(o.bad_calls),
        "env/out_of_turns": mean(cut),
        "env/failures": float(o.failed.sum()),
    }
