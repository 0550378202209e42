"""Converts examples to ids: a chat prompt that ends in `<think>`, tags, and the reference answer after `<answer`.

A completion reads  chain </think>\\n<answer  |  >reference</answer>.  The bar marks the boundary: the policy samples up
to and including `<answer`, then the reference ids follow. Each piece is tokenized once, here, and pieces are joined as
ids. So the boundary must lie between two tokens: `chain_format` checks the vocabulary, and `encode_all` checks every
answer. Sampled text is never encoded again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jinja2 import TemplateError

from rl_likelihood.data.prompt_checks import (
    longer,
    problems,
    refuse_longer,
    refuse_token_across_boundary,
    refuse_worked,
)
from rl_likelihood.data.token_ids import bytes_of, ids_after_text, ids_of, name_of, padded
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES, Shots
from rl_likelihood.errors import UserError
from rl_likelihood.fields import field
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, ChainFormat, Example, Prompts

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = (
    "Think step by step before you answer. Write your reasoning inside <think></think>, "
    "then only the final answer, and nothing else, inside <answer></answer>."
)
_CALL = re.compile(r"strftime_now\s*\(")
_TODAY = re.compile(_CALL.pattern + r"""\s*(["'])([^"']*)\1\s*\)""")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The prompt's format, and which tokens of the reference answer are scored, in training and in evaluation.

    `answer_open` and `answer_close` leave out their `>`: see the module's first lines.
    """

    instruction: str = field("", "how to answer; empty: the standard one (data/prompts.py)")
    instruction_path: str = field("", "a text file with the instruction, instead of prompt.instruction")
    use_system: bool = field(True, "True: the instruction is the system message; False: it comes before the question")
    template: Literal["model", "plain", "raw"] = field(
        "model",
        "model: the tokenizer's chat template; plain: Question and Answer lines, for base models without one; raw: the "
        "text itself and the tag, for documents",
    )
    date: str = field("", "date for chat templates that print one, such as 2026-11-28; empty: the day the run began")
    examples: int = field(0, "worked examples before the question, as earlier turns of the chat", least=0)
    examples_path: str = field(
        "",
        "a file of worked examples: rows like the data's, with chains. In the training file the first rows are used, "
        "and not trained on. Empty: those of the task, or the first training rows with a chain",
    )
    score_delims: Literal["none", "close", "both"] = field(
        "close", 'none: the answer alone; close: also the "</" after it; both: every token of >answer</answer>'
    )
    think_open: str = field("<think>", "the prompt ends in it")
    think_close: str = field("</think>", "the policy ends its chain with it")
    answer_open: str = field("<answer", 'without its ">"; the reference answer is inserted after it')
    answer_close: str = field("</answer", 'without its ">"')
    max_prompt: int = field(128, "S: maximum tokens of a prompt", least=1)
    width_multiple: int = field(0, "a batch's prompts are padded to a multiple of this; 0: to max_prompt", least=0)
    max_answer: int = field(16, "A: maximum tokens of a reference answer, delimiters included", least=1)
    max_alternatives: int = field(
        8,
        "log_prob_any, option_prob: maximum other answers of a row scored beside the reference",
        least=1,
    )
    shots: Shots = ()  # the user's own worked examples (`sources.resolve_prompt`); (): those of the example's task
    examples_field: str = "prompt.examples"  # where `examples` comes from, for messages


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One example in ids (int32). `answer_ids`: the ids after `<answer`, which are `>`, the reference, `</answer>`.
    `shown_ids`: the posterior prompt, which shows the answer (data/extra_ids.py), if the run has one."""

    example: Example
    prompt_ids: np.ndarray  # [s]
    answer_ids: np.ndarray  # [a]
    answer_scored: np.ndarray  # [a] bool: the ids whose log-probs count
    shown_ids: np.ndarray | None = None
    alternatives: tuple[tuple[np.ndarray, np.ndarray], ...] = ()  # (ids, scored) of each alternative answer


def digest_of_ids(rows: Sequence[EncodedExample]) -> str:
    """A digest of the ids of all prompts and reference answers."""
    total = hashlib.sha256()
    for row in rows:
        for ids in (row.prompt_ids, row.answer_ids, row.shown_ids):
            total.update(b"" if ids is None else len(ids).to_bytes(4, "big") + np.asarray(ids, np.int32).tobytes())
    return total.hexdigest()


def chain_format(
    tokenizer: PreTrainedTokenizerBase,
    vocab_bytes: tuple[bytes, ...],
    eos_ids: tuple[int, ...],
    cfg: PromptConfig,
) -> ChainFormat:
    """The tags in this tokenizer's ids. `vocab_bytes[i]`: the bytes of id i, empty for control tokens.

    UserError for a tokenizer without an end-of-text id, or one that does not preserve the tags or the boundary.
    """
    validate_prompt(cfg)
    refuse_worked(tokenizer, cfg)
    name = name_of(tokenizer)
    if not eos_ids:
        raise UserError(f"{name} has no end-of-text id; add eos_token to its tokenizer_config.json")

    refuse_token_across_boundary(name, vocab_bytes, cfg.answer_open)
    tags = [cfg.think_close + "\n" + cfg.answer_open, "\n" + cfg.answer_open]
    close_think, open_answer = ids_after_text(tokenizer, vocab_bytes, tags)
    for text, ids in zip(tags, (close_think, open_answer), strict=True):
        if bytes_of(vocab_bytes, ids) != text.encode():
            raise UserError(
                f"{name} does not keep the tag {text!r} (it reads back as {bytes_of(vocab_bytes, ids)!r})"
                "; choose tags of plain characters for prompt.think_close and prompt.answer_open"
            )
    return ChainFormat(
        think_open=cfg.think_open,
        think_close=cfg.think_close,
        answer_open=cfg.answer_open,
        answer_close=cfg.answer_close,
        close_think_ids=tuple(close_think),
        open_answer_ids=tuple(open_answer),
        eos_ids=tuple(eos_ids),
        # Padding is always masked, so any id will do for a tokenizer without a pad id.
        pad_id=eos_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        vocab_bytes=tuple(vocab_bytes),
    )


def validate_prompt(cfg: PromptConfig) -> None:
    """Refuse a date that is none, and tags that cannot be tags."""
    if cfg.date:
        _date(cfg.date)
    for name in ("think_open", "think_close", "answer_open", "answer_close"):
        if not getattr(cfg, name):
            raise UserError(f"prompt.{name} is empty; give the tag, for example {getattr(PromptConfig, name)!r}")
    for name in ("answer_open", "answer_close"):
        if getattr(cfg, name).endswith(">"):
            raise UserError(f"prompt.{name} is {getattr(cfg, name)!r}; leave out its last '>', which the program adds")


def chat(example: Example, cfg: PromptConfig, shots: Shots) -> list[dict[str, str]]:
    """The conversation of an example: instruction, worked examples, then its own messages."""
    instruction = cfg.instruction or INSTRUCTION
    own_messages = list(example.messages) or [("user", example.prompt)]
    system = [content for role, content in own_messages if role == "system"]
    turns = [(role, content) for role, content in own_messages if role != "system"]
    worked = []
    for question, chain, answer in shots:
        reply = f"{cfg.think_open}{chain}{cfg.think_close}\n{cfg.answer_open}>{answer}{cfg.answer_close}>"
        worked += [("user", question), ("assistant", reply)]
    turns = worked + turns
    if cfg.use_system:
        system = [instruction, *system]
    else:
        first = next(i for i, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"{instruction}\n\n{turns[first][1]}")
    head = [("system", "\n\n".join(s for s in system if s))] if any(system) else []
    return [{"role": role, "content": content} for role, content in head + turns]


def render(example: Example, tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, shots: Shots | None = None) -> str:
    """The prompt as text, which ends in `<think>`, by the tokenizer's chat template with the date `cfg.date`."""
    if cfg.template == "raw":
        return example.prompt + cfg.think_open
    shots = _worked(example, cfg) if shots is None else shots
    messages = chat(example, cfg, shots)
    name = name_of(tokenizer)
    try:
        text = rendered(tokenizer, messages, cfg.date)
    except TemplateError as e:
        raise UserError(
            f"the chat template of {name} refuses the conversation of row {example.id} ({e}); "
            "if it has no system role set prompt.use_system=False"
        ) from e
    for message in messages:
        # Some templates drop system messages, others drop the reasoning of earlier messages.
        if message["content"].strip() not in text:
            system = message["role"] == "system"
            cure = "prompt.use_system=False" if system else f"{cfg.examples_field}=0, and give single-turn rows"
            raise UserError(
                f"the chat template of {name} leaves out part of the {message['role']} message "
                f"{message['content'][:60]!r} (row {example.id}); set {cure}"
            )
    # Some templates already add `<think>`, others add an empty think block.
    text = re.sub(rf"{re.escape(cfg.think_open)}\s*{re.escape(cfg.think_close)}\s*\Z", "", text)
    return text if text.rstrip().endswith(cfg.think_open) else text + cfg.think_open


def _worked(example: Example, cfg: PromptConfig) -> Shots:
    if cfg.examples == 0:
        return ()
    shots = cfg.shots or WORKED_EXAMPLES.get(example.task, ())
    if cfg.examples > len(shots):
        raise UserError(
            f"{cfg.examples_field} is {cfg.examples}, but there are {len(shots)} worked examples for row {example.id} "
            f"(task {example.task!r}); write some as JSON lines with prompt, chain and answer and name the file with "
            f"--config.prompt.examples_path=FILE, or set --config.{cfg.examples_field}={len(shots)}"
        )
    return shots[: cfg.examples]


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], date: str, unanswered: bool = True
) -> str:
    """Messages as text by the chat template, if `unanswered` up to the beginning of the model's message. `date`:
    PromptConfig.date."""
    template = _template_at(tokenizer, date)
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=unanswered, chat_template=template
    )


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template prints today's date."""
    return bool(tokenizer.chat_template) and _CALL.search(tokenizer.get_chat_template()) is not None


def _template_at(tokenizer: PreTrainedTokenizerBase, day: str) -> str | None:
    """The chat template with `day` in place of its calls for today's date. None (its own template) without calls."""
    if not day or not prints_date(tokenizer):
        return None
    date = _date(day)
    template = _TODAY.sub(lambda call: json.dumps(date.strftime(call[2])), tokenizer.get_chat_template())
    if _CALL.search(template):
        raise UserError(
            f"the chat template of {name_of(tokenizer)} computes how it writes today's date, so the date cannot be "
            "kept; write the format in its call of strftime_now as text"
        )
    return template


def _date(day: str) -> datetime.date:
    with contextlib.suppress(ValueError):
        date = datetime.date.fromisoformat(day)
        if date.isoformat() == day:  # in another spelling, a resume on the same day would be another config
            return date
    raise UserError(f"prompt.date is {day!r}; write it as 2026-11-28")


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    shots: Shots | None = None,
) -> list[EncodedExample]:
    """Every example in ids, in order. `shots` overrides the worked examples of the examples' tasks.

    UserError with the rows that have an empty answer, contain a control token or a closing tag, break the boundary, or
    exceed `max_prompt` or `max_answer`.
    """
    rows = _encode_any_length(examples, tokenizer, cfg, fmt, shots)
    for name in ("max_prompt", "max_answer"):
        refuse_longer(name, cfg, rows)
    return rows


def encode_fitting(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, fmt: ChainFormat
) -> tuple[list[EncodedExample], list[str]]:
    """Encodes the examples without `problems`, then `fitting`."""
    wrong = problems(examples, tokenizer, cfg)
    good = [e for e, words in zip(examples, wrong, strict=True) if not words]
    rows, long = fitting(_encode_any_length(good or examples, tokenizer, cfg, fmt, None), cfg)
    return rows, [words for words in wrong if words] + long


def fitting(rows: list[EncodedExample], cfg: PromptConfig) -> tuple[list[EncodedExample], list[str]]:
    """(rows within `max_prompt` and `max_answer`, descriptions of the other rows).

    UserError if there are rows but none fits.
    """
    short, left_out = [], []
    for row in rows:
        over = [f"{n} tokens over prompt.{name} = {getattr(cfg, name)}" for name, n in longer(row, cfg).items()]
        if over:
            left_out.append(f"{row.example.id}: {' and '.join(over)}")
        else:
            short.append(row)
    if rows and not short:
        raise UserError(
            f"none of the {len(rows)} training rows fits prompt.max_prompt = {cfg.max_prompt} and prompt.max_answer = "
            f"{cfg.max_answer} ({left_out[0]}); raise them"
        )
    return short, left_out


def _encode_any_length(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    shots: Shots | None,
) -> list[EncodedExample]:
    validate_prompt(cfg)
    examples = list(examples)
    if not examples:
        return []
    for words in filter(None, problems(examples, tokenizer, cfg)):
        raise UserError(f"{words} (data.skip_bad_rows=True leaves such training rows out)")
    prompts = ids_of(tokenizer, fmt.vocab_bytes, [render(e, tokenizer, cfg, shots) for e in examples])

    answers = answer_ids(examples, tokenizer, cfg, fmt)
    return [EncodedExample(e, np.asarray(p, np.int32), *a) for e, p, a in zip(examples, prompts, answers, strict=True)]


def answer_ids(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, fmt: ChainFormat
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each example (the ids after `<answer`, which of them are scored)."""
    tails = [f">{e.answer}{cfg.answer_close}>" for e in examples]
    answers = ids_after_text(tokenizer, fmt.vocab_bytes, tails)
    joined = ids_after_text(tokenizer, fmt.vocab_bytes, [cfg.answer_open + tail for tail in tails])
    (opening,) = ids_after_text(tokenizer, fmt.vocab_bytes, [cfg.answer_open])
    for example, answer, whole in zip(examples, answers, joined, strict=True):
        if opening + answer != whole:
            raise UserError(
                f"{name_of(tokenizer)} does not cut between {cfg.answer_open!r} and '>' before the answer "
                f"{example.answer[:60]!r} of row {example.id}; use another prompt.answer_open or another tokenizer"
            )
        if not all(fmt.vocab_bytes[i] for i in answer):
            raise UserError(
                f"{name_of(tokenizer)} has no token for some character of the answer {example.answer[:60]!r} "
                f"of row {example.id}; remove the row or use another tokenizer"
            )
    return [(np.asarray(a, np.int32), _scored(a, fmt.vocab_bytes, cfg)) for a in answers]


def _scored(ids: list[int], vocab_bytes: tuple[bytes, ...], cfg: PromptConfig) -> np.ndarray:
    """[a] bool: which ids of `>answer</answer>` are scored, by byte offsets (a character may span tokens)."""
    if cfg.score_delims == "both":
        return np.ones(len(ids), bool)
    ends = np.cumsum([len(vocab_bytes[i]) for i in ids])
    starts = np.concatenate([[0], ends[:-1]])
    # Measured from both ends, because a tokenizer may normalise the answer between its delimiters.
    answer_end = ends[-1] - len(cfg.answer_close.encode() + b">")
    if cfg.score_delims == "close":
        answer_end += 1  # the token that holds the first character of the closing tag
    return (ends > len(b">")) & (starts < answer_end)


def collate(
    rows: Sequence[EncodedExample], uid: Sequence[int] | np.ndarray, max_prompt: int, max_answer: int, pad_id: int
) -> Prompts:
    """Right-pads the rows to host arrays of widths S = max_prompt and A = max_answer.

    `uid` [P]: each row's position in the data stream.
    """
    return Prompts(
        tokens=padded([r.prompt_ids for r in rows], max_prompt, pad_id),
        length=np.asarray([len(r.prompt_ids) for r in rows], np.int32),
        answer=padded([r.answer_ids for r in rows], max_answer, pad_id),
        answer_length=np.asarray([len(r.answer_ids) for r in rows], np.int32),
        answer_scored=padded([r.answer_scored for r in rows], max_answer).astype(bool),
        uid=np.asarray(uid, np.int32),
    )


def completion_ids(
    row: EncodedExample,
    chain: str | Sequence[int] | np.ndarray | None,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ChainFormat,
    tag: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [t], segment [t]) of chain, closing tags and reference answer: the target of supervised fine-tuning.

    A `chain` of text is encoded, a `chain` of (sampled) ids is used unchanged, and None or "" is an empty chain.
    `tag`: closing tags to use instead of those of a chain that never closed. Segments are CHAIN, TAG, REFERENCE
    (shapes.py).
    """
    if chain is None:
        chain = ()
    elif isinstance(chain, str):
        (chain,) = ids_after_text(tokenizer, fmt.vocab_bytes, [chain])
    parts = [(CHAIN, chain), (TAG, fmt.close_think_ids if tag is None else tag), (REFERENCE, row.answer_ids)]
    ids = np.concatenate([np.asarray(part, np.int32) for _, part in parts])
    return ids, np.repeat(np.asarray([s for s, _ in parts], np.int32), [len(part) for _, part in parts])
