"""The workloads of the comparisons, as calls of our own code: sampling, scoring, the learner's step, an iteration."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bench.flops import Shape
from rl_likelihood.config import parse_reward
from rl_likelihood.learner.batching import no_chain_rows, to_batch
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import at_once, init_reference, init_state, make_score, make_step, state_shardings
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.model.decoder import ModelConfig, init
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.sampler import decode, engine
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.shapes import CHAIN, Batch, Prompts, Rollout

MODELS = {
    "W135": ModelConfig("llama", 49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, scan_layers=False),
    "W10": ModelConfig("llama", 4096, 256, 6, 8, 8, 32, 768, rope_theta=1e5, scan_layers=False),
}
SHAPES = {"short": Shape(8, 4, 128, 128), "shared": Shape(8, 16, 512, 64)}
ANSWER = 8  # tokens of the reference answers of the rows without a chain


@dataclasses.dataclass
class Work:
    """One workload with random weights: `calls` by name, each ready to be timed once it has been called."""

    model: ModelConfig
    shape: Shape
    calls: dict[str, Callable[[], Any]]
    portion: int  # prompts that the learner takes at one time


def workload(
    model: ModelConfig,
    w: Shape,
    micro: int,
    reference: bool = True,
    no_chain: bool = False,
    wanted: tuple[str, ...] = (),
    streams: int = 0,
    devices: int = 1,
) -> Work:
    """The calls `wanted` (all: empty). The reward is given from outside, on every sampled token, KL to a reference.

    `no_chain`: with the reference answer without a chain beside each group, as a user has by default. `streams` of the
    sampler, 0: as many as pay on this machine; `devices`: that hold its weights, each with a stream of its own.
    """
    rng = np.random.default_rng(0)
    prompts = Prompts(
        tokens=rng.integers(3, model.vocab_size, (w.prompts, w.prompt)).astype(np.int32),
        length=np.full(w.prompts, w.prompt, np.int32),
        answer=rng.integers(3, model.vocab_size, (w.prompts, ANSWER)).astype(np.int32),
        answer_length=np.full(w.prompts, ANSWER, np.int32),
        answer_scored=np.ones((w.prompts, ANSWER), bool),
        uid=np.arange(w.prompts),
    )
    cfg = StepConfig(
        reward=RewardConfig(terms=parse_reward("math")),
        loss=LossConfig(kl="k3", kl_coef=0.04) if reference else LossConfig(),
        micro_batch_prompts=micro,
    )
    never = np.zeros((model.vocab_size, 2), np.int8)

    def sampled(weights, tokens: int, key):
        ends, none = Ends(never, np.int32([-1])), np.int32(0)
        temperature = np.ones(w.group, np.float32)
        request = Request(prompts.tokens, prompts.length, prompts.uid, key, temperature, ends, none, none)
        return engine.sample_rows(weights, model, request, tokens, streams=streams)

    def batch_of(ids, logp) -> Batch:
        segment = np.full(ids.shape, CHAIN)
        rollout = Rollout(prompts, ids, segment, logp, np.zeros(ids.shape[:2], bool))
        batch = to_batch(rollout, {"math": (ids % 7 == 0).sum(-1)})
        return batch.replace(no_chain=no_chain_rows(prompts, (), 0)) if no_chain else batch

    mesh, optimizer = make_mesh((1, 1, 1), jax.devices()[:1]), make_optimizer(OptimizerConfig())
    placed = state_shardings(mesh, model, optimizer, cfg)  # as in training: other placements compile anew
    params = jax.jit(init, static_argnums=1, out_shardings=placed.params)(jax.random.key(0), model)
    weights = decode.prepare(params, model)
    if devices > 1:
        everywhere = replicated(make_mesh((devices, 1, 1), jax.devices()[:devices]))
        weights = jax.device_put(weights, everywhere)
    some = rng.integers(3, model.vocab_size, (w.prompts, w.group, w.completion)).astype(np.int32)
    given = batch_of(some, np.zeros(some.shape, np.float32))
    calls: dict[str, Callable[[], Any]] = {
        "prefill": lambda: sampled(weights, 1, jax.random.key(1)),
        "sampling": lambda: sampled(weights, w.completion, jax.random.key(1)),
    }
    wanted = wanted or ("prefill", "sampling", "scoring", "learner", "iteration")
    if "scoring" in wanted:
        score = make_score(model, cfg)
        calls["scoring"] = lambda: score(params, given.replace(no_chain=None))
    if {"learner", "iteration"} & set(wanted):
        step = make_step(model, cfg, optimizer, mesh, given)
        ref = init_reference(params, mesh, model, cfg)
        held = {"state": jax.jit(lambda p: init_state(p, optimizer, cfg), out_shardings=placed)(params), "number": 0}

        def learn(batch):
            held["state"], out, _ = step(held["state"], ref, batch)
            return jax.block_until_ready(out)

        def iteration():
            held["number"] += 1
            new = decode.prepare(held["state"].params, model)
            ids, logp, _ = sampled(new, w.completion, jax.random.key(held["number"]))
            del new
            return learn(batch_of(ids, logp))

        calls |= {"learner": lambda: learn(given), "iteration": iteration}
    return Work(model, w, {name: calls[name] for name in wanted}, at_once(given, cfg))


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call that has been compiled."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def rounds(calls: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Times of n alternating calls of each, after one call of each that is not timed."""
    for call in calls.values():
        seconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median, fastest, and the spread: the slowest's and the fastest's distance over the median."""
    middle = statistics.median(times)
    return {"median_s": middle, "fastest_s": min(times), "spread": (max(times) - min(times)) / middle}


def peak_memory() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
