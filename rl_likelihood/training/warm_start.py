"""Supervised steps before RL: the model's own chains in the wanted format, or chains that the data gives.

`own` teaches the format only: greedy chains and answers of the untouched model, right or wrong, sampled
with worked examples in the prompt, become targets for the prompt without them. No reference answer is used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rl_likelihood import mesh as meshes
from rl_likelihood.data import prompts
from rl_likelihood.data.order import order
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_state, make_step, state_shardings
from rl_likelihood.model.decoder import Params
from rl_likelihood.runtime import distributed
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, Example, UserError
from rl_likelihood.task import WARM_START, World, in_batches, using

FILE = "warm_start.jsonl"


def with_worked_examples(world: World, rows: list[EncodedExample], examples: int) -> tuple[list[EncodedExample], int]:
    """The same questions with worked examples before them, and the prompt width they need."""
    cfg = dataclasses.replace(world.settings.prompt, examples=examples, max_prompt=world.model.max_position)
    encoded = prompts.encode_all([r.example for r in rows], world.tokenizer, cfg, world.fmt)
    return encoded, max(len(r.prompt_ids) for r in encoded)


def own_chains(world: World, params: Params, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Greedy chains and answers of `params` on training questions: rows {id, prompt, chain, answer, task}."""
    c = world.config
    rows = world.train[: c.warm_start.prompts]
    encoded, width = with_worked_examples(world, rows, c.warm_start.examples)
    size = world.batch_size(min(c.eval.batch_prompts, len(rows)))
    sampler = world.sampler(group_size=1, temperature=(0.0,), max_sampled_answer=world.answer_room, width_multiple=0)
    weights = world.weights(params)
    out = []
    for at, part in in_batches(encoded, size):
        collated = world.collate(part, np.arange(at, at + size), width)
        rollout = world.sample(weights, collated, world.key(WARM_START), sampler)
        for row, (text,) in zip(rows[at : at + size], world.sampled_text(rollout), strict=False):
            answer = (graders.extract_answer(text, world.fmt) or "").strip()
            chain = text.split(world.fmt.answer_open)[0].split(world.fmt.think_close)[0].strip()
            if answer and chain and "<" not in chain + answer:
                e = row.example
                out.append({"id": e.id, "prompt": e.prompt, "chain": chain, "answer": answer, "task": e.task})
    say(f"warm start: {len(out)} of {len(rows)} own chains are in the format")
    return out


def warm_start(
    world: World,
    params: Params,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    say: Callable[[str], None],
    between: Callable[[], None],
) -> Params:
    """Parameters after `warm_start.steps` supervised steps on chain, closing tags and answer.

    `between` is called between steps; it may raise to break off.
    """
    c = world.config
    w = c.warm_start
    if w.chains == "own":
        chains = own_chains(world, params, say)
        examples = [Example(**row) for row in chains]
        if distributed.first():
            (workdir / FILE).write_text("".join(json.dumps(row) + "\n" for row in chains))
        encoded = prompts.encode_all(examples, world.tokenizer, world.settings.prompt, world.fmt)
    else:
        encoded = [row for row in world.train if row.example.chain]
    if len(encoded) < w.prompts_per_step:
        raise UserError(
            f"warm_start.prompts_per_step is {w.prompts_per_step} but only {len(encoded)} chains are there "
            f"(warm_start.chains={w.chains!r}); lower it or give more"
        )
    targets = [prompts.completion_ids(row, row.example.chain, world.tokenizer, world.fmt) for row in encoded]
    # The closing tags are part of what is taught: they count as chain.
    targets = [(ids, np.where(kinds == TAG, CHAIN, kinds)) for ids, kinds in targets]
    width = max(len(ids) for ids, _ in targets)
    rows_of = order(len(encoded), w.prompts_per_step, c.seed)

    put = lambda batch: meshes.put(batch, meshes.by_prompt(mesh, batch))

    def batch_of(i: int):
        index = rows_of(i)
        collated = world.collate([encoded[j] for j in index], index)
        batch = to_batch(given_rollout(collated, [targets[j] for j in index], world.fmt.pad_id, width))
        # Whatever `score_delims` counts as reward, a format is learned whole: brackets and closing tag too.
        return put(batch.replace(scored=batch.segment == REFERENCE))

    optimizer, cfg = make_optimizer(world.settings.warm_optimizer), world.settings.warm_step
    placed = state_shardings(mesh, world.model, optimizer, cfg)
    state = jax.jit(lambda p: init_state(p, optimizer, cfg), out_shardings=placed)(params)
    step = make_step(world.model, cfg, optimizer, mesh, batch_of(0))
    for i in range(w.steps):
        between()
        with using(mesh):
            state, out, _ = step(state, None, batch_of(i))
        if i == 0 or (i + 1) % 10 == 0 or i + 1 == w.steps:
            say(f"warm start: step {i + 1}/{w.steps}  loss {float(out['loss/answer']):.3f} nats per token")
    return state.params
