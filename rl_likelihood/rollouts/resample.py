"""Replaces groups without a learning signal by groups of fresh prompts (DAPO's dynamic sampling, 2503.14476; RLPR).

A step draws whole batches from the run's stream of prompts until `filter.mode` accepts enough groups for a batch, or
until `filter.resample` extra batches were drawn. It takes the accepted groups in the order of the stream. If there are
too few, refused groups fill the batch, and the step ignores them. Surplus groups are dropped. Which prompts a step
draws depends only on the number of batches drawn before it, which checkpoints store.

The host filters if it computes the reward (`by_host`). Otherwise the learner filters, with one more forward pass of
each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.rewards import group_filter, shaping
from rl_likelihood.rollouts.batches import combined, same_width
from rl_likelihood.rollouts.host_rewards import HostRewards, Texts
from rl_likelihood.runtime import distributed
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Batch, Rollout


class Groups(NamedTuple):
    """The filter's result for a drawn batch. `accepted` [P]: this process's groups. `spread`: the mean spread of the
    groups of all processes, if the learner computed it."""

    accepted: np.ndarray
    spread: float | None = None


LearnerFilter = Callable[[Batch], Groups]


class Drawn(NamedTuple):
    """A batch of prompts with its rollout, the host's rewards, the sampled texts, and the filter's result."""

    rollout: Rollout
    rows: list[EncodedExample]
    graded: HostRewards
    texts: Texts | None
    groups: Groups | None = None


def by_host(c: Config) -> bool:
    """Whether the host filters: with std_zero, if it computes all terms but those that read only a chain's length."""
    terms = [t for t in c.reward.terms if t.weight]
    known = all(t.on_host or t.reward.reads == ("chain",) for t in terms)
    return c.filter.mode == "std_zero" and known and any(t.on_host for t in terms)


def host_groups(drawn: Drawn, c: Config) -> Groups:
    """The groups that the filter accepts, judged by the reward terms that the host computes. A collective: processes
    with the same prompts must agree, though a grader's time limit may have passed in one of them only."""
    n = c.rows_per_prompt
    total = sum(t.weight * drawn.graded.values[t.on_host[0]][:, :n] for t in c.reward.terms if t.on_host)
    keep = drawn.graded.keep
    if c.reward.truncated == "drop":
        keep = keep & ~drawn.rollout.truncated
    std = shaping.group_std(np.asarray(total, np.float32), keep[:, :n])
    uid = drawn.rollout.prompts.uid
    own = np.asarray(group_filter.filter_groups(std, c.filter, group_filter.init_filter(), 0))
    everywhere = distributed.gather({"uid": uid, "accepted": own})
    return Groups(np.array([everywhere["accepted"][everywhere["uid"] == i].all() for i in uid]))


def chosen(accepts: list[np.ndarray]) -> list[int]:
    """The indices, among all drawn groups, of the groups in the batch: accepted groups first, then refused ones."""
    flat = np.concatenate(accepts)
    order = np.concatenate([np.flatnonzero(flat), np.flatnonzero(~flat)])
    return sorted(order[: len(accepts[0])].tolist())


def merge_drawn(parts: list[Drawn], groups: list[Groups], pad_id: int) -> Drawn:
    """The batch of the chosen groups. Its metrics are means over everything that was drawn, and the numbers drawn."""
    accepts = [x.accepted for x in groups]
    pick = chosen(accepts)
    rollouts = [d.rollout for d in parts]
    common = {"version": rollouts[-1].version, "number": rollouts[-1].number, "seconds": 0.0}
    padded = [rollout.replace(**common) for rollout in same_width(rollouts, pad_id)]
    rollout = jax.tree.map(lambda *x: np.concatenate(x)[pick], *padded)
    rollout = rollout.replace(seconds=sum(x.seconds for x in rollouts))
    values = {k: np.concatenate([d.graded.values[k] for d in parts])[pick] for k in parts[0].graded.values}
    logged = combined([d.graded.logged for d in parts]) | {
        "resample/batches": float(len(parts)),
        "resample/refused": float(sum((~a).sum() for a in accepts)),
        "resample/filled": float(min(1.0, sum(a.sum() for a in accepts) / len(accepts[0]))),
    }
    keep = np.concatenate([d.graded.keep for d in parts])[pick]
    rows = [row for d in parts for row in d.rows]
    texts = [text for d in parts for text in d.texts or ()]
    verdicts = [v for d in parts for v in d.graded.verdicts or ()]
    graded = HostRewards(values, keep, logged, verdicts=[verdicts[i] for i in pick] if verdicts else None)
    spreads = [x.spread for x in groups if x.spread is not None]
    counted = Groups(np.concatenate(accepts)[pick], float(np.mean(spreads)) if spreads else None)
    return Drawn(rollout, [rows[i] for i in pick], graded, [texts[i] for i in pick] if texts else None, counted)
