"""Figures of a grid against step: means over seeds of what was measured in training and on held-out questions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl_likelihood.report import style
from rl_likelihood.report.panels import WORDS, Panel
from rl_likelihood.report.plots import series, smooth, window

RARE = 0.5  # transition words in a hundred: with fewer to begin with there is nothing to see
Runs = Mapping[str, Sequence[Mapping[str, list[dict]]]]  # name -> its runs, one a seed, as `figures.loaded` has them


class Words(NamedTuple):
    """What a figure says beside its curves.

    start: evaluations of the untouched model, the grey line; no_chain: names that were asked without a chain
    """

    title: str = ""
    start: Sequence[Mapping[str, float]] = ()
    no_chain: Sequence[str] = ()


class Curve(NamedTuple):
    """How the curves of one name are drawn: its look, and its number among `of` names."""

    look: Mapping
    i: int
    of: int


def shows(run: Mapping[str, list[dict]], panel: Panel) -> bool:
    """Whether the run has numbers for the panel; of transition words, whether the held-out chains begin with some."""
    if panel is WORDS:
        values = series(run["heldout"], panel.heldout)[1]
        return len(values) > 0 and values[0] >= RARE
    return any(len(series(run[part], key)[0]) for part, key in (("train", panel.train), ("heldout", panel.heldout)))


def over_seeds(groups: Runs, panels: Sequence[Panel], looks: Mapping[str, dict], words: Words) -> Figure:
    """Panels against step, in the look of each name.

    Held-out questions are bold: the mean of a name's runs, bars of one standard error over them; training is faint
    beside them, else bold with that band.
    """
    longest = max(len(run["train"]) for runs in groups.values() for run in runs)
    # Beside held-out points the course of training is wanted, not its steps, each of which has other prompts.
    calm = max(window(longest), min(longest, longest // 5 // 2 * 2 + 1))
    wide, high = min(2, len(panels)), -(-len(panels) // 2)
    fig = Figure(figsize=(max(5.25 * wide, 7), 3.5 * high + 0.5), layout="constrained")
    axes = list(fig.subplots(high, wide, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=False):
        style.panel_style(ax, panel.metric.title)
        measured = any(len(series(r["heldout"], panel.heldout)[0]) for runs in groups.values() for r in runs)
        drawn = {name: Curve(looks[name], i, len(groups)) for i, name in enumerate(groups)}
        for name, runs in groups.items():
            trained = [series(r["train"], panel.train) for r in runs]
            _training(ax, trained, drawn[name], calm if measured else window(longest), faint=measured)
        for name, runs in groups.items():
            points = _mean_and_error([series(r["heldout"], panel.heldout) for r in runs], 1)
            if len(points[0]):
                style.draw_points(ax, points, *drawn[name])
        values = [row[panel.heldout] for row in words.start if row.get(panel.heldout) is not None]
        if values:
            ax.axhline(np.mean(values), **style.REFERENCE, zorder=1, gid="untouched")
        style.fit_scale(ax, panel.metric)
        ax.set_xlabel("step (updates)", fontsize=11, color=style.INK)
    untouched = {"untouched": {**style.REFERENCE, "marker": ""}} if words.start else {}
    shown = {name: looks[name] for name in groups} | untouched
    style.legend(fig, shown, 5 if wide > 1 else 3, axes[-1] if len(panels) < len(axes) else None)
    style.footnote(fig, _footnote(groups, panels, words, calm))
    return fig


def _training(ax: Axes, runs: Sequence[tuple], curve: Curve, width: int, faint: bool) -> None:
    steps, mean, se = _mean_and_error(runs, width)
    if not len(steps):
        return
    look = {**curve.look, "marker": ""}
    look |= (
        {"linewidth": 1.2, "alpha": 0.35, "linestyle": "-"}
        if faint
        else {"linewidth": style.line_width(curve.i, curve.of)}
    )
    style.draw_line(ax, steps, mean, **look, gid="mean")
    if not faint:
        ax.fill_between(steps, mean - se, mean + se, color=look["color"], alpha=0.13, linewidth=0)


def _mean_and_error(runs: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, ...]:
    """(steps, mean, standard error) over several series, each smoothed; a step counts for those that have it, and of
    one alone the error is 0. A step that no run has a number for is a gap, nan."""
    runs = [(steps, smooth(values, width)) for steps, values in runs if len(steps)]
    steps = np.unique(np.concatenate([s for s, _ in runs])) if runs else np.empty(0, int)
    values = np.full((len(runs), len(steps)), np.nan)
    for row, (at, numbers) in zip(values, runs, strict=True):
        row[np.searchsorted(steps, at)] = numbers
    n = np.isfinite(values).sum(0)
    mean = np.where(n, np.nansum(values, 0), np.nan) / np.maximum(n, 1)
    spread = np.nansum((values - mean) ** 2, 0)
    return steps, mean, np.sqrt(spread / np.maximum(n - 1, 1) / np.maximum(n, 1))


def _footnote(groups: Runs, panels: Sequence[Panel], words: Words, width: int) -> str:
    runs = [run for seeds in groups.values() for run in seeds]
    seeds = max(len(group) for group in groups.values())
    parts = [words.title] if words.title else []
    if any(panel.heldout for panel in panels):
        asked = {row["step"]: row["questions"] for run in runs for row in run["heldout"] if "questions" in row}
        most = max(asked.values(), default=0)
        few = sorted(step for step, n in asked.items() if n < most)
        when = f"at step {few[0]}" if len(few) == 1 else "in between"
        among = f" ({most}" + (f", {when} the first {min(asked.values())}" if few else "") + ")"
        parts.append(f"Markers: held-out questions{among if most else ''}")
        parts.append("Faint: training" + (f", mean of {width} steps" if width > 1 else ""))
    parts.append("Bars: ± standard error over seeds" if seeds > 1 else "One seed")
    return ".  ".join(parts) + "." + style.asked_without_chain(words.no_chain)
