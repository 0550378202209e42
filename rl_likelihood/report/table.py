"""The runs of a grid as tables: for each name and metric the mean over seeds, with its errors."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.statistics import NORMAL
from rl_likelihood.evaluation.trace import PERCENT
from rl_likelihood.report import metric_table
from rl_likelihood.report.metric_table import Metric, metric
from rl_likelihood.runtime import run_files

MISSING = "-"
SEED = "seed"
UNTOUCHED = "untouched"

# A column that no run measured is left out of a table.
GRID_COLUMNS = [
    metric(name)
    for name in """greedy_success sampled_success greedy_success_no_chain sampled_success_no_chain perplexity
        perplexity_no_chain perplexity_swapped log_prob_mc1 log_prob_mc32 log_prob_no_chain chain_length
        chain_length_no_chain truncated chain_gain trace_area""".split()
]
GRID_COLUMNS += [metric(f"trace@{percent}") for percent in PERCENT]
# Only in tables of conversations with an environment.
OF_CONVERSATIONS = [metric(name) for name in ("env_reward", "calls_f1", "calls", "bad_calls", "out_of_turns")]
# Only in tables of texts (eval.texts); the last three need eval.by_initial.
ANSWERS = """answered distinct_1 distinct_2 self_bleu compression copied verse_lines verse_syllables
    verse_rhymes""".split()
BY_INITIAL = [f"{name}_by_initial" for name in ("perplexity", "perplexity_no_chain", "perplexity_swapped")]
OF_TEXTS = [metric(name) for name in (*ANSWERS, *BY_INITIAL)]
COLUMNS = [*GRID_COLUMNS, *OF_TEXTS, *OF_CONVERSATIONS]
# The CSV has these. Other tables show log_prob_mc1 only beside a published value, as perplexity says the same, and
# never show the others.
ON_REQUEST = ("log_prob_mc1", "log_prob_no_chain", "chain_length_no_chain", "chain_gain")
# What replaces a metric where a model was fine-tuned on answers alone, and so is asked without a chain. The empty chain
# is the only one, so its log-mean-exp over 32 chains is the log-prob itself.
WITHOUT_CHAIN = {
    "greedy_success": "greedy_success_no_chain",
    "sampled_success": "sampled_success_no_chain",
    "perplexity": "perplexity_no_chain",
    "log_prob_mc1": "log_prob_no_chain",
    "log_prob_mc32": "log_prob_no_chain",
    "chain_length": "chain_length_no_chain",
    "perplexity_by_initial": "perplexity_no_chain_by_initial",
    **{name: f"no_chain/{name}" for name in ANSWERS},
}
# Asked without a chain, a model has none of these.
OF_CHAINS = (
    "perplexity_swapped",
    "perplexity_swapped_by_initial",
    "chain_gain",
    "chain_helps",
    "truncated",
    "trace_area",
    *(f"trace@{percent}" for percent in PERCENT),
)


class Run(NamedTuple):
    """A run as a report knows it: what was chosen for it (label -> value) and its folder."""

    labels: Mapping[str, str]
    workdir: Path


class Cell(NamedTuple):
    """A metric over seeds, in the unit that is shown.

    mean, sd, se:   over seeds; se = sd / sqrt(runs), and both are None for one seed
    low, high:      95 % interval over held-out questions, mean over the runs of its ends
    se_questions:   width of that interval / 3.92; the questions are the same for all seeds, so it does not shrink with
                    them, and where no answer is right it is not 0
    """

    mean: float
    sd: float | None
    se: float | None
    se_questions: float | None
    low: float | None
    high: float | None
    runs: int


class Line(NamedTuple):
    """One row of a grid's table: `done` of `runs` are finished and in the cells; `no_chain`: asked without a chain;
    `questions`: held-out questions of each of its evaluations, None where none is finished."""

    name: str
    cells: dict[str, Cell]
    done: int
    runs: int
    no_chain: bool = False
    questions: int | None = None

    def key(self, name: str) -> str:
        """The metric that this line shows under the heading of metric `name`."""
        return WITHOUT_CHAIN.get(name, name) if self.no_chain else name

    def cell(self, name: str) -> Cell | None:
        """What this line shows under the heading of metric `name`."""
        return None if self.no_chain and name in OF_CHAINS else self.cells.get(self.key(name))


class Block(NamedTuple):
    """One table of a grid: what all its lines share, the heading of its first column, its lines."""

    labels: dict[str, str]
    rows: str
    lines: list[Line]

    @property
    def title(self) -> str:
        return title_of(self.labels)

    @property
    def questions(self) -> str:
        """How many held-out questions its numbers come from: "96", or "48 to 96" where lines differ."""
        counts = [line.questions for line in self.lines if line.questions]
        if not counts:
            return ""
        return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def title_of(labels: Mapping[str, str]) -> str:
    """ "model llama, data math": what a table's runs share."""
    return ", ".join(f"{k} {v}" for k, v in labels.items())


# ------------------------------------------------------------------------------------------- one run


def config_of(workdir: str | Path) -> dict[str, Any]:
    """A run's config.json; {} for a run that has not begun."""
    path = Path(workdir) / "config.json"
    return run_files.read_object(path, "leave the run out") if path.exists() else {}


def reward_of(workdir: str | Path) -> str:
    """The reward that a run is trained on, as its config.json says; "" for a run that has not begun."""
    return config_of(workdir).get("reward.name", "")


def supervised(run: Run) -> bool:
    """Whether the run is of reward.name sft, which samples nothing while it trains."""
    reward = reward_of(run.workdir)
    return "sft" in ((reward,) if reward else (run.labels.get("reward"), run.labels.get("reward.name")))


def without_chain(run: Run) -> bool:
    """Whether the run fine-tunes on answers that follow no chain. Its model is then asked without a chain."""
    return supervised(run) and config_of(run.workdir).get("reward.sft_chain", "none") == "none"


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation of a model that is asked without a chain: its numbers without a chain, under the usual names."""
    others = {k: v for k, v in row.items() if k not in WITHOUT_CHAIN and k not in OF_CHAINS}
    return others | {k: row[other] for k, other in WITHOUT_CHAIN.items() if other in row}


def evaluations(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows of eval.jsonl that the run itself wrote, in order; none without the file."""
    return [row for row in _all_evaluations(workdir) if "stage" in row]


def _all_evaluations(workdir: str | Path) -> list[dict[str, Any]]:
    path = Path(workdir) / run_files.EVAL
    return metric_table.read(path) if path.exists() else []


def final(workdir: str | Path) -> dict[str, Any] | None:
    """The evaluation after the last step of a finished run, with what `evaluate` found by the initial model
    (eval.by_initial); None for any other."""
    status = run_files.read_status(workdir)
    if status is None or status["state"] != "done":
        return None
    rows = [row for row in _all_evaluations(workdir) if row.get("step") == status["step"]]
    last = next((row for row in reversed(rows) if "stage" in row), None)
    return last and _by_initial(last, [row for row in rows if "stage" not in row and _same_questions(row, last)])


def _same_questions(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two evaluations of one model seem to be of the same questions: as many, with the same perplexity
    without a chain, which does not depend on samples."""
    one, two = (r.get("perplexity_no_chain") for r in (row, other))
    same = one is not None and two is not None and math.isclose(one, two, rel_tol=1e-3)
    return same and row.get("questions") == other.get("questions")


def _by_initial(last: dict[str, Any], later: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`last` with the numbers by the initial model, and their intervals, of later evaluations."""
    of = lambda row: {k: v for k, v in row.items() if k.endswith("_by_initial")}
    out = dict(last)
    for row in later:
        out |= of(row) | {"ci95": out.get("ci95", {}) | of(row.get("ci95", {}))}
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


# ------------------------------------------------------------------------------------------- a grid


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


def cell(rows: Sequence[Mapping[str, Any]], column: Metric) -> Cell | None:
    """A metric of several evaluations in the unit that is shown; None if one of them lacks it."""
    values = [row.get(column.name) for row in rows]
    if not values or any(v is None for v in values):
        return None
    ends = [row.get("ci95", {}).get(column.name) for row in rows]
    low, high = (statistics.fmean(e) for e in zip(*ends, strict=True)) if None not in ends else (None, None)
    sd = statistics.stdev(values) if len(values) > 1 else None
    se = None if sd is None else sd / math.sqrt(len(values))
    se_questions = None if low is None else (high - low) / NORMAL
    numbers = (statistics.fmean(values), sd, se, se_questions, low, high)
    return Cell(*(None if x is None else column.scale * x for x in numbers), len(values))


def _line(name: str, rows: list[dict[str, Any]], runs: int, no_chain: bool = False) -> Line:
    instead = [dataclasses.replace(metric(name), name=other) for name, other in WITHOUT_CHAIN.items()]
    cells = {c.name: made for c in (*COLUMNS, *instead) if (made := cell(rows, c)) is not None}
    questions = min((row["questions"] for row in rows if "questions" in row), default=None)
    return Line(name, cells, len(rows), runs, no_chain, questions)


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
