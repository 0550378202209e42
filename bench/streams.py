"""Sampling in one thread, in two, and on two forced host devices, alternating: what `engine.streams_for` chooses from.

    python -m bench.streams [--models=W10,W135] [--shape=short] [--streams=1,2] [--rounds=3]

Random weights; no row stops early. Prints tokens per second of the median and of the fastest round. Each of the two
devices holds the weights. XLA_FLAGS may hold more flags, such as --xla_cpu_multi_thread_eigen=false.
"""

from __future__ import annotations

import argparse

import jax

from bench import work


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--models", default="W10,W135")
    arguments.add_argument("--shape", default="short")
    arguments.add_argument("--streams", default="1,2")
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    shape = work.SHAPES[args.shape]
    for name in args.models.split(","):
        calls = {}
        for streams in map(int, args.streams.split(",")):
            case = work.Case(work.MODELS[name], shape, streams=streams)
            calls[f"{streams} streams"] = work.workload(case, ("sampling",)).calls["sampling"]
        case = work.Case(work.MODELS[name], shape, devices=2)
        calls["2 devices"] = work.workload(case, ("sampling",)).calls["sampling"]
        for call, times in work.rounds(calls, args.rounds).items():
            s = work.summary(times)
            rate = {k: round(shape.rows * shape.completion / s[f"{k}_s"], 1) for k in ("median", "fastest")}
            print(f"{name} {args.shape}, {call}: tokens/s {rate}", flush=True)


if __name__ == "__main__":
    main()
