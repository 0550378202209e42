"""Sampling with one stream of rows, with two, and on two forced host devices, in turns: `engine.streams_for`'s choice.

    python bench/streams.py [--models=W10,W135] [--shape=short] [--streams=1,2] [--rounds=3]

Random weights, no row stops early. Tokens per second, of the median and of the fastest round. Each of the two devices
holds the weights. XLA_FLAGS may say more, as --xla_cpu_multi_thread_eigen=false.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import work  # noqa: E402


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--models", default="W10,W135")
    arguments.add_argument("--shape", default="short")
    arguments.add_argument("--streams", default="1,2")
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()
    shape = work.SHAPES[args.shape]
    for name in args.models.split(","):
        calls = {}
        for streams in map(int, args.streams.split(",")):
            made = work.workload(work.MODELS[name], shape, 1, wanted=("sampling",), streams=streams)
            calls[f"{streams} streams"] = made.calls["sampling"]
        made = work.workload(work.MODELS[name], shape, 1, wanted=("sampling",), devices=2)
        calls["2 devices"] = made.calls["sampling"]
        for call, times in work.rounds(calls, args.rounds).items():
            found = work.summary(times)
            rate = {k: round(shape.rows * shape.completion / found[f"{k}_s"], 1) for k in ("median", "fastest")}
            print(f"{name} {args.shape}, {call}: tokens/s {rate}", flush=True)


if __name__ == "__main__":
    main()
