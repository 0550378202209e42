"""`attention.attention` by the Pallas splash kernel for TPUs, without a matrix of logits in memory.

A row's keys are one sequence: the prompt's keys, then its own. Its queries come after the prompt, so the mask is causal
with an offset. Segment ids, which are data, mask the prompt's padding, and mask the sampled answer for the queries of
the reference answer. So a row with two branches takes two passes, one for each branch's queries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import prompt_tokens_split
from rl_likelihood.shapes import REFERENCE, SAMPLED, AnyArray

LANES = 128  # of the hardware: sequence lengths are padded to a multiple; head widths are a multiple of half of it
BLOCK = 512  # maximum rows of a tile
RESULTS = "splash"  # name of the kernel's results, for `jax.checkpoint`


def refused(head_dim: int, window: int = 0) -> str:
    """Why the kernel does not support heads of this width or a sliding window; "" if it supports them."""
    if window:
        return f"some layers attend to {window} tokens only (a sliding window)"
    return "" if head_dim % (LANES // 2) == 0 else f"heads are {head_dim} wide, which {LANES // 2} does not divide"


def attention(
    q: Float[AnyArray, "P G T H Dh"],
    own: tuple[Float[AnyArray, "P G K T Dh"], Float[AnyArray, "P G K T Dh"]],
    segment: Int[AnyArray, "P G T"],
    prompt: tuple[Float[AnyArray, "P K S Dh"], Float[AnyArray, "P K S Dh"], Bool[AnyArray, "P S"]] | None = None,
    two_branches: bool = True,
    interpret: bool = False,
) -> Float[Array, "P G T H Dh"]:
    """softmax(q k / sqrt(Dh)) v over the prompt's keys, if there is a prompt, and the row's own keys up to the query.

    Under a mesh (`jax.set_mesh`), every device runs the kernel on its own part. As far as sizes divide, prompts are
    split over data and fsdp, or the rows of a group over fsdp, and heads over tensor. If `q` are prompts (`prompt` is
    None, G = 1), their queries are split over fsdp wherever `mesh.shard_prompt_tokens` splits their tokens. The queries
    of rows are split over context, if that gives whole tiles; every device of context has all keys.
    `two_branches` False: no row has a sampled answer, so one pass is enough.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local(q, own, segment, prompt, two_branches, interpret)
    size = dict(mesh.shape)
    p, g, k = q.shape[0], q.shape[1], own[0].shape[2]
    whole = p % (size["data"] * size["fsdp"]) == 0
    prompts = ("data", "fsdp") if whole else ("data" if p % size["data"] == 0 else None)
    rows = "fsdp" if not whole and g % size["fsdp"] == 0 else None
    heads = "tensor" if k % size["tensor"] == 0 else None
    by_row, by_prompt = PartitionSpec(prompts, rows, heads), PartitionSpec(prompts, heads)
    split = prompt is None and g == 1 and prompt_tokens_split(mesh, p, q.shape[2])
    tiles = prompt is not None and "context" in size and q.shape[2] % (size["context"] * LANES) == 0
    tokens = "fsdp" if split else "context" if tiles else None
    queries = PartitionSpec(prompts, rows, tokens, heads)
    of_prompt = None if prompt is None else (by_prompt, by_prompt, PartitionSpec(prompts))
    branches = two_branches and not split
    run = jax.shard_map(
        functools.partial(_part if split else _local, two_branches=branches, interpret=interpret),
        in_specs=(queries, (by_row, by_row), PartitionSpec(prompts, rows), of_prompt),
        out_specs=queries,
        check_vma=False,
    )
    return run(q, own, segment, prompt)


def _part(q, own, segment, prompt, two_branches: bool, interpret: bool):
    """Attention on one device of fsdp, which has the queries of a part of the tokens. Tokens before that part are
    treated as its prompt."""
    k, v = own
    t, u = q.shape[2], k.shape[3]
    start = jax.lax.axis_index("fsdp") * t

    def part(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, start, t, axis)

    prompt_keys = k[:, 0], v[:, 0], jnp.broadcast_to(jnp.arange(u) < start, (len(q), u))
    return _local(q, (part(k, 3), part(v, 3)), part(segment, 2), prompt_keys, two_branches, interpret)


def _padded(x: Array, more: int, axis: int) -> Array:
    """x with `more` zeros at the end of an axis."""
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])


def _local(q, own, segment, prompt, two_branches: bool, interpret: bool):
    """Attention on one device. If there are fewer queries than keys, they are this device's part of context."""
    p, g, t, h, d = q.shape
    shards = own[0].shape[3] // t
    two_branches = two_branches and prompt is not None
    if prompt is None:  # use a prompt without tokens
        nothing = jnp.zeros((p, own[0].shape[2], 0, d), own[0].dtype)
        prompt = nothing, nothing, jnp.zeros((p, 0), bool)
    s = prompt[0].shape[2]
    s_pad, t_pad = -s % LANES, -t % LANES

    def joined(before, own):
        before = jnp.broadcast_to(_padded(before, s_pad, 2)[:, None], (p, g, own.shape[2], s + s_pad, d))
        return jnp.concatenate([before, _padded(own, t_pad, 3)], 3)

    keys, values = (joined(before, x) for before, x in zip(prompt[:2], own, strict=True))
    queries = _padded(q * d**-0.5, t_pad, 2).swapaxes(2, 3)
    in_prompt = jnp.broadcast_to(_padded(prompt[2], s_pad, 1)[:, None], (p, g, s + s_pad))
    segment = _padded(segment, t_pad, 2)
    run = jax.vmap(jax.vmap(_kernel(h, t + t_pad, s + s_pad, interpret, shards)))

    def one_pass(attended: Bool[AnyArray, "P G U"]):
        ids = jnp.concatenate([in_prompt, attended], 2).astype(jnp.int32)
        ones = jnp.ones(queries.shape[:2] + queries.shape[3:4], jnp.int32)
        return run(queries, keys, values, splash_attention_kernel.SegmentIds(ones, ids))

    def one_branch():
        return one_pass(jnp.ones(segment.shape, bool))

    def both_branches():
        reference = (_of_shard(segment, 2, shards) == REFERENCE)[:, :, None, :, None]
        return jnp.where(reference, one_pass(segment != SAMPLED), one_branch())

    out = jax.lax.cond((segment == SAMPLED).any(), both_branches, one_branch) if two_branches else one_branch()
    return out.swapaxes(2, 3)[:, :, :t].astype(q.dtype)


def _of_shard(x: Array, axis: int, shards: int) -> Array:
    """The part of an array that belongs to this device of context, if an axis is split over it."""
    if shards == 1:
        return x
    size = x.shape[axis] // shards
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("context") * size, size, axis)


def _kernel(heads: int, t: int, s: int, interpret: bool, shards: int = 1):
    """kernel(q [H, T, Dh], k, v [K, S + U, Dh], segment ids), where a row has U = T x shards tokens."""
    u = t * shards
    bq, bk = (max(b for b in range(LANES, BLOCK + 1, LANES) if n % b == 0) for n in (t, s + u))
    sizes = splash_attention_kernel.BlockSizes(
        block_q=bq,
        block_kv=bk,
        block_kv_compute=bk,
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_kv_dkv_compute=bk,
        block_q_dq=bq,
        block_kv_dq=bk,
    )
    causal = splash_attention_mask.CausalMask((u, s + u), offset=s)
    mask = splash_attention_mask.MultiHeadMask([causal] * heads)
    kernel = splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        interpret=interpret,
        residual_checkpoint_name=RESULTS,
    )
    if shards == 1:
        return kernel
    # The mask of all queries, blocks [heads, queries, keys], is cut into this device's rows.
    blocks, positions = (functools.partial(_of_shard, axis=axis, shards=shards) for axis in (1, 0))
    infos = (
        info._replace(
            data_next=blocks(info.data_next), block_mask=blocks(info.block_mask), q_sequence=positions(info.q_sequence)
        )
        for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    )
    return splash_attention_kernel.SplashAttentionKernel(*infos, **kernel.kwargs)
