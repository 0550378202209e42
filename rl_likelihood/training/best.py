"""The best step of a run by one metric of its evaluations (`train.best`), and whether progress has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError
from rl_likelihood.report.metric_table import higher_is_better, metric
from rl_likelihood.report.table import evaluations
from rl_likelihood.report.table_text import number
from rl_likelihood.runtime import checkpoint, distributed

FAST = "step "  # begins the stage of the evaluations every train.eval_every steps, which may be smaller


def best_of(
    rows: Sequence[dict[str, Any]], name: str, higher: bool, fast_split: bool = False
) -> tuple[dict[str, Any], int]:
    """(best row, number of evaluations since). `rows`: the run's own evaluations. Only those with as many questions and
    samples as the last fast one count; `fast_split`: only the fast ones, which have other questions. Without a fast
    one, the last row takes its place. The first of equal values is the best."""
    fast = [row for row in rows if row.get("stage", "").startswith(FAST)]
    last = (fast or rows)[-1]
    rows = fast if fast and fast_split else rows
    comparable = [row for row in rows if all(row.get(k) == last.get(k) for k in ("questions", "samples"))]
    if any(name not in row for row in comparable):
        raise UserError(
            f"train.best is {name!r}, which these evaluations do not have; choose a metric of docs/metrics.md that "
            "eval.jsonl has"
        )
    values = [row[name] if higher else -row[name] for row in comparable]
    best = values.index(max(values))
    return comparable[best], len(comparable) - 1 - best


def best_line(workdir: Path, rows: Sequence[dict[str, Any]], name: str, fast_split: bool) -> str:
    """The console's line about the best step of a run that has ended. `rows`: its own evaluations."""
    row = best_of(rows, name, higher_is_better(name), fast_split)[0]
    step, value = row["step"], number(row[name], metric(name))
    saved = (workdir / checkpoint.FOLDER / str(step)).is_dir()  # not in a run that had no train.best
    where = f"; evaluate and export take --step={step}" if saved else " (its checkpoint was not kept)"
    return f"best     {name} {value} after step {step}{where}"


class Best:
    """The result of `best_of` on the evaluations in a workdir that the run itself made, equal in every process. With
    an empty `name`, no step is best."""

    def __init__(self, workdir: Path, name: str, fast_split: bool) -> None:
        self.workdir, self.name, self.fast_split = workdir, name, fast_split
        self.higher = bool(name) and higher_is_better(name)
        self.step, self.since = -1, 0
        self.look()

    def look(self) -> None:
        """Reads eval.jsonl again. Call it after an evaluation."""

        def read() -> tuple[int, int]:
            rows = evaluations(self.workdir) if self.name else []
            if not rows:
                return -1, 0
            row, since = best_of(rows, self.name, self.higher, self.fast_split)
            return row["step"], since

        self.step, self.since = distributed.by_first(read)

    def is_best(self, step: int) -> bool:
        """Whether `step` is the best step."""
        return step == self.step
