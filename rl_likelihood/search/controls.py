"""The controls of a search, in one table. A lower NLL means nothing without them.

another answer     the same search, scored on another question's answer: the gain from selection alone
copying allowed    the same search without reer.max_copied: the gain if a chain may give the answer away
whole chains       the best of the first chain and other whole chains, which have as many sampled tokens as the search
another model      the NLL of first and last chains under a model that took no part in the search (reer.other)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_likelihood.report.table_text import aligned
from rl_likelihood.search.proposer import with_model
from rl_likelihood.search.rounds import Ended, Finder, Variant, best_whole, find, score
from rl_likelihood.search.segments import copied

COLUMNS = {
    "nll_none": "NLL without a chain",
    "nll_start": "after the first chain",
    "nll": "after the last",
    "fall": "fall of the NLL",
    "fall_se": "its standard error",
    "tokens": "sampled tokens",
    "taken": "segments replaced",
    "copied": "share copied",
    "other_start": "another model: after the first",
    "other": "after the last",
}


def controls(f: Finder, chains: dict[int, str], ended: dict[int, Ended]) -> dict[str, dict[str, float]]:
    """{name of the search: its numbers}, as means over the questions that have a first chain."""
    limit = f.task.config.reer.max_copied
    searches = {"search": ended}
    if f.task.config.reer.controls:
        if len(f.task.train) > 1:
            searches["another answer"] = find(f, chains, Variant("another answer", limit, shift=1))
        searches["copying allowed"] = find(f, chains, Variant("copying allowed", math.inf))
    table = {name: row(f, ended_searches) for name, ended_searches in searches.items()}
    if f.task.config.reer.controls and f.task.config.reer.candidates:
        best = best_whole(f, chains, ended, limit)
        nll = {i: (ended[i].nll_start, ended[i].nll_none, last) for i, (last, _) in best.items()}
        table["whole chains"] = numbers(nll) | {"tokens": float(np.mean([n for _, n in best.values()]))}
    if f.task.config.reer.other:
        for name, scores in under_other(f, chains, searches).items():
            table[name] |= scores
    return table


def numbers(nll: Mapping[int, tuple[float, float, float]]) -> dict[str, float]:
    """Means over questions. `nll`: for each question the NLL (after the first chain, without a chain, after the last
    chain)."""
    start, none, last = np.asarray(list(nll.values())).T
    fall = start - last
    error = fall.std(ddof=1) / math.sqrt(len(fall)) if len(fall) > 1 else 0.0
    means = {"nll_none": none, "nll_start": start, "nll": last, "fall": fall}
    return {k: float(v.mean()) for k, v in means.items()} | {"fall_se": float(error)}


def row(f: Finder, ended: dict[int, Ended]) -> dict[str, float]:
    """The table's line of one search."""
    answers = {i: f.task.train[i].example.answer for i in ended}
    other_means: dict[str, list[float]] = {
        "tokens": [s.tokens for s in ended.values()],
        "taken": [s.search.taken for s in ended.values()],
        "copied": [copied(s.search.chain, answers[i]) for i, s in ended.items()],
    }
    nll = {i: (s.nll_start, s.nll_none, s.search.nll) for i, s in ended.items()}
    return numbers(nll) | {k: float(np.mean(v)) for k, v in other_means.items()}


def under_other(
    f: Finder, chains: dict[int, str], searches: dict[str, dict[int, Ended]]
) -> dict[str, dict[str, float]]:
    """The NLL under another model after the first and the last chain of each search, for the answer that it used."""
    task, params = with_model(f.task, f.task.config.reer.other, f.devices and f.devices.learner)
    g, out = dataclasses.replace(f, task=task, params=params), {}
    for name, ended in searches.items():

        def make(part: list[int], ended=ended, shift=int(name == "another answer")) -> list[dict[str, Any]]:
            pairs = [[chains[i], ended[i].search.chain] for i in part]
            scores = score(g, [g.row(i, shift) for i in part], pairs)
            return [{"other_start": float(start), "other": float(last)} for start, last in scores]

        lines = g.each(f"{name}, another model", 0, ended, make).values()
        out[name] = {k: float(np.mean([line[k] for line in lines])) for k in ("other_start", "other")}
    return out


def text_of(table: Mapping[str, Mapping[str, float]], questions: int) -> str:
    """The table for the console."""
    columns = [k for k in COLUMNS if any(k in line for line in table.values())]
    body = [[name, *(f"{line[k]:.3f}" if k in line else "-" for k in columns)] for name, line in table.items()]
    legend = f"means over {questions} questions; NLL in nats per token, each cut at reer.clip; lower is better; "
    legend += "sampled tokens: without the first chain"
    return aligned([["", *(COLUMNS[k] for k in columns)], *body]) + "\n\n" + legend
