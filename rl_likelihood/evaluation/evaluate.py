"""Evaluation on held-out questions: what a model answers, and how likely it finds the reference answers.

For every question: a greedy chain with its answer, `eval.samples` chains with theirs at temperature 1, as many
answers of both kinds after no chain, and the log-probs of the reference answer after each of these chains, after a
chain of another question, and after none. All of it is one record of a file; report/statistics.py makes the numbers
of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rl_likelihood.config import largest_divisor
from rl_likelihood.data.prompts import EncodedExample, completion_ids, no_chain_ids
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.records import FOLDER, identity_of, kept, make_folder, records_path
from rl_likelihood.grading import graders
from rl_likelihood.grading.pool import Pool
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.decoder import Params
from rl_likelihood.rewards import rules
from rl_likelihood.rollouts.host_rewards import candidate
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import duration
from rl_likelihood.runtime.lock import lock
from rl_likelihood.sampler import decode, engine
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, ChainFormat, Rollout
from rl_likelihood.task import EVALUATE, World, share_of, using

EXAMPLES = 4  # questions whose greedy answers are kept with the numbers
AHEAD = 4  # batches of greedy answers that the sampler gets together
ROWS_AT_ONCE = 32  # scored in one forward, about: more does not fit the caches of a CPU
EVERY = 15.0  # seconds between words of progress

Record = dict[str, Any]
# One compiled scorer for all evaluations of a run.
_score_of = functools.lru_cache(maxsize=4)(make_score)


def evaluate(
    world: World,
    params: Params,
    rows: list[EncodedExample],
    between: Callable[[], None] = lambda: None,
    *,
    fast: bool = False,
    step: int = 0,
    folder: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The metrics of `statistics.summary` over the first `eval.prompts` of `rows`, and samples, seconds, examples.

    The same parameters give the same chains, whatever eval.batch_prompts, eval.prompts and eval.samples are: a row's
    random key is made of its question's place and its own in the group. Log-probs differ by float rounding at most.

    fast:     eval.fast_prompts and eval.fast_samples instead; else, with eval.mc_samples, also what only so many
              chains give, from the first eval.mc_prompts of the rows and a file of their own (`records_mc`)
    folder:   records are kept in `folder`/evaluations, under a name (`records`) for these weights, questions and
              settings; those that are there already are not made again
    between:  called between batches; it may raise to break off
    say:      progress, at the start and every 15 s
    """
    c = world.config.eval
    n = min(len(rows), c.prompts, (c.fast_prompts if fast else 0) or c.prompts)
    samples = c.fast_samples if fast and c.fast_samples >= 0 else c.samples
    out = _evaluated(world, params, rows, n, samples, between, step, folder, say)
    if fast or c.mc_samples <= samples:
        return out
    more = _evaluated(world, params, rows, min(n, c.mc_prompts or n), c.mc_samples, between, step, folder, say)
    of_more = {"mc_samples": "samples", "mc_grader_failures": "grader_failures", "records_mc": "records"}
    of_more = {name: more[k] for name, k in of_more.items() if k in more}
    return statistics.with_more(out, more) | of_more | {"seconds": round(out["seconds"] + more["seconds"], 3)}


def _evaluated(
    world: World,
    params: Params,
    rows: list[EncodedExample],
    n: int,
    samples: int,
    between: Callable[[], None],
    step: int,
    folder: str | Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The metrics over the first `n` rows with so many samples each."""
    start, path, records = time.perf_counter(), None, []
    with contextlib.ExitStack() as stack:
        if folder is not None:
            identity = identity_of(world, params, rows, samples)
            path = records_path(folder, step, identity)
            make_folder(path.parent)
            if distributed.first():  # two commands would both append
                stack.enter_context(lock(path.parent, path.with_suffix(".lock").name, say))
            records = distributed.share(kept(path, step, identity)[:n])
            if records:
                say(f"{len(records)} of {n} questions have been evaluated already ({path})")
        done = len(records)
        if done < n:
            say(f"evaluating {n - done} questions, {samples} sampled chains each")

        def progress() -> str:
            made = len(records) - done
            left = (time.perf_counter() - start) / made * (n - len(records)) if made else None
            words = "" if left is None else f", {duration(left)} left"
            return f"evaluated {len(records)} of {n} questions{words}"

        stack.enter_context(_telling(say, progress))
        of = world.config.eval
        pool = stack.enter_context(Pool(of.grader_workers, of.grader_seconds, unsafe_code=of.unsafe_code))
        for made in _records(world, params, rows[:n], records, samples, pool, between):
            if path is not None:
                for record in made:
                    run_files.append(path, {"step": step, **record})
            records += made
    out = statistics.summary(records) | {"samples": samples, "seconds": round(time.perf_counter() - start, 3)}
    if path is not None:
        out["records"] = f"{FOLDER}/{path.name}"
    return out | {"examples": [_example(r) for r in records[:EXAMPLES] if "right" in r["greedy"]]}


@contextlib.contextmanager
def _telling(say: Callable[[str], None], words: Callable[[], str]) -> Iterator[None]:
    """Says `words()` every EVERY seconds where they are new, whatever goes on meanwhile: one batch may take minutes."""
    over = threading.Event()

    def tell() -> None:
        said = ""
        while not over.wait(EVERY):
            if (now := words()) != said:
                said = now
                say(now)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _example(record: Record) -> dict[str, Any]:
    greedy = record["greedy"]
    shown = {"text": greedy["text"], "right": greedy["right"] is True}
    return {"prompt": record["prompt"], "reference": record["reference"], **shown}


# ------------------------------------------------------------------------------------------- records


class Lent(NamedTuple):
    """A sampled chain in ids, with the tags that were forced on it, for another question's answer."""

    chain: list[int]
    tag: list[int]


def _records(
    world: World,
    params: Params,
    rows: list[EncodedExample],
    before: list[Record],
    samples: int,
    pool: Pool,
    between: Callable[[], None],
) -> Iterator[list[Record]]:
    """The records of the rows that come after those in `before`, a batch at a time."""
    first = len(before)
    if first >= len(rows):
        return
    c = world.config
    at_once = min(c.eval.batch_prompts, c.eval.batch_prompts * (1 + c.eval.samples) // (1 + samples))
    size = world.batch_size(min(max(at_once, 1), len(rows) - first))
    width = max(c.prompt.max_prompt, *(len(r.prompt_ids) for r in rows))
    graded = c.eval.grader != "none"
    sampler = world.sampler(
        group_size=1 + samples,
        temperature=(0.0, *(1.0,) * samples),
        width_multiple=0,
        max_sampled_answer=world.answer_room if graded else 0,
    )
    weights = world.weights(params)
    lent = Lent(**before[-1]["lent"]) if before and samples else None
    for at, part, uid, rollout in _sampled(world, weights, rows, first, size, width, sampler, between):
        texts = world.sampled_text(rollout)
        answers = marks = logp = None
        if graded:
            bare = _answers_without_chain(world, weights, part, uid, width, samples) if samples else [[]] * len(part)
            answers = [
                [*(graders.extract_answer(text, world.fmt) for text in group), *without]
                for group, without in zip(texts, bare, strict=True)
            ]
            marks = _marks(world, pool, part, answers)
        if samples:
            own = [lent_chain(rollout, i) for i in range(size)]
            lenders, lent = [lent, *own[:-1]], own[-1]
            logp = _scores(world, params, part, rollout, lenders)
        made = []
        for i, row in enumerate(part[: len(rows) - at]):
            # One entry for each chain, the greedy one first, and as many for no chain.
            entries: list[Record] = [_tokens(world, rollout, i, j) for j in range(1 + samples)]
            direct: list[Record] = [{} for _ in entries] if samples else []
            if logp is not None:
                for entry, value in zip((*entries, direct[0]), (*logp[i, :-2], logp[i, -1]), strict=True):
                    entry["log_prob"] = float(value)
            if answers is not None and marks is not None:
                for entry, answer, mark in zip((*entries, *direct), answers[i], marks[i], strict=True):
                    entry |= {"answer": answer, "right": mark}
                for entry, vote in zip(entries[1:], votes(answers[i][1 : len(entries)]), strict=True):
                    entry["vote"] = vote
            greedy, *sampled = entries
            record = {
                "index": int(uid[i]),
                "id": row.example.id,
                "prompt": row.example.prompt,
                "reference": row.example.answer,
                "answer_tokens": max(int(row.answer_scored.sum()), 1),
                "greedy": {"text": texts[i][0], **greedy},
                "samples": sampled,
            }
            if samples:
                sampled[0] = {"text": texts[i][1], **sampled[0]}
                chains = [_chain_text(text, world.fmt) for text in texts[i][1:]]
                record |= {
                    "no_chain": {**direct[0], "chain_tokens": len(no_chain_ids(world.fmt)), "samples": direct[1:]},
                    "swapped": None if lenders[i] is None else float(logp[i, -2]),
                    "transition_words": rules.transition_rate(chains, c.report.transition_words),
                    "lent": own[i]._asdict(),
                }
            made.append(record)
        yield made


def _sampled(
    world: World,
    weights: Params,
    rows: list[EncodedExample],
    first: int,
    size: int,
    width: int,
    sampler: decode.SamplerConfig,
    between: Callable[[], None],
) -> Iterator[tuple[int, list[EncodedExample], np.ndarray, Rollout]]:
    """(place of its first row, rows, their uids, what was sampled) of every batch of `size` rows, from row `first` on.

    Of single rows several batches are sampled together, still `size` rows at a time: those that stop make room, and
    only the last ones wait for the longest. Groups are not, because the rows of one share its prompt while all go on.
    """
    together, whole = size, size  # groups are scored too: one shape, one program
    if sampler.group_size == 1 and engine.devices_of(weights) == 1:
        together, whole = AHEAD * size, world.batch_size(1)
        sampler = dataclasses.replace(sampler, slots=sampler.slots or size)
    for start in range(first, len(rows), together):
        between()
        part = rows[start : start + together]
        part = part + part[-1:] * (-len(part) % whole)
        uid = np.arange(start, start + len(part))
        rollout = world.sample(weights, world.collate(part, uid, width), world.key(EVALUATE), sampler)
        for at in range(0, len(part), size):
            if at:
                between()
            here = slice(at, at + size)
            yield start + at, part[here], uid[here], jax.tree.map(lambda x, here=here: x[here], rollout)


def _tokens(world: World, rollout: Rollout, i: int, j: int) -> Record:
    """What a chain's ids say: tokens with all tags, tokens before any tag, whether it opened the answer itself."""
    kinds, ids = rollout.segment[i, j], rollout.completion[i, j]
    return {
        "chain_tokens": int(((kinds == CHAIN) | (kinds == TAG)).sum()),
        "own_tokens": tokens_before_tags(ids[kinds == CHAIN], world.fmt),
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


def _chain_text(text: str, fmt: ChainFormat) -> str:
    return text.split(fmt.think_close)[0].split(fmt.answer_open)[0]


def votes(answers: list[str | None]) -> list[int | None]:
    """For each answer the number of the first that is the same candidate; None where there is no answer."""
    first: dict[object, int] = {}
    return [None if a is None else first.setdefault(candidate(a), i) for i, a in enumerate(answers)]


# ------------------------------------------------------------------------------------------- answers


def _marks(
    world: World, pool: Pool, rows: list[EncodedExample], answers: list[list[str | None]]
) -> list[list[bool | None]]:
    """What the grader says of the answers to each question."""
    size = len(answers[0])
    grader = world.config.eval.grader
    references = [graders.reference_of(grader, row.example) for row in rows for _ in range(size)]
    marks = pool.grade(grader, references, [a for group in answers for a in group])
    return [marks[i * size : (i + 1) * size] for i in range(len(rows))]


def _answers_without_chain(
    world: World, weights: Params, rows: list[EncodedExample], uid: np.ndarray, width: int, samples: int
) -> list[list[str | None]]:
    """A greedy answer and `samples` at temperature 1 after the empty scaffold `</think> <answer`, of each row.

    Their random keys are not those of the chains.
    """
    scaffold = no_chain_ids(world.fmt)
    opened = [dataclasses.replace(r, prompt_ids=np.concatenate([r.prompt_ids, scaffold])) for r in rows]
    prompts = world.collate(opened, uid, width + len(scaffold))
    cfg = world.sampler(group_size=1 + samples, temperature=(0.0, *(1.0,) * samples))
    ids, _, length = distributed.gather(
        decode.sample_ids(
            weights, share_of(prompts), world.key(EVALUATE, 1), cfg, world.fmt.answer_close, world.answer_room
        )
    )
    text_of = lambda row, n: world.tokenizer.decode(row[:n], skip_special_tokens=True)
    return [
        [graders.extract_answer(world.fmt.answer_open + text_of(*row), world.fmt) for row in zip(*group, strict=True)]
        for group in zip(ids, length, strict=True)
    ]


# ------------------------------------------------------------------------------------------- log-probs


def lent_chain(rollout: Rollout, i: int) -> Lent:
    """The first sampled chain of question i."""
    kinds, ids = rollout.segment[i, 1], rollout.completion[i, 1]
    return Lent(ids[kinds == CHAIN].tolist(), ids[kinds == TAG].tolist())


def _scores(
    world: World, params: Params, rows: list[EncodedExample], rollout: Rollout, lenders: list[Lent | None]
) -> np.ndarray:
    """Log-probs of the reference answer [P, 1 + samples + 2]: after each chain, the lender's chain, and no chain.

    Where there is no lender the last but one means nothing.
    """
    answers = rollout.prompts
    bare = [completion_ids(row, None, world.tokenizer, world.fmt) for row in rows]
    swapped = [_after(lent, row) if lent is not None else b for lent, row, b in zip(lenders, rows, bare, strict=True)]
    pad, width = world.fmt.pad_id, rollout.completion.shape[-1]
    batch = to_batch(
        _beside(rollout, given_rollout(answers, swapped, pad, width), given_rollout(answers, bare, pad, width))
    )
    step = dataclasses.replace(
        world.settings.step,
        two_branches=True,
        temperature=1.0,
        micro_batch_prompts=largest_divisor(len(rows), max(1, ROWS_AT_ONCE // batch.completion.shape[1])),
    )
    mesh = world.places and world.places.learner
    with using(mesh):
        logp = _score_of(world.model, step, mesh)(params, batch).stats.log_prob
    return np.where(batch.scored, logp, 0).sum(-1, dtype=np.float64)


def _after(lent: Lent, row: EncodedExample) -> tuple[np.ndarray, np.ndarray]:
    """(ids, segments) of a lent chain and this row's reference answer."""
    parts = ((CHAIN, lent.chain), (TAG, lent.tag), (REFERENCE, row.answer_ids))
    ids = np.concatenate([np.asarray(part, np.int32) for _, part in parts])
    return ids, np.repeat(np.asarray([kind for kind, _ in parts], np.int32), [len(part) for _, part in parts])


def _beside(*rollouts: Rollout) -> Rollout:
    """The rows of all of them in one group for each prompt."""
    names = ("completion", "segment", "sampler_logp", "truncated")
    return rollouts[0].replace(**{k: np.concatenate([getattr(r, k) for r in rollouts], 1) for k in names})
