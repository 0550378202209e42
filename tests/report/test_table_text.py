"""Tables as text: side by side, of one evaluation, and in one line."""

import csv
import math
from pathlib import Path

from rl_likelihood.report.metric_table import metric
from rl_likelihood.report.table import Block, Cell, Line
from rl_likelihood.report.table_text import FORMATS, aligned, cell_text, evaluation, evaluation_line, side_by_side

GRID = Path(__file__).parents[2] / "experiments" / "results" / "cpu_grid"

COLUMNS = {
    "untouched": {"greedy_success": 0.0712, "perplexity": 12.3456, "other": 1.0},
    "after RL": {"greedy_success": 0.5, "perplexity": math.inf, "chain_length": 31.26},
}


def test_plain_table_is_aligned_and_shows_what_is_missing():
    assert side_by_side(COLUMNS).splitlines() == [
        "                                untouched  after RL",
        "------------------------------  ---------  --------",
        "greedy success                       7.1%     50.0%",
        "perplexity of the answer           12.346       inf",
        "chain length with tags, tokens          -      31.3",
    ]


def test_a_null_number_is_missing():
    assert side_by_side({"a": {"perplexity": None}}).splitlines()[-1].endswith("-")


def test_what_rounds_to_zero_has_no_sign():
    assert side_by_side({"a": {"perplexity": -1e-6, "greedy_success": -1e-6}}).split()[-1] == "0.000"
    assert cell_text(Cell(-0.004, None, None, None, None, None, 1), metric("greedy_success")) == "0.0"


def test_long_headings_are_broken_over_the_numbers():
    lines = aligned([["name", "a heading of five words"], ["x", "1.0 ± 0.1 (0.2)"]]).splitlines()
    assert [line.split() for line in lines[:2]] == [["a", "heading", "of"], ["name", "five", "words"]]
    assert len(set(map(len, lines))) == 1 and lines[-1].endswith("(0.2)")


def test_the_table_of_an_evaluation_has_every_metric_with_its_interval_and_its_questions():
    row = {
        "step": 4,
        "stage": "after 4 steps",
        "greedy_success": 0.0,
        "greedy_success_se": 0.036,
        "pass@2": 0.25,
        "log_prob_mc32": -1.5,
        "ci95": {"greedy_success": [0.0, 0.142], "log_prob_mc32": [-1.75, -1.25]},
        "questions_of": {"log_prob_mc32": 12},
        "questions": 24,
        "samples": 2,
        "records": "evaluations/x.jsonl",
    }
    lines = [line.split("  ") for line in evaluation(row).splitlines()[2:]]
    assert [[text.strip() for text in line if text.strip()] for line in lines] == [
        ["greedy success", "0.0%", "0.0% to 14.2%", "24"],
        ["pass@2", "25.0%", "24"],
        ["log-prob per token, MC32, nats", "-1.500", "-1.750 to -1.250", "12"],
    ]


def test_an_evaluation_in_one_line_says_what_was_asked_for():
    row = {"greedy_success": 0.5, "chain_length": 31.26, "questions": 96, "seconds": 12.4}
    line = evaluation_line("untouched", row)
    assert line == "untouched: greedy success 50.0%, chain length with tags 31.3 tokens; 96 questions in 12 s"


def test_the_committed_tables_of_a_grid_hold_the_same_numbers():
    tasks: dict[str, dict[str, Line]] = {}
    with open(GRID / "table.csv", newline="") as file:
        for row in csv.DictReader(file):
            no_chain, counts = row["reward"] == "sft", [int(row[name]) for name in ("done", "runs")]
            made = Line(row["reward"], {}, *counts, no_chain, int(row["questions"]))
            cells = tasks.setdefault(row["task"], {}).setdefault(row["reward"], made).cells
            if row["mean"]:
                # Of truncated there are no intervals: its values are those in report.html, which has none.
                numbers = (float(row[name]) if row[name] else None for name in Cell._fields[:-1])
                cells[row["measured"]] = Cell(*numbers, counts[0])
    blocks = [Block({"task": task}, "reward", [*lines.values()]) for task, lines in tasks.items()]
    for kind, name in (("csv", "table.csv"), ("markdown", "table.md"), ("latex", "table.tex")):
        assert (GRID / name).read_text() == FORMATS[kind](blocks) + "\n", name
