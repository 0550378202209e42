"""The table of growing work: which sizes are measured, and how growth is computed."""

import pytest

from bench import cost


def row(size, seconds, flops):
    calls = {f"{call}_{k}": v for call in cost.CALLS for k, v in (("s", seconds), ("flops", flops))}
    return {"axis": "group", "size": size, "memory": 1.0, **calls}


def test_one_size_changes_at_a_time():
    for axis, sizes in cost.SIZES.items():
        made = [cost.point(axis, size) for size in sizes]
        assert len(set(made)) == len(sizes)
        assert made[sizes.index(cost.BASE[axis])] == cost.point("group", cost.BASE["group"])
        fields = [(m.vocab_size, w.group, w.prompt, w.completion) for m, w in made]
        assert sum(len(set(column)) > 1 for column in zip(*fields, strict=True)) == 1


def test_growth_of_time_is_divided_by_growth_of_operations():
    few, many = row(4, 3.0, 10.0), row(16, 18.0, 40.0)
    assert cost.growth(few, many, "learner") == pytest.approx(6 / 4)
    other = {**row(64, 1.0, 1.0), "axis": "prompt"}
    first, second, third = cost.table([few, many, other]).splitlines()[2:]
    assert first == "| group 4 | 3.00 |  | 3.00 |  | 1.00 |"
    assert second == "| group 16 | 18.00 | 1.50 | 18.00 | 1.50 | 1.00 |"
    assert third == "| prompt 64 | 1.00 |  | 1.00 |  | 1.00 |"
