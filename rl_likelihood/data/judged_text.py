"""What a judge reads: questions and answers as text in its own template, and in ids of its own tokenizer.

A question with all that precedes an answer is the prompt, computed once. A row is what follows: the answer, or two of
them, and the template's end. The policy's ids are not touched: an answer comes as text and is encoded as plain text,
so that chat markup in it is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jinja2 import TemplateError

from rl_likelihood.data.token_ids import ids_after_text, ids_of, name_of
from rl_likelihood.shapes import Judged, UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<<<", ">>>"  # around an answer; removed from within it
_ANSWERS = "@@answers@@"


class Form(NamedTuple):
    """How a judge is asked. `ask`: the user's message, with {question} and {answers}; "" is a conversation of question
    and answer, as reward models read it. `pieces`: what stands before, between and after the answers. `words`: the
    replies whose probabilities are compared, best first; () where a value head says the number."""

    ask: str
    pieces: tuple[str, ...]
    words: tuple[str, ...] = ()


ONE_ANSWER, YES_NO = (f"{OPEN}\n", f"\n{CLOSE}"), ("yes", "no")
SCORE = Form("", ("", ""))
CORRECT = Form(
    "Question:\n{question}\n\nProposed answer, between the marks:\n{answers}\n\n"
    "Is the proposed answer correct? Reply with one word, yes or no.",
    ONE_ANSWER,
    YES_NO,
)
BETTER = Form(
    "Question:\n{question}\n\nTwo answers, between the marks:\n{answers}\n\n"
    "Which answer is better? Reply with one number, 1 or 2.",
    (f"Answer 1:\n{OPEN}\n", f"\n{CLOSE}\n\nAnswer 2:\n{OPEN}\n", f"\n{CLOSE}"),
    ("1", "2"),
)
# One of the answers is an expert's (adversarial training).
EXPERT = Form(
    "Question:\n{question}\n\nTwo answers, between the marks:\n{answers}\n\n"
    "Which one did an expert write? Reply with one number, 1 or 2, or 0 if it cannot be told.",
    BETTER.pieces,
    ("1", "2", "0"),
)
# Of a rubric: the question is followed by one criterion, or by all of them.
MEETS = Form(
    "{question}\n\nAnswer, between the marks:\n{answers}\n\n"
    "Does the answer meet the criterion? Reply with one word, yes or no.",
    ONE_ANSWER,
    YES_NO,
)
MARK = Form(
    "{question}\n\nAnswer, between the marks:\n{answers}\n\n"
    "How well does the answer meet the criteria? Reply with one digit, from 0 for not at all to 9 for entirely.",
    ONE_ANSWER,
    tuple("9876543210"),
)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Question and answers to ids. `max_prompt`, `max_row`: tokens at most; answers that are too long are cut."""

    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    vocab_bytes: tuple[bytes, ...] = dataclasses.field(repr=False)
    form: Form
    max_prompt: int
    max_row: int
    setting: str = "judge."  # what stands before max_prompt and max_row where the user sets them


class Encoded(NamedTuple):
    """Ids for the judge, and how many rows were cut."""

    judged: Judged
    cut: int


def cleaned(answer: str | None) -> str:
    """An answer without white space around it and without the marks; "" for None."""
    text = answer or ""
    while OPEN in text or CLOSE in text:  # taking one out may join another
        text = text.replace(OPEN, "").replace(CLOSE, "")
    return text.strip()


def filled(form: Form, question: str, answers: Sequence[str | None]) -> str:
    """The user's message to a judge that reads text."""
    parts = [form.pieces[0]]
    for answer, piece in zip(answers, form.pieces[1:], strict=True):
        parts += [cleaned(answer), piece]
    return form.ask.replace("{answers}", _ANSWERS).replace("{question}", question).replace(_ANSWERS, "".join(parts))


def word_ids(tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], word: str) -> tuple[int, ...]:
    """Ids that are this word by themselves: with and without a capital and a space before it."""
    spellings = [space + text for text in dict.fromkeys((word.capitalize(), word)) for space in ("", " ")]
    rows = ids_of(tokenizer, vocab_bytes, spellings)
    ids = tuple(
        dict.fromkeys(
            row[0]
            for row, text in zip(rows, spellings, strict=True)
            if len(row) == 1 and vocab_bytes[row[0]].strip() == text.strip().encode()
        )
    )
    if not ids:
        raise UserError(
            f"judge.model: {name_of(tokenizer)} has no single token for the reply {word!r}; take another judge"
        )
    return ids


def words_of(reader: Reader) -> tuple[tuple[int, ...], ...]:
    """`word_ids` of each of the form's words."""
    return tuple(word_ids(reader.tokenizer, reader.vocab_bytes, word) for word in reader.form.words)


def encode(reader: Reader, questions: Sequence[str], answers: Sequence[Sequence[Sequence[str | None]]]) -> Encoded:
    """Ids of P questions and of Q rows of each; a row is as many answers as the form has places for.

    Every array is as wide as `max_prompt` and `max_row` allow: one program reads them all.
    """
    rendered = [_rendered(reader, question) for question in questions]
    prompts = _prompts(reader, questions, rendered)
    rows, cut = [], 0
    for group, around in zip(answers, rendered, strict=True):
        encoded = [_row(reader, row, around) for row in group]
        rows.append([ids for ids, _ in encoded])
        cut += sum(was_cut for _, was_cut in encoded)
    judged = Judged(
        prompt=_padded(prompts, reader.max_prompt),
        prompt_length=np.asarray([len(ids) for ids in prompts], np.int32),
        rows=np.stack([_padded(group, reader.max_row) for group in rows]),
        row_length=np.asarray([[len(ids) for ids in group] for group in rows], np.int32),
    )
    return Encoded(judged, cut)


def refuse_long(reader: Reader, questions: Sequence[str]) -> None:
    """UserError where a question does not fit."""
    _prompts(reader, questions, [_rendered(reader, question) for question in questions])


def _prompts(reader: Reader, questions: Sequence[str], rendered: list[_Rendered]) -> list[list[int]]:
    prompts = ids_of(reader.tokenizer, reader.vocab_bytes, [r.before for r in rendered])
    for question, ids in zip(questions, prompts, strict=True):
        if len(ids) > reader.max_prompt:
            raise UserError(
                f"{reader.setting}max_prompt is {reader.max_prompt}, but the question {question[:60]!r} has {len(ids)} "
                "tokens in the judge's template; set it to at least that"
            )
    return prompts


def refuse_template(reader: Reader) -> None:
    """UserError where the judge's template shows no answer, has no positions for one, or where its tokenizer joins the
    end of the prompt and the start of a row to one token."""
    rendered = _rendered(reader, "a question")
    around = _around(reader, rendered)
    if sum(map(len, around)) >= reader.max_row:
        raise UserError(
            f"{reader.setting}max_row is {reader.max_row}, but what stands around an answer has "
            f"{sum(map(len, around))} tokens; set it to some hundreds more"
        )
    text, first = rendered.before, rendered.space + (reader.form.pieces[0] or "answer")
    (prompt,) = ids_of(reader.tokenizer, reader.vocab_bytes, [text])
    (row,) = ids_after_text(reader.tokenizer, reader.vocab_bytes, [first])
    if prompt + row != ids_of(reader.tokenizer, reader.vocab_bytes, [text + first])[0]:
        raise UserError(
            f"judge.model: {name_of(reader.tokenizer)} does not cut between {text[-20:]!r} and an answer; take another "
            "judge or judge.template=plain"
        )


class _Rendered(NamedTuple):
    """The template's text before the answers, spaces that belong to the first of them, and the text after them."""

    before: str
    space: str
    after: str


def _rendered(reader: Reader, question: str) -> _Rendered:
    tokenizer, form = reader.tokenizer, reader.form
    if form.ask:
        messages = [
            {
                "role": "user",
                "content": form.ask.replace("{answers}", _ANSWERS).replace("{question}", question),
            }
        ]
    else:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": _ANSWERS}]
    if not tokenizer.chat_template:
        raise UserError(f"judge.model: {name_of(tokenizer)} has no chat template; set judge.template=plain")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=bool(form.ask))
    except TemplateError as e:
        raise UserError(f"judge.model: the chat template of {name_of(tokenizer)} refuses a question ({e})") from e
    before, found, after = text.rpartition(_ANSWERS)
    if not found:
        raise UserError(f"judge.model: the chat template of {name_of(tokenizer)} does not show an answer")
    shown = before.rstrip(" ")  # a space is one token with the word after it
    return _Rendered(shown, before[len(shown) :], after.rstrip(" ") if form.ask else after)


def _around(reader: Reader, rendered: _Rendered) -> list[list[int]]:
    """Ids of what stands before, between and after the answers of a row."""
    *pieces, last = reader.form.pieces
    if pieces[0]:
        pieces[0] = rendered.space + pieces[0]
    return ids_after_text(reader.tokenizer, reader.vocab_bytes, [*pieces, last + rendered.after])


def _row(reader: Reader, answers: Sequence[str | None], rendered: _Rendered) -> tuple[list[int], bool]:
    """Ids of one row, and whether an answer was cut at its end to make it fit."""
    around, texts = _around(reader, rendered), [cleaned(answer) for answer in answers]
    if not around[0]:
        texts[0] = rendered.space + texts[0]
    inner = ids_after_text(reader.tokenizer, reader.vocab_bytes, texts, plain=True)
    most = (reader.max_row - sum(map(len, around))) // len(texts)
    ids = list(around[0])
    for answer, after in zip(inner, around[1:], strict=True):
        ids += [*answer[:most], *after]
    return ids, any(len(answer) > most for answer in inner)


def _padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    out = np.zeros((len(rows), width), np.int32)
    for i, ids in enumerate(rows):
        out[i, : len(ids)] = ids
    return out
