"""LiveCodeBench (Jain et al. 2024): programs for problems of contests, by date; for evaluation only.

Its files lie on the hub alone. Problems of Codeforces and AtCoder are scripts that read an input and print; those of
LeetCode are functions. There are no reference programs: the answer is the starter code or `pass`, so likelihoods of
it say nothing. `extra` has what runs the tests, all in one call: a program has 5 s for all of them, where the
benchmark gives 6 s for each. Before an answer stand the benchmark's own imports and its recursion limit.
"""

import base64
import itertools
import json
import pickletools
import zlib
from typing import Any

from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped, field, text
from rl_likelihood.shapes import Example

MOST_BYTES = 1 << 28  # of one problem's unpacked tests

# The benchmark's rule: line by line, as text or as numbers.
SCRIPT_TESTS = """
import decimal, json
CASES = json.loads({cases!r})

def numbers(line):
    try:
        return [decimal.Decimal(word) for word in line.split()]
    except decimal.InvalidOperation:
        return None

def check(candidate):
    for given, wanted in CASES:
        printed, wanted = ([line.strip() for line in x.strip().split("\\n")] for x in (candidate(given), wanted))
        assert len(printed) == len(wanted)
        for a, b in zip(printed, wanted):
            assert a == b or (numbers(a) is not None and numbers(a) == numbers(b))
"""
FUNCTION_TESTS = """
import json
CASES = json.loads({cases!r})

def check(candidate):
    for given, wanted in CASES:
        value = candidate(*given)
        assert (list(value) if isinstance(value, tuple) else value) == wanted
"""
# What the benchmark imports before an answer, in its order: after `builtins`, pow takes three arguments again.
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
_STARS = "".join(f"from {name} import *\n" for name in [*_MODULES.split(), "builtins", "typing"])
PRELUDE = f"{_STARS}import {_MODULES.replace(' ', ', ')}\nsys.setrecursionlimit(50000)\n"
# A method of Solution, or a function by itself.
FUNCTION = (
    PRELUDE
    + """
def run_solution(*given):
    return getattr(Solution(), {name!r})(*given) if "Solution" in globals() else globals()[{name!r}](*given)

"""
)


# The operations that pickle.dumps writes for one text. Nothing is unpickled: the text is read from the operations.
_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_AROUND = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def _text_in(pickled: bytes) -> str:
    """The text in a pickle of one text. BadRow for any other pickle."""
    operations = [(code.name, value) for code, value, _ in itertools.islice(pickletools.genops(pickled), 8)]
    names = [name for name, _ in operations if name not in _AROUND]
    if len(names) != 1 or names[0] not in _TEXT or operations[-1][0] != "STOP":
        raise BadRow("its packed tests are no text")
    return next(value for name, value in operations if name in _TEXT)


def tests_of(value: str) -> list[dict[str, Any]]:
    """Test cases as JSON, or as JSON that was pickled, packed and written in base64. BadRow for anything else."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        try:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(value, validate=True), MOST_BYTES)
            if unpacker.unconsumed_tail:
                raise BadRow(f"its tests are over {MOST_BYTES >> 20} MiB")
            found = json.loads(_text_in(data))
        except BadRow:
            raise
        except (ValueError, RecursionError, zlib.error) as e:
            raise BadRow(f"its tests can be read neither as JSON nor unpacked ({type(e).__name__}: {e})") from e
    wanted = ("input", "output", "testtype")
    if not isinstance(found, list) or any(
        not isinstance(case, dict) or any(not isinstance(case.get(name), str) for name in wanted) for case in found
    ):
        raise BadRow("its tests must be a list of objects with the texts input, output and testtype")
    return found


def parse(record: dict, location: Location) -> Row | Skipped:
    """A problem with all its tests, public and private."""
    cases = [case for name in ("public_test_cases", "private_test_cases") for case in tests_of(text(record, name))]
    kinds = {case["testtype"] for case in cases}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise BadRow(f"its tests are of the types {sorted(kinds)}; they must all be stdin or all functional")
    starter, asked = str(record.get("starter_code") or "").strip(), text(record, "question_content")
    if kinds == {"stdin"}:
        pairs = [[case["input"], case["output"]] for case in cases]
        prompt = f"{asked}\n\nAnswer with a Python program that reads the input and prints the output."
        tests = SCRIPT_TESTS.format(cases=json.dumps(pairs))
        extra = {"prompt": PRELUDE, "test": tests, "entry_point": "run_script", "script": True}
    else:
        pairs = [_arguments(case) for case in cases]
        prompt = f"{asked}\n\nAnswer with the whole code, which begins:\n\n```python\n{starter}\n```"
        tests = FUNCTION_TESTS.format(cases=json.dumps(pairs))
        name = _function(record)
        extra = {"prompt": FUNCTION.format(name=name), "test": tests, "entry_point": "run_solution"}
        extra["defines"] = ["Solution", name]
    about = {name: str(record.get(name) or "") for name in ("platform", "difficulty", "contest_date")}
    example = Example(text(record, "question_id"), prompt, starter or "pass", task="livecodebench")
    return Row(example, extra={**extra, **about})


def _arguments(case: dict[str, Any]) -> list[Any]:
    """(arguments, value) of a function's test: one JSON value a line."""
    try:
        return [[json.loads(line) for line in case["input"].split("\n") if line.strip()], json.loads(case["output"])]
    except ValueError as e:
        raise BadRow(f"a test of a function is not JSON ({e})") from e


def _function(record: dict) -> str:
    """The function's name, in the field metadata."""
    given = field(record, "metadata")
    try:
        name = (json.loads(given) if isinstance(given, str) else given)["func_name"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name.isidentifier():
        raise BadRow("field 'metadata' must name the function, as func_name")
    return name


DATASET = DataSet(
    name="livecodebench",
    parse=parse,
    fetch="test*.jsonl of livecodebench/code_generation_lite, on the hub",
    addresses=("hf:livecodebench/code_generation_lite",),
    split="test",
    grader="code_tests",
    max_prompt=1536,
    max_answer=1024,
    max_chain=2048,
)
