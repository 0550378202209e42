"""Evaluation on held-out questions: python -m rl_likelihood.evaluate --config=... --workdir=DIR [--step=N].

One pass samples, for every question, a greedy chain with its answer and `eval.samples` chains with theirs
at temperature 1; a second scores the reference answer after each of the latter and after no chain.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from rl_likelihood import config as configs
from rl_likelihood.data import grading
from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.decoder import Params
from rl_likelihood.pod import checkpoint
from rl_likelihood.report import metrics
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, TAG, Rollout
from rl_likelihood.world import EVALUATE, World, load, model_settings


def evaluate(world: World, params: Params, rows: list[EncodedExample]) -> dict[str, float]:
    """The metrics of DESIGN section 6 over `rows`. The same parameters give the same numbers.

    greedy_success and sampled_success are shares of exact matches, with their standard errors;
    perplexity = exp(-mean over questions of log p(answer | chain) / tokens), chains at temperature 1, and
    log_prob_mcN its logarithm's negative with the answer's likelihood averaged over N chains first.
    """
    c = world.config
    rows = rows[: c.eval.prompts]
    if not rows:
        return {}
    m, n = c.eval.samples, len(rows)
    size = min(c.eval.batch_prompts, n)
    width = max(len(r.prompt_ids) for r in rows)
    width = max(width, c.prompt.max_prompt)
    sampler = world.sampler(
        group_size=1 + m, temperature=(0.0, *(1.0,) * m), max_sampled_answer=c.eval.max_sampled_answer, width_multiple=0
    )
    step = dataclasses.replace(
        world.settings.step, two_branches=True, temperature=1.0,
        micro_batch_prompts=max(k for k in range(1, 9) if size % k == 0),
    )  # fmt: skip
    score = make_score(world.model, step)
    weights = decode.prepare(params, world.model)
    key = world.key(EVALUATE)

    right, mean_logp, lengths, truncated = [], [], [], []
    start = time.perf_counter()
    for at in range(0, n, size):
        part = rows[at : at + size]
        real = len(part)
        part = part + part[-1:] * (size - real)  # one shape, one program
        prompts = world.collate(part, np.arange(at, at + size), width)
        rollout = decode.sample(weights, prompts, key, sampler)
        answers = world.sampled_answers(rollout)
        right.append([[grading.exact_match(r.example.answer, a) for a in g] for r, g in zip(part, answers, strict=True)][:real])
        batch = to_batch(_with_no_chain(world, part, rollout))
        stats = score(params, batch)
        n_scored = np.maximum(batch.scored.sum(-1), 1)
        mean_logp.append((np.where(batch.scored, stats.stats.log_prob, 0).sum(-1), n_scored))
        mean_logp[-1] = tuple(x[:real] for x in mean_logp[-1])
        chains = ((rollout.segment == CHAIN) | (rollout.segment == TAG)).sum(-1)
        lengths.append(chains[:real, 1:])
        truncated.append(rollout.truncated[:real, 1:])
    right = np.concatenate([np.asarray(r, float) for r in right])
    logp, tokens = (np.concatenate(x) for x in zip(*mean_logp, strict=True))
    logp = logp.astype(np.float64)
    sampled = right[:, 1:]
    no_chain, chain = logp[:, 0] / tokens[:, 0], logp[:, 1:] / tokens[:, 1:]
    log_marginal = np.logaddexp.reduce(logp[:, 1:], axis=1) - math.log(m)
    out = {
        "greedy_success": right[:, 0].mean(),
        "greedy_success_se": _standard_error(right[:, 0]),
        "sampled_success": sampled.mean(),
        "sampled_success_se": _standard_error(sampled.mean(1)),
        **{f"pass@{k}": _pass_at(sampled, k).mean() for k in (2**i for i in range(1, 11)) if k <= m},
        "log_prob_mc1": chain.mean(),
        "log_prob_mc1_se": _standard_error(chain.mean(1)),
        **({f"log_prob_mc{m}": (log_marginal / tokens[:, 1]).mean()} if m > 1 else {}),
        "perplexity": np.exp(-chain.mean()),
        "perplexity_no_chain": np.exp(-no_chain.mean()),
        "chain_length": np.concatenate(lengths).mean(),
        "truncated": np.concatenate(truncated).mean(),
        "questions": n,
        "seconds": time.perf_counter() - start,
    }
    return {k: round(float(v), 6) for k, v in out.items()}


def _with_no_chain(world: World, rows: list[EncodedExample], rollout: Rollout) -> Rollout:
    """The rows to score: first the empty scaffold, then the sampled chains (without the greedy one)."""
    width = rollout.completion.shape[-1]
    scaffold = [completion_ids(row, None, world.tokenizer, world.fmt) for row in rows]
    empty = given_rollout(rollout.prompts, scaffold, world.fmt.pad_id, width)
    names = ("completion", "segment", "sampler_logp", "truncated")
    return rollout.replace(
        **{k: np.concatenate([getattr(empty, k), getattr(rollout, k)[:, 1:]], 1) for k in names}
    )


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0


def _pass_at(right: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each question from n samples with c right: 1 - C(n-c, k) / C(n, k)."""
    n = right.shape[1]
    return np.asarray([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in right.sum(1)])


def main() -> None:
    c, _ = configs.from_flags()
    settings = configs.build(c)
    workdir, step = flags.FLAGS.workdir, flags.FLAGS.step
    world, params = load(settings)
    if workdir is not None and checkpoint.latest_step(workdir) is not None:
        model, params, step, _ = checkpoint.restore_params(workdir, step)
        world = dataclasses.replace(world, model=dataclasses.replace(model, **model_settings(c)))
    elif step is not None:
        configs.refuse(f"--step={step}, but {workdir} holds no checkpoint; give the --workdir of a run that saved one")
    row: dict[str, Any] = {"step": step or 0, **evaluate(world, jax.tree.map(jax.numpy.asarray, params), world.heldout)}
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        metrics.append(Path(workdir) / metrics.EVAL, row)
    print(json.dumps(row))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run; without a checkpoint there, the untouched model is evaluated")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    configs.run_main(main)
