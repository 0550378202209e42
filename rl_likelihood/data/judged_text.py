"""Encodes questions and answers for a judge, in its own chat template and its own tokenizer's ids.

The prompt is everything before an answer: the question and the template's beginning. It is computed once. A row is
everything after it: one or two answers, and the template's end. Answers come as text, not as the policy's ids, and are
encoded as plain text, so chat markup in them has no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError

from rl_likelihood.data import prompts
from rl_likelihood.data.token_ids import ids_after_text, ids_of, name_of, padded
from rl_likelihood.errors import UserError
from rl_likelihood.fields import field
from rl_likelihood.shapes import Example, Judged

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<<<", ">>>"  # marks around an answer; they are removed from its text
_ANSWERS = "@@answers@@"


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The second model of the rewards `judge`, `pairwise`, `rubric`, `reward_model` and `similar_share`."""

    model: str = field(
        "",
        "a model as in model.path, the workdir of a reward model, initial (the run's own model of step 0), "
        "or a server that speaks OpenAI's chat protocol, such as http://HOST:PORT/v1",
    )
    where: Literal["outside", "step"] = field(
        "outside",
        "outside: before the step, on the sampler's first device or on the server; step: in the learner's step, "
        "split over its mesh, for a judge that one device cannot hold",
    )
    name: str = field("", "the model's name on that server")
    task: str = field("", "explains the task to the judge, or to a rubric's writer; it reads this before each question")
    template: Literal["model", "plain"] = field("model", "the judge's chat template: its own, or plain lines")
    max_prompt: int = field(512, "maximum tokens of a question in the judge's template", least=1)
    max_row: int = field(
        256,
        "maximum tokens of an answer in the template, or of the two answers that are compared; longer ones are cut",
        least=8,
    )
    normalise: Literal["none", "whiten"] = field(
        "none", "whiten: divide a reward model's scores by their spread on its held-out questions"
    )
    cosine: float = field(0.9, "similar_share: the smallest cosine of two similar answers' vectors", least=-1, most=1)
    key_variable: str = field("JUDGE_API_KEY", "environment variable with the server's key")
    concurrency: int = field(16, "requests to a server at the same time", least=1, most=1024)
    timeout: float = field(60.0, "time limit in seconds for one reply of a server", above=0)
    attempts: int = field(6, "attempts for one row on a server, including the first", least=1)
    max_calls: int = field(0, "limit on calls of a server over the whole run, for each process; 0: none", least=0)
    max_tokens: int = field(0, "limit on tokens of a server over the whole run, for each process; 0: none", least=0)
    cache: str = field(
        "",
        "file that stores a server's verdicts; empty: judge.sqlite in the workdir, with several processes "
        "0-judge.sqlite, 1-judge.sqlite, ...",
    )

    @property
    def remote(self) -> bool:
        """Whether the judge is an address."""
        return "://" in self.model


class Form(NamedTuple):
    """The form of a judge's prompt.

    `ask`: the user's message, with {question} and {answers}; "" means a conversation of question and answer, as reward
    models read it. `pieces`: the texts before, between and after the answers. `words`: the replies whose probabilities
    are compared, best first; () for a reward model, whose value head gives the number. `date`: for templates that print
    today's date. `task`: explains the task of all questions; it stands before `ask`, word for word.
    """

    ask: str
    pieces: tuple[str, ...]
    words: tuple[str, ...] = ()
    date: str = ""
    task: str = ""

    def asking(self, question: str) -> str:
        """The user's message, with a mark where the answers stand."""
        before = f"{self.task}\n\n" if self.task else ""
        return before + self.ask.replace("{answers}", _ANSWERS).replace("{question}", question)

    def after(self, task: str) -> Form:
        """The form with this task, if it asks anything."""
        return self._replace(task=task) if self.ask else self


class Names(NamedTuple):
    """The user's names of a judge's settings, for messages. `limits`: the prefix of max_prompt and max_row."""

    model: str = "judge.model"
    template: str = "judge.template"
    limits: str = "judge."


JUDGE = Names()
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
# The same for a critic that first writes a chain; the run's own instruction names the tags.
CRITIQUE = Form(
    "Question:\n{question}\n\nTwo answers, between the marks:\n{answers}\n\n"
    "Which one did an expert write? Answer 1, 2 or tie.",
    BETTER.pieces,
)
# For rubrics. The question is followed by one criterion (MEETS) or by all criteria (MARK).
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
    """Converts questions and answers to ids. `max_prompt`, `max_row`: maximum tokens; longer answers are cut. `render`:
    from the user's message to the prompt's text; None: by the chat template."""

    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    vocab_bytes: tuple[bytes, ...] = dataclasses.field(repr=False)
    form: Form
    max_prompt: int
    max_row: int
    names: Names = JUDGE
    render: Callable[[str], str] | None = dataclasses.field(default=None, repr=False)


class Encoded(NamedTuple):
    """The ids for a judge, and the number of cut rows."""

    judged: Judged
    cut: int


def as_question(messages: Sequence[tuple[str, str]]) -> str:
    """A conversation, (role, content) pairs, as a question. If it has several messages, their roles are shown."""
    return messages[0][1] if len(messages) == 1 else "\n\n".join(f"{role}: {text}" for role, text in messages)


def text_of(value: Any) -> str:
    """A text, or the text of a conversation, a list of messages; "" for what is neither."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    messages = [(m.get("role"), m.get("content")) for m in value if isinstance(m, dict)]
    complete = len(messages) == len(value) > 0 and all(isinstance(content, str) for _, content in messages)
    return as_question(messages) if complete else ""


def question_of(example: Example) -> str:
    """An example's question, as second models read it."""
    return as_question(example.messages) if example.messages else example.prompt


def cleaned(answer: str | None) -> str:
    """An answer without white space around it and without the marks; "" for None."""
    text = answer or ""
    while OPEN in text or CLOSE in text:  # removing one mark may create another
        text = text.replace(OPEN, "").replace(CLOSE, "")
    return text.strip()


def filled(form: Form, question: str, answers: Sequence[str | None]) -> str:
    """The user's message to a judge on a server, as text. A space is put into an answer's <|...|>, because the server
    would read it as markup."""
    parts = [form.pieces[0]]
    for answer, piece in zip(answers, form.pieces[1:], strict=True):
        parts += [cleaned(answer).replace("<|", "< |").replace("|>", "| >"), piece]
    return form.asking(question).replace(_ANSWERS, "".join(parts))


def word_ids(reader: Reader, word: str) -> tuple[int, ...]:
    """The ids of the word's single-token spellings: capitalised or not, with or without a space before it."""
    tokenizer, vocab_bytes = reader.tokenizer, reader.vocab_bytes
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
            f"{reader.names.model}: {name_of(tokenizer)} has no single token for the reply {word!r}; take another judge"
        )
    return ids


def words_of(reader: Reader) -> tuple[tuple[int, ...], ...]:
    """`word_ids` of each word of the form."""
    return tuple(word_ids(reader, word) for word in reader.form.words)


def encode(reader: Reader, questions: Sequence[str], answers: Sequence[Sequence[Sequence[str | None]]]) -> Encoded:
    """The ids of P questions with Q rows each. A row has as many answers as the form has places.

    Arrays have the full widths `max_prompt` and `max_row`, so that one program reads all of them.
    """
    rendered = [_rendered(reader, question) for question in questions]
    prompts = _prompts(reader, questions, rendered)
    rows, cut = [], 0
    for group, around in zip(answers, rendered, strict=True):
        encoded = [_row(reader, row, around) for row in group]
        rows.append([ids for ids, _ in encoded])
        cut += sum(was_cut for _, was_cut in encoded)
    judged = Judged(
        prompt=padded(prompts, reader.max_prompt),
        prompt_length=np.asarray([len(ids) for ids in prompts], np.int32),
        rows=np.stack([padded(group, reader.max_row) for group in rows]),
        row_length=np.asarray([[len(ids) for ids in group] for group in rows], np.int32),
    )
    return Encoded(judged, cut)


def refuse_long(reader: Reader, questions: Sequence[str]) -> None:
    """UserError if a question has more than `max_prompt` tokens."""
    _prompts(reader, questions, [_rendered(reader, question) for question in questions])


def _prompts(reader: Reader, questions: Sequence[str], rendered: list[_Rendered]) -> list[list[int]]:
    prompts = ids_of(reader.tokenizer, reader.vocab_bytes, [r.before for r in rendered])
    for question, ids in zip(questions, prompts, strict=True):
        if len(ids) > reader.max_prompt:
            raise UserError(
                f"{reader.names.limits}max_prompt is {reader.max_prompt}, but the question {question[:60]!r} has "
                f"{len(ids)} tokens in the judge's template; set it to at least that"
            )
    return prompts


def refuse_template(reader: Reader, positions: int) -> None:
    """UserError if prompt and row may exceed the judge's positions, if its template does not show an answer or leaves
    no tokens for one, or if its tokenizer merges the end of the prompt and the beginning of a row into one token."""
    if reader.max_prompt + reader.max_row > positions:
        raise UserError(
            f"{reader.names.limits}max_prompt + {reader.names.limits}max_row = {reader.max_prompt + reader.max_row}, "
            f"more than the {positions} positions of the judge; lower one"
        )
    rendered = _rendered(reader, "a question")
    around = _around(reader, rendered)
    if sum(map(len, around)) >= reader.max_row:
        raise UserError(
            f"{reader.names.limits}max_row is {reader.max_row}, but what stands around an answer has "
            f"{sum(map(len, around))} tokens; set it to some hundreds more"
        )
    text, first = rendered.before, rendered.space + (reader.form.pieces[0] or "answer")
    (prompt,) = ids_of(reader.tokenizer, reader.vocab_bytes, [text])
    (row,) = ids_after_text(reader.tokenizer, reader.vocab_bytes, [first])
    if prompt + row != ids_of(reader.tokenizer, reader.vocab_bytes, [text + first])[0]:
        raise UserError(
            f"{reader.names.model}: {name_of(reader.tokenizer)} does not cut between {text[-20:]!r} and an answer; "
            f"take another judge or {reader.names.template}=plain"
        )


class _Rendered(NamedTuple):
    """The template's text before the answers, spaces to move to the first answer, and the text after the answers."""

    before: str
    space: str
    after: str


def _rendered(reader: Reader, question: str) -> _Rendered:
    tokenizer, form, names = reader.tokenizer, reader.form, reader.names
    messages = [{"role": "user", "content": form.asking(question) or question}]
    if not form.ask:
        messages.append({"role": "assistant", "content": _ANSWERS})
    if not (tokenizer.chat_template or reader.render):
        raise UserError(f"{names.model}: {name_of(tokenizer)} has no chat template; set {names.template}=plain")
    try:
        if reader.render:
            text = reader.render(form.asking(question))
        else:
            text = prompts.rendered(tokenizer, messages, form.date, unanswered=bool(form.ask))
    except TemplateError as e:
        raise UserError(f"{names.model}: the chat template of {name_of(tokenizer)} refuses a question ({e})") from e
    before, marker, after = text.rpartition(_ANSWERS)
    if not marker:
        raise UserError(f"{names.model}: the chat template of {name_of(tokenizer)} does not show an answer")
    trimmed = before.rstrip(" ")  # a space is one token with the word after it
    return _Rendered(trimmed, before[len(trimmed) :], after.rstrip(" ") if form.ask else after)


def _around(reader: Reader, rendered: _Rendered) -> list[list[int]]:
    """The ids of the texts before, between and after the answers of a row."""
    *pieces, last = reader.form.pieces
    if pieces[0]:
        pieces[0] = rendered.space + pieces[0]
    return ids_after_text(reader.tokenizer, reader.vocab_bytes, [*pieces, last + rendered.after])


def _limit(lengths: Sequence[int], available: int) -> int:
    """The tokens that each answer may have, so that all have `available` together. A short one leaves its rest to the
    others."""
    for i, length in enumerate(sorted(lengths)):
        share = available // (len(lengths) - i)
        if length > share:
            return share
        available -= length
    return max(lengths)


def _row(reader: Reader, answers: Sequence[str | None], rendered: _Rendered) -> tuple[list[int], bool]:
    """(the ids of one row, whether an answer was cut at its end to fit)."""
    pieces, texts = _around(reader, rendered), [cleaned(answer) for answer in answers]
    if not pieces[0]:
        texts[0] = rendered.space + texts[0]
    inner = ids_after_text(reader.tokenizer, reader.vocab_bytes, texts, plain=True)
    limit = _limit([len(answer) for answer in inner], reader.max_row - sum(map(len, pieces)))
    ids = list(pieces[0])
    for answer, after in zip(inner, pieces[1:], strict=True):
        ids += [*answer[:limit], *after]
    return ids, any(len(answer) > limit for answer in inner)
