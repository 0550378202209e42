"""experiments/rubric_auc.py: the rules, the AUC by hand, and the row of the table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.rubric_auc import NAMES, OUT, auc, criteria, table, with_interval


def test_the_rules_say_which_criteria_are_met():
    texts, met = criteria("Name a colour.", "What about the Colour red?")
    assert 'the word "colour"' in texts[0] and met == [True, True, True]
    assert criteria("Name a colour.", "colours " * 40)[1] == [False, False, False]
    assert criteria("Name a colour.", "colours " * 39)[1] == [False, True, False]


def test_the_auc_is_the_share_of_pairs_in_order():
    met = np.array([True, False, True, False])
    # Pairs (met, not met): .9 > .5, .9 > .2, .5 = .5, .5 > .2.
    assert auc(np.array([0.9, 0.5, 0.5, 0.2]), met) == pytest.approx(3.5 / 4)
    assert math.isnan(auc(np.ones(4), np.ones(4, bool)))
    found = with_interval(np.arange(40.0), np.arange(40) >= 20)
    assert found == {"auc": 1.0, "ci95": [1.0, 1.0]}
    assert NAMES[1] in table({NAMES[1]: {"tasks": 40, "met": 20, "p_yes": found, "length": found}})


def test_the_documents_have_the_table_of_the_results():
    page = Path(__file__).parent.parent / "docs" / "judges.md"
    assert table(json.loads(OUT.read_text())["rows"]) in page.read_text()
