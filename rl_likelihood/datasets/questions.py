"""When two questions are the same, when they are variants of each other, and which are held out.

There are two keys. Rows with the same `example_key` ask the same question, and one of them is kept (unless both text
and answer differ: see `distinct`). Rows with the same `group_key` ask variants of a question ("Compute 4" and "Compute
4!"). All of them are kept, on the same side of a split, so that no variant of a held-out question is ever trained on.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.data.worked_examples import WORKED_EXAMPLES, Shots
from rl_likelihood.datasets.procedural import PRESETS
from rl_likelihood.progress import counted
from rl_likelihood.shapes import ENVIRONMENT, Example

_WORDINGS = [preset.wording.split("{}") for preset in PRESETS.values() if preset.wording]
_ARITHMETIC = re.compile(r"\d[-+* \d]*")


def question_key(text: str) -> str:
    """Equal for two wordings of one question: ignores spaces within lines, and the wording of the presets' arithmetic.
    Lines and their indentation count: programs and grids mean something else without."""
    lines = unicodedata.normalize("NFC", text).strip("\n").splitlines()
    indents = [line[: len(line) - len(line.lstrip())] for line in lines]
    text = "\n".join(indent + " ".join(line.split()) for indent, line in zip(indents, lines, strict=True)).strip()
    for before, after in _WORDINGS:
        inner = text.removeprefix(before).removesuffix(after)
        if _ARITHMETIC.fullmatch(inner):
            return inner
    return text


def variant_key(text: str) -> str:
    """Equal for variants of one question: also ignores case, forms of a character and final punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .=?!")
    for before, _ in _WORDINGS:
        text = text.removeprefix(before.casefold())
    return text


def example_key(example: Example) -> str:
    """`question_key` of the question, or of every turn of a conversation with its role; and the environment's task."""
    turns = [f"{role}: {question_key(content)}" for role, content in example.messages]
    environment = [example.check] if '"environment"' in example.check else []
    return "\n".join([*(turns or [question_key(example.prompt)]), *environment])


def group_key(example: Example) -> str:
    """The environment's task, if the row has one: it decides what the model reads. Else the `variant_key` of the
    question, or of every turn of a conversation."""
    if '"environment"' in example.check and (task := json.loads(example.check).get(ENVIRONMENT)) is not None:
        return json.dumps(task, sort_keys=True)
    return "\n".join(variant_key(content) for _, content in example.messages) or variant_key(example.prompt)


def single_turn(example: Example) -> bool:
    """Whether the question is one message, perhaps after system messages. Only such questions are worked examples."""
    return sum(role != "system" for role, _ in example.messages) <= 1 and '"environment"' not in example.check


def worked_key(example: Example) -> str:
    """The `group_key` of the question as a worked example shows it: without system messages."""
    return variant_key(example.prompt) if single_turn(example) else group_key(example)


def worked_groups(shown: Shots, tasks: Iterable[str]) -> set[str]:
    """Questions that prompts may show: the user's own worked examples, and those of the rows' tasks."""
    built_in = (shot for task in set(tasks) for shot in WORKED_EXAMPLES.get(task, ()))
    return {variant_key(question) for question, _, _ in (*built_in, *shown)}


def distinct(
    rows: Sequence[Any], key: Callable = example_key, example: Callable = lambda row: row
) -> tuple[list[Any], list[str]]:
    """The first row of every question, and the others in words. `key`, `example`: those of a row.

    Rows with the same `example_key` are different questions if both texts and answers differ: "How many spaces are in
    'a b'?" and the same with two spaces. Any other `key` decides alone.
    """
    by_key: dict[str, list[Any]] = {}
    once, repeats, key_decides = [], [], key is not example_key
    for row in rows:
        new, others = example(row), by_key.setdefault(key(row), [])
        old = next(
            (x for x in map(example, others) if key_decides or x.answer == new.answer or _text(x) == _text(new)), None
        )
        if old is None:
            once.append(row)
            others.append(row)
        else:
            other = "" if old.answer == new.answer else f" with another answer ({_short(new.answer)}, not used)"
            repeats.append(f"{new.id} asks the question of {old.id} again{other}")
    return once, repeats


def without(
    rows: Sequence[Example], groups: Collection[str], what: str, key: Callable[[Example], str] = group_key
) -> tuple[list[Example], list[str]]:
    """The rows in none of the groups, and the others in words. `what`: what those groups ask. `key`: a row's group."""
    inside = [key(row) in groups for row in rows]
    removed = [f"{row.id} asks {what}, or a variant of it" for row, out in zip(rows, inside, strict=True) if out]
    return [row for row, out in zip(rows, inside, strict=True) if not out], removed


def without_worked(rows: Sequence[Example], worked: Collection[str]) -> tuple[list[Example], list[str]]:
    """The rows that ask none of `worked_groups`, and the others in words."""
    return without(rows, worked, "a worked example", worked_key)


def by_group(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """The rows of every group."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(group_key(row), []).append(row)
    return groups


def hold_out(groups: dict[str, list[Example]], size: int) -> tuple[list[Example], list[Example]]:
    """(`size` held-out rows, other rows of their groups). Neither are training rows.

    Whole groups are held out, in the order of a hash, so that shuffling the file changes nothing. The last group may
    have more rows than are wanted; those are in neither set.
    """
    held: list[Example] = []
    for key in sorted(groups, key=hash_of):
        if len(held) >= size:
            break
        held += groups[key]
    return held[:size], held[size:]


def hash_of(key: str) -> bytes:
    """The hash that decides which questions are held out. It depends on the text alone."""
    return hashlib.sha256(key.encode()).digest()


def digest(train: Sequence[Example], heldout: Sequence[Example]) -> str:
    """Identifies the questions of a run: sha256 of every field of every example but its id, in order. A file may be
    renamed, because ids that the rows do not give are made of its name."""
    sides = [[list(vars(row).values())[1:] for row in rows] for rows in (train, heldout)]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()


def digest_of_files(*paths: str) -> str:
    """Identifies the contents of the files that are named; "" is no file."""
    parts = (hashlib.sha256(Path(path).read_bytes()).digest() for path in paths if path)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def named(rows: Sequence[str], what: str) -> str:
    """ "3 bad rows (...)": how many there are, and the first few."""
    return counted(len(rows), what) + some(rows)


def some(rows: Sequence[str]) -> str:
    """ " (...)": the first few in brackets; "" of none."""
    return f" ({'; '.join(rows[:5])}{'; ...' if len(rows) > 5 else ''})" if rows else ""


def _text(example: Example) -> tuple:
    return example.prompt, example.messages


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
