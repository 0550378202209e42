"""Figures of a grid's last evaluations: all metrics by row, success against perplexity, perplexities of references."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl_likelihood.report import table
from rl_likelihood.report.metric_table import Metric, metric
from rl_likelihood.report.style import (
    COLOURS,
    GREY,
    GRID,
    INK,
    REFERENCE,
    asked_without_chain,
    footnote,
    legend,
    panel_style,
    plain_log,
    size_of,
    spans_decades,
)

# Of a summary: the first four that a table has.
SUMMARY = ("greedy_success", "sampled_success", "perplexity", "chain_length", "chain_gain", "perplexity_no_chain")
COLUMNS = 4
Looks = Mapping[str, dict]


def summary(blocks: Sequence[table.Block], looks: Looks) -> Figure:
    """A row of panels for each table, a line for each of its rows: the mean, its errors and the untouched model's."""
    blocks = [b for b in blocks if any(line.cells for line in b.lines if line.name != table.UNTOUCHED)]
    shown = [[k for k in SUMMARY if any(line.cell(k) for line in b.lines)][:COLUMNS] for b in blocks]
    lines = [[line for line in b.lines if line.name != table.UNTOUCHED] for b in blocks]
    wide = max(map(len, shown))
    heights = [1.0 + 0.27 * len(rows) for rows in lines]
    fig = Figure(figsize=(1.6 + 2.3 * wide, sum(heights) + 0.7), layout="constrained")
    grid = fig.subplots(len(blocks), wide, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, block, keys, rows in zip(grid, blocks, shown, lines, strict=True):
        untouched = next((line for line in block.lines if line.name == table.UNTOUCHED), None)
        for ax in axes[len(keys) :]:
            ax.set_visible(False)
        for ax, key in zip(axes, keys, strict=False):
            _metric(ax, metric(key), rows, untouched, looks)
            ax.set_yticks(range(len(rows)), [line.name for line in rows] if ax is axes[0] else [""] * len(rows))
            for label, line in zip(ax.get_yticklabels(), rows, strict=True):
                label.set(color=looks[line.name]["color"], fontsize=11)
        if block.title:
            _row_title(axes[0], block.title)
    seeds = max((c.runs for rows in lines for line in rows for c in line.cells.values()), default=1)
    counts = ", ".join(dict.fromkeys(block.questions for block in blocks if block.questions))
    words = ["Dashed: untouched model.", f"Thin: 95 % interval over held-out questions{f' ({counts})' * bool(counts)}."]
    words += ["Thick: ± standard error over seeds." if seeds > 1 else "One seed."]
    text = "\n".join(textwrap.wrap("  ".join(words), 28 * wide + 24))
    footnote(fig, text + asked_without_chain(_without_chain(blocks)))
    return fig


def _without_chain(blocks: Iterable[table.Block]) -> list[str]:
    """The rows whose models were asked without a chain."""
    return sorted({line.name for block in blocks for line in block.lines if line.no_chain})


def _heading(ax: Axes, of: Metric) -> None:
    """The metric above a narrow panel, in two lines where it is long."""
    panel_style(ax, "\n".join(textwrap.wrap(of.heading[0].upper() + of.heading[1:], 24)))
    ax.title.set_fontsize(11)


def _row_title(ax: Axes, title: str) -> None:
    """Above a row's first panel and its heading. It takes space for its height, but its width must not make the column
    wider."""
    above = 12 + 14 * (1 + max(other.get_title("left").count("\n") for other in ax.figure.axes))
    at = {
        "xy": (0, 1),
        "xytext": (0, above),
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "fontsize": 12,
    }
    ax.annotate("|", **at, alpha=0)
    ax.annotate(title, **at, fontweight="bold", color=INK).set_in_layout(False)


def _metric(ax: Axes, of: Metric, rows: Sequence[table.Line], untouched: table.Line | None, looks: Looks) -> None:
    """One panel of a summary."""
    _heading(ax, of)
    ax.grid(False, axis="y")
    ends = []
    for y, line in enumerate(rows):
        c = line.cell(of.name)
        ax.axhline(y, color=GRID, linewidth=0.8, zorder=0)
        text = table.MISSING if c is None else f"{c.mean:z.{of.digits}f}".replace("-", "\N{MINUS SIGN}")
        ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
        if c is None:
            continue
        colour = looks[line.name]["color"]
        low, high = (c.mean if x is None else x for x in (c.low, c.high))
        ends += [low, high, c.mean - (c.se or 0), c.mean + (c.se or 0)]
        ax.plot([low, high], [y, y], color=colour, linewidth=1.2, gid="questions")
        if c.se:
            ax.plot([c.mean - c.se, c.mean + c.se], [y, y], color=colour, linewidth=4.5, alpha=0.45, gid="seeds")
        look = {**looks[line.name], "linestyle": ""}
        ax.plot([c.mean], [y], **look, **size_of(look, 7.5), gid="mean", clip_on=False, zorder=3)
    start = untouched.cell(of.name) if untouched else None
    if start:
        ends.append(start.mean)
        ax.axvline(start.mean, **REFERENCE, zorder=1, gid="untouched")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if ends and of.logarithmic and spans_decades(ends):
        ax.set_xscale("log")
        plain_log(ax.xaxis)
    elif ends and min(ends) >= 0 and not of.logarithmic:
        ax.set_xlim(0, 1.08 * max(ends) or 1)


def has_trade_off(block: table.Block) -> bool:
    """Whether a row of the table has both success and perplexity."""
    return any(line.cell("greedy_success") and line.cell("perplexity") for line in block.lines)


def trade_off(blocks: Sequence[table.Block], looks: Looks) -> Figure:
    """Success against perplexity, two points a row: full at greedy decoding, hollow at temperature 1."""
    blocks = [block for block in blocks if has_trade_off(block)]
    wide = min(2, len(blocks))
    fig = Figure(figsize=(max(5.25 * wide, 7.5), 4.2 * -(-len(blocks) // wide) + 0.8), layout="constrained")
    axes = list(fig.subplots(-(-len(blocks) // wide), wide, squeeze=False).flat)
    for ax in axes[len(blocks) :]:
        ax.set_visible(False)
    looks = {**looks, table.UNTOUCHED: {"color": GREY, "marker": "h"}}
    names = dict.fromkeys(line.name for block in blocks for line in block.lines if line.cells)
    for ax, block in zip(axes, blocks, strict=False):
        panel_style(ax, block.title or "Success against perplexity")
        for line in block.lines:
            x, look = line.cell("perplexity"), {**looks[line.name], "linestyle": ""}
            if x is None:
                continue
            both = [line.cell("greedy_success"), line.cell("sampled_success")]
            measured = [y for y in both if y]
            ax.plot([x.mean] * len(measured), [y.mean for y in measured], color=look["color"], linewidth=1, alpha=0.5)
            for y, inside in zip(both, (look["color"], "white"), strict=True):
                if y:
                    style = look | {"markersize": size_of(look, 8)["markersize"], "elinewidth": 1.2, "capsize": 2}
                    bars = ax.errorbar(x.mean, y.mean, xerr=x.se, yerr=y.se, **style, markerfacecolor=inside)
                    bars.lines[0].set_clip_on(False)
        ax.set_xscale("log")
        plain_log(ax.xaxis)
        ax.set_ylim(0, max(ax.get_ylim()[1], 10))
        ax.set_xlabel(metric("perplexity").heading, fontsize=11, color=INK)
        ax.set_ylabel("success, %", fontsize=11, color=INK)
    legend(fig, {name: {**looks[name], "linestyle": ""} for name in names})
    words = "Full: greedy.  Hollow: sampled at T = 1.  Bars: ± standard error over seeds."
    footnote(fig, words + asked_without_chain(_without_chain(blocks)))
    return fig


def has_texts(block: table.Block) -> bool:
    """Whether the table is of sampled texts, with the perplexities of their references."""
    return any(line.cell("answered") and line.cell("perplexity_no_chain") for line in block.lines)


CHAINS = {  # the look of each way to ask, and its metric
    "own chain": ("perplexity", {"marker": "o", "color": COLOURS[0]}),
    "no chain": ("perplexity_no_chain", {"marker": "s", "color": COLOURS[1]}),
    "another prompt's chain": ("perplexity_swapped", {"marker": "D", "color": COLOURS[2]}),
}


def references(blocks: Sequence[table.Block]) -> Figure:
    """The perplexity of the reference after its own chain, no chain and another prompt's chain, by the trained and, if
    measured, by the initial model. A row of panels for each table, a line for each of its rows."""
    blocks = [block for block in blocks if has_texts(block)]
    models = {"": "by the trained model", "_by_initial": "by the initial model"}
    if not any(line.cell("perplexity_by_initial") for block in blocks for line in block.lines):
        del models["_by_initial"]
    heights = [1.0 + 0.3 * len(block.lines) for block in blocks]
    fig = Figure(figsize=(1.8 + 3.8 * len(models), sum(heights) + 1), layout="constrained")
    grid = fig.subplots(len(blocks), len(models), squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
    for axes, block in zip(grid, blocks, strict=True):
        for ax, (ending, words) in zip(axes, models.items(), strict=True):
            panel_style(ax, f"{block.title}, {words}" if block.title else words)
            for name, look in CHAINS.values():
                points = [(c, y) for y, line in enumerate(block.lines) if (c := line.cell(name + ending))]
                bars = {"xerr": [c.se or 0 for c, _ in points], "linestyle": "", "capsize": 2, "elinewidth": 1.2}
                ax.errorbar([c.mean for c, _ in points], [y for _, y in points], **bars, **look, **size_of(look, 7))
            ax.set_yticks(range(len(block.lines)), [b.name if ax is axes[0] else "" for b in block.lines])
            ax.set_ylim(len(block.lines) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(5))
    legend(fig, {name: {**look, "linestyle": ""} for name, (_, look) in CHAINS.items()})
    words = "Perplexity of the reference answer; lower is better.  Bars: ± standard error over seeds."
    footnote(fig, words + asked_without_chain(_without_chain(blocks)))
    return fig
