"""Fresh prompts in place of groups that teach nothing (DAPO, 2503.14476: dynamic sampling).

A step draws whole batches from the run's stream of prompts until it has a batch of groups that `filter.mode` accepts,
or until `filter.resample` further batches were drawn. It takes the accepted groups in the order of the stream. Where
they are too few, refused ones fill the batch, and the step leaves them out. Groups beyond a batch are dropped. Which
prompts a step draws depends only on how many batches were drawn before it, a number that checkpoints keep.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.rewards import shaping
from rl_likelihood.rollouts.batches import combined, widened
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Rollout


class Drawn(NamedTuple):
    """A batch of prompts, what was sampled for them, and what the host says of it."""

    rollout: Rollout
    rows: list[EncodedExample]
    graded: HostRewards
    texts: Texts | None


def accepted(drawn: Drawn, c: Config) -> np.ndarray:
    """Which groups the filter accepts [P], by the terms of the reward that the host computes."""
    weights = {t.on_host[0]: t.weight for t in c.reward.terms if t.on_host}
    n = c.rows_per_prompt
    total = sum(w * drawn.graded.values[name][:, :n] for name, w in weights.items())
    std = shaping.group_std(np.asarray(total, np.float32), drawn.graded.keep[:, :n])
    return np.asarray(shaping.filter_groups(std, c.filter, shaping.init_filter(), 0))


def chosen(accepts: list[np.ndarray]) -> list[int]:
    """Positions of a batch's groups among all that were drawn: the first accepted ones, then refused ones."""
    flat = np.concatenate(accepts)
    order = np.concatenate([np.flatnonzero(flat), np.flatnonzero(~flat)])
    return sorted(order[: len(accepts[0])].tolist())


def merged(parts: list[Drawn], accepts: list[np.ndarray], pad_id: int) -> Drawn:
    """The batch of the chosen groups, and what to log: the means of all that was drawn, and how much that was."""
    pick = chosen(accepts)
    width = max(d.rollout.segment.shape[-1] for d in parts)
    prompt_width = max(d.rollout.prompts.tokens.shape[1] for d in parts)
    last = parts[-1].rollout
    wide = [
        widened(d.rollout, width, prompt_width, pad_id).replace(version=last.version, number=last.number, seconds=0.0)
        for d in parts
    ]
    rollout = jax.tree.map(lambda *x: np.concatenate(x)[pick], *wide)
    rollout = rollout.replace(seconds=sum(d.rollout.seconds for d in parts))
    values = {k: np.concatenate([d.graded.values[k] for d in parts])[pick] for k in parts[0].graded.values}
    logged = combined([d.graded.logged for d in parts]) | {
        "resample/batches": float(len(parts)),
        "resample/refused": float(sum((~a).sum() for a in accepts)),
        "resample/filled": float(min(1.0, sum(a.sum() for a in accepts) / len(accepts[0]))),
    }
    keep = np.concatenate([d.graded.keep for d in parts])[pick]
    rows = [row for d in parts for row in d.rows]
    texts = [text for d in parts for text in d.texts or ()]  # there are host terms, so there are texts
    verdicts = [v for d in parts for v in d.graded.verdicts or ()]
    graded = HostRewards(values, keep, logged, verdicts=[verdicts[i] for i in pick] if verdicts else None)
    return Drawn(rollout, [rows[i] for i in pick], graded, [texts[i] for i in pick])
