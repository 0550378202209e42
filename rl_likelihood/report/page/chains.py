"""The sampled chains of a page: read from the runs' files, thinned to what a browser opens at once, and grouped."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_likelihood.evaluation import statistics
from rl_likelihood.report import table
from rl_likelihood.runtime import run_files

CHAINS = 20_000  # in a page, about; 10,000 with 64 tokens each are 13 MB and open in two seconds
HELDOUT = 20  # questions of an evaluation of texts
BYTES = 30_000_000  # of the files that they are read from: long chains are fewer


def per_step(workdir: str | Path) -> dict[int, int]:
    """{step: its number of sampled chains} of a run, in order; empty without the file."""
    path = Path(workdir) / run_files.SAMPLES
    return dict(sorted(Counter(row["step"] for row in run_files.rows(path)).items())) if path.exists() else {}


def limit_of(workdirs: Iterable[str | Path], chains: int) -> int:
    """How many of the runs' `chains` a page takes."""
    paths = [Path(workdir) / run_files.SAMPLES for workdir in workdirs]
    size = sum(path.stat().st_size for path in paths if path.exists())
    return min(CHAINS, chains * BYTES // size) if size else CHAINS


def level(totals: Iterable[int], limit: int) -> int:
    """The most chains that a run may show, so that all runs together show at most `limit`. Short runs need less."""
    share, waiting = 0, sorted(totals)
    while waiting:
        share = limit // len(waiting)
        if waiting[0] > share:
            break
        limit -= waiting.pop(0)
    return share


def steps_shown(steps: Mapping[int, int], share: int) -> set[int]:
    """Evenly spaced steps with about `share` chains together: the first, the last and some between; at least one."""
    total, every = sum(steps.values()), sorted(steps)
    if total <= share:
        return set(every)
    n = max(1, len(every) * share // total)
    return {every[round(i)] for i in np.linspace(0, len(every) - 1, n)} if n > 1 else {every[-1]}


def read(workdir: str | Path, steps: set[int]) -> list[dict[str, Any]]:
    """The groups of these steps of a run. Rows of other steps are not kept in memory."""
    path = Path(workdir) / run_files.SAMPLES
    return groups_of(row for row in run_files.rows(path) if row["step"] in steps) if steps else []


def groups_of(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sampled chains by step and prompt, each prompt once with its chains: what all share is said once."""
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for row in samples:
        key = (row["step"], row["id"])
        if key not in groups:
            groups[key] = {
                "step": row["step"],
                "id": row["id"],
                "prompt": row["prompt"],
                "start": row.get("start", ""),
                "tokens": row["answer_tokens"],
                "scored": row["scored"],
                "no_chain": _rounded(row.get("answer_logp_no_chain")),
                "chains": [],
            }
        groups[key]["chains"].append(
            {
                "chain": row["chain"],
                "forced": row["forced"],
                "sampled": row["sampled_answer"],
                "logp": _rounded(row["answer_logp"]),
                "weights": _of_three_digits(row.get("answer_weights")),
                "reward": row["reward"],
                "rewards": {k.removeprefix("reward/"): row[k] for k in row if k.startswith("reward/")},
                "advantage": row["advantage"],
                "truncated": row["truncated"],
                **({"messages": _messages(row)} if "messages" in row else {}),
                **({"verdicts": row["verdicts"]} if "verdicts" in row else {}),
            }
        )
    return list(groups.values())


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A conversation's messages, each of the model's with the reference that was scored before it."""
    messages, turn = [], 0
    for message in row["messages"]:
        messages.append(dict(message))
        if message["role"] == "assistant":
            if "turn_advantage" in row:
                messages[-1]["advantage"] = row["turn_advantage"][turn]
            at = [i for i, k in enumerate(row["answer_turn"]) if k == turn]
            of = {name: [row[name][i] for i in at] for name in ("answer_tokens", "scored", "answer_logp")}
            if at:
                messages[-1] |= {
                    "tokens": of["answer_tokens"],
                    "scored": of["scored"],
                    "logp": _rounded(of["answer_logp"]),
                }
            turn += 1
    return messages


def heldout(workdir: str | Path) -> list[dict[str, str]]:
    """The first held-out questions of a run's last evaluation with eval.texts: prompt, reference, a sampled chain and
    the answer after it."""
    paths = [Path(workdir) / row["records"] for row in table.evaluations(workdir) if "records" in row][-1:]
    if not paths or not paths[0].exists():
        return []
    first, records = statistics.read_records(str(paths[0]))
    out = []
    for record in records[:HELDOUT] if "texts" in first["identity"] else []:
        shown = record["samples"][0] if record["samples"] else record["greedy"]
        chain = shown["text"].split(first["identity"]["tags"][0])[0].strip()
        row = {"prompt": record["prompt"], "reference": record["reference"], "chain": chain}
        out.append(row | {"answer": shown["answer"] or ""})
    return out


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    """Three decimals are what is shown; a log-prob that is not finite has been written as null: -1000."""
    return None if values is None else [-1000.0 if v is None else round(v, 3) for v in values]


def _of_three_digits(values: Sequence[float] | None) -> list[float] | None:
    """Weights of a long answer's tokens are small, so they keep three digits, not three decimals."""
    return None if values is None else [float(f"{v:.3g}") for v in values]
