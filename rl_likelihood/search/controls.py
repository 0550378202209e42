"""The controls of a search, in one table. A lower NLL means nothing without them.

another answer     the same search, scored on another question's answer: the gain from selection alone
copying allowed    the same search without reer.max_copied: the gain if a chain may give the answer away
whole chains       the best of the first chain and other whole chains, which have as many sampled tokens as the search
another model      the NLL of first and last chains under a model that took no part in the search (reer.other)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rl_likelihood.progress import Progress
from rl_likelihood.report.table_text import aligned
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
    "other_questions": "questions",
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
    last = {name: {i: s.search.chain for i, s in of_search.items()} for name, of_search in searches.items()}
    if f.task.config.reer.controls and f.task.config.reer.candidates:
        best = best_whole(f, chains, ended, limit)
        nll = {i: (ended[i].nll_start, ended[i].nll_none, b.nll) for i, b in best.items()}
        table["whole chains"] = numbers(nll) | {"tokens": float(np.mean([b.tokens for b in best.values()]))}
        last["whole chains"] = {i: b.chain for i, b in best.items()}
    if f.other:
        for name, scores in under_other(dataclasses.replace(f, task=f.other[0], params=f.other[1]), chains, last):
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
    f: Finder, chains: dict[int, str], last_chains: dict[str, dict[int, str]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, the NLL under the model of `f` after the first and the last chain, for the answer that the search used).

    `last_chains`: by the name of the search. Means over the questions whose chains both fit this model, and the number
    of these questions.
    """
    for name, last_of in last_chains.items():

        def make(part: list[int], last_of=last_of, shift=int(name == "another answer")) -> list[dict[str, Any]]:
            pairs = [[chains[i], last_of[i]] for i in part]
            scores = np.asarray(score(f, [f.row(i, shift) for i in part], pairs))
            fits = np.isfinite(scores).all(-1)
            return [
                {"other_start": start, "other": last} if fit else {"other_start": None, "other": None}
                for fit, (start, last) in zip(fits, scores.tolist(), strict=True)
            ]

        search = f"{name}, another model"
        done = sum(i in f.journal.of(search, 0) for i in last_of)
        with Progress(f"{search}: scored chains of", len(last_of), "questions", f.say, done=done) as progress:
            scored = f.each(search, 0, last_of, make, progress.advance)
        lines = [x for x in scored.values() if x["other"] is not None]
        means = {k: float(np.mean([x[k] for x in lines])) for k in ("other_start", "other") if lines}
        yield name, means | {"other_questions": len(lines)}


def text_of(table: Mapping[str, Mapping[str, float]], questions: int) -> str:
    """The table for the console."""
    columns = [k for k in COLUMNS if any(k in line for line in table.values())]
    body = [[name, *(f"{line[k]:.3f}" if k in line else "-" for k in columns)] for name, line in table.items()]
    legend = f"means over {questions} questions; NLL in nats per token, each cut at reer.clip; lower is better; "
    legend += "sampled tokens: without the first chain"
    if not any("other_questions" in line for line in table.values()):
        legend += "\nanother model: not measured; set reer.other"
    return aligned([["", *(COLUMNS[k] for k in columns)], *body]) + "\n\n" + legend
