"""Figures of a grid against step: means over seeds of what was measured in training and on held-out questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl_likelihood.report.plots import (
    INK,
    PANELS,
    REFERENCE,
    Panel,
    asked_bare,
    fit_scale,
    legend,
    panel_style,
    series,
    size_of,
    smooth,
    window,
)

TAILS = (
    Panel("Updates that a rollout is behind", "queue/lag", ""),
    Panel("Largest importance ratio of a step", "ratio/max", ""),
    Panel("Effective sample size of the ratios, share", "ratio/ess", ""),
)
WORDS = Panel("Transition words, per hundred words of a chain", "chain/transition_words", "transition_words")
# Of a grid, whose runs have rewards of different units: those of these that its runs have numbers for.
CURVES = (
    Panel("Success, greedy answers", "", "greedy_success"),
    Panel("Success, answers sampled at T = 1", "", "sampled_success"),
    *PANELS[2:],
    Panel("What the chain adds to log-prob of the answer, nats", "answer/chain_gain", "chain_gain"),
    WORDS,
)
RARE = 0.5  # transition words in a hundred: with fewer to begin with there is nothing to see
Runs = Mapping[str, Sequence[Mapping[str, list[dict]]]]  # name -> its runs, one a seed, as `figures.loaded` has them


def shows(run: Mapping[str, list[dict]], panel: Panel) -> bool:
    """Whether the run has numbers for the panel; of transition words, whether the held-out chains begin with some."""
    if panel is WORDS:
        values = series(run["heldout"], panel.heldout)[1]
        return len(values) > 0 and values[0] >= RARE
    return any(len(series(run[part], key)[0]) for part, key in (("train", panel.train), ("heldout", panel.heldout)))


def over_seeds(
    groups: Runs,
    panels: Sequence[Panel],
    looks: Mapping[str, dict],
    *,
    title: str = "",
    start: Sequence[Mapping[str, float]] = (),
    bare: Sequence[str] = (),
) -> Figure:
    """Panels against step, in the look of each name.

    Held-out questions are bold: the mean of a name's runs, bars of one standard error over them; training is faint
    beside them, else bold with that band. start: evaluations of the untouched model, the grey line. bare: names that
    were asked without a chain, which is said.
    """
    longest = max(len(run["train"]) for runs in groups.values() for run in runs)
    # Beside held-out points the course of training is wanted, not its steps, each of which has other prompts.
    width, calm = window(longest), max(window(longest), min(longest, longest // 5 // 2 * 2 + 1))
    wide, high = min(2, len(panels)), -(-len(panels) // 2)
    fig = Figure(figsize=(max(5.25 * wide, 7), 3.5 * high + 0.5), layout="constrained")
    axes = list(fig.subplots(high, wide, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=False):
        panel_style(ax, panel.title)
        measured = any(len(series(r["heldout"], panel.heldout)[0]) for runs in groups.values() for r in runs)
        for name, runs in groups.items():
            trained = [series(r["train"], panel.train) for r in runs]
            _training(ax, trained, looks[name], calm if measured else width, faint=measured)
        for name, runs in groups.items():
            _held_out(ax, [series(r["heldout"], panel.heldout) for r in runs], looks[name])
        values = [row[panel.heldout] for row in start if row.get(panel.heldout) is not None]
        if values:
            ax.axhline(np.mean(values), **REFERENCE, zorder=1, gid="untouched")
        fit_scale(ax, panel)
        ax.set_xlabel("step (updates)", fontsize=11, color=INK)
    shown = {name: looks[name] for name in groups} | ({"untouched": {**REFERENCE, "marker": ""}} if start else {})
    legend(fig, shown, 5 if wide > 1 else 3, axes[-1] if len(panels) < len(axes) else None)
    fig.supxlabel(_words(groups, panels, title, bare, calm), fontsize=10, color="#666666")
    return fig


def _training(ax: Axes, found: Sequence[tuple], look: Mapping, width: int, faint: bool) -> None:
    steps, mean, se = _mean_and_error(found, width)
    if not len(steps):
        return
    style = {**look, "marker": ""} | ({"linewidth": 1.2, "alpha": 0.35} if faint else {"linewidth": 2})
    ax.plot(steps, mean, **style, gid="mean")
    if not faint:
        ax.fill_between(steps, mean - se, mean + se, color=look["color"], alpha=0.13, linewidth=0)


def _held_out(ax: Axes, found: Sequence[tuple], look: Mapping) -> None:
    steps, mean, se = _mean_and_error(found, 1)
    if len(steps):
        style = {**look, **size_of(look, 7), "linewidth": 2, "capsize": 2, "elinewidth": 1.2}
        bars = ax.errorbar(steps, mean, yerr=se, **style, zorder=3)
        bars.lines[0].set_gid("held-out")


def _mean_and_error(found: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, ...]:
    """(steps, mean, standard error) over several series, each smoothed; a step counts for those that have it, and of
    one alone the error is 0."""
    found = [(steps, smooth(values, width)) for steps, values in found if len(steps)]
    steps = np.unique(np.concatenate([s for s, _ in found])) if found else np.empty(0, int)
    values = np.full((len(found), len(steps)), np.nan)
    for row, (at, seen) in zip(values, found, strict=True):
        row[np.searchsorted(steps, at)] = seen
    kept = np.isfinite(values).any(0) if found else np.empty(0, bool)
    steps, values = steps[kept], values[:, kept]
    if not len(steps):
        return steps, steps, steps
    n, mean = np.isfinite(values).sum(0), np.nanmean(values, 0)
    spread = np.nansum((values - mean) ** 2, 0)
    return steps, mean, np.sqrt(spread / np.maximum(n - 1, 1) / n)


def _words(groups: Runs, panels: Sequence[Panel], title: str, bare: Sequence[str], width: int) -> str:
    """What the lines are, below the panels."""
    runs = [run for found in groups.values() for run in found]
    seeds = max(len(found) for found in groups.values())
    parts = [title] if title else []
    if any(panel.heldout for panel in panels):
        asked = {row["step"]: row["questions"] for run in runs for row in run["heldout"] if "questions" in row}
        most = max(asked.values(), default=0)
        few = sorted(step for step, n in asked.items() if n < most)
        when = f"at step {few[0]}" if len(few) == 1 else "in between"
        among = f" ({most}" + (f", {when} the first {min(asked.values())}" if few else "") + ")"
        parts.append(f"Points: held-out questions{among if most else ''}")
        parts.append("Faint: training" + (f", mean of {width} steps" if width > 1 else ""))
    parts.append("Bars: ± standard error over seeds" if seeds > 1 else "One seed")
    return ".  ".join(parts) + "." + asked_bare(bare)
