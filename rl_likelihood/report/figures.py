"""The figures of a grid, from its runs' files: curves over seeds, success against perplexity, correlations of rewards,
answer length, group size, and the tails of runs that were off-policy. `plots.save` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from rl_likelihood.report import metrics, table
from rl_likelihood.report.plots import (
    COLOURS,
    INK,
    PANELS,
    Panel,
    fit_scale,
    legend,
    load,
    look_of,
    panel_style,
    series,
    smooth,
    window,
)

TAILS = (
    Panel("Updates that a rollout is behind", "queue/lag", ""),
    Panel("Largest importance ratio of a step", "ratio/max", ""),
    Panel("Effective sample size of the ratios, share", "ratio/ess", ""),
)
# Of a grid, whose runs have rewards of different units: those of these that its runs have, the first four.
CURVES = (
    *PANELS[1:2],
    Panel("Success of answers sampled at temperature 1", "", "sampled_success"),
    *PANELS[2:],
    Panel("What the chain adds to the answer's log-prob, nats", "answer/chain_gain", "chain_gain"),
)
GROUP = "group"  # the label of group sizes


def grid_figures(runs: Sequence[table.Run], rows: str = "reward") -> dict[str, Figure]:
    """The figures of a grid, by file name: those for which its runs have the numbers.

    curves: the four panels against step, mean over seeds, for each table; trade_off: success against perplexity;
    correlations: of the rewards of sampled chains; answer_length: rewards against the answer's length; tails: lag
    and ratios of runs that were off-policy; group_size: metrics against the label "group".
    """
    rows = table.row_label(runs, rows)
    groups, blocks, figures = table.grouped(runs, rows), table.blocks(runs, rows), {}
    for shared, lines in groups.items():
        suffix = _suffix(shared)
        first = table.starts(run for group in lines.values() for run in group)
        here = {name: [loaded(r, first) for r in group if _started(r)] for name, group in lines.items()}
        here = {name: loaded for name, loaded in here.items() if loaded}
        if here:
            panels = [p for p in CURVES if any(_has(run, p) for loaded in here.values() for run in loaded)]
            title = ", ".join(f"{k} {v}" for k, v in shared)
            figures[f"curves{suffix}"] = over_seeds(here, panels[:4] or PANELS, title)
            lags = [series(run["train"], "queue/lag")[1] for loaded in here.values() for run in loaded]
            if any(len(lag) and np.nanmax(lag) > 0 for lag in lags):
                figures[f"tails{suffix}"] = over_seeds(here, TAILS, "")
    if any({"greedy_success", "perplexity"} <= line.cells.keys() for block in blocks for line in block.lines):
        figures["trade_off"] = trade_off(blocks)
    if any(GROUP in block.labels for block in blocks):
        figures["group_size"] = group_size(blocks)
    for shared, lines in groups.items():
        samples = [row for group in lines.values() for run in group for row in samples_of(run.workdir)]
        if samples:
            suffix = _suffix(shared)
            figures[f"correlations{suffix}"] = correlations(samples)
            figures[f"answer_length{suffix}"] = answer_length(samples)
    return figures


def _suffix(shared: Iterable[tuple[str, str]]) -> str:
    """What tells the figures of a grid's tables apart, as part of a file name."""
    return "".join(f"_{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for _, value in shared)


def _started(run: table.Run) -> bool:
    return (Path(run.workdir) / metrics.METRICS).exists()


def _has(run: Mapping[str, list[dict]], panel: Panel) -> bool:
    """Whether the run has numbers for the panel."""
    return any(len(series(run[part], key)[0]) for part, key in (("train", panel.train), ("heldout", panel.heldout)))


def loaded(run: table.Run, first: Mapping[str, dict]) -> dict[str, list[dict]]:
    """A run's rows, {"train": metrics.jsonl, "heldout": eval.jsonl}, both empty before it has begun.

    first: `table.starts` of the runs of its table: the evaluation of step 0, by seed, stands first where the run itself
        made none.
    """
    if not _started(run):
        return {"train": [], "heldout": []}
    rows = load(run.workdir)
    start = first.get(run.labels.get(table.SEED, ""))
    if start and not any(row["step"] == 0 for row in rows["heldout"]):
        rows["heldout"] = [start, *rows["heldout"]]
    return rows


def _mean_and_range(found: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, ...]:
    """(steps, mean, smallest, largest) over several series, each smoothed; a step counts for those that have it."""
    found = [(steps, smooth(values, width)) for steps, values in found if len(steps)]
    steps = np.unique(np.concatenate([s for s, _ in found])) if found else np.empty(0, int)
    values = np.full((len(found), len(steps)), np.nan)
    for row, (at, seen) in zip(values, found, strict=True):
        row[np.searchsorted(steps, at)] = seen
    kept = np.isfinite(values).any(0) if found else np.empty(0, bool)
    steps, values = steps[kept], values[:, kept]
    return (steps, *(f(values, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))) if found else (steps,) * 4


def over_seeds(groups: dict[str, list[dict[str, list[dict]]]], panels: Sequence[Panel], title: str) -> Figure:
    """Panels against step: a line is the mean of a name's runs, the band their range, points are held-out."""
    longest = max(len(run["train"]) for runs in groups.values() for run in runs)
    width, wide = window(longest), 2 if len(panels) > 3 else len(panels)
    fig = Figure(figsize=(5.25 * wide, 3.6 * -(-len(panels) // wide)), layout="constrained")
    for ax, panel in zip(fig.subplots(-(-len(panels) // wide), wide, squeeze=False).flat, panels, strict=True):
        panel_style(ax, panel.title)
        for i, runs in enumerate(groups.values()):
            look = look_of(i)
            steps, mean, low, high = _mean_and_range([series(r["train"], panel.train) for r in runs], width)
            if len(steps):
                ax.fill_between(steps, low, high, color=look["color"], alpha=0.13, linewidth=0)
                ax.plot(steps, mean, **(look | {"marker": ""}), linewidth=2, gid="mean")
            steps, mean, low, high = _mean_and_range([series(r["heldout"], panel.heldout) for r in runs], 1)
            if len(steps):
                style = look | {"linestyle": "" if panel.train else look["linestyle"], "markersize": 6, "capsize": 2}
                ax.errorbar(steps, mean, yerr=(mean - low, high - mean), **style)
        fit_scale(ax, panel)
        ax.set_xlabel("step (updates)", fontsize=11, color=INK)
    legend(fig, list(groups))
    seeds = "Bands and bars: range over seeds." if any(len(r) > 1 for r in groups.values()) else "One seed each."
    fig.supxlabel(f"{title}{'.  ' if title else ''}Lines: training.  {seeds}", fontsize=10, color="#666666")
    return fig


def _panels_of(blocks: Sequence[table.Block], title: str) -> tuple[Figure, list[Axes]]:
    wide = min(3, len(blocks))
    fig = Figure(figsize=(4.9 * wide, 4.2 * -(-len(blocks) // wide)), layout="constrained")
    axes = list(fig.subplots(-(-len(blocks) // wide), wide, squeeze=False).flat)
    for ax in axes[len(blocks) :]:
        ax.set_visible(False)
    for ax, block in zip(axes, blocks, strict=False):
        panel_style(ax, block.title or title)
    return fig, axes


def trade_off(blocks: Sequence[table.Block]) -> Figure:
    """Success against perplexity, one point a reward: full at greedy decoding, hollow at temperature 1."""
    fig, axes = _panels_of(blocks, "Success against perplexity")
    names = list(dict.fromkeys(line.name for block in blocks for line in block.lines if line.name != "untouched"))
    untouched = {"color": "#777777", "marker": "h"}
    for ax, block in zip(axes, blocks, strict=False):
        for line in block.lines:
            for key, fill in (("greedy_success", "full"), ("sampled_success", "none")):
                x, y = line.cells.get("perplexity"), line.cells.get(key)
                if x and y:
                    look = look_of(names.index(line.name)) if line.name in names else untouched
                    style = look | {"linestyle": "", "fillstyle": fill, "markersize": 8, "capsize": 2}
                    ax.errorbar(x.mean, y.mean, xerr=x.sd, yerr=y.sd, **style)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(bottom=0)
        ax.set_xlabel("perplexity of the reference answer", fontsize=11, color=INK)
        ax.set_ylabel("success, %", fontsize=11, color=INK)
    legend(fig, names)
    words = "Full: greedy.  Hollow: sampled at temperature 1.  Grey: untouched.  Bars: s.d. over seeds."
    fig.supxlabel(words, fontsize=10, color="#666666")
    return fig


def group_size(blocks: Sequence[table.Block]) -> Figure:
    """Final metrics against the group size, a line for each reward and all else that is shared."""
    columns = [c for c in table.GRID_COLUMNS if c.key in ("greedy_success", "sampled_success", "perplexity")]
    found: dict[str, dict[str, dict[float, table.Cell]]] = {}
    for block in blocks:
        shared = " ".join(v for k, v in block.labels.items() if k != GROUP)
        for line in block.lines if block.labels.get(GROUP, "").isdigit() else ():
            if line.name != "untouched":
                by_key = found.setdefault(f"{line.name} {shared}".strip(), {})
                for key, value in line.cells.items():
                    by_key.setdefault(key, {})[int(block.labels[GROUP])] = value
    fig = Figure(figsize=(13, 4.4), layout="constrained")
    for ax, column in zip(fig.subplots(1, 3), columns, strict=True):
        panel_style(ax, column.label)
        for i, by_key in enumerate(found.values()):
            cells = sorted(by_key.get(column.key, {}).items())
            if cells:
                bars = [c.sd or 0.0 for _, c in cells]
                ax.errorbar([g for g, _ in cells], [c.mean for _, c in cells], yerr=bars, capsize=2, **look_of(i))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        ax.set_xlabel("chains a prompt (G)", fontsize=11, color=INK)
    legend(fig, list(found))
    return fig


def samples_of(workdir: str | Path) -> list[dict]:
    """The rows of samples.jsonl; none without the file."""
    path = Path(workdir) / metrics.SAMPLES
    return metrics.read(path) if path.exists() else []


def chain_length(row: Mapping) -> float:
    """Tokens of a sampled chain where its run wrote them, else its words."""
    return float(row.get("chain_tokens", len(row["chain"].split())))


def correlation(columns: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlations of the columns [N, K]: over all rows, or averaged over groups, each by itself.

    A group in which one of two columns does not vary has no correlation of them and is left out of that mean.
    """
    if group is None:
        centred = columns - columns.mean(0)
        scale = np.sqrt((centred**2).sum(0))
        # Rounding leaves a constant column a spread of its own size times 1e-16.
        scale = np.where(scale > 1e-9 * (1 + np.abs(columns).max(0)), scale, np.nan)
        return centred.T @ centred / scale[:, None] / scale
    each = np.stack([correlation(columns[group == g]) for g in np.unique(group)])
    count = np.isfinite(each).sum(0)
    return np.where(count > 0, np.nansum(each, 0) / np.maximum(count, 1), np.nan)


def correlations(samples: Sequence[Mapping]) -> Figure:
    """How the rewards of sampled chains go together, and with the chain's length: over all, and within prompts.

    Within prompts is what group-relative advantages see.
    """
    names = sorted(set.intersection(*(({k for k in row if k.startswith("reward/")}) for row in samples)))
    columns = np.asarray([[*(row[k] for k in names), chain_length(row)] for row in samples], float)
    keys = [(row.get("version"), row["id"], row["step"]) for row in samples]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = np.asarray([number[key] for key in keys])
    labels = [*(k.removeprefix("reward/") for k in names), "chain length"]
    size = 1.4 + 0.62 * len(labels)
    fig = Figure(figsize=(2 * size, size), layout="constrained")
    titles = ("Over all chains", "Within prompts, mean")
    for ax, title, of in zip(fig.subplots(1, 2, sharey=True), titles, (None, group), strict=True):
        values = correlation(columns, of)
        ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
        ax.set_title(title, loc="left", fontsize=12, color=INK, pad=8)
        ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=9)
        ax.set_yticks(range(len(labels)), labels, fontsize=9)
        for (i, j), value in np.ndenumerate(values):
            text = f"{value:.2f}" if np.isfinite(value) else "-"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else INK)
    length = "tokens" if all("chain_tokens" in row for row in samples) else "words"
    n = f"{len(samples)} chains of {len(number)} prompts and steps; chain length in {length}"
    fig.supxlabel(n, fontsize=10, color="#666666")
    return fig


def answer_length(samples: Sequence[Mapping]) -> Figure:
    """Rewards of sampled chains against the number of scored tokens of the reference answer."""
    tokens = np.asarray([sum(row["scored"]) for row in samples])
    fig = Figure(figsize=(10.5, 4.2), layout="constrained")
    shown = (("prob", "Probability of the answer"), ("log_prob", "Log-prob of the answer, nats"))
    for ax, (name, title), colour in zip(fig.subplots(1, 2), shown, COLOURS, strict=False):
        values = np.asarray([row[f"reward/{name}"] for row in samples], float)
        panel_style(ax, title)
        ax.plot(tokens, values, linestyle="", marker=".", color=colour, alpha=0.25, gid="each chain", rasterized=True)
        lengths = np.unique(tokens)
        means = [np.mean(values[tokens == n]) for n in lengths]
        ax.plot(lengths, means, color=INK, marker="o", markersize=4, linewidth=1.5, gid="mean")
        ax.set_xlabel("scored tokens of the reference answer", fontsize=11, color=INK)
        if name == "prob":
            ax.set_yscale("log")
            ax.set_ylim(max(1e-30, values[values > 0].min(initial=1.0)) / 2, 2)
    fig.supxlabel("Dots: chains.  Line: mean over chains.", fontsize=10, color="#666666")
    return fig
