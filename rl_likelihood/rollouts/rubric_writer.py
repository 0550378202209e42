"""Writes rubrics with a model, local or at an HTTP address. Its prompt shows the most similar known rubrics and
criteria."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from rl_likelihood.data import prompts, rubrics, tokenizer
from rl_likelihood.data.order import in_batches
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.retrieval import Embed, Store, refuse_store
from rl_likelihood.data.rubrics import Criterion, Rubric
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.errors import UserError
from rl_likelihood.progress import counted
from rl_likelihood.rewards.rubric import RubricSettings
from rl_likelihood.rollouts.endpoint import CHAT, EMBEDDINGS, of_first
from rl_likelihood.rollouts.http_judge import text_of
from rl_likelihood.rollouts.local_judge import describe_decoder, load_decoder
from rl_likelihood.rollouts.similar_answers import WIDTHS, decoder_vectors
from rl_likelihood.runtime.console import say
from rl_likelihood.sampler import decode
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example
from rl_likelihood.task import load_tokenizer

AT_ONCE = 8  # questions per batch of a local model
TEMPERATURE = 0.2
END = "\n\n\n"  # stops a reply that continues after its list

ASK = """Write a grading rubric for answers to the question below.

A rubric is a JSON list. Each entry has "criterion", one demand that can be checked by reading the answer alone, and \
"points": {points} Write at most {items} entries of different content. Do not copy the examples: they are for other \
questions.
{cases}{pool}
Question:
{question}

Reply with the JSON list alone."""

POINTS = (
    "a whole number from 1 to 10 for what a good answer does, or from -10 to -1 for a fault that it may have. "
    "Some entries are faults."
)
POSITIVE = "a whole number from 1 to {}. Word each entry as what a good answer does; of a fault say that it is absent."
MOST_IN_VECTOR = 1e9  # of a number in an embedding, so that sums of squares stay finite in float32

Write = Callable[[Sequence[str]], list[str | None]]  # messages -> replies, None for a missing reply


class WriterPrompts:
    """The known rubrics and criteria, and the writer's prompts that show the most similar ones."""

    def __init__(self, c: Config, seeds: Sequence[Rubric], embed: Embed | None) -> None:
        self.c, self.task = c.rubric, c.judge.task
        self.seeds = [rubric for rubric in seeds if rubric.criteria]
        self.criteria = rubrics.distinct(x for rubric in seeds for x in rubric.criteria)
        self.cases, self.pool = (Store(c.rubric.retriever, embed, c.rubric.store) for _ in range(2))
        self.cases.add([rubric.prompt for rubric in self.seeds])
        self.pool.add([x.text for x in self.criteria])

    def messages(self, questions: Sequence[str]) -> list[str]:
        """The writer's prompt for each question."""
        cases, pool = self.cases.search(questions, self.c.cases), self.pool.search(questions, self.c.pool)
        return [self._message(*row) for row in zip(questions, cases, pool, strict=True)]

    def _message(self, question: str, cases: Sequence[int], pool: Sequence[int]) -> str:
        examples = "".join(
            f"\nAn example. Question:\n{self.seeds[i].prompt}\nIts rubric:\n{_json(self.seeds[i].criteria)}\n"
            for i in cases
        )
        similar = _json([self.criteria[i] for i in pool])
        similar = f"\nCriteria of questions that are near:\n{similar}\n" if pool else ""
        asked = f"{self.task}\n\n{question}" if self.task else question
        most = int(rubrics.UNIVERSAL.points) if self.c.aggregate == "checklist" else 10  # beside the criterion of 100
        points = POSITIVE.format(most) if self.c.aggregate in rubrics.ALL_POSITIVE else POINTS
        return ASK.format(points=points, items=self.c.items, cases=examples, pool=similar, question=asked)


def _json(criteria: Sequence[Criterion]) -> str:
    return json.dumps([{"criterion": c.text, "points": c.points} for c in criteria], ensure_ascii=False)


def written(question: str, id: str, reply: str | None, r: RubricSettings) -> Rubric | None:
    """The rubric in a reply; None if it has none, or one that a run with these settings refuses."""
    criteria = rubrics.distinct(rubrics.criteria_in(reply or ""))[: r.items]
    if not criteria:
        return None
    rubric = Rubric(question, id, tuple(criteria))
    try:
        rubrics.refuse([rubrics.of_record(rubrics.to_record(rubric), id)], r.aggregate)
    except UserError:
        return None
    return rubric


def writer_of(c: Config, workdir: Path) -> tuple[Write, Embed | None]:
    """(the config's writer, the function that embeds texts, or None if the retriever needs no vectors)."""
    name = c.rubric.writer or c.judge.model
    refuse_store(c.rubric.store, c.rubric.retriever if c.rubric.seeds else "")
    if "http" in c.rubric.retriever and "://" not in name:
        raise UserError(f"rubric.retriever is {c.rubric.retriever!r}, but {name!r} is no address; set bm25 or decoder")
    if "decoder" in c.rubric.retriever and "://" in name:
        raise UserError(f"rubric.retriever is 'decoder', but the writer is an address, {name!r}; set bm25 or http")
    if "://" in name:
        return _remote(c, workdir, name)
    return _local(c, name)


def _remote(c: Config, workdir: Path, url: str) -> tuple[Write, Embed | None]:
    fields = ("rubric.writer", "rubric.writer_name") if c.rubric.writer else ("judge.model", "judge.name")
    endpoint = of_first(c.judge, url, c.rubric.writer_name or c.judge.name, workdir, *fields)

    def write(messages: Sequence[str]) -> list[str | None]:
        messages_sent = [{"role": "user", "content": m} for m in messages]
        limits = {"temperature": TEMPERATURE, "max_tokens": c.rubric.max_new}
        read = functools.partial(rubric_text, r=c.rubric)
        return endpoint.ask([{"messages": [m], **limits} for m in messages_sent], read, CHAT)

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = endpoint.ask([{"input": text} for text in texts], vector_of, EMBEDDINGS)
        if any(v is None for v in vectors) or len({len(v) for v in vectors}) > 1:
            why = dict(endpoint.failures) or "vectors of several lengths"
            raise UserError(f"rubric.retriever: {url} gives no vectors ({why}); set rubric.retriever=bm25")
        return np.asarray(vectors, np.float32)

    return write, embed if "http" in c.rubric.retriever else None


def rubric_text(reply: object, r: RubricSettings) -> str | None:
    """The text of a reply that has a usable rubric, else None; a later call then repeats the request."""
    text = text_of(reply)
    return text if written("?", "", text, r) else None


def vector_of(reply: object) -> list[float] | None:
    """The vector in a reply of /v1/embeddings, or None."""
    try:
        vector = [float(x) for x in reply["data"][0]["embedding"]]  # type: ignore[index]
    except (TypeError, KeyError, IndexError, ValueError):
        return None
    return vector if vector and np.abs(vector).max() <= MOST_IN_VECTOR else None


def _local(c: Config, path: str) -> tuple[Write, Embed | None]:
    _, tokenizer_at = describe_decoder(path, "rubric.writer" if c.rubric.writer else "judge.model")
    text, eos_ids = load_tokenizer(tokenizer_at, c.judge.template, "judge.template")
    model, params = load_decoder(path)
    params = jax.device_put(params, jax.local_devices()[0])
    vocab = tokenizer.vocab_bytes(text, model.vocab_size)
    fmt = prompts.chain_format(text, vocab, eos_ids, c.prompt)
    sampler = decode.SamplerConfig(model, fmt, group_size=1, temperature=TEMPERATURE)
    weights = decode.prepare(params, model)

    def write(messages: Sequence[str]) -> list[str | None]:
        rendered = [prompts.rendered(text, [{"role": "user", "content": m}], c.prompt.date) for m in messages]
        ids = ids_of(text, vocab, rendered)
        out: list[str | None] = [None] * len(ids)
        fits = [i for i, row in enumerate(ids) if len(row) + c.rubric.max_new <= model.max_position]
        if len(fits) < len(ids):
            say(
                f"warning: the writer's prompt is too long for its {model.max_position} positions for "
                f"{counted(len(ids) - len(fits), 'question')}; lower rubric.cases, rubric.pool or rubric.max_new"
            )
        for start, part in in_batches(fits, AT_ONCE):
            width = -(-max(len(ids[i]) for i in part) // WIDTHS) * WIDTHS
            rows = [_bare(ids[i]) for i in part]
            collated = prompts.collate(rows, np.arange(start, start + AT_ONCE), width, 1, fmt.pad_id)
            key = jax.random.key(c.seed)
            sampled_ids, _, length = decode.sample_ids(weights, collated, key, sampler, END, c.rubric.max_new)
            for i, row, n in zip(fits[start:], sampled_ids[:, 0], length[:, 0], strict=False):
                out[i] = text.decode(row[:n], skip_special_tokens=True)
        return out

    embed = functools.partial(decoder_vectors, model, params, lambda texts: ids_of(text, vocab, list(texts)))
    return write, embed if "decoder" in c.rubric.retriever else None


def _bare(ids: Sequence[int]) -> EncodedExample:
    """An example with only a prompt."""
    return EncodedExample(Example("", "", ""), np.asarray(ids, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))
