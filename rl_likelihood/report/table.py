"""Before and after, side by side: the same few numbers of several evaluations as text."""

from __future__ import annotations

import math

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
    cells = _cells(columns, rows)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join([label.ljust(widths[0]), *(text.rjust(w) for text, w in zip(numbers, widths[1:], strict=True))])
        for label, *numbers in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(text.rstrip() for text in lines)


def side_by_side_markdown(columns: dict[str, dict[str, float]], rows: list[Row] | tuple[Row, ...] = EVAL_ROWS) -> str:
    """The same table in Markdown."""
    cells = [[text.replace("|", "\\|") for text in line] for line in _cells(columns, rows)]
    cells.insert(1, ["---"] + ["---:"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
