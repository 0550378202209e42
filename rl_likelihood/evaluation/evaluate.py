"""Evaluation on held-out questions: what a model answers, and how likely it finds the reference answers.

For every question: a greedy chain with its answer, `eval.samples` sampled chains with theirs, as many
answers of both kinds after no chain, and the log-probs of the reference answer after each of these chains, after a
chain of another question, and after none. All of it is one record of a file; evaluation/statistics.py makes the
numbers of it.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.evaluation import conversations, statistics, texts, trace, verse
from rl_likelihood.evaluation.records import FOLDER, identity_of, make_folder, read_or_begin, records_path
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.learner.batching import concat_rows, given_rollout, no_chain_rows, to_batch, without_sampled
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.architecture import Params
from rl_likelihood.progress import Progress, counted
from rl_likelihood.rewards import rules
from rl_likelihood.rollouts.host_rewards import candidate, grader_pool, sampled_texts
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import chains_words
from rl_likelihood.runtime.devices import Devices, batch_size, sample_all, sample_ids_all, sampler_weights, using
from rl_likelihood.runtime.lock import lock
from rl_likelihood.sampler import decode, engine
from rl_likelihood.settings import largest_divisor
from rl_likelihood.shapes import CHAIN, TAG, ChainFormat, Rollout
from rl_likelihood.task import EVALUATE, Task

EXAMPLES = 4  # questions whose greedy answers are kept with the numbers
AHEAD = 4  # batches of greedy answers that the sampler gets together
ROWS_AT_ONCE = 32  # scored in one forward, about: more does not fit the caches of a CPU

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and where it is kept.

    rows:     the questions, of which the first `eval.prompts` are used
    folder:   records are kept in `folder`/evaluations, under a name (`records`) for these weights, questions and
              settings; those that are there already are not made again
    initial:  parameters that score the same rows too, where the model of the run's begin is asked (eval.by_initial)
    between:  called between batches; it may raise to break off
    say:      progress, at the start and from time to time; on a terminal a bar (on `stream`, or stdout)
    """

    task: Task
    params: Params
    rows: list[EncodedExample]
    devices: Devices | None = None
    step: int = 0
    folder: Path | None = None
    between: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda _: None
    stream: TextIO | None = None
    initial: Params | None = None


def evaluate(e: Evaluation, fast: bool = False) -> dict[str, Any]:
    """The metrics of `statistics.summary`, and samples, seconds, examples.

    The same parameters give the same chains, whatever eval.batch_prompts, eval.prompts and eval.samples are: a row's
    random key is made of its question's index and its own in the group. Log-probs differ by float rounding at most.

    `fast`: eval.fast_prompts and eval.fast_samples instead; else, with eval.mc_samples, also what only so many chains
    give, from the first eval.mc_prompts of the rows and a file of their own (`records_mc`).
    """
    c = e.task.config.eval
    n = min(len(e.rows), c.prompts, (c.fast_prompts if fast else 0) or c.prompts)
    samples = c.fast_samples if fast and c.fast_samples >= 0 else c.samples
    out = _evaluated(e, n, samples)
    if fast or c.mc_samples <= samples:
        return out
    more = _evaluated(e, min(n, c.mc_prompts or n), c.mc_samples)
    names = {"mc_samples": "samples", "mc_grader_failures": "grader_failures", "records_mc": "records"}
    of_more = {name: more[k] for name, k in names.items() if k in more}
    return statistics.with_more(out, more) | of_more | {"seconds": round(out["seconds"] + more["seconds"], 3)}


def _evaluated(e: Evaluation, n: int, samples: int) -> dict[str, Any]:
    """The metrics over the first `n` rows with so many samples each."""
    start, path, records = time.perf_counter(), None, []
    with contextlib.ExitStack() as stack:
        if e.folder is not None:
            identity = identity_of(e.task, e.params, e.rows, samples, e.initial is not None)
            path = records_path(e.folder, e.step, identity)
            make_folder(path.parent)
            if distributed.first():  # two commands would both append
                stack.enter_context(lock(path.parent, path.with_suffix(".lock").name, e.say))
            records = distributed.share(read_or_begin(path, e.step, identity)[:n])
            if records:
                e.say(f"{len(records)} of {n} questions have been evaluated already ({path})")
        done = len(records)
        if done < n:
            e.say(f"evaluating {counted(n - done, 'question')}, {chains_words(samples)}")

        bar = Progress("evaluated", n, "questions", e.say, done=done, stream=e.stream)
        progress = stack.enter_context(bar)
        pool = stack.enter_context(grader_pool(e.task.config))
        made_of = _records(e, n, samples, records, pool, progress)
        if e.task.config.converses:
            made_of = conversations.records(e, range(done, n), samples)
        for made in made_of:
            if path is not None:
                for record in made:
                    run_files.append(path, {"step": e.step, **record})
            records += made
            progress.advance(len(made))
    out = statistics.summary(records) | {"samples": samples, "seconds": round(time.perf_counter() - start, 3)}
    if path is not None:
        out["records"] = f"{FOLDER}/{path.name}"
    return out | {"examples": [_example(r) for r in records[:EXAMPLES] if "right" in r["greedy"]]}


def _example(record: Record) -> dict[str, Any]:
    greedy = record["greedy"]
    who = {"assistant": "model", "environment": "reply"}
    conversation = "\n".join(f"{who[m['role']]}: {m['text']}" for m in greedy.get("messages", ()))
    text = greedy.get("text", conversation)
    return {"prompt": record["prompt"], "reference": record["reference"], "text": text, "right": greedy["right"]}


# ------------------------------------------------------------------------------------------- records


class Chain(NamedTuple):
    """A sampled chain in ids, with the tags that were forced on it."""

    chain: list[int]
    tag: list[int]


class Batch(NamedTuple):
    """Some questions, what was sampled for them, and what that scored. Of `answers` and `marks` [P][...] the first
    1 + samples follow chains, the others none; `logp` is `_scores`'s, `initial` that by the initial model; `swapped`:
    whose chains were scored."""

    first: int  # index of its first question
    rows: list[EncodedExample]
    uid: np.ndarray
    rollout: Rollout
    texts: list[list[str]]
    answers: list[list[str | None]] | None = None
    marks: list[list[bool | None]] | None = None
    logp: np.ndarray | None = None
    initial: np.ndarray | None = None
    swapped: list[Chain | None] | None = None


def _records(
    e: Evaluation, n: int, samples: int, before: list[Record], pool: Pool, progress: Progress
) -> Iterator[list[Record]]:
    """The records of the first `n` rows that come after those in `before`, a batch at a time."""
    first, task = len(before), e.task
    if first >= n:
        return
    c = task.config
    at_once = min(c.eval.batch_prompts, c.eval.batch_prompts * (1 + c.eval.samples) // (1 + samples))
    size = batch_size(even_size(n - first, max(at_once, 1)), e.devices)
    graded = c.eval.grader != "none"
    answered = graded or c.eval.texts != "none"
    width = max(c.prompt.max_prompt, *(len(r.prompt_ids) for r in e.rows[:n]))
    # Prompts with and without the empty scaffold are sampled with one width, so that one program reads both.
    sampled_width = width + (len(task.fmt.close_think_ids) if samples and answered else 0)
    sources = [] if graded or not answered else e.task.train
    trained = texts.runs_of(x for row in sources for x in (row.example.prompt, row.example.answer))
    sampler = task.eval_sampler(samples, width_multiple=0, max_sampled_answer=c.eval_answer if answered else 0)
    weights = sampler_weights(e.params, task.model, e.devices)
    # The chain that is scored with the next question's answer; a key of the files. The first question takes the second
    # one's, so that no number depends on the size of the batches; a batch of one question leaves it without.
    previous = Chain(**before[-1]["first_sampled"]) if before and samples else None
    progress.note = sampling = "sampling"
    for batch in _sampled(e, weights, range(first, n), size, sampled_width, sampler):
        if answered:
            no_chain: list[list[Any]] = [[]] * len(batch.rows)
            if samples:
                progress.note = "sampling without a chain"
                # With room for a chain that it does not need: one program samples with and without one.
                limited = dataclasses.replace(sampler, limit=c.eval_answer)
                no_chain = _answers_without_chain(task, weights, batch, sampled_width, limited)
            by_chain = [[_answer_in(text, task) for text in group] for group in batch.texts]
            answers = [[*group, *without] for group, without in zip(by_chain, no_chain, strict=True)]
            examples, grader = [row.example for row in batch.rows], task.config.eval.grader
            marks = pool.grade_groups(grader, examples, answers) if graded else None
            batch = batch._replace(answers=answers, marks=marks)
        if samples:
            progress.note = "scoring"
            own = [first_sampled_chain(batch.rollout, i) for i in range(len(batch.rows))]
            if previous is None and min(len(own), n) > 1:  # of the first question; `own` may have padding
                previous = own[1]
            swapped, previous = [previous, *own[:-1]], own[-1]
            models = [p for p in (e.params, e.initial) if p is not None]
            prompts = batch.rollout.prompts
            rollout = batch.rollout.replace(prompts=prompts.replace(tokens=prompts.tokens[:, :width]))
            rollout = without_sampled(rollout, sampler.max_sampled_answer, task.fmt.pad_id)
            logp = [_scores(e, p, batch.rows, rollout, swapped) for p in models]
            batch = batch._replace(swapped=swapped, logp=logp[0], initial=logp[1] if len(logp) > 1 else None)
        yield [_record(task, batch, i, samples, trained) for i in range(min(len(batch.rows), n - batch.first))]
        progress.note = sampling


def even_size(n: int, most: int) -> int:
    """The size of as few batches of at most `most` rows as hold `n` rows, so that little of the last one is padding."""
    return math.ceil(n / math.ceil(n / most))


def _record(task: Task, batch: Batch, i: int, samples: int, trained: texts.Runs) -> Record:
    """Question i of a batch: one entry for each chain, the greedy one first, and as many for no chain."""
    row, written, chains = batch.rows[i], batch.texts[i], range(1 + samples)
    entries: list[Record] = [_tokens(task, batch.rollout, i, j) for j in chains]
    direct: list[Record] = [{} for _ in entries] if samples else []
    if batch.logp is not None:
        scored = [*batch.logp[i, : len(entries)], batch.logp[i, -1]]
        for entry, value in zip((*entries, direct[0]), scored, strict=True):
            entry["log_prob"] = float(value)
    if batch.answers is not None:
        answers = batch.answers[i]
        marks = [{}] * len(answers) if batch.marks is None else [{"right": mark} for mark in batch.marks[i]]
        for entry, answer, mark in zip((*entries, *direct), answers, marks, strict=True):
            entry |= {"answer": answer, **mark}
            if batch.marks is None and answer is not None:
                entry["copied"] = texts.copied(answer, trained)
                entry |= verse.form(answer, row.example.answer) if task.config.eval.texts == "verse" else {}
        for entry, vote in zip(entries[1:], votes(answers[1 : len(entries)]), strict=True):
            entry["vote"] = vote
    greedy, *sampled = entries
    record = {
        "index": int(batch.uid[i]),
        "id": row.example.id,
        "prompt": row.example.prompt,
        "reference": row.example.answer,
        "answer_tokens": max(int(row.answer_scored.sum()), 1),
        "greedy": {"text": written[0], **greedy},
        "samples": sampled,
    }
    if not samples:
        return record
    sampled[0] = {"text": written[1], **sampled[0]}
    if batch.initial is not None:
        by = batch.initial[i].tolist()
        record["by_initial"] = {"samples": by[1 : len(entries)], "swapped": by[-2], "no_chain": by[-1]}
    if task.config.eval.trace and batch.logp is not None:
        parts = batch.logp[i, len(entries) : -2]
        record["trace"] = [float(x) for x in (batch.logp[i, -1], *parts, batch.logp[i, 1])]
    words = [task.fmt.chain_of(text) for text in written[1:]]
    return record | {
        "no_chain": {**direct[0], "chain_tokens": len(task.fmt.close_think_ids), "samples": direct[1:]},
        "swapped": float(batch.logp[i, -2]) if batch.logp is not None and batch.swapped and batch.swapped[i] else None,
        "transition_words": rules.transition_rate(words, task.config.report.transition_words),
        "first_sampled": first_sampled_chain(batch.rollout, i)._asdict(),
    }


def _sampled(
    e: Evaluation, weights: Params, indices: range, size: int, width: int, sampler: decode.SamplerConfig
) -> Iterator[Batch]:
    """Batches of `size` of the rows at `indices`, sampled.

    Of single rows several batches are sampled together, still `size` rows at a time: those that stop make room, and
    only the last ones wait for the longest. Groups are not, because the rows of one share its prompt while all go on.
    """
    together, multiple = size, size  # groups are scored too: one shape, one program
    if sampler.group_size == 1 and engine.devices_of(weights) == 1:
        together, multiple = AHEAD * size, batch_size(1, e.devices)
        sampler = dataclasses.replace(sampler, slots=sampler.slots or size)
    for start in range(indices.start, indices.stop, together):
        e.between()
        rows = e.rows[start : min(start + together, indices.stop)]
        rows = rows + rows[-1:] * (-len(rows) % multiple)
        uid = np.arange(start, start + len(rows))
        rollout = sample_all(weights, e.task.collate(rows, uid, width), e.task.key(EVALUATE), sampler)
        texts = sampled_texts(e.task, rollout)
        for i in range(0, len(rows), size):
            if i:
                e.between()
            part = slice(i, i + size)
            of_part = jax.tree.map(lambda x, part=part: x[part], rollout)
            yield Batch(start + i, rows[part], uid[part], of_part, texts[part])


def _tokens(task: Task, rollout: Rollout, i: int, j: int) -> Record:
    """What a chain's ids say: tokens with all tags, tokens before any tag, whether it opened the answer itself."""
    kinds, ids = rollout.segment[i, j], rollout.completion[i, j]
    return {
        "chain_tokens": int(((kinds == CHAIN) | (kinds == TAG)).sum()),
        "own_tokens": tokens_before_tags(ids[kinds == CHAIN], task.fmt),
        "truncated": bool(rollout.truncated[i, j]),
    }


def tokens_before_tags(ids: np.ndarray, fmt: ChainFormat) -> int:
    """Ids of a chain that begin before its first closing tag, or before its answer tag if it has none."""
    pieces = [fmt.vocab_bytes[i] for i in ids]
    text = b"".join(pieces)
    ends = [at for tag in (fmt.think_close, fmt.answer_open) if (at := text.find(tag.encode())) >= 0]
    end = ends[0] if ends else len(text)
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    return int((starts < end).sum())


def _answer_in(text: str, task: Task) -> str | None:
    """The answer in what was sampled. One that nobody grades may be cut."""
    graded = task.config.eval.grader != "none"
    return graders.extract_answer(text if graded else text + task.fmt.answer_close, task.fmt)


def votes(answers: list[str | None]) -> list[int | None]:
    """For each answer the number of the first that is the same candidate; None where there is no answer."""
    first: dict[object, int] = {}
    return [None if a is None else first.setdefault(candidate(a), i) for i, a in enumerate(answers)]


# ------------------------------------------------------------------------------------------- answers


def _answers_without_chain(
    task: Task, weights: Params, batch: Batch, width: int, sampler: decode.SamplerConfig
) -> list[list[str | None]]:
    """Answers in the rows of `sampler`, the first of them greedy, after the empty scaffold `</think> <answer`.

    Their random keys are not those of the chains.
    """
    fmt, scaffold = task.fmt, np.asarray(task.fmt.close_think_ids, np.int32)
    opened = [dataclasses.replace(r, prompt_ids=np.concatenate([r.prompt_ids, scaffold])) for r in batch.rows]
    prompts = task.collate(opened, batch.uid, width)
    key = task.key(EVALUATE, 1)
    ids, _, length = sample_ids_all(weights, prompts, key, sampler, fmt.answer_close, sampler.max_sampled)
    text_of = lambda row, n: task.tokenizer.decode(row[:n], skip_special_tokens=True)
    return [
        [_answer_in(fmt.answer_open + text_of(*row), task) for row in zip(*group, strict=True)]
        for group in zip(ids, length, strict=True)
    ]


# ------------------------------------------------------------------------------------------- log-probs


def first_sampled_chain(rollout: Rollout, i: int) -> Chain:
    kinds, ids = rollout.segment[i, 1], rollout.completion[i, 1]
    return Chain(ids[kinds == CHAIN].tolist(), ids[kinds == TAG].tolist())


def _scores(
    e: Evaluation, params: Params, rows: list[EncodedExample], rollout: Rollout, swapped: list[Chain | None]
) -> np.ndarray:
    """Log-probs of the reference answer [P, 1 + samples + 2]: after each chain, another question's chain, no chain.
    With eval.trace, after each chain, parts of the first sampled one, another question's, none.

    The rows of `rollout` have no sampled answers. Where there is no other question's chain the last but one means
    nothing.
    """
    task, answers = e.task, rollout.prompts
    pad, width = task.fmt.pad_id, rollout.completion.shape[-1]
    chains = [chain or Chain([], list(task.fmt.close_think_ids)) for chain in swapped]
    others = [
        completion_ids(row, chain.chain, task.tokenizer, task.fmt, chain.tag)
        for chain, row in zip(chains, rows, strict=True)
    ]
    parts = _parts(task, rows, rollout) if task.config.eval.trace else []
    given = [given_rollout(answers, after, pad, width) for after in (*parts, others)]
    no_chain = no_chain_rows(answers, task.fmt.close_think_ids, pad)  # few tokens, so not padded to a chain's width
    batch = to_batch(concat_rows(rollout, *given)).replace(no_chain=no_chain)
    step = dataclasses.replace(
        task.config.step,
        two_branches=False,
        scored_only=True,
        temperature=1.0,
        micro_batch_prompts=largest_divisor(len(rows), max(1, ROWS_AT_ONCE // (batch.completion.shape[1] + 1))),
    )
    mesh = e.devices and e.devices.learner
    with using(mesh):
        out = make_score(task.model, step, mesh)(params, batch)
    pairs = (batch.scored, out.stats.log_prob), (no_chain.scored, out.no_chain_logp)
    return np.concatenate([_sums(scored.sum(-1), np.asarray(logp)) for scored, logp in pairs], 1)


def _sums(count: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of the first `count` values of each row."""
    return np.where(np.arange(values.shape[-1]) < count[..., None], values, 0).sum(-1, dtype=np.float64)


def _parts(task: Task, rows: list[EncodedExample], rollout: Rollout) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For each cut of TRACE, every question's answer after that part of its first sampled chain and closing tags."""
    chains = [first_sampled_chain(rollout, i).chain for i in range(len(rows))]
    parts = [trace.cuts(ids, tokens_before_tags(np.asarray(ids, np.int32), task.fmt)) for ids in chains]
    after = lambda part, row: completion_ids(row, part, task.tokenizer, task.fmt)
    return [[after(part, row) for part, row in zip(cut, rows, strict=True)] for cut in zip(*parts, strict=True)]
