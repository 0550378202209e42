"""Two choices of decoding on a CPU, measured: the layout of the weights, and the type of the cache.

    python -m bench.products [--rows=32] [--rounds=30]

Weights: each product of a decoding step in the shape of SmolLM2-135M. x is [rows, in]; w is stored as [in, out] (as in
the code, except for the head, which is the embedding's array) or as [out, in]. A call multiplies with the weights of
all 30 layers, which no CPU cache holds; the head has one layer. It runs in one thread, and in two threads with half the
rows each, like two streams of the sampler. Cache: the attention of one step, over 256 keys and values of each row and
128 of its prompt. They are stored as float32 (as in the code), bfloat16 or float16, and computed in float32. Prints the
fastest of the rounds, which alternate.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bench import work
from rl_likelihood.model.attention import decode_attention

REPEAT = 20  # inside one program: a single product is too short to time


def repeated(step: Callable, x: jax.Array, *constant: Any) -> Callable[[], jax.Array]:
    """A call that runs `step` REPEAT times, each time on the result of the last one."""
    run = jax.jit(lambda x, *constant: jax.lax.fori_loop(0, REPEAT, lambda _, x: step(x, *constant), x))
    return lambda: run(x, *constant)


def through(rows: int, n: int, k: int, layers: int, out_first: bool):
    """A call of one product [rows, n] x [n, k] with the weights of each layer, each on the result of the last one."""
    shape = (k, n) if out_first else (n, k)
    weights = [jax.random.normal(jax.random.key(i), shape) for i in range(layers)]
    formula = "rn,kn->rk" if out_first else "rn,nk->rk"

    @jax.jit
    def run(x, weights):
        for w in weights:
            x = x + 1e-6 * jnp.einsum(formula, x, w)[:, :1]  # the whole next product depends on it
        return x

    x = jnp.ones((rows, n))
    parts = {threads: x[: rows // threads] for threads in (1, 2)}
    return lambda threads: run(parts[threads], weights)


def products(rows: int) -> dict[str, tuple[Callable, int]]:
    """Calls for each product's shape, and the products in each."""
    m = work.MODELS["W135"]
    calls: dict[str, tuple[Callable, int]] = {}
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
        for layout in ("in first", "out first"):
            call = through(rows, n, k, layers, layout == "out first")
            calls[f"{name} {n} x {k}, {layout}"] = (functools.partial(call, 1), layers)
            calls[f"{name} {n} x {k}, {layout}, two threads"] = (functools.partial(in_two, pool, call), layers)
    return calls


def in_two(pool: concurrent.futures.Executor, call: Callable[[int], jax.Array]) -> None:
    """The call in two threads, each with half the rows."""
    list(pool.map(lambda _: jax.block_until_ready(call(2)), range(2)))


def caches(rows: int) -> dict[str, tuple[Callable, int]]:
    """A call for each type of the cache, and the attentions in it."""
    m, calls, prompts = work.MODELS["W135"], {}, rows // 4
    q = jnp.ones((rows, m.heads, m.head_dim))
    in_row, in_prompt = jnp.ones((rows, 256), bool), jnp.ones((prompts, 128), bool)

    def keys_and_values(n: int, t: int, kind: str) -> tuple[jax.Array, ...]:
        shapes = (n, m.kv_heads, m.head_dim, t), (n, m.kv_heads, t, m.head_dim)
        return tuple(jax.random.normal(jax.random.key(i), s).astype(kind) for i, s in enumerate(shapes))

    def step(q, own, prompt):
        # The barrier keeps the conversion inside the loop.
        own, prompt = jax.tree.map(lambda x: x.astype(jnp.float32), jax.lax.optimization_barrier((own, prompt)))
        return decode_attention(q, own, in_row, prompt, in_prompt)

    for kind in ("float32", "bfloat16", "float16"):
        call = repeated(step, q, keys_and_values(rows, 256, kind), keys_and_values(prompts, 128, kind))
        calls[f"attention, cache {kind}"] = (call, REPEAT)
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
    for name, measured in times.items():
        print(f"{name:<48}{1e6 * min(measured) / calls[name][1]:10.0f} us", flush=True)


if __name__ == "__main__":
    main()
