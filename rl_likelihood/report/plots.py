"""Curves of one or several runs, drawn from the runs' files: PNG and SVG.

python -m rl_likelihood.report.plots RUN_DIR... --out=DIR
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from rl_likelihood.report import table
from rl_likelihood.runtime import run_files
from rl_likelihood.shapes import UserError

# Okabe and Ito's colours, told apart with every common kind of colour blindness; yellow is too pale for a line. The
# last is for an eighth name, and differs from the others in its marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8B5A2B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")  # when there are more runs than colours
# The place of a reward in COLOURS and MARKERS: the same in every figure of every grid. Kin have kin colours.
PLACES = {
    "log_prob": 0,
    "prob": 1,
    "jepo": 2,
    "self_certainty": 3,
    "avg_log_prob": 4,
    "avg_prob": 5,
    "base_rl": 6,
    "sft": 7,
}
SIZES = {"*": 1.6, "P": 1.25, "X": 1.2, "D": 0.9}  # what makes the markers look equally large
INK, GRID, GREY = "#333333", "#E5E5E5", "#777777"
REFERENCE = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.2}  # the line of the untouched model
PERCENT = ("greedy_success", "sampled_success")
FAINT_UP_TO = 3  # runs; the single steps of more than that hide the means


class Panel(NamedTuple):
    """What one panel shows: its title, and the metrics of training (a line) and of evaluation (points)."""

    title: str
    train: str
    heldout: str


PANELS = (
    Panel("Reward in training", "reward/mean", ""),
    Panel("Greedy success on held-out questions", "", "greedy_success"),
    Panel("Perplexity of the reference answer", "answer/perplexity", "perplexity"),
    Panel("Length of the chain of thought, tokens", "chain/length", "chain_length"),
)


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have `key`; null becomes nan (a gap), a step's last row counts."""
    found = {row["step"]: row[key] for row in rows if key in row}
    steps = sorted(found)
    values = [np.nan if found[s] is None else found[s] for s in steps]
    return np.asarray(steps, int), np.asarray(values, float)


def window(points: int) -> int:
    """Steps that the bold line averages over: none for short runs, a twentieth of long ones; always odd."""
    return 1 if points < 40 else points // 20 // 2 * 2 + 1


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values (fewer at the ends), leaving nan out."""
    finite = np.isfinite(values)
    kernel = np.ones(min(width, len(values)))  # a short run beside a long one: its own mean
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite, kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def load(workdir: str | Path) -> dict[str, list[dict]]:
    """The rows of a run: {"train": metrics.jsonl, "heldout": what the run itself wrote to eval.jsonl}."""
    workdir = Path(workdir)
    if not (workdir / run_files.METRICS).exists():
        raise UserError(f"{workdir}: no {run_files.METRICS} here; give the --workdir of a run")
    return {"train": run_files.read(workdir / run_files.METRICS), "heldout": table.evaluations(workdir)}


def panel_style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=12, color=INK, pad=8)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=10, colors=INK, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#999999")


def look_of(i: int) -> dict:
    """Colour, dash and marker of run number i."""
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "linestyle": DASHES[i // n % len(DASHES)], "marker": MARKERS[i % n]}


def size_of(look: Mapping, points: float) -> dict:
    """`points` as the marker of a look needs it, with a white edge to keep it apart from what it lies on."""
    return {"markersize": points * SIZES.get(look["marker"], 1), "markeredgecolor": "white", "markeredgewidth": 0.8}


def places(names: Iterable[str]) -> dict[str, int]:
    """Places in COLOURS by name: a reward has its own, any other name the next that none of them has."""
    names = list(dict.fromkeys(names))
    taken = {PLACES[name] for name in names if name in PLACES}
    free = (i for i in itertools.count() if i not in taken)
    return {name: PLACES[name] if name in PLACES else next(free) for name in names}


def looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour, dash and marker by name."""
    return {name: look_of(place) for name, place in places(names).items()}


def asked_bare(names: Sequence[str]) -> str:
    """What stands below a figure about models that were asked without a chain; nothing where there are none."""
    return f"\n{', '.join(names)}: asked without a chain, as it was trained." if names else ""


def _draw(ax: Axes, panel: Panel, rows: dict[str, list[dict]], look: dict, width: int, faint: bool) -> None:
    steps, values = series(rows["train"], panel.train)
    if len(values):
        if faint:
            ax.plot(steps, values, color=look["color"], linewidth=0.8, alpha=0.3, gid="each step")
        ax.plot(steps, smooth(values, width), **(look | {"marker": ""}), linewidth=2, gid="mean")
    steps, values = series(rows["heldout"], panel.heldout)
    if len(values):
        # White edges keep a point readable where it lies on its run's line; without a line the points are joined.
        style = look | {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 1.0, "linewidth": 1.5}
        ax.plot(steps, values, **(style | ({"linestyle": ""} if panel.train else {})), gid="held-out", zorder=3)


def fit_scale(ax: Axes, panel: Panel) -> None:
    """Percentages from 0; perplexity on a logarithmic axis when it spans more than a factor of ten."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        where = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "not measured", color="#777777", fontsize=11, **where)
        ax.set_yticks([])
    elif panel.heldout in PERCENT:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylim(0, min(1.0, max(0.1, 1.15 * values.max())) + 0.01)
    elif panel.heldout == "perplexity" and values.min() > 0 and values.max() > 10 * values.min():
        ax.set_yscale("log")
        plain_log(ax.yaxis)


def plain_log(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, as people write them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def legend(fig: Figure, names: Mapping[str, dict], ncols: int = 5, inside: Axes | None = None) -> None:
    """The look of each name: above the panels, or in one that is left over."""
    handles = [Line2D([], [], **({"linewidth": 2} | look)) for look in names.values()]
    style = {"frameon": False, "fontsize": 11, "labelcolor": INK, "columnspacing": 1.4, "handlelength": 1.8}
    if inside is None:
        fig.legend(handles, list(names), loc="outside upper left", ncols=min(len(names), ncols), **style)
    else:
        inside.set_axis_off()
        inside.legend(handles, list(names), loc="center left", ncols=1 + (len(names) > 8), **style)


def figure(runs: dict[str, str | Path]) -> Figure:
    """The figure of `curves`: four panels against step, one colour a run (name -> workdir)."""
    if not runs:
        raise UserError("plots: no run to draw; give at least one RUN_DIR")
    rows = {name: load(workdir) for name, workdir in runs.items()}
    width = window(max(len(series(r["train"], PANELS[0].train)[0]) for r in rows.values()))
    faint = width > 1 and len(rows) <= FAINT_UP_TO
    fig = Figure(figsize=(10.5, 7.2), layout="constrained")
    grid = fig.subplots(2, 2, sharex=True)
    for ax, panel in zip(grid.flat, PANELS, strict=True):
        panel_style(ax, panel.title)
        for i, name in enumerate(rows):
            _draw(ax, panel, rows[name], look_of(i), width, faint)
        fit_scale(ax, panel)
    for ax in grid[-1]:
        ax.set_xlabel("step (updates)", fontsize=11, color=INK)
    if len(rows) == 1:
        fig.suptitle(next(iter(rows)), fontsize=13, color=INK, x=0.01, ha="left")
    else:
        legend(fig, {name: look_of(i) for i, name in enumerate(rows)})
    lines = "Lines: training" + (f", mean of {width} steps" if width > 1 else "") + (" (faint: each)" if faint else "")
    fig.supxlabel(f"{lines}.  Points: held-out questions.", fontsize=10, color="#666666")
    return fig


def curves(runs: dict[str, str | Path], out: str | Path) -> list[Path]:
    """Writes curves.png and curves.svg of `runs` (name -> workdir) into the folder `out`; returns the two paths.

    Four panels against step: reward, held-out greedy success, perplexity of the reference answer, chain length.
    Raises UserError for a folder without metrics, or an `out` that cannot be written.
    """
    return save({"curves": figure(runs)}, out)


def save(figures: Mapping[str, Figure], out: str | Path) -> list[Path]:
    """Writes every figure (name -> figure) as PNG and SVG into the folder `out`; returns the paths."""
    out = Path(out)
    paths = [out / f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figures[path.stem].savefig(path, dpi=150, facecolor="white")
    except OSError as e:
        raise UserError(f"{out}: figures cannot be written ({e.strerror or e}); choose another --out") from e
    return paths


def names_of(workdirs: list[str]) -> dict[str, Path]:
    """Name -> workdir: the last folders of each path, as many as it takes to tell them apart."""
    paths = list(dict.fromkeys(Path(w).resolve() for w in workdirs))
    for depth in range(1, max((len(p.parts) for p in paths), default=0) + 1):
        names = ["/".join(p.parts[-depth:]) for p in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True)) if paths else {}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rl_likelihood.report.plots", description="Curves of one or several runs.")
    parser.add_argument("run_dir", nargs="+", help="the --workdir of a run")
    parser.add_argument("--out", required=True, help="folder for curves.png and curves.svg")
    args = parser.parse_args(argv)
    try:
        for path in curves(names_of(args.run_dir), args.out):
            print(path)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
