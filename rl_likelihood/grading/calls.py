"""Tool calls out of JSON: the one reader, for the graders and for environments.

A call is {"name": ..., "arguments": {...}}, alone or as the "function" of an object. "parameters", "input", "args",
"kwargs" or "params" is the same as "arguments"; id, type and index are ignored; without arguments there are none. Any
other field makes it no call, and so does a field named twice, NaN, or a number out of range.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_LONGEST = 100_000  # characters that `calls_in` reads
# A mark opens a fence at the start of a line, or after words or a list's mark if only a language follows. The same mark
# closes it at the end of a line, or at the start of one, at most three spaces further in: one in a docstring is of the
# code. A fence that never closes goes on to the end.
FENCE = re.compile(
    r"(?:^(?P<indent>[ \t]*)(?=[`~]+[^\n`~]*\n)|(?<=[^`~\n])(?=[`~]+[\w+-]*[ \t]*\n))(?P<mark>`{3,}|~{3,})[^\n`~]*\n"
    r"(?P<code>.*?)(?:^(?:(?P=indent)|)[ ]{0,3}(?P=mark)|(?<=[^\s`~])[ \t]*(?P=mark)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs", "params")
_IGNORED = ("id", "type", "index", "call_id", "tool_call_id")
_TYPES = ("function", "tool_use", "tool_call", "function_call")


class NoCall(ValueError):
    """A JSON value that is not a call: it has no name (`no_name`), or its arguments are no object (`not_object`)."""


class Call(NamedTuple):
    name: str
    arguments: Mapping[str, Any]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that names a key twice is refused: which value is meant?"""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def finite(text: str) -> float:
    """A number that is neither too large nor too small for one: 1e400 and 1e500 are not both infinity."""
    value = float(text)
    if math.isinf(value) or (value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
        raise ValueError(f"{text} is out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=finite, object_pairs_hook=_once)


def first_value(text: str) -> tuple[Any, int]:
    """The JSON value that the text begins with, and where it ends, white space included on both sides.

    ValueError for what is none; RecursionError for JSON that is nested too deep.
    """
    value, end = _DECODER.raw_decode(text, _space(text, 0))
    return value, _space(text, end)


def tagged_value(text: str) -> tuple[Any, int]:
    """The JSON value that the text begins with, up to the end of the closing tag that must follow it."""
    value, end = first_value(text)
    if not text.startswith(CLOSE, end):
        raise ValueError("no closing tag after the value")
    return value, end + len(CLOSE)


def _space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def unfenced(text: str) -> str:
    """What is in the code fence that a text is; any other text as it stands."""
    fenced = FENCE.fullmatch(text.strip())
    return fenced["code"] if fenced else text


def fenced_in(text: str) -> list[str]:
    """What is in each code fence of a text."""
    return [fence["code"] for fence in FENCE.finditer(text)]


def outdented(text: str) -> str:
    """A text whose code fences are not indented, as they are in a list, and neither is the code in them."""
    return FENCE.sub(_outdent, text)


def _outdent(fence: re.Match[str]) -> str:
    indent = len(fence[0]) - len(fence[0].lstrip(" \t"))
    return re.sub(rf"^[ \t]{{0,{indent}}}", "", fence[0], flags=re.MULTILINE)


def call_of(value: Any) -> Call:
    """One call, of any provider's form. NoCall for what is none, or says more than a call."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict) and "name" not in value:
        if not set(value) <= {*_IGNORED, "function"}:
            raise NoCall("no_name")
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise NoCall("no_name")
    if value.get("type", _TYPES[0]) not in _TYPES or any(isinstance(value.get(key), dict | list) for key in _IGNORED):
        raise NoCall("no_name")
    keys = [key for key in value if key not in (*_IGNORED, "name")]
    if len(keys) > 1 or not set(keys) <= set(_ARGUMENTS):
        raise NoCall("no_name")
    arguments = value[keys[0]] if keys else {}
    if isinstance(arguments, str):  # some models write the arguments as JSON inside the JSON
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError) as e:
            raise NoCall("not_object") from e
    if not isinstance(arguments, dict):
        raise NoCall("not_object")
    return Call(value["name"], arguments)


def calls_in(text: str) -> list[Call] | None:
    """The calls of a text; None if any part of it is not a call.

    The text is one call or a list of them, bare or in a code fence, or any text with calls between <tool_call> tags.
    """
    if len(text) > _LONGEST:
        return None
    values = []
    try:
        if OPEN in text and text.lstrip()[:1] not in ("{", "["):
            while OPEN in text:
                text = text.partition(OPEN)[2]
                value, end = tagged_value(text)
                values.append(value)
                text = text[end:]
        else:
            values.append(_DECODER.decode(unfenced(text)))
        return [call_of(part) for value in values for part in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError):
        return None
