"""Conversations on the console, in the tables of a grid, and in alarms."""

import csv

import pytest

from rl_likelihood.evaluation.evaluate import _example
from rl_likelihood.report.alarms import Alarms
from rl_likelihood.report.table import OF_CONVERSATIONS, Block, Cell, Line
from rl_likelihood.report.table_text import evaluation_line, grid_csv, matrix, side_by_side
from rl_likelihood.tables import parse_reward

ROW = {"greedy_success": 0.0, "env_reward": 0.45, "calls": 2.5, "bad_calls": 0.125, "out_of_turns": 0.25}


def test_the_reward_of_conversations_is_shown_beside_their_success():
    lines = side_by_side({"untouched": ROW}).splitlines()[2:]
    assert [line.split()[-1] for line in lines] == ["0.0%", "0.450", "2.500", "0.125", "25.0%"]
    assert "reward of the environment 0.450; 8 questions" in evaluation_line("x", ROW | {"questions": 8, "seconds": 1})


def test_a_grid_has_columns_of_conversations_only_if_it_has_conversations():
    half = Cell(0.5, None, None, None, None, None, 1)
    for cells, columns in (({"env_reward": half}, {"env_reward"}), ({"perplexity": half}, set())):
        block = Block({}, "reward", [Line("environment", cells, 1, 1)])
        assert ("reward of the environment" in matrix(block)[0]) == bool(columns)
        rows = csv.DictReader(grid_csv([block]).splitlines())
        assert {row["metric"] for row in rows} & {c.name for c in OF_CONVERSATIONS} == columns


@pytest.mark.parametrize(
    "messages", [[], [{"role": "assistant", "text": "Hm."}, {"role": "environment", "text": "No."}]]
)
def test_an_example_says_who_wrote_each_message(messages):
    record = {"prompt": "?", "reference": "!", "greedy": {"messages": messages, "right": None}}
    assert _example(record)["text"] == ("model: Hm.\nreply: No." if messages else "")


def test_conversations_that_all_failed_have_no_open_answer_tag():
    alarms = Alarms(parse_reward("environment"), "force_close")
    (sentence,) = alarms.check(1, {"chain/truncated": 1.0, "env/failures": 8.0})
    assert "env/failures is 8" in sentence
