"""Sampling, scoring, the learner's step and one iteration, compared with the machine's limits in the same run.

    make bench        (or: python -m bench.speed [--models=W135,W10] [--shapes=short,shared] [--rounds=5] [--micro=0]
                      [--remat=none] [--what=sampling,learner] [--no_chain])

Random weights: W135 has the shape of SmolLM2-135M, W10 has 6 M parameters. short: 8 prompts x 4 chains, 128 prompt and
128 completion tokens; shared: 8 x 16, 512 and 64. float32; no row stops early; the learner has a reference model. Only
operations that must be computed count (bench/flops.py). The calls alternate with those that measure the machine;
`of_matrix_rate` and `of_memory_rate` compare the fastest calls of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform

import jax

from bench import flops, machine, work


def measure(name: str, shape: str, args: argparse.Namespace) -> None:
    """One workload: a line for each of its calls."""
    w, model = work.SHAPES[shape], dataclasses.replace(work.MODELS[name], remat=args.remat)
    wanted = tuple(args.what.split(","))
    print(f"{name} {shape}: {args.rounds} rounds of {args.what}", flush=True)
    made = work.workload(work.Case(model, w, args.micro, args.no_chain), wanted)
    times = work.rounds(machine.limits() | made.calls, args.rounds)
    rate, memory = machine.matrix_rate(min(times["matrix"])), machine.memory_rate(min(times["memory"]))
    useful = {
        "prefill": flops.prefill(model, w),
        "sampling": flops.sampling(model, w),
        "scoring": flops.forward(model, w),
        "learner": flops.learner(model, w, True),
        "iteration": flops.sampling(model, w) + flops.learner(model, w, True),
    }
    head = {
        "workload": f"{name} {shape}",
        "no_chain_row": args.no_chain,
        "micro_batch_prompts": made.micro_batch,
        "remat": args.remat,
    }
    print(json.dumps(head | {"matrix_gflops": round(rate / 1e9), "memory_gb_s": round(memory / 1e9, 1)}), flush=True)
    for call in wanted:
        row = work.summary(times[call])
        row["gflops"] = useful[call] / row["fastest_s"] / 1e9
        row["of_matrix_rate"] = row["gflops"] * 1e9 / rate
        if call == "sampling" and "prefill" in times:
            steps = row["fastest_s"] - min(times["prefill"])
            row["tokens_per_s"] = w.rows * w.completion / row["fastest_s"]
            row["decode_tokens_per_s"] = w.rows * (w.completion - 1) / steps
            row["decode_of_matrix_rate"] = flops.decode(model, w) / steps / rate
            row["decode_of_memory_rate"] = flops.decode_bytes(model, w) / steps / memory
        print(f"  {call:<10}", json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
    print(f"  peak memory {work.peak_memory():.2f} GiB", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--models", default="W10,W135")
    arguments.add_argument("--shapes", default="short,shared")
    arguments.add_argument("--what", default="prefill,sampling,scoring,learner,iteration")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--micro", type=int, default=0, help="prompts in a micro-batch; 0: as in a run")
    arguments.add_argument("--remat", default="none", help="what is computed twice: none, dots or full")
    arguments.add_argument(
        "--no_chain", action="store_true", help="also score the answer without a chain, as a run does by default"
    )
    args = arguments.parse_args()
    print(json.dumps({"device": jax.devices()[0].device_kind, "machine": platform.machine(), "jax": jax.__version__}))
    for shape in args.shapes.split(","):
        for name in args.models.split(","):
            measure(name, shape, args)


if __name__ == "__main__":
    main()
