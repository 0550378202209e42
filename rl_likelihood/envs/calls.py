"""Tool calls out of a model's text, in its own format; and how well calls agree with reference calls.

    hermes   <tool_call>{"name": "reboot_device", "arguments": {}}</tool_call>      Qwen, SmolLM, Hermes
    llama3   {"name": "reboot_device", "parameters": {}}                            Llama 3, after <|python_tag|> or not
    json     {"name": "reboot_device", "arguments": {}}, or a list of such objects  an answer between answer tags

What a model writes may be anything. Each malformed call becomes a `BadCall`, whose text the model reads and whose kind
is counted; no text raises an error, and time grows no faster than the text.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rl_likelihood.envs.tools import Call, Tool, ToolError, wrong_arguments

Style = Literal["hermes", "llama3", "json"]
LONGEST = 20_000  # characters of one call
DEEPEST = 20  # brackets within brackets
MOST = 32  # calls of one turn
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_LLAMA_ENDS = ("<|eom_id|>", "<|eot_id|>")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"

PROBLEMS = {
    "no_call": "your message has no tool call",
    "truncated": "the tool call does not end",
    "too_long": f"a tool call has at most {LONGEST} characters",
    "too_many": f"a message has at most {MOST} tool calls; the others were not made",
    "not_json": "the tool call is not JSON",
    "too_deep": f"the arguments are nested more than {DEEPEST} deep",
    "not_text": "the tool call holds half of a surrogate pair, which is not text",
    "no_name": 'a tool call is a JSON object with the fields "name" and "arguments"',
    "not_object": "the arguments must be a JSON object",
    "unknown_tool": "there is no such tool",
    "wrong_arguments": "the arguments do not fit the tool",
    "refused": "the tool refuses the call",
}


class BadCall(NamedTuple):
    kind: str  # of PROBLEMS


def parse(text: str, style: Style) -> list[Call | BadCall]:
    """The calls of a message, in order; empty if it has none. Thoughts are not searched."""
    text = _said(text)
    if style == "hermes":
        calls = _tagged(text)
    elif style == "llama3":
        calls = _bare(text)
    else:
        fenced = _FENCE.fullmatch(text.strip())
        text = (fenced[1] if fenced else text).strip()
        calls = _read(text, many=True) if text else []
    return calls if len(calls) <= MOST else [*calls[:MOST], BadCall("too_many")]


def _said(text: str) -> str:
    """What follows the thoughts; nothing where they do not end."""
    thoughts, closed, said = text.partition(_THINK_CLOSE)
    if closed:
        return said
    return "" if _THINK_OPEN in text else thoughts


def _tagged(text: str) -> list[Call | BadCall]:
    calls = []
    for part in text.split(OPEN)[1 : MOST + 2]:
        inside, closed, _ = part.partition(CLOSE)
        calls += _read(inside) if closed else [BadCall("truncated")]
    return calls


def _bare(text: str) -> list[Call | BadCall]:
    """Objects one after another, with semicolons or white space between; other text at the start means no call."""
    tagged = _PYTHON_TAG in text
    text = text.partition(_PYTHON_TAG)[2] if tagged else text
    for end in _LLAMA_ENDS:
        text = text.partition(end)[0]
    text = text.strip()
    if not text.startswith("{"):
        return [BadCall("not_json")] if tagged else []
    calls = []
    while text and len(calls) <= MOST:
        end = _object_end(text[: LONGEST + 1])
        if end == 0:
            return [*calls, BadCall("too_long" if len(text) > LONGEST else "truncated")]
        calls += _read(text[:end])
        text = text[end:].lstrip(" \t\r\n;")
        if text and not text.startswith("{"):
            return [*calls, BadCall("not_json")]
    return calls


def _object_end(text: str) -> int:
    """The length of the JSON object that the text begins with, judged by its brackets; 0 if it does not end."""
    depth, in_string, escaped = 0, False, False
    for at, c in enumerate(text):
        if in_string:
            in_string = escaped or c != '"'
            escaped = c == "\\" and not escaped
        elif c == '"':
            in_string = True
        elif c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
            if depth == 0:
                return at + 1
    return 0


def _read(text: str, many: bool = False) -> list[Call | BadCall]:
    """The call that a JSON text is; of a list of calls each, where there may be `many`."""
    if len(text) > LONGEST:
        return [BadCall("too_long")]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        return [BadCall("too_deep")]
    except ValueError:  # no JSON, NaN, or a number of thousands of digits
        return [BadCall("not_json")]
    return [_call(part) for part in value] if many and isinstance(value, list) else [_call(value)]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _call(value: Any) -> Call | BadCall:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        return BadCall("no_name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the arguments as JSON inside the JSON
        try:
            arguments = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return BadCall("not_object")
    if not isinstance(arguments, dict):
        return BadCall("not_object")
    if _deeper(arguments, DEEPEST):
        return BadCall("too_deep")
    call = Call(name, arguments)
    try:
        text_of(call).encode()
    except UnicodeEncodeError:
        return BadCall("not_text")
    return call


def _deeper(value: Any, limit: int) -> bool:
    """Whether containers are nested more than `limit` deep, this one included."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        return False
    return limit == 0 or any(_deeper(part, limit - 1) for part in parts)


# ---------------------------------------------------------------------------------------- making the calls


class Answered(NamedTuple):
    reply: str  # what the model reads next, a paragraph for each call
    made: list[Call]  # the calls that reached a tool
    bad: list[str]  # the kinds of the others


def answer(text: str, style: Style, tools: Mapping[str, Tool], state: Any, last: Sequence[str] = ()) -> Answered:
    """Make the calls of a message, in order, up to the first call of a tool in `last`."""
    calls = parse(text, style) or [BadCall("no_call")]
    replies, made, bad = [], [], []
    for call in calls:
        if isinstance(call, BadCall):
            kind, reply = call.kind, f"Error: {PROBLEMS[call.kind]}. Write {example(tools, style)}"
        else:
            kind, reply = make(call, tools, state)
        replies.append(reply)
        if kind in ("", "refused"):
            made.append(call)
        if kind:
            bad.append(kind)
        elif call.name in last:
            break
    return Answered("\n\n".join(replies), made, bad)


def make(call: Call, tools: Mapping[str, Tool], state: Any) -> tuple[str, str]:
    """(what is wrong with the call, a kind of PROBLEMS or ""; the reply). A wrong call changes nothing."""
    tool = tools.get(call.name)
    if tool is None:
        return "unknown_tool", f"Error: Tool '{call.name}' not found."
    problem = wrong_arguments(tool, call.arguments)
    if problem:
        return "wrong_arguments", f"Error: {problem}"
    try:
        return "", tool.run(state, **call.arguments)
    except ToolError as e:
        return "refused", f"Error: {e}"


# ---------------------------------------------------------------------------------------- text and agreement


def text_of(call: Call) -> str:
    """The call as sorted JSON: one text for equal calls."""
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, sort_keys=True, ensure_ascii=False)


def message(calls: Sequence[Call], style: Style, thought: str = "") -> str:
    """A message that makes the calls, as `parse` reads it. A thought stands before them."""
    if style == "hermes":
        said = "\n".join(f"{OPEN}\n{_object(call, 'arguments')}\n{CLOSE}" for call in calls)
    elif style == "llama3":
        said = "; ".join(_object(call, "parameters") for call in calls)
    else:
        said = text_of(calls[0]) if len(calls) == 1 else "[" + ", ".join(map(text_of, calls)) + "]"
    return f"<think>{thought}{_THINK_CLOSE}\n{said}" if thought else said


def example(tools: Mapping[str, Tool], style: Style) -> str:
    """A call to show: of the tool that needs the fewest arguments, the first of these."""
    tool = min(tools.values(), key=lambda tool: sum(p.required for p in tool.parameters))
    shown = {"string": "...", "number": 0, "integer": 0, "boolean": True, "object": {}}
    return message([Call(tool.name, {p.name: shown[p.kind] for p in tool.parameters if p.required})], style)


def _object(call: Call, arguments: str) -> str:
    return json.dumps({"name": call.name, arguments: dict(call.arguments)}, ensure_ascii=False)


def f1(made: Sequence[Call], reference: Sequence[Call]) -> float:
    """2 x common / (made + reference), a call counted as often as it comes; 1 if there are none of either.

    Order does not count. Calls are common if name and arguments are equal as JSON: 2 is 2.0, but not true.
    """
    if not made and not reference:
        return 1.0
    common = Counter(map(_key, made)) & Counter(map(_key, reference))
    return 2 * common.total() / (len(made) + len(reference))


def _key(call: Call) -> str:
    return text_of(Call(call.name, _numbers(dict(call.arguments))))


def _numbers(value: Any) -> Any:
    """Whole floats as integers."""
    if isinstance(value, dict):
        return {name: _numbers(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
