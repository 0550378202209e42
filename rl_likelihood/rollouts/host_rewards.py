"""Rewards that the host computes from the sampled text: rules, graders, votes, controls."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.tokenizer import texts_of
from rl_likelihood.envs.protocol import ENDS
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rewards import rules
from rl_likelihood.rewards.reward import HostInputs
from rl_likelihood.settings import Config
from rl_likelihood.shapes import CHAIN, SAMPLED, ChainFormat, Compared, Judged, Outcomes, Rollout
from rl_likelihood.tables import grader_table
from rl_likelihood.task import Task

Rewards = dict[str, np.ndarray]  # name -> [P, G] float32
Texts = list[list[str]]  # [P][G]: the sampled text: chain, the tags that the policy wrote, sampled answer


# Graders with three outcomes: True (right), False (wrong), or None for an answer that cannot be read.
OUTCOMES = {
    "exact_match": lambda reference, answer: None if answer is None else graders.exact_match(reference, answer),
    "countdown": graders.countdown_outcome,
}


class HostRewards(NamedTuple):
    """`values`: the rewards by name. `keep` [P, G]: rows to keep. `logged`: metrics. `judged`, `compared`, `replayed`:
    inputs of a judge or critic in the step. `verdicts` [P][G]: a rubric's."""

    values: Rewards
    keep: np.ndarray
    logged: dict[str, float]
    judged: Judged | None = None
    compared: Compared | None = None
    replayed: Compared | None = None
    verdicts: list[list[list[dict[str, Any]]]] | None = None


def candidate(answer: str) -> object:
    """The key of an answer in a vote: its number, or else its text."""
    value = graders.parse_number(answer)
    return answer.strip() if value is None else value


def sampled_texts(task: Task, rollout: Rollout) -> Texts:
    """The text of the sampled ids of each row."""
    sampled = (rollout.segment == CHAIN) | (rollout.segment == SAMPLED)
    p, g, t = sampled.shape
    rows = zip(rollout.completion.reshape(-1, t), sampled.reshape(-1, t), strict=True)
    texts = texts_of(task.tokenizer, [ids[row].tolist() for ids, row in rows])
    return [texts[i * g : (i + 1) * g] for i in range(p)]


def answers_in(task: Task, texts: Texts) -> list[list[str | None]]:
    """The sampled answer of each row; None where the text has none."""
    return [[graders.extract_answer(text, task.fmt) for text in group] for group in texts]


def logged_grades(task: Task, pool: Pool, rows: list[EncodedExample], texts: Texts) -> dict[str, float]:
    """`exact_match` of the sampled answers, if answers are sampled: a metric under any reward. Answers that a grader of
    that name in reward.file could not grade are left out and counted."""
    if not task.config.sampled_answer:
        return {}
    marks = pool.grade_groups("exact_match", [row.example for row in rows], answers_in(task, texts))
    known = [mark for group in marks for mark in group if mark is not None]
    failures = len(rows) * len(marks[0]) - len(known)
    return {"reward/exact_match": float(np.mean(known)) if known else math.nan, "grader/failures": float(failures)}


def responses(task: Task, rollout: Rollout, rows: list[EncodedExample], texts: Texts) -> Texts:
    """Whole responses, including the prompt's `<think>`.

    If answers are not sampled, the reference answer follows a chain that opened the tag, as in the scored row.
    """
    p, with_answers = task.config.prompt, task.config.sampled_answer > 0

    def response(text: str, reference: str, truncated: bool) -> str:
        if with_answers:
            return p.think_open + text + (">" if text.endswith(p.answer_close) else "")
        return p.think_open + text + ("" if truncated else f">{reference}{p.answer_close}>")

    groups = zip(texts, rows, rollout.truncated, strict=True)
    return [[response(t, row.example.answer, cut) for t, cut in zip(g, cuts, strict=True)] for g, row, cuts in groups]


def grader_pool(c: Config) -> Pool:
    """A pool for the config's graders, also those of reward.file."""
    e = c.eval
    return Pool(e.grader_workers, e.grader_seconds, unsafe_code=e.unsafe_code, table=grader_table(c.reward.file))


def host_rewards(
    task: Task, pool: Pool, rollout: Rollout, rows: list[EncodedExample], texts: Texts | None
) -> HostRewards:
    """The rewards that the host computes. `texts`: `sampled_texts`, or None if nothing reads them.

    A row on which a reward's grader hung or crashed is neither right nor wrong: it is dropped. All failures of graders
    are counted in grader/failures.
    """
    c = task.config
    terms = c.reward.host_terms
    size = rollout.segment.shape[1]
    answers: list[list[str | None]] = [[None] * size for _ in rows]
    if c.sampled_answer and texts is not None:
        answers = answers_in(task, texts)
    failed = np.zeros(rollout.segment.shape[:2], bool)
    failures = pool.failures

    def marks(name: str) -> np.ndarray:
        graded = np.asarray(pool.grade_groups(name, [row.example for row in rows], answers), np.float32)
        failed[:] |= np.isnan(graded)  # None
        return np.nan_to_num(graded)

    def outcome(name: str) -> list[list[bool | None]]:
        grade = OUTCOMES[name]
        pairs = zip(rows, answers, strict=True)
        return [[grade(graders.reference_of(name, row.example), a) for a in group] for row, group in pairs]

    references = [row.example.answer for row in rows]
    stream = rollout.prompts.uid, size, c.seed, c.reward
    functions = outcome, graders.numeric_match, candidate
    ends = lambda: [token_ends(row, task.fmt) for row in rows]
    inputs = HostInputs(answers, references, *stream, *functions, rollout.outcomes, ends)
    tags = task.fmt
    reads = any(r.kind == "text" for r in terms.values())
    full_texts = responses(task, rollout, rows, texts) if reads and texts is not None else []
    values: Rewards = {}
    for name, reward in terms.items():
        if reward.kind == "judge":  # `judges.judged` adds it
            continue
        if reward.kind == "grader" or reward.function is None:
            values[name] = marks(name)
        elif reward.kind == "host":
            values[name] = reward.function(inputs)
        else:
            values[name] = np.asarray([[reward.function(t, tags) for t in group] for group in full_texts], np.float32)
    logged: dict[str, float] = {}
    if "majority_vote" in terms:
        votes = rules.vote_diagnostics(answers, references, graders.numeric_match, candidate)
        logged |= {f"vote/{k}": v for k, v in votes.items()}
    if "exact_match" in values:
        logged["reward/exact_match"] = float(values["exact_match"].mean())
    elif texts is not None:
        logged |= logged_grades(task, pool, rows, texts)
    logged["grader/failures"] = float(pool.failures - failures)
    if rollout.outcomes is not None:
        logged |= conversation_metrics(rollout.outcomes, rollout.truncated)
        failed |= rollout.outcomes.failed
    return HostRewards(values, ~failed, logged)


def token_ends(row: EncodedExample, fmt: ChainFormat) -> frozenset[int]:
    """The byte offsets in the reference answer at which its tokens end. Its ids begin with those of a ">". The last may
    also hold the beginning of the closing tag, so the answer's own end always counts."""
    length = len(row.example.answer.encode(errors="surrogatepass"))
    ends = np.cumsum([len(fmt.vocab_bytes[i]) for i in row.answer_ids]) - len(b">")
    return frozenset(int(n) for n in ends if 0 < n < length) | {length}


def conversation_metrics(o: Outcomes, cut: np.ndarray) -> dict[str, float]:
    """Metrics of a step's conversations, without those that failed; NaN if all did. `cut`: conversations that ran out
    of turns."""
    ran = ~o.failed
    mean = lambda x: float(x[ran].mean()) if ran.any() else math.nan
    share = lambda end: mean(o.end == ENDS.index(end))
    return {
        "env/reward": mean(o.reward),
        "env/success": mean(o.reward >= 1),
        "env/calls_f1": mean(o.calls_f1),  # NaN if the environment has none
        "env/turns": mean(o.turns),
        "env/calls": mean(o.calls),
        "env/bad_calls": mean(o.bad_calls),
        "env/done": share("done"),
        "env/transfer": share("transfer"),
        "env/out_of_turns": mean(cut),
        "env/no_call": mean(cut & (o.calls == 0)),
        "env/failures": float(o.failed.sum()),
    }
