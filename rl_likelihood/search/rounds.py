"""The rounds of the search. All questions advance one segment at a time. The sampler proposes, the learner scores.

rounds.jsonl in the workdir holds every candidate with its NLL, so the state of every search can be restored from it. A
killed search resumes after the last complete batch, with the same chains as an unbroken one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.order import in_batches
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.token_ids import ids_after_text
from rl_likelihood.learner.batching import concat_rows, given_rollout, to_batch
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.architecture import Params
from rl_likelihood.progress import Progress
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.devices import Devices, batch_size, using
from rl_likelihood.search import reer
from rl_likelihood.search.proposer import Ask, Asks, Length, Propose, padded_width
from rl_likelihood.search.reer import Offer, Search
from rl_likelihood.search.segments import segments
from rl_likelihood.task import Task

FILE = "rounds.jsonl"
MOST_WHOLE = 64  # the most whole chains of a question in the control "whole chains"
Lines = dict[int, dict[str, Any]]  # question -> its line


class Journal:
    """rounds.jsonl: one line for each question, search and round."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lines: dict[tuple[str, int], Lines] = {}
        for line in distributed.share(run_files.read(self.path) if self.path.exists() else []):
            self.of(line["search"], line["step"])[line["index"]] = line

    def of(self, search: str, step: int) -> Lines:
        return self._lines.setdefault((search, step), {})

    def add(self, search: str, step: int, new_lines: Iterable[tuple[int, dict[str, Any]]]) -> None:
        for index, values in new_lines:
            line = {"step": step, "search": search, "index": index, **values}
            self.of(search, step)[index] = line
            if distributed.first():
                run_files.append(self.path, line)


@dataclasses.dataclass(frozen=True)
class Finder:
    """The parts of a search: the model that scores the answers of `task.train`, the proposer, and the journal.

    other: the task and parameters of the model that only scores the final chains (reer.other)
    between: called between batches; it may raise to stop
    failed: the failed calls of a server that proposes, in words, or ""
    """

    task: Task
    params: Params
    asks: Asks
    propose: Propose
    journal: Journal
    devices: Devices | None = None
    other: tuple[Task, Params] | None = None
    between: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda _: None
    failed: Callable[[], str] = lambda: ""

    @property
    def size(self) -> int:
        """Questions per batch."""
        return batch_size(min(self.task.config.eval.batch_prompts, len(self.task.train)), self.devices)

    def each(
        self,
        search: str,
        step: int,
        questions: Iterable[int],
        make: Callable[[list[int]], list[dict]],
        advance: Callable[[int], None] = lambda n: None,
    ) -> Lines:
        """The journal's lines of these questions in this round. `make` computes the missing ones in batches. `advance`
        is told how many are new."""
        lines, questions = self.journal.of(search, step), list(questions)
        for start in range(0, len(questions), self.size):
            part = questions[start : start + self.size]
            if not all(i in lines for i in part):  # computes an incomplete batch as a whole: the same rounding
                self.between()
                new = [(i, line) for i, line in zip(part, make(part), strict=True) if i not in lines]
                self.journal.add(search, step, new)
                advance(len(new))
        return lines

    def say_failed(self) -> None:
        if words := self.failed():
            self.say(words)

    def replies(self, asks: list[Ask], call: int, length: Length) -> list[list[str]]:
        (_, filled) = next(in_batches(asks, self.size))
        return self.propose(filled, call, length)[: len(asks)]

    def tokens(self, replies: list[str]) -> int:
        """The number of tokens of these replies, by the tokenizer of the model that scores."""
        if not replies:
            return 0
        return sum(map(len, ids_after_text(self.task.tokenizer, self.task.fmt.vocab_bytes, replies)))

    def row(self, i: int, shift: int = 0) -> EncodedExample:
        """Question i with the answer of question i + `shift`, and its scored tokens."""
        other = self.task.train[(i + shift) % len(self.task.train)]
        row = reer.scored_from(other, self.task.fmt.vocab_bytes, self.task.config.reer)
        return dataclasses.replace(row, prompt_ids=self.task.train[i].prompt_ids)


def first_chains(f: Finder) -> list[str | None]:
    """The first chain of every question. None if its prompt is too long for a local proposer, or if a server's call
    failed, which is repeated by the next run."""

    def make(part: list[int]) -> list[dict]:
        asked = [f.asks.chain(i, f.task.train[i].example) for i in part]
        groups = f.replies(asked, 0, f.asks.whole(1))
        return [{"chain": f.asks.chain_in(group[0]) if group else None} for group in groups]

    n, done = len(f.task.train), f.journal.of("first", 0)
    if "://" in f.task.config.reer.proposer:
        for i in [i for i, line in done.items() if line["chain"] is None]:
            del done[i]
    with Progress("wrote first chains of", n, "questions", f.say, done=len(done)) as progress:
        lines = f.each("first", 0, range(n), make, progress.advance)
    return [lines[i]["chain"] for i in range(n)]


def unfit(f: Finder, chains: list[str | None]) -> list[str]:
    """For each first chain why it cannot be searched from, or ""."""
    cfg, limit = f.task.config.reer, f.task.config.sampler.max_chain

    def why(chain: str | None, answer: str) -> str:
        if chain is None:
            return "no reply" if "://" in cfg.proposer else "question too long for the proposer"
        (ids,) = ids_after_text(f.task.tokenizer, f.task.fmt.vocab_bytes, [chain])
        if len(ids) > limit or not all(f.task.fmt.vocab_bytes[i] for i in ids):
            return "first chain too long or with markup"
        return reer.unfit(chain, len(ids), answer, cfg)

    return [why(chain, row.example.answer) for chain, row in zip(chains, f.task.train, strict=True)]


class Variant(NamedTuple):
    """A variant of the search. `shift`: the chains of question i are scored on the answer of question i + `shift`."""

    name: str
    max_copied: float
    shift: int = 0


class Ended(NamedTuple):
    """A finished search. `nll_start`: the answer's NLL after the first chain; `nll_none`: without a chain; `tokens`:
    the number of sampled tokens, without the first chain."""

    search: Search
    nll_start: float
    nll_none: float
    tokens: int


def find(f: Finder, chains: dict[int, str], variant: Variant) -> dict[int, Ended]:
    """Runs a search from the first chains of these questions."""

    def start(part: list[int]) -> list[dict]:
        scores = score(f, [f.row(i, variant.shift) for i in part], [["", chains[i]] for i in part])
        return [{"nll_none": float(none), "nll": float(nll)} for none, nll in scores]

    scored = f.journal.of(variant.name, 0)
    done = sum(i in scored for i in chains)
    with Progress(f"{variant.name}: scored", len(chains), "first chains", f.say, done=done) as progress:
        f.each(variant.name, 0, chains, start, progress.advance)
    baselines = {i: (line["nll"], line["nll_none"]) for i, line in scored.items()}
    searches = {i: Search(tuple(segments(chains[i])), baselines[i][0]) for i in chains}
    cfg, tokens, unasked = f.task.config.reer, dict.fromkeys(chains, 0), 0
    total = sum(reer.left(s, cfg) for s in searches.values())
    with Progress(f"{variant.name}: searched", total, "segments", f.say) as progress:
        for step in range(1, cfg.max_segments + 1):
            active = {i: s for i, s in searches.items() if reer.left(s, cfg)}
            lines = f.each(variant.name, step, active, functools.partial(_candidates, f, searches, variant, step))
            searches |= {i: reer.advanced(s, _offers(lines[i]), variant.max_copied) for i, s in active.items()}
            tokens |= {i: tokens[i] + lines[i]["tokens"] for i in active}
            unasked += sum(lines[i].get("replies") == 0 for i in active)
            progress.advance(sum(reer.left(s, cfg) - reer.left(searches[i], cfg) for i, s in active.items()))
            progress.note = f"mean NLL {np.mean([s.nll for s in searches.values()]):.3f}"
    if unasked and "://" not in cfg.proposer:
        f.say(
            f"{variant.name}: {unasked} of {total} segments got no candidate, because request and candidate "
            f"(reer.max_segment = {cfg.max_segment}) have more tokens than the proposer has positions; lower "
            "reer.max_segment, or name a reer.proposer with more positions"
        )
    return {i: Ended(s, *baselines[i], tokens[i]) for i, s in searches.items()}


def _candidates(f: Finder, searches: dict[int, Search], variant: Variant, step: int, part: list[int]) -> list[dict]:
    """The candidates for the current segment of each of these questions."""
    asked = [f.asks.segment(i, f.task.train[i].example, searches[i]) for i in part]
    replies = f.replies(asked, step, f.asks.part)
    groups = [[f.asks.part_in(reply) for reply in group] for group in replies]
    chains = [
        [reer.chain_with(searches[i], text) if text else None for text in group]
        for i, group in zip(part, groups, strict=True)
    ]
    return _scored(f, part, variant.shift, replies, groups, chains)


class BestWhole(NamedTuple):
    """The best of a question's first chain and other whole chains. `tokens`: the sampled tokens of the others."""

    chain: str
    nll: float
    tokens: int


def best_whole(f: Finder, chains: dict[int, str], ended: dict[int, Ended], max_copied: float) -> dict[int, BestWhole]:
    """For each question the whole chain with the lowest NLL.

    Other chains are sampled until they have as many tokens as the question's search, or until there are MOST_WHOLE.
    """

    def make(part: list[int]) -> list[dict]:
        asked = [f.asks.chain(i, f.task.train[i].example) for i in part]
        replies = f.replies(asked, f.task.config.reer.max_segments + step, f.asks.whole(1))
        whole = [[f.asks.chain_in(reply) for reply in group] for group in replies]
        return _scored(f, part, 0, replies, whole, [[text or None for text in group] for group in whole])

    best = {i: BestWhole(chain, ended[i].nll_start, 0) for i, chain in chains.items()}
    total = sum(ended[i].tokens > 0 for i in chains)
    with Progress("whole chains: sampled for", total, "questions", f.say) as progress:
        for step in range(1, MOST_WHOLE + 1):
            active = [i for i in chains if best[i].tokens < ended[i].tokens]
            lines = f.each("whole", step, active, make)
            for i in active:
                tokens = best[i].tokens + lines[i]["tokens"]
                new = [BestWhole(o.text, o.nll, 0) for o in _offers(lines[i]) if o.copied <= max_copied]
                best[i] = min([best[i], *new], key=lambda b: b.nll)._replace(tokens=tokens)
            progress.advance(sum(best[i].tokens >= ended[i].tokens or step == MOST_WHOLE for i in active))
    return best


def _scored(
    f: Finder,
    part: list[int],
    shift: int,
    replies: list[list[str]],
    texts: list[list[str]],
    chains: list[list[str | None]],
) -> list[dict[str, Any]]:
    """For each question a line of the journal: the sampled tokens, the number of replies, and its candidates as (text,
    NLL or null, share of the answer that the chain copies)."""
    scores, lines = score(f, [f.row(i, shift) for i in part], chains), []
    for i, group, of_texts, of_chains, of_scores in zip(part, replies, texts, chains, scores, strict=True):
        answer = f.task.train[i].example.answer
        offers = [
            (text, float(nll) if np.isfinite(nll) else None, reer.copied(chain, answer))
            for text, chain, nll in zip(of_texts, of_chains, of_scores, strict=False)
            if chain
        ]
        lines.append({"tokens": f.tokens(group), "replies": len(group), "offers": offers})
    return lines


def _offers(line: dict[str, Any]) -> list[Offer]:
    """The candidates in a line of the journal."""
    return [Offer(text, math.inf if nll is None else nll, share) for text, nll, share in line["offers"]]


def score(
    f: Finder, rows: list[EncodedExample], chains: list[list[str | None]], clip: float | None = None
) -> list[list[float]]:
    """The mean NLL of each row's scored tokens after each of its chains, inf if it cannot be scored.

    A chain "" means no chain. `clip`: of each token's NLL; None: reer.clip.
    """
    task, k = f.task, max(map(len, chains))
    clip = task.config.reer.clip if clip is None else clip
    if not k:
        return [[] for _ in rows]
    groups = [group + [None] * (k - len(group)) for group in chains]
    pairs = [[_completion(task, row, c) for c in group] for row, group in zip(rows, groups, strict=True)]
    bare = [prompts.completion_ids(row, "", task.tokenizer, task.fmt) for row in rows]
    lengths = [len(ids) for ids, _ in (*bare, *(one for group in pairs for one in group if one))]
    filled_pairs = [[one or empty for one in group] for group, empty in zip(pairs, bare, strict=True)]
    _, rows = next(in_batches(rows, f.size))
    _, filled = next(in_batches(filled_pairs, f.size))
    collated = task.collate(rows, np.arange(f.size))
    width, pad = padded_width(max(lengths)), task.fmt.pad_id
    rollouts = [given_rollout(collated, [group[j] for group in filled], pad, width) for j in range(k)]
    batch, mesh = to_batch(concat_rows(*rollouts)), f.devices and f.devices.learner
    with using(mesh):
        logp = make_score(task.model, StepConfig(head_chunk=task.config.train.head_chunk), mesh)(f.params, batch)
    nll = reer.clipped_nll(np.asarray(logp.stats.log_prob), batch.scored, clip)
    return [
        [x if one else math.inf for x, one in zip(values, group, strict=True)]
        for values, group in zip(nll.tolist(), pairs, strict=False)
    ]


def _completion(task: Task, row: EncodedExample, chain: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids, segments) of chain, closing tags and answer. None if there is no chain, or if it is too long or contains
    markup."""
    if chain is None:
        return None
    ids, kinds = prompts.completion_ids(row, chain, task.tokenizer, task.fmt)
    chain_length = len(ids) - len(row.answer_ids) - len(task.fmt.close_think_ids)
    legal = chain_length <= task.config.sampler.max_chain and all(task.fmt.vocab_bytes[i] for i in ids[:chain_length])
    return (ids, kinds) if legal else None
