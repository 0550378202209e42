"""Two choices that decoding on a CPU might make otherwise, measured: how weights lie, and the type of the cache.

    python bench/products.py [--rows=32] [--rounds=30]

Weights: each product of a decode step of SmolLM2-135M's shape, x [rows, in] with w kept as [in, out] (as in the code,
but for the head, which shares the embedding's array) and as [out, in], through all 30 layers' weights in turn, which no
cache holds (the head has one); in one program, and in two threads with half the rows each, as two streams of the
sampler are. Cache: a step's attention over 256 own keys and values of each row and 128 of its prompt, kept in float32
(as in the code), bfloat16 and float16, computed in float32, the same arrays each time. Fastest of so many rounds that
alternate.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import work  # noqa: E402
from rl_likelihood.model.attention import decode_attention  # noqa: E402

REPEAT = 20  # inside one program: a single product is too short to time


def repeated(step, x, *rest):
    """A call that runs `step` REPEAT times, each on what the last one gave."""
    run = jax.jit(lambda x, *rest: jax.lax.fori_loop(0, REPEAT, lambda _, x: step(x, *rest), x))
    return lambda: run(x, *rest)


def through(rows: int, n: int, k: int, layers: int, out_first: bool):
    """A call of one product [rows, n] x [n, k] with each layer's weights, each on what the last one gave."""
    shape = (k, n) if out_first else (n, k)
    weights = [jax.random.normal(jax.random.key(i), shape) for i in range(layers)]
    product = (lambda x, w: jnp.einsum("rn,kn->rk", x, w)) if out_first else jnp.matmul

    @jax.jit
    def run(x, weights):
        for w in weights:
            x = x + 1e-6 * product(x, w)[:, :1]  # all of the next product waits for it
        return x

    x = jnp.ones((rows, n))
    parts = {threads: x[: rows // threads] for threads in (1, 2)}
    return lambda threads: run(parts[threads], weights)


def products(rows: int) -> dict[str, tuple[Callable, int]]:
    """Calls for each product's shape, and the products in each."""
    m, calls = work.MODELS["W135"], {}
    sizes = {
        "qkv": (m.width, (m.heads + 2 * m.kv_heads) * m.head_dim),
        "o": (m.heads * m.head_dim, m.width),
        "gate-up": (m.width, 2 * m.mlp),
        "down": (m.mlp, m.width),
        "head": (m.width, m.vocab_size),
    }
    pool = concurrent.futures.ThreadPoolExecutor(2)
    for name, (n, k) in sizes.items():
        layers = 1 if name == "head" else m.layers
        for kept in ("in first", "out first"):
            call = through(rows, n, k, layers, kept == "out first")
            calls[f"{name} {n} x {k}, {kept}"] = (functools.partial(call, 1), layers)
            two = lambda call=call: list(pool.map(lambda _: jax.block_until_ready(call(2)), range(2)))
            calls[f"{name} {n} x {k}, {kept}, two threads"] = (two, layers)
    return calls


def caches(rows: int) -> dict[str, tuple[Callable, int]]:
    """A call for each type, and the attentions in it."""
    m, calls, prompts = work.MODELS["W135"], {}, rows // 4
    shape = lambda n, t: ((n, m.kv_heads, m.head_dim, t), (n, m.kv_heads, t, m.head_dim))
    q = jnp.ones((rows, m.heads, m.head_dim))
    seen, in_prompt = jnp.ones((rows, 256), bool), jnp.ones((prompts, 128), bool)
    for kind in ("float32", "bfloat16", "float16"):
        make = lambda n, t, kind=kind: tuple(
            jax.random.normal(jax.random.key(i), s).astype(kind) for i, s in enumerate(shape(n, t))
        )

        def step(q, own, prompt):
            wide = lambda pair: tuple(x.astype(jnp.float32) for x in pair)
            return decode_attention(q, wide(own), seen, wide(prompt), in_prompt)

        # A barrier: or the conversion is done once, before the loop.
        held = lambda q, own, prompt: step(q, *jax.lax.optimization_barrier((own, prompt)))
        calls[f"attention, cache {kind}"] = (repeated(held, q, make(rows, 256), make(prompts, 128)), REPEAT)
    return calls


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=30)
    args = arguments.parse_args()
    if args.rows % 4:
        sys.exit(f"--rows is {args.rows}; groups are of four rows")
    calls = products(args.rows) | caches(args.rows)
    times = work.rounds({name: call for name, (call, _) in calls.items()}, args.rounds)
    for name, found in times.items():
        print(f"{name:<48}{1e6 * min(found) / calls[name][1]:10.0f} us", flush=True)


if __name__ == "__main__":
    main()
