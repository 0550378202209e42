"""The workloads of the comparisons, as calls of our code: sampling, scoring, the learner's step, one iteration."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from bench.flops import Shape
from rl_likelihood.learner.batching import no_chain_rows, to_batch
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import (
    init_reference,
    init_state,
    make_score,
    make_step,
    prompts_per_forward,
    state_shardings,
)
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.model.architecture import ModelConfig, Params, init
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.sampler import decode, engine
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.shapes import CHAIN, Batch, Prompts, Rollout, TrainState
from rl_likelihood.tables import parse_reward

MODELS = {
    "W135": ModelConfig("llama", 49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, scan_layers=False),
    "W10": ModelConfig("llama", 4096, 256, 6, 8, 8, 32, 768, rope_theta=1e5, scan_layers=False),
}
SHAPES = {"short": Shape(8, 4, 128, 128), "shared": Shape(8, 16, 512, 64)}
CALLS = ("prefill", "sampling", "scoring", "learner", "iteration")
K = TypeVar("K")
ANSWER = 8  # tokens of a reference answer, in the rows without a chain


@dataclasses.dataclass(frozen=True)
class Case:
    """What to time: a model of random weights, the sizes, and how to run it."""

    model: ModelConfig
    shape: Shape
    micro: int = 0  # prompts in a micro-batch; 0: as in a run
    no_chain: bool = False  # also score each reference answer without a chain, the default of a run
    streams: int = 0  # threads of the sampler; 0: as many as pay on this machine
    devices: int = 1  # that hold the sampler's weights; each decodes rows of its own


@dataclasses.dataclass(frozen=True)
class Work:
    """`calls` by name; the first call of each compiles it. `micro_batch`: prompts in one forward of the learner."""

    calls: dict[str, Callable[[], Any]]
    micro_batch: int


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the calls of one case share. The reward is computed on the host, from every sampled token."""

    case: Case
    step: StepConfig
    prompts: Prompts
    mesh: Mesh

    @property
    def optimizer(self):
        return make_optimizer(OptimizerConfig())

    @property
    def placed(self) -> TrainState:
        """Shardings of the state: those of a run, because other shardings would compile other programs."""
        return state_shardings(self.mesh, self.case.model, self.optimizer, self.step)

    def params(self) -> Params:
        """Random weights, the same each time."""
        made = jax.jit(init, static_argnums=1, out_shardings=self.placed.params)
        return made(jax.random.key(0), self.case.model)

    def sample(self, weights: Params, tokens: int, key: jax.Array):
        """Rows that nothing stops before they have so many tokens."""
        model, p = self.case.model, self.prompts
        never = Ends(np.zeros((model.vocab_size, 2), np.int8), np.asarray([-1], np.int32))
        temperature, zero = np.ones(self.case.shape.group, np.float32), np.int32(0)
        request = Request(p.tokens, p.length, p.uid, key, temperature, never, pad_id=zero, first_chain=zero)
        return engine.sample_rows(weights, model, request, tokens, streams=self.case.streams)

    def batch(self, ids: np.ndarray, logp: np.ndarray) -> Batch:
        """The learner's batch of sampled rows."""
        rollout = Rollout(self.prompts, ids, np.full(ids.shape, CHAIN), logp, np.zeros(ids.shape[:2], bool))
        batch = to_batch(rollout, {"math": (ids % 7 == 0).sum(-1).astype(np.float32)})
        return batch.replace(no_chain=no_chain_rows(self.prompts, (), 0)) if self.case.no_chain else batch

    def random_batch(self) -> Batch:
        """A batch of random ids."""
        w = self.case.shape
        shape = (w.prompts, w.group, w.completion)
        ids = np.random.default_rng(1).integers(3, self.case.model.vocab_size, shape)
        return self.batch(ids.astype(np.int32), np.zeros(shape, np.float32))


def setup(case: Case) -> Setup:
    """Random prompts, a reward of the host, KL to a reference model."""
    rng, w, vocab = np.random.default_rng(0), case.shape, case.model.vocab_size
    prompts = Prompts(
        tokens=rng.integers(3, vocab, (w.prompts, w.prompt)).astype(np.int32),
        length=np.full(w.prompts, w.prompt, np.int32),
        answer=rng.integers(3, vocab, (w.prompts, ANSWER)).astype(np.int32),
        answer_length=np.full(w.prompts, ANSWER, np.int32),
        answer_scored=np.ones((w.prompts, ANSWER), bool),
        uid=np.arange(w.prompts),
    )
    step = StepConfig(
        reward=RewardConfig(terms=parse_reward("math")),
        loss=LossConfig(kl="k3", kl_coef=0.04),
        micro_batch_prompts=case.micro,
    )
    return Setup(case, step, prompts, make_mesh((1, 1, 1), jax.devices()[:1]))


def workload(case: Case, wanted: tuple[str, ...] = CALLS) -> Work:
    """The calls `wanted`."""
    s = setup(case)
    params, batch = s.params(), s.random_batch()
    calls = sampling_calls(s, params)
    if "scoring" in wanted:
        score = make_score(case.model, s.step)
        calls["scoring"] = lambda: score(params, batch.replace(no_chain=None))
    if {"learner", "iteration"} & set(wanted):
        calls |= learning_calls(s, params, batch)
    return Work({name: calls[name] for name in wanted}, prompts_per_forward(batch, s.step))


def sampling_calls(s: Setup, params: Params) -> dict[str, Callable[[], Any]]:
    """`prefill` samples one token, `sampling` all of them."""
    weights = decode.prepare(params, s.case.model)
    if s.case.devices > 1:
        mesh = make_mesh((s.case.devices, 1, 1), jax.devices()[: s.case.devices])
        weights = jax.device_put(weights, replicated(mesh))
    return {
        "prefill": lambda: s.sample(weights, 1, jax.random.key(1)),
        "sampling": lambda: s.sample(weights, s.case.shape.completion, jax.random.key(1)),
    }


def learning_calls(s: Setup, params: Params, batch: Batch) -> dict[str, Callable[[], Any]]:
    """`learner` takes a step on the given batch; `iteration` samples a batch first. Both change the same state."""
    model, optimizer = s.case.model, s.optimizer
    step = make_step(model, s.step, optimizer, s.mesh, batch)
    reference = init_reference(params, s.mesh, model, s.step)
    state = jax.jit(lambda p: init_state(p, optimizer, s.step), out_shardings=s.placed)(params)
    number = 0

    def learn(batch: Batch):
        nonlocal state
        state, out, _ = step(state, reference, batch)
        return jax.block_until_ready(out)

    def iteration():
        nonlocal number
        number += 1
        weights = decode.prepare(state.params, model)
        ids, logp, _ = s.sample(weights, s.case.shape.completion, jax.random.key(number))
        del weights  # before the step, as in a run
        return learn(s.batch(ids, logp))

    return {"learner": lambda: learn(batch), "iteration": iteration}


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call that has been compiled."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def rounds(calls: dict[K, Callable[[], Any]], n: int) -> dict[K, list[float]]:
    """Times of n calls of each, alternating, after one call of each that is not timed."""
    for call in calls.values():
        seconds(call)
    times: dict[K, list[float]] = {name: [] for name in calls}
    for _ in range(n):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """The median, the fastest, and the spread: slowest minus fastest, over the median."""
    middle = statistics.median(times)
    return {"median_s": middle, "fastest_s": min(times), "spread": (max(times) - min(times)) / middle}


def peak_memory() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
