"""How figures look: colours and markers of names, panels, lines, scales, legends."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from rl_likelihood.report.metric_table import Metric

# Okabe and Ito's colours can be told apart with every common kind of colour blindness. Their yellow is too pale for a
# line; brown replaces it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8B5A2B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Where lines lie on each other, the gaps of the upper one show the lower one; see `line_width` too.
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
# The number of a reward in COLOURS and MARKERS is the same in every figure. Related rewards have related colours.
NUMBERS = {
    "log_prob": 0,
    "prob": 1,
    "jepo": 2,
    "self_certainty": 3,
    "avg_log_prob": 4,
    "avg_prob": 5,
    "base_rl": 6,
    "sft": 7,
}
SIZES = {"*": 1.6, "P": 1.25, "X": 1.2, "D": 0.9}  # makes the markers look equally large
INK, GRID, GREY, NOTE = "#333333", "#E5E5E5", "#777777", "#666666"
REFERENCE = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.2}  # the line of the untouched model


def look_of(i: int) -> dict:
    """Colour, dash and marker of number i. When the colours repeat, dashes and markers move on by one."""
    n, moved = len(COLOURS), i + i // len(COLOURS)
    return {
        "color": COLOURS[i % n],
        "linestyle": DASHES[moved % len(DASHES)],
        "marker": MARKERS[moved % len(MARKERS)],
    }


def numbers(names: Iterable[str]) -> dict[str, int]:
    """Numbers of looks by name: a reward has its own, any other name the next free one."""
    names = list(dict.fromkeys(names))
    taken = {NUMBERS[name] for name in names if name in NUMBERS}
    free = (i for i in itertools.count() if i not in taken)
    return {name: NUMBERS[name] if name in NUMBERS else next(free) for name in names}


def looks(names: Iterable[str]) -> dict[str, dict]:
    return {name: look_of(i) for name, i in numbers(names).items()}


def size_of(look: Mapping, points: float) -> dict:
    """`points` as the marker of a look needs it, with a white edge that sets it off from what lies below."""
    return {"markersize": points * SIZES.get(look["marker"], 1), "markeredgecolor": "white", "markeredgewidth": 0.8}


def panel_style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=12, color=INK, pad=8)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=10, colors=INK, length=0, pad=6)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#999999")


def line_width(i: int, of: int) -> float:
    """Of line number i of `of`: one that is drawn earlier is wider, and shows at both sides of one that lies on it."""
    return 1.6 + 1.6 * (1 - i / max(of - 1, 1)) if of > 1 else 2.0


def draw_line(ax: Axes, steps: np.ndarray, values: np.ndarray, **style) -> None:
    """A line with gaps at nan. A value between two gaps, or alone, has no line: it is a dot."""
    ax.plot(steps, values, **style)
    finite = np.pad(np.isfinite(values), 1)
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    if alone.any():
        dot = {**style, "linestyle": "", "marker": "o", "markersize": 2.5 * style["linewidth"], "gid": "alone"}
        ax.plot(steps[alone], values[alone], **dot)


def draw_points(ax: Axes, points: Sequence, look: Mapping, i: int, of: int) -> None:
    """Joined points (x, y, error) with bars, number i of `of` such lines; an error of None draws no bars.

    Each line is set a little beside the others, so that equal points can be told apart. Points are whole at the edge of
    the panel; bars are cut there.
    """
    x, y, error = (None if values is None else np.asarray(values, float) for values in points)
    shift = (i - (of - 1) / 2) * min(3, 20 / of) / 72
    transform = ax.transData + ScaledTranslation(shift, 0, ax.figure.dpi_scale_trans)
    style = {
        "linewidth": line_width(i, of),
        **look,
        **size_of(look, 7),
        "capsize": 2,
        "elinewidth": 1.2,
        "transform": transform,
    }
    ax.errorbar(x, y, yerr=error, **style, zorder=3).lines[0].set(gid="held-out", clip_on=False)
    for end in (y,) if error is None else (y - error, y + error):  # what is shifted sets no limits by itself
        ax.update_datalim(np.column_stack([x, end])[np.isfinite(end)])
    ax.autoscale_view()


def fit_scale(ax: Axes, metric: Metric) -> None:
    """Shares from 0 in %; perplexity logarithmic where it spans more than a factor of ten; zeros at the bottom."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.empty(0)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        where = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "not measured", color=GREY, fontsize=11, **where)
        ax.set_yticks([])
    elif metric.unit == "%":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylim(0, min(1.0, max(0.1, 1.15 * drawn.max())) + 0.01)
    elif metric.logarithmic and spans_decades(drawn):
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    elif not drawn.any():
        ax.set_ylim(0, 1)


def spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)


class Decades(LogLocator):
    """1, 2, 5, 10, ... over two decades and less, else powers of ten, at most 7 of them."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        self.set_params(subs=(1, 2, 5) if vmax <= 100 * vmin else (1,), numticks=7)
        return super().tick_values(vmin, vmax)


def plain_log(axis: Axis) -> None:
    """Ticks of a logarithmic axis, as people write them: up to 500,000 in full."""

    def text(x: float, _: float) -> str:
        digit, power = f"{x:.0e}".split("e")
        factor = "" if digit == "1" else rf"{digit} \cdot "
        return f"{x:g}" if x < 1e6 else f"${factor}10^{{{int(power)}}}$"

    axis.set_major_locator(Decades())
    axis.set_major_formatter(text)
    axis.set_minor_locator(NullLocator())


def legend(fig: Figure, names: Mapping[str, dict], ncols: int = 5, inside: Axes | None = None) -> None:
    """The look of each name: above the panels, or in a panel that has no curves."""
    handles = [Line2D([], [], **({"linewidth": 2} | look)) for look in names.values()]
    style = {"frameon": False, "fontsize": 11, "labelcolor": INK, "columnspacing": 1.4, "handlelength": 2.6}
    if inside is None:
        fig.legend(handles, list(names), loc="outside upper left", ncols=min(len(names), ncols), **style)
    else:
        inside.set_axis_off()
        inside.legend(handles, list(names), loc="center left", ncols=1 + (len(names) > 8), **style)


def footnote(fig: Figure, text: str) -> None:
    fig.supxlabel(text, fontsize=10, color=NOTE)


def asked_without_chain(names: Sequence[str]) -> str:
    """A line about models that were asked without a chain; nothing where there are none."""
    return f"\n{', '.join(names)}: asked without a chain, as it was trained." if names else ""
