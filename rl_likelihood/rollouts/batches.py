"""Makes a step's prompts from its number, a rollout from the prompts, and the learner's batch from the rollout."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rl_likelihood.data.order import order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.learner.batching import alternatives_of, concat_rows, first_rows, no_chain_rows, to_batch
from rl_likelihood.learner.packing import packed_prompt_width
from rl_likelihood.model.architecture import Params
from rl_likelihood.rewards import rules
from rl_likelihood.rollouts import judges
from rl_likelihood.rollouts.baseline import Baseline, read_baseline
from rl_likelihood.rollouts.conversations import conversations_of
from rl_likelihood.rollouts.host_rewards import (
    HostRewards,
    Texts,
    grader_pool,
    host_rewards,
    logged_grades,
    sampled_texts,
)
from rl_likelihood.rollouts.judges import AnyJudge
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import ROW_FIELDS, Batch, Prompts, Rollout, ShownPrompts
from rl_likelihood.task import SAMPLE, Task

Rows = list[EncodedExample]


class StepInput(NamedTuple):
    """The input of one optimizer step, for this process's prompts.

    `rollout` and `rows`: the rollout and the questions from which `batch` was made. `logged`: metrics in addition to
    the step's own. `verdicts`: a rubric's. `measured`: computes more metrics of this process's rows while the step
    runs; their `means` over processes are logged. `waited`: seconds of sampling, or of waiting for a rollout and for
    the sampler to release shared devices, and of the devices' own work on the batch (a judge, the learner's filter).
    `spread`: the mean spread of all groups drawn, if the learner filtered them.
    """

    batch: Batch
    rollout: Rollout
    rows: Rows
    logged: dict[str, float]
    verdicts: list[list[list[dict[str, Any]]]] | None = None
    measured: Callable[[], dict[str, float]] = dict
    waited: float = 0.0
    spread: float | None = None


class SamplerFailed(Exception):
    """The sampler failed with `__cause__`. Every process raises this at the same step."""


class Batches:
    """Makes the prompts, rollouts and batches of this process."""

    def __init__(self, task: Task, devices: Devices, workdir: Path, judge: AnyJudge | None = None) -> None:
        c = task.config
        self.task, self.devices = task, devices
        self.rows_of = order(len(task.train), c.train.prompts_per_step, c.seed)
        self.pool = grader_pool(c)
        self.baseline: Callable[[Rows], Baseline] = lambda rows: Baseline()
        if c.reward.baseline == "frozen":
            self.baseline = read_baseline(workdir, c.reward, c.prompt.max_answer)
        self.judge = judge
        self.device_seconds = 0.0  # so far: of a judge on these devices, and of the learner's filter
        self.conversations = conversations_of(task)
        self.alternatives_size: tuple[int, int] | None = (
            None  # maximum (alternative answers, tokens of them) of a question
        )
        if c.reads_alternatives:
            row_alternatives = [row.alternatives for row in task.train]
            self.alternatives_size = (
                max(map(len, row_alternatives)),
                max(sum(1 + len(ids) for ids, _ in answers) for answers in row_alternatives),
            )
        self._widths: set[int] = set()  # prompt widths for which the sampler is compiled

    def rows(self, number: int) -> Rows:
        """This process's questions of step `number`."""
        return [self.task.train[i] for i in self.rows_of(number)[self.devices.prompts]]

    def collate(self, number: int) -> Prompts:
        """This process's prompts of step `number`. A row's uid is its index in the run's stream of prompts."""
        index, c = self.rows_of(number), self.task.config.prompt
        # From the longest prompt of all processes, so that all choose one width. fsdp must divide it, because the
        # tokens of prompts may be split over fsdp.
        longest = max(len(self.task.train[i].prompt_ids) for i in index)
        if self.task.config.train.packing:
            longest = packed_prompt_width(longest, len(self.task.common), c.max_prompt)
        multiple = math.lcm(c.width_multiple or self.task.config.train.packing, self.devices.learner.shape["fsdp"])
        multiple = multiple or c.max_prompt
        width = min(c.max_prompt, -(-longest // multiple) * multiple)
        return self.task.collate(self.rows(number), number * len(index) + self.devices.prompts, width)

    def shown(self, rows: Rows, uid: np.ndarray) -> Prompts:
        """The posterior prompts of these questions, padded to the maximum width."""
        posterior_rows = [
            dataclasses.replace(row, prompt_ids=row.shown_ids) for row in rows if row.shown_ids is not None
        ]
        return self.task.collate(posterior_rows, uid, self.task.config.max_shown)

    def sample(self, number: int, weights: Params, version: int) -> Rollout:
        """Rollout `number`. All rows share one random key; each row's own key is folded from it by uid."""
        chains, prompts = self.devices.chains, self.collate(number)
        width = prompts.tokens.shape[1]
        if self._widths and width not in self._widths:  # the first compilation is part of the first step
            say(f"compiles the sampler for prompts of {width} tokens, shape {len(self._widths) + 1}")
        self._widths.add(width)
        cfg = self.task.sampler(group_size=chains.stop - chains.start, first_chain=chains.start)
        if self.conversations is not None:
            rollout = self.conversations.sample(weights, prompts, self.rows(number), self.task.key(SAMPLE), cfg)
        elif self.task.config.posterior.share:
            rollout = self._sample_both(number, weights, prompts)
        else:
            rollout = decode.sample(weights, prompts, self.task.key(SAMPLE), cfg)
        return rollout.replace(version=version, number=number)

    def _sample_both(self, number: int, weights: Params, prompts: Prompts) -> Rollout:
        """Samples the first chains of each group after the prompt, and the last ones after the posterior prompt. A
        chain's random key depends on its index in the group, not on its prompt."""
        c, chains = self.task.config, self.devices.chains
        first = c.sampler.group_size - c.posterior.rows(c.sampler.group_size)
        posterior_prompts = self.shown(self.rows(number), prompts.uid)
        parts = []
        for sampled_prompts, chain_range in (
            (prompts, range(0, first)),
            (posterior_prompts, range(first, c.sampler.group_size)),
        ):
            start, stop = max(chains.start, chain_range.start), min(chains.stop, chain_range.stop)
            if start < stop:
                cfg = self.task.sampler(group_size=stop - start, first_chain=start)
                parts.append(
                    decode.sample(weights, sampled_prompts, self.task.key(SAMPLE), cfg).replace(prompts=prompts)
                )
        return concat_rows(*same_width(parts, self.task.fmt.pad_id))

    def align(self, rollout: Rollout) -> Rollout:
        """The rollout, padded to the widest of all processes, with the chains that other processes sampled.

        A collective of all processes. Prompts already have one width everywhere, except after a resume with another
        width, while some processes still have old rollouts.
        """
        if jax.process_count() == 1:
            return rollout
        own_width = np.asarray([[rollout.segment.shape[-1], rollout.prompts.tokens.shape[1]]])
        width, prompt_width = distributed.gather(own_width).max(0)
        rollout = widened(rollout, int(width), int(prompt_width), self.task.fmt.pad_id)
        chains = self.devices.chains
        if chains == slice(0, self.task.config.sampler.group_size):
            return rollout
        values = {k: getattr(rollout, k) for k in ROW_FIELDS}
        starts = np.full(len(self.devices.prompts), chains.start)
        parts = distributed.gather({"uid": rollout.prompts.uid, "start": starts, **values})
        groups = [np.flatnonzero(parts["uid"] == uid) for uid in rollout.prompts.uid]
        groups = [g[np.argsort(parts["start"][g])] for g in groups]  # in the order of their chains
        join_group = lambda x: np.stack([np.concatenate(x[g]) for g in groups])
        return rollout.replace(**jax.tree.map(join_group, {k: parts[k] for k in ROW_FIELDS}))

    def grade(self, rollout: Rollout, rows: Rows) -> tuple[HostRewards, Texts | None]:
        """(the host's rewards, the sampled texts, or None if no reward reads them). Texts are decoded only once.

        Without texts, `metrics` decodes and grades them while the step runs. Not with filter.resample: its metrics are
        means over all groups that were drawn.
        """
        c = self.task.config
        needed = c.reward.host_terms or self.judge or (c.sampled_answer and c.filter.resample)
        texts = sampled_texts(self.task, rollout) if needed else None
        graded = host_rewards(self.task, self.pool, rollout, rows, texts)
        if self.judge is not None and texts is not None and not c.raro:
            start = time.perf_counter()
            graded = judges.judged(self.judge, self.task, graded, rows, texts)
            if judges.computes_on_sampler(self.judge):
                self.device_seconds += time.perf_counter() - start
        # Processes that share prompts grade the same answers, and their counts are summed.
        share = (self.devices.chains.stop - self.devices.chains.start) / rollout.segment.shape[1]
        counts = {k: share * graded.logged[k] for k in COUNTS if k in graded.logged}
        return graded._replace(logged=graded.logged | counts), texts

    def batch(self, rollout: Rollout, rows: Rows, graded: HostRewards) -> tuple[Batch, Rollout]:
        """(the learner's batch, the rollout with only the rows of the batch). With reward.vote_train, all rows of a
        group vote, and only the first ones are trained on."""
        c, fmt = self.task.config, self.task.fmt
        n = c.reward.vote_train or rollout.segment.shape[1]
        rollout = first_rows(rollout, n)
        values = {k: v[:, :n] for k, v in graded.values.items()}
        base = self.baseline(rows)
        batch = to_batch(rollout, values, graded.keep[:, :n], base.score).replace(baseline_logp=base.logp)
        if c.scores_no_chain:
            batch = batch.replace(no_chain=no_chain_rows(rollout.prompts, fmt.close_think_ids, fmt.pad_id))
        if c.max_shown:
            shown = self.shown(rows, rollout.prompts.uid)
            batch = batch.replace(shown=ShownPrompts(shown.tokens, shown.length))
        if self.alternatives_size:
            batch = batch.replace(
                alternatives=alternatives_of([r.alternatives for r in rows], *self.alternatives_size, fmt.pad_id)
            )
        if graded.judged is not None:
            judged = graded.judged
            batch = batch.replace(judged=judged.replace(rows=judged.rows[:, :n], row_length=judged.row_length[:, :n]))
        batch = batch.replace(compared=graded.compared, replayed=graded.replayed)
        return batch, rollout

    def metrics(self, graded: HostRewards, rollout: Rollout, rows: Rows, texts: Texts | None) -> dict[str, float]:
        """The metrics of the host's rewards, and those of the sampled text."""
        logged = graded.logged
        if texts is None:
            texts = sampled_texts(self.task, rollout)
            grades = logged_grades(self.task, self.pool, rows, texts)
            failures = logged["grader/failures"] + grades.get("grader/failures", 0.0)
            logged = logged | grades | {"grader/failures": failures}
        flat = [text for group in texts for text in group]
        # Only the exact tag counts: "</thought>" is another one.
        closed = [self.task.fmt.think_close in text for text in flat]
        words = rules.transition_rate(flat, self.task.config.report.transition_words)
        return logged | {"chain/closed": sum(closed) / len(closed), "chain/transition_words": words}

    def close(self) -> None:
        """Closes the grader pool and the judge."""
        self.pool.close()
        judges.close(self.judge)


# Metrics that are summed over processes. All others are averaged.
COUNTS = ("grader/failures", "env/failures", "judge/failures", "judge/cut", "resample/refused")


def combined(parts: list[dict[str, float]]) -> dict[str, float]:
    """Combines the metrics of several processes. NaN means that a process had nothing to measure, and is left out. The
    result is NaN if all values are."""
    known = {k: [part[k] for part in parts if not math.isnan(part[k])] for k in parts[0]}
    return {k: sum(v) if k in COUNTS else sum(v) / len(v) if v else math.nan for k, v in known.items()}


def means(logged: dict[str, float]) -> dict[str, float]:
    """The metrics of all processes, `combined`, without those that nobody measured. A collective of all processes."""
    names = sorted(logged)
    rows = distributed.gather(np.asarray([[logged[k] for k in names]], np.float32))
    parts = [logged] if len(rows) == 1 else [dict(zip(names, map(float, row), strict=True)) for row in rows]
    return {k: v for k, v in combined(parts).items() if not math.isnan(v)}


def same_width(rollouts: Sequence[Rollout], pad_id: int) -> list[Rollout]:
    """The rollouts, padded to the widest."""
    width = max(rollout.segment.shape[-1] for rollout in rollouts)
    prompt_width = max(rollout.prompts.tokens.shape[1] for rollout in rollouts)
    return [widened(rollout, width, prompt_width, pad_id) for rollout in rollouts]


def widened(rollout: Rollout, width: int, prompt_width: int, pad_id: int) -> Rollout:
    """The rollout with rows padded to `width` tokens and prompts padded to `prompt_width` tokens."""
    padding = [(0, 0), (0, 0), (0, width - rollout.segment.shape[-1])]
    values = {"completion": pad_id, "segment": 0, "sampler_logp": 0}
    padded = {k: np.pad(getattr(rollout, k), padding, constant_values=v) for k, v in values.items()}
    tokens = rollout.prompts.tokens
    tokens = np.pad(tokens, [(0, 0), (0, prompt_width - tokens.shape[1])], constant_values=pad_id)
    return rollout.replace(prompts=rollout.prompts.replace(tokens=tokens), **padded)
