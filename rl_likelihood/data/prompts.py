"""Examples to ids: chat prompt ending in `<think>`, reference answer after `<answer`, tags between them.

A completion reads  chain </think>\\n<answer  |  >reference</answer>.  The bar is the one seam: the policy
samples up to and including `<answer`, the reference ids follow. Pieces are tokenised once, here, and joined
as ids, so the seam must be a token boundary of the tokenizer: `chain_format` checks its vocabulary and
`encode_all` every answer. Nothing that was sampled is ever encoded again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jinja2 import TemplateError

from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.fields import field
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, ChainFormat, Example, Prompts, UserError

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = (
    "Think step by step before you answer. Write your reasoning inside <think></think>, "
    "then only the final answer, and nothing else, inside <answer></answer>."
)

Shots = Sequence[tuple[str, str, str]]  # (question, chain, answer)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a question is asked and what of the reference answer is scored.

    Training and evaluation share it.
    `answer_open` and `answer_close` leave out their `>`: see the module's first lines.
    """

    instruction: str = field("", "how to answer; empty: the standard one (data/prompts.py)")
    use_system: bool = field(True, "instruction as system message; False puts it before the question")
    examples: int = field(0, "worked examples before the question, as earlier turns of the chat", least=0)
    score_delims: Literal["none", "close", "both"] = field(
        "close", 'what is scored besides the answer: nothing, the "</" after it, or every token from ">" to the last'
    )
    think_open: str = field("<think>", "the prompt ends in it")
    think_close: str = field("</think>", "the policy ends its chain with it")
    answer_open: str = field("<answer", 'without its ">": the seam where the reference answer is spliced in')
    answer_close: str = field("</answer", 'without its ">"')
    max_prompt: int = field(128, "S: tokens of a prompt at most", least=1)
    width_multiple: int = field(0, "a batch's prompts are padded to a multiple of this; 0: to max_prompt", least=0)
    max_answer: int = field(16, "A: tokens of a reference answer at most, delimiters included", least=1)


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One example in ids (int32). `answer_ids` is what follows `<answer`: `>`, the reference, `</answer>`."""

    example: Example
    prompt_ids: np.ndarray  # [s]
    answer_ids: np.ndarray  # [a]
    answer_scored: np.ndarray  # [a] bool: whose log-probs count


def chain_format(
    tokenizer: PreTrainedTokenizerBase,
    vocab_bytes: tuple[bytes, ...],
    eos_ids: tuple[int, ...],
    cfg: PromptConfig,
) -> ChainFormat:
    """The tags in this tokenizer's ids. `vocab_bytes[i]` is the text of id i, empty for control tokens.

    Raises UserError for a tokenizer without a chat template, without an end-of-text id, or with tags or a
    seam that its tokens do not respect.
    """
    _validate(cfg)
    name = _name(tokenizer)
    if not tokenizer.chat_template:
        raise UserError(
            f"{name} has no chat template; add a chat_template to its tokenizer_config.json "
            f"(or a chat_template.jinja beside it), or use the instruct version of the model"
        )
    if not eos_ids:
        raise UserError(f"{name} has no end-of-text id; add eos_token to its tokenizer_config.json")

    # A token such as "r>" or "answer>" would run over the seam. "br>" cannot: "<abr>" is not the tag.
    seam, last = cfg.answer_open.encode() + b">", cfg.answer_open[-1:].encode() + b">"
    for i, token in enumerate(vocab_bytes):
        at = token.find(last)
        while at >= 0:
            left = token[: at + len(last)]
            if seam.endswith(left) or left.endswith(seam):
                raise UserError(
                    f"{name} has a token {token.decode(errors='replace')!r} (id {i}) across the seam of "
                    f"{cfg.answer_open!r} and '>', so a reference answer cannot be spliced there; "
                    f"use another prompt.answer_open or another tokenizer"
                )
            at = token.find(last, at + 1)

    tags = [cfg.think_close + "\n" + cfg.answer_open, "\n" + cfg.answer_open]
    close_think, open_answer = _encode(tokenizer, vocab_bytes, tags)
    for text, ids in zip(tags, (close_think, open_answer), strict=True):
        if _bytes(vocab_bytes, ids) != text.encode():
            raise UserError(
                f"{name} does not keep the tag {text!r} (it reads back as {_bytes(vocab_bytes, ids)!r})"
                "; choose tags of plain characters for prompt.think_close and prompt.answer_open"
            )
    return ChainFormat(
        think_close=cfg.think_close,
        answer_open=cfg.answer_open,
        answer_close=cfg.answer_close,
        close_think_ids=tuple(close_think),
        open_answer_ids=tuple(open_answer),
        eos_ids=tuple(eos_ids),
        # Padding is masked wherever it matters, so a tokenizer without a pad id may use any.
        pad_id=eos_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        vocab_bytes=tuple(vocab_bytes),
    )


def chat(example: Example, cfg: PromptConfig, shots: Shots) -> list[dict[str, str]]:
    """The conversation of an example: instruction, worked examples, then its own turns."""
    instruction = cfg.instruction or INSTRUCTION
    own = list(example.messages) or [("user", example.prompt)]
    system = [content for role, content in own if role == "system"]
    turns = [(role, content) for role, content in own if role != "system"]
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
    """The prompt as text, by the tokenizer's chat template, ending in `<think>`."""
    shots = _worked(example, cfg) if shots is None else shots
    messages = chat(example, cfg, shots)
    name = _name(tokenizer)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as e:
        raise UserError(
            f"the chat template of {name} refuses the conversation of row {example.id} ({e}); "
            "if it has no system role set use_system=False"
        ) from e
    for message in messages:
        # Some templates drop system messages, others the reasoning of earlier turns.
        if message["content"].strip() not in text:
            cure = "use_system=False" if message["role"] == "system" else "examples=0, and give single-turn rows"
            raise UserError(
                f"the chat template of {name} leaves out part of the {message['role']} message "
                f"{message['content'][:60]!r} (row {example.id}); set {cure}"
            )
    return text if text.rstrip().endswith(cfg.think_open) else text + cfg.think_open


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    shots: Shots | None = None,
) -> EncodedExample:
    """`encode_all` of one example."""
    return encode_all([example], tokenizer, cfg, fmt, shots)[0]


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    shots: Shots | None = None,
) -> list[EncodedExample]:
    """Every example in ids, in order. `shots` overrides the worked examples of the examples' tasks.

    Raises UserError naming the rows that have an empty answer, hold a control token or the closing tag,
    break the seam, or are longer than `max_prompt` or `max_answer`.
    """
    rows = _encode_any_length(examples, tokenizer, cfg, fmt, shots)
    for name in ("max_prompt", "max_answer"):
        _refuse_longer(name, cfg, rows)
    return rows


def encode_fitting(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, fmt: ChainFormat
) -> tuple[list[EncodedExample], list[str]]:
    """(rows, left out): `encode_all` of the examples within `max_prompt` and `max_answer`, and the others in words.

    UserError if there are examples and none of them fits.
    """
    rows = _encode_any_length(examples, tokenizer, cfg, fmt, None)
    kept = [row for row in rows if not _longer(row, cfg)]
    left_out = [
        f"{row.example.id}: "
        + " and ".join(f"{n} tokens over prompt.{field} = {getattr(cfg, field)}" for field, n in over.items())
        for row in rows
        if (over := _longer(row, cfg))
    ]
    if rows and not kept:
        raise UserError(
            f"none of the {len(rows)} training rows fits prompt.max_prompt = {cfg.max_prompt} and prompt.max_answer = "
            f"{cfg.max_answer} ({left_out[0]}); raise them"
        )
    return kept, left_out


def _encode_any_length(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    cfg: PromptConfig,
    fmt: ChainFormat,
    shots: Shots | None,
) -> list[EncodedExample]:
    _validate(cfg)
    examples = list(examples)
    if not examples:
        return []
    _refuse_texts(examples, tokenizer, cfg)
    prompts = _plain(tokenizer, fmt.vocab_bytes, [render(e, tokenizer, cfg, shots) for e in examples])

    tails = [f">{e.answer}{cfg.answer_close}>" for e in examples]
    answers = _encode(tokenizer, fmt.vocab_bytes, tails)
    joined = _encode(tokenizer, fmt.vocab_bytes, [cfg.answer_open + tail for tail in tails])
    (opening,) = _encode(tokenizer, fmt.vocab_bytes, [cfg.answer_open])
    for example, answer, whole in zip(examples, answers, joined, strict=True):
        if opening + answer != whole:
            raise UserError(
                f"{_name(tokenizer)} does not cut between {cfg.answer_open!r} and '>' before the answer "
                f"{example.answer[:60]!r} of row {example.id}; use another prompt.answer_open or another tokenizer"
            )
        if not all(fmt.vocab_bytes[i] for i in answer):
            raise UserError(
                f"{_name(tokenizer)} has no token for some character of the answer {example.answer[:60]!r} "
                f"of row {example.id}; remove the row or use another tokenizer"
            )
    return [
        EncodedExample(e, np.asarray(p, np.int32), np.asarray(a, np.int32), _scored(a, fmt.vocab_bytes, cfg))
        for e, p, a in zip(examples, prompts, answers, strict=True)
    ]


def collate(
    rows: Sequence[EncodedExample], uid: Sequence[int] | np.ndarray, max_prompt: int, max_answer: int, pad_id: int
) -> Prompts:
    """Right-padded host arrays of widths S = max_prompt, A = max_answer.

    `uid` [P] is each row's position in the data stream.
    """
    tokens = np.full((len(rows), max_prompt), pad_id, np.int32)
    answer = np.full((len(rows), max_answer), pad_id, np.int32)
    scored = np.zeros((len(rows), max_answer), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row.prompt_ids)] = row.prompt_ids
        answer[i, : len(row.answer_ids)] = row.answer_ids
        scored[i, : len(row.answer_ids)] = row.answer_scored
    return Prompts(
        tokens=tokens,
        length=np.asarray([len(r.prompt_ids) for r in rows], np.int32),
        answer=answer,
        answer_length=np.asarray([len(r.answer_ids) for r in rows], np.int32),
        answer_scored=scored,
        uid=np.asarray(uid, np.int32),
    )


def no_chain_ids(fmt: ChainFormat) -> np.ndarray:
    """The empty scaffold `</think>\\n<answer` [t] that follows a prompt where no chain is wanted."""
    return np.asarray(fmt.close_think_ids, np.int32)


def completion_ids(
    row: EncodedExample,
    chain: str | Sequence[int] | np.ndarray | None,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ChainFormat,
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [t], segment [t]) of chain, closing tags, reference answer: the target of supervised fine-tuning.

    A `chain` of text is encoded; one of ids (a sampled one) is taken as it is; None or "" is the empty
    scaffold. Segments are CHAIN, TAG, REFERENCE of shapes.py.
    """
    if chain is None:
        chain = ()
    elif isinstance(chain, str):
        (chain,) = _encode(tokenizer, fmt.vocab_bytes, [chain])
    parts = [(CHAIN, chain), (TAG, fmt.close_think_ids), (REFERENCE, row.answer_ids)]
    ids = np.concatenate([np.asarray(part, np.int32) for _, part in parts])
    return ids, np.repeat(np.asarray([s for s, _ in parts], np.int32), [len(part) for _, part in parts])


# ---------------------------------------------------------------------------------------- pieces


def _validate(cfg: PromptConfig) -> None:
    for name in ("think_open", "think_close", "answer_open", "answer_close"):
        if not getattr(cfg, name):
            raise UserError(f"prompt.{name} is empty; give the tag, for example {getattr(PromptConfig, name)!r}")
    for name in ("answer_open", "answer_close"):
        if getattr(cfg, name).endswith(">"):
            raise UserError(
                f"prompt.{name} is {getattr(cfg, name)!r}; leave out its last '>', which is added after the seam"
            )


def _worked(example: Example, cfg: PromptConfig) -> Shots:
    if cfg.examples == 0:
        return ()
    shots = WORKED_EXAMPLES.get(example.task, ())
    if cfg.examples > len(shots):
        raise UserError(
            f"examples = {cfg.examples} but task {example.task!r} (row {example.id}) has {len(shots)} worked examples; "
            f"set examples to at most {len(shots)}"
            + ("" if shots else f" (tasks that have some: {', '.join(WORKED_EXAMPLES)})")
        )
    return shots[: cfg.examples]


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def _bytes(vocab_bytes: tuple[bytes, ...], ids: Sequence[int]) -> bytes:
    return b"".join(vocab_bytes[i] for i in ids)


def _plain(tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str]) -> list[list[int]]:
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    largest = max((max(ids, default=0) for ids in rows), default=0)
    if largest >= len(vocab_bytes):  # looked up in the model's embedding it would silently be another token
        raise UserError(
            f"{_name(tokenizer)} gives id {largest} but the model has {len(vocab_bytes)} tokens; "
            "use the tokenizer that belongs to the model"
        )
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, vocab_bytes: tuple[bytes, ...], texts: list[str]) -> list[list[int]]:
    """Ids of texts that continue another text. Tokenizers in the style of Llama 2 put a space before every
    text; there the ids are taken from behind a line feed, which never merges."""
    if _bytes(vocab_bytes, _plain(tokenizer, vocab_bytes, [">"])[0]) == b">":
        return _plain(tokenizer, vocab_bytes, texts)
    (anchor,) = _plain(tokenizer, vocab_bytes, ["\n"])
    return [ids[len(anchor) :] for ids in _plain(tokenizer, vocab_bytes, ["\n" + text for text in texts])]


def _scored(ids: list[int], vocab_bytes: tuple[bytes, ...], cfg: PromptConfig) -> np.ndarray:
    """[a] bool by byte offsets (characters may span tokens): which of the ids of `>answer</answer>` count."""
    if cfg.score_delims == "both":
        return np.ones(len(ids), bool)
    ends = np.cumsum([len(vocab_bytes[i]) for i in ids])
    starts = np.concatenate([[0], ends[:-1]])
    # Measured from both ends, because a tokenizer may normalise the answer between its delimiters.
    answer_end = ends[-1] - len(cfg.answer_close.encode() + b">")
    if cfg.score_delims == "close":
        answer_end += 1  # the token that holds the first character of the closing tag
    return (ends > len(b">")) & (starts < answer_end)


def _refuse_texts(examples: list[Example], tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig) -> None:
    """Texts whose ids would not mean what they say."""
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content.strip()]
    markup = re.compile("|".join(map(re.escape, control)) or r"(?!)")
    for e in examples:
        if not e.answer.strip():
            raise UserError(f"row {e.id} has an empty answer; give it a reference answer or remove it")
        if cfg.answer_close in e.answer:
            raise UserError(
                f"the answer of row {e.id} contains {cfg.answer_close!r}, which ends an answer; "
                "remove the row or choose another prompt.answer_close"
            )
        for tag in (cfg.think_close, cfg.answer_open):
            if tag in e.chain:
                raise UserError(
                    f"the chain of row {e.id} contains {tag!r}, which ends a chain; give the reasoning alone"
                )
        for text in (e.prompt, e.answer, e.chain, *(content for _, content in e.messages)):
            found = markup.search(text)
            if found:
                raise UserError(
                    f"row {e.id} contains {found[0]!r}, a control token of {_name(tokenizer)}; "
                    "give plain text, without the model's chat markup"
                )


def _longer(row: EncodedExample, cfg: PromptConfig) -> dict[str, int]:
    """Settings that the row has more tokens than, and how many it has."""
    sizes = {"max_prompt": len(row.prompt_ids), "max_answer": len(row.answer_ids)}
    return {field: n for field, n in sizes.items() if n > getattr(cfg, field)}


def _refuse_longer(field: str, cfg: PromptConfig, rows: list[EncodedExample]) -> None:
    long = [(row.example.id, n) for row in rows if (n := _longer(row, cfg).get(field))]
    if long:
        named = ", ".join(f"{uid} ({n})" for uid, n in long[:5]) + (", ..." if len(long) > 5 else "")
        raise UserError(
            f"prompt.{field} = {getattr(cfg, field)} tokens is too short for the {field.removeprefix('max_')} of "
            f"{len(long)} of {len(rows)} rows: {named}; set prompt.{field} to {max(n for _, n in long)} or remove them "
            f"(data.skip_bad_rows=True leaves such training rows out, held-out rows never)"
        )
