"""The rule of the Berkeley Function Calling Leaderboard for one turn of Python calls.

A reference is JSON: {"functions": [...], "possible": [{name: {parameter: [values]}}, ...]}. Functions are described as
the benchmark does, with their parameters' types. Each call must be one of the possible ones: every argument has one of
its values, and a parameter may be left out only where "" is among them. Text is compared without case, spaces and the
marks ,./-_*^; an integer will do for a float, and nothing else for an integer.
"""

import json
import re
from typing import Any

from rl_likelihood.grading.calls import calls_in
from rl_likelihood.grading.text import exact_match

_TYPES = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def bfcl(reference: str, answer: str | None) -> bool | None:
    """The possible calls, each once, in any order (in the benchmark's `multiple` and `simple` there is one).

    Compared as text where the reference is no such rule. None where it is one, but cannot be followed: it does not
    describe a function that it allows, or names a type that is not the benchmark's.
    """
    if answer is None:
        return False
    goal, calls = _rule(reference), calls_in(answer)
    if goal is None:
        return exact_match(reference, answer)
    try:
        if calls is None or len(calls) != len(goal["possible"]):
            return False
        functions = {function["name"]: function["parameters"] for function in goal["functions"]}
        for possible in goal["possible"]:
            ((name, allowed),) = possible.items()
            fitting = (i for i, c in enumerate(calls) if c[0] == name and _fits(c[1], allowed, functions[name]))
            i = next(fitting, None)
            if i is None:
                return False
            del calls[i]
    except RecursionError:
        return False
    except (KeyError, TypeError, ValueError, AttributeError):  # of the rule: the calls have been checked
        return None
    return True


def _rule(reference: str) -> dict[str, list] | None:
    try:
        rule = json.loads(reference)
    except (ValueError, RecursionError):
        return None
    return rule if isinstance(rule, dict) and {"functions", "possible"} <= rule.keys() else None


def _fits(arguments: dict[str, Any], allowed: dict[str, list], parameters: dict[str, Any]) -> bool:
    """Whether the arguments of one call are among the allowed ones."""
    if not set(parameters["required"]) <= arguments.keys():
        return False
    if any("" not in values for name, values in allowed.items() if name not in arguments):
        return False
    properties = parameters["properties"]
    return all(
        name in allowed and name in properties and _is_one_of(value, allowed[name], properties[name])
        for name, value in arguments.items()
    )


def _is_one_of(value: Any, options: list, described: dict[str, Any]) -> bool:
    kind = _TYPES[described["type"]]
    inner = _TYPES[described["items"]["type"]] if described["type"] in ("array", "tuple") else None
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    written = next((type(option) for option in options if option != ""), None)
    if type(value) is kind and inner and not _has_inner(value, options, inner):
        return False
    if type(value) is not kind:
        # A variable's name in place of a value: the options are names too, and compared as they are.
        return written is not None and type(value) is written and value in options
    if written not in (kind, None):
        return value in options
    if kind is dict:
        return any(_is_dict(value, option) for option in options if option != "")
    if inner is dict:
        return any(len(value) == len(option) and all(map(_is_dict, value, option)) for option in options)
    if kind is list:
        return [_plain(x) for x in value] in [[_plain(x) for x in option] for option in options]
    if kind is str:
        return _plain(value) in [_plain(option) for option in options if isinstance(option, str)]
    return value in options


def _has_inner(value: list, options: list, inner: type) -> bool:
    """Whether the items have their type, or, for variables, that of some option's items."""
    for option in options:
        if not isinstance(option, list):
            return True
        written = next((type(x) for x in option if x != ""), None)
        if all(type(x) is inner or (written is not None and type(x) is written) for x in value):
            return True
    return False


def _is_dict(value: Any, option: dict[str, list]) -> bool:
    if not isinstance(value, dict) or not isinstance(option, dict) or not value.keys() <= option.keys():
        return False
    if any("" not in values for key, values in option.items() if key not in value):
        return False
    return all(_plain(x) in [_plain(o) for o in option[key]] for key, x in value.items())


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
