"""BFCL: questions with the functions they may call, and the benchmark's rule of possible answers."""

import json

import pytest

from rl_likelihood.datasets import DATASETS, prepare, splitting
from rl_likelihood.datasets.common import Row, Skipped
from rl_likelihood.datasets.sources import DataConfig, load
from rl_likelihood.errors import UserError
from rl_likelihood.grading.bfcl import bfcl

AREA = {
    "name": "area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "shape": {"type": "dict"},
        },
        "required": ["base", "height"],
    },
}
POSSIBLE = {
    "base": [10],
    "height": [5.0],
    "unit": ["sq. cm", "cm2", ""],
    "tags": ["", ["Red one", "blue"]],
    "shape": ["", {"kind": ["right"], "side": ["", 3]}],
}
RULE = json.dumps({"functions": [AREA], "possible": [{"area": POSSIBLE}]})
GIVEN = {"base": 10, "height": 5}


def call(**arguments):
    return {"name": "area", "arguments": GIVEN | arguments}


@pytest.mark.parametrize(
    "arguments, right",
    [
        ({}, True),
        ({"unit": "SQ CM"}, True),
        ({"unit": "cm^2"}, True),
        ({"unit": "m2"}, False),
        ({"base": 10.0}, False),
        ({"base": "10"}, False),
        ({"base": True}, False),
        ({"height": 5.5}, False),
        ({"height": 10**400}, False),
        ({"tags": ["red-one", "BLUE"]}, True),
        ({"tags": ["blue", "Red one"]}, False),
        ({"tags": ["Red one", 2]}, False),
        ({"tags": "Red one"}, False),
        ({"shape": {"kind": "Right"}}, True),
        ({"shape": {"kind": "right", "side": 3}}, True),
        ({"shape": {"side": 3}}, False),
        ({"shape": {"kind": "right", "colour": "red"}}, False),
        ({"other": 1}, False),
    ],
)
def test_the_rule_of_possible_answers(arguments, right):
    assert bfcl(RULE, json.dumps([call(**arguments)])) is right


def test_names_counts_and_required_arguments():
    assert bfcl(RULE, f"<tool_call>{json.dumps(call())}</tool_call>")
    for answer in ({"name": "area2", "arguments": GIVEN}, {"name": "area", "arguments": {"base": 10}}, "area(10, 5)"):
        assert not bfcl(RULE, json.dumps(answer))
    assert not bfcl(RULE, json.dumps([call(), call()]))
    assert not bfcl(RULE, None)


@pytest.mark.parametrize(
    "options, rows, right",
    [
        (["names", [{"a": [1]}]], [{"a": 1}], False),  # beside a variable's name nothing but equality counts
        (["names", [{"a": [1]}]], [{"a": [1]}], True),
        (["names", [{"a": [1]}]], "names", True),
        (["", [{"a": [1]}]], [{"a": 1}], True),
        (["", [{"a": [1]}]], [{"a": 2}], False),
        (["", [{"a": [1]}]], [{"a": 1}] * 2, False),
        (["", [{"a": [1]}]], [], True),  # where the list may be left out, it may be empty
        ([[{"a": [1]}]], [], False),
    ],
)
def test_lists_of_objects_as_the_benchmark_checks_them(options, rows, right):
    parameters = {"properties": {"rows": {"type": "array", "items": {"type": "dict"}}}, "required": []}
    rule = {
        "functions": [{"name": "f", "parameters": parameters}],
        "possible": [{"f": {"rows": options}}],
    }
    assert bfcl(json.dumps(rule), json.dumps({"name": "f", "arguments": {"rows": rows}})) is right


@pytest.mark.parametrize(
    "rule",
    [
        {"functions": [], "possible": [{"area": POSSIBLE}]},
        {"functions": [{"name": "area"}], "possible": [{"area": POSSIBLE}]},
        {"functions": 5, "possible": [{"area": POSSIBLE}]},
        {"functions": [AREA], "possible": [{}]},
        {"functions": [AREA], "possible": 5},
        {"functions": [AREA], "possible": [{"area": {"base": 5}}]},
        {
            "functions": [{"name": "area", "parameters": {"properties": {"base": {"type": "String"}}, "required": []}}],
            "possible": [{"area": {"base": ["10"]}}],
        },
    ],
)
def test_a_rule_that_cannot_be_followed_is_nobodys_wrong_answer(rule):
    assert bfcl(json.dumps(rule), json.dumps(call())) is None


def test_several_calls_have_no_order_and_each_counts_once():
    two = [{"area": POSSIBLE}, {"area": POSSIBLE | {"base": [20]}}]
    rule = json.dumps({"functions": [AREA], "possible": two})
    assert bfcl(rule, json.dumps([call(base=20), call()]))
    assert not bfcl(rule, json.dumps([call(), call()]))
    assert not bfcl(rule, json.dumps([call()]))


def folder(tmp_path, possible):
    question = {"id": "simple_python_0", "question": [[{"role": "user", "content": "Area?"}]], "function": [AREA]}
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "BFCL_v4_simple_python.json").write_text(json.dumps(question))
    answer = {"id": "simple_python_0", "ground_truth": [{"area": possible}]}
    (tmp_path / "possible_answer" / "BFCL_v4_simple_python.json").write_text(json.dumps(answer))
    return sorted((p, tmp_path) for p in tmp_path.rglob("*.json"))


def rows(located):
    dataset = DATASETS["bfcl"]
    return [dataset.parse(record, location) for location, record in dataset.records(located)]


def test_a_question_becomes_a_row_with_other_spellings(tmp_path):
    (row,) = rows(folder(tmp_path, POSSIBLE))
    assert isinstance(row, Row) and "Area?" in row.example.prompt and json.dumps([AREA]) in row.example.prompt
    assert json.loads(row.example.answer) == [call(unit="sq. cm", height=5.0)]
    spellings = [row.example.answer, *row.extra["alternatives"]]
    assert len(set(spellings)) == 9 and all(bfcl(RULE, text) for text in spellings)
    assert json.loads(spellings[1])[0]["arguments"]["shape"] == {"kind": "right"}


def test_an_answer_that_its_own_rule_refuses_is_left_out(tmp_path):
    (row,) = rows(folder(tmp_path, POSSIBLE | {"height": [""]}))  # required, and may only be left out
    assert isinstance(row, Skipped)


def test_an_object_inside_an_object_may_be_a_value_without_options(tmp_path):
    """As in live_multiple_121-46-0."""
    car = {"position": [{"lateral": 10.5, "longitudinal": 50}], "orientation": [30]}
    (row,) = rows(folder(tmp_path, POSSIBLE | {"shape": [car]}))
    shape = {"position": {"lateral": 10.5, "longitudinal": 50}, "orientation": 30}
    assert isinstance(row, Row) and json.loads(row.example.answer)[0]["arguments"]["shape"] == shape


def test_questions_without_possible_answers_are_refused(tmp_path):
    folder(tmp_path, POSSIBLE)
    with pytest.raises(UserError, match="possible_answer"):
        prepare.prepare("bfcl", str(tmp_path / "BFCL_v4_simple_python.json"), str(tmp_path / "out"))


def test_training_rows_keep_the_rule_by_which_they_were_split(tmp_path):
    """Two ids are two questions, also with one text: `prepare` put them on both sides."""
    asked = {"question": [[{"role": "user", "content": "Area?"}]], "function": [AREA]}
    name, ids = "BFCL_v4_simple_python.json", [f"simple_python_{i}" for i in range(10)]
    (tmp_path / "possible_answer").mkdir()
    for file, row in ((name, asked), (f"possible_answer/{name}", {"ground_truth": [{"area": POSSIBLE}]})):
        (tmp_path / file).write_text("".join(json.dumps({"id": i, **row}) + "\n" for i in ids))
    prepare.prepare("bfcl", str(tmp_path), str(tmp_path / "out"))
    for split in ("", "train"):
        train, held, report = load(DataConfig("prepared", train_path=str(tmp_path / "out"), train_split=split))
        assert (len(train), len(held), report.removed) == (8, 2, ())


def test_the_grader_reads_the_rule_of_a_prepared_row(tmp_path):
    (row,) = rows(folder(tmp_path, POSSIBLE))
    assert bfcl(json.dumps(row.extra), row.example.answer)
    assert splitting.split_rows(DATASETS["bfcl"], [row], 0)
