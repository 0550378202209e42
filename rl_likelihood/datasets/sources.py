"""Where questions come from: tasks made by a program, the user's own files, or prepared data sets.

No held-out question, nor a variant of one, is a training question, and none of either is a worked example.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.data import prepared
from rl_likelihood.data.own_rows import read_rows
from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.data.records import SUFFIXES, Location
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES, Shots
from rl_likelihood.datasets import files, procedural, questions
from rl_likelihood.datasets.common import Files
from rl_likelihood.datasets.documents import distinct_works, read_documents, sides
from rl_likelihood.datasets.procedural import PRESETS
from rl_likelihood.datasets.questions import (
    by_group,
    distinct,
    group_key,
    hold_out,
    named,
    question_key,
    some,
    variant_key,
    without,
)
from rl_likelihood.datasets.settings import DataConfig, LoadReport
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example

# After this many draws in a row without a new question a procedural task counts as exhausted.
DRY_DRAWS = 3000
OWN = Files(name="your rows", fetch="a file of JSON lines, a JSON array or a parquet file")
TEXTS = Files(
    name="your texts",
    fetch="text files, one work in each, or rows with a text",
    patterns=("*.txt", "*.txt.gz", *(f"*{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz"))),
    text=True,
)


Loaded = tuple[list[Example], list[Example], LoadReport]


def load(cfg: DataConfig, training: bool = True, shown: Shots = ()) -> Loaded:
    """(train, heldout, report) by the settings; the same settings give the same rows in the same order.

    Raises UserError for anything missing, unreadable or too small. An evaluation (`training` False) gets no training
    rows and needs none. `shown` are the user's own worked examples, whose questions are in neither set.
    """
    if cfg.source == "reasoning_gym":
        return _load_procedural(cfg, training, questions.worked_groups(shown, WORKED_EXAMPLES))
    if cfg.source == "prepared":
        return _load_prepared(cfg, training, shown)
    if cfg.source == "documents":
        return _load_documents(cfg, training)
    return _load_files(cfg, training, shown)


def load_fast(cfg: DataConfig, shown: Shots = ()) -> list[Example]:
    """The questions of `fast_split`, for evaluations during training; none if it is not named."""
    if not cfg.fast_split:
        return []
    if cfg.source != "prepared":
        raise UserError(
            f"data.fast_split is {cfg.fast_split!r}, but data.source {cfg.source!r} has no splits; leave it empty"
        )
    if cfg.fast_split == (cfg.train_split or "train"):
        raise UserError(f"data.fast_split is {cfg.fast_split!r}, which is trained on; name another split")
    rows = prepared.read(cfg.train_path, cfg.fast_split)
    return questions.without_worked(rows, questions.worked_groups(shown, ()))[0]


def resolve_prompt(prompt: PromptConfig, cfg: DataConfig, most: int) -> PromptConfig:
    """The prompt's settings with the texts of the files that they name: instruction and worked examples.

    `most` is the largest number of worked examples in any prompt of the run. Without `examples_path` prompts show the
    first single-turn training rows that have a chain; where these are too few, those of the data's own tasks.
    """
    instruction = prompt.instruction
    if prompt.instruction_path:
        if instruction:
            raise UserError("prompt.instruction and prompt.instruction_path are both set; set exactly one of them")
        try:
            instruction = Path(prompt.instruction_path).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f"prompt.instruction_path = {prompt.instruction_path} cannot be read as text ({e}); check the path"
            ) from e
        if not instruction:
            raise UserError(
                f"prompt.instruction_path = {prompt.instruction_path} is empty; write the instruction in it"
            )
    return dataclasses.replace(prompt, instruction=instruction, shots=_own_examples(prompt.examples_path, cfg, most))


def _own_examples(path: str, cfg: DataConfig, most: int) -> Shots:
    if not most or (cfg.source == "reasoning_gym" and not path):
        return ()
    if cfg.source == "documents" and not path:
        raise UserError(
            "data.source is 'documents', which has no worked examples; name a file of them in prompt.examples_path, or "
            "set prompt.examples=0 and warm_start.examples=0"
        )
    if path:
        rows = read_rows(_located(path, "prompt.examples_path"), _folder(path), cfg.columns, cfg.skip_bad_rows)[0]
    elif cfg.source == "prepared":
        train = cfg.train_split or "train"
        rows = prepared.read(cfg.train_path, train) if train in prepared.splits(cfg.train_path) else []
    else:
        rows = read_rows(_sides(cfg)[0], _folder(cfg.train_path), cfg.columns, cfg.skip_bad_rows)[0]
    built_in = not path and any(row.task in WORKED_EXAMPLES for row in rows)
    rows = [row for row in rows if row.chain and questions.single_turn(row)]
    shots = tuple((row.prompt, row.chain, row.answer) for row in rows[:most])
    if path and len(shots) < most:
        raise UserError(
            f"prompt.examples_path = {path} has {len(shots)} single-turn rows with a chain, but {most} worked examples "
            f"are asked for; add rows, or set prompt.examples and warm_start.examples to at most {len(shots)}"
        )
    return () if built_in and len(shots) < most else shots


def describe(cfg: DataConfig, train: Sequence, heldout: Sequence, report: LoadReport, unfit: Sequence[str] = ()) -> str:
    """The data line of the start message. `unfit`: descriptions of the training rows that are not in `train`."""
    name = ", ".join(cfg.tasks) if cfg.source == "reasoning_gym" else Path(cfg.train_path).name
    first, repeated = some(report.removed), report.duplicates + report.overlap_removed
    parts = [f"{repeated:,} that repeat others or ask held-out or worked questions{first}"] if repeated else []
    parts += [named(rows, what) for rows, what in ((report.bad_rows, "bad row"), (unfit, "unusable row")) if rows]
    removed = f"; removed {', '.join(parts)}" if parts else ""
    other = [] if cfg.source in ("reasoning_gym", "prepared") else files.unread(cfg.train_path)
    removed += f"; not read: {', '.join(other[:5])} (only JSON, JSON lines, parquet)" if other else ""
    unused = f" and {len(report.unused) - 5} more" if len(report.unused) > 5 else ""
    removed += f"; not used: {', '.join(report.unused[:5])}{unused} (named for no split)" if report.unused else ""
    return f"{name}: {len(train)} training and {len(heldout)} held-out questions{removed}"


# ---------------------------------------------------------------------------------------- procedural


def _load_procedural(cfg: DataConfig, training: bool, worked: set[str]) -> Loaded:
    if not cfg.tasks:
        raise UserError(
            f"data.tasks is empty; name at least one of {', '.join(PRESETS)}, or of reasoning_gym's data sets"
        )
    if len(set(cfg.tasks)) < len(cfg.tasks):
        raise UserError(f"data.tasks names a task twice: {', '.join(cfg.tasks)}; name each once")
    for task in cfg.tasks:
        procedural.parse(task)
    train_size = 2000 if cfg.train_size < 0 else cfg.train_size
    if training and not train_size:
        raise UserError("data.train_size is 0; a procedural source has no end, so say how many questions to draw")

    # Held-out questions are drawn first, then training questions that differ from them. All tasks share one set of
    # keys, because two wordings of one sum are one question.
    heldout, of_heldout = _draw_split(cfg, "heldout", 100 if cfg.heldout_size < 0 else cfg.heldout_size, worked)
    excluded = worked | {variant_key(e.prompt) for e in heldout}
    train, of_train = _draw_split(cfg, "train", train_size if training else 0, excluded)
    both = zip(dataclasses.astuple(of_heldout), dataclasses.astuple(of_train), strict=True)
    return train, heldout, LoadReport(*(a + b for a, b in both))


def _draw_split(cfg: DataConfig, split: str, size: int, excluded: set[str]) -> tuple[list[Example], LoadReport]:
    """`size` distinct examples, none of them in an `excluded` group, evenly from every task and interleaved."""
    asked: set[str] = set()
    drawn = duplicates = overlap = 0
    bad: list[str] = []
    by_task: list[list[Example]] = []
    for position, task in enumerate(cfg.tasks):
        want = size // len(cfg.tasks) + (position < size % len(cfg.tasks))
        chosen: list[Example] = []
        stream = procedural.generate(task, cfg.seed, split)
        dry = 0
        while len(chosen) < want:
            example = next(stream)
            key = question_key(example.prompt)
            drawn += 1
            dry += 1
            if variant_key(example.prompt) in excluded:
                overlap += 1
            elif key in asked:
                duplicates += 1
            elif not example.answer:  # the right answer to a few string tasks is nothing
                bad.append(f"{example.id}: the answer is empty")
            else:
                asked.add(key)
                chosen.append(example)
                dry = 0
            if dry == DRY_DRAWS:
                raise UserError(
                    f"data.{split}_size = {size} asks for {want} distinct questions of {task}, which ran out after "
                    f"{len(chosen)}; set data.{split}_size to at most {len(chosen) * len(cfg.tasks)}"
                )
        by_task.append(chosen)
    longest = max(map(len, by_task))
    rows = [rows[i] for i in range(longest) for rows in by_task if i < len(rows)]
    return rows, LoadReport(drawn, duplicates, overlap, tuple(bad))


# ---------------------------------------------------------------------------------------- files


def _located(path: str, field_name: str, of: Files = OWN) -> files.Records:
    """The records of a file, folder, archive or data set of the hub. `field_name` is where the user named it."""
    return files.read_all(files.locate([path], of, field_name), of, as_written=True)


def _folder(path: str) -> str:
    """What stands before a record's file in messages."""
    return path[: len(path) - len(Path(path).name)] if Path(path).is_file() else path.rstrip("/") + "/"


def _sides(cfg: DataConfig) -> tuple[list[tuple[Location, Any]], list[tuple[Location, Any]] | None, tuple[str, ...]]:
    """Records of `train_path` to train on, those that its files name as held out (None if they name none), and files
    that are in neither because they are named for no split."""
    if not cfg.train_path:
        raise UserError(f"data.train_path is empty; name {OWN.fetch} with --config.data.train_path=PATH")
    if cfg.heldout_path and cfg.heldout_split:
        raise UserError(
            f"data.heldout_path is {cfg.heldout_path!r} and data.heldout_split {cfg.heldout_split!r}, but "
            "held-out rows come from one of them; leave the other empty"
        )
    by_split: dict[str, list[tuple[Location, Any]]] = {}
    for location, record in _located(cfg.train_path, "data.train_path"):
        by_split.setdefault(location.split, []).append((location, record))
    if len(by_split) < 2 and not cfg.train_split and not cfg.heldout_split:
        return next(iter(by_split.values()), []), None, ()  # one file, whatever it is called
    train = cfg.train_split or ("train" if "train" in by_split else "")
    heldout = cfg.heldout_split or next((s for s in prepared.HELDOUT if s in by_split and s != train), "")
    for name, split in (("train_split", train), ("heldout_split", heldout)):
        if split not in by_split and (split or name == "train_split"):
            named_for = ", ".join(filter(None, by_split))
            files_are = f"named for {named_for}; set it to one of those" if named_for else "named for no split; drop it"
            raise UserError(f"data.{name} is {split!r}, but the files of {cfg.train_path} are {files_are}")
    if heldout == train:
        raise UserError(f"data.train_split and data.heldout_split are both {train!r}; name two splits")
    unused = dict.fromkeys(location.file for location, _ in by_split.get("", []) if train)
    return by_split[train], by_split[heldout] if heldout and not cfg.heldout_path else None, tuple(unused)


def _load_files(cfg: DataConfig, training: bool, shown: Shots) -> Loaded:
    if cfg.prompt_column in (cfg.answer_column, cfg.chain_column):
        other = "answer" if cfg.prompt_column == cfg.answer_column else "chain"
        raise UserError(f"data.prompt_column and data.{other}_column are both {cfg.prompt_column!r}; name two columns")
    located, located_held, unused = _sides(cfg)
    rows, bad = read_rows(located, _folder(cfg.train_path), cfg.columns, cfg.skip_bad_rows)
    held_path = cfg.heldout_path or cfg.train_path
    if cfg.heldout_path:
        located_held = list(_located(cfg.heldout_path, "data.heldout_path"))
    held, bad_held = read_rows(located_held or [], _folder(held_path), cfg.columns, cfg.skip_bad_rows)
    read = len(rows) + len(held)
    (rows, again), (held, again_held) = distinct(rows), distinct(held)
    worked = questions.worked_groups(shown, (row.task for row in (*rows, *held)))
    rows, removed = questions.without_worked(rows, worked)
    held, removed_held = questions.without_worked(held, worked)
    sides = [(rows, bad, cfg.train_path), (held, bad_held, held_path)][: 1 if located_held is None else 2]
    for side, unread, path in sides:
        if not side:
            why = f" ({unread[0]})" if unread else ""
            raise UserError(f"{path} has no usable row{why}; give it rows with a question and an answer")

    if located_held is not None:
        held = _first(held, cfg, "heldout", held_path)
        train, variants = without(rows, {group_key(row) for row in held}, "a held-out question")
    else:
        groups = by_group(rows)
        chosen, spare = hold_out(groups, _heldout_size(cfg, len(rows), len(groups)))
        held_ids, spare_ids = {row.id for row in chosen}, {row.id for row in spare}
        held = [row for row in rows if row.id in held_ids]  # in the order of the file
        train = [row for row in rows if row.id not in held_ids and row.id not in spare_ids]
        variants = [f"{row.id} asks a variant of a held-out question" for row in spare]
    if training and not train:
        raise UserError(
            f"all {len(rows)} questions of {cfg.train_path} are held out, or variants of held-out ones "
            f"({held_path}); give training questions of their own"
        )
    train = _first(train, cfg, "train", cfg.train_path) if training else []
    merged, overlap = again + again_held, removed + removed_held + variants
    return train, held, LoadReport(read, len(merged), len(overlap), (*bad, *bad_held), (*merged, *overlap), unused)


def _heldout_size(cfg: DataConfig, rows: int, groups: int) -> int:
    """How many of the training rows are held out."""
    size = min(100, rows // 10 or 1) if cfg.heldout_size < 0 else cfg.heldout_size
    if size and size >= groups:
        if cfg.heldout_size < 0:
            raise UserError(f"{cfg.train_path} has one question; add rows, or set data.heldout_size=0")
        raise UserError(
            f"data.heldout_size = {size} leaves nothing to train on: {cfg.train_path} has {groups} distinct questions "
            f"(variants count once); add rows, give data.heldout_path, or set data.heldout_size to at most {groups - 1}"
        )
    return size


# ---------------------------------------------------------------------------------------- documents


def _load_documents(cfg: DataConfig, training: bool) -> Loaded:
    """Questions of plain texts. With one file, whole works are held out."""
    if not cfg.train_path:
        raise UserError("data.train_path is empty; name a file of documents with --config.data.train_path=PATH")
    texts: dict[str, str] = {}

    def read(path: str, name: str) -> tuple[list[list[Example]], list[str], list[str]]:
        records = _located(path, name, TEXTS)
        works, bad, again = read_documents(records, _folder(path), cfg.documents, cfg.seed, cfg.skip_bad_rows, texts)
        works, repeats = distinct_works(works)
        needed = training or path == (cfg.heldout_path or cfg.train_path)
        if needed and not works and (bad or not again):
            why = f" ({bad[0]})" if bad else ""
            raise UserError(f"{path} has no usable text{why}; give it texts that fit data.documents, or change that")
        return works, bad, again + repeats

    # Held-out documents first, so that the same text is left out of the training documents.
    held_works, bad_held, again_held = read(cfg.heldout_path, "data.heldout_path") if cfg.heldout_path else ([], [], [])
    works, bad, again = read(cfg.train_path, "data.train_path")
    overlap: list[str] = []
    if cfg.heldout_path:
        train, held = (sides(side, 0, cfg.seed)[0] for side in (works, held_works))  # shuffles each
        held = _first(held, cfg, "heldout", cfg.heldout_path)
        train, overlap = without(train, {group_key(row) for row in held}, "a held-out question")
    else:
        total = sum(map(len, works))
        if training and len(works) == 1 and cfg.heldout_size:
            left_out = f" (left out: {bad[0]})" if bad else ""
            raise UserError(
                f"{cfg.train_path} holds one work{left_out}, and a work is on one side of a split; add works, give "
                "data.heldout_path, or set data.heldout_size=0"
            )
        size = min(100, total // 10 or 1) if cfg.heldout_size < 0 else cfg.heldout_size
        train, held = sides(works, size, cfg.seed)
    if training and not train and cfg.heldout_path:
        raise UserError(
            f"every document of data.train_path = {cfg.train_path} is also in data.heldout_path = {cfg.heldout_path}; "
            "give other documents to train on"
        )
    if training and not train:
        raise UserError(
            f"data.heldout_size = {len(held)} leaves no document of {cfg.train_path} to train on; add documents, give "
            "data.heldout_path, or lower it"
        )
    train = _first(train, cfg, "train", cfg.train_path) if training else []
    merged = (*again, *again_held)
    report = LoadReport(len(train) + len(held), len(merged), len(overlap), (*bad, *bad_held), (*merged, *overlap))
    return train, held, report


# ---------------------------------------------------------------------------------------- prepared


def _load_prepared(cfg: DataConfig, training: bool, shown: Shots) -> Loaded:
    """Splits that `prepare` made. It removed held-out questions from the split train, by the data set's own rule (two
    tasks of tau2 may have one text), but not from other splits, and it knows no worked examples."""
    if not cfg.train_path:
        raise UserError("data.train_path is empty; name a folder that python -m rl_likelihood.datasets.prepare wrote")
    rows, held = prepared.load(cfg.train_path, cfg.train_split, cfg.heldout_split, training)
    if training and not rows:
        names = ", ".join(prepared.splits(cfg.train_path))
        raise UserError(
            f"{cfg.train_path} is for evaluation: its splits are {names}; evaluate with it, or train on one of several "
            "by naming two of them in data.train_split and data.heldout_split"
        )
    read = len(rows) + len(held)
    worked = questions.worked_groups(shown, ())
    rows, removed = questions.without_worked(rows, worked)
    held, removed_held = questions.without_worked(held, worked)
    asked = set() if cfg.train_split in ("", "train") else {group_key(row) for row in held}
    free, overlap = without(rows, asked, "a held-out question")
    if rows and not free:
        raise UserError(
            f"data.train_split is {cfg.train_split!r}, whose questions are all held out (data.heldout_split) or "
            "variants of held-out ones; name another split"
        )
    train = _first(free, cfg, "train", cfg.train_path) if training else []
    heldout = _first(held, cfg, "heldout", cfg.train_path)
    removed += removed_held + overlap
    return train, heldout, LoadReport(read, 0, len(removed), removed=tuple(removed))


def _first(rows: list[Example], cfg: DataConfig, side: str, path: str) -> list[Example]:
    """As many rows as data.train_size or data.heldout_size says, all for 0 or less."""
    size = max(getattr(cfg, f"{side}_size"), 0)
    if size > len(rows):
        raise UserError(
            f"data.{side}_size is {size}, but {path} has {len(rows)} distinct {side.replace('held', 'held-')} "
            f"questions; set --config.data.{side}_size={len(rows)}, or 0 for all"
        )
    return rows[:size] if size else rows
