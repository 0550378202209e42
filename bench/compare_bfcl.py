"""Does grading/bfcl.py judge as the Berkeley leaderboard's own checker does? Answers to its questions, judged by both.

    python -m bench.compare_bfcl --package=FOLDER --out=bench/compare_bfcl.json

FOLDER holds the package bfcl_eval: a clone of gorilla's berkeley-function-call-leaderboard, or the unpacked wheel. The
answers to a question are the first spellings of its possible answer and random changes of spellings that the benchmark
accepts. Random rules with one parameter mix options of several types, which the questions hardly do.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import random
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_likelihood.datasets import files
from rl_likelihood.datasets.bfcl import DATASET, _spellings, records
from rl_likelihood.grading.bfcl import bfcl

Valid = Callable[[dict, list[dict]], bool | None]
CHECKER = Path("bfcl_eval/eval_checker/ast_eval/ast_checker.py")
SPELLINGS, CHANGES, RULES = 4, 24, 2000
VALUES = ("", "x", "names", 0, 1, 1.0, True, None, [], {}, [1], ["x"], [[]], [{}], [{"a": 1}], {"a": 1})
OPTIONS = ("", "", "names", "x", 1, 1.0, True, [], [1], ["x"], ["names", 1], [[1]], {"a": [1]}, {"a": ["", "x"]}) + (
    [{"a": [1]}],
    [{"a": ["", 1]}, {"b": ["x"]}],
    [{}],
)


def checker(package: str) -> Valid:
    """The benchmark's `ast_checker`. Its table of models imports every model's client, and is replaced."""
    sys.path.insert(0, package)
    models = types.ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"any": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[models.__name__] = models
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def valid(record: dict, calls: list[dict]) -> bool | None:
        """None if the checker raises."""
        output = [{call["name"]: call["arguments"]} for call in copy.deepcopy(calls)]
        kind = record["id"].rsplit("_", 1)[0]
        try:
            judged = ast_checker(record["function"], output, record["possible"], Language.PYTHON, kind, "any")
        except Exception:
            return None
        return judged["valid"]

    return valid


def made(rng: random.Random) -> tuple[dict, list[list[dict]]]:
    """A rule of one parameter with random options, and answers to it."""
    kinds = ("string", "integer", "float", "boolean", "array", "tuple", "dict", "any")
    described = {"type": rng.choice((*kinds, "array", "array")), "items": {"type": rng.choice((*kinds, "dict"))}}
    options = rng.sample(OPTIONS, rng.randint(1, 3))
    function = {"name": "f", "parameters": {"properties": {"x": described}, "required": []}}
    answers = [[{"name": "f", "arguments": {"x": value}}] for value in (*VALUES, *OPTIONS)]
    return {"id": "simple_python_0", "function": [function], "possible": [{"f": {"x": options}}]}, answers


def changed(calls: list[dict], record: dict, rng: random.Random) -> list[dict]:
    """The calls with one random change."""
    calls = copy.deepcopy(calls)
    i = rng.randrange(len(calls))
    arguments, (options,) = calls[i]["arguments"], record["possible"][i].values()
    action = rng.choice(("drop", "add", "value", "value", "option", "option", "inside", "inside", "call"))
    if action == "call":
        calls = rng.choice((calls[:-1], [*calls, calls[0]], calls[::-1], [calls[i] | {"name": "other"}, *calls[1:]]))
    elif action == "add":
        arguments[rng.choice(["other", *options])] = rng.choice(VALUES)
    elif options:
        name = rng.choice(list(options))
        if action == "drop":
            arguments.pop(name, None)
        elif action == "inside" and name in arguments:
            arguments[name] = inside(arguments[name], rng)
        else:
            arguments[name] = rng.choice(options[name] if action == "option" else VALUES)
    return calls


def inside(value: Any, rng: random.Random) -> Any:
    """A value with a small change in it."""
    if isinstance(value, str):
        return rng.choice((value.upper(), value.replace(" ", "-"), value + ".", value + "s", [value]))
    if isinstance(value, list):
        k = rng.randrange(len(value) + 1)
        items = [inside(x, rng) if i == k else x for i, x in enumerate(value)]
        return rng.choice((value[::-1], value[1:], [*value, *value[:1]], items, items))
    if isinstance(value, dict):
        k = rng.randrange(len(value) + 1)
        items = {name: inside(x, rng) if i == k else x for i, (name, x) in enumerate(value.items())}
        return rng.choice((dict(list(value.items())[1:]), value | {"other": 1}, items, items))
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, int(bool(value)), str(value)))
    return rng.choice((value + 1, float(value), int(value), str(value), [value]))


def answers(record: dict, valid: Valid, rng: random.Random) -> list[list[dict]]:
    """The first spellings of a question's answer, and random changes of spellings that the benchmark accepts."""
    spellings = [json.loads(text) for text in itertools.islice(_spellings(record["possible"], record["function"]), 200)]
    right = list(itertools.islice((calls for calls in spellings if valid(record, calls)), SPELLINGS))
    return spellings[:SPELLINGS] + [changed(rng.choice(right), record, rng) for _ in range(CHANGES) if right]


def rule_of(record: dict) -> str:
    return json.dumps({"possible": record["possible"], "functions": record["function"]})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", required=True, help="the folder that holds bfcl_eval")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    valid, rng, counts, differ = checker(args.package), random.Random(0), Counter(), []
    cases = [made(rng) for _ in range(RULES)]
    for _, record in records(files.locate([str(Path(args.package) / "bfcl_eval/data")], DATASET)):
        cases.append((record, answers(record, valid, rng)))
    for record, asked in cases:
        for calls in asked:
            wanted, found = valid(record, calls), bfcl(rule_of(record), json.dumps(calls))
            counts[f"benchmark: {wanted}"] += 1
            if wanted is not None and wanted is not found:
                differ.append({"possible": record["possible"], "calls": calls, "benchmark": wanted, "ours": found})
    counts["rules"], counts["questions"] = RULES, len(cases) - RULES
    source = (Path(args.package) / CHECKER).read_bytes()
    result = {
        "checker_sha256": hashlib.sha256(source).hexdigest(),
        **counts,
        "differ": len(differ),
        "first": differ[:9],
    }
    Path(args.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
