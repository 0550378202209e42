"""How a config field is declared: once, on the settings dataclass of the package that reads it.

    @dataclasses.dataclass(frozen=True)
    class LossConfig:
        advantage: Literal["loo", "mean"] = field("loo", "how differences become advantages")
        kl_coef: float = field(0.0, "coefficient of the KL term", least=0)
        max_tokens: int = 1  # no `field`: not the user's, the program sets it

The type gives the choices, `field` gives default, bounds and the comment. configs/base.py, validation,
--print_config and docs/config.md are made from these declarations (`rl_likelihood.config`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rl_likelihood.errors import UserError


def field(default: Any, doc: str, instead: Mapping[str, str] | None = None, **bounds: float) -> Any:
    """A field that the user may set. `instead`: what to do instead of some other value. `bounds`: least, most
    (inclusive), above, below (exclusive), zero_or (0 or at least this)."""
    unknown = set(bounds) - _BOUNDS.keys()
    assert not unknown, f"bounds are {', '.join(_BOUNDS)}, not {unknown}"
    return dataclasses.field(default=default, metadata={"doc": doc, "bounds": bounds, "instead": instead or {}})


_BOUNDS = {
    "least": (lambda x, bound: x >= bound, "at least"),
    "most": (lambda x, bound: x <= bound, "at most"),
    "above": (lambda x, bound: x > bound, "above"),
    "below": (lambda x, bound: x < bound, "below"),
    "zero_or": (lambda x, bound: x == 0 or x >= bound, "0 or at least"),
}


def user_fields(cls: type) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """(name, type, field) of every field of a settings class that the user may set, in their order."""
    types = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if "doc" in item.metadata or dataclasses.is_dataclass(types[item.name]):
            yield item.name, types[item.name], item


def choices(kind: Any) -> tuple:
    """The values of a Literal type; () for any other type."""
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def nearest(value: Any, options: Iterable[str]) -> str:
    """The option most like the value; "" if none is like it."""
    return next(iter(difflib.get_close_matches(str(value), list(options), 1)), "")


def did_you_mean(value: Any, options: Iterable[str]) -> str:
    """ "did you mean 'prob'? " for a value near one of the options, else nothing."""
    near = nearest(value, options)
    return f"did you mean {near!r}? " if near else ""


def one_of(name: str, value: Any, options: Iterable[str]) -> None:
    """UserError unless the value is an option."""
    options = list(options)
    if value not in options:
        raise UserError(f"{name} is {value!r}; {did_you_mean(value, options)}it must be one of {', '.join(options)}")


def refuse_others(c: Any, why: str, allowed: Mapping[str, Sequence], show: Callable[[Any], str] = str) -> None:
    """UserError if a field of the config `c` has a value that is not allowed. `why`: what forbids it; `show`: writes a
    value."""
    for name, values in allowed.items():
        if (given := operator.attrgetter(name)(c)) not in values:
            raise UserError(f"{name} is {given!r}, but with {why} it must be {' or '.join(map(show, values))}")


def checked(name: str, value: Any, kind: Any, item: dataclasses.Field) -> Any:
    """The value of one field, in its type; UserError where type, choice or bounds forbid it."""
    if choices(kind):
        if words := item.metadata["instead"].get(str(value)):
            raise UserError(f"{name} is {value!r}; {words}")
        one_of(name, value, choices(kind))
        return value
    bounds = item.metadata["bounds"]
    if typing.get_origin(kind) is not tuple:
        return _scalar(name, value, kind, bounds)
    element = typing.get_args(kind)[0]
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {value!r}; it must be a list of values of type {element.__name__}")
    if element is not str and len(value) == 1 and isinstance(value[0], str):  # a command line's, no Python literal
        raise UserError(f"{name} is {value[0]!r}; it must be finite numbers, as (1, 0, 2)")
    return tuple(_scalar(f"{name}[{i}]", x, element, bounds) for i, x in enumerate(value))


def _scalar(name: str, value: Any, kind: type, bounds: Mapping[str, float]) -> Any:
    """A str, bool, int or float within its bounds. A path below "~" becomes one below the home folder."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole if kind is int else isinstance(value, kind) or (kind is float and whole)):
        raise UserError(f"{name} is {_short(value)}; it must be of type {kind.__name__}")
    if kind is str:
        return os.path.expanduser(value)
    if kind is bool:
        return value
    if whole and "most" not in bounds and abs(value) >= 2**31:
        raise UserError(f"{name} is {_short(value)}; no number of 32 bits is so large")
    if not whole and not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    if not whole and value != 0 and not 1e-38 < abs(value) < 1e38:  # it would become 0 or infinite
        raise UserError(f"{name} is {value}; no number of 32 bits is like that")
    for bound, limit in bounds.items():
        holds, words = _BOUNDS[bound]
        if not holds(value, limit):
            raise UserError(f"{name} is {_short(value)}; it must be {words} {limit:.10g}")
    return kind(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read(cls: type, values: Any, prefix: str = "") -> Any:
    """The settings of class `cls` from nested values (a dict or ConfigDict), every field checked."""
    given = {}
    for name, kind, item in user_fields(cls):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            given[name] = read(kind, values[name], f"{prefix}{name}.")
        else:
            given[name] = checked(prefix + name, values[name], kind, item)
    return cls(**given)
