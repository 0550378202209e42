"""Tables as text: for the console, Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_likelihood.progress import counted
from rl_likelihood.report.metric_table import NOT_METRICS, Metric, metric
from rl_likelihood.report.table import COLUMNS, GRID_COLUMNS, MISSING, ON_REQUEST, UNTOUCHED, Block, Cell, Line

# What a person looks at after a run.
EVAL_ROWS = """greedy_success sampled_success greedy_success_no_chain perplexity perplexity_no_chain chain_length
    truncated env_reward calls bad_calls out_of_turns""".split()
EVAL_LINE = ("greedy_success", "sampled_success", "perplexity", "perplexity_no_chain", "chain_length", "env_reward")
# Numbers that describe an evaluation, not the model.
OF_THE_EVALUATION = "questions samples mc_samples seconds grader_failures mc_grader_failures".split()
Paper = Sequence[Mapping[str, Any]]  # published numbers: labels, and metrics under their names


def number(value: float | None, of: Metric) -> str:
    """A number of one evaluation with its unit where that is %."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    digits = of.digits if of.unit in ("%", "tokens") else max(of.digits, 3)
    return f"{of.scale * value:z.{digits}f}" + ("%" if of.unit == "%" else "")


def side_by_side(columns: Mapping[str, Mapping[str, float]]) -> str:
    """One column for each entry of `columns` (title -> metrics), one line for each metric that was measured."""
    measured = [metric(name) for name in EVAL_ROWS if any(name in c for c in columns.values())]
    body = [
        [m.label if m.unit == "%" else m.heading, *(number(c.get(m.name), m) for c in columns.values())]
        for m in measured
    ]
    return aligned([["", *columns], *body])


def evaluation(row: Mapping[str, Any]) -> str:
    """A table of an evaluation: its metrics, each with its 95 % interval and the questions that it is made of."""
    lines = []
    for name, value in row.items():
        if name in NOT_METRICS or name in OF_THE_EVALUATION or name.endswith("_se"):
            continue
        m, ends = metric(name), row.get("ci95", {}).get(name)
        interval = "" if ends is None else f"{number(ends[0], m)} to {number(ends[1], m)}"
        questions = row.get("questions_of", {}).get(name, row["questions"])
        lines.append([m.label if m.unit == "%" else m.heading, number(value, m), interval, f"{questions:.0f}"])
    return aligned([["", "value", "95 % interval", "questions"], *lines])


def evaluation_line(stage: str, row: Mapping[str, Any]) -> str:
    parts = []
    for name in EVAL_LINE:
        if name in row:
            m = metric(name)
            unit = f" {m.unit}" if m.unit not in ("", "%") else ""
            parts.append(f"{m.label} {number(row[name], m)}{unit}")
    return f"{stage}: {', '.join(parts)}; {counted(row['questions'], 'question')} in {row['seconds']:.0f} s"


def aligned(cells: list[list[str]]) -> str:
    """Heading and lines in columns: the first to the left, the others to the right. Long headings are broken."""
    columns = list(zip(*cells, strict=True))
    heads = [[columns[0][0]]]
    heads += [textwrap.wrap(head, max(14, *map(len, body))) for head, *body in columns[1:]]
    high = max(map(len, heads))
    lines = [*zip(*([""] * (high - len(head)) + head for head in heads), strict=True), *cells[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(high, ["-" * w for w in widths])
    justified = [
        [text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in justified)


# ------------------------------------------------------------------------------------------- a grid


def cell_text(cell: Cell | None, column: Metric) -> str:
    """ "34.9 ± 2.4 (4.2)": mean, standard error over seeds, standard error over questions."""
    if cell is None:
        return MISSING
    mean, se, of_questions = (None if x is None else f"{x:z.{column.digits}f}" for x in cell[:1] + cell[2:4])
    return mean + (f" ± {se}" if se else "") + (f" ({of_questions})" if of_questions else "")


def columns_of(block: Block, paper: Paper = ()) -> list[Metric]:
    """The columns of a block: all metrics that were measured or published, without those shown only on request."""
    measured = {name for line in block.lines for name in line.cells} - {*ON_REQUEST}
    for line in _lines(block, paper):
        beside = published(block, line.name, paper)
        measured |= {c.name for c in GRID_COLUMNS if line.key(c.name) in beside}
    return [c for c in COLUMNS if c.name in measured - {*ON_REQUEST[1:]}]


def matrix(block: Block, paper: Paper = ()) -> list[list[str]]:
    """Heading and lines of a block as text. Published numbers (`paper`) follow in brackets.

    A column that no run measured is shown if it was published, and so is the untouched model.
    """
    columns = columns_of(block, paper)
    out = [[block.rows, *(c.heading for c in columns), "runs"]]
    for line in _lines(block, paper):
        beside = published(block, line.name, paper)
        cells = []
        for c in columns:
            text = cell_text(line.cell(c.name), c)
            mark = "†" if line.key(c.name) != c.name and text != MISSING else ""
            value = beside.get(line.key(c.name))
            said = f"{value[0]} ± {value[1]}" if isinstance(value, tuple | list) else value
            cells.append(text + mark + (f" [{said}]" if value is not None else ""))
        out.append([line.name, *cells, f"{line.done}/{line.runs}"])
    return out


def _lines(block: Block, paper: Paper) -> list[Line]:
    """The lines of a block. If only a publication has the untouched model, it gets a line too."""
    if published(block, UNTOUCHED, paper) and UNTOUCHED not in (line.name for line in block.lines):
        return [Line(UNTOUCHED, {}, 0, 0), *block.lines]
    return block.lines


def published(block: Block, name: str, paper: Paper) -> Mapping[str, Any]:
    """The first published row whose labels are all of this line's; nothing if there is none."""
    labels = {**block.labels, block.rows: name}
    return next((p for p in paper if all(labels.get(k) == v for k, v in p["labels"].items())), {})


CAPTION = (
    "Mean ± standard error over seeds (standard error over held-out questions: the width of the 95 % interval / 3.92); "
    "†: asked without a chain, as it was trained; runs: finished of planned; -: not measured."
)


def caption(blocks: Sequence[Block], paper: Paper = ()) -> str:
    """What the marks in a table mean, and how many questions it rests on."""
    counts = list(dict.fromkeys(b.questions for b in blocks if b.questions))
    questions = f" n = {', '.join(counts)} held-out questions." if counts else ""
    return CAPTION + questions + (" [ ]: as published, ± a standard deviation over seeds." if paper else "")


def grid_text(blocks: Sequence[Block], paper: Paper = ()) -> str:
    """For the console."""
    parts = [(f"{b.title}\n" if b.title else "") + aligned(matrix(b, paper)) for b in blocks]
    return "\n\n".join([*parts, caption(blocks, paper)])


def grid_markdown(blocks: Sequence[Block], paper: Paper = ()) -> str:
    parts = []
    for block in blocks:
        cells = [[text.replace("|", "\\|") for text in line] for line in matrix(block, paper)]
        cells.insert(1, ["---"] + ["---:"] * (len(cells[0]) - 1))
        table = "\n".join("| " + " | ".join(line) + " |" for line in cells)
        parts.append((f"### {block.title}\n\n" if block.title else "") + table)
    return "\n\n".join([*parts, caption(blocks, paper)])


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


def grid_latex(blocks: Sequence[Block], paper: Paper = ()) -> str:
    """One table a block, with its caption; the rules are those of the package booktabs."""
    out = [r"% \usepackage{booktabs}"]
    for block in blocks:
        head, *lines = matrix(block, paper)
        heads = [r" \\ ".join(part.translate(_LATEX) for part in textwrap.wrap(text, 16)) for text in head]
        words = f"{block.title[:1].upper()}{block.title[1:]}. " if block.title else ""
        out += [r"\begin{table}", r"\centering", rf"\caption{{{(words + caption([block], paper)).translate(_LATEX)}}}"]
        out += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
        out += [" & ".join(rf"\shortstack{{{text}}}" if r"\\" in text else text for text in heads) + r" \\"]
        out += [r"\midrule", *(" & ".join(t.translate(_LATEX) for t in line) + r" \\" for line in lines)]
        out += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(out).rstrip()


def grid_csv(blocks: Sequence[Block], paper: Paper = ()) -> str:
    """Long form, one line a cell: the labels, metric, the fields of `Cell`, finished and planned runs, as published.

    `metric` is the column of the other tables and holds the same number. `measured` is the name that it has in
    eval.jsonl: another one for a model that is asked without a chain.
    """
    names = list(dict.fromkeys(k for b in blocks for k in b.labels))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    rows = blocks[0].rows if blocks else "row"
    measured = {name for b in blocks for line in b.lines for name in line.cells}
    columns = [c for c in COLUMNS if c in GRID_COLUMNS or c.name in measured]
    writer.writerow([*names, rows, "metric", "measured", *Cell._fields[:-1], "questions", "done", "runs", "published"])
    for block in blocks:
        for line in _lines(block, paper):
            theirs = published(block, line.name, paper)
            for column in columns:
                c, measured = line.cell(column.name), line.key(column.name)
                values = ["" if x is None else repr(round(x, 6)) for x in (c[:-1] if c else (None,) * 6)]
                beside = re.sub(r"[()]", "", str(theirs.get(measured, "")))
                shared = [block.labels.get(name, "") for name in names]
                counts = [line.questions or "", line.done, line.runs]
                writer.writerow([*shared, line.name, column.name, measured, *values, *counts, beside])
    return file.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[..., str]] = {
    "text": grid_text,
    "markdown": grid_markdown,
    "latex": grid_latex,
    "csv": grid_csv,
}
