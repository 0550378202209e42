"""Rubrics: criteria with points for a good answer to a question. Reads, writes, extracts and filters them.

A file has one JSON object a line, in the format of HealthBench:
{"prompt": "..." or messages, "prompt_id": "...", "rubrics": [{"criterion": "...", "points": 5, "tags": []}]}
With "rubrics": [] and "left_out": true, training leaves the question out.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood import files
from rl_likelihood.data.judged_text import text_of
from rl_likelihood.data.records import is_number, records, refuse_no_text
from rl_likelihood.errors import UserError

# Points for words (Rubrics as Rewards, 2507.17746). The text of a pitfall says that the fault is absent.
POINTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.8}
MOST_POINTS = 1e6
ALL_POSITIVE = ("rar", "checklist")  # values of rubric.aggregate without negative points
ALIKE = 0.85  # two criteria with more than this share of common words count as one
MOST_PROSE, MOST_STARTS = 20_000, 2000  # maximum characters of a reply to search, and maximum starts of JSON to try


class Criterion(NamedTuple):
    """One demand on an answer. Negative points: what an answer should not do."""

    text: str
    points: float
    tags: tuple[str, ...] = ()


class Rubric(NamedTuple):
    """A question and its criteria; without criteria, training leaves the question out."""

    prompt: str
    id: str
    criteria: tuple[Criterion, ...]


# The criterion that a checklist adds for every question, with the highest number of points (2507.18624).
UNIVERSAL = Criterion("The answer does all that the question asks, without anything off the point or missing.", 100.0)


def read_rubrics(path: str, name: str = "rubric.path") -> list[Rubric]:
    """The rubrics of a file. UserError for an invalid row."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{name} is {path!r}, which is no file; make one with python -m rl_likelihood.rubrics --make")
    rows = [of_record(record, str(at)) for at, record in records(path, file.read_bytes())]
    if not rows:
        raise UserError(f"{name} is {path!r}, which has no rubrics; give it some")
    return rows


def by_question(path: str, questions: Sequence[str]) -> dict[str, Rubric]:
    """The rubrics of the file rubric.path by question. UserError if one of these questions has none, or one has two."""
    rows = read_rubrics(path)
    rubrics = {row.prompt: row for row in rows}
    if len(rubrics) < len(rows):
        twice = next(q for q, n in collections.Counter(row.prompt for row in rows).items() if n > 1)
        raise UserError(f"rubric.path is {path!r}, which has two rubrics for {twice[:60]!r}; remove one")
    missing = [question for question in questions if question not in rubrics]
    if missing:
        raise UserError(
            f"rubric.path is {path!r}, which has no rubric for {len(missing)} of {len(questions)} training "
            f"questions, such as {missing[0][:60]!r}; make them with python -m rl_likelihood.rubrics --make"
        )
    return rubrics


def write_rubrics(path: str | Path, rubrics: Sequence[Rubric], before: bytes = b"") -> None:
    """Writes the file that `read_rubrics` reads, which begins with the lines `before`. It is replaced atomically."""
    path = Path(path)
    lines = "".join(json.dumps(to_record(rubric), ensure_ascii=False) + "\n" for rubric in rubrics)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, before + b"\n" * (before[-1:] not in (b"", b"\n")) + lines.encode())
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); free some space or choose another") from e


def of_record(record: object, where: str) -> Rubric:
    """The rubric in a row."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record if isinstance(record, str) else 'a rubric must be an object'}")
    refuse_no_text(record, where)
    prompt = text_of(record.get("prompt"))
    if not prompt:
        raise UserError(f"{where}: field 'prompt' must be text or messages with text")
    rows = record.get("rubrics")
    if rows == [] and record.get("left_out") is True:
        return Rubric(prompt, str(record.get("prompt_id", "")), ())
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{where}: field 'rubrics' must be a list of criteria, at least one; this question has none")
    criteria = [criterion_of(row) for row in rows]
    for i, criterion in enumerate(criteria):
        if criterion is None:
            raise UserError(
                f"{where}: criterion {i + 1} must have a text 'criterion' and 'points', a number that is not 0 and at "
                f"most {MOST_POINTS:g}, or one of {', '.join(POINTS)}"
            )
    return Rubric(prompt, str(record.get("prompt_id", "")), tuple(c for c in criteria if c is not None))


def to_record(rubric: Rubric) -> dict[str, Any]:
    """The row that `of_record` reads."""
    criteria = [{"criterion": c.text, "points": c.points, "tags": list(c.tags)} for c in rubric.criteria]
    record = {"prompt": [{"role": "user", "content": rubric.prompt}], "prompt_id": rubric.id, "rubrics": criteria}
    return record if criteria else record | {"left_out": True}


def criterion_of(row: object) -> Criterion | None:
    """The criterion in an object, or None."""
    if not isinstance(row, dict) or not isinstance(row.get("criterion"), str) or not row["criterion"].strip():
        return None
    points, tags = row.get("points"), row.get("tags", [])
    if isinstance(points, str):
        with contextlib.suppress(ValueError):
            points = POINTS.get(points.strip().casefold()) or float(points)  # models also write "5"
    if not is_number(points) or not 0 < abs(points) <= MOST_POINTS:
        return None
    return Criterion(row["criterion"].strip(), float(points), tuple(map(str, tags)) if isinstance(tags, list) else ())


def refuse(rubrics: Sequence[Rubric], kind: str, name: str = "rubric.path") -> None:
    """UserError if a rubric's points do not suit `kind`, the setting rubric.aggregate."""
    for rubric in rubrics:
        points = [c.points for c in rubric.criteria]
        if not points:
            continue
        if kind in ALL_POSITIVE and min(points) < 0:
            raise UserError(
                f"{name}: a criterion of {rubric.prompt[:60]!r} has {min(points):g} points, but with rubric.aggregate="
                f"{kind} all are good; word it as what a good answer does, or set rubric.aggregate=healthbench"
            )
        if kind == "healthbench" and max(points) < 0:
            raise UserError(
                f"{name}: all criteria of {rubric.prompt[:60]!r} have negative points, so there are none to win; "
                "set rubric.aggregate=signed"
            )


def suits(rubric: Rubric, kind: str) -> bool:
    """Whether the rubric has criteria, and training with rubric.aggregate = `kind` takes them."""
    try:
        refuse([rubric], kind)
    except UserError:
        return False
    return bool(rubric.criteria)


def criteria_in(prose: str) -> list[Criterion]:
    """The criteria in the JSON of a reply, whatever text surrounds it. Truncated JSON gives its complete objects."""
    text, end, criteria, decoder = prose[:MOST_PROSE], 0, list[Criterion](), json.JSONDecoder()
    for start in itertools.islice(re.finditer(r"\[(?=\s*\{)|\{", text), MOST_STARTS):
        if start.start() < end:
            continue
        try:
            value, value_end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        parsed = _criteria_of(value)
        if parsed:
            criteria += parsed
            end = value_end
    return criteria


def _criteria_of(value: object) -> list[Criterion]:
    if isinstance(value, dict) and (criterion := criterion_of(value)):
        return [criterion]
    if isinstance(value, dict):
        return [c for part in value.values() if isinstance(part, list) for c in _criteria_of(part)]
    if isinstance(value, list):
        return [c for row in value if (c := criterion_of(row))]
    return []


def distinct(criteria: Iterable[Criterion], limit: float = ALIKE) -> list[Criterion]:
    """The criteria without near-duplicates of earlier ones, by shared words. A demand and a fault are never one: they
    may differ by a "no"."""
    unique: list[tuple[Criterion, set[str]]] = []
    for criterion in criteria:
        words = set(re.findall(r"\w+", criterion.text.casefold()))
        if words and all(
            criterion.points * other.points < 0 or len(words & earlier) <= limit * len(words | earlier)
            for other, earlier in unique
        ):
            unique.append((criterion, words))
    return [criterion for criterion, _ in unique]


def telling(rubric: Rubric, met: np.ndarray, low: float, high: float) -> Rubric:
    """The rubric without criteria that fewer than a share `low` or more than a share `high` of the answers meet. `met`
    [G, C]: P(yes), above 0.5 if the answer meets the criterion; NaN without a verdict. A criterion without any verdict
    is kept."""
    judged = np.isfinite(met)
    share = (met > 0.5).sum(0) / np.maximum(judged.sum(0), 1)
    kept = ((share >= low) & (share <= high)) | ~judged.any(0)
    return rubric._replace(criteria=tuple(c for c, is_in in zip(rubric.criteria, kept, strict=True) if is_in))
