"""Tool calls in a model's text, in the model's own format, and the replies to them.

    hermes   <tool_call>{"name": "reboot_device", "arguments": {}}</tool_call>      Qwen, SmolLM, Hermes
    llama3   {"name": "reboot_device", "parameters": {}}                            Llama 3, after <|python_tag|> or not
    json     {"name": "reboot_device", "arguments": {}}, or a list of such objects  an answer between answer tags

What a model writes may be anything. Each malformed call becomes a `BadCall`, whose text the model reads; no text raises
an error, and parsing time is linear in the length of the text. `grading/calls.py` says what the JSON of a call may be.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rl_likelihood.envs.tools import KINDS, Call, Tool, ToolError, wrong_arguments
from rl_likelihood.grading.calls import CLOSE, OPEN, NoCall, call_of, first_value, tagged_value, unfenced

Style = Literal["hermes", "llama3", "json"]
LONGEST = 20_000  # characters of one call
DEEPEST = 20  # brackets within brackets
MOST = 32  # calls of one message, and thoughts
_PYTHON_TAG = "<|python_tag|>"
_LLAMA_ENDS = ("<|eom_id|>", "<|eot_id|>")
_BETWEEN = tuple(" \t\r\n;")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', re.DOTALL)
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_TAG = re.compile(f"{OPEN}|{_THINK_OPEN}|{_THINK_CLOSE}")
_LLAMA_TAG = re.compile("|".join(map(re.escape, (_PYTHON_TAG, *_LLAMA_ENDS, _THINK_OPEN, _THINK_CLOSE))))

PROBLEMS = {
    "no_call": "your message has no tool call",
    "truncated": "the tool call does not end",
    "too_long": f"a tool call has at most {LONGEST} characters",
    "too_many": f"a message has at most {MOST} tool calls; the others were not made",
    "not_json": "the tool call is not JSON, or it names a key twice",
    "too_deep": f"the arguments are nested more than {DEEPEST} deep",
    "not_text": "the tool call holds half of a surrogate pair, which is not text",
    "no_name": 'a tool call is a JSON object with the fields "name" and "arguments" and no other',
    "not_object": "the arguments must be a JSON object",
    "unknown_tool": "there is no such tool",
    "wrong_arguments": "the arguments do not fit the tool",
    "refused": "the tool refuses the call",
}


class BadCall(NamedTuple):
    kind: str  # of PROBLEMS


def parse(text: str, style: Style) -> list[Call | BadCall]:
    """The calls of a message, in order; empty if it has none, or over MOST thoughts. Thoughts are not searched."""
    if text.count(_THINK_CLOSE) > MOST:
        return []
    calls = {"hermes": _tagged, "llama3": _bare, "json": _whole}[style](text)
    return calls if len(calls) <= MOST else [*calls[:MOST], BadCall("too_many")]


def _tagged(text: str) -> list[Call | BadCall]:
    """A call is read from its opening tag on, so that its strings may hold tags."""
    calls: list[Call | BadCall] = []
    at = 0
    while tag := _TAG.search(text, at):
        at = tag.end()
        if tag[0] == OPEN and len(calls) <= MOST:
            more, length = _first(text, at, tagged=True)
            calls += more
            at += length
        elif tag[0] == _THINK_CLOSE:
            calls = []  # the chat template opened the thought
        elif tag[0] == _THINK_OPEN:
            at = _thought_end(text, at)
            if at < 0:
                return []
    return calls


def _bare(text: str) -> list[Call | BadCall]:
    """Objects one after another, with semicolons or white space between; other text at the start means no call."""
    calls: list[Call | BadCall] = []
    at, tagged = 0, False  # tagged: after <|python_tag|>
    while True:
        while text[at : at + 1] in _BETWEEN:
            at += 1
        if text.startswith("{", at) and len(calls) <= MOST:
            more, length = _first(text, at)
            calls += more
            at += length
            if length:
                continue
        elif (calls or tagged) and at < len(text) and not _LLAMA_TAG.match(text, at):
            calls.append(BadCall("not_json"))
        tag = _LLAMA_TAG.search(text, at)
        if tag is None or tag[0] in _LLAMA_ENDS:
            return calls
        at = tag.end()
        if tag[0] == _PYTHON_TAG:
            tagged = True
        elif tag[0] == _THINK_CLOSE:
            calls, tagged = [], False
        else:
            at = _thought_end(text, at)
            if at < 0:
                return []


def _thought_end(text: str, at: int) -> int:
    """The end of the thought that has begun; -1 if it does not end: then the message is all thought."""
    end = text.find(_THINK_CLOSE, at)
    return -1 if end < 0 else end + len(_THINK_CLOSE)


def _whole(text: str) -> list[Call | BadCall]:
    """The message is one call or a list of calls, alone or in a code fence, after its thoughts."""
    text, at = text.strip(), 0
    calls: list[Call | BadCall] = []
    while at >= 0:
        part = text[at : at + LONGEST + 1]
        calls = [] if part.lstrip().startswith(_THINK_OPEN) else _alone(part)
        if any(isinstance(call, Call) for call in calls):
            break
        at = _thought_end(text, at)
    return calls


def _alone(text: str) -> list[Call | BadCall]:
    if len(text) > LONGEST:
        return [BadCall("too_long")]
    text = unfenced(text).strip()
    calls, length = _first(text, 0) if text else ([], 0)
    return [BadCall("not_json")] if 0 < length < len(text) or BadCall("truncated") in calls else calls


def _first(text: str, at: int, tagged: bool = False) -> tuple[list[Call | BadCall], int]:
    """The calls of the JSON value that begins at `at`, and its length, with a closing tag if it is `tagged`.

    If no JSON value begins there, the result is a BadCall and the number of characters to skip.
    """
    part = text[at : at + LONGEST + 1]
    try:
        value, length = tagged_value(text[at : at + LONGEST + len(CLOSE)]) if tagged else first_value(part)
    except RecursionError:
        return [BadCall("too_deep")], 0 if tagged else _object_end(part)
    except ValueError:
        if tagged:
            end = text[at:].partition(OPEN)[0].find(CLOSE)
        else:
            end = _object_end(part) or (-1 if len(part) <= LONGEST else LONGEST + 1)
        kind = "truncated" if end < 0 else "too_long" if end > LONGEST else "not_json"
        return [BadCall(kind)], 0 if tagged or kind != "not_json" else end
    return [_call(each) for each in (value if isinstance(value, list) else [value])] or [BadCall("no_name")], length


def _object_end(text: str) -> int:
    """The length of the JSON object that the text begins with, judged by its brackets; 0 if it does not end."""
    depth = 0
    for part in _STRING_OR_BRACKET.finditer(text):
        depth += (part[0] in "{[") - (part[0] in "}]")
        if depth == 0 and part[0] in "}]":
            return part.end()
    return 0


def _call(value: Any) -> Call | BadCall:
    try:
        call = call_of(value)
    except NoCall as e:
        return BadCall(str(e))
    if _deeper(call.arguments, DEEPEST):
        return BadCall("too_deep")
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
    hint = f" Write {example(tools, style)}" if tools else ""
    replies, made, bad = [], [], []
    for call in calls:
        if isinstance(call, BadCall):
            kind, reply, hint = call.kind, f"Error: {PROBLEMS[call.kind]}.{hint}", ""  # the hint once
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
        reply = tool.run(state, **call.arguments)
    except ToolError as e:
        return "refused", f"Error: {e}"
    if not isinstance(reply, str):
        raise TypeError(f"the tool {call.name} returned {type(reply).__name__} and not text")
    return "", reply


# ---------------------------------------------------------------------------------------- calls as text


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
    return message([Call(tool.name, {p.name: KINDS[p.kind].example for p in tool.parameters if p.required})], style)


def _object(call: Call, arguments: str) -> str:
    return json.dumps({"name": call.name, arguments: dict(call.arguments)}, ensure_ascii=False)
