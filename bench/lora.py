"""A learner's step that trains all parameters, and steps that train adapters: time and memory, by the base's type.

    python -m bench.lora [--model=W135] [--shape=8,4,128,128] [--rounds=5] [--micro=2] [--kl] [--kinds full lora]
    python -m bench.lora --memory ...       each kind once, in a process of its own: the most that it held

Random weights; no sampling. The kinds alternate, and times are given as ratios to the full step of the same round.
`--kl` adds the KL term: for the full step it needs a second model, for adapters the base is the reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

from bench import work
from bench.flops import Shape
from rl_likelihood.learner.step import init_reference, init_state, make_step
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.lora import LoraConfig, init_adapters
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.tables import parse_reward

KINDS = {
    "full": LoraConfig(),
    "lora": LoraConfig(rank=1),
    "lora bfloat16": LoraConfig(rank=1, base_dtype="bfloat16"),
    "lora int8": LoraConfig(rank=1, base_dtype="int8"),
}


def call(kind: str, case: work.Case, rank: int, kl: bool) -> Callable[[], Any]:
    """A step of this kind on a batch of random ids; it changes its own state."""
    base = work.setup(case)
    lora = dataclasses.replace(KINDS[kind], rank=rank) if KINDS[kind].rank else KINDS[kind]
    reward = RewardConfig(terms=parse_reward("math"))
    loss = LossConfig(kl="k3", kl_coef=0.04) if kl else LossConfig()
    s = dataclasses.replace(base, step=dataclasses.replace(base.step, reward=reward, loss=loss, lora=lora))
    model, batch, optimizer = case.model, s.random_batch(), s.optimizer
    params = jax.jit(work.init, static_argnums=1)(jax.random.key(0), model)
    frozen = init_reference(params, s.mesh, model, s.step)
    trained = init_adapters(jax.random.key(1), model, lora) if lora.rank else params
    del params
    state = init_state(trained, optimizer, s.step)
    del trained
    step = make_step(model, s.step, optimizer, s.mesh, batch)

    def learn():
        nonlocal state
        state, out, _ = step(state, frozen, batch)
        return jax.block_until_ready(out)

    return learn


def memory(kind: str, case: work.Case, rank: int, kl: bool) -> None:
    """One step; prints the most that the process held."""
    call(kind, case, rank, kl)()
    print(json.dumps({"kind": kind, "peak_gib": round(work.peak_memory(), 2)}), flush=True)


def times(case: work.Case, args: argparse.Namespace) -> None:
    """All kinds in turn; a line for each."""
    seconds = work.rounds({kind: call(kind, case, args.rank, args.kl) for kind in args.kinds}, args.rounds)
    for kind, of in seconds.items():
        ratio = statistics.median(x / full for x, full in zip(of, seconds["full"], strict=True))
        row = {"kind": kind, "of_full": round(ratio, 3), **{k: round(v, 3) for k, v in work.summary(of).items()}}
        print(json.dumps(row), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="W135", choices=work.MODELS)
    arguments.add_argument("--shape", default="8,4,128,128", help="prompts, group, prompt tokens, completion tokens")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--micro", type=int, default=2, help="prompts in a micro-batch")
    arguments.add_argument("--kl", action="store_true")
    arguments.add_argument("--memory", action="store_true")
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="begin with full")
    arguments.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    shape = Shape(*map(int, args.shape.split(",")))
    case = work.Case(work.MODELS[args.model], shape, args.micro)
    if args.kind:
        memory(args.kind, case, args.rank, args.kl)
    elif args.memory:
        for kind in args.kinds:
            subprocess.run([sys.executable, "-m", "bench.lora", *sys.argv[1:], f"--kind={kind}"], check=True)
    else:
        times(case, args)


if __name__ == "__main__":
    main()
