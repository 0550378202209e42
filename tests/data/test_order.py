"""The order of rows: every row once an epoch, shared by hosts, known from the step alone."""

from __future__ import annotations

import numpy as np
import pytest

from rl_likelihood.data.order import order
from rl_likelihood.shapes import UserError


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


@pytest.mark.parametrize("n, batch, hosts", [(12, 4, 2), (10, 6, 3), (7, 8, 8), (5, 4, 1)])
def test_hosts_share_the_order_of_one(n, batch, hosts):
    """Disjoint places of the stream, together all of it, and each host's part known from its number and the step."""
    alone = order(n, batch, seed=2)
    parts = [order(n, batch, 2, host, hosts) for host in range(hosts)]
    for step in (0, 1, 17, 500):
        shares = [rows_of(step) for rows_of in parts]
        assert {len(share) for share in shares} == {batch // hosts}
        np.testing.assert_array_equal(np.concatenate(shares), alone(step))
    epoch = [rows_of(step) for step in range(n * 3) for rows_of in parts]
    assert sorted(np.concatenate(epoch)) == sorted(list(range(n)) * (3 * batch)), "whole epochs, whoever reads them"


def test_a_resumed_order_is_the_unbroken_one():
    unbroken = [order(11, 4, seed=5, host=1, hosts=2)(step) for step in range(9)]
    resumed = order(11, 4, seed=5, host=1, hosts=2)  # another process, which knows nothing but its step
    np.testing.assert_array_equal([resumed(step) for step in range(5, 9)], unbroken[5:])


def test_hosts_that_do_not_divide_a_step_are_refused():
    with pytest.raises(UserError, match="prompts_per_step = 6 .* 4 processes .* multiple of 4"):
        order(10, 6, 0, 1, 4)
    with pytest.raises(UserError, match="number 2"):
        order(10, 6, 0, 2, 2)


def test_order_of_nothing_is_refused():
    with pytest.raises(UserError, match="8 prompts a step from 0 training questions"):
        order(0, 8, seed=0)
