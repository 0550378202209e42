"""Reads, splits and encodes the comparisons that a reward model is trained and evaluated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl_likelihood.data import judged_text, prepared
from rl_likelihood.data.judged_text import Reader
from rl_likelihood.data.pairs import Comparison, of_example, of_record
from rl_likelihood.data.records import records
from rl_likelihood.datasets.questions import hash_of, variant_key
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.errors import UserError
from rl_likelihood.progress import Progress
from rl_likelihood.rollouts.local_judge import LocalJudge
from rl_likelihood.runtime.console import say
from rl_likelihood.shapes import Compared

MOST_HELDOUT = 100  # default limit of held-out questions of a file, with at most a tenth of its rows


def load_comparisons(c: DataConfig) -> tuple[list[Comparison], list[Comparison]]:
    """(train, heldout) from a prepared data set or from files. No question is in both."""
    if c.source == "prepared":
        examples = prepared.load(c.train_path, c.train_split, c.heldout_split)
        train, heldout = ([of_example(e) for e in side] for side in examples)
    elif c.source in ("files", "jsonl"):
        train = _of_file(c.train_path, "data.train_path", c.skip_bad_rows)
        heldout = _of_file(c.heldout_path, "data.heldout_path", c.skip_bad_rows) if c.heldout_path else []
        train, heldout = (train, heldout) if c.heldout_path else _split(train, c)
    else:
        raise UserError(f"data.source is {c.source!r}, which has no comparisons; set it to prepared or files")
    heldout = heldout[: c.heldout_size] if c.heldout_size > 0 else heldout
    heldout_keys = {variant_key(r.prompt) for r in heldout}
    asked = [r.id for r in train if variant_key(r.prompt) in heldout_keys]
    if asked:
        say(f"{len(asked)} training comparisons left out, because they ask a held-out question: {', '.join(asked[:3])}")
    train = [r for r in train if variant_key(r.prompt) not in heldout_keys]
    train = train[: c.train_size] if c.train_size > 0 else train
    for rows, side in ((train, "training"), (heldout, "held-out")):
        if not rows:
            raise UserError(f"data.train_path = {c.train_path!r} leaves no {side} comparisons; give more rows")
    return train, heldout


def digest(*sides: Sequence[Comparison]) -> str:
    """Identifies the comparisons of a run. Ids do not count, because they contain the file's path."""
    return hashlib.sha256(json.dumps([[row[1:] for row in rows] for rows in sides]).encode()).hexdigest()


def _of_file(path: str, name: str, skip_bad_rows: bool) -> list[Comparison]:
    file, rows, bad = Path(path), list[Comparison](), list[str]()
    if not file.is_file():
        raise UserError(f"{name} is {path!r}, which is no file; give lines with prompt, chosen, rejected")
    try:
        data = file.read_bytes()
    except OSError as e:
        raise UserError(f"{name} is {path!r}, which cannot be read ({e.strerror}); check its permissions") from e
    for location, record in records(str(file), data):
        try:
            rows.append(of_record(record, str(location)))
        except UserError as e:
            bad.append(str(e))
            if not skip_bad_rows:
                raise
    if bad:
        say(f"{name}: {len(bad)} bad rows left out, such as {bad[0]}")
    if not rows:
        raise UserError(f"{name} is {path!r}, which has no rows; give it comparisons")
    return rows


def _split(rows: list[Comparison], c: DataConfig) -> tuple[list[Comparison], list[Comparison]]:
    """(train, heldout), split by a hash of the question, so that the order of the file does not matter."""
    size = c.heldout_size if c.heldout_size > 0 else min(MOST_HELDOUT, len(rows) // 10)
    keys = sorted({variant_key(r.prompt) for r in rows}, key=hash_of)[: max(1, size)]
    heldout_keys = set(keys)
    is_heldout = [variant_key(r.prompt) in heldout_keys for r in rows]
    return (
        [r for r, is_in in zip(rows, is_heldout, strict=True) if not is_in],
        [r for r, is_in in zip(rows, is_heldout, strict=True) if is_in],
    )


def encode(reader: Reader, rows: Sequence[Comparison], options: int) -> tuple[Compared, int]:
    """(the comparisons in ids, the number of cut answers). Q = `options`: further wrong answers are left out."""
    encoded = judged_text.encode(reader, [r.prompt for r in rows], _filled_up(rows, options))
    present = np.arange(options) < np.asarray([len(r.answers) for r in rows])[:, None]
    margins = np.zeros(present.shape, np.float32)
    for of_row, r in zip(margins, rows, strict=True):
        of_row[: len(r.margins)] = r.margins[:options]
    return Compared(encoded.judged.narrow, present, margins), encoded.cut


def scores_of(judge: LocalJudge, rows: Sequence[Comparison]) -> tuple[list[np.ndarray], int]:
    """(the scores of each question's answers, the right answer first; the number of cut answers)."""
    answers = _filled_up(rows, max(len(r.answers) for r in rows))
    values, cut = list[np.ndarray](), 0
    with Progress("scored", len(rows), "comparisons", say) as progress:
        for batch in judge.batches([r.prompt for r in rows], answers):
            values += list(batch.values)
            cut += batch.cut
            progress.advance(len(batch.values))
    return [x[: len(r.answers)] for x, r in zip(values, rows, strict=True)], cut


def _filled_up(rows: Sequence[Comparison], options: int) -> list[list[tuple[str]]]:
    """The first `options` answers of each question, each as one row; empty ones where there are fewer."""
    return [[(a,) for a in (*r.answers, *[""] * options)][:options] for r in rows]
