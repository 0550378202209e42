"""Supervised steps before RL, on the model's own chains or on chains of the data.

warm_start.chains=own teaches only the format. With worked examples in its prompt, the initial model writes greedy
chains and answers, right or wrong. They become the targets for the prompt without examples. No reference answer is
used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_likelihood.data import prompts
from rl_likelihood.data.given_chains import fitting_chains
from rl_likelihood.data.order import in_batches, order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import all_finite, init_state, make_step, state_shardings
from rl_likelihood.mesh import by_prompt, put
from rl_likelihood.model.architecture import Params
from rl_likelihood.model.lora import merged
from rl_likelihood.progress import Progress, counted
from rl_likelihood.rollouts.conversations import conversations_of, say_longer, targets_of
from rl_likelihood.rollouts.host_rewards import sampled_texts
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, batch_size, sample_all, sampler_weights, using
from rl_likelihood.runtime.run_files import replace
from rl_likelihood.shapes import REFERENCE, Batch, Example
from rl_likelihood.task import WARM_START, Task, trained

FILE = "warm_start.jsonl"


def with_worked_examples(task: Task, rows: list[EncodedExample], examples: int) -> tuple[list[EncodedExample], int]:
    """(the same questions with worked examples in their prompts, the width of these prompts)."""
    cfg = dataclasses.replace(
        task.config.prompt,
        examples=examples,
        examples_field="warm_start.examples",
        max_prompt=task.model.max_position,
    )
    encoded = prompts.encode_all([r.example for r in rows], task.tokenizer, cfg, task.fmt)
    return encoded, max(len(r.prompt_ids) for r in encoded)


def own_chains(
    task: Task, devices: Devices, params: Params, between: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Greedy chains and answers to training questions, as rows {id, prompt, chain, answer, task}. Only replies in the
    format are returned. `between`: called before each batch."""
    c = task.config
    rows = task.train[: c.warm_start.prompts]
    encoded, width = with_worked_examples(task, rows, c.warm_start.examples)
    size = batch_size(min(c.eval.batch_prompts, len(rows)), devices)
    sampler = task.sampler(group_size=1, temperature=(0.0,), max_sampled_answer=c.eval_answer, width_multiple=0)
    weights = sampler_weights(params, task.model, devices)
    out = []
    with Progress("warm start: sampled", len(rows), "chains", say) as progress:
        for start, part in in_batches(encoded, size):
            between()
            collated = task.collate(part, np.arange(start, start + size), width)
            rollout = sample_all(weights, collated, task.key(WARM_START), sampler)
            sources = rows[start : start + size]
            for row, (text,) in zip(sources, sampled_texts(task, rollout), strict=False):
                answer = (graders.extract_answer(text, task.fmt) or "").strip()
                chain = task.fmt.chain_of(text).strip()
                if answer and chain and "<" not in chain + answer:
                    e = row.example
                    out.append({"id": e.id, "prompt": e.prompt, "chain": chain, "answer": answer, "task": e.task})
            progress.advance(len(sources))
    say(f"warm start: {len(out)} of {len(rows)} own chains are in the format")
    return out


def chains_to_learn(
    task: Task, devices: Devices, params: Params, workdir: Path, between: Callable[[], None] = lambda: None
) -> list[EncodedExample]:
    """The questions with the chains for the warm start."""
    w = task.config.warm_start
    if w.chains == "own":
        chains = own_chains(task, devices, params, between)
        distributed.by_first(lambda: replace(workdir / FILE, "".join(json.dumps(row) + "\n" for row in chains)))
        examples = [Example(**row) for row in chains]
        encoded = prompts.encode_all(examples, task.tokenizer, task.config.prompt, task.fmt)
    else:
        encoded = _fitting(task, _taught(task, [row for row in task.train if row.example.chain]))
    if len(encoded) < w.prompts_per_step:
        raise UserError(
            f"warm_start.prompts_per_step is {w.prompts_per_step}, but there are only {len(encoded)} chains "
            f"(warm_start.chains={w.chains!r}); lower it or give more"
        )
    return encoded


def _taught(task: Task, rows: list[EncodedExample]) -> list[EncodedExample]:
    """The rows with the answers that their chains lead to, if the data set names these in `check`. After a wrong chain,
    the reference would teach the model not to read chains."""
    answers = [json.loads(row.example.check or "{}").get("taught") for row in rows]
    if None in answers:
        return rows
    examples = [dataclasses.replace(row.example, answer=answer) for row, answer in zip(rows, answers, strict=True)]
    return prompts.encode_all(examples, task.tokenizer, task.config.prompt, task.fmt)


def _fitting(task: Task, rows: list[EncodedExample]) -> list[EncodedExample]:
    """The rows with chains that the model has positions for; those left out are named."""
    if task.config.converses:
        return rows  # `targets_of` cuts them
    skip = task.config.data.skip_bad_rows
    rows, long, _ = fitting_chains(rows, task.tokenizer, task.fmt, task.model.max_position, skip)
    if long:
        say(f"warning: warm start: left out {counted(len(long), 'row')} ({'; '.join(long[:3])})")
    return rows


def warm_start(task: Task, devices: Devices, params: Params, workdir: Path, between: Callable[[], None]) -> Params:
    """The parameters after `warm_start.steps` supervised steps on chain, closing tags and answer. With LoRA, adapters
    are trained and then added to the parameters, and the run begins with new adapters.

    `between`: called before each step; it may raise to stop.
    """
    c, mesh = task.config, devices.learner
    steps = c.warm_start.steps
    rows = chains_to_learn(task, devices, params, workdir, between)
    if c.converses:
        say_longer(task, rows)
    targets = targets_of(task, rows, conversations_of(task), learn_tags=True)
    width = max(len(ids) for ids, _ in targets)
    rows_of = order(len(rows), c.warm_start.prompts_per_step, c.seed)

    def batch_of(i: int) -> Batch:
        index = rows_of(i)
        collated = task.collate([rows[j] for j in index], index)
        batch = to_batch(given_rollout(collated, [targets[j] for j in index], task.fmt.pad_id, width))
        # The whole format is learned, including brackets and the closing tag, for any prompt.score_delims.
        batch = batch.replace(scored=batch.segment == REFERENCE)
        return put(batch, by_prompt(mesh, batch))

    optimizer = make_optimizer(c.warm_optimizer)
    state_at = state_shardings(mesh, task.model, optimizer, c.warm_step)
    state = jax.jit(lambda p: init_state(trained(task, p), optimizer, c.warm_step), out_shardings=state_at)(params)
    base = params if c.lora.rank else None
    step = make_step(task.model, c.warm_step, optimizer, mesh, batch_of(0))
    with Progress("warm start: trained", steps, "steps", say) as progress:
        for i in range(steps):
            between()
            with using(mesh):
                state, out, _ = step(state, base, batch_of(i))
            progress.advance()
            if i == 0 or (i + 1) % 10 == 0 or i + 1 == steps:  # not every step, because reading waits for the device
                loss = float(out["loss/answer"])
                progress.note = f"loss {loss:.3f} nats per token"
                refuse_diverged(np.isfinite(loss), i + 1, c.warm_start.lr)
    say(f"warm start: {steps} steps, loss {loss:.3f} nats per token")
    trained_params = state.params if base is None else merged(base, state.params, c.lora)
    refuse_diverged(all_finite(trained_params), steps, c.warm_start.lr)
    return trained_params


def refuse_diverged(finite: Any, step: int, lr: float) -> None:
    """Raises unless `finite`, which every process computes alike."""
    if not finite:
        raise distributed.SharedRefusal(
            f"warm start: step {step}: loss or parameters are not finite, and nothing has been saved; lower "
            f"warm_start.lr ({lr:g}) and choose another --workdir"
        )
