"""The MLP of a mixture of experts: a router chooses a few of many MLPs for each token, and their results are added.

Tokens are sorted by expert, and `jax.lax.ragged_dot` multiplies each with its own experts alone. All experts for every
token would be simpler, and exact too, but Qwen3-30B-A3B uses 8 of 128: 16 times the work. No expert has a capacity, so
no token is dropped and no row depends on another: the sampler and the learner compute the same. (On a CPU, XLA makes
`ragged_dot` a product over all experts.)

Over a mesh the experts are split over tensor. The devices of that axis have the same tokens. Each sorts them and
computes those of its own experts, and a sum over the axis adds the results. No token moves between devices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rl_likelihood.mesh import axis_shards, token_axes
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.shapes import AnyArray


def activated(gate: Float[AnyArray, "*N F"], cfg: ModelConfig) -> Float[Array, "*N F"]:
    """The gate of an MLP after its activation."""
    return jax.nn.silu(gate) if cfg.activation == "silu" else jax.nn.gelu(gate)


def route(
    x: Float[AnyArray, "N D"], router: Float[AnyArray, "D E"], cfg: ModelConfig
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """The experts of each token and their weights, in float32: near a tie, rounding would choose another expert."""
    logits = jnp.matmul(x, router, preferred_element_type=jnp.float32)
    weight, expert = jax.lax.top_k(jax.nn.softmax(logits), cfg.experts_per_token)
    return weight / weight.sum(-1, keepdims=True) if cfg.norm_topk_prob else weight, expert


def experts_mlp(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig) -> Float[Array, "*N D"]:
    """What the experts of each token make of it. `w`: one layer, also in the decoding layout."""
    w = {name: w[name] for name in ("router", "gate", "up", "gate_up", "down") if name in w}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not mesh.auto_axes:  # one device, also within shard_map
        return _local(x, w, cfg)
    axis = "tensor" if axis_shards("experts", cfg.experts) > 1 else None
    parts = {name: PartitionSpec(None if name == "router" else axis) for name in w}
    tokens = token_axes(x.shape)
    run = jax.shard_map(functools.partial(_local, cfg=cfg, axis=axis), in_specs=(tokens, parts), out_specs=tokens)
    return run(x, w)


def _local(x: Float[AnyArray, "*N D"], w: Params, cfg: ModelConfig, axis: str | None = None) -> Float[Array, "*N D"]:
    """On one device, whose experts are those of its place on `axis`; None: all."""
    tokens, k, count = x.reshape(-1, x.shape[-1]), cfg.experts_per_token, len(w["down"])
    weight, expert = route(tokens, w["router"], cfg)
    if axis:
        tokens = jax.lax.pcast(tokens, axis, to="varying")
        expert = expert - jax.lax.axis_index(axis) * count
    own = (expert >= 0) & (expert < count)
    order = jnp.argsort(jnp.where(own, expert, count).reshape(-1))  # pairs of a token and an expert; own ones first
    back = jnp.argsort(order)
    sizes = (expert.reshape(-1, 1) == jnp.arange(count)).sum(0, dtype=jnp.int32)

    # What ragged_dot gives after the last group is not defined, forwards and backwards.
    def of_own(y, own):
        return jnp.where(own[..., None], y, 0) if axis else y

    pairs = of_own(_taken(tokens, order // k, back.reshape(-1, k)), own.reshape(-1)[order])
    if "gate_up" in w:
        gate, up = jnp.split(jax.lax.ragged_dot(pairs, w["gate_up"], sizes), 2, -1)
    else:
        gate, up = (jax.lax.ragged_dot(pairs, w[name], sizes) for name in ("gate", "up"))
    y = jax.lax.ragged_dot(activated(gate, cfg) * up, w["down"], sizes)
    y = of_own(_taken(y, back, order[:, None]).reshape(-1, k, y.shape[-1]), own)
    out = (y * weight[..., None]).sum(1).astype(x.dtype)
    return (jax.lax.psum(out, axis) if axis else out).reshape(x.shape)


@jax.custom_vjp
def _taken(x: Float[AnyArray, "N D"], index: Int[AnyArray, "T"], back: Int[AnyArray, "N u"]) -> Float[Array, "T D"]:
    """x[index]. `back`: where each row of x goes, so that the gradient is a lookup too, and no scatter."""
    return x[index]


_taken.defvjp(lambda x, index, back: (x[index], back), lambda back, grad: (grad[back].sum(1), None, None))
