"""A proposer at an HTTP address, and the selection of a teacher's replies to learn from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rl_likelihood.data.prompt_checks import problems
from rl_likelihood.data.records import encodable
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rollouts.endpoint import Endpoint, message_of
from rl_likelihood.runtime import distributed
from rl_likelihood.search.proposer import Ask, Drawing, Length, Propose
from rl_likelihood.search.rounds import Finder, score
from rl_likelihood.shapes import Tags

Reply = tuple[str, str]  # chain and answer


def http_proposer(endpoint: Endpoint, drawing: Drawing, tags: Tags | None = None) -> Propose:
    """A proposer with a chat model at an HTTP address. It ignores the given beginning of a reply. A failed call has no
    reply. Of several processes only the first asks. `tags`: as in `text_of`."""

    cut = {"temperature": drawing.temperature} | ({"top_p": drawing.top_p} if drawing.top_p < 1 else {})

    def propose(asked: Sequence[Ask], call: int, length: Length) -> list[list[str]]:
        def body(ask: Ask, j: int) -> dict[str, Any]:
            said = [{"role": "user", "content": ask.message}]
            # Equal bodies are sent once, so the seed makes the replies to one message differ.
            seed = call * length.replies + j
            return {"messages": said, "max_tokens": length.tokens, "seed": seed} | cut

        bodies = [body(a, j) for a in asked for j in range(length.replies)]
        said = distributed.by_first(lambda: endpoint.ask(bodies, lambda reply: text_of(reply, tags)))
        groups = [said[i * length.replies : (i + 1) * length.replies] for i in range(len(asked))]
        return [[text for text in group if text is not None] for group in groups]

    return propose


def text_of(reply: Any, tags: Tags | None) -> str | None:
    """The text of a chat reply. If the server returns the reasoning separately, it is put before it in `tags`; without
    tags it is left out. None for no text, and for a text with half of a surrogate pair, which no file can hold."""
    message = message_of(reply)
    text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(text, str):
        return None
    if tags is not None and isinstance(reasoning, str):
        text = f"{tags.think_open}{reasoning}{tags.think_close}\n{text}"
    return text if encodable(text) else None


def parsed(reply: str, tags: Tags) -> Reply | None:
    """(chain, answer) of a reply in the format; None for any other reply."""
    answer = graders.extract_answer(reply, tags)
    chain = tags.chain_of(reply).strip().removeprefix(tags.think_open).strip()
    clean = not any(tag in chain for tag in (tags.think_open, tags.answer_close))
    return (chain, answer.strip()) if answer and answer.strip() and chain and clean else None


def chosen(f: Finder, part: list[int], replies: list[list[Reply]], pool: Pool | None) -> list[tuple[Reply | None, str]]:
    """For each question (the chosen reply, ""), or (None, the reason).

    With a grader, it is the first reply that is right. Without one, it is the reply after whose chain the whole
    reference has the highest likelihood, if that is higher than without a chain. A chain with markup, which training
    refuses, is never chosen.
    """
    clean = [_without_markup(f, i, group) for i, group in zip(part, replies, strict=True)]
    if pool is None:
        chains: list[list[str | None]] = [
            ["", *(chain if ok else None for (chain, _), ok in zip(group, own, strict=True))]
            for group, own in zip(replies, clean, strict=True)
        ]
        scores = score(f, [f.task.train[i] for i in part], chains, clip=math.inf)
        limit = f.task.config.sampler.max_chain
        return [_likeliest(group, values, limit) for group, values in zip(replies, scores, strict=True)]
    grader = f.task.config.eval.grader
    answers = [[answer for _, answer in group] for group in replies]
    marks = pool.grade_groups(grader, [f.task.train[i].example for i in part], answers)
    return [_first_right(*of_question) for of_question in zip(replies, marks, clean, strict=True)]


def _without_markup(f: Finder, i: int, group: list[Reply]) -> list[bool]:
    """Whether training takes the chain of each of these replies to question i."""
    rows = [dataclasses.replace(f.task.train[i].example, chain=chain) for chain, _ in group]
    return [not words for words in problems(rows, f.task.tokenizer, f.task.config.prompt)]


def _first_right(group: list[Reply], marks: list[bool | None], clean: list[bool]) -> tuple[Reply | None, str]:
    right = [j for j, mark in enumerate(marks) if mark]
    for j in right:
        if clean[j]:
            return group[j], ""
    if right:
        return None, "with markup"
    return None, "grader failed" if None in marks else "no right answer"


def _likeliest(group: list[Reply], values: list[float], limit: int) -> tuple[Reply | None, str]:
    without_chain, *with_chain = values
    best = min(range(len(group)), key=lambda j: with_chain[j], default=None)
    if best is not None and with_chain[best] < without_chain:
        return group[best], ""
    scored = any(map(math.isfinite, with_chain))
    return None, "the reference is not likelier" if scored else f"chain longer than {limit} tokens, or with markup"
