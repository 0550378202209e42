"""The reward `pairwise`: how often a judge prefers an answer to a random answer of the same group, its opponent.

Judges compare better than they rate. The opponent is sampled from the policy, so it improves with the policy
(Writing-Zero, 2506.00103).
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np

from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.local_judge import LocalJudge, Verdicts


@dataclasses.dataclass(frozen=True)
class PairwiseJudge:
    """Compares the answers of each group with one of them. `judge` says how much it prefers the first of two."""

    judge: LocalJudge | HttpJudge
    seed: int

    def __call__(
        self, questions: Sequence[str], answers: Sequence[Sequence[str | None]]
    ) -> tuple[Verdicts, dict[str, float]]:
        """(the preference for each answer over the opponent [P, G], metrics). Both orders are averaged; the
        opponent itself has 0.5, or no number in a group without a verdict.

        The opponent depends only on the seed, the question and the answers, so a resumed run asks the same again.
        """
        groups = [list(group) for group in answers]
        seeds = [repr((self.seed, *row)) for row in zip(questions, groups, strict=True)]
        others = [random.Random(seed).randrange(len(group)) for seed, group in zip(seeds, groups, strict=True)]
        rows = [
            [pair for i, a in enumerate(group) if i != other for pair in ((a, group[other]), (group[other], a))]
            for group, other in zip(groups, others, strict=True)
        ]
        out = self.judge(questions, rows)
        first, second = np.where(out.keep, out.values, np.nan).reshape(len(rows), -1, 2).transpose(2, 0, 1)
        bias = ((first + second) / 2 - 0.5)[np.isfinite(first + second)]
        wins = (first + 1 - second) / 2
        own = np.where(np.isfinite(wins).any(1), 0.5, math.nan)  # without a verdict, the opponent's 0.5 says nothing
        values = np.asarray([np.insert(*row) for row in zip(wins, others, own, strict=True)], np.float32)
        logged = {"judge/first_bias": float(bias.mean()) if bias.size else math.nan}
        return Verdicts(values, np.isfinite(values), out.cut), logged
