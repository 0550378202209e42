"""Plain documents as questions: the prompt is a part of a text, and what follows it is the reference answer.

cut            RLP (2510.01265) and RPT (2506.08007) train a model to think before it goes on with a text: it is cut at
               random, at most `context` words stand before the cut, and the answer is the next `continuation` words
next_passage   the next paragraph of a story
verse          the last lines of a poem

What is drawn depends on the seed and on the document's id alone.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from rl_likelihood.data.records import Location
from rl_likelihood.datasets.questions import group_key, variant_key
from rl_likelihood.errors import UserError
from rl_likelihood.fields import field
from rl_likelihood.shapes import Example

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class DocumentConfig:
    """How documents become questions, in words or lines."""

    form: Literal["cut", "next_passage", "verse"] = field(
        "cut", "cut: at any word; next_passage: before a paragraph of a story; verse: within a poem"
    )
    column: str = field("text", "the field with the document; a .txt file is one document")
    context: int = field(64, "maximum words shown before the cut or paragraph", least=1)
    continuation: int = field(8, "words of the reference answer; of a paragraph, the maximum", least=1)
    least: int = field(1, "next_passage: minimum words of a paragraph", least=1)
    cuts: int = field(1, "questions per document; fewer if the document is too short", least=1)
    shown: int = field(8, "verse: lines of the poem in the prompt", least=1)
    asked: int = field(6, "verse: lines of the reference answer, the last of the poem; 0: all that follow", least=0)
    blank_lines: int = field(
        1, "verse: blank lines that separate two poems; 2: single ones separate the stanzas of a poem", least=1
    )
    work: Literal["poem", "file"] = field("poem", "verse: what is held out as a whole")


def questions_of(id: str, text: str, cfg: DocumentConfig, seed: int) -> list[Example]:
    """Questions from `cfg.cuts` random cuts of a document, in the order of the text. A document that is too short for a
    cut has none."""
    words = list(_WORD.finditer(text))
    last = len(words) - cfg.continuation  # of the words that an answer may begin with
    if last < 1:
        return []
    rng = _rng_of(id, seed)
    places = sorted(1 + rng.choice(last, size=min(cfg.cuts, last), replace=False))
    out = []
    for at in map(int, places):
        start, end = words[max(0, at - cfg.context)].start(), words[at - 1].end()
        answer = text[words[at].start() : words[at + cfg.continuation - 1].end()]
        out.append(Example(f"{id}@{at}", text[start:end], answer))
    return out


def _rng_of(id: str, seed: int) -> np.random.Generator:
    entropy = int.from_bytes(hashlib.sha256(id.encode(errors="replace")).digest()[:8], "big")
    return np.random.default_rng((seed, entropy))


def works_of(id: str, text: str, cfg: DocumentConfig, seed: int) -> tuple[list[list[Example]], list[str]]:
    """The questions of each work in a document, and what is wrong with parts of it."""
    if cfg.form == "cut":
        return [questions_of(id, text, cfg, seed)], []
    if cfg.form == "next_passage":
        rows = next_passages(id, text, cfg, _rng_of(id, seed))
        none = f"no paragraph after the first has {cfg.least} to {cfg.continuation} words"
        return [rows] if rows else [], [] if rows else [f"{none} (data.documents.least, data.documents.continuation)"]
    rows, bad = poems(id, text, cfg)
    return [[row] for row in rows] if cfg.work == "poem" else [rows], bad


def read_documents(
    located: Iterable[tuple[Location, Any]],
    folder: str,
    cfg: DocumentConfig,
    seed: int,
    skip_bad_rows: bool,
    texts: dict[str, str],
) -> tuple[list[list[Example]], list[str], list[str]]:
    """The questions of each work, what is wrong with other rows or parts of them ("file:line: reason"), and the
    documents that are left out because their text is in `texts`, in words.

    The first that is wrong is refused unless `skip_bad_rows`. `texts`: the texts that were read, and where; these are
    added.
    """
    documents, bad, again = [], [], []
    for location, record in located:
        problem = _problem(record, cfg)
        works, problems = [], [problem] if problem else []
        if not problem:
            where = f"{folder}{location}"
            first = texts.setdefault(variant_key(record[cfg.column]), where)
            if first is not where:
                again.append(f"{where} is the text of {first} again")
                continue
            uid = location.id if record.get("id") is None else str(record["id"])
            works, problems = works_of(uid, record[cfg.column], cfg, seed)
        documents += works
        bad += [f"{folder}{location}: {reason}" for reason in problems]
        if bad and not skip_bad_rows:
            raise UserError(f"{bad[0]}; mend the row, or leave such rows out with --config.data.skip_bad_rows=True")
    return documents, bad, again


def distinct_works(works: list[list[Example]]) -> tuple[list[list[Example]], list[str]]:
    """The works without questions that an earlier work asks, or variants of them, and those questions in words."""
    first: dict[str, tuple[int, Example]] = {}
    left, again = [], []
    for number, rows in enumerate(works):
        found = [(row, first.setdefault(group_key(row), (number, row))) for row in rows]
        again += [f"{row.id} asks what {same.id} does" for row, (work, same) in found if work != number]
        left.append([row for row, (work, _) in found if work == number])
    return [rows for rows in left if rows], again


def _problem(record: Any, cfg: DocumentConfig) -> str:
    """What is wrong with a row, or nothing."""
    if isinstance(record, str):
        return record
    text = record.get(cfg.column)
    if not isinstance(text, str):
        return f"field {cfg.column!r} is {text!r}, not a text"
    if not text.strip():
        return "the document is empty"
    words = len(_WORD.findall(text))
    if cfg.form == "cut" and words <= cfg.continuation:
        return (
            f"the document has {words} words, too short for a cut: data.documents.continuation is {cfg.continuation}, "
            "and one word must stand before it"
        )
    return ""


def sides(documents: list[list[Example]], heldout: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): whole documents on either side, held-out ones drawn until they have so many questions.

    Both are shuffled, so that the next question, which controls compare with, is seldom of the same scene.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(documents))
    held: list[Example] = []
    chosen: set[int] = set()
    for i in order:
        if len(held) >= heldout:
            break
        chosen.add(int(i))
        held += documents[i]
    train = [row for i, rows in enumerate(documents) if i not in chosen for row in rows]
    return [train[i] for i in rng.permutation(len(train))], [held[i] for i in rng.permutation(len(held))[:heldout]]


# ---------------------------------------------------------------------------------------- prose and verse


def blocks(text: str, blank_lines: int = 1) -> list[str]:
    """The parts of a text that are separated by so many blank lines, or by more."""
    separator = re.compile(rf"\n(?:[^\S\n]*\n){{{blank_lines},}}")
    return [block.strip("\n") for block in separator.split(text.replace("\r\n", "\n")) if block.strip()]


def next_passages(id: str, text: str, cfg: DocumentConfig, rng: np.random.Generator) -> list[Example]:
    """Paragraphs of a story, each after the `context` words before it. Lines that were broken are joined.

    `cuts` of those of `least` to `continuation` words are drawn, in the order of the story.
    """
    paragraphs = [" ".join(block.split()) for block in blocks(text)]
    words = [len(p.split()) for p in paragraphs]
    fitting = [i for i in range(1, len(paragraphs)) if cfg.least <= words[i] <= cfg.continuation]
    drawn = sorted(rng.choice(fitting, size=min(cfg.cuts, len(fitting)), replace=False)) if fitting else []
    return [Example(f"{id}@{i}", _last_words(paragraphs[: int(i)], cfg.context), paragraphs[i]) for i in drawn]


def _last_words(paragraphs: list[str], count: int) -> str:
    """The last words of the story so far, in their paragraphs."""
    first, n = len(paragraphs), 0
    while first and n < count:
        first -= 1
        n += len(paragraphs[first].split())
    text = "\n\n".join(paragraphs[first:])
    starts = [m.start() for m in _WORD.finditer(text)]
    return text[starts[-count] :] if len(starts) > count else text


def poems(id: str, text: str, cfg: DocumentConfig) -> tuple[list[Example], list[str]]:
    """Each poem as a question: its first `shown` lines are the prompt, and the `asked` lines after them the answer
    (0: all that follow). And what is wrong with the other poems. Blank lines within a poem are kept, but not counted.
    """
    out, bad = [], []
    for number, block in enumerate(blocks(text, cfg.blank_lines), start=1):
        lines = [line.strip() for line in block.strip().splitlines()]
        full = [i for i, line in enumerate(lines) if line]
        n = len(full)
        if (n != cfg.shown + cfg.asked) if cfg.asked else (n <= cfg.shown):
            form = f"data.documents.shown + asked = {cfg.shown} + {cfg.asked}"
            stanza = " (for poems of stanzas set data.documents.blank_lines=2)"
            hint = stanza * (cfg.blank_lines == 1 and n < cfg.shown + cfg.asked)
            bad.append(f"poem {number} ({lines[0][:40]!r}) has {n} lines, but {form}{hint}")
            continue
        first, then = lines[: full[cfg.shown - 1] + 1], lines[full[cfg.shown] :]
        out.append(Example(f"{id}@{number}", "\n".join(first), "\n".join(then)))
    return out, bad
