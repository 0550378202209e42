"""Decoding and the learner step against their own matrix products, in one run.

    make bench        (or: python bench/speed.py [--rounds=3] [--small])

The unit is the time that the same machine takes, moments before and after, for the matrix products alone
(forward, and for the learner both backward products), at the shapes of the program. Random weights of
SmolLM2-135M's shape, 8 prompts x 4 chains, 128 prompt and 128 new tokens, float32, no row stops early.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood import mesh as meshes
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import init_state, make_step
from rl_likelihood.model.decoder import ModelConfig, init
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, REFERENCE, Batch

W135 = ModelConfig(
    "llama", vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, rope_theta=1e5,
    scan_layers=False,
)  # fmt: skip
W10 = ModelConfig("llama", vocab_size=4096, width=256, layers=6, heads=8, kv_heads=8, head_dim=32, mlp=768)


def seconds(f) -> float:
    """Wall time of one call that has been compiled."""
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def pairs(program, products, rounds: int) -> dict[str, float]:
    """Medians of alternating calls, and their ratio."""
    jax.block_until_ready((program(), products()))
    a, b = zip(*((seconds(program), seconds(products)) for _ in range(rounds)), strict=True)
    return {
        "program_s": statistics.median(a),
        "products_s": statistics.median(b),
        "ratio": statistics.median(a) / statistics.median(b),
        "spread": (max(a) - min(a)) / statistics.median(a),
    }


def chain_of_products(w, x, cfg: ModelConfig):
    """The matrix products of one layer and nothing else. w as `unstack` leaves it."""
    a = x @ w["qkv"]
    b = a[:, : cfg.heads * cfg.head_dim] @ w["o"].reshape(-1, cfg.width)
    return (b @ w["gate_up"])[:, : cfg.mlp] @ w["down"]


def bench_decode(cfg: ModelConfig, params, p: int, g: int, s: int, n: int, rounds: int) -> dict[str, float]:
    """One decode step of p x g rows (n tokens less one, over n - 1) against its products."""
    weights = decode.prepare(params, cfg)
    prompt = jnp.asarray(np.random.default_rng(0).integers(3, cfg.vocab_size, (p, s)), jnp.int32)
    never = np.zeros((cfg.vocab_size, 2), np.int8)

    def run(tokens: int):
        return decode.generate(
            weights, cfg, prompt, jnp.full((p,), s), jnp.arange(p), jax.random.key(0), jnp.ones(g), never,
            jnp.asarray([-1]), max_tokens=tokens, pad_id=0,
        )  # fmt: skip

    @jax.jit
    def products(weights, x):
        def step(_, x):
            for w in weights["layers"]:
                x = chain_of_products(w, x, cfg)
            z = jnp.einsum("nd,vd->nv", x, weights["embed"])
            return x * 1e-3 + z[:, : cfg.width] * 1e-3

        return jax.lax.fori_loop(0, n - 1, step, x)

    x = jnp.ones((p * g, cfg.width)) * 1e-3
    prefill = statistics.median([seconds(lambda: run(1)) for _ in range(3)][1:])
    out = pairs(lambda: run(n), lambda: products(weights, x), rounds)
    out["program_s"] -= prefill
    out["ratio"] = out["program_s"] / out["products_s"]
    flops = 2 * p * g * (n - 1) * sum(x.size for x in jax.tree.leaves(params))
    out["tokens_per_s"] = p * g * (n - 1) / out["program_s"]
    return out | {"products_gflops": flops / out["products_s"] / 1e9}


def bench_step(cfg: ModelConfig, params, p: int, g: int, s: int, t: int, micro: int, rounds: int) -> dict[str, float]:
    """One learner step (log_prob reward, no reference model) against its products, forward and backward."""
    rng = np.random.default_rng(0)
    segment = np.full((p, g, t), CHAIN)
    segment[..., -8:] = REFERENCE
    batch = Batch(
        prompt=rng.integers(3, cfg.vocab_size, (p, s)), prompt_length=np.full(p, s),
        completion=rng.integers(3, cfg.vocab_size, (p, g, t)), segment=segment, scored=segment == REFERENCE,
        sampler_logp=np.zeros((p, g, t), np.float32), outside={},
        truncated=np.zeros((p, g), bool), keep=np.ones((p, g), bool),
    )  # fmt: skip
    optimizer = make_optimizer(OptimizerConfig())
    mesh = meshes.make_mesh((1, 1, 1), jax.devices()[:1])
    cfg_step = StepConfig(micro_batch_prompts=micro)
    step = make_step(cfg, cfg_step, optimizer, mesh, batch)
    state = jax.jit(lambda p: init_state(p, optimizer, cfg_step))(params)
    tokens, scored = micro * (s + g * t), micro * g * t

    def loss(w, x, h):
        def layer(x, w):
            return chain_of_products(w, x, cfg), None

        layers = {k: v for k, v in w["layers"].items() if k in ("qkv", "o", "gate_up", "down")}
        x, _ = jax.lax.scan(layer, x, layers)
        chunks = h.reshape(-1, min(512, scored), cfg.width)
        z, _ = jax.lax.scan(lambda a, h: (a + jnp.einsum("nd,vd->nv", h, w["embed"]).sum(), None), 0.0, chunks)
        return x.sum() + z

    fused = {
        "embed": params["embed"],
        "layers": {
            **params["layers"],
            "qkv": jnp.concatenate([params["layers"][k].reshape(cfg.layers, cfg.width, -1) for k in "qkv"], -1),
            "gate_up": jnp.concatenate([params["layers"]["gate"], params["layers"]["up"]], -1),
        },
    }
    products = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    x, h = jnp.ones((tokens, cfg.width)), jnp.ones((scored, cfg.width))

    def program():
        nonlocal state
        state, _, _ = step(state, None, batch)
        return state.params

    def all_products():
        return [products(fused, x, h) for _ in range(p // micro)]

    out = pairs(program, all_products, rounds)
    body = sum(v.size for v in jax.tree.leaves(params["layers"]))
    flops = 6 * p * ((s + g * t) * body + g * t * cfg.vocab_size * cfg.width)
    out["completion_tokens_per_s"] = p * g * t / out["program_s"]
    return out | {"products_gflops": flops / out["products_s"] / 1e9}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--small", action="store_true", help="6 M parameters instead of 135 M")
    a = arguments.parse_args()
    cfg = W10 if a.small else W135
    params = init(jax.random.key(0), cfg)
    where = {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "jax": jax.__version__}
    print(json.dumps({"model": "W10" if a.small else "W135", **where}))
    for name, row in (
        ("decode, 32 rows", lambda: bench_decode(cfg, params, 8, 4, 128, 64, a.rounds)),
        ("learner step", lambda: bench_step(cfg, params, 8, 4, 128, 128, 2, a.rounds)),
    ):
        print(name, json.dumps({k: round(v, 3) for k, v in row().items()}), flush=True)


if __name__ == "__main__":
    main()
