"""The Berkeley Function Calling Leaderboard, version 4 (Patil et al. 2025): one turn of Python calls, one or several.

Read from the package bfcl-eval (Apache-2.0). A question stands with the functions it may call; the answer is the calls
as a JSON list, each argument with the first value that the benchmark allows. `alternatives` has up to 8 other ways to
write them that it allows. `extra` has what the grader `bfcl` reads.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_likelihood.datasets import files
from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped
from rl_likelihood.grading.bfcl import bfcl
from rl_likelihood.shapes import ALTERNATIVES, Example

_KINDS = ("simple_python", "multiple", "parallel", "parallel_multiple")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_ALTERNATIVES = 8


def records(located: list[tuple[Path, Path]]) -> Iterator[tuple[Location, dict | str]]:
    """Each question with its possible answers, which other files hold."""
    questions: dict[str, tuple[Location, dict]] = {}
    possible: dict[str, Any] = {}
    for location, record in files.read_all(located, DATASET):
        if isinstance(record, str):
            yield location, record
        elif "ground_truth" in record:
            possible[record["id"]] = record["ground_truth"]
        elif "question" in record:
            questions[record["id"]] = location, record
    for name, (location, record) in questions.items():
        yield location, record | {"possible": possible.get(name)}


def parse(record: dict, location: Location) -> Row | Skipped:
    possible = record["possible"]
    if not possible:
        raise BadRow(f"question {record['id']!r} has no possible answer; give the folder possible_answer too")
    functions = json.dumps(record["function"], ensure_ascii=False)
    asked = "\n\n".join(message["content"].strip() for message in record["question"][0])
    prompt = (
        f"Functions, as JSON:\n{functions}\n\n{asked}\n\n"
        'Answer with the calls alone, as a JSON list of {"name": ..., "arguments": {...}}.'
    )
    rule = json.dumps({"possible": possible, "functions": record["function"]})
    spellings = itertools.islice(_spellings(possible, record["function"]), 1000)
    allowed = list(itertools.islice((text for text in spellings if bfcl(rule, text)), 1 + _ALTERNATIVES))
    if not allowed:
        return Skipped("no call that its own rule allows")
    answer, *others = allowed
    kind = record["id"].rsplit("_", 1)[0]
    extra = {ALTERNATIVES: others, "kind": kind, "possible": possible, "functions": record["function"]}
    return Row(Example(record["id"], prompt, answer, task="bfcl"), key=record["id"], extra=extra)


def _spellings(possible: list[dict[str, dict[str, list]]], functions: list[dict]) -> Iterator[str]:
    """Ways to write the calls, the first of each argument first. "" leaves an argument out, if it may be."""
    required = {f["name"]: f["parameters"]["required"] for f in functions}
    calls = [next(iter(call.items())) for call in possible]
    choices = [[_value(x) for x in values] for _, arguments in calls for values in arguments.values()]
    for chosen in itertools.product(*choices):
        values = iter(chosen)
        written = []
        for name, arguments in calls:
            given = {k: next(values) for k in arguments}
            given = {k: v for k, v in given.items() if v != "" or k in required[name]}
            written.append({"name": name, "arguments": given})
        yield json.dumps(written, ensure_ascii=False)


def _value(option: Any) -> Any:
    """A value out of an option. The fields of an object have options too, and are left out where "" is the first.

    An object whose fields have no options is already a value."""
    if isinstance(option, list):
        return [_value(x) for x in option]
    if isinstance(option, dict) and any(isinstance(v, list) for v in option.values()):
        return {k: _value(v[0]) for k, v in option.items() if isinstance(v, list) and v[0] != ""}
    return option


DATASET = DataSet(
    name="bfcl",
    parse=parse,
    records=records,
    fetch="bfcl_eval-2026.3.23-py3-none-any.whl of PyPI, or its folder bfcl_eval/data",
    addresses=("https://files.pythonhosted.org/packages/py3/b/bfcl-eval/bfcl_eval-2026.3.23-py3-none-any.whl",),
    patterns=tuple(f"*BFCL_v4_{kind}.json" for kind in (*_KINDS, *_LIVE)),
    split="train",
    heldout=0.2,
    strata=("kind",),
    grader="bfcl",
    max_prompt=5632,
    max_answer=352,
)
