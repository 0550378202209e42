"""What the critic of adversarial training reads: the data's answers beside the policy's, new ones and earlier ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data import judged_text
from rl_likelihood.data.judged_text import Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.shapes import Compared


class Read(NamedTuple):
    """What the critic reads: the step's answers, earlier ones if any are kept, and how many were cut."""

    compared: Compared
    replayed: Compared | None
    cut: int


@dataclasses.dataclass
class Experts:
    """`seen`: the last `keep` answers of the policy, as (question, reference, answer), one of each group; `steps`: how
    many steps were read. Which of them a step takes depends on the seed and the step. Where the reader's form has
    words (learner/adversarial.py: labels), the policy's answers stand in pairs with the reference."""

    reader: Reader
    seed: int
    keep: int
    seen: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    steps: int = 0

    def read(self, rows: list[EncodedExample], answers: list[list[str | None]]) -> Read:
        """Each question's reference answer and the policy's; and as many earlier answers as there are questions, each
        beside its reference."""
        rng, examples = np.random.default_rng([self.seed, self.steps]), [row.example for row in rows]
        asked = [(e.prompt, e.answer, group) for e, group in zip(examples, answers, strict=True)]
        fresh, cut = self._compared(asked, rng.random((len(rows), len(answers[0]))) < 0.5)
        replayed = None
        if self.keep:
            # Before there are any: rows that count for nothing, since the step has one shape.
            old = self.seen or [(e.prompt, "", "") for e in examples]
            old = [old[i] for i in rng.integers(0, len(old), len(rows))]
            # Two rows of each: reference and answer, or the pair in both orders.
            again = [(q, e, [a, a] if self.reader.form.words else [a]) for q, e, a in old]
            replayed, _ = self._compared(again, np.tile([True, False], (len(rows), 1)))
            replayed = replayed.replace(present=np.full((len(rows), 2), bool(self.seen)))
            taken = [group[rng.integers(len(group))] or "" for group in answers]
            new = [(e.prompt, e.answer, a) for e, a in zip(examples, taken, strict=True)]
            self.seen = [*self.seen, *new][-self.keep :]
        self.steps += 1
        return Read(fresh, replayed, cut)

    def _compared(
        self, asked: Sequence[tuple[str, str, Sequence[str | None]]], expert_first: np.ndarray
    ) -> tuple[Compared, int]:
        """Of (question, reference, answers): all as rows, the reference first; or pairs, in the orders given."""
        questions, words = [q for q, _, _ in asked], self.reader.form.words
        if not words:
            out = judged_text.encode(self.reader, questions, [[(e,), *((a,) for a in group)] for _, e, group in asked])
            return Compared(out.judged, np.ones(out.judged.row_length.shape, bool)), out.cut
        pairs = [
            [(e, a) if first else (a, e) for a, first in zip(group, orders, strict=True)]
            for (_, e, group), orders in zip(asked, expert_first, strict=True)
        ]
        out = judged_text.encode(self.reader, questions, pairs)
        labels = np.asarray([[ids[0] for ids in judged_text.words_of(self.reader)]] * len(asked), np.int32)
        signs = np.where(expert_first, 1, -1).astype(np.float32)
        return Compared(out.judged, np.ones(signs.shape, bool), signs, labels), out.cut

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seen": self.seen, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.seen, self.steps = [tuple(row) for row in state["seen"]], state["steps"]
