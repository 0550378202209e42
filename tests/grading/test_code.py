"""Tool calls, outputs of programs, programs under test."""

from __future__ import annotations

import dataclasses
import json
import textwrap

import pytest

from rl_likelihood.grading.code import code_output, code_tests
from rl_likelihood.grading.graders import reference_of, tool_call
from rl_likelihood.grading.run_code import Limits
from rl_likelihood.shapes import Example
from tests.programs import isolated

CALL = '{"name": "set_plan", "arguments": {"line": "L1", "gb": 2, "auto": true, "tags": [1, 2]}}'


@pytest.mark.parametrize(
    "answer, right",
    [
        (CALL, True),
        (' { "arguments": {"tags":[1,2], "auto":true, "gb":2.0, "line":"L1"}, "name":"set_plan", "id": 7 }\n', True),
        (f"I will do it. <tool_call>{CALL}</tool_call> Done.", True),
        (f"```json\n{CALL}\n```", True),
        (f"[{CALL}]", True),
        (json.dumps({"name": "set_plan", "arguments": json.dumps(json.loads(CALL)["arguments"])}), True),
        (CALL.replace("set_plan", "get_plan"), False),
        (CALL.replace("L1", "L2"), False),
        (CALL.replace("true", "1"), False),
        (CALL.replace("2,", '"2",'), False),
        (CALL.replace("[1, 2]", "[2, 1]"), False),
        (CALL.replace('"auto": true, ', ""), False),
        (CALL.replace('"gb": 2', '"gb": 2, "more": 1'), False),
        (CALL.replace('"arguments"', '"parameters"'), True),
        (CALL.replace('"arguments"', '"input"'), True),
        (CALL.replace('"arguments"', '"args"'), True),
        (json.dumps({"id": "1", "type": "function", "function": json.loads(CALL)}), True),
        (CALL.replace('"arguments"', '"parameters"').replace("L1", "L2"), False),
        (CALL.replace('"arguments"', '"settings"'), False),
        (CALL[:-1] + ', "parameters": {"line": "L9"}}', False),
        (CALL[:-1] + ', "parameters": {}}', False),
        (CALL.replace('"gb": 2', '"gb": 1, "gb": 2'), False),
        (json.dumps({"function": json.loads(CALL), "arguments": {"line": "L9"}}), False),
        (CALL[:-1] + ', "function": "erase"}', False),
        (CALL[:-1] + ', "function": {"name": "erase", "arguments": {}}}', False),
        (CALL[:-1] + ', "type": "erase"}', False),
        (CALL[:-1] + ', "id": {"name": "erase"}}', False),
        (CALL[:-1] + ', "type": "function", "id": "1"}', True),
        ('{"name": "set_plan"}', False),
        ('{"name": "set_plan", "arguments": {}}', False),
        (f"[{CALL}, {CALL}]", False),
        ("[]", False),
        (f"<tool_call>{CALL}", False),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", False),
        (f"I call {CALL}", False),
        (CALL[:-1], False),
        ('{"name": ["set_plan"], "arguments": {}}', False),
        ('{"name": "set_plan", "arguments": [1]}', False),
        ('{"name": "set_plan", "arguments": {"gb": NaN}}', False),
        ("set_plan", False),
        ("", False),
        (None, False),
    ],
)
def test_tool_call(answer, right):
    assert tool_call(CALL, answer) is right


@pytest.mark.parametrize(
    "number, other", [("1e400", "1e500"), ("-1e400", "-1e999"), ("1e-400", "0"), ("1e-400", "1e-500")]
)
def test_numbers_out_of_range_are_no_call(number, other):
    reference, answer = ('{"name": "f", "arguments": {"x": ' + n + "}}" for n in (number, other))
    assert not tool_call(reference, answer) and not tool_call(answer, reference)


def test_calls_have_an_order_and_missing_arguments_are_none():
    first, second = '{"name": "a"}', '{"name": "b", "arguments": {}}'
    assert tool_call(f"[{first}, {second}]", '[{"name": "a", "arguments": {}}, {"name": "b"}]')
    tagged = f"<tool_call>{first}</tool_call> then <tool_call>{second}</tool_call>"
    assert tool_call(f"[{first}, {second}]", tagged)
    assert not tool_call(f"[{second}, {first}]", tagged)


@pytest.mark.parametrize("key", ["parameters", "input", "args", "kwargs", "payload", "Arguments"])
def test_arguments_under_another_key_are_not_none(key):
    none = '{"name": "reboot", "arguments": {}}'
    assert not tool_call(none, f'{{"name": "reboot", "{key}": {{"id": "L9"}}}}')
    some = '{"name": "reboot", "arguments": {"id": "L9"}}'
    assert tool_call(some, f'{{"name": "reboot", "{key}": {{"id": "L9"}}}}') is (key not in ("payload", "Arguments"))


def test_a_reference_may_say_which_arguments_count():
    call = Example("1", "?", '{"name": "transfer", "arguments": {"summary": "I cannot.", "to": "Ada"}}')
    other = call.answer.replace("I cannot.", "It is broken.")
    for compared, right in ((None, False), ([["to"]], True), ([[]], True), ([["summary"]], False), ([None], False)):
        check = "" if compared is None else json.dumps({"compare_args": compared})
        assert tool_call(reference_of("tool_call", dataclasses.replace(call, check=check)), other) is right, compared
    named = reference_of("tool_call", dataclasses.replace(call, check='{"compare_args": [["to"]]}'))
    assert not tool_call(named, other.replace("Ada", "Bob")) and not tool_call(named, '{"name": "transfer"}')
    assert not tool_call(named, other.replace("transfer", "give"))


def test_a_reference_that_is_no_call_is_compared_as_text():
    assert tool_call("no call is needed", "no call is needed\n")
    assert not tool_call("no call is needed", CALL)


def test_deep_json_is_only_wrong():
    for depth in (200, 5_000, 40_000):
        deep = '{"name": "set_plan", "arguments": {"x": ' + "[" * depth + "]" * depth + "}}"
        assert tool_call(deep, CALL) is False
        assert tool_call(CALL, deep) is False
        assert tool_call(deep, deep + " ") in (True, False)


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("[(4, 1), (2, 3)]", "[(4,1),(2,3)]", True),
        ("'ab'", '"ab"', True),
        ("{1: None, 2: None}", "{2: None, 1: None}", True),
        ("{1, 2}", "{2, 1}", True),
        ("'ab'", "```python\n'ab'\n```", True),
        ("'ab'", "`'ab'`", True),
        ("[3]", "f(1, 2) == [3]", True),
        ("[3]", "assert f(1, 2) == [3]", True),
        ("[3]", "f('a', x=[1]) == [3]", True),
        *[
            ("[3]", text, False)
            for text in (
                "not f(1) == [3]",
                '"x" == [3]',
                "[9]; f() == [3]",
                "[4] != [3] == [3]",
                "assert not f(1) == [3]",
                "g(1) == [3]",
                "f == [3]",
                "f(f(1)) == [3]",
                "f(1).x == [3]",
                "lambda: f(1) == [3]",
                "x = f(1) == [3]",
                "return f(1) == [3]",
                "f(1) == [3] # not",
                "[3] # wrong",
                "f(1) == [4] == [3]",
                "f(1) == [3] or True",
                "assert f(1) == [3], 'no'",
            )
        ],
        ("'#'", "'#'  ", True),
        ("'#'", '"#"', True),
        ("'a == b'", "'a == b'", True),
        ("'a == b'", '"a == b"', True),
        ("None", " None", True),
        ("True", "1", True),  # as Python has it
        ("-2.5", "-2.50", True),
        ("[(4, 1)]", "[[4, 1]]", False),
        ("'ab'", "ab", False),
        ("'1'", "1", False),
        ("None", "", False),
        ("None", None, False),
        ("None", "x", False),
        ("[3]", "[1 + 2]", False),
        ("[3]", "[3", False),
        ("5", "__import__('os').getpid()", False),
        ("5", "9**9**9", False),
        ("5", "f(5)", False),
        ("object at 0", "object at 0 ", True),  # not a literal: text
        ("object at 0", "5", False),
    ],
)
def test_code_output(reference, answer, right):
    assert code_output(reference, answer) is right


def test_invalid_escapes_in_an_answer_are_no_warning():
    assert code_output(r"'\\d'", r"'\d'")


PROMPT = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Sum of the numbers.\n    """\n'
TESTS = (
    "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
)
TASK = json.dumps({"prompt": PROMPT, "test": TESTS, "entry_point": "total"})
WHOLE = "def total(numbers):\n    return sum(numbers)\n"
EXAMPLE = "\n\n    Example:\n\n    ```\n    total([1])\n    ```\n    "
FENCE_INSIDE = f'def total(numbers):\n    """Sum.{EXAMPLE}"""\n    return sum(numbers)\n'


@pytest.mark.parametrize(
    "answer, right",
    [
        ("    return sum(numbers)\n", True),
        ("\n    return sum(numbers)", True),
        (WHOLE, True),
        (f"Here it is:\n```python\n{WHOLE}```\nUse it so:\n```python\ntotal([1])\n```", True),
        (f"First:\n```python\nimport math\n```\nthen\n```python\n{WHOLE}```", True),
        ("```\n    return sum(numbers)\n```", True),
        (f"```python\n# def total goes below\n```\n```python\n{WHOLE}```", True),
        (f"```\nprint('def total')\n```\n```python\n{WHOLE}```", True),
        (f"```python\ndef total_of(x):\n    return 3\n```\n```python\n{WHOLE}```", True),
        (f'```\n"""def total(numbers):"""\n```\n```python\n{WHOLE}```', True),
        (f"```\nclass A:\n    def total(self): pass\n```\n```python\n{WHOLE}```", True),
        (f"```text\nuse def total(numbers):\n```\n```python\n{WHOLE}```", True),
        ("```python\nx = 1\n```\n```python\ntotal = sum\n```", True),
        (
            f"```python\ndef total(numbers):\n    return 3\n```\n```python\n{WHOLE}```",
            False,
        ),  # the first that defines it
        ("First, in a list:\n  ```python\n  def total(numbers):\n      return sum(numbers)\n  ```\n", True),
        (f"It never closes:\n```python\n{WHOLE}", True),
        (f"~~~python\n{WHOLE}~~~", True),
        (f"Here is the code: ```python\n{WHOLE}```\nDone.", True),
        (f"1. ```python\n{WHOLE}```", True),
        (f"Use ``` for code.\n```python\n{WHOLE}```", True),
        (f"```python\n{WHOLE.rstrip()}```", True),
        (
            f"```python\ntry:\n    import a\nexcept ImportError:\n    total = sum\n```\n```\n{WHOLE}n=1/0\n```",
            True,
        ),
        (f"```python\nif True:\n    def total(x): return 3\n```\n```python\n{WHOLE}```", False),
        ("```python\ndef total(numbers):\n    mark = '```'; return sum(numbers)\n```", True),
        (f"```python\n{FENCE_INSIDE}```", True),
        (f"Here:\n\n1. ```python\n{FENCE_INSIDE}```\n", True),
        (f"- so:\n  ```python\n{textwrap.indent(FENCE_INSIDE, '  ')}  ```", True),
        (FENCE_INSIDE, True),
        (FENCE_INSIDE.replace("    ```\n", "", 1), True),
        (f"````python\n{WHOLE}````", True),
        (f"````\n```\nprint(1)\n```\n````\n```python\n{WHOLE}```", True),
        ("````python\ndef total(numbers):\n    mark = '''\n```\n'''\n    return sum(numbers)\n````", True),
        (f"```python\n{WHOLE}   ```\nThat is it.", True),
        (FENCE_INSIDE.replace("sum", "len"), False),
        ("    return len(numbers)\n", False),
        ("    pass", False),
        ("    return sum(numbers", False),
        ("return sum(numbers)", False),
        ("    return sum(numbers)\n\nimport sys\nsys.exit(0)\n", False),
        ("    return sum(numbers)\n\nimport os\nos._exit(0)\n", False),
        (f"{WHOLE}\nraise SystemExit\n", False),
        ("    return sum(numbers)\x00", False),
        ("I do not know.", False),
        ("", False),
        (None, False),
    ],
)
def test_code_tests(answer, right):
    assert code_tests(TASK, answer, Limits(seconds=20.0, namespaces=None)) is right


@pytest.mark.parametrize(
    "answer, right",
    [(WHOLE, True), (f"```python\n{WHOLE}```", True), ("    return sum(numbers)\n", True), ("    return 3\n", False)],
)
def test_the_prompt_may_be_the_head_of_the_function_alone(answer, right):
    task = json.dumps({"prompt": "import math\ndef total(numbers):\n", "test": TESTS, "entry_point": "total"})
    assert code_tests(task, answer, Limits(seconds=20.0, namespaces=None)) is right


def test_time_over_is_a_wrong_answer():
    assert code_tests(TASK, "    return 9**9**9", Limits(seconds=0.7, namespaces=None)) is False


@isolated
def test_code_tests_with_default_limits():
    assert code_tests(TASK, WHOLE)
    assert not code_tests(TASK, "    return 3")


@pytest.mark.parametrize(
    "task", ["", "{}", "[1]", "null", '{"prompt": 1, "test": "", "entry_point": "f"}', "[" * 100_000]
)
def test_a_task_that_cannot_be_read_is_no_verdict(task):
    assert code_tests(task, WHOLE) is None


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("'#a'", "'\\x23a' # no", False),
        ("'#a'", "'\\x23a'", True),
        ("'#a'", '"#a"', True),
        ("[1, 2]", "[1,\n 2]", True),
        ("[1, 2]", "[1,  # one\n 2]", False),
        ("1e400", "1e500", False),
        ("0.0", "1e-400", False),
        ("0.0", "1e400j", False),
        ("0.0", "0." + "0" * 400 + "1", False),
        ("0.0", "0.0e5", True),
        ("0.5", "5e-1", True),
        ("480", "0x1e0", True),
        ("1000000", "1_000_000", True),
        ("1e308", "10e307", True),
        ("5", "5;", False),
        ("[inf]", "[1e999]", False),
    ],
)
def test_a_literal_without_comments_and_with_numbers_that_exist(reference, answer, right):
    assert code_output(reference, answer) is right
