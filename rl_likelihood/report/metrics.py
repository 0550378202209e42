"""What a run writes as it goes, and the console line of a step. The files are the record; wandb is a copy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rl_likelihood.grading.graders import GRADERS
from rl_likelihood.progress import duration
from rl_likelihood.report.metric_table import METRICS as TABLE
from rl_likelihood.report.tracking import Tracker
from rl_likelihood.runtime.run_files import EVAL, METRICS, SAMPLES, append, cannot_write, plain, truncate, write_status


class MetricsWriter:
    """Writes the files of one workdir. On several hosts only process 0 makes one.

    `resume_step` is the step that the run goes on from (0 for a new run); with None nothing is cut before `rewind`.
    `tracker` copies the numbers to wandb.
    Use as `with MetricsWriter(...) as writer`, or call `close`.
    """

    def __init__(
        self,
        workdir: str | Path,
        steps: int,
        resume_step: int | None = 0,
        tracker: Tracker | None = None,
    ):
        self.workdir = Path(workdir)
        self.steps = steps
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise cannot_write(self.workdir, e) from e
        if resume_step is not None:
            self.rewind(resume_step)
        self._tracker = tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.close(failed=kind is not None)

    def rewind(self, step: int) -> None:
        """Cuts every line beyond `step`: the run goes on from there."""
        for name in (METRICS, SAMPLES, EVAL):
            truncate(self.workdir / name, step)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl: scalars by name, after `step` updates."""
        self._copy(step, append(self.workdir / METRICS, {"step": int(step), **values})[0], "")

    def eval(self, step: int, values: dict[str, Any]) -> None:
        """One line of eval.jsonl; in wandb under eval/."""
        self._copy(step, append(self.workdir / EVAL, {"step": int(step), **values})[0], "eval/")

    def samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Lines of samples.jsonl, each a prompt, its chain, and the numbers that belong to them. One write a step."""
        if rows:
            append(self.workdir / SAMPLES, *({"step": int(step), **row} for row in rows))

    def status(self, state: str, step: int, error: str = "") -> None:
        """Replaces STATUS; `error` is the sentence that ended a failed run."""
        write_status(self.workdir, state, step, self.steps, error)

    def close(self, failed: bool = False) -> None:
        """Ends the wandb run, if there is one; the files need no closing."""
        if self._tracker is not None:
            self._tracker.close(failed)

    def _copy(self, step: int, row: dict[str, Any], prefix: str) -> None:
        if self._tracker is not None:
            numbers = {prefix + k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}
            self._tracker.log(step, numbers)


def _short(x: float) -> str:
    """Three or so digits: 2.1e-05, 0.031, 12.34, 1234, 12.3k, 4.56M, 7.89G, 1.2e+12."""
    rounded = float(f"{x:.3g}")
    for letter, scale, above in (("", 1.0, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if abs(rounded) >= above:
            return f"{rounded / scale:.3g}{letter}"
    if abs(x) >= 1000:
        return f"{x:.0f}"
    return f"{x:.2f}" if abs(x) >= 0.1 or x == 0 else f"{x:.2g}"


# Metric, how its label and number stand, width, how the number is written: what a person watches while a run goes on.
_LINE = (
    ("reward/mean", "{label} {number}", 8, _short),
    ("reward/exact_match", "{label} {number}", 4, "{:.0%}".format),
    ("answer/perplexity", "{label} {number}", 6, _short),
    ("chain/length", "{label} {number}", 6, "{:.1f}".format),
    ("tokens_per_second", "{number} {label}", 5, lambda x: f"{x:.0f}" if 1 <= x < 1e4 else _short(x)),
    ("queue/lag", "{label} {number}", 1, "{:.0f}".format),
)


def success_of(metrics: dict[str, Any]) -> str:
    """The metric of a step's success: of the grader that the reward names (as 0*numeric), of conversations, or else
    exact match."""
    names = [*(f"reward/{name}" for name in GRADERS if name != "exact_match"), "env/success"]
    return next((name for name in names if name in metrics), "reward/exact_match")


def line(step: int, steps: int, metrics: dict[str, Any], seconds_left: float | None) -> str:
    """One console line. Columns are aligned from step to step. A missing metric is left out, and so is an unknown time.

    Success is that of the batch's own sampled answers or conversations (`success_of`).
    """
    if (success := success_of(metrics)) in metrics:
        metrics = metrics | {"reward/exact_match": metrics[success]}
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    for name, words, width, text in _LINE:
        if name in metrics:
            value, _ = plain(metrics[name])
            number = ("nan" if value is None else text(value)).rjust(width)
            parts.append(words.format(label=TABLE[name].short, number=number))
    if seconds_left is not None and step < steps:  # after the last step an evaluation follows
        parts.append(f"{duration(seconds_left):>6} left")
    return "  ".join(parts)
