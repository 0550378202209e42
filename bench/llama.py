"""Our sampler compared with batched decoding in llama.cpp, alternating: 32 rows, 128 prompt tokens, 128 new tokens.

    python -m bench.llama --bench=LLAMA_BATCHED_BENCH [--model=W10] [--rounds=3]

LLAMA_BATCHED_BENCH is the path of llama-batched-bench in a build of llama.cpp for this machine. It reads random weights
of the same shape as ours. The work differs in two ways: llama.cpp decodes given tokens, while ours samples each token
from the whole distribution and keeps its log-prob; and each of its rows has a prompt, while four of ours share one. So
compare the rates of decoding alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from bench import work
from rl_likelihood.mesh import cores
from rl_likelihood.model.architecture import ModelConfig

WAYS = (("float32", "f32"), ("float32", "f16"), ("float16", "f16"))  # weights and cache


def write_file(m: ModelConfig, path: Path, kind: str = "float32") -> None:
    """A GGUF file of this shape with random weights of this type. Each word is its id."""
    rng, out = np.random.default_rng(0), gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(2048)
    out.add_embedding_length(m.width)
    out.add_block_count(m.layers)
    out.add_feed_forward_length(m.mlp)
    out.add_head_count(m.heads)
    out.add_head_count_kv(m.kv_heads)
    out.add_layer_norm_rms_eps(m.norm_eps)
    out.add_rope_freq_base(m.rope_theta)
    out.add_rope_dimension_count(m.head_dim)
    out.add_vocab_size(m.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list([f"w{i}" for i in range(m.vocab_size)])
    out.add_token_types([1] * m.vocab_size)
    out.add_token_merges(["w 1"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(1)

    def drawn(*shape: int) -> np.ndarray:
        return (0.02 * rng.standard_normal(shape, np.float32)).astype(kind)

    ones, query, key = np.ones(m.width, np.float32), m.heads * m.head_dim, m.kv_heads * m.head_dim
    shapes = {
        "attn_q": (query, m.width),
        "attn_k": (key, m.width),
        "attn_v": (key, m.width),
        "attn_output": (m.width, query),
        "ffn_gate": (m.mlp, m.width),
        "ffn_up": (m.mlp, m.width),
        "ffn_down": (m.width, m.mlp),
    }
    out.add_tensor("token_embd.weight", drawn(m.vocab_size, m.width))
    out.add_tensor("output_norm.weight", ones)
    for i in range(m.layers):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", ones)
        for name, shape in shapes.items():
            out.add_tensor(f"blk.{i}.{name}.weight", drawn(*shape))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def llama(program: str, path: Path, w: work.Shape, cache: str) -> dict[str, float]:
    """Tokens per second of one run of llama.cpp, and of its decoding alone."""
    wide, threads = w.prompt + w.completion, cores()
    arguments = {
        "-m": path,
        "-c": w.rows * wide + 512,
        "-b": 2048,
        "-ub": 512,
        "-npp": w.prompt,
        "-ntg": w.completion,
        "-npl": w.rows,
        "-t": threads,
        "-ctk": cache,
        "-ctv": cache,
        "--output-format": "jsonl",
    }
    command = [program, *(str(x) for pair in arguments.items() for x in pair)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{program} gave no result: {done.stderr[-500:]}")
    got = json.loads(lines[-1])
    return {"decoding": got["speed_tg"], "all": w.rows * w.completion / got["t"]}


def ours(calls: dict, w: work.Shape) -> dict[str, float]:
    """The same for our sampler. A call that samples one token gives the time of the prompts."""
    first, every = work.seconds(calls["prefill"]), work.seconds(calls["sampling"])
    return {"decoding": w.rows * (w.completion - 1) / (every - first), "all": w.rows * w.completion / every}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--bench", required=True, help="path of llama-batched-bench")
    arguments.add_argument("--model", default="W10")
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()
    w, model = work.SHAPES["short"], work.MODELS[args.model]
    calls = work.workload(work.Case(model, w), ("prefill", "sampling")).calls
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], dict[str, float]]] = {"ours, float32": functools.partial(ours, calls, w)}
        for kind, cache in WAYS:
            path = Path(folder) / f"{kind}.gguf"
            if not path.exists():
                write_file(model, path, kind)
            ways[f"llama.cpp, {kind} weights, {cache} cache"] = functools.partial(llama, args.bench, path, w, cache)
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name, way in ways.items():
                got = way()
                if number:  # the first compiles
                    rates[name].append(got)
                print(name, {k: round(v) for k, v in got.items()}, "" if number else "(warm-up)", flush=True)
    print(f"\n{args.model}, {args.rounds} rounds, tokens per second\n")
    print("| | decoding, median | fastest | with prompts, median |\n|---|---:|---:|---:|")
    for name, rows in rates.items():
        decoding, every = ([r[k] for r in rows] for k in ("decoding", "all"))
        print(f"| {name} | {statistics.median(decoding):.0f} | {max(decoding):.0f} | {statistics.median(every):.0f} |")


if __name__ == "__main__":
    main()
