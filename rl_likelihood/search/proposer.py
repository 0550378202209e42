"""The proposer, which writes first chains and candidates: its prompts, and a local model that replies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.judged_text import question_of
from rl_likelihood.data.prompt_checks import problems
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.data.tokenizer import vocab_bytes
from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import Params
from rl_likelihood.runtime.devices import sample_ids_all
from rl_likelihood.search.reer import Search
from rl_likelihood.search_settings import ReerSettings
from rl_likelihood.shapes import Example, Tags
from rl_likelihood.task import SEARCH, Task, load_model, load_tokenizer

PROMPTS = Path(__file__).with_name("prompts")
WIDTHS = 128  # prompts and rows are padded to a multiple of this, because each width is compiled once
PART, BLANK = ("<part>", "</part>"), "\n\n"


class Ask(NamedTuple):
    """A request to the proposer: a message, and the beginning of its reply. `uid`: the question's number."""

    uid: int
    message: str
    reply: str


class Length(NamedTuple):
    """The number of replies to a request, and their end: the text `until`, or a maximum of `tokens`."""

    replies: int
    until: str
    tokens: int


class Drawing(NamedTuple):
    """How replies are sampled."""

    temperature: float
    top_p: float = 1.0


# (requests, number of the call, Length) -> the replies to each request; [] for a request that is too long.
Propose = Callable[[Sequence[Ask], int, Length], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Asks:
    """Makes the requests to the proposer from the prompt files, and reads its replies."""

    cfg: ReerSettings
    tags: Tags
    max_chain: int
    first: string.Template
    edit: string.Template

    def chain(self, uid: int, example: Example) -> Ask:
        """The request for a whole chain."""
        return Ask(uid, _filled(self.first, example), self.tags.think_open)

    def segment(self, uid: int, example: Example, s: Search) -> Ask:
        """The request for a text that replaces the current segment."""
        before, after = "".join(s.segments[: s.at]), "".join(s.segments[s.at + 1 :])
        if self.cfg.ask == "resample":
            ask = self.chain(uid, example)
            return ask._replace(reply=ask.reply + before)
        words = {"before": before, "part": s.segments[s.at].strip(), "after": after}
        return Ask(uid, _filled(self.edit, example, **words), "<analysis>")

    def whole(self, replies: int) -> Length:
        """The length of whole chains: 3/4 of sampler.max_chain, because a candidate may be longer than its segment."""
        return Length(replies, self.tags.think_close, max(1, self.max_chain * 3 // 4))

    @property
    def part(self) -> Length:
        return Length(self.cfg.candidates, PART[1] if self.cfg.ask == "edit" else BLANK, self.cfg.max_segment)

    @property
    def digest(self) -> str:
        """Identifies the texts of both prompt files."""
        return hashlib.sha256(json.dumps([self.first.template, self.edit.template]).encode()).hexdigest()

    def chain_in(self, reply: str) -> str:
        """The chain in a reply: the text before the first tag."""
        reply = reply.strip().removeprefix(self.tags.think_open)
        for tag in (self.tags.think_open, self.tags.think_close, self.tags.answer_open, self.tags.answer_close):
            reply = reply.split(tag)[0]
        return reply.strip()

    def part_in(self, reply: str) -> str:
        """The candidate in a reply, or "". With reer.ask=edit the last marked part; one that was cut off is none."""
        if self.cfg.ask == "resample":
            return self.chain_in(reply.split(BLANK)[0])
        part, end, _ = reply.rpartition(PART[0])[2].partition(PART[1])
        return self.chain_in(part) if PART[0] in reply and end else ""


def asks_of(task: Task) -> Asks:
    """The requests from the prompt files in `reer.prompts`, by default those of this package."""
    cfg = task.config.reer
    folder = Path(cfg.prompts) if cfg.prompts else PROMPTS
    first, edit = _template(folder / "first.txt"), _template(folder / "edit.txt")
    return Asks(cfg, task.fmt, task.config.sampler.max_chain, first, edit)


def _template(path: Path) -> string.Template:
    try:
        text = string.Template(path.read_text(encoding="utf-8"))
        known_fields = dict.fromkeys(("question", "answer", "before", "part", "after"), "")
        text.substitute(known_fields)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"reer.prompts: {path} cannot be read as text ({e}); give a folder with this file") from e
    except (KeyError, ValueError) as e:
        raise UserError(
            f"reer.prompts: {path} has a field {e} that is none of ${', $'.join(known_fields)}; mend it"
        ) from e
    return text


def _filled(template: string.Template, example: Example, **words: str) -> str:
    return template.substitute({"question": question_of(example), "answer": example.answer, **words})


def padded_width(tokens: int) -> int:
    return -(-tokens // WIDTHS) * WIDTHS


def asked_ids(task: Task, ask: Ask) -> np.ndarray:
    """The ids that a local model reads: the message in its chat template, and the beginning of the reply."""
    message = [{"role": "user", "content": ask.message}]
    text = prompts.rendered(task.tokenizer, message, task.config.prompt.date)
    text = re.sub(rf"{re.escape(task.fmt.think_open)}\s*\Z", "", text)
    return np.asarray(ids_of(task.tokenizer, task.fmt.vocab_bytes, [text + ask.reply])[0], np.int32)


def model_proposer(task: Task, weights: Params, drawing: Drawing) -> Propose:
    """A proposer with a local model. A reply depends only on the weights, the request (with its uid) and the number of
    the call."""

    def propose(asks: Sequence[Ask], call: int, length: Length) -> list[list[str]]:
        out: list[list[str]] = [[] for _ in asks]
        prompt_ids = [asked_ids(task, a) for a in asks]
        fitting = [i for i, x in enumerate(prompt_ids) if len(x) + length.tokens <= task.model.max_position]
        if not fitting or not length.replies:
            return out
        filled = fitting + fitting[-1:] * (len(asks) - len(fitting))  # a fixed number: one program
        rows = [dataclasses.replace(task.train[asks[i].uid], prompt_ids=prompt_ids[i]) for i in filled]
        width = min(padded_width(max(len(r.prompt_ids) for r in rows)), task.model.max_position - length.tokens)
        collated = task.collate(rows, np.asarray([asks[i].uid for i in filled]), width)
        sampler = task.sampler(group_size=length.replies, **drawing._asdict())
        ids_of_all = sample_ids_all(weights, collated, task.key(SEARCH, call), sampler, length.until, length.tokens)
        for i, group, sizes in zip(fitting, ids_of_all[0], ids_of_all[2], strict=False):
            out[i] = [task.tokenizer.decode(x[:n], skip_special_tokens=True) for x, n in zip(group, sizes, strict=True)]
        return out

    return propose


def with_model(task: Task, field: str, mesh) -> tuple[Task, Params]:
    """(the task with the model that `field` names, encoded for its tokenizer; that model's parameters).

    Its limits of prompts, answers and chains are the model's positions: the config's count another tokenizer's tokens.
    """
    group, _, name = field.partition(".")
    path, c = getattr(getattr(task.config, group), name), task.config
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, path=path, preset=""))
    model, params, tokenizer_at = load_model(c, mesh)
    tokenizer, eos_ids = load_tokenizer(tokenizer_at, c.prompt.template)
    fmt = prompts.chain_format(tokenizer, vocab_bytes(tokenizer, model.vocab_size), eos_ids, c.prompt)
    wide = dataclasses.replace(c.prompt, max_prompt=sys.maxsize, max_answer=sys.maxsize)
    examples = [row.example for row in task.train]
    for words in filter(None, problems(examples, tokenizer, wide)):
        raise UserError(f"{field} is {path}, but {words}")
    rows = prompts.encode_all(examples, tokenizer, wide, fmt)
    for row in rows:
        if len(row.prompt_ids) > model.max_position:
            raise UserError(
                f"{field} is {path}, whose {model.max_position} positions do not hold the prompt of row "
                f"{row.example.id}; name a model with more positions"
            )
    task = dataclasses.replace(task, config=c, model=model, tokenizer=tokenizer, fmt=fmt, train=rows)
    return with_all_positions(task), params


def with_all_positions(task: Task) -> Task:
    """The task with chains as long as its model's positions allow beside the longest prompt and answer."""
    c, lengths = task.config, ((len(row.prompt_ids), len(row.answer_ids)) for row in task.train)
    prompt, answer = map(max, zip(*lengths, strict=True))
    free = task.model.max_position - prompt - len(task.fmt.close_think_ids) - answer
    limits = dataclasses.replace(c.prompt, max_prompt=prompt, max_answer=answer)
    sampler = dataclasses.replace(c.sampler, max_chain=free)
    return dataclasses.replace(task, config=dataclasses.replace(c, prompt=limits, sampler=sampler))
