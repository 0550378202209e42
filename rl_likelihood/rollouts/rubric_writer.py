"""Who writes rubrics: a model that replies to a prompt with the nearest known rubrics and criteria, here or behind an
address."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from rl_likelihood.data import prompts, rubrics, tokenizer
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.retrieval import Embed, Store, refuse_store
from rl_likelihood.data.rubrics import Criterion, Rubric
from rl_likelihood.data.token_ids import ids_of
from rl_likelihood.learner.judge import mean_state
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.rollouts.asked_judge import http_settings
from rl_likelihood.rollouts.endpoint import CHAT, EMBEDDINGS, Endpoint
from rl_likelihood.rollouts.http_judge import text_of
from rl_likelihood.rollouts.local_judge import as_judge, describe_decoder, load_decoder
from rl_likelihood.sampler import decode
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example, UserError
from rl_likelihood.task import load_tokenizer

WIDTHS = 64  # prompts are padded to a multiple of this: each width compiles once
MOST_EMBEDDED = 256  # tokens of a text that its vector is made of
AT_ONCE = 8  # questions that one call of a local model writes for, and texts that it embeds
TEMPERATURE = 0.2
END = "\n\n\n"  # of a reply that goes on after its list

ASK = """Write a grading rubric for answers to the question below.

A rubric is a JSON list. Each entry has "criterion", one demand that can be checked by reading the answer alone, and \
"points": a whole number from 1 to 10 for what a good answer does, or from -10 to -1 for a fault that it may have. \
Write at most {items} entries of different content, faults among them. Do not copy the examples: they are for other \
questions.
{cases}{pool}
Question:
{question}

Reply with the JSON list alone."""

Write = Callable[[Sequence[str]], list[str | None]]  # messages to replies, None where there is none


class Shown:
    """Known rubrics and criteria, and what of them is shown for a question."""

    def __init__(self, c: Config, seeds: Sequence[Rubric], embed: Embed | None) -> None:
        self.c, self.seeds = c.rubric, list(seeds)
        self.criteria = rubrics.distinct(x for rubric in seeds for x in rubric.criteria)
        self.cases, self.pool = (Store(c.rubric.retriever, embed, c.rubric.store) for _ in range(2))
        self.cases.add([rubric.prompt for rubric in seeds])
        self.pool.add([x.text for x in self.criteria])

    def messages(self, questions: Sequence[str]) -> list[str]:
        """What the writer is asked for each question."""
        cases, pool = self.cases.search(questions, self.c.cases), self.pool.search(questions, self.c.pool)
        return [self._message(*row) for row in zip(questions, cases, pool, strict=True)]

    def _message(self, question: str, cases: Sequence[int], pool: Sequence[int]) -> str:
        shown = "".join(
            f"\nAn example. Question:\n{self.seeds[i].prompt}\nIts rubric:\n{_json(self.seeds[i].criteria)}\n"
            for i in cases
        )
        near = _json([self.criteria[i] for i in pool])
        near = f"\nCriteria of questions that are near:\n{near}\n" if pool else ""
        return ASK.format(items=self.c.items, cases=shown, pool=near, question=question)


def _json(criteria: Sequence[Criterion]) -> str:
    return json.dumps([{"criterion": c.text, "points": c.points} for c in criteria], ensure_ascii=False)


def written(example: Example, reply: str | None, items: int) -> Rubric | None:
    """The rubric in a reply; None where there is none."""
    criteria = rubrics.distinct(rubrics.criteria_in(reply or ""))[:items]
    return Rubric(example.prompt, example.id, tuple(criteria)) if criteria else None


def writer_of(c: Config, workdir: Path) -> tuple[Write, Embed | None]:
    """The config's writer, and what makes vectors where the retriever asks for them."""
    name = c.rubric.writer or c.judge.model
    refuse_store(c.rubric.store)
    if "http" in c.rubric.retriever and "://" not in name:
        raise UserError(f"rubric.retriever is {c.rubric.retriever!r}, but {name!r} is no address; set bm25 or decoder")
    if "decoder" in c.rubric.retriever and "://" in name:
        raise UserError(f"rubric.retriever is 'decoder', but the writer is an address, {name!r}; set bm25 or http")
    if "://" in name:
        return _remote(c, workdir, name)
    return _local(c, name)


def _remote(c: Config, workdir: Path, url: str) -> tuple[Write, Embed | None]:
    model = c.rubric.writer_name or c.judge.name
    settings = http_settings(c.judge, workdir, url, model, "rubric.writer" if c.rubric.writer else "judge.model")
    endpoint = Endpoint(settings)
    endpoint.refuse_unreachable()

    def write(messages: Sequence[str]) -> list[str | None]:
        asked = [{"role": "user", "content": m} for m in messages]
        limits = {"temperature": TEMPERATURE, "max_tokens": c.rubric.max_new}
        return endpoint.ask([{"messages": [m], **limits} for m in asked], rubric_text, CHAT)

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = endpoint.ask([{"input": text} for text in texts], vector_of, EMBEDDINGS)
        if any(v is None for v in vectors) or len({len(v) for v in vectors}) > 1:
            why = dict(endpoint.failures) or "vectors of several lengths"
            raise UserError(f"rubric.retriever: {url} gives no vectors ({why}); set rubric.retriever=bm25")
        return np.asarray(vectors, np.float32)

    return write, embed if "http" in c.rubric.retriever else None


def rubric_text(reply: object) -> str | None:
    """The text of a reply with criteria in it; None for any other, which a later call asks for again."""
    text = text_of(reply)
    return text if text and rubrics.criteria_in(text) else None


def vector_of(reply: object) -> list[float] | None:
    """The vector of a reply of /v1/embeddings; None where there is none."""
    try:
        vector = [float(x) for x in reply["data"][0]["embedding"]]  # type: ignore[index]
    except (TypeError, KeyError, IndexError, ValueError):
        return None
    return vector if vector and np.isfinite(vector).all() else None


def _local(c: Config, path: str) -> tuple[Write, Embed | None]:
    _, at = describe_decoder(path)
    text, eos_ids = load_tokenizer(at, c.judge.template)
    model, params = load_decoder(path)
    model = as_judge(model, jax.default_backend())
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
        for start in range(0, len(fits), AT_ONCE):
            part = fits[start : start + AT_ONCE]
            width = -(-max(len(ids[i]) for i in part) // WIDTHS) * WIDTHS
            rows = [_bare(ids[i]) for i in (part + part[-1:] * AT_ONCE)[:AT_ONCE]]  # always as many: one program
            asked = prompts.collate(rows, np.arange(start, start + AT_ONCE), width, 1, fmt.pad_id)
            key = jax.random.key(c.seed)
            made, _, length = decode.sample_ids(weights, asked, key, sampler, END, c.rubric.max_new)
            for i, row, n in zip(part, made[:, 0], length[:, 0], strict=False):
                out[i] = text.decode(row[:n], skip_special_tokens=True)
        return out

    embed = functools.partial(decoder_vectors, model, params, lambda texts: ids_of(text, vocab, list(texts)))
    return write, embed if "decoder" in c.rubric.retriever else None


def _bare(ids: Sequence[int]) -> EncodedExample:
    """A prompt that nothing is known about."""
    return EncodedExample(Example("", "", ""), np.asarray(ids, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))


def decoder_vectors(
    model: ModelConfig, params: Params, encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str]
) -> np.ndarray:
    """[n, D] `mean_state` of texts, cut at MOST_EMBEDDED tokens."""
    rows = [ids[:MOST_EMBEDDED] for ids in encode(texts)]
    width = -(-max(map(len, rows)) // WIDTHS) * WIDTHS
    out, run = [], jax.jit(mean_state, static_argnums=1)
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        tokens = np.zeros((AT_ONCE, width), np.int32)
        for i, ids in enumerate(part):
            tokens[i, : len(ids)] = ids
        length = np.asarray([len(ids) for ids in part] + [1] * (AT_ONCE - len(part)), np.int32)
        out.append(np.asarray(run(params, model, tokens, length))[: len(part)])
    return np.concatenate(out)
