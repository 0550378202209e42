"""Splits the rows of a data set into training and held-out rows, by a hash of each question; leaves out long rows."""

import collections
import json
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from rl_likelihood.datasets.common import DataSet, Row
from rl_likelihood.datasets.questions import distinct, hash_of
from rl_likelihood.errors import UserError


class Removed(NamedTuple):
    """Repeated questions, in words: those that splitting removed, and those that it left."""

    duplicates: tuple[str, ...]  # the same question again within the training rows
    overlap: tuple[str, ...]  # training rows that ask a question of a given test or validation set, or a variant of it
    repeats: tuple[str, ...]  # the same question again within those sets, which are kept as they are given


def split_rows(dataset: DataSet, rows: Sequence[Row], heldout: float) -> tuple[dict[str, list[Row]], Removed]:
    """Splits by name (train first), and the repeated questions.

    Given test and validation sets stay whole. Training rows lose repeated questions, then those that are held out.
    """
    given: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        given[row.split].append(row)
    train = given.pop("train", [])
    of_question = partial(distinct, key=attrgetter("key"), example=attrgetter("example"))
    once, duplicates = of_question(train)
    asked = {row.group: row.example.id for split in given.values() for row in split}
    free = [row for row in once if row.group not in asked]
    overlap = [f"{row.example.id} asks what {asked[row.group]} does" for row in once if row.group in asked]
    repeats = [sentence for split in given.values() for sentence in of_question(split)[1]]
    held: list[Row] = []
    if heldout and free and dataset.heldout_split not in given:
        chosen = _held_out(free, heldout, dataset)
        held = [row for row in free if row.group in chosen]
        free = [row for row in free if row.group not in chosen]
    if train and not free:
        raise UserError(f"nothing of {dataset.name} is left to train on; the held-out sets have all its questions")
    splits = {"train": free, dataset.heldout_split: held} if held else {"train": free}
    splits |= {name: given[name] for name in sorted(given)}
    removed = Removed(tuple(duplicates), tuple(overlap), tuple(repeats))
    return {name: split for name, split in splits.items() if split}, removed


def _held_out(rows: list[Row], heldout: float, dataset: DataSet) -> set[str]:
    """Groups of the held-out questions, by the sha256 of each.

    A share is a threshold for the hash: the side of a question depends on its text alone. A count takes the smallest
    hashes: the side also depends on the other questions. With strata a share is a count in each stratum, rounded so
    that the sum is exact.
    """
    ranked = sorted(rows, key=lambda row: hash_of(row.group))
    if heldout >= 1:
        if heldout >= len(rows):
            raise UserError(
                f"--heldout = {heldout:g} leaves nothing of {dataset.name} to train on: it has {len(rows)} distinct "
                f"questions; set it to at most {len(rows) - 1}, or to a share such as 0.1"
            )
        return {row.group for row in ranked[: int(heldout)]}
    if not dataset.strata:
        return {row.group for row in rows if int.from_bytes(hash_of(row.group)[:8], "big") < heldout * 2**64}
    strata: dict[str, list[Row]] = collections.defaultdict(list)
    for row in ranked:
        strata[json.dumps([str(row.extra.get(name)) for name in dataset.strata])].append(row)
    chosen: set[str] = set()
    before = 0  # rows of the strata before this one
    for _, stratum in sorted(strata.items()):
        take = round((before + len(stratum)) * heldout) - round(before * heldout)
        before += len(stratum)
        chosen |= {row.group for row in stratum[:take]}
    return chosen


def leave_out_long(
    dataset: DataSet, splits: dict[str, list[Row]], given: set[str], max_chars: int
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """Splits without rows of over `max_chars` characters (0: no limit), and the ids of those rows. `given` stay whole.

    This comes after holding out, so that a long question does not change which others are held out.
    """
    long: list[str] = []
    short: dict[str, list[Row]] = {}
    for name, rows in splits.items():
        short[name] = rows if name in given or not max_chars else [row for row in rows if _length(row) <= max_chars]
        long += [row.example.id for row in rows if name not in given and 0 < max_chars < _length(row)]
        if rows and not short[name]:
            raise UserError(
                f"--max_chars = {max_chars} leaves none of the {len(rows)} rows of {dataset.name} for {name}; the "
                f"shortest has {min(map(_length, rows))} characters: set it to more, or to 0 for no limit"
            )
    return short, tuple(long)


def _length(row: Row) -> int:
    return len(row.example.prompt + row.example.chain + row.example.answer)
