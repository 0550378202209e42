"""Rubrics: what a good answer to a question has, as criteria with points. Read, written, found in prose, thinned.

A file has one JSON object a line, in the format of HealthBench:
{"prompt": "..." or messages, "prompt_id": "...", "rubrics": [{"criterion": "...", "points": 5, "tags": []}]}
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data.records import records
from rl_likelihood.shapes import UserError

# Points as words (Rubrics as Rewards, 2507.17746); a pitfall is worded as its absence.
POINTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.8}
ALIKE = 0.85  # share of common words from which two criteria are one
MOST_PROSE, MOST_STARTS = 100_000, 2000  # characters of a reply that are searched, and places where JSON may begin


class Criterion(NamedTuple):
    """One demand on an answer. Negative points: what an answer should not do."""

    text: str
    points: float
    tags: tuple[str, ...] = ()


class Rubric(NamedTuple):
    """A question and its criteria."""

    prompt: str
    id: str
    criteria: tuple[Criterion, ...]


# What a checklist asks of every answer, of as many points as its largest criterion can have (2507.18624).
UNIVERSAL = Criterion("The answer does all that the question asks, without anything off the point or missing.", 100.0)


def read_rubrics(path: str, name: str = "rubric.path") -> list[Rubric]:
    """The rubrics of a file. UserError for a row that is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{name} is {path!r}, which is no file; make one with python -m rl_likelihood.rubrics --make")
    rows = [of_record(record, f"{path}: {at}") for at, record in records(file.name, file.read_bytes())]
    if not rows:
        raise UserError(f"{name} is {path!r}, which has no rubrics; give it some")
    return rows


def write_rubrics(path: str | Path, own: Sequence[Rubric]) -> None:
    """What `read_rubrics` reads. The file is replaced at once: a crash leaves the old one or the new one."""
    path = Path(path).expanduser()
    new = path.with_name(path.name + ".new")
    lines = [json.dumps(to_record(rubric), ensure_ascii=False) + "\n" for rubric in own]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text("".join(lines), encoding="utf-8")
        new.replace(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); free some space or choose another") from e


def of_record(record: object, where: str) -> Rubric:
    """A row's rubric."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record if isinstance(record, str) else 'a rubric must be an object'}")
    prompt = _prompt(record.get("prompt"))
    if not prompt:
        raise UserError(f"{where}: field 'prompt' must be text or messages with text")
    given = record.get("rubrics")
    if not isinstance(given, list) or not given:
        raise UserError(f"{where}: field 'rubrics' must be a list of criteria, at least one; this question has none")
    criteria = [criterion_of(row) for row in given]
    for i, criterion in enumerate(criteria):
        if criterion is None:
            raise UserError(
                f"{where}: criterion {i + 1} must have a text 'criterion' and 'points', a number that is not 0 or one "
                f"of {', '.join(POINTS)}"
            )
    return Rubric(prompt, str(record.get("prompt_id", "")), tuple(c for c in criteria if c is not None))


def to_record(rubric: Rubric) -> dict[str, Any]:
    """The row that `of_record` reads."""
    criteria = [{"criterion": c.text, "points": c.points, "tags": list(c.tags)} for c in rubric.criteria]
    return {"prompt": [{"role": "user", "content": rubric.prompt}], "prompt_id": rubric.id, "rubrics": criteria}


def criterion_of(row: object) -> Criterion | None:
    """A criterion; None for what is none."""
    if not isinstance(row, dict) or not isinstance(row.get("criterion"), str) or not row["criterion"].strip():
        return None
    points, tags = row.get("points"), row.get("tags", [])
    if isinstance(points, str):
        points = POINTS.get(points.strip().casefold())
    if isinstance(points, bool) or not isinstance(points, (int, float)) or not math.isfinite(points) or points == 0:
        return None
    return Criterion(row["criterion"].strip(), float(points), tuple(map(str, tags)) if isinstance(tags, list) else ())


def _prompt(prompt: object) -> str:
    """A question as text; of several messages each with its role before it."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        return ""
    texts = [(m.get("role"), m.get("content")) if isinstance(m, dict) else ("", None) for m in prompt]
    if any(not isinstance(content, str) for _, content in texts):
        return ""
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {content}" for role, content in texts)


def refuse(rubrics: Sequence[Rubric], kind: str, name: str = "rubric.path") -> None:
    """UserError where a rubric's points do not go with how they are put together."""
    for rubric in rubrics:
        points = [c.points for c in rubric.criteria]
        if kind in ("rar", "checklist") and min(points) < 0:
            raise UserError(
                f"{name}: a criterion of {rubric.prompt[:60]!r} has {min(points):g} points, but with rubric.aggregate="
                f"{kind} all are good; word it as what a good answer does, or set rubric.aggregate=healthbench"
            )
        if kind == "healthbench" and max(points) < 0:
            raise UserError(
                f"{name}: all criteria of {rubric.prompt[:60]!r} have negative points, so there are none to win; "
                "set rubric.aggregate=signed"
            )


def criteria_in(prose: str) -> list[Criterion]:
    """The criteria in the JSON of a reply, whatever stands around it, and of JSON that breaks off its whole objects."""
    text, end, found, decoder = prose[:MOST_PROSE], 0, list[Criterion](), json.JSONDecoder()
    for start in itertools.islice(re.finditer(r"\[(?=\s*\{)|\{", text), MOST_STARTS):
        if start.start() < end:
            continue
        try:
            value, after = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        inside = _criteria_of(value)
        if inside:
            found += inside
            end = after
    return found


def _criteria_of(value: object) -> list[Criterion]:
    if isinstance(value, dict) and (criterion := criterion_of(value)):
        return [criterion]
    if isinstance(value, dict):
        return [c for part in value.values() if isinstance(part, list) for c in _criteria_of(part)]
    if isinstance(value, list):
        return [c for row in value if (c := criterion_of(row))]
    return []


def distinct(criteria: Iterable[Criterion], most: float = ALIKE) -> list[Criterion]:
    """The criteria without those whose words are nearly those of an earlier one."""
    kept: list[tuple[Criterion, set[str]]] = []
    for criterion in criteria:
        words = set(re.findall(r"\w+", criterion.text.casefold()))
        if words and all(len(words & other) <= most * len(words | other) for _, other in kept):
            kept.append((criterion, words))
    return [criterion for criterion, _ in kept]


def telling(rubric: Rubric, met: np.ndarray, low: float, high: float) -> Rubric:
    """The rubric without criteria that a share of the answers below `low` or above `high` meets. `met` [G, C]: NaN
    where there is no verdict; a criterion without any stays."""
    known = np.isfinite(met)
    share = np.where(known, met, 0).sum(0) / np.maximum(known.sum(0), 1)
    stays = ((share >= low) & (share <= high)) | ~known.any(0)
    return rubric._replace(criteria=tuple(c for c, is_in in zip(rubric.criteria, stays, strict=True) if is_in))
