"""Attention by the Pallas splash kernel for TPUs: what `attention.attention` computes, without a matrix of logits.

A row's keys are the prompt's and its own in one sequence, in which its queries stand behind the prompt: a causal mask
with an offset. Padding of the prompt, and the sampled answer that the reference answer must not see, are masked by
segment ids, which are data; so a row with two branches takes two passes, one for each branch's queries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood import mesh as meshes
from rl_likelihood.shapes import REFERENCE, SAMPLED

LANES = 128  # of the hardware: sequences are padded to a multiple, and a head has this width, or half of it
BLOCK = 512  # rows of a tile at most
KEPT = "splash"  # name of the kernel's results, for `jax.checkpoint`


def refused(head_dim: int) -> str:
    """Why the kernel does not take heads of this width; nothing if it does."""
    return "" if head_dim % (LANES // 2) == 0 else f"heads are {head_dim} wide, which {LANES // 2} does not divide"


def attention(
    q: Float[Array, "P G T H Dh"],
    own: tuple[Float[Array, "P G K T Dh"], Float[Array, "P G K T Dh"]],
    segment: Int[Array, "P G T"],
    prompt: tuple[Float[Array, "P K S Dh"], Float[Array, "P K S Dh"]] | None = None,
    prompt_mask: Bool[Array, "P S"] | None = None,
    branches: bool = True,
    interpret: bool = False,
) -> Float[Array, "P G T H Dh"]:
    """softmax(q k / sqrt(Dh)) v over the prompt's keys, if there is one, and the row's own, each query causal and
    after the prompt.

    Where jax has a mesh in use (`jax.set_mesh`), prompts are split over data and fsdp, or the rows of a group over
    fsdp, and heads over tensor, as far as they divide: every device runs the kernel on what it has. Rows that are
    prompts themselves (none before them, one a group) have their queries over fsdp where `mesh.along_prompt` does.
    With `branches` False no row has a sampled answer, and one pass is all there is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    inputs = (q, *own, segment) + (() if prompt is None else (*prompt, prompt_mask))
    if mesh.empty or mesh.size == 1:
        return _local(*inputs, branches=branches, interpret=interpret)
    size = dict(mesh.shape)
    p, g, k = q.shape[0], q.shape[1], own[0].shape[2]
    whole = p % (size["data"] * size["fsdp"]) == 0
    prompts = ("data", "fsdp") if whole else ("data" if p % size["data"] == 0 else None)
    rows = "fsdp" if not whole and g % size["fsdp"] == 0 else None
    heads = "tensor" if k % size["tensor"] == 0 else None
    by_row, by_prompt = PartitionSpec(prompts, rows, heads), PartitionSpec(prompts, heads)
    cut = prompt is None and g == 1 and meshes.prompt_tokens_split(mesh, p, q.shape[2])
    specs = (
        PartitionSpec(prompts, rows, "fsdp" if cut else None, heads),
        by_row,
        by_row,
        PartitionSpec(prompts, rows),
        by_prompt,
        by_prompt,
        PartitionSpec(prompts),
    )
    one = _part if cut else functools.partial(_local, branches=branches)
    run = jax.shard_map(
        functools.partial(one, interpret=interpret),
        in_specs=specs[: len(inputs)],
        out_specs=specs[0],
        check_vma=False,
    )
    return run(*inputs)


def _part(q, own_k, own_v, segment, interpret: bool = False):
    """On one device of fsdp, which has the queries of a part of the tokens: what is before the part is its prompt."""
    t, u = q.shape[2], own_k.shape[3]
    start = jax.lax.axis_index("fsdp") * t
    here = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, t, axis)
    before = jnp.broadcast_to(jnp.arange(u) < start, (len(q), u))
    parts = here(own_k, 3), here(own_v, 3), here(segment, 2)
    return _local(q, *parts, own_k[:, 0], own_v[:, 0], before, branches=False, interpret=interpret)


def _local(
    q,
    own_k,
    own_v,
    segment,
    prompt_k=None,
    prompt_v=None,
    prompt_mask=None,
    branches: bool = True,
    interpret: bool = False,
):
    """On one device."""
    p, g, t, h, d = q.shape
    alone = prompt_k is None
    if alone:  # after a prompt of no tokens
        prompt_k = prompt_v = jnp.zeros((p, own_k.shape[2], 0, d), own_k.dtype)
        prompt_mask = jnp.zeros((p, 0), bool)
    s = prompt_k.shape[2]
    s_pad, t_pad = -s % LANES, -t % LANES
    behind = lambda x, n, axis: jnp.pad(x, [(0, n if i == axis else 0) for i in range(x.ndim)])
    many = lambda x: jnp.broadcast_to(behind(x, s_pad, 2)[:, None], (p, g, x.shape[1], s + s_pad, d))
    keys = jnp.concatenate([many(prompt_k), behind(own_k, t_pad, 3)], 3)
    values = jnp.concatenate([many(prompt_v), behind(own_v, t_pad, 3)], 3)
    queries = behind(q * d**-0.5, t_pad, 2).swapaxes(2, 3)
    in_prompt = jnp.broadcast_to(behind(prompt_mask, s_pad, 1)[:, None], (p, g, s + s_pad))
    segment = behind(segment, t_pad, 2)
    run = jax.vmap(jax.vmap(_kernel(h, t + t_pad, s + s_pad, interpret)))

    def passed(sees: Bool[Array, "P G T"]):
        kept = jnp.concatenate([in_prompt, sees], 2).astype(jnp.int32)
        ones = jnp.ones(segment.shape, jnp.int32)
        return run(queries, keys, values, kernels.SegmentIds(ones, kept))

    def both():
        # A key that no pass may see is seen by itself, or a row would have none: its own pass does not use it.
        other = (segment == REFERENCE)[:, :, None, :, None]
        return jnp.where(other, passed(segment != SAMPLED), passed(jnp.ones(segment.shape, bool)))

    one = lambda: passed(jnp.ones(segment.shape, bool))
    out = jax.lax.cond((segment == SAMPLED).any(), both, one) if branches and not alone else one()
    return out.swapaxes(2, 3)[:, :, :t].astype(q.dtype)


def _kernel(heads: int, t: int, s: int, interpret: bool):
    """kernel(q [H, T, Dh], k, v [K, S + T, Dh], segment ids)."""
    block = lambda n: max(b for b in range(LANES, BLOCK + 1, LANES) if n % b == 0)
    bq, bk = block(t), block(s + t)
    sizes = kernels.BlockSizes(
        block_q=bq,
        block_kv=bk,
        block_kv_compute=bk,
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_kv_dkv_compute=bk,
        block_q_dq=bq,
        block_kv_dq=bk,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((t, s + t), offset=s)] * heads)
    return kernels.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name=KEPT,
    )
