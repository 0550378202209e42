"""The table of growing work: which points it measures, and what it calls growth."""

import pytest

from bench import cost


def row(point, seconds, flops):
    calls = {call: {"s": seconds, "products": seconds / 2, "flops": flops} for call in cost.CALLS}
    return {**point, "memory": 1.0, **{f"{c}_{k}": v for c, values in calls.items() for k, v in values.items()}}


def test_one_size_changes_at_a_time_and_the_common_point_is_measured_once():
    points = cost.points()
    assert len(points) == sum(map(len, cost.SIZES.values())) - (len(cost.SIZES) - 1)
    assert points.count(cost.BASE) == 1
    assert all(sum(p[k] != cost.BASE[k] for k in p) <= 1 for p in points)
    for axis, sizes in cost.SIZES.items():
        assert [p[axis] for p in cost.along(points, axis)] == list(sizes)


def test_growth_is_that_of_time_over_that_of_the_operations():
    few, many = row(cost.BASE, 3.0, 10.0), row({**cost.BASE, "group": 16}, 18.0, 40.0)
    assert cost.growth(few, many, "learner") == pytest.approx(6 / 4)
    assert "| group 16 | 18.00 | 1.50 | 18.00 | 1.50 | 1.00 |" in cost.table([many, few])
