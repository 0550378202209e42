"""The ids with which all prompts begin."""

import dataclasses

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.data.token_ids import LEAST_COMMON, common_ids
from rl_likelihood.task import load
from tests.runs import small_config

BEGIN = np.arange(LEAST_COMMON + 4)


def after(*ends):
    return [np.append(BEGIN, end) for end in ends]


def test_it_is_what_all_prompts_share_and_never_a_whole_prompt():
    np.testing.assert_array_equal(common_ids(after([90], [91, 7], [5])), BEGIN)
    np.testing.assert_array_equal(common_ids(after([90, 4], [90])), BEGIN, "one id is left")
    np.testing.assert_array_equal(common_ids(after([90, 4, 5], [90, 4, 6])), [*BEGIN, 90, 4])


@pytest.mark.parametrize(
    "prompts",
    [
        [*after([5]), np.arange(1, LEAST_COMMON + 9)],  # one begins otherwise
        [np.append(BEGIN[: LEAST_COMMON - 1], 90), np.append(BEGIN[: LEAST_COMMON - 1], 91)],  # short
        [],
    ],
)
def test_otherwise_there_is_none(prompts):
    assert not len(common_ids(prompts))


def test_a_task_says_it_of_batches_whose_rows_all_have_it():
    task, _ = load(build(small_config(data__tasks=("one_operation",), prompt__examples=1, prompt__max_prompt=400)))
    common = task.common
    assert len(common) > LEAST_COMMON
    for row in (*task.train, *task.heldout):
        np.testing.assert_array_equal(row.prompt_ids[: len(common)], common)
    rows = task.train[:2]
    assert task.collate(rows, np.arange(2)).common == len(common)
    other = dataclasses.replace(rows[1], prompt_ids=rows[1].prompt_ids[1:])
    assert task.collate([rows[0], other], np.arange(2)).common == 0
