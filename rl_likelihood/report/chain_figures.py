"""Figures of a grid's sampled chains: how their rewards go together, and how they depend on the answer's length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rl_likelihood.report.style import COLOURS, INK, footnote, panel_style
from rl_likelihood.runtime import run_files

BINS = 8  # of answer lengths, where there are more lengths than that


def samples_of(workdir: str | Path) -> list[dict]:
    """The rows of samples.jsonl; none without the file."""
    path = Path(workdir) / run_files.SAMPLES
    return run_files.read(path) if path.exists() else []


def chain_length(row: Mapping) -> float:
    """Tokens of a sampled chain where its run wrote them, else its words."""
    return float(row.get("chain_tokens", len(row["chain"].split())))


def reward(row: Mapping, name: str) -> float:
    """A reward of a sampled chain. The probability of a long answer is less than a file's digits, or float32, hold, so
    it is made of its log."""
    return float(np.exp(row["reward/log_prob"]) if name == "prob" else row[f"reward/{name}"])


def correlation(columns: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlations of the columns [N, K]: over all rows, or averaged over groups, each by itself.

    A group in which one of two columns does not vary has no correlation of them and is left out of that mean.
    """
    if group is None:
        centred = columns - columns.mean(0)
        size = np.abs(columns).max(0)
        unit = centred / np.where(size > 0, size, 1)  # the square of a probability of 1e-200 would be 0
        scale = np.sqrt((unit**2).sum(0))
        scale = np.where(scale > 1e-9, scale, np.nan)  # rounding leaves a constant column a spread of 1e-16 times it
        return unit.T @ unit / scale[:, None] / scale
    each = np.stack([correlation(columns[group == g]) for g in np.unique(group)])
    count = np.isfinite(each).sum(0)
    return np.where(count > 0, np.nansum(each, 0) / np.maximum(count, 1), np.nan)


def correlations(samples: Sequence[Sequence[Mapping]]) -> Figure:
    """How the rewards of sampled chains, and the chain's length, go together in a run, and within its groups.

    samples: the rows of each run. Only chains of one policy are compared, so each run is taken by itself, and its mean
    over runs is shown. Within groups (the chains of one prompt at one step) is what group-relative advantages see.
    """
    rows = [(i, row) for i, run in enumerate(samples) for row in run]
    names = sorted(set.intersection(*({k for k in row if k.startswith("reward/")} for _, row in rows)))
    names = [k.removeprefix("reward/") for k in names]
    columns = np.asarray([[*(reward(row, k) for k in names), chain_length(row)] for _, row in rows], float)
    keys = [(i, row["step"], row["id"]) for i, row in rows]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = np.asarray([number[key] for key in keys])
    labels = [*names, "chain length"]
    fig = Figure(figsize=(11, 1.6 + 4.2 * len(labels) / 8), layout="constrained")
    titles = ("All chains of a run", "Chains of one prompt at one step")
    groupings = (np.asarray([i for i, _ in rows]), group)
    for ax, title, of in zip(fig.subplots(1, 2, sharey=True), titles, groupings, strict=True):
        values = correlation(columns, of)
        ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
        ax.set_title(title, loc="left", fontsize=12, color=INK, pad=8)
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=10)
        ax.set_yticks(range(len(labels)), labels, fontsize=10)
        ax.tick_params(length=0, colors=INK)
        for spine in ax.spines.values():
            spine.set_visible(False)
        for (i, j), value in np.ndenumerate(values):
            text = f"{value:.2f}" if np.isfinite(value) else "-"
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if abs(value) > 0.6 else INK)
    length = "tokens" if all("chain_tokens" in row for _, row in rows) else "words"
    n = f"{len(rows)} chains of {len(samples)} runs, {len(number)} groups; chain length in {length}"
    footnote(fig, f"Pearson correlation, mean over runs (left) or groups (right).  {n}.")
    return fig


def answer_length(samples: Sequence[Sequence[Mapping]]) -> Figure:
    """Rewards of sampled chains against the number of scored tokens of the reference answer.

    The probability of the answer is the exp of its log-prob, a second axis of the first panel: over long answers it
    spans tens of orders of magnitude.
    """
    rows = [row for run in samples for row in run]
    tokens = np.asarray([sum(row["scored"]) for row in rows])
    at = np.unique(tokens) if len(np.unique(tokens)) <= BINS else None
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, BINS + 1))) if at is None else np.append(at, at[-1] + 1)
    part = np.clip(np.searchsorted(edges, tokens, "right") - 1, 0, len(edges) - 2)
    # Chains of one length are spread sideways, so that each is visible.
    jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(tokens)) * (at is not None)
    fig = Figure(figsize=(10.5, 4.4), layout="constrained")
    shown = (("log_prob", "log_prob: nats of the whole answer"), ("avg_log_prob", "avg_log_prob: nats a token"))
    for ax, (name, title), colour in zip(fig.subplots(1, 2), shown, (COLOURS[0], COLOURS[4]), strict=True):
        values = np.asarray([row["reward/log_prob"] for row in rows], float)
        values = values if name == "log_prob" else values / np.maximum(tokens, 1)
        panel_style(ax, title)
        dots = {"linestyle": "", "marker": ".", "markersize": 5, "markeredgewidth": 0}
        ax.plot(tokens + jitter, values, **dots, color=colour, alpha=0.3, gid="each chain", rasterized=True)
        bins = [part == b for b in range(len(edges) - 1) if (part == b).any()]
        quartiles = np.asarray([np.quantile(values[of], (0.25, 0.5, 0.75)) for of in bins]).T
        line = {"color": INK, "marker": "o", "markersize": 5, "linewidth": 1.5, "capsize": 2, "elinewidth": 1}
        ax.errorbar([tokens[of].mean() for of in bins], quartiles[1], yerr=np.diff(quartiles, axis=0), **line)
        ax.set_xlabel("scored tokens of the reference answer", fontsize=11, color=INK)
        if name == "log_prob":
            _probability(ax)
    questions = len({row["id"] for row in rows})
    words = f"Dots: {len(rows)} sampled chains of {questions} questions.  Line: median and quartiles."
    footnote(fig, words)
    fig.get_layout_engine().set(wspace=0.08)
    return fig


def _probability(ax) -> None:
    """A second axis: powers of ten of the probability, of an axis in nats."""
    other = ax.secondary_yaxis("right", functions=(lambda nats: nats / np.log(10), lambda power: power * np.log(10)))
    other.set_ylabel("prob: the same, as a probability", fontsize=10, color=INK)
    other.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    other.tick_params(length=0, colors=INK, labelsize=10)
    other.spines["right"].set_visible(False)
