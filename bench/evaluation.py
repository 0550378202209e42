"""What evaluation costs beside the sampling it cannot do without: greedy answers to 200 questions.

    make bench        (or: python bench/evaluation.py [--questions=200] [--batch=50] [--rounds=3] [--small])

The unit is the time in which the sampler alone makes the same tokens, in the same batches, called by hand moments
before and after. What evaluation adds is decoding texts, finding and grading answers, a fingerprint of the weights,
records on disk and the intervals. Random weights of SmolLM2-135M's shape over bytes, so that no row stops early: chains
of 64 tokens after prompts of about 100. The target is a ratio of at most 1.2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.base import get_config  # noqa: E402
from rl_likelihood import config as configs  # noqa: E402
from rl_likelihood.model import decoder  # noqa: E402
from rl_likelihood.run.evaluation import evaluate  # noqa: E402
from rl_likelihood.run.world import EVALUATE, World, in_batches, load  # noqa: E402
from rl_likelihood.sampler import decode  # noqa: E402


def world_of(questions: int, batch: int, small: bool) -> tuple[World, decoder.Params]:
    """Sums to ask, and a model of random weights."""
    c = get_config()
    c.update_from_flattened_dict({
        "model.preset": "nano" if small else "tiny", "model.compute_dtype": "float32", "model.scan_layers": False,
        "data.tasks": ("chain_sum",), "data.train_size": 1, "data.heldout_size": questions, "prompt.max_prompt": 320,
        "sampler.max_chain": 64, "eval.prompts": questions, "eval.samples": 0, "eval.batch_prompts": batch,
    })  # fmt: skip
    world, params = load(configs.build(c), training=False)
    if not small:
        shape = {"width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp": 1536}
        model = dataclasses.replace(world.model, **shape)
        world, params = dataclasses.replace(world, model=model), decoder.init(jax.random.key(0), model)
    return world, jax.tree.map(jnp.asarray, params)


def sampler_alone(world: World, params: decoder.Params) -> int:
    """The tokens of the same evaluation, and nothing else; how many they are."""
    c = world.config
    rows, size = world.heldout[: c.eval.prompts], c.eval.batch_prompts
    weights = decode.prepare(params, world.model)
    sampler = world.sampler(group_size=1, temperature=(0.0,), width_multiple=0, max_sampled_answer=world.answer_room)
    made = 0
    for at, part in in_batches(rows, size):
        uid = np.arange(at, at + size)
        out = decode.sample(weights, world.collate(part, uid), world.key(EVALUATE), sampler)
        made += int((out.sampler_logp != 0).sum())
    return made


def evaluation(world: World, params: decoder.Params) -> None:
    """All of it, with records, from the start."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(world, params, world.heldout, folder=folder)


def seconds(f, *args) -> float:
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--questions", type=int, default=200)
    a.add_argument("--batch", type=int, default=50)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--small", action="store_true", help="two layers: to see that it runs")
    a = a.parse_args()
    world, params = world_of(a.questions, a.batch, a.small)
    tokens = sampler_alone(world, params)  # compiles
    evaluation(world, params)
    pairs = [(seconds(evaluation, world, params), seconds(sampler_alone, world, params)) for _ in range(a.rounds)]
    ratios = [e / s for e, s in pairs]
    print(json.dumps({
        "bench": "evaluation", "questions": a.questions, "batch": a.batch, "tokens": tokens, "small": a.small,
        "evaluation_s": round(statistics.median(e for e, _ in pairs), 2),
        "sampler_s": round(statistics.median(s for _, s in pairs), 2),
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios], "target": 1.2,
        "machine": f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device(s)",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
