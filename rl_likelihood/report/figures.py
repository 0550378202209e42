"""The figures of a grid, drawn from its runs' files. `plots.save` writes them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rl_likelihood.report import chain_figures, final_figures, panels, style, table
from rl_likelihood.report.curve_figures import Words, over_seeds, shows
from rl_likelihood.report.plots import load, series
from rl_likelihood.runtime import run_files

Lines = Mapping[str, Sequence[table.Run]]  # name -> its runs, one a seed


def grid_figures(runs: Sequence[table.Run], rows: str = "reward") -> dict[str, Figure]:
    """The figures of a grid, by file name: those for which its runs have the numbers.

    summary: the last evaluations, with their errors; curves: panels against step, mean over seeds, for each table;
    trade_off: success against perplexity; references: for texts, the reference's perplexity after its own chain, none,
    another; tails: lag and ratios of runs that were off-policy; correlations: of the rewards of sampled chains;
    answer_length: rewards against the answer's length. A row has one colour in all of them.
    """
    rows = table.row_label(runs, rows)
    groups, blocks, figures = table.grouped(runs, rows), table.blocks(runs, rows), {}
    looks = style.looks(name for lines in groups.values() for name in lines)
    if any(line.cells for block in blocks for line in block.lines if line.name != table.UNTOUCHED):
        figures["summary"] = final_figures.summary(blocks, looks)
    for shared, lines in groups.items():
        figures |= _curves(shared, lines, looks)
    if any(final_figures.has_trade_off(block) for block in blocks):
        figures["trade_off"] = final_figures.trade_off(blocks, looks)
    if any(final_figures.has_texts(block) for block in blocks):
        figures["references"] = final_figures.references(blocks)
    for shared, lines in groups.items():
        # sft samples no chains.
        sampling = [run for group in lines.values() for run in group if not table.supervised(run)]
        samples = [rows for run in sampling if (rows := chain_figures.samples_of(run.workdir))]
        if samples:
            figures[f"correlations{_suffix(shared)}"] = chain_figures.correlations(samples)
            figures[f"answer_length{_suffix(shared)}"] = chain_figures.answer_length(samples)
    return figures


def _curves(shared: Iterable[tuple[str, str]], lines: Lines, looks: Mapping[str, dict]) -> dict[str, Figure]:
    first = table.starts(run for group in lines.values() for run in group)
    groups = {name: [loaded(r, first) for r in group if _started(r)] for name, group in lines.items()}
    groups = {name: rows for name, rows in groups.items() if rows}
    runs = [run for rows in groups.values() for run in rows]
    shown = [p for p in panels.GRID if any(shows(run, p) for run in runs)]
    no_chain = [name for name in groups if all(map(table.without_chain, lines[name]))]
    words = Words(table.title_of(dict(shared)), list(first.values()), no_chain)
    figures = {}
    if shown:
        figures[f"curves{_suffix(shared)}"] = over_seeds(groups, shown, looks, words)
    lags = [series(run["train"], "queue/lag")[1] for run in runs]
    if any(len(lag) and np.nanmax(lag) > 0 for lag in lags):
        figures[f"tails{_suffix(shared)}"] = over_seeds(groups, panels.OFF_POLICY, looks, Words(words.title))
    return figures


def _suffix(shared: Iterable[tuple[str, str]]) -> str:
    """The part of a file name that says which of a grid's tables a figure belongs to."""
    return "".join(f"_{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for _, value in shared)


def _started(run: table.Run) -> bool:
    return (Path(run.workdir) / run_files.METRICS).exists()


def loaded(run: table.Run, first: Mapping[str, dict]) -> dict[str, list[dict]]:
    """A run's rows, {"train": metrics.jsonl, "heldout": eval.jsonl}, both empty before it has begun.

    A model that was fine-tuned on answers alone is asked without a chain: those numbers replace the ones after a chain,
    at step 0 too (`table.asked`).

    first: `table.starts` of its table: the evaluations of step 0, by seed, for a run without one of its own.
    """
    if not _started(run):
        return {"train": [], "heldout": []}
    rows = load(run.workdir)
    start = first.get(run.labels.get(table.SEED, ""))
    if start and not any(row["step"] == 0 for row in rows["heldout"]):
        rows["heldout"] = [start, *rows["heldout"]]
    if table.without_chain(run):
        rows["heldout"] = [table.asked(row) for row in rows["heldout"]]
    return rows
