"""Where questions come from: procedural tasks and JSON lines, split into training and held-out rows.

No held-out question is ever a training question, and none of either is a worked example of a prompt.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rl_likelihood.data import prepared
from rl_likelihood.data.examples import WORKED_EXAMPLES, Example
from rl_likelihood.data.jsonl import read_jsonl
from rl_likelihood.shapes import UserError

SOURCES = ("reasoning_gym", "jsonl", "prepared")

# A procedural task is used up when this many draws in a row bring no new question.
DRY_DRAWS = 3000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The room's settings. For JSON lines a size of 0 means every row there is.

    Without `heldout_path` the held-out rows are the `heldout_size` rows of `train_path` whose questions have
    the smallest sha256: shuffling the file or changing the seed moves none of them.
    """

    source: str  # reasoning_gym | jsonl | prepared
    tasks: tuple[str, ...] = ()  # reasoning_gym: names from PRESETS, mixed evenly
    train_path: str = ""  # jsonl; prepared: the folder that data/prepare.py wrote
    heldout_path: str = ""  # jsonl
    train_split: str = ""  # prepared; empty: train
    heldout_split: str = ""  # prepared; empty: the first of validation and test
    train_size: int = 0
    heldout_size: int = 0
    seed: int = 0
    skip_bad_rows: bool = False


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading did: rows read or drawn, and why some are missing from the sets."""

    rows: int
    duplicates: int  # the same question again within its set
    overlap_removed: int  # training rows that ask a held-out question, rows that ask a worked example
    bad_rows: tuple[str, ...] = ()  # "file:line: reason"


class Preset(NamedTuple):
    """A reasoning-gym data set, its arguments, and the wording of its arithmetic questions.

    The wording is the generator's own, ended with a full stop. The reference answer is computed here: the
    generator's bracket-free mode works from left to right and says 0 for 6 + 10 * 0.
    """

    dataset: str
    kwargs: dict
    wording: str
    fault_rate: float | None = None  # with a number: chains are given, and so often a step of one is wrong


# Numbers from 0 to 10: the generator counts 10 as one digit.
_EASY = {
    "min_digits": 1,
    "max_digits": 1,
    "operators": ["+", "-", "*"],
    "allow_parentheses": False,
    "allow_negation": False,
}
PRESETS: dict[str, Preset] = {
    # 2 or 3 terms: about 12,000 distinct questions.
    "basic_arithmetic": Preset("basic_arithmetic", {"min_terms": 2, "max_terms": 3, **_EASY}, "Calculate {}."),
    # Those of 2 terms: 363 distinct questions.
    "one_operation": Preset("basic_arithmetic", {"min_terms": 2, "max_terms": 2, **_EASY}, "Calculate {}."),
    # 2 or 3 terms, all of one digit or all of two: about 3 million distinct questions.
    "chain_sum": Preset(
        "chain_sum",
        {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2, "allow_negation": False},
        "State the final answer to the following arithmetic problem: {}.",
    ),
    # For models with random weights: 3 terms of one digit, chains given, a quarter of their steps wrong.
    "faulty_sums": Preset(
        "chain_sum",
        {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1, "allow_negation": False},
        "{}",
        fault_rate=0.25,
    ),
}


def load(cfg: DataConfig) -> tuple[list[Example], list[Example], LoadReport]:
    """(train, heldout, report) by the settings; the same settings give the same rows in the same order.

    Raises UserError for anything that is not there, not readable or not enough.
    """
    for field, value in (("train_size", cfg.train_size), ("heldout_size", cfg.heldout_size)):
        if value < 0:
            raise UserError(f"data.{field} is {value}; it must be 0 or more")
    if cfg.source == "reasoning_gym":
        return _load_procedural(cfg)
    if cfg.source == "jsonl":
        return _load_jsonl(cfg)
    if cfg.source == "prepared":
        return _load_prepared(cfg)
    raise UserError(f"data.source is {cfg.source!r}; {_options(cfg.source, SOURCES)}")


def describe(cfg: DataConfig, train: list[Example], heldout: list[Example], report: LoadReport) -> str:
    """The data line of the start message."""
    name = ", ".join(cfg.tasks) if cfg.source == "reasoning_gym" else Path(cfg.train_path).name
    return (
        f"{name}: {len(train)} training and {len(heldout)} held-out questions; removed {report.duplicates} duplicates, "
        f"{report.overlap_removed} that overlap held-out or worked questions, {len(report.bad_rows)} bad rows"
    )


def question_key(text: str) -> str:
    """What makes two questions one: case, spacing, final punctuation and the presets' wording do not count."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .=?!")
    for preset in PRESETS.values():
        text = text.removeprefix(preset.wording.partition("{}")[0].casefold())
    return text


def example_key(example: Example) -> str:
    """`question_key` of the question, or of every turn of a conversation."""
    return "\n".join(question_key(content) for _, content in example.messages) or question_key(example.prompt)


def order(n: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """step -> row indices [batch] (int64) into n rows: every row once an epoch, each epoch in a new order.

    Random access by step, so a resumed run needs no state but its step. A step may span two epochs.
    """
    if n < 1 or batch < 1:
        raise UserError(f"{batch} prompts a step from {n} training questions is not possible; both must be at least 1")
    import grain  # here because it takes over a second to import

    stream = grain.MapDataset.range(n).shuffle(seed=seed).repeat()  # repeat() gives each epoch its own seed
    return lambda step: np.asarray([stream[step * batch + j] for j in range(batch)], dtype=np.int64)


def _options(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(known), n=1)
    return f"choose one of {', '.join(known)}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _worked_keys() -> set[str]:
    return {question_key(question) for shots in WORKED_EXAMPLES.values() for question, _, _ in shots}


# ---------------------------------------------------------------------------------------- procedural


def _load_procedural(cfg: DataConfig) -> tuple[list[Example], list[Example], LoadReport]:
    if not cfg.tasks:
        raise UserError(f"data.tasks is empty; name at least one of {', '.join(PRESETS)}")
    if len(set(cfg.tasks)) < len(cfg.tasks):
        raise UserError(f"data.tasks names a task twice: {', '.join(cfg.tasks)}; name each once")
    for task in cfg.tasks:
        if task not in PRESETS:
            raise UserError(f"data.tasks has {task!r}; {_options(task, PRESETS)}")
    if cfg.train_size < 1:
        raise UserError("data.train_size is 0; a procedural source has no end, so say how many questions to draw")

    # Held-out first: it takes its questions, training gets what is left. One set of keys for all tasks,
    # because two wordings of one sum are one question.
    worked = _worked_keys()
    heldout, counts_h = _draw_split(cfg, "heldout", cfg.heldout_size, worked)
    train, counts_t = _draw_split(cfg, "train", cfg.train_size, worked | {question_key(e.prompt) for e in heldout})
    rows, duplicates, overlap = (a + b for a, b in zip(counts_h, counts_t, strict=True))
    return train, heldout, LoadReport(rows=rows, duplicates=duplicates, overlap_removed=overlap)


def _draw_split(cfg: DataConfig, split: str, size: int, taken: set[str]) -> tuple[list[Example], tuple[int, int, int]]:
    """`size` distinct examples, evenly from every task and interleaved; counts (drawn, duplicates, in `taken`)."""
    seen: set[str] = set()
    drawn = duplicates = overlap = 0
    by_task: list[list[Example]] = []
    for position, task in enumerate(cfg.tasks):
        want = size // len(cfg.tasks) + (position < size % len(cfg.tasks))
        kept: list[Example] = []
        stream = _generate(task, cfg.seed, split)
        dry = 0
        while len(kept) < want:
            example = next(stream)
            key = question_key(example.prompt)
            drawn += 1
            dry += 1
            if key in taken:
                overlap += 1
            elif key in seen:
                duplicates += 1
            else:
                seen.add(key)
                kept.append(example)
                dry = 0
            if dry == DRY_DRAWS:
                raise UserError(
                    f"data.{split}_size = {size} asks for {want} distinct questions of {task}, which ran out after "
                    f"{len(kept)}; set data.{split}_size to at most {len(kept) * len(cfg.tasks)}"
                )
        by_task.append(kept)
    longest = max(map(len, by_task))
    return [rows[i] for i in range(longest) for rows in by_task if i < len(rows)], (drawn, duplicates, overlap)


def _generate(task: str, seed: int, split: str) -> Iterator[Example]:
    """Endless examples of a preset. Draw i is the generator's item with seed `start + i`, so starts are hashed
    far apart: neighbouring seeds would share all items but one."""
    try:
        import reasoning_gym  # here because it takes seconds to import, and only this source needs it
    except ImportError as e:
        raise UserError("data.source = 'reasoning_gym' needs that package; run pip install reasoning-gym") from e

    preset = PRESETS[task]
    start = int.from_bytes(hashlib.sha256(f"{seed}/{split}/{task}".encode()).digest()[:6], "big")
    items = reasoning_gym.create_dataset(preset.dataset, size=2**31, seed=start, **preset.kwargs)
    for i in range(2**31):
        expression = items[i]["metadata"]["expression"]
        yield Example(
            id=f"{task}-{split}-{i}",
            prompt=preset.wording.format(expression),
            answer=str(evaluate_expression(expression)),
            chain="" if preset.fault_rate is None else worked_chain(expression, preset.fault_rate),
            task=task,
        )


def evaluate_expression(expression: str) -> int:
    """Value of integers joined by " + ", " - ", " * " (products first)."""
    terms = re.split(r" ([+-]) ", expression)
    signs = [1] + [1 if op == "+" else -1 for op in terms[1::2]]
    return sum(s * math.prod(map(int, t.split(" * "))) for s, t in zip(signs, terms[::2], strict=True))


def worked_chain(expression: str, fault_rate: float) -> str:
    """A sum step by step from left to right, "3+4=7 7-2=5"; with `fault_rate` a step is off by 1 to 3 and goes on.

    The faults of an expression are always the same.
    """
    rng = random.Random(expression)
    first, *rest = re.split(r" ([+-]) ", expression)
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        right = total + int(term) if sign == "+" else total - int(term)
        wrong = right + rng.choice((-3, -2, -1, 1, 2, 3))
        result = wrong if rng.random() < fault_rate else right
        steps.append(f"{total}{sign}{term}={result}")
        total = result
    return " ".join(steps)


# ---------------------------------------------------------------------------------------- JSON lines


def _load_jsonl(cfg: DataConfig) -> tuple[list[Example], list[Example], LoadReport]:
    if not cfg.train_path:
        raise UserError("data.train_path is empty; name a file of JSON lines with fields prompt and answer")
    rows, bad = read_jsonl(cfg.train_path, "data.train_path", cfg.skip_bad_rows)
    held: list[Example] = []
    if cfg.heldout_path:
        held, more_bad = read_jsonl(cfg.heldout_path, "data.heldout_path", cfg.skip_bad_rows)
        bad += more_bad
    read = len(rows) + len(held)
    worked = _worked_keys()
    rows, dup_r, worked_r = _distinct(rows, worked)
    held, dup_h, worked_h = _distinct(held, worked)

    if cfg.heldout_path:
        held = _first(held, cfg.heldout_size, "heldout", cfg.heldout_path)
    elif cfg.heldout_size:
        if cfg.heldout_size >= len(rows):
            raise UserError(
                f"data.heldout_size = {cfg.heldout_size} leaves nothing to train on: {cfg.train_path} has {len(rows)} "
                f"distinct questions; set it to at most {max(len(rows) - 1, 0)} or give data.heldout_path"
            )
        by_hash = sorted(rows, key=lambda e: hashlib.sha256(example_key(e).encode()).digest())
        chosen = {example_key(e) for e in by_hash[: cfg.heldout_size]}
        held = [e for e in rows if example_key(e) in chosen]
        rows = [e for e in rows if example_key(e) not in chosen]

    held_keys = {example_key(e) for e in held}
    train = [e for e in rows if example_key(e) not in held_keys]
    overlap = worked_r + worked_h + len(rows) - len(train)
    if not rows:
        raise UserError(f"{cfg.train_path} has no usable row; give it lines with fields prompt and answer")
    if not train:
        raise UserError(
            f"all {len(rows)} questions of {cfg.train_path} are in data.heldout_path = {cfg.heldout_path}; "
            f"give training questions of their own"
        )
    train = _first(train, cfg.train_size, "train", cfg.train_path)
    return train, held, LoadReport(rows=read, duplicates=dup_r + dup_h, overlap_removed=overlap, bad_rows=tuple(bad))


def _load_prepared(cfg: DataConfig) -> tuple[list[Example], list[Example], LoadReport]:
    """Splits that `prepare` made and cleaned; only questions of the worked examples are left to remove."""
    if not cfg.train_path:
        raise UserError("data.train_path is empty; name a folder that python -m rl_likelihood.data.prepare wrote")
    rows, held = prepared.load(cfg.train_path, cfg.train_split, cfg.heldout_split)
    if not rows:
        there = ", ".join(prepared.splits(cfg.train_path))
        raise UserError(f"{cfg.train_path} has no training split; name one of {there} in data.train_split")
    worked = _worked_keys()
    kept_rows, kept_held = ([e for e in part if example_key(e) not in worked] for part in (rows, held))
    removed = len(rows) + len(held) - len(kept_rows) - len(kept_held)
    train = _first(kept_rows, cfg.train_size, "train", cfg.train_path)
    heldout = _first(kept_held, cfg.heldout_size, "heldout", cfg.train_path)
    return train, heldout, LoadReport(rows=len(rows) + len(held), duplicates=0, overlap_removed=removed)


def _distinct(rows: list[Example], taken: set[str]) -> tuple[list[Example], int, int]:
    """The first row of every question that is not in `taken`; counts of repeats and of those taken."""
    free = [e for e in rows if example_key(e) not in taken]
    first = {example_key(e): e for e in reversed(free)}
    kept = [e for e in free if first[example_key(e)] is e]
    return kept, len(free) - len(kept), len(rows) - len(free)


def _first(rows: list[Example], size: int, split: str, path: str) -> list[Example]:
    if size > len(rows):
        raise UserError(
            f"data.{split}_size is {size} but {path} has {len(rows)} distinct {split.replace('held', 'held-')} "
            f"questions; set it to at most {len(rows)}, or to 0 for all"
        )
    return rows[:size] if size else rows
