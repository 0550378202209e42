"""A tool that a model may call: what it is called, what it takes, and the function behind it."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rl_likelihood.errors import UserError
from rl_likelihood.grading.calls import Call as Call

_LARGEST = 1e9  # a number beyond it is a mistake, and its text or its product may be very long


class Kind(NamedTuple):
    """A JSON type: the Python types of its values, and a value to show."""

    types: tuple[type, ...]
    example: Any


KINDS = {
    "string": Kind((str,), "..."),
    "number": Kind((int, float), 0),
    "integer": Kind((int,), 0),
    "boolean": Kind((bool,), True),
    "object": Kind((dict,), {}),
    "array": Kind((list,), []),
}


class ToolError(Exception):
    """A call that a tool refuses, in words that the model reads."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # of KINDS
    about: str
    required: bool = True


@dataclasses.dataclass(frozen=True)
class Tool:
    """`run(state, **arguments)` gives the reply, or raises ToolError; it may change the state."""

    run: Callable[..., str]
    about: str
    parameters: tuple[Parameter, ...] = ()

    @property
    def name(self) -> str:
        return self.run.__name__


def table(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Tools by name. UserError for two of one name, and for parameters that are no JSON type or not the function's."""
    by_name: dict[str, Tool] = {}
    for tool in tools:
        if by_name.setdefault(tool.name, tool) is not tool:
            raise UserError(f"two tools have the name {tool.name}; rename the function of one")
        for p in tool.parameters:
            if p.kind not in KINDS:
                raise UserError(
                    f"parameter {p.name!r} of the tool {tool.name} has the kind {p.kind!r}; choose {', '.join(KINDS)}"
                )
        for called in (tool.parameters, [p for p in tool.parameters if p.required]):
            try:
                inspect.signature(tool.run).bind(None, **{p.name: None for p in called})
            except TypeError as e:
                raise UserError(
                    f"the tool {tool.name} cannot be called with its parameters ({e}); name those of its function, and "
                    "as required those without a default"
                ) from e
    return by_name


def wrong_arguments(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, in one sentence; "" if nothing is."""
    known = {p.name: p for p in tool.parameters}
    missing = [p.name for p in tool.parameters if p.required and p.name not in arguments]
    if missing:
        return f"{tool.name} needs the argument {missing[0]}"
    for name, value in arguments.items():
        if name not in known:
            takes = ", ".join(known) or "no arguments"
            return f"{tool.name} has no argument {name!r}; it takes {takes}"
        if not _fits(value, known[name].kind):
            return f"argument {name} of {tool.name} must be of type {known[name].kind}"
    return ""


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if not isinstance(value, KINDS[kind].types):
        return False
    return kind not in ("number", "integer") or abs(value) <= _LARGEST


def schema(tool: Tool) -> dict:
    """The tool as chat templates take it: a function with a JSON schema of its arguments."""
    properties = {p.name: {"type": p.kind, "description": p.about} for p in tool.parameters}
    required = [p.name for p in tool.parameters if p.required]
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": tool.name, "description": tool.about, "parameters": parameters}}


def signature(tool: Tool) -> str:
    """The tool in one short line: refuel_data(customer_id, line_id, gb_amount)."""
    return f"{tool.name}({', '.join(p.name if p.required else p.name + '?' for p in tool.parameters)})"
