"""Reads a record, or small files, as a data set of ours."""

from __future__ import annotations

import json
from pathlib import Path

from rl_likelihood.datasets import DATASETS, files, prepare
from rl_likelihood.datasets.common import Location, Row

HERE = Location("train.jsonl", 1, "line", split="train")


def parsed(name: str, record: dict, location: Location = HERE) -> Row:
    row = DATASETS[name].parse(record, location)
    assert isinstance(row, Row), row
    return row


def rows(name: str, *sources: Path, skip: bool = False):
    located = files.locate([str(s) for s in sources], DATASETS[name])
    return prepare.read_rows(DATASETS[name], located, skip)


def lines(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path
