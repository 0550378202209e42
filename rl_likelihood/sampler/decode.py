"""Samples G completions of each prompt, and appends tags and reference answers to them as ids."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from rl_likelihood.fields import field
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, aligned_positions, decode_step, decoding_layout, empty_cache, prefill
from rl_likelihood.sampler import engine
from rl_likelihood.sampler.draw import Cut, Ends, Request, choose, own_rows, request_specs, row_keys, split_axes, spread
from rl_likelihood.sampler.stop import first_match, stop_table
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG, ChainFormat, Prompts, Rollout

# Initial length of the rows' caches in `generate`. It doubles, so that a step then reads at most twice
# what is filled.
FIRST_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How and where chains are sampled."""

    group_size: int = field(8, "G: chains per prompt", least=1)
    max_chain: int = field(
        64, "maximum sampled tokens of a chain, closing tags included; in a conversation, of one message", least=1
    )
    max_turns: int = field(8, "maximum messages of the model in a conversation with an environment", least=1)
    max_env_tokens: int = field(
        256,
        "maximum tokens of an environment's reply, chat markup included; a longer one is cut in the middle",
        least=16,
    )
    max_sampled_answer: int = field(
        -1,
        "maximum sampled tokens of an answer; 0: none; -1: prompt.max_answer if the reward reads it",
        least=-1,
    )
    temperature: float = field(1.0, "the policy is the distribution at this temperature", least=1e-3, most=1e3)
    slots: int = field(
        0,
        "completions that a process decodes at once, on all its devices; when one stops, the next starts; each reads "
        "its own copy of its prompt's keys and values, unless all are decoded at once; 0: all",
        least=0,
    )
    width_multiple: int = field(
        0, "completions are padded to a multiple of this (each width compiles once); 0: to the largest width", least=0
    )
    max_staleness: int = field(
        0, "updates that a rollout may be behind the learner; 0: on-policy and reproducible", least=0
    )
    queue_depth: int = field(2, "maximum rollouts in the queue", least=1)
    devices: str = field("shared", 'shared with the learner, or "4": the last 4 devices of each process only sample')
    weights: Literal["compute", "int8"] = field(
        "compute",
        "type of the sampler's matrices: model.compute_dtype, or int8 with a scale for each output; evaluations always "
        "use model.compute_dtype",
    )
    tensor: int = field(1, "devices that share one copy of the sampler's weights: 1 or mesh.tensor", least=1)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. `temperature`: one value for all rows, or one for each row of a group; 0 is greedy.

    `top_p`, `top_k` and `min_p` (`draw.Cut`) are for evaluation only, because the learner's log-probs are those of the
    full distribution.
    """

    model: ModelConfig
    chain_format: ChainFormat
    group_size: int = SamplerSettings.group_size
    max_chain: int = SamplerSettings.max_chain
    max_sampled_answer: int = 0  # 0 stops at the answer tag
    temperature: float | tuple[float, ...] = SamplerSettings.temperature
    width_multiple: int = SamplerSettings.width_multiple
    slots: int = SamplerSettings.slots
    limit: int = 0  # maximum sampled ids of a row, in a program that has room for more; 0: all for which it has room
    first_chain: int = 0  # index in the group of the first row; another process samples the rows before it
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def max_sampled(self) -> int:
        return self.max_chain + self.max_sampled_answer

    @property
    def cut(self) -> Cut | None:
        """The restriction to likely ids; None if every id may be drawn, so that the program does no work for it."""
        if (self.top_p, self.top_k, self.min_p) == (1.0, 0, 0.0):
            return None
        return Cut(np.float32(self.top_p), np.int32(self.top_k), np.float32(self.min_p))


def sample(params: Params, prompts: Prompts, key: Array, cfg: SamplerConfig, version: int = 0) -> Rollout:
    """G completions of each prompt, with tags and reference answers appended as ids.

    `params`: layer-stacked, or already in `decoding_layout`. A row's ids depend on the weights, the prompt, `key`, the
    prompt's uid and the row's index in its group. They do not depend on other rows.
    """
    start, fmt = time.perf_counter(), cfg.chain_format
    weights = params if isinstance(params["layers"], tuple) else prepare(params, cfg.model)
    until = fmt.answer_close if cfg.max_sampled_answer else fmt.answer_open
    ids, logp, length = sample_ids(weights, prompts, key, cfg, until, cfg.max_sampled)
    seconds = time.perf_counter() - start
    return splice(prompts, ids, logp, length, cfg, version).replace(seconds=seconds)


def sample_ids(
    weights: Params, prompts: Prompts, key: Array, cfg: SamplerConfig, until: str, max_tokens: int
) -> tuple[Int[np.ndarray, "P G N"], Float[np.ndarray, "P G N"], Int[np.ndarray, "P G"]]:
    """(sampled ids, their log-probs in nats, the number of ids of each row), on the host. A row ends with the id that
    completes the text `until`, with an end-of-sequence id, or after `max_tokens`, or cfg.limit if that is less."""
    table = stop_table(cfg.chain_format.vocab_bytes, (until,))
    request = request_of(prompts, key, cfg, table, range(cfg.group_size))
    devices = weights["embed"].devices() if isinstance(weights["embed"], jax.Array) else ()
    if in_streams(devices, jax.device_count(), cfg.slots, engine.whole_on_each(weights)):
        return engine.sample_rows(weights, cfg.model, request, max_tokens, cfg.slots)
    mesh = getattr(weights["embed"].sharding, "mesh", None)
    return tuple(np.asarray(x) for x in generate_spread(weights, cfg.model, request, max_tokens, mesh))


def request_of(prompts: Prompts, key: Array, cfg: SamplerConfig, table: Int[np.ndarray, "V N"], rows: range) -> Request:
    """A request for these rows of every prompt's group. `table`: the stop strings (`stop.stop_table`)."""
    fmt, t = cfg.chain_format, cfg.temperature
    return Request(
        prompts.tokens,
        prompts.length,
        prompts.uid,
        key,
        np.asarray([t[row] if isinstance(t, tuple) else t for row in rows], np.float32),
        Ends(table, np.asarray(fmt.eos_ids, np.int32), np.int32(cfg.limit or np.iinfo(np.int32).max)),
        np.int32(fmt.pad_id),
        np.int32(cfg.first_chain + rows.start),
        cfg.cut,
        prompts.tokens[0, : prompts.common] if prompts.common else None,
    )


def in_streams(devices: Collection, total: int, slots: int, whole: bool) -> bool:
    """True: `engine.sample_rows` samples, with a stream for each device. False: `generate_spread`, one program for all
    devices. `total`: devices of the run; `whole`: each of several devices holds all weights.

    One program is compiled once, a stream's program once per device. But one program runs until its longest row stops,
    so with `slots` the engine samples. It also samples on a part of a TPU slice, because some compilers accept programs
    for one device or for the whole slice, but not for a part.
    """
    if len(devices) < 2 or slots:
        return True
    return whole and len(devices) < total and next(iter(devices)).platform == "tpu"


@functools.partial(jax.jit, static_argnames="cfg")
def prepare(params: Params, cfg: ModelConfig) -> Params:
    """The sampler's copy of the weights, in `decoding_layout`. Made once per weight version."""
    return decoding_layout(params, cfg)


Sampled = tuple[Int[Array, "P G N"], Float[Array, "P G N"], Int[Array, "P G"]]


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens"))
def generate(weights: Params, cfg: ModelConfig, request: Request, max_tokens: int) -> Sampled:
    """(sampled ids, their log-probs in nats at the row's temperature, or at 1 for greedy rows, the number of ids).

    One simple program for all rows, which runs until all rows have stopped. The rows' caches grow, with a loop for each
    length. `engine.sample_rows` gives the same results faster, and is tested against it.
    """
    table, eos, limit = map(jnp.asarray, request.ends)
    p, g = request.prompt.shape[0], request.temperature.shape[0]
    matched, pad_id = table.shape[1] - 1, request.pad_id
    keys = row_keys(request.key, request.uid, jnp.full_like(request.uid, request.first_chain), g)
    head = head_matrix(weights)

    def draw_token(i, hidden, rows):
        state, done, ids, logps, length = rows
        token, logp = choose(hidden, head, keys, jnp.full((p, 1), i), request.temperature[None], request.cut)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, jnp.where(done, pad_id, token)[..., None], i, 2)
        logps = jax.lax.dynamic_update_slice_in_dim(logps, jnp.where(done, 0.0, logp)[..., None], i, 2)
        length = length + ~done
        state = table[token, state]
        done = done | (state == matched) | (token[..., None] == eos).any(-1) | (length >= limit)
        return token, (state, done, ids, logps, length)

    hidden, shared = prefill(weights, cfg, request.prompt, request.prompt_length, request.common_length)
    ids = jnp.full((p, g, max_tokens), pad_id, jnp.int32)
    logps = jnp.zeros((p, g, max_tokens), jnp.float32)
    zero = jnp.zeros((p, g), jnp.int32)
    hidden = jnp.broadcast_to(hidden[:, None], (p, g, hidden.shape[-1]))
    first = draw_token(0, hidden, (zero.astype(table.dtype), zero.astype(bool), ids, logps, zero))

    def running(carry, steps):
        count, _, (_, (_, done, *_)) = carry
        return (count < steps) & ~done.all()

    def body(carry, before):
        count, row_cache, (token, rows) = carry
        i, cache = before + count, Cache(shared, row_cache)  # i: of the token that is computed; the next is drawn
        positions = aligned_positions(token, i, request.prompt_length, cache)
        hidden, cache = decode_step(weights, cfg, token, positions, cache)
        return count + 1, cache.own, draw_token(i + 1, hidden, rows)

    row_cache, rows = empty_cache(cfg, p * g, 0), first
    for before, size in itertools.pairwise([0, *engine.cache_lengths(max_tokens, FIRST_LENGTH)]):
        row_cache = tuple(engine.longer(*pair, size - before) for pair in row_cache)
        steps = min(size, max_tokens - 1) - before  # the last token is not computed
        loop = functools.partial(running, steps=steps), functools.partial(body, before=before)
        _, row_cache, rows = jax.lax.while_loop(*loop, (jnp.int32(0), row_cache, rows))
    _, (_, _, ids, logps, length) = rows
    return ids, logps, length


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens", "mesh"))
def generate_spread(weights: Params, cfg: ModelConfig, request: Request, max_tokens: int, mesh: Mesh | None) -> Sampled:
    """`generate` on the devices of `mesh`: prompts are split over its data axis, the rows of a group over fsdp.

    Each device samples its own rows until they have stopped. There is no collective, because the compilers of some TPUs
    refuse a program with collectives on part of a slice. Only weights that are split over tensor need collectives.
    """
    p, g = split_axes(request, mesh)

    def part(weights, request):
        first_row = jax.lax.axis_index(g) * len(request.temperature) if g and own_rows(mesh) else 0
        return generate(weights, cfg, request._replace(first_chain=request.first_chain + first_row), max_tokens)

    rows = PartitionSpec(p, g)
    return spread(part, mesh, (request_specs(p, g),), (rows, rows, rows))(weights, request)


def splice(
    prompts: Prompts, ids: np.ndarray, logp: np.ndarray, length: np.ndarray, cfg: SamplerConfig, version: int = 0
) -> Rollout:
    """A rollout with rows [chain, tag, sampled answer, reference answer] from sampled ids [P, G, N]. No text is
    re-encoded.

    A chain ends with the id that completes the opening answer tag. A chain without that tag is `truncated`: the missing
    tags are appended as forced ids, so that its reference answer can still be scored.
    """
    fmt = cfg.chain_format
    opened = first_match(stop_table(fmt.vocab_bytes, (fmt.answer_open,)), ids, length)
    closed = first_match(stop_table(fmt.vocab_bytes, (fmt.think_close,)), ids, length)
    # If the tag opens after max_chain ids, too few ids are left for the sampled answer.
    truncated = (opened < 0) | (opened > cfg.max_chain)
    length = np.where(truncated, np.minimum(length, cfg.max_chain), length)
    tags = (), fmt.open_answer_ids, fmt.close_think_ids
    kind = np.where(truncated, np.where((closed > 0) & (closed <= length), 1, 2), 0)
    longest_tag = max(map(len, tags))
    tag_ids = np.asarray([[*tag, *[fmt.pad_id] * (longest_tag - len(tag))] for tag in tags], np.int32)[kind]
    tag_length = np.asarray([len(tag) for tag in tags])[kind]
    answer_length = np.broadcast_to(np.asarray(prompts.answer_length)[:, None], length.shape)
    answer = np.broadcast_to(prompts.answer[:, None], (*length.shape, prompts.answer.shape[1]))

    chain = np.where(truncated, length, opened)
    ends = np.stack([chain, length, length + tag_length, length + tag_length + answer_length], -1)
    # At least as wide as the reference answer after an empty chain, because the learner scores that row too.
    width = max(longest_tag + int(answer_length.max()), int(ends.max()))
    full = cfg.max_sampled + longest_tag + answer.shape[-1]
    if cfg.width_multiple:
        full = min(full, -(-width // cfg.width_multiple) * cfg.width_multiple)
    part = (np.arange(full) >= ends[..., None]).sum(-2)
    segment = np.asarray((CHAIN, SAMPLED, TAG, REFERENCE, PAD), np.int32)[part]
    completion = np.full(segment.shape, fmt.pad_id, np.int32)
    sampler_logp = np.zeros(segment.shape, np.float32)

    def first(x: np.ndarray, count: np.ndarray) -> np.ndarray:  # in the order of rows, as a mask's places are filled
        return x[np.arange(x.shape[-1]) < count[..., None]]

    sampled = (segment == CHAIN) | (segment == SAMPLED)
    completion[sampled], sampler_logp[sampled] = first(ids, length), first(logp, length)
    completion[segment == TAG] = first(tag_ids, tag_length)
    completion[segment == REFERENCE] = first(answer, answer_length)
    return Rollout(prompts, completion, segment, sampler_logp, truncated, version)
