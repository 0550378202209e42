"""Where questions come from: procedural tasks and JSON lines, split into training and held-out rows.

No held-out question is ever a training question, and none of either is a worked example of a prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rl_likelihood.data import prepared
from rl_likelihood.data.jsonl import read_jsonl
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.datasets import procedural
from rl_likelihood.datasets.procedural import PRESETS
from rl_likelihood.fields import field
from rl_likelihood.shapes import Example, UserError

# A procedural task is used up when this many draws in a row bring no new question.
DRY_DRAWS = 3000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which questions a run has.

    Without `heldout_path` the held-out rows are the `heldout_size` rows of `train_path` whose questions have
    the smallest sha256: shuffling the file or changing the seed moves none of them, adding or taking rows may.
    """

    source: Literal["reasoning_gym", "jsonl", "prepared"] = field(
        "reasoning_gym", "tasks made by a program, JSON lines, or a folder that rl_likelihood.datasets.prepare wrote"
    )
    tasks: tuple[str, ...] = field(
        ("basic_arithmetic",),
        'reasoning_gym: one_operation, basic_arithmetic, chain_sum, or any of its data sets, as "leg_counting" or '
        '"leg_counting(min_animals=1)"',
    )
    train_path: str = field("", 'jsonl: lines {"prompt", "answer"[, "chain", "id", "task"]}; prepared: the folder')
    heldout_path: str = field("", "jsonl: the held-out rows; empty: heldout_size rows of train_path")
    train_split: str = field("", "prepared: its name; empty: train")
    heldout_split: str = field("", "prepared: its name; empty: the first of validation and test")
    fast_split: str = field("", "prepared: another split for the fast evaluations during training")
    train_size: int = field(2000, "training questions; for jsonl 0 means all", least=0)
    heldout_size: int = field(100, "held-out questions; for jsonl 0 means all of heldout_path", least=0)
    seed: int = field(0, "of the questions that a program makes", least=0)
    skip_bad_rows: bool = field(False, "leave out, count and name bad rows, and training rows that are too long")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading did: rows read or drawn, and why some are missing from the sets."""

    rows: int
    duplicates: int  # the same question again within its set
    overlap_removed: int  # training rows that ask a held-out question, rows that ask a worked example
    bad_rows: tuple[str, ...] = ()  # "file:line: reason"


def load(cfg: DataConfig, training: bool = True) -> tuple[list[Example], list[Example], LoadReport]:
    """(train, heldout, report) by the settings; the same settings give the same rows in the same order.

    Raises UserError for anything that is not there, not readable or not enough. An evaluation (`training` False) gets
    no training rows, and needs none: a set may be for evaluation alone, or a file be named for both.
    """
    if cfg.source == "reasoning_gym":
        return _load_procedural(cfg, training)
    if cfg.source == "jsonl":
        return _load_jsonl(cfg, training)
    return _load_prepared(cfg, training)


def load_fast(cfg: DataConfig) -> list[Example]:
    """The questions of `fast_split`, for evaluations during training; none if it is not named."""
    if not cfg.fast_split:
        return []
    if cfg.source != "prepared":
        raise UserError(
            f"data.fast_split is {cfg.fast_split!r}, but data.source {cfg.source!r} has no splits; leave it empty"
        )
    if cfg.fast_split == (cfg.train_split or "train"):
        raise UserError(f"data.fast_split is {cfg.fast_split!r}, which is trained on; name another split")
    worked = _worked_keys()
    return [e for e in prepared.read(cfg.train_path, cfg.fast_split) if example_key(e) not in worked]


def describe(
    cfg: DataConfig, train: Sequence, heldout: Sequence, report: LoadReport, too_long: Sequence[str] = ()
) -> str:
    """The data line of the start message. `train` is what is left without the rows that are `too_long` (in words)."""
    name = ", ".join(cfg.tasks) if cfg.source == "reasoning_gym" else Path(cfg.train_path).name
    return (
        f"{name}: {len(train)} training and {len(heldout)} held-out questions; removed {report.duplicates} duplicates, "
        f"{report.overlap_removed} that overlap held-out or worked questions, "
        f"{_counted(report.bad_rows, 'bad row')}, {_counted(too_long, 'too long training row')}"
    )


def _counted(rows: Sequence[str], what: str) -> str:
    """How many, and the first few of them by name."""
    named = f" ({'; '.join(rows[:5])}{'; ...' if len(rows) > 5 else ''})" if rows else ""
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}{named}"


def question_key(text: str) -> str:
    """What makes two questions one: case, spacing, final punctuation and the presets' wording do not count."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .=?!")
    for preset in PRESETS.values():
        text = text.removeprefix(preset.wording.partition("{}")[0].casefold())
    return text


def example_key(example: Example) -> str:
    """`question_key` of the question, or of every turn of a conversation."""
    return "\n".join(question_key(content) for _, content in example.messages) or question_key(example.prompt)


def _worked_keys() -> set[str]:
    return {question_key(question) for shots in WORKED_EXAMPLES.values() for question, _, _ in shots}


# ---------------------------------------------------------------------------------------- procedural


def _load_procedural(cfg: DataConfig, training: bool) -> tuple[list[Example], list[Example], LoadReport]:
    if not cfg.tasks:
        raise UserError(
            f"data.tasks is empty; name at least one of {', '.join(PRESETS)}, or of reasoning_gym's data sets"
        )
    if len(set(cfg.tasks)) < len(cfg.tasks):
        raise UserError(f"data.tasks names a task twice: {', '.join(cfg.tasks)}; name each once")
    for task in cfg.tasks:
        procedural.parse(task)
    if training and cfg.train_size < 1:
        raise UserError("data.train_size is 0; a procedural source has no end, so say how many questions to draw")

    # Held-out first: it takes its questions, training gets what is left. One set of keys for all tasks,
    # because two wordings of one sum are one question.
    worked = _worked_keys()
    heldout, of_heldout = _draw_split(cfg, "heldout", cfg.heldout_size, worked)
    taken = worked | {question_key(e.prompt) for e in heldout}
    train, of_train = _draw_split(cfg, "train", cfg.train_size if training else 0, taken)
    both = zip(dataclasses.astuple(of_heldout), dataclasses.astuple(of_train), strict=True)
    return train, heldout, LoadReport(*(a + b for a, b in both))


def _draw_split(cfg: DataConfig, split: str, size: int, taken: set[str]) -> tuple[list[Example], LoadReport]:
    """`size` distinct examples, none of them in `taken`, evenly from every task and interleaved."""
    seen: set[str] = set()
    drawn = duplicates = overlap = 0
    bad: list[str] = []
    by_task: list[list[Example]] = []
    for position, task in enumerate(cfg.tasks):
        want = size // len(cfg.tasks) + (position < size % len(cfg.tasks))
        kept: list[Example] = []
        stream = procedural.generate(task, cfg.seed, split)
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
            elif not example.answer:  # the right answer to a few string tasks is nothing
                bad.append(f"{example.id}: the answer is empty")
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
    rows = [rows[i] for i in range(longest) for rows in by_task if i < len(rows)]
    return rows, LoadReport(drawn, duplicates, overlap, tuple(bad))


# ---------------------------------------------------------------------------------------- JSON lines


def _load_jsonl(cfg: DataConfig, training: bool) -> tuple[list[Example], list[Example], LoadReport]:
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
    if not training:
        train = []
    elif not train:
        raise UserError(
            f"all {len(rows)} questions of {cfg.train_path} are in data.heldout_path = {cfg.heldout_path}; "
            f"give training questions of their own"
        )
    train = _first(train, cfg.train_size if training else 0, "train", cfg.train_path)
    return train, held, LoadReport(rows=read, duplicates=dup_r + dup_h, overlap_removed=overlap, bad_rows=tuple(bad))


def _load_prepared(cfg: DataConfig, training: bool) -> tuple[list[Example], list[Example], LoadReport]:
    """Splits that `prepare` made and cleaned; only questions of the worked examples are left to remove."""
    if not cfg.train_path:
        raise UserError("data.train_path is empty; name a folder that python -m rl_likelihood.datasets.prepare wrote")
    rows, held = prepared.load(cfg.train_path, cfg.train_split, cfg.heldout_split, training)
    if training and not rows:
        there = ", ".join(prepared.splits(cfg.train_path))
        raise UserError(
            f"{cfg.train_path} is for evaluation: its splits are {there}; evaluate with it, or train on one of several "
            "by naming two of them in data.train_split and data.heldout_split"
        )
    worked = _worked_keys()
    kept_rows, kept_held = ([e for e in part if example_key(e) not in worked] for part in (rows, held))
    removed = len(rows) + len(held) - len(kept_rows) - len(kept_held)
    train = _first(kept_rows, cfg.train_size if training else 0, "train", cfg.train_path)
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
