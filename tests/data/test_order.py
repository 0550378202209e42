"""The order of rows: every row once an epoch, shared by hosts, known from the step alone."""

from __future__ import annotations

import numpy as np
import pytest

from rl_likelihood.data.order import order
from rl_likelihood.errors import UserError


def test_every_row_once_an_epoch_and_each_epoch_in_a_new_order():
    rows_of = order(12, 4, seed=3)
    epochs = [np.concatenate([rows_of(3 * e + i) for i in range(3)]) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not any(list(epoch) == list(range(12)) for epoch in epochs)


def test_epochs_are_whole_when_steps_span_them():
    rows_of = order(10, 4, seed=0)
    stream = np.concatenate([rows_of(i) for i in range(15)])
    for e in range(6):
        assert sorted(stream[10 * e : 10 * e + 10]) == list(range(10))


def test_order_needs_only_the_step():
    rows_of = order(100, 7, seed=1)
    later = rows_of(500)
    assert later.shape == (7,) and later.dtype == np.int64
    np.testing.assert_array_equal(later, order(100, 7, seed=1)(500))
    assert not np.array_equal(later, order(100, 7, seed=2)(500))


def test_order_of_nothing_is_refused():
    with pytest.raises(UserError, match="8 prompts a step from 0 training questions"):
        order(0, 8, seed=0)
