import math

from rl_likelihood.report.table import EVAL_ROWS, side_by_side, side_by_side_markdown

COLUMNS = {
    "untouched": {"greedy_success": 0.0712, "perplexity": 12.3456, "other": 1.0},
    "after RL": {"greedy_success": 0.5, "perplexity": math.inf, "chain_length": 31.26},
}


def test_plain_table_is_aligned_and_shows_what_is_missing():
    assert side_by_side(COLUMNS).splitlines() == [
        "                                         untouched  after RL",
        "---------------------------------------  ---------  --------",
        "greedy success                                7.1%     50.0%",
        "perplexity of the answer, after a chain     12.346       inf",
        "chain length, tokens                             -      31.3",
    ]


def test_markdown_table():
    text = side_by_side_markdown({"a|b": {"x": 1.25}}, [("x", "the x", ".1f"), ("y", "never measured", ".1f")])
    assert text.splitlines() == ["|  | a\\|b |", "| --- | ---: |", "| the x | 1.2 |"]


def test_a_null_number_is_missing():
    assert side_by_side({"a": {"perplexity": None}}, EVAL_ROWS).splitlines()[-1].endswith("-")
