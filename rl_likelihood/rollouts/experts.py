"""The inputs of adversarial training's critic: reference answers and the policy's answers, new and replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data import judged_text
from rl_likelihood.data.judged_text import Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.shapes import Compared


class Pairs(NamedTuple):
    """Q pairs of an expert's and a policy's answer for each of P questions. `shown` [P * Q]: (question, answers).
    `expert` [P, Q]: the number of the expert's answer, 1 or 2."""

    shown: list[tuple[str, tuple[str, str]]]
    expert: np.ndarray


@dataclasses.dataclass
class Experts:
    """Makes the critic's inputs and remembers earlier answers.

    `seen`: the last `keep` answers of the policy, one per group, as (question, reference, answer). `steps`: the number
    of steps so far. The replayed answers of a step depend only on the seed and the step. If the reader's form has words
    (the label form of learner/adversarial.py), each row is a pair of a reference and a policy's answer.
    """

    reader: Reader
    seed: int
    keep: int
    seen: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    steps: int = 0

    def read(
        self, rows: list[EncodedExample], answers: list[list[str | None]]
    ) -> tuple[Compared, Compared | None, int]:
        """The inputs of one step: the reference and the policy's answers to each question; one replayed earlier answer
        per question with its reference, or None; and the number of cut rows."""
        rng, asked = self._begin(rows)
        questions = [(q, e, group) for (q, e), group in zip(asked, answers, strict=True)]
        fresh, cut = self._compared(questions, rng.random((len(rows), len(answers[0]))) < 0.5)
        replayed = None
        if self.keep:
            # Before there are earlier answers: rows that are masked out, because the step has one shape.
            old = self.seen or [(q, "", "") for q, _ in asked]
            old = [old[i] for i in rng.integers(0, len(old), len(rows))]
            # Two rows per question: reference and answer, or the pair in both orders.
            replay = [(q, e, [a, a] if self.reader.form.words else [a]) for q, e, a in old]
            replayed, _ = self._compared(replay, np.tile([True, False], (len(rows), 1)))
            replayed = replayed.replace(present=np.full((len(rows), 2), bool(self.seen)))
            self._remember(asked, answers, rng)
        return fresh, replayed, cut

    def pairs(self, rows: list[EncodedExample], answers: list[list[str | None]]) -> Pairs:
        """The pairs of each question: with the policy's answers, then as many with earlier answers to any question.
        Before there are earlier answers, these are the step's own."""
        rng, asked = self._begin(rows)
        fresh = [[(q, e, a or "") for a in group] for (q, e), group in zip(asked, answers, strict=True)]
        old = self.seen or [pair for group in fresh for pair in group]
        count = len(answers[0]) if self.keep else 0
        entries = [[*group, *(old[i] for i in rng.integers(0, len(old), count))] for group in fresh]
        expert = rng.integers(1, 3, (len(rows), len(entries[0])))
        flat = zip([pair for group in entries for pair in group], expert.ravel(), strict=True)
        if self.keep:
            self._remember(asked, answers, rng)
        return Pairs([(q, (e, a) if first == 1 else (a, e)) for (q, e, a), first in flat], expert)

    def _begin(self, rows: list[EncodedExample]) -> tuple[np.random.Generator, list[tuple[str, str]]]:
        """(the step's random numbers, questions and references)."""
        self.steps += 1
        asked = [(judged_text.question_of(row.example), row.example.answer) for row in rows]
        return np.random.default_rng([self.seed, self.steps - 1]), asked

    def _remember(
        self, asked: list[tuple[str, str]], answers: list[list[str | None]], rng: np.random.Generator
    ) -> None:
        """Adds one answer of each group to `seen`."""
        chosen = [group[rng.integers(len(group))] or "" for group in answers]
        self.seen = [*self.seen, *((q, e, a) for (q, e), a in zip(asked, chosen, strict=True))][-self.keep :]

    def _compared(
        self, entries: Sequence[tuple[str, str, Sequence[str | None]]], expert_first: np.ndarray
    ) -> tuple[Compared, int]:
        """(the critic's input, number of cut rows) from (question, reference, answers). Rows are the reference, then
        the answers; or in the label form pairs, with the reference first where `expert_first`."""
        questions, words = [q for q, _, _ in entries], self.reader.form.words
        if not words:
            out = judged_text.encode(
                self.reader, questions, [[(e,), *((a,) for a in group)] for _, e, group in entries]
            )
            return Compared(out.judged, np.ones(out.judged.row_length.shape, bool)), out.cut
        pairs = [
            [(e, a) if first else (a, e) for a, first in zip(group, orders, strict=True)]
            for (_, e, group), orders in zip(entries, expert_first, strict=True)
        ]
        out = judged_text.encode(self.reader, questions, pairs)
        labels = np.asarray([[ids[0] for ids in judged_text.words_of(self.reader)]] * len(entries), np.int32)
        signs = np.where(expert_first, 1, -1).astype(np.float32)
        return Compared(out.judged, np.ones(signs.shape, bool), signs, labels), out.cut

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"seen": self.seen, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.seen, self.steps = [tuple(row) for row in state["seen"]], state["steps"]
