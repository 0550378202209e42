"""Where batches come from, and what is written down of them."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_likelihood import config as configs
from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.grading.pool import Pool
from rl_likelihood.learner.batching import bare_rows, given_rollout, slice_rows, to_batch
from rl_likelihood.model.decoder import Params
from rl_likelihood.rewards import rules
from rl_likelihood.rollouts.baseline import read_baseline
from rl_likelihood.rollouts.host_rewards import rewards_of_texts
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.sampler import decode
from rl_likelihood.sampler.queue import RolloutQueue, WeightBox, from_bytes, start_sampler, to_bytes
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, Batch, Prompts, Rollout, UserError
from rl_likelihood.task import SAMPLE, World


class Source:
    """Where batches come from: the sampler's thread and queue, or the reference answers themselves (sft).

    `turn` is held by whoever starts programs on devices that both threads use. Programs that talk between devices
    must start in one order on all of these, or each waits for ever for the other's: so the learner's thread holds it
    around all that it computes, and the sampler's around each rollout.
    """

    def __init__(
        self,
        world: World,
        rows_of: Callable[[int], np.ndarray],
        start: int,
        steps: int,
        workdir: Path,
        kept: dict[str, Any] | None = None,
    ) -> None:
        """From update `start` to `steps`; `kept`: what `state` gave to the checkpoint that the run goes on from."""
        c = world.config
        self.world, self.rows_of = world, rows_of
        together = jax.local_device_count() > 1 and not world.places.apart
        self.turn = threading.Lock() if together else contextlib.nullcontext()
        self.own, self.chains = world.places.own, world.places.chains
        waiting, dropped = restored(kept, self.rows())
        self.queue = RolloutQueue(c.sampler.queue_depth, c.sampler.max_staleness, waiting, dropped)
        self.box = WeightBox()
        self.pool = Pool(c.eval.grader_workers, c.eval.grader_seconds, unsafe_code=c.eval.unsafe_code)
        self.baseline = read_baseline(workdir) if world.settings.step.baseline == "frozen" else None
        self.widths: set[int] = set()  # of prompts that the sampler has met
        self.thread = None
        self.sft_width = len(world.fmt.close_think_ids) + c.prompt.max_answer
        if c.reward.sft_chain != "none":
            self.sft_width += refuse_missing_chains(world)
        if c.reward.name != "sft":
            begin = start + dropped + len(waiting)
            self.thread = start_sampler(self.produce, self.box, self.queue, c.sampler.max_staleness, begin, steps)

    def rows(self) -> list[int]:
        """Which chains of which prompts of a step are this process's."""
        return [self.chains.start, self.chains.stop, *map(int, self.own)]

    def collate(self, number: int) -> Prompts:
        """This process's prompts of rollout `number`; a row's uid is its place in the stream of prompts."""
        index, c = self.rows_of(number), self.world.config.prompt
        uid = number * len(index) + self.own
        # Of all processes' prompts, so that all choose one width; and one over which fsdp can split a prompt's tokens.
        longest = max(len(self.world.train[i].prompt_ids) for i in index)
        multiple = math.lcm(c.width_multiple, self.world.places.learner.shape["fsdp"]) or c.max_prompt
        width = min(c.max_prompt, -(-longest // multiple) * multiple)
        return self.world.collate([self.world.train[i] for i in index[self.own]], uid, width)

    def produce(self, number: int, weights: Params, version: int) -> Rollout:
        """Rollout `number`, on the sampler's thread. One key for all: the uid makes each row's own."""
        start = time.perf_counter()
        prompts, at = self.collate(number), self.chains
        width = prompts.tokens.shape[1]
        if self.widths and width not in self.widths:  # the first compilation is within the first step
            say(f"compiles the sampler for prompts of {width} tokens, shape {len(self.widths) + 1}")
        self.widths.add(width)
        cfg = self.world.sampler(group_size=at.stop - at.start, first_chain=at.start)
        with self.turn:
            rollout = decode.sample(weights, prompts, self.world.key(SAMPLE), cfg, version)
        return rollout.replace(seconds=time.perf_counter() - start)

    def publish(self, version: int, params: Params) -> None:
        """The sampler's copy of new weights; with the turn held."""
        if self.thread is not None:
            self.box.publish(version, self.world.weights(params))

    def get(self, step: int) -> tuple[Rollout, float]:
        """The rollout for the update from version `step`, and the seconds waited for it."""
        if self.thread is not None:
            return self.queue.get(step)
        w = self.world
        chains = w.config.reward.sft_chain != "none"
        rows = [w.train[i] for i in self.rows_of(step)[self.own]]
        targets = [completion_ids(r, r.example.chain if chains else None, w.tokenizer, w.fmt) for r in rows]
        if w.settings.step.supervise_chain:  # the closing tags are learned with the chain
            targets = [(ids, np.where(kinds == TAG, CHAIN, kinds)) for ids, kinds in targets]
        return given_rollout(self.collate(step), targets, w.fmt.pad_id, self.sft_width).replace(version=step), 0.0

    def batch(self, rollout: Rollout) -> tuple[Batch, Rollout, dict[str, float]]:
        """The learner's batch of a rollout with its outside rewards, the rows trained on, what to log of grading."""
        world, c = self.world, self.world.config
        if jax.process_count() > 1:
            with self.turn:
                rollout = self.aligned(rollout)
        rows = rows_behind(world, rollout, self.rows_of)
        host_rewards, keep, logged = rewards_of_texts(world, self.pool, rollout, rows)
        n = c.reward.vote_train or rollout.segment.shape[1]  # all of a group vote, the first n of it are trained on
        rollout = slice_rows(rollout, 0, n)
        used = {t.name for t in world.settings.step.reward.terms}
        host_rewards = {k: v[:, :n] for k, v in host_rewards.items() if k in used}
        batch = to_batch(rollout, host_rewards, keep[:, :n], baseline=self.baseline(rows) if self.baseline else None)
        if configs.scores_bare(c):
            batch = batch.replace(bare=bare_rows(rollout.prompts, world.fmt.close_think_ids, world.fmt.pad_id))
        if self.thread is not None:
            texts = [text for group in world.sampled_text(rollout) for text in group]
            closed = [world.fmt.think_close in text for text in texts]
            logged["chain/closed"] = sum(closed) / len(closed)  # by the tag itself: "</thought>" is none
            logged["chain/transition_words"] = rules.transition_rate(texts, c.report.transition_words)
        if jax.process_count() > 1:
            with self.turn:
                logged = means(logged)
        return batch, rollout, logged

    def aligned(self, rollout: Rollout) -> Rollout:
        """The rollout as wide as the widest of all processes, with the chains of its groups that others sampled.

        Prompts have one width everywhere, but where a run goes on with other widths and some processes still have
        rollouts of before.
        """
        own = np.asarray([[rollout.segment.shape[-1], rollout.prompts.tokens.shape[1]]])
        rows, at = distributed.gather(own).max(0)
        rollout = widened(rollout, int(rows), int(at), self.world.fmt.pad_id)
        if self.chains == slice(0, self.world.config.sampler.group_size):
            return rollout
        parts = distributed.gather(
            {
                "uid": rollout.prompts.uid,
                "start": np.full(len(self.own), self.chains.start),
                **{k: getattr(rollout, k) for k in _ROWS},
            }
        )
        mine = [np.flatnonzero(parts["uid"] == uid) for uid in rollout.prompts.uid]
        mine = [found[np.argsort(parts["start"][found])] for found in mine]  # in the order of their chains
        return rollout.replace(**{k: np.stack([np.concatenate(parts[k][found]) for found in mine]) for k in _ROWS})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the learner's state: the queue of every process, as JSON."""
        waiting, dropped = self.queue.contents()
        kept = distributed.gather_bytes(to_bytes(waiting))
        numbers = distributed.gather(np.asarray([[dropped, len(waiting)]]))
        rows = distributed.gather_bytes(json.dumps(self.rows()).encode())
        return {
            "rows": [json.loads(x) for x in rows],
            "dropped": numbers[:, 0].tolist(),
            "waiting": [base64.b64encode(x).decode() if n else "" for x, (_, n) in zip(kept, numbers, strict=True)],
        }

    def close(self) -> None:
        """Ends the thread and the graders."""
        self.pool.close()
        self.box.close()
        self.queue.close()
        if self.thread is not None:
            self.thread.join(timeout=60)


_ROWS = ("completion", "segment", "sampler_logp", "truncated")  # of a rollout: [P, G, ...]


def means(logged: dict[str, float]) -> dict[str, float]:
    """The means over all processes, of counts the sums."""
    values = distributed.gather(np.asarray([[logged[k] for k in sorted(logged)]], np.float32)).mean(0)
    counts = {"grader/failures": jax.process_count()}
    return {k: float(v) * counts.get(k, 1) for k, v in zip(sorted(logged), values, strict=True)}


def restored(kept: dict[str, Any] | None, rows: list[int]) -> tuple[list[Rollout], int]:
    """(rollouts that wait, how many have been dropped) of this process, whose `rows` they must be. With another number
    of processes than saved them, or where one has other rows on another mesh, none waits in any: they are sampled anew.
    """
    if not kept:
        return [], 0
    me = jax.process_index()
    if len(kept["waiting"]) != jax.process_count() or distributed.any_of(kept.get("rows", {me: None})[me] != rows):
        return [], max(kept["dropped"])
    data = base64.b64decode(kept["waiting"][me])
    return from_bytes(data) if data else [], kept["dropped"][me]


def widened(rollout: Rollout, rows: int, prompts: int, pad_id: int) -> Rollout:
    """Its rows and its prompts padded to so many tokens."""
    more = [(0, 0), (0, 0), (0, rows - rollout.segment.shape[-1])]
    values = {"completion": pad_id, "segment": 0, "sampler_logp": 0}
    padded = {k: np.pad(getattr(rollout, k), more, constant_values=v) for k, v in values.items()}
    tokens = rollout.prompts.tokens
    tokens = np.pad(tokens, [(0, 0), (0, prompts - tokens.shape[1])], constant_values=pad_id)
    return rollout.replace(prompts=rollout.prompts.replace(tokens=tokens), **padded)


def refuse_missing_chains(world: World) -> int:
    """Tokens of the longest given chain (sft on chains); every training row must have one."""
    missing = [row.example.id for row in world.train if not row.example.chain]
    if missing:
        raise UserError(
            f"reward.sft_chain is {world.config.reward.sft_chain!r}, but {len(missing)} of {len(world.train)} training "
            f"rows have no chain (the first is {missing[0]}); give them one or set reward.sft_chain=none"
        )
    tokens = world.tokenizer([row.example.chain for row in world.train], add_special_tokens=False)["input_ids"]
    return max(map(len, tokens)) + 2  # white space at its ends may take a token each


def rows_behind(world: World, rollout: Rollout, rows_of: Callable[[int], np.ndarray]) -> list[EncodedExample]:
    """The questions of a rollout, found by its uids: place number uid % P among the P of step uid // P."""
    p = world.config.train.prompts_per_step
    step, at = int(rollout.prompts.uid[0]) // p, rollout.prompts.uid % p
    return [world.train[i] for i in rows_of(step)[at]]


def write_samples(world: World, writer, step: int, rollout: Rollout, batch: Batch, per_row, rows_of) -> None:
    """samples.jsonl: every chain of the first few prompts, with all that it scored; now and then one to the console.

    With several processes: of the prompts of the first.
    """
    c = world.config.report
    to_file = bool(c.samples_every) and step % c.samples_every == 0
    to_console = bool(c.console_samples) and step % c.console_samples == 0
    if not to_file and not to_console or not distributed.first():
        return
    rows = rows_behind(world, rollout, rows_of)[: max(c.sample_prompts if to_file else 0, int(to_console))]
    values = {k: v[world.places.own[: len(rows)]] for k, v in per_row.items()}
    text = world.tokenizer.decode
    for i, row in enumerate(rows):
        bare = {}
        if batch.bare is not None:
            logp = values["no_chain_answer_logp"][i][batch.bare.segment[i, 0] == REFERENCE]
            bare["answer_logp_no_chain"] = [round(float(x), 5) for x in logp]
        for j in range(rollout.segment.shape[1]):
            kinds, ids = rollout.segment[i, j], rollout.completion[i, j]
            answer = kinds == REFERENCE
            sample = {
                "id": row.example.id,
                "prompt": row.example.prompt,
                "chain": text(ids[kinds == CHAIN]),
                "chain_tokens": int((kinds == CHAIN).sum()),
                "forced": text(ids[kinds == TAG]),
                "sampled_answer": text(ids[kinds == SAMPLED]),
                "reference_answer": row.example.answer,
                "answer_tokens": [text([t]) for t in ids[answer]],
                "answer_logp": [round(float(x), 5) for x in values["answer_logp"][i, j][answer]],
                **bare,
                "scored": batch.scored[i, j][answer].astype(int),
                # Digits, not decimals: the probability of a long answer is 1e-40 or less.
                **{k: float(f"{values[k][i, j]:.6g}") for k in values if k.startswith("reward")},
                "advantage": float(f"{values['advantage'][i, j]:.6g}"),
                "truncated": bool(rollout.truncated[i, j]),
                "version": rollout.version,
            }
            if to_file and i < c.sample_prompts:
                writer.sample(step, sample)
            if to_console and i == j == 0:
                chain = " ".join(sample["chain"].removesuffix(world.fmt.answer_open).split())
                chain = chain.removesuffix(world.fmt.think_close)
                say(f"    {row.example.prompt}  {chain}  [{row.example.answer}]  reward {sample['reward']:.2f}")
