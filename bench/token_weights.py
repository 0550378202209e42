"""What token weights cost: the learner's step with nrt and with r3, over that with avg_log_prob.

    python -m bench.token_weights [--models=W10,W135] [--shapes=short] [--rounds=9]

All three have the exact answer term and the answer without a chain scored beside the chains, as a run does by default.
The last 32 tokens of each row are its reference answer. The steps alternate in one process; a ratio is the median over
the rounds of two neighbours' times. Each has a state of its own, so W135 holds about 9 GiB. The target is 1.05.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import work
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.shapes import REFERENCE
from rl_likelihood.tables import parse_reward

REWARDS: dict[str, dict[str, Any]] = {
    "avg_log_prob": {},
    "nrt": {"baseline": "frozen", "token_weights": "neg_log"},
    "r3": {},
}
TOKENS = 32


def calls(case: work.Case, tokens: int = TOKENS) -> dict[str, Callable[[], Any]]:
    """The learner's step with each reward, on the same rows."""
    made = work.setup(dataclasses.replace(case, no_chain=True))
    params, batch = made.params(), made.random_batch()
    segment = np.array(batch.segment)
    segment[..., -tokens:] = REFERENCE
    # Less likely than after most chains, so that NRT's gains are not all clipped to 0.
    base = -np.log(case.model.vocab_size) - np.random.default_rng(2).exponential(2.0, (case.shape.prompts, tokens))
    base = base.astype(np.float32)
    batch = batch.replace(segment=segment, scored=segment == REFERENCE, host_rewards={}, baseline_logp=base)
    out = {}
    for name, own in REWARDS.items():
        reward = RewardConfig(terms=parse_reward(name), **own)
        step = StepConfig(reward=reward, loss=LossConfig(), micro_batch_prompts=case.micro)
        rows = batch if own else batch.replace(baseline_logp=None)
        out[name] = work.learning_calls(dataclasses.replace(made, step=step), params, rows)["learner"]
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--models", default="W10,W135")
    arguments.add_argument("--shapes", default="short")
    arguments.add_argument("--rounds", type=int, default=9)
    args = arguments.parse_args()
    for shape in args.shapes.split(","):
        for name in args.models.split(","):
            times = work.rounds(calls(work.Case(work.MODELS[name], work.SHAPES[shape])), args.rounds)
            row: dict[str, Any] = {"workload": f"{name} {shape}", "median_s": statistics.median(times["avg_log_prob"])}
            for reward in ("nrt", "r3"):
                ratios = [a / b for a, b in zip(times[reward], times["avg_log_prob"], strict=True)]
                row[reward] = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
