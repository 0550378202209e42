"""Conversations in ids: their prompts, and the ids between two messages of the model.

A conversation is rendered only once, before the first message. After that, ids are appended: the model's sampled ids,
and the environment's reply in the markup of the chat template. So a template cannot change earlier messages (some
remove thoughts), and training uses exactly the sampled ids.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from rl_likelihood.data.prompts import rendered
from rl_likelihood.data.token_ids import ids_after_text, ids_of, name_of
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import ChainFormat

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

# The reply has two lines and quotation marks, to detect templates that write a tool's reply as JSON.
_MESSAGE, _REPLY = "a message", 'the "reply"\nof a tool'
_CUT = "\n[...]\n"
_LONGEST = 128  # characters of a token


@dataclasses.dataclass(frozen=True)
class Markup:
    """The ids before and after an environment's reply, between two messages of the model."""

    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    fmt: ChainFormat = dataclasses.field(repr=False)
    before: tuple[int, ...]
    after: tuple[int, ...]
    as_json: bool = False  # the template writes replies as JSON strings

    def reply(self, text: str, message: Sequence[int] | np.ndarray, limit: int) -> np.ndarray:
        """At most `limit` ids to append after the model's `message` [n]. A longer text is cut in the middle.

        The text is encoded as plain text, so chat markup in it has no effect.
        """
        opening = list(self.before)
        if opening and opening[0] in self.fmt.eos_ids and len(message) and message[-1] in self.fmt.eos_ids:
            opening = opening[1:]  # the model has already written the end-of-message id
        most = limit * _LONGEST
        text = text if len(text) <= 2 * most else text[:most] + text[-most:]  # to encode megabytes takes minutes
        text = _as_json(text) if self.as_json else text
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        space = limit - len(opening) - len(self.after)
        if len(ids) > space:
            (cut,) = ids_after_text(self.tokenizer, self.fmt.vocab_bytes, [_CUT])
            half = max(0, space - len(cut)) // 2
            ids = [*ids[:half], *cut[:space], *ids[len(ids) - half :]]
        return np.asarray([*opening, *ids, *self.after], np.int32)

    def text_of(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a reply in ids that `reply` made. Without the markup's ids: decoded, its role would be text."""
        own = [int(i) for i in ids]
        opening = next((b for b in (self.before, self.before[1:]) if tuple(own[: len(b)]) == b), ())
        own = own[len(opening) : len(own) - len(self.after)]
        text = self.tokenizer.decode(own, skip_special_tokens=True)
        try:
            return json.loads(f'"{text}"') if self.as_json else text
        except ValueError:  # cut in the middle of an escape
            return text


def markup(tokenizer: PreTrainedTokenizerBase, fmt: ChainFormat, limit: int) -> Markup:
    """The markup of a tokenizer's chat template, read off a rendered conversation with a reply.

    If the template does not support messages of a tool, the reply is the user's message. UserError if it supports
    neither, or if the markup alone has more than `limit` tokens.
    """
    for role in ("tool", "user"):
        messages = [("user", "?"), ("assistant", _MESSAGE), (role, _REPLY)]
        try:
            text = rendered(tokenizer, _chat(messages), "")
        except (TemplateError, TypeError):
            continue
        _, spoken, between = text.partition(_MESSAGE)
        as_json = _REPLY not in between
        between, shown, after = between.partition(_as_json(_REPLY) if as_json else _REPLY)
        if spoken and shown:
            before_ids, after_ids = ids_of(tokenizer, fmt.vocab_bytes, [between, after])
            if len(before_ids) + len(after_ids) >= limit:
                raise UserError(
                    f"sampler.max_env_tokens is {limit}, but the chat markup of {name_of(tokenizer)} around a reply "
                    f"has {len(before_ids) + len(after_ids)} tokens; set it to some hundreds more"
                )
            return Markup(tokenizer, fmt, tuple(before_ids), tuple(after_ids), as_json)
    raise UserError(f"the chat template of {name_of(tokenizer)} shows no reply after a message; use another tokenizer")


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, fmt: ChainFormat, messages: Sequence[tuple[str, str]], date: str = ""
) -> np.ndarray:
    """A conversation's first messages in ids, up to the beginning of the model's message. `date`: as in
    `prompts.rendered`."""
    try:
        text = rendered(tokenizer, _chat(messages), date)
    except TemplateError as e:
        raise UserError(f"the chat template of {name_of(tokenizer)} refuses the environment's messages ({e})") from e
    missing = next((content for _, content in messages if content.strip() not in text), None)
    if missing is not None:
        raise UserError(
            f"the chat template of {name_of(tokenizer)} leaves out the environment's message {missing[:60]!r}"
        )
    return np.asarray(ids_of(tokenizer, fmt.vocab_bytes, [text])[0], np.int32)


def reference_ids(tokenizer: PreTrainedTokenizerBase, fmt: ChainFormat, text: str, limit: int) -> np.ndarray:
    """The first `limit` ids of the text that the model should write."""
    text = text[: limit * _LONGEST]
    return np.asarray(ids_after_text(tokenizer, fmt.vocab_bytes, [text])[0][:limit] if text else [], np.int32)


def _as_json(text: str) -> str:
    """The text as a JSON string, without its quotation marks."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _chat(messages: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]
