"""Reads prepared data sets: array_record files of tensorflow-datasets, without TensorFlow.

The rows of a split have a fixed, shuffled order (tensorflow-datasets orders by a hash of the id). So the first n rows
are a fair sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rl_likelihood.errors import UserError
from rl_likelihood.shapes import ALTERNATIVES, ENVIRONMENT, REJECTED, Example

REPORT = "prepare_report.json"
FIELDS = ("id", "prompt", "answer", "chain", "task", "extra")  # all text; extra is JSON
# An `extra` with one of these keys becomes `Example.check`.
READ = {"test", ENVIRONMENT, ALTERNATIVES, REJECTED}
HELDOUT = ("validation", "test")  # the default held-out split is the first of these that exists


def folder(path: str) -> Path:
    """The folder of the only prepared data set in `path`: `path` itself, or a folder below it."""
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{path} is no folder; name one that python -m rl_likelihood.datasets.prepare wrote")
    if (root / "dataset_info.json").is_file():
        return root
    prepared = sorted(p.parent for p in root.glob(f"*/*/{REPORT}")) or sorted(
        p.parent for p in root.glob(f"*/{REPORT}")
    )
    if len(prepared) == 1:
        return prepared[0]
    names = ", ".join(str(p) for p in prepared[:5])
    raise UserError(
        f"{path} holds {len(prepared)} prepared data sets ({names}); name one of them"
        if prepared
        else f"{path} holds no prepared data set; write one with python -m rl_likelihood.datasets.prepare"
    )


def splits(path: str) -> dict[str, int]:
    """{split: number of rows}."""
    return {name: int(split.num_examples) for name, split in _builder(path).info.splits.items()}


def read(path: str, split: str) -> list[Example]:
    """Every example of a split, in the stored order. The UserError for an unknown split names the splits."""
    return [
        Example(
            *(row[name] for name in FIELDS[:-1]), check=row["extra"] if READ & json.loads(row["extra"]).keys() else ""
        )
        for row in _rows(path, split)
    ]


def load(
    path: str, train_split: str = "", heldout_split: str = "", training: bool = True
) -> tuple[list[Example], list[Example]]:
    """(train, heldout): the named splits; by default train, and the first of validation and test that exists.

    `train` is empty if there is no split train and `train_split` names none, or if `training` is False.
    """
    sizes = splits(path)
    train_split = (train_split or ("train" if "train" in sizes else "")) if training else ""
    heldout_split = heldout_split or next((s for s in HELDOUT if s in sizes and s != train_split), "")
    if not heldout_split:
        raise UserError(
            f"{path} has no split {' or '.join(HELDOUT)}; set data.heldout_split to one of {', '.join(sizes)}"
        )
    if train_split == heldout_split:
        raise UserError(f"split {train_split!r} of {path} is named for training and as held out; name two")
    return read(path, train_split) if train_split else [], read(path, heldout_split)


def _builder(path: str):
    import tensorflow_datasets as tfds  # here because it takes half a second
    from absl import logging

    location, verbosity = folder(path), logging.get_verbosity()
    try:
        logging.set_verbosity(logging.WARNING)  # it logs every access to a folder
        return tfds.builder_from_directory(location)
    except Exception as e:  # its own JSON and protocol errors
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"{location} cannot be read as a prepared data set ({reason}); prepare it again") from e
    finally:
        logging.set_verbosity(verbosity)


def _rows(path: str, split: str) -> Iterator[dict[str, str]]:
    builder = _builder(path)
    if split not in builder.info.splits:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    source = builder.as_data_source(split=split)
    for start in range(0, len(source), 1000):
        for row in source.__getitems__(range(start, min(start + 1000, len(source)))):
            missing = [f for f in FIELDS if f not in row]
            if missing:
                raise UserError(f"{path} has no field {missing[0]!r}; it was not written by prepare")
            yield {f: row[f].decode() for f in FIELDS}
