"""Who writes first chains and candidates: what is asked, and a model that replies."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.data.tokenizer import vocab_bytes
from rl_likelihood.model.decoder import Params
from rl_likelihood.runtime.devices import sample_ids_all
from rl_likelihood.search.reer import Search
from rl_likelihood.search_settings import ReerSettings
from rl_likelihood.shapes import Example, Tags, UserError
from rl_likelihood.task import SEARCH, Task, load_model, load_tokenizer

PROMPTS = Path(__file__).with_name("prompts")
WIDTHS = 128  # prompts and rows are padded to a multiple of this: each width compiles once
PART, BLANK = ("<part>", "</part>"), "\n\n"


class Ask(NamedTuple):
    """A message, and the beginning of the reply. `uid`: the question's number."""

    uid: int
    message: str
    reply: str


class Length(NamedTuple):
    """How much is written: so many replies, each up to the text `until` or so many tokens."""

    replies: int
    until: str
    tokens: int


# (what is asked, number of the call, how much) -> the texts of each; none for what is too long to be asked.
Propose = Callable[[Sequence[Ask], int, Length], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Asks:
    """What is asked of the proposer, in the words of the prompt files."""

    cfg: ReerSettings
    tags: Tags
    max_chain: int
    first: string.Template
    edit: string.Template

    def chain(self, uid: int, example: Example) -> Ask:
        """For a whole chain."""
        return Ask(uid, _filled(self.first, example), self.tags.think_open)

    def segment(self, uid: int, example: Example, s: Search) -> Ask:
        """For another text instead of the current segment."""
        before, after = "".join(s.segments[: s.at]), "".join(s.segments[s.at + 1 :])
        if self.cfg.ask == "resample":
            ask = self.chain(uid, example)
            return ask._replace(reply=ask.reply + before)
        words = {"before": before, "part": s.segments[s.at].strip(), "after": after}
        return Ask(uid, _filled(self.edit, example, **words), "<analysis>")

    def whole(self, replies: int) -> Length:
        """A quarter of sampler.max_chain is left for candidates that are longer than what they replace."""
        return Length(replies, self.tags.think_close, max(1, self.max_chain * 3 // 4))

    @property
    def part(self) -> Length:
        return Length(self.cfg.candidates, PART[1] if self.cfg.ask == "edit" else BLANK, self.cfg.max_segment)

    def chain_in(self, reply: str) -> str:
        """The chain of a reply: what stands before any tag."""
        reply = reply.strip().removeprefix(self.tags.think_open)
        for tag in (self.tags.think_open, self.tags.think_close, self.tags.answer_open, self.tags.answer_close):
            reply = reply.split(tag)[0]
        return reply.strip()

    def part_in(self, reply: str) -> str:
        """The candidate of a reply; "" where there is none."""
        if self.cfg.ask == "edit":
            reply = reply.partition(PART[0])[2].partition(PART[1])[0]
        return self.chain_in(reply if self.cfg.ask == "edit" else reply.split(BLANK)[0])


def asks_of(task: Task) -> Asks:
    """The prompt files in `reer.prompts`, or our own."""
    cfg = task.config.reer
    folder = Path(cfg.prompts).expanduser() if cfg.prompts else PROMPTS
    first, edit = _template(folder / "first.txt"), _template(folder / "edit.txt")
    return Asks(cfg, task.fmt, task.config.sampler.max_chain, first, edit)


def _template(path: Path) -> string.Template:
    try:
        text = string.Template(path.read_text(encoding="utf-8"))
        known = dict.fromkeys(("question", "answer", "before", "part", "after"), "")
        text.substitute(known)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"reer.prompts: {path} cannot be read as text ({e}); give a folder with this file") from e
    except (KeyError, ValueError) as e:
        raise UserError(f"reer.prompts: {path} has a field {e} that is none of ${', $'.join(known)}; mend it") from e
    return text


def _filled(template: string.Template, example: Example, **words: str) -> str:
    return template.substitute({"question": example.prompt, "answer": example.answer, **words})


def padded_width(tokens: int) -> int:
    return -(-tokens // WIDTHS) * WIDTHS


def model_proposer(task: Task, weights: Params, temperature: float) -> Propose:
    """Replies of a model. One depends on the weights, what is asked, its question's number and the call's."""
    think = re.compile(rf"{re.escape(task.fmt.think_open)}\s*\Z")

    def ids(asked: Ask) -> np.ndarray:
        message = [{"role": "user", "content": asked.message}]
        text = think.sub("", prompts.rendered(task.tokenizer, message, task.config.prompt.date))
        return np.asarray(ids_of(task.tokenizer, task.fmt.vocab_bytes, [text + asked.reply])[0], np.int32)

    def propose(asked: Sequence[Ask], call: int, length: Length) -> list[list[str]]:
        out: list[list[str]] = [[] for _ in asked]
        given = [ids(a) for a in asked]
        fits = [i for i, x in enumerate(given) if len(x) + length.tokens <= task.model.max_position]
        if not fits or not length.replies:
            return out
        filled = fits + fits[-1:] * (len(asked) - len(fits))  # always as many: one program
        rows = [dataclasses.replace(task.train[asked[i].uid], prompt_ids=given[i]) for i in filled]
        width = min(padded_width(max(len(r.prompt_ids) for r in rows)), task.model.max_position - length.tokens)
        collated = task.collate(rows, np.asarray([asked[i].uid for i in filled]), width)
        sampler = task.sampler(group_size=length.replies, temperature=temperature)
        ids_of_all = sample_ids_all(weights, collated, task.key(SEARCH, call), sampler, length.until, length.tokens)
        for i, group, sizes in zip(fits, ids_of_all[0], ids_of_all[2], strict=False):
            out[i] = [task.tokenizer.decode(x[:n], skip_special_tokens=True) for x, n in zip(group, sizes, strict=True)]
        return out

    return propose


def with_model(task: Task, path: str, mesh) -> tuple[Task, Params]:
    """The same questions for another model, and its parameters."""
    c = dataclasses.replace(task.config, model=dataclasses.replace(task.config.model, path=path, preset=""))
    model, params, where = load_model(c, mesh)
    tokenizer, eos_ids = load_tokenizer(where, c.prompt.template)
    fmt = prompts.chain_format(tokenizer, vocab_bytes(tokenizer, model.vocab_size), eos_ids, c.prompt)
    rows = prompts.encode_all([row.example for row in task.train], tokenizer, c.prompt, fmt)
    return dataclasses.replace(task, config=c, model=model, tokenizer=tokenizer, fmt=fmt, train=rows), params
