"""What the critic of adversarial training reads: the data's answers beside the policy's, new ones and earlier ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rl_likelihood.data import judged_text
from rl_likelihood.data.judged_text import Encoded, Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.shapes import Compared


@dataclasses.dataclass
class Experts:
    """`seen`: the last `keep` answers of the policy, as (question, reference, answer), one of each group; `steps`: how
    many steps were read. Which of them a step takes depends on the seed and the step."""

    reader: Reader
    seed: int
    keep: int
    seen: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    steps: int = 0

    def read(self, rows: list[EncodedExample], answers: list[list[str | None]]) -> tuple[Encoded, Compared | None]:
        """Each question's reference answer and the policy's; and as many earlier answers as there are questions, each
        behind its reference, if any are kept."""
        rng, examples = np.random.default_rng([self.seed, self.steps]), [row.example for row in rows]
        both = [[(e.answer,), *((a,) for a in group)] for e, group in zip(examples, answers, strict=True)]
        fresh, replayed = judged_text.encode(self.reader, [e.prompt for e in examples], both), None
        if self.keep:
            # Before there are any: rows that count for nothing, since the step has one shape.
            old = self.seen or [(e.prompt, "", "") for e in examples]
            old = [old[i] for i in rng.integers(0, len(old), len(rows))]
            pairs = judged_text.encode(self.reader, [q for q, _, _ in old], [[(e,), (a,)] for _, e, a in old])
            replayed = Compared(pairs.judged, np.full((len(rows), 2), bool(self.seen)))
            taken = [group[rng.integers(len(group))] or "" for group in answers]
            new = [(e.prompt, e.answer, a) for e, a in zip(examples, taken, strict=True)]
            self.seen = [*self.seen, *new][-self.keep :]
        self.steps += 1
        return fresh, replayed

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seen": self.seen, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.seen, self.steps = [tuple(row) for row in state["seen"]], state["steps"]
