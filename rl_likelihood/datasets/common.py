"""What all data sets share: the row that a record becomes, and how its fields are read."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.data.records import BadRow, Location, is_number, written_number
from rl_likelihood.shapes import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Row:
    """A record as an example.

    `split` overrides the split in the file's name. Rows with the same `key` ask the same question. Rows with the same
    `group` are on the same side of a split. If they are "", `questions.example_key` and the key or
    `questions.group_key` take their place. `extra` holds other fields of the source (JSON); its key "test" is what a
    grader compares with.
    """

    example: Example
    split: str = ""
    key: str = ""
    group: str = ""
    extra: Mapping = dataclasses.field(default_factory=dict)


class Skipped(NamedTuple):
    """A well-formed record that is no row of the prepared set, and why; counted by reason."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Which files belong together, and where they are."""

    name: str
    fetch: str  # which file to fetch by hand
    addresses: tuple[str, ...] = ()  # https://... files, or hf:owner/name@revision, read when no source is given
    patterns: tuple[str, ...] = ("*",)  # paths of a folder or archive that belong to the set
    password: bytes = b""  # of its archive, where its authors print one
    text: bool = False  # a .txt file is one text, not JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet(Files):
    """One data set: how it is read, split, asked and graded.

    `parse(record, location)` gives a Row or Skipped, or raises BadRow. File names (or `parse`) say the split; `split`
    is that of other files, "" if every name must say it. If no file is of `heldout_split`, `heldout` training questions
    are held out under that name: a count if 1 or more, else a fraction. `records` is for files that only make sense
    together: from the list of (file, folder that its name is relative to) it gives the (location, record) of all.

    The other fields are the settings of configs/prepared.py. Lengths are tokens of SmolLM2's tokenizer.
    """

    parse: Callable[[dict, Location], Row | Skipped]
    records: Callable[[list[tuple[Path, Path]]], Iterator[tuple[Location, dict | str]]] | None = None
    split: str = ""
    heldout: float = 0
    heldout_split: str = "test"
    strata: tuple[str, ...] = ()  # fields of `extra`: the same share of each is held out

    grader: str  # of docs/grading.md; none: the answers are texts that no program can check
    max_prompt: int
    max_answer: int
    max_chain: int = 384
    instruction: str = ""  # how to answer; "": the standard instruction of data/prompts.py
    train_split: str = ""  # "": train
    eval_split: str = ""  # "": heldout_split
    fast_split: str = ""  # watched during training; "": eval_split


# For data sets whose answers are written text: the standard instruction without its "only the final answer".
WRITTEN = (
    "Think step by step before you answer. Write your reasoning inside <think></think>, then your answer inside "
    "<answer></answer>."
)


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
    fields = ", ".join(map(str, list(record)[:8])) or "nothing"
    raise BadRow(f"field {' or '.join(map(repr, names))} is missing (it has {fields})")


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
    if not is_number(value):
        raise BadRow(f"field {' or '.join(map(repr, names))} must be a number, not {value!r}")
    return written_number(value)


def multiple_choice(question: str, options: list[str]) -> str:
    """A question with lettered options; its answer is a letter."""
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"{len(options)} options; 2 to {len(LETTERS)} are possible")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "", *lines, "", "Answer with the letter of the right option."])
