"""`attention.attention` by the Pallas splash kernel for TPUs, without a matrix of logits in memory.

A row's keys are one sequence: the prompt's keys, then its own. Its queries come after the prompt, so the mask is causal
with an offset. Segment ids, which are data, mask the prompt's padding.

Segment ids cannot say that a branch attends to the trunk and to itself. So if a row has branches, all queries first
attend to all but the reference answers. Then the queries of each reference answer attend to the trunk before it and to
itself, in a narrow pass of their own, which replaces their results of the first. A sampled answer has no such pass: no
trunk may follow it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import prompt_tokens_split
from rl_likelihood.shapes import PAD, REFERENCE, SAMPLED, AnyArray

LANES = 128  # of the hardware: sequence lengths are padded to a multiple; head widths are a multiple of half of it
BLOCK = 512  # maximum rows of a tile
MANY = 8 * BLOCK  # so many keys of the main pass are padded to whole tiles rather than cut into narrow ones
RESULTS = "splash"  # name of the kernel's results, for `jax.checkpoint`


class Branches(NamedTuple):
    """The branches of rows: the kind of each token, and the number of its reference answer in the row (from 1; 0 for
    other tokens). A row has at most `answers` reference answers, each of at most `width` tokens (0: any)."""

    segment: Int[AnyArray, "P G U"]
    reference: Int[AnyArray, "P G U"]
    answers: int
    width: int = 0


def refused(head_dim: int, window: int = 0) -> str:
    """Why the kernel does not support heads of this width or a sliding window; "" if it supports them."""
    if window:
        return f"some layers attend to {window} tokens only (a sliding window)"
    return "" if head_dim % (LANES // 2) == 0 else f"heads are {head_dim} wide, which {LANES // 2} does not divide"


def attention(
    q: Float[AnyArray, "P G T H Dh"],
    own: tuple[Float[AnyArray, "P G K T Dh"], Float[AnyArray, "P G K T Dh"]],
    prompt: tuple[Float[AnyArray, "P K S Dh"], Float[AnyArray, "P K S Dh"], Bool[AnyArray, "P S"]] | None = None,
    branches: Branches | None = None,
    interpret: bool = False,
) -> Float[Array, "P G T H Dh"]:
    """softmax(q k / sqrt(Dh)) v over the prompt's keys, if there is a prompt, and the row's own keys up to the query.

    Under a mesh (`jax.set_mesh`), every device runs the kernel on its own part. As far as sizes divide, prompts are
    split over data and fsdp, or the rows of a group over fsdp, and heads over tensor. If `q` are prompts (`prompt` is
    None, G = 1), their queries are split over fsdp wherever `mesh.shard_prompt_tokens` splits their tokens. The queries
    of rows are split over context, if that gives whole tiles; every device of context has all keys.
    `branches` None: a row is a trunk and at most one answer at its end.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = branches and (branches.segment, branches.reference)
    sizes = (branches.answers, branches.width) if branches else (0, 0)
    if mesh.empty or mesh.size == 1:
        return _local(q, own, prompt, kinds, sizes, interpret)
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
    of_kinds = branches and (PartitionSpec(prompts, rows),) * 2
    run = jax.shard_map(
        functools.partial(_part if split else _local, sizes=sizes, interpret=interpret),
        in_specs=(queries, (by_row, by_row), of_prompt, of_kinds),
        out_specs=queries,
        check_vma=False,
    )
    return run(q, own, prompt, kinds)


def _part(q, own, prompt, kinds, sizes: tuple[int, int], interpret: bool):
    """Attention on one device of fsdp, which has the queries of a part of the tokens. Tokens before that part are
    treated as its prompt."""
    k, v = own
    t, u = q.shape[2], k.shape[3]
    start = jax.lax.axis_index("fsdp") * t

    def part(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, start, t, axis)

    prompt_keys = k[:, 0], v[:, 0], jnp.broadcast_to(jnp.arange(u) < start, (len(q), u))
    return _local(q, (part(k, 3), part(v, 3)), prompt_keys, kinds, sizes, interpret)


def _padded(x: Array, more: int, axis: int) -> Array:
    """x with `more` zeros at the end of an axis."""
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])


def _local(q, own, prompt, kinds, sizes: tuple[int, int], interpret: bool):
    """Attention on one device. If there are fewer queries than keys, they are this device's part of context."""
    p, g, t, h, d = q.shape
    shards = own[0].shape[3] // t
    if prompt is None:  # use a prompt without tokens
        nothing = jnp.zeros((p, own[0].shape[2], 0, d), own[0].dtype)
        prompt = nothing, nothing, jnp.zeros((p, 0), bool)
    s = prompt[0].shape[2]
    s_pad, t_pad = -s % LANES, -t % LANES
    n = s + s_pad + own[0].shape[3] + t_pad
    if n >= MANY and _tile(n) < BLOCK // 2:
        s_pad += -n % BLOCK

    def joined(before, own):
        before = jnp.broadcast_to(_padded(before, s_pad, 2)[:, None], (p, g, own.shape[2], s + s_pad, d))
        return jnp.concatenate([before, _padded(own, t_pad, 3)], 3)

    keys, values = (joined(before, x) for before, x in zip(prompt[:2], own, strict=True))
    queries = _padded(q * d**-0.5, t_pad, 2).swapaxes(2, 3)
    in_prompt = jnp.broadcast_to(_padded(prompt[2], s_pad, 1)[:, None], (p, g, s + s_pad))
    kernel = _kernel(h, t + t_pad, s + s_pad, interpret, shards)
    if kinds is None:
        attended = jnp.pad(in_prompt, ((0, 0), (0, 0), (0, keys.shape[3] - in_prompt.shape[2])), constant_values=True)
        out = _run(kernel, queries, keys, values, attended)
    else:
        segment, reference = (_padded(x, t_pad, 2) for x in kinds)
        out = _run(kernel, queries, keys, values, jnp.concatenate([in_prompt, segment != REFERENCE], 2))
        trunk = jnp.concatenate([in_prompt, (segment != PAD) & (segment != REFERENCE) & (segment != SAMPLED)], 2)
        of_reference = _references(queries, (keys, values), trunk, reference, sizes, interpret)
        out = jnp.where(_of_shard(reference, 2, shards)[:, :, None, :, None] > 0, of_reference, out)
    return out.swapaxes(2, 3)[:, :, :t].astype(q.dtype)


def _run(kernel, queries, keys, values, attended: Bool[AnyArray, "P G U"]):
    """The kernel on every row. `attended`: the keys that all queries attend to, as far as they come before them."""
    ones = jnp.ones(queries.shape[:2] + queries.shape[3:4], jnp.int32)
    ids = splash_attention_kernel.SegmentIds(ones, attended.astype(jnp.int32))
    return jax.vmap(jax.vmap(kernel))(queries, keys, values, ids)


def _references(queries, own, trunk, reference, sizes: tuple[int, int], interpret: bool):
    """The reference answers' attention to the trunk before them and to themselves, at their own tokens' places.

    A pass takes the n-th reference answer of every row. Its keys come once more after all others, so that the mask is
    causal with an offset. `own`: keys and values of prompt and row; `trunk`: the trunk's, and the prompt's, among them.
    """
    answers, width = sizes
    t, u = queries.shape[3], reference.shape[2]
    s, width = own[0].shape[3] - u, min(width or u, u)
    width += -width % LANES
    kernel = _kernel(queries.shape[2], width, s + u, interpret)
    first = _of_shard(jnp.arange(u), 0, u // t)[0]  # of this device's queries, if they are split over context

    def at(x, index):
        return jnp.take_along_axis(x, index[:, :, None, :, None], 3, mode="clip")

    @jax.checkpoint  # the keys are copied, and nothing is stored for each pass
    def one_pass(n):
        def attend():
            start = (reference == n).argmax(-1)[..., None]
            index = start + jnp.arange(width)
            keys, values = (jnp.concatenate([x, at(x, s + index)], 3) for x in own)
            before = trunk & (jnp.arange(s + u) < s + start)
            attended = jnp.pad(before, ((0, 0), (0, 0), (0, width)), constant_values=True)
            return _run(kernel, at(queries, index - first), keys, values, attended)

        nothing = jnp.zeros((*queries.shape[:3], width, queries.shape[4]), queries.dtype)
        return jax.lax.cond((reference == n).any(), attend, lambda: nothing)  # rows may have fewer answers

    out = jax.lax.map(one_pass, jnp.arange(1, answers + 1))  # [N, P, G, H, W, Dh]
    out = jnp.moveaxis(out, 0, 3).reshape(*queries.shape[:3], answers * width, -1)
    starts = reference != jnp.pad(reference[..., :-1], ((0, 0), (0, 0), (1, 0)))
    offset = jnp.arange(u) - jax.lax.cummax(jnp.where(starts, jnp.arange(u), 0), axis=2)
    return at(out, _of_shard((reference - 1) * width + offset, 2, u // t))


def _of_shard(x: Array, axis: int, shards: int) -> Array:
    """The part of an array that belongs to this device of context, if an axis is split over it."""
    if shards == 1:
        return x
    size = x.shape[axis] // shards
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("context") * size, size, axis)


def _tile(n: int) -> int:
    """Rows of a tile of n, which LANES divides: the most that divide it."""
    return max(b for b in range(LANES, BLOCK + 1, LANES) if n % b == 0)


def _kernel(heads: int, t: int, s: int, interpret: bool, shards: int = 1):
    """kernel(q [H, T, Dh], k, v [K, S + U, Dh], segment ids), where a row has U = T x shards tokens."""
    u = t * shards
    bq, bk = _tile(t), _tile(s + u)
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
