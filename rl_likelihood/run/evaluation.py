"""Evaluation on held-out questions: what a model answers, and how likely it finds the reference answers.

One pass samples, for every question, a greedy chain with its answer and `eval.samples` chains with theirs
at temperature 1; a second samples the greedy answer after no chain; a third scores the reference answer
after each sampled chain and after no chain.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rl_likelihood.config import largest_divisor
from rl_likelihood.data import grading
from rl_likelihood.data.grading_pool import Pool
from rl_likelihood.data.prompts import EncodedExample, no_chain_ids
from rl_likelihood.learner.batching import slice_rows, to_batch, with_no_chain
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.decoder import Params
from rl_likelihood.run.world import EVALUATE, World, in_batches
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, TAG

# Held-out questions whose greedy answers are kept with the numbers.
EXAMPLES = 4


def evaluate(
    world: World, params: Params, rows: list[EncodedExample], between: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The metrics of DESIGN section 6 over `rows`. The same parameters give the same numbers.

    `between` is called between batches; it may raise to break off.

    greedy_success and sampled_success are shares that `eval.grader` finds right, with standard errors; the
    names ending in _no_chain are of the answer straight after the question (what `sft` trains);
    perplexity = exp(-mean over questions of log p(answer | chain) / tokens), chains at temperature 1, and
    log_prob_mcN its logarithm's negative with the answer's likelihood averaged over N chains first.
    """
    with Pool() as pool:
        return _evaluate(world, params, rows[: world.config.eval.prompts], between, pool)


def _evaluate(
    world: World, params: Params, rows: list[EncodedExample], between: Callable[[], None], pool: Pool
) -> dict[str, Any]:
    c = world.config
    m, n = c.eval.samples, len(rows)
    size = min(c.eval.batch_prompts, n)
    width = max(c.prompt.max_prompt, *(len(r.prompt_ids) for r in rows))
    sampler = world.sampler(
        group_size=1 + m, temperature=(0.0, *(1.0,) * m), max_sampled_answer=world.answer_room, width_multiple=0
    )
    step = dataclasses.replace(
        world.settings.step, two_branches=True, no_chain_row=False, temperature=1.0,
        micro_batch_prompts=largest_divisor(size, 8),
    )  # fmt: skip
    score = make_score(world.model, step)
    weights = decode.prepare(params, world.model)
    key = world.key(EVALUATE)

    start = time.perf_counter()
    parts: list[dict[str, np.ndarray]] = []
    examples: list[dict[str, Any]] = []
    for at, part in in_batches(rows, size):
        between()
        rollout = decode.sample(weights, world.collate(part, np.arange(at, at + size), width), key, sampler)
        texts = world.sampled_text(rollout)
        answers = [[grading.extract_answer(text, world.fmt) for text in group] for group in texts]
        direct = _answers_without_chain(world, weights, part, np.arange(at, at + size), width, key)
        # The greedy answer, the sampled ones, and the one without a chain.
        every = [[*group, a] for group, a in zip(answers, direct, strict=True)]
        references = [r.example.answer for r, group in zip(part, every, strict=True) for _ in group]
        marks = pool.grade(c.eval.grader, references, [a for group in every for a in group])
        right = np.asarray([mark is True for mark in marks]).reshape(size, m + 2)
        # Sampled chains without the greedy one, then the row without a chain.
        sampled_rows = to_batch(slice_rows(rollout, 1, None))
        batch = with_no_chain(sampled_rows, rollout.prompts, world.fmt.close_think_ids, world.fmt.pad_id)
        logp = score(params, batch).stats.log_prob
        parts.append({
            "right": right[:, :-1].astype(np.float64),
            "direct": right[:, -1].astype(np.float64),
            "logp": np.where(batch.scored, logp, 0).sum(-1, dtype=np.float64),
            "tokens": np.maximum(batch.scored.sum(-1), 1),
            "length": ((rollout.segment == CHAIN) | (rollout.segment == TAG)).sum(-1)[:, 1:],
            "truncated": rollout.truncated[:, 1:],
        })  # fmt: skip
        for i, row in enumerate(rows[at : at + min(size, EXAMPLES - len(examples))]):
            e = row.example
            shown = {"prompt": e.prompt, "reference": e.answer, "text": texts[i][0], "right": bool(right[i, 0])}
            examples.append(shown)
    all_rows = {k: np.concatenate([part[k] for part in parts])[:n] for k in parts[0]}
    greedy, sampled = all_rows["right"][:, 0], all_rows["right"][:, 1:]
    per_token = all_rows["logp"] / all_rows["tokens"]
    chain, no_chain = per_token[:, :-1], per_token[:, -1]
    marginal = (np.logaddexp.reduce(all_rows["logp"][:, :-1], axis=1) - math.log(m)) / all_rows["tokens"][:, 0]
    out = {
        "greedy_success": greedy.mean(),
        "greedy_success_se": _standard_error(greedy),
        "sampled_success": sampled.mean(),
        "sampled_success_se": _standard_error(sampled.mean(1)),
        **{f"pass@{k}": _pass_at(sampled, k).mean() for k in (2**i for i in range(1, 11)) if k <= m},
        "greedy_success_no_chain": all_rows["direct"].mean(),
        "log_prob_mc1": chain.mean(),
        "log_prob_mc1_se": _standard_error(chain.mean(1)),
        **({f"log_prob_mc{m}": marginal.mean()} if m > 1 else {}),
        "perplexity": np.exp(-chain.mean()),
        "perplexity_no_chain": np.exp(-no_chain.mean()),
        "chain_length": all_rows["length"].mean(),
        "truncated": all_rows["truncated"].mean(),
        "grader_failures": pool.failures,  # counted as wrong: a grader that hung or crashed
        "seconds": time.perf_counter() - start,
    }
    return {k: round(float(v), 6) for k, v in out.items()} | {"questions": n, "examples": examples}


def _answers_without_chain(world: World, weights: Params, rows, uid, width: int, key) -> list[str | None]:
    """Greedy answers after the empty scaffold `</think> <answer`."""
    scaffold = no_chain_ids(world.fmt)
    opened = [dataclasses.replace(r, prompt_ids=np.concatenate([r.prompt_ids, scaffold])) for r in rows]
    prompts = world.collate(opened, uid, width + len(scaffold))
    cfg = world.sampler(group_size=1, temperature=(0.0,))
    ids, _, length = decode.sample_ids(weights, prompts, key, cfg, world.fmt.answer_close, world.answer_room)
    texts = [
        world.tokenizer.decode(row[0][: n[0]], skip_special_tokens=True) for row, n in zip(ids, length, strict=True)
    ]
    return [grading.extract_answer(world.fmt.answer_open + text, world.fmt) for text in texts]


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0


def _pass_at(right: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each question from n samples with c right: 1 - C(n-c, k) / C(n, k)."""
    n = right.shape[1]
    return np.asarray([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in right.sum(1)])
