"""LiveCodeBench: scripts and functions pass their tests in the sandbox; packed tests are text and nothing else."""

import base64
import json
import os
import pickle
import zlib

import pytest

from rl_likelihood.datasets import livecodebench
from rl_likelihood.grading import graders
from tests.datasets.reading import parsed
from tests.programs import isolated

CASES = [{"input": "3\n1 2 3\n", "output": "6\n0.50\n", "testtype": "stdin"}]
CONTEST = {
    "question_title": "Sum",
    "question_content": "Print the sum of n numbers, and one half.",
    "platform": "codeforces",
    "question_id": "1873_A",
    "contest_date": "2023-08-21T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(CASES),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(CASES)))).decode(),
    "metadata": "{}",
}
SUM = "n = int(input())\nif __name__ == '__main__':\n    print(sum(map(int, {read}.split())))\n    print(1 / 2)\n"


@isolated
def test_livecodebench_scripts_read_an_input_and_print():
    row = parsed("livecodebench", CONTEST)
    assert row.example.id == "1873_A" and row.example.answer == "pass" and row.extra["platform"] == "codeforces"
    assert len(livecodebench.tests_of(CONTEST["private_test_cases"])) == 1
    reference = json.dumps(row.extra)
    script = SUM.format(read="input()")
    assert graders.code_tests(reference, script)
    assert graders.code_tests(reference, f"Like this:\n```python\n{script}exit()\n```")
    whole = "n, *x = open(0).read().split()\nprint(sum(map(int, x)), '.5', sep=chr(10))"
    assert graders.code_tests(reference, whole)
    deep = "def f(n):\n    return 0 if n == 0 else f(n - 1)\nf(5000)\n"
    bare = deep + "stdin.readline()\nprint(reduce(add, map(int, stdin.readline().split())))\nprint(fsum([0.5]))"
    assert graders.code_tests(reference, bare), "with the benchmark's imports and recursion limit"
    for wrong in (
        script.replace("1 / 2", "1 / 3"),
        script + "print()\nprint(1)",
        script + "raise ValueError",
        "print(6)",
    ):
        assert not graders.code_tests(reference, wrong), wrong


@isolated
def test_livecodebench_functions_are_methods_or_functions():
    case = {"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}
    record = {**CONTEST, "public_test_cases": json.dumps([case]), "private_test_cases": "[]"}
    record |= {"starter_code": "class Solution:\n    def add(self, x, y):", "metadata": '{"func_name": "add"}'}
    row = parsed("livecodebench", record)
    assert "def add(self, x, y):" in row.example.prompt and row.example.answer.startswith("class Solution")
    reference = json.dumps(row.extra)
    method = "class Solution:\n    def add(self, x: List[int], y):\n        return [a + y for a in x]\n"
    assert graders.code_tests(reference, method)
    assert graders.code_tests(reference, f"```python\n{method}```")
    assert graders.code_tests(reference, "def add(x, y):\n    return tuple(a + y for a in x)")
    assert not graders.code_tests(reference, method.replace("a + y", "a - y"))
    for change, words in (({"metadata": "{}"}, "func_name"), ({"private_test_cases": json.dumps(CASES)}, "types")):
        with pytest.raises(ValueError, match=words):
            parsed("livecodebench", {**record, **change})


@isolated
def test_livecodebench_functions_have_the_benchmark_s_imports():
    case = {"input": "[3, 1, 2]", "output": "[1, 1, 5000]", "testtype": "functional"}
    record = {**CONTEST, "public_test_cases": json.dumps([case]), "private_test_cases": "[]"}
    row = parsed("livecodebench", record | {"metadata": '{"func_name": "f"}'})
    answer = (
        "def depth(n):\n    return n and 1 + depth(n - 1)\n\n"
        "def f(x):\n    heap = []\n    for a in x:\n        heappush(heap, a)\n"
        "    return [heappop(heap), bisect_left([0, pow(2, 10, 1000)], 24), depth(5000)]\n"
    )
    reference = json.dumps(row.extra)
    assert graders.code_tests(reference, answer)
    draft, use = "```python\ndef f(x):\n    return x\n```", "```python\nf([3, 1, 2])\n```"
    assert graders.code_tests(reference, f"{draft}\nBetter:\n```python\n{answer}```\nUse:\n{use}")
    assert not graders.code_tests(reference, f"```python\n{answer}```\nor\n{draft}"), "the last that defines it"


class Evil:
    def __reduce__(self):
        return os.system, ("echo it ran",)


def pack(pickled):
    return base64.b64encode(zlib.compress(pickled)).decode()


def test_packed_tests_are_read_without_unpickling():
    """One text is read, of any protocol. Operations that compute a text or take gigabytes are not done."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert livecodebench.tests_of(pack(pickle.dumps("[]", protocol))) == []
    two_texts, large_memo = b"\x8c\x01a0\x8c\x02[].", b"\x8c\x02[]r\xff\xff\xff\xff."
    with pytest.raises(ValueError, match="tests"):
        livecodebench.tests_of(pack(two_texts))
    assert livecodebench.tests_of(pack(large_memo)) == []


@pytest.mark.parametrize("value", [Evil(), ["not text"], {"a": 1}, "no json"])
def test_packed_tests_are_text_and_nothing_is_run(value, capfd):
    packed = pack(pickle.dumps(value))
    with pytest.raises(ValueError, match="tests"):
        livecodebench.tests_of(packed)
    assert "it ran" not in capfd.readouterr().out
    for broken in ("!", packed[:-9], base64.b64encode(b"x").decode()):
        with pytest.raises(ValueError, match="tests"):
            livecodebench.tests_of(broken)
