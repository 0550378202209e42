"""Rubric files: HealthBench's format, criteria out of prose, what is dropped, what is refused."""

import json

import numpy as np
import pytest

from rl_likelihood.data.rubrics import (
    Criterion,
    Rubric,
    criteria_in,
    distinct,
    read_rubrics,
    refuse,
    telling,
    to_record,
    write_rubrics,
)
from rl_likelihood.errors import UserError

ROW = {
    "prompt": [{"role": "user", "content": "Why is the sky blue?"}],
    "prompt_id": "a1",
    "rubrics": [
        {"criterion": "Names Rayleigh scattering", "points": 5, "tags": ["level:example"]},
        {"criterion": "Says that the sea colours it", "points": -3, "tags": []},
    ],
    "example_tags": ["kept by others"],
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_healthbench_rows_are_read_and_written(tmp_path):
    (rubric,) = read_rubrics(write(tmp_path / "a.jsonl", ROW))
    assert rubric.prompt == "Why is the sky blue?" and rubric.id == "a1"
    assert rubric.criteria[1] == Criterion("Says that the sea colours it", -3.0)
    assert to_record(rubric) == {k: v for k, v in ROW.items() if k != "example_tags"}
    write_rubrics(tmp_path / "new" / "b.jsonl", [rubric, rubric])
    assert read_rubrics(str(tmp_path / "new" / "b.jsonl")) == [rubric, rubric]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.jsonl"]


def test_a_conversation_and_points_as_words(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    row = {
        "prompt": messages,
        "rubrics": [{"criterion": "x", "points": "Essential"}, {"criterion": "y", "points": " 2"}],
    }
    (rubric,) = read_rubrics(write(tmp_path / "a.jsonl", row))
    assert rubric.prompt == "user: Hi\n\nassistant: Yes?" and [c.points for c in rubric.criteria] == [1.0, 2.0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rubrics": []}, "a.jsonl:1.*'rubrics'.*at least one"),
        ({"rubrics": [], "left_out": 1}, "'rubrics'.*at least one"),
        ({"rubrics": "x"}, "'rubrics'"),
        ({"rubrics": [{"criterion": "x"}]}, "criterion 1 .*'points'"),
        ({"rubrics": [{"criterion": "x", "points": 0}]}, "'points'"),
        ({"rubrics": [{"criterion": "x", "points": True}]}, "'points'"),
        ({"rubrics": [{"criterion": "x", "points": 1e308}]}, "'points'"),
        ({"rubrics": [{"criterion": "x", "points": 10**400}]}, "'points'"),
        ({"rubrics": [{"criterion": "\ud800", "points": 1}]}, "a.jsonl:1: a text holds half of a surrogate pair"),
        *(
            ({"rubrics": [{"criterion": "x", "points": p}]}, "essential, important")
            for p in ("crucial", "nan", "1e400")
        ),
        ({"rubrics": [{"criterion": " ", "points": 1}]}, "criterion 1"),
        ({"prompt": []}, "'prompt'"),
        ({"prompt": [{"role": "user"}]}, "'prompt'"),
    ],
)
def test_a_row_that_is_no_rubric_is_named(change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        read_rubrics(write(tmp_path / "a.jsonl", {**ROW, **change}))


def test_a_file_that_is_none_or_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match="rubric.path is 'nowhere'"):
        read_rubrics("nowhere")
    with pytest.raises(UserError, match="rubric.seeds.*no rubrics"):
        read_rubrics(write(tmp_path / "a.jsonl"), "rubric.seeds")
    with pytest.raises(UserError, match="not a JSON object"):
        read_rubrics(write(tmp_path / "a.jsonl", [1]))


def rubric(*points):
    return Rubric("q", "", tuple(Criterion(f"c{i}", p) for i, p in enumerate(points)))


def test_points_that_do_not_go_with_the_sum_are_refused():
    refuse([rubric(5, -3)], "healthbench")
    refuse([rubric(-5, -3)], "signed")
    with pytest.raises(UserError, match="'q' has -3 points.*rar"):
        refuse([rubric(5, -3)], "rar")
    with pytest.raises(UserError, match="none to win"):
        refuse([rubric(-5, -3)], "healthbench")


ONE, TWO = {"criterion": "one", "points": 3}, {"criterion": "two", "points": -1}
BOTH = [Criterion("one", 3.0), Criterion("two", -1.0)]


@pytest.mark.parametrize(
    "prose, found",
    [
        (json.dumps([ONE, TWO]), BOTH),
        (f"Here [as asked] is it:\n```json\n{json.dumps([ONE, TWO], indent=2)}\n```\nGood {{luck}}!", BOTH),
        (json.dumps({"rubrics": [ONE, TWO]}), BOTH),
        (f"{json.dumps(ONE)}\n{json.dumps(TWO)}", BOTH),
        (json.dumps([ONE, TWO])[:-8], BOTH[:1]),  # the reply broke off
        (json.dumps([ONE, {"criterion": "no points"}, 7]), BOTH[:1]),
        ("no json here", []),
        ("[" * 50_000, []),
        ('{"a":[' * 10_000, []),
        ('{"criterion": "one", "points": NaN}', []),
        ("", []),
    ],
)
def test_criteria_are_found_in_prose(prose, found):
    assert criteria_in(prose) == found


def test_near_duplicates_are_one():
    texts = ["Names the exact cause of the failure, and says why", "names the exact cause of the failure and says why!"]
    other = "Names the cause"
    assert [c.text for c in distinct(Criterion(t, 1) for t in (*texts, other, "...", other))] == [texts[0], other]


def test_a_demand_and_its_opposite_are_two():
    text = "contains {} clear list of all of the steps that the proof needs, with their reasons and in the right order"
    both = [Criterion(text.format("a"), 5), Criterion(text.format("no"), -5)]
    assert distinct(both) == both and distinct([both[0], both[1]._replace(points=5)]) == both[:1]


def test_criteria_that_tell_nothing_are_dropped():
    met = np.array([[1, 0, 1, np.nan, np.nan], [1, 0, 0, 1, np.nan], [0.99, 0.02, 1, 0, np.nan]])
    assert [c.text for c in telling(rubric(1, 2, 3, 4, 5), met, 0.05, 0.95).criteria] == ["c2", "c3", "c4"]


def test_a_filter_counts_verdicts_and_not_how_sure_they_are():
    met = np.array([[0.45, 0.55, 0.45], [0.45, 0.55, 0.55], [0.45, 0.55, 0.45]])
    assert [c.text for c in telling(rubric(1, 2, 3), met, 0.3, 0.8).criteria] == ["c2"]
