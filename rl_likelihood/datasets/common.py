"""What every builder shares: what a row of a data set becomes, and how its fields are read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.shapes import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")


class Place(NamedTuple):
    """Where a record stands, for ids and for messages."""

    file: str  # path below the source, members of an archive behind its name
    number: int  # from 1
    unit: str  # line | row
    key: str = ""  # the record's name, where the file is an object of records
    split: str = ""  # train | validation | test, as the path says; "" where it does not

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file} row {self.number}"

    @property
    def id(self) -> str:
        return self.key or f"{self.file}:{self.number}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A record as an example. `split` overrides what the file's name says. Rows with the same `key` ask the
    same question ("" = `sources.example_key`); rows of one `group` are never on two sides of a split ("" = `key`).
    `extra` is what a grader needs beyond the example (JSON)."""

    example: Example
    split: str = ""
    key: str = ""
    group: str = ""
    extra: Mapping = dataclasses.field(default_factory=dict)


class Left(NamedTuple):
    """A well-formed record that is no row of the prepared set, and why; counted by reason."""

    reason: str


class BadRow(ValueError):
    """A record that is not what the data set's format says; the message follows "file:line: "."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """How one data set is read and split.

    `parse(record, place)` gives a Row or Left, or raises BadRow. Splits are those that file names (or `parse`)
    say; `split` is that of the other files, "" if a name has to say it. Where no file gives `heldout_split`,
    `heldout` training questions are held out under that name: a count if 1 or more, else a fraction. `records` reads
    files that only make sense together: it takes all that were found, as (file, folder its name is told from), and
    gives (place, record); a str in place of a record is what is wrong with it.
    """

    name: str
    parse: Callable[[dict, Place], Row | Left]
    fetch: str  # which file to fetch by hand
    addresses: tuple[str, ...] = ()  # https://... files, or hf:owner/name@revision, read when no source is given
    patterns: tuple[str, ...] = ("*",)  # paths of a folder or archive that belong to the set
    split: str = ""
    heldout: float = 0
    heldout_split: str = "test"
    strata: tuple[str, ...] = ()  # fields of `extra`: the same share of each is held out
    records: Callable[[list[tuple[Path, Path]]], Iterator[tuple[Place, dict | str]]] | None = None
    password: bytes = b""  # of its archive, where its authors print one


def split_in(path: str) -> str:
    """The last of the words train, test, valid(ation), val, dev in a path; "" if there is none."""
    words = _SPLIT_WORD.findall(path.lower())
    return SPLITS[words[-1]] if words else ""


# ---------------------------------------------------------------------------------------- fields


def field(record: Mapping, *names: str):
    """The first of these fields that the record has; BadRow if it has none."""
    for name in names:
        if name in record:
            return record[name]
    there = ", ".join(map(str, list(record)[:8])) or "nothing"
    raise BadRow(f"field {' or '.join(map(repr, names))} is missing (it has {there})")


def text(record: Mapping, *names: str) -> str:
    """The first of these fields, which is text or null (then ""), without white space at its ends."""
    value = field(record, *names)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"field {' or '.join(map(repr, names))} must be text, not {type(value).__name__}")
    return value.strip()


def number(record: Mapping, *names: str) -> str:
    """The first of these fields as people write the number: 43.0 is "43", 1e-05 is "0.00001", text stays."""
    value = field(record, *names)
    if isinstance(value, str) or value is None:
        return (value or "").strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"field {' or '.join(map(repr, names))} must be a number, not {value!r}")
    return str(int(value)) if value == int(value) else format(Decimal(repr(value)), "f")


def multiple_choice(question: str, options: list[str]) -> str:
    """A question with lettered options; its answer is a letter."""
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"{len(options)} options; 2 to {len(LETTERS)} are possible")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "", *lines, "", "Answer with the letter of the right option."])
