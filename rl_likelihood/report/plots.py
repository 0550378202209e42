"""Curves of one or several runs, drawn from the runs' files: PNG and SVG.

python -m rl_likelihood.report.plots RUN_DIR... --out=DIR
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rl_likelihood.errors import UserError, exits
from rl_likelihood.report import metric_table, panels, style, table
from rl_likelihood.runtime import run_files

FAINT_UP_TO = 3  # runs; the single steps of more than that hide the means


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have `key`; null becomes nan (a gap), a step's last row counts."""
    by_step = {row["step"]: row[key] for row in rows if key in row}
    steps = sorted(by_step)
    values = [np.nan if by_step[s] is None else by_step[s] for s in steps]
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
    """The rows of a run: {"train": metrics.jsonl, "heldout": what the run itself wrote to eval.jsonl}.

    sft samples nothing: its numbers of sampled tokens are left out. If it trains without chains, its evaluations are
    those without a chain, as in the tables.
    """
    workdir = Path(workdir)
    if not (workdir / run_files.METRICS).exists():
        raise UserError(f"{workdir} has no {run_files.METRICS}; give the --workdir of a run")
    rows, heldout = metric_table.read(workdir / run_files.METRICS), table.evaluations(workdir)
    run = table.Run({}, workdir)
    if table.supervised(run):
        rows = [metric_table.without_samples(row) for row in rows]
    if table.without_chain(run):
        heldout = [table.asked(row) for row in heldout]
    return {"train": rows, "heldout": heldout}


def panels_of(runs: Mapping[str, str | Path]) -> list[tuple[str, panels.Panel, list[str]]]:
    """(title, panel, names of its runs) of each panel: each reward has its own, because rewards differ in scale."""
    of_reward: dict[str, list[str]] = {}
    for name, workdir in runs.items():
        of_reward.setdefault(table.reward_of(workdir), []).append(name)
    several, title = len(of_reward) > 1, panels.REWARD.metric.title
    rewards = [
        (f"{title}: {r or 'not known'}" if several else title, panels.REWARD, names) for r, names in of_reward.items()
    ]
    return rewards + [(p.metric.title, p, list(runs)) for p in panels.RUNS if p != panels.REWARD]


def figure(runs: dict[str, str | Path]) -> Figure:
    """The figure of `curves`: panels against step, one colour a run (name -> workdir)."""
    rows = {name: load(workdir) for name, workdir in runs.items()}
    looks = {name: style.look_of(i) for i, name in enumerate(rows)}
    width = window(max(len(series(r["train"], panels.REWARD.train)[0]) for r in rows.values()))
    faint = width > 1 and len(rows) <= FAINT_UP_TO
    shown = panels_of(runs)
    height = math.ceil(len(shown) / 2)
    fig = Figure(figsize=(10.5, 3.6 * height), layout="constrained")
    axes = fig.subplots(height, 2, sharex=True).ravel()
    for ax, (title, panel, names) in zip(axes, shown, strict=False):
        style.panel_style(ax, title)
        for i, name in enumerate(names):
            look = looks[name]
            steps, values = series(rows[name]["train"], panel.train)
            if len(steps) and faint:
                style.draw_line(ax, steps, values, color=look["color"], linewidth=0.8, alpha=0.3, gid="each step")
            if len(steps):
                bold = look | {"marker": "", "linewidth": style.line_width(i, len(names))}
                style.draw_line(ax, steps, smooth(values, width), **bold, gid="mean")
        for i, name in enumerate(names):
            points = series(rows[name]["heldout"], panel.heldout)
            unjoined = {"linestyle": ""} if panel.train else {}  # a line of training leads past the points
            if len(points[0]):
                style.draw_points(ax, (*points, None), looks[name] | unjoined, i, len(names))
        style.fit_scale(ax, panel.metric)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[len(shown) - 2 : len(shown)]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("step (updates)", fontsize=11, color=style.INK)
    if len(rows) == 1:
        fig.suptitle(next(iter(rows)), fontsize=13, color=style.INK, x=0.01, ha="left")
    else:
        style.legend(fig, looks)
    lines = "Lines: training" + (f", mean of {width} steps" if width > 1 else "") + (" (faint: each)" if faint else "")
    style.footnote(fig, f"{lines}.  Markers: held-out questions.")
    return fig


def curves(runs: dict[str, str | Path], out: str | Path) -> list[Path]:
    """Writes curves.png and curves.svg of `runs` (name -> workdir) into the folder `out`; returns the two paths.

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


def named_path(text: str) -> str:
    """The value of --out, which must not be empty: that would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a path")
    return os.path.expanduser(text)


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rl_likelihood.report.plots", description="Curves of one or several runs.")
    parser.add_argument("run_dir", nargs="+", help="the --workdir of a run")
    parser.add_argument("--out", type=named_path, required=True, help="folder for curves.png and curves.svg")
    args = parser.parse_args(argv)
    for path in curves(names_of(args.run_dir), args.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
