"""The table of metrics, metrics.csv: name, label, unit, which direction is better, definition.

    python -m rl_likelihood.report.metric_table > docs/metrics.md

The console, tables, figures, the page and docs/metrics.md take their words from it. A name is the one in the files of
a workdir. `{name}`, `{k}` or `{n}` in a name stands for any word or number, so that one row describes a family.
"""

import csv
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError
from rl_likelihood.runtime import run_files


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of metrics.jsonl or eval.jsonl, as `file` says.

    unit:    "%" for a share, which the files hold as 0 to 1
    better:  "higher", "lower", or "" if neither is better
    digits:  decimals in a table
    short:   label in the console line of a step
    sampled: computed from tokens that the policy sampled; sft samples none, so it lacks this metric
    """

    file: str
    name: str
    label: str
    unit: str
    better: str
    digits: int
    short: str
    sampled: bool
    definition: str

    @property
    def scale(self) -> int:
        """Factor from the number in a file to the number that is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def heading(self) -> str:
        """The label with its unit: "chain length with tags, tokens"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def title(self) -> str:
        """The heading as the title of a panel whose axis says %."""
        words = self.label if self.unit == "%" else self.heading
        return words[0].upper() + words[1:]

    @property
    def logarithmic(self) -> bool:
        """Whether its axis may be logarithmic: perplexities span orders of magnitude."""
        return "perplexity" in self.name


def _read() -> list[Metric]:
    with open(Path(__file__).with_name("metrics.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Metric(**row | {"digits": int(row["digits"]), "sampled": row["sampled"] == "yes"}) for row in rows]


METRICS = {row.name: row for row in _read()}
# Other keys of a line in the files.
NOT_METRICS = frozenset({"step", "stage", "data", "records", "records_mc", "examples", "ci95", "questions_of"})

_MARKS = {"{name}": r"(?P<name>.+)", "{k}": r"(?P<k>\d+)", "{n}": r"(?P<n>\d+)"}


@functools.cache
def metric(name: str) -> Metric:
    """The row of a name, or of its family with the label filled in. KeyError for a name that the table lacks."""
    if name in METRICS:
        return METRICS[name]
    for row in METRICS.values():
        pattern = re.escape(row.name)
        for mark, group in _MARKS.items():
            pattern = pattern.replace(re.escape(mark), group)
        if match := re.fullmatch(pattern, name):
            return dataclasses.replace(row, name=name, label=row.label.format(**match.groupdict()))
    raise KeyError(name)


def higher_is_better(name: str) -> bool:
    """Whether higher values of this metric of eval.jsonl are better; UserError if it has no better direction."""
    try:
        better = metric(name).better if metric(name).file == "eval.jsonl" else ""
    except KeyError:
        better = ""
    if not better:
        raise UserError(
            f"train.best is {name!r}; it must be a metric of eval.jsonl for which docs/metrics.md says higher or "
            "lower, such as greedy_success"
        )
    return better == "higher"


def unknown(row: Mapping[str, Any]) -> list[str]:
    """The names in a line of metrics.jsonl or eval.jsonl that the table lacks."""
    missing = []
    for name in row.keys() - NOT_METRICS:
        try:
            metric(name)
        except KeyError:
            missing.append(name)
    return sorted(missing)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or eval.jsonl. UserError, with file and line, where a metric is no number."""
    rows = run_files.read(path)
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if not isinstance(value, int | float | None) and name not in NOT_METRICS and name not in unknown(row):
                raise UserError(f"{path}:{number}: {name} is {value!r}; it must be a number; mend or delete this line")
    return rows


def without_samples(row: Mapping[str, Any]) -> dict[str, Any]:
    """A step's metrics without those of sampled tokens: sft samples none, so they would be 0."""
    return {name: value for name, value in row.items() if not (name in METRICS and METRICS[name].sampled)}


def markdown() -> str:
    """docs/metrics.md."""
    parts = [
        "# Metrics",
        "<!-- Made by `python -m rl_likelihood.report.metric_table > docs/metrics.md` from report/metrics.csv. -->",
        "Shares are 0 to 1 in the files and % wherever they are shown. A name in braces stands for any word or number.",
    ]
    about = {
        "metrics.jsonl": "One line per training step.",
        "eval.jsonl": "One line per evaluation. `ci95` holds 95 % intervals, by bootstrap over the questions. If a "
        "share is 0 or 1 in every question, it is the exact interval of Clopper and Pearson. "
        "`questions_of` has the number of questions behind a metric that not all questions have.",
    }
    for file, words in about.items():
        lines = ["| name | label | unit | better | definition |", "|---|---|---|---|---|"]
        rows = [m for m in METRICS.values() if m.file == file]
        lines += [f"| `{m.name}` | {m.label} | {m.unit} | {m.better} | {m.definition} |" for m in rows]
        parts += [f"## {file}", words, "\n".join(lines)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(markdown())
