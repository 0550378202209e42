"""Tables: evaluations side by side, and the runs of a grid, reward by metric, over their seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_likelihood.runtime import run_files
from rl_likelihood.shapes import UserError

Row = tuple[str, str, str]  # metric name, label for people, format specification such as ".1%"

# The rows a person looks at after a run (names of eval.jsonl).
EVAL_ROWS: tuple[Row, ...] = (
    ("greedy_success", "greedy success", ".1%"),
    ("sampled_success", "sampled success", ".1%"),
    ("greedy_success_no_chain", "greedy success without a chain", ".1%"),
    ("perplexity", "perplexity of the answer, after a chain", ".3f"),
    ("perplexity_no_chain", "perplexity of the answer, no chain", ".3f"),
    ("chain_length", "chain length, tokens", ".1f"),
    ("truncated", "chains that never open the answer", ".1%"),
)

MISSING = "-"


def _cell(value: float | None, spec: str) -> str:
    if value is None:
        return MISSING
    return format(value, spec) if math.isfinite(value) else str(value)


def _cells(columns: dict[str, dict[str, float]], rows: list[Row] | tuple[Row, ...]) -> list[list[str]]:
    """Header and body as strings. A row that no column has is left out: it was not measured."""
    shown = [row for row in rows if any(row[0] in c for c in columns.values())]
    body = [[label, *(_cell(c.get(key), spec) for c in columns.values())] for key, label, spec in shown]
    return [["", *columns], *body]


def side_by_side(columns: dict[str, dict[str, float]], rows: list[Row] | tuple[Row, ...] = EVAL_ROWS) -> str:
    """Plain text: one column an entry of `columns` (title -> metrics), one line a row, numbers right-aligned.

    A number that one column lacks is shown as "-", a non-finite one by its name.
    """
    return _aligned(_cells(columns, rows))


def _aligned(cells: list[list[str]]) -> str:
    """Header and lines in columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join([label.ljust(widths[0]), *(text.rjust(w) for text, w in zip(numbers, widths[1:], strict=True))])
        for label, *numbers in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(text.rstrip() for text in lines)


def side_by_side_markdown(columns: dict[str, dict[str, float]], rows: list[Row] | tuple[Row, ...] = EVAL_ROWS) -> str:
    """The same table in Markdown."""
    return _markdown(_cells(columns, rows))


def _markdown(cells: list[list[str]]) -> str:
    cells = [[text.replace("|", "\\|") for text in line] for line in cells]
    cells.insert(1, ["---"] + ["---:"] * (len(cells[0]) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


# ------------------------------------------------------------------------------------------- a grid of runs


class Run(NamedTuple):
    """A run as a report sees it: what was chosen for it (label -> value) and its folder."""

    labels: Mapping[str, str]
    workdir: Path


class Column(NamedTuple):
    """A metric of eval.jsonl, its heading, what it is multiplied by, and its decimals."""

    key: str
    label: str
    scale: float
    digits: int


# Published tables have these; a column that no run measured is left out.
GRID_COLUMNS = (
    Column("greedy_success", "greedy success %", 100, 1),
    Column("sampled_success", "success at T=1 %", 100, 1),
    Column("greedy_success_no_chain", "greedy, no chain %", 100, 1),
    Column("sampled_success_no_chain", "T=1, no chain %", 100, 1),
    Column("perplexity", "perplexity", 1, 2),
    Column("perplexity_no_chain", "perplexity, no chain", 1, 2),
    Column("log_prob_mc1", "log-prob MC1", 1, 3),
    Column("log_prob_mc32", "log-prob MC32", 1, 3),
    Column("log_prob_no_chain", "log-prob, no chain", 1, 3),
    Column("chain_length", "chain, tokens", 1, 1),
    Column("chain_length_no_chain", "no chain, tokens", 1, 1),
    Column("chain_gain", "chain adds, nats", 1, 2),
)
# In the CSV always, and the first beside a published one: perplexity says the same, or it is the same for all.
ON_REQUEST = ("log_prob_mc1", "log_prob_no_chain", "chain_length_no_chain", "chain_gain")
# What stands for a metric where a model was fine-tuned on answers alone, and so is asked without a chain. The empty
# chain is one, so its MC32 is the log-prob itself.
WITHOUT_CHAIN = {
    "greedy_success": "greedy_success_no_chain",
    "sampled_success": "sampled_success_no_chain",
    "perplexity": "perplexity_no_chain",
    "log_prob_mc1": "log_prob_no_chain",
    "log_prob_mc32": "log_prob_no_chain",
    "chain_length": "chain_length_no_chain",
}
OF_CHAINS = ("chain_gain", "chain_helps", "truncated")  # asked without a chain, a model has none of these
SEED = "seed"
UNTOUCHED = "untouched"
_NORMAL = 2 * 1.96  # standard errors in a 95 % interval


class Cell(NamedTuple):
    """A metric over seeds, in its column's unit.

    mean, sd, se:   over seeds; se = sd / sqrt(runs), and both are None for one seed
    se_questions:   mean over the runs of the standard error over held-out questions that each states, or the width of
                    its 95 % interval / 3.92; the questions are the same for all seeds, so it does not shrink with them
    low, high:      mean over the runs of the ends of that interval
    """

    mean: float
    sd: float | None
    se: float | None
    se_questions: float | None
    low: float | None
    high: float | None
    runs: int


class Line(NamedTuple):
    """One row of a grid's table: `done` of `runs` are finished and in the cells; `no_chain`: asked without a chain."""

    name: str
    cells: dict[str, Cell]
    done: int
    runs: int
    no_chain: bool = False

    def key(self, metric: str) -> str:
        """The metric that stands for `metric` in this line."""
        return WITHOUT_CHAIN.get(metric, metric) if self.no_chain else metric

    def cell(self, metric: str) -> Cell | None:
        """What is to be shown of `metric`."""
        return None if self.no_chain and metric in OF_CHAINS else self.cells.get(self.key(metric))


class Block(NamedTuple):
    """One table of a grid: what all its lines share, the heading of its first column, its lines."""

    labels: dict[str, str]
    rows: str
    lines: list[Line]

    @property
    def title(self) -> str:
        return title_of(self.labels)


def title_of(labels: Mapping[str, str]) -> str:
    """ "model llama, data math": what a table's runs share."""
    return ", ".join(f"{k} {v}" for k, v in labels.items())


def without_chain(run: Run) -> bool:
    """Whether the run fine-tunes on answers alone (reward.name sft), so that its model is asked without a chain."""
    path = Path(run.workdir) / "config.json"
    if not path.exists():  # not begun
        return "sft" in (run.labels.get("reward"), run.labels.get("reward.name"))
    try:
        return json.loads(path.read_text()).get("reward.name") == "sft"
    except ValueError:
        raise UserError(f"{path}: not JSON; delete the folder and run the point again") from None


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation with the numbers without a chain in the place of those after one."""
    kept = {k: v for k, v in row.items() if k not in WITHOUT_CHAIN and k not in OF_CHAINS}
    return kept | {k: row[other] for k, other in WITHOUT_CHAIN.items() if other in row}


def evaluations(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows of eval.jsonl that the run itself wrote, in order; none without the file."""
    path = Path(workdir) / run_files.EVAL
    return [row for row in run_files.read(path) if "stage" in row] if path.exists() else []


def final(workdir: str | Path) -> dict[str, Any] | None:
    """The evaluation after the last step of a finished run; None for any other."""
    status = run_files.read_status(workdir)
    if status is None or status["state"] != "done":
        return None
    return next((row for row in reversed(evaluations(workdir)) if row["step"] == status["steps"]), None)


def row_label(runs: Sequence[Run], wanted: str) -> str:
    """The label that names rows: `wanted`, or a field of that name as reward.name, or refused."""
    names = {name for run in runs for name in run.labels}
    for name in (wanted, f"{wanted}.name"):
        if name in names:
            return name
    raise UserError(f"table: no point says its {wanted!r}; the rows must be one of {', '.join(sorted(names))}")


def grouped(runs: Iterable[Run], rows: str) -> dict[tuple[tuple[str, str], ...], dict[str, list[Run]]]:
    """{what a table shares: {row: its runs, one a seed}}, in the order of the runs.

    A run that lacks a label (sft has no group size) belongs to every table whose other labels are its own.
    """
    runs = list(runs)
    varying = [k for k in dict.fromkeys(k for r in runs for k in r.labels) if k not in (rows, SEED)]
    varying = [k for k in varying if len({run.labels.get(k) for run in runs}) > 1]
    own = [tuple((k, run.labels[k]) for k in varying if k in run.labels) for run in runs]
    tables = [a for a in dict.fromkeys(own) if not any(set(a) < set(b) for b in own)]
    groups: dict[tuple[tuple[str, str], ...], dict[str, list[Run]]] = {shared: {} for shared in tables}
    for shared, lines in groups.items():
        for run, labels in zip(runs, own, strict=True):
            if set(labels) <= set(shared):
                lines.setdefault(run.labels.get(rows, MISSING), []).append(run)
    return groups


def cell(rows: Sequence[Mapping[str, Any]], column: Column) -> Cell | None:
    """A metric of several evaluations in the column's unit; None if one of them lacks it."""
    values = [row.get(column.key) for row in rows]
    if not values or any(v is None for v in values):
        return None
    ends = [row.get("ci95", {}).get(column.key) for row in rows]
    low, high = (statistics.fmean(e) for e in zip(*ends, strict=True)) if None not in ends else (None, None)
    errors = [row.get(f"{column.key}_se") for row in rows]
    se_questions = None if low is None else (high - low) / _NORMAL
    if None not in errors:
        se_questions = statistics.fmean(errors)
    sd = statistics.stdev(values) if len(values) > 1 else None
    se = None if sd is None else sd / math.sqrt(len(values))
    found = (statistics.fmean(values), sd, se, se_questions, low, high)
    return Cell(*(None if x is None else column.scale * x for x in found), len(values))


def _line(name: str, rows: list[dict[str, Any]], runs: int, no_chain: bool = False) -> Line:
    cells = {c.key: found for c in GRID_COLUMNS if (found := cell(rows, c)) is not None}
    return Line(name, cells, len(rows), runs, no_chain)


def blocks(runs: Iterable[Run], rows: str = "reward") -> list[Block]:
    """The tables of a grid: one for each combination of the labels that are neither `rows` nor the seed.

    The first line is the untouched model, once for each seed; the others are finished runs. A line without any
    is shown without numbers.
    """
    runs = list(runs)
    rows = row_label(runs, rows)
    out = []
    for shared, lines in grouped(runs, rows).items():
        first = starts(run for group in lines.values() for run in group)
        made = [_line(UNTOUCHED, list(first.values()), len(first))] if first else []
        for name, group in lines.items():
            ended = [row for run in group if (row := final(run.workdir)) is not None]
            made.append(_line(name, ended, len(group), all(map(without_chain, group))))
        out.append(Block(dict(shared), rows, made))
    return out


def starts(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """The evaluation before the first step, by seed: it is the same for all rewards, so one run may have made it."""
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        at_start = next((row for row in evaluations(run.workdir) if row["step"] == 0), None)
        if at_start:
            first.setdefault(run.labels.get(SEED, ""), at_start)
    return first


def stages(run: Run) -> Block:
    """The table of one run: a line for each of its evaluations."""
    no_chain = without_chain(run)
    lines = [_line(row["stage"], [row], 1, no_chain) for row in evaluations(run.workdir)]
    return Block(dict(run.labels), "stage", lines)


def cell_text(found: Cell | None, column: Column) -> str:
    """ "34.9 ± 2.4 (4.2)": mean, standard error over seeds, standard error over questions."""
    if found is None:
        return MISSING
    number = lambda x: f"{x:.{column.digits}f}"
    se = f" ± {number(found.se)}" if found.se is not None else ""
    of_questions = f" ({number(found.se_questions)})" if found.se_questions is not None else ""
    return number(found.mean) + se + of_questions


def matrix(block: Block, paper: Sequence[Mapping[str, Any]] = ()) -> list[list[str]]:
    """Heading and lines of a block as text; `paper`: published numbers, set beside in brackets.

    A column that no run measured is there if it was published; so is the untouched model.
    """
    lines = block.lines
    if published(block, UNTOUCHED, paper) and UNTOUCHED not in (line.name for line in lines):
        lines = [Line(UNTOUCHED, {}, 0, 0), *lines]
    theirs = {line.name: published(block, line.name, paper) for line in lines}
    beside = {line.name: {c.key: theirs[line.name].get(line.key(c.key)) for c in GRID_COLUMNS} for line in lines}
    wanted = {key for line in lines for key in line.cells} - {*ON_REQUEST}
    wanted |= {key for found in beside.values() for key, value in found.items() if value is not None}
    wanted -= {*ON_REQUEST[1:]}
    columns = [c for c in GRID_COLUMNS if c.key in wanted]
    out = [[block.rows, *(c.label for c in columns), "runs"]]
    for line in lines:
        cells = []
        for c in columns:
            text = cell_text(line.cell(c.key), c)
            mark = "†" if line.key(c.key) != c.key and text != MISSING else ""
            value = beside[line.name][c.key]
            cells.append(text + mark + (f" [{_published_text(value)}]" if value is not None else ""))
        out.append([line.name, *cells, f"{line.done}/{line.runs}"])
    return out


def published(block: Block, name: str, paper: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first published row whose labels are all of this line's; nothing if there is none."""
    labels = {**block.labels, block.rows: name}
    return next((p for p in paper if all(labels.get(k) == v for k, v in p["labels"].items())), {})


def _published_text(value: Any) -> str:
    return f"{value[0]} ± {value[1]}" if isinstance(value, tuple | list) else str(value)


CAPTION = (
    "Mean ± standard error over seeds (standard error over held-out questions); †: asked without a chain, as it was "
    "trained; runs: finished of planned; -: not measured."
)


def grid_text(found: Sequence[Block], paper: Sequence[Mapping[str, Any]] = ()) -> str:
    """For the console."""
    parts = [(f"{b.title}\n" if b.title else "") + _aligned(matrix(b, paper)) for b in found]
    return "\n\n".join([*parts, caption(paper)])


def grid_markdown(found: Sequence[Block], paper: Sequence[Mapping[str, Any]] = ()) -> str:
    parts = [(f"### {b.title}\n\n" if b.title else "") + _markdown(matrix(b, paper)) for b in found]
    return "\n\n".join([*parts, caption(paper)])


def caption(paper: Sequence[Mapping[str, Any]]) -> str:
    """What the marks in a table mean."""
    return CAPTION + (" [ ]: as published, ± a standard deviation over seeds." if paper else "")


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "†": r"$^\dagger$",
    }
)


def grid_latex(found: Sequence[Block], paper: Sequence[Mapping[str, Any]] = ()) -> str:
    """One tabular a block, with no package but LaTeX itself."""
    out = []
    for block in found:
        head, *lines = [[text.translate(_LATEX) for text in line] for line in matrix(block, paper)]
        body = [" & ".join(line) + r" \\" for line in lines]
        out += [f"% {block.title}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\hline"]
        out += [" & ".join(head) + r" \\", r"\hline", *body, r"\hline", r"\end{tabular}", ""]
    return "\n".join([*out, f"% {caption(paper).translate(_LATEX)}"])


def grid_csv(found: Sequence[Block], paper: Sequence[Mapping[str, Any]] = ()) -> str:
    """Long form, one line a cell: the labels, metric, the fields of `Cell`, finished and planned runs, as published.

    Metrics under their own names: what is asked without a chain is not put in the place of what is asked after one.
    """
    names = list(dict.fromkeys(k for b in found for k in b.labels))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    rows = found[0].rows if found else "row"
    writer.writerow([*names, rows, "metric", *Cell._fields[:-1], "done", "runs", "published"])
    for block in found:
        for line in block.lines:
            theirs = published(block, line.name, paper)
            for column in GRID_COLUMNS:
                c = line.cells.get(column.key)
                values = ["" if x is None else repr(round(x, 6)) for x in (c[:-1] if c else (None,) * 6)]
                beside = re.sub(r"[()]", "", str(theirs.get(column.key, "")))
                shared = [block.labels.get(name, "") for name in names]
                writer.writerow([*shared, line.name, column.key, *values, line.done, line.runs, beside])
    return file.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[..., str]] = {
    "text": grid_text,
    "markdown": grid_markdown,
    "latex": grid_latex,
    "csv": grid_csv,
}
