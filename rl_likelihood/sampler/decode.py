"""Sampling: G rows of each prompt until they stop, with tags and reference answers spliced in as ids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rl_likelihood.fields import field
from rl_likelihood.model.decoder import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, decode_step, decoding_layout, empty_cache, prefill
from rl_likelihood.sampler import engine
from rl_likelihood.sampler.draw import choose, row_keys
from rl_likelihood.sampler.stop import first_match, stop_table
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, ChainFormat, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How and where chains are sampled."""

    group_size: int = field(8, "G: chains per prompt", least=1)
    max_chain: int = field(64, "sampled tokens of a chain at most, its closing tags included", least=1)
    max_sampled_answer: int = field(
        -1, "sampled tokens of an answer; 0: none is sampled, -1: prompt.max_answer if the reward reads it", least=-1
    )
    temperature: float = field(1.0, "the policy is the distribution at this temperature", above=0)
    slots: int = field(
        0, "rows decoded at one time; one that stops makes room for the next prompt's; 0: all at once", least=0
    )
    width_multiple: int = field(
        0, "rows are padded to a multiple of this (each width compiles once); 0: as wide as can be", least=0
    )
    max_staleness: int = field(0, "updates a rollout may be behind; 0 is on-policy and reproducible", least=0)
    queue_depth: int = field(2, "rollouts waiting at most", least=1)
    devices: str = field("shared", 'shared with the learner, or "4": the last 4 of each process are the sampler\'s')
    tensor: int = field(1, "devices that hold one copy of the sampler's weights: 1 or mesh.tensor", least=1)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """One way to sample. `temperature` has one value for all rows, or one per row of a group; 0 is greedy."""

    model: ModelConfig
    chain_format: ChainFormat
    group_size: int = SamplerSettings.group_size
    max_chain: int = SamplerSettings.max_chain
    max_sampled_answer: int = 0  # 0 stops at the answer tag
    temperature: float | tuple[float, ...] = SamplerSettings.temperature
    width_multiple: int = SamplerSettings.width_multiple
    slots: int = SamplerSettings.slots
    first_chain: int = 0  # index in its group of the first chain, where another process samples those before

    @property
    def max_sampled(self) -> int:
        return self.max_chain + self.max_sampled_answer


def sample(params: Params, prompts: Prompts, key: Array, cfg: SamplerConfig, version: int = 0) -> Rollout:
    """G completions of each prompt, with tags and reference answers appended as ids.

    `params` may be layer-stacked, or `decoding_layout`ed once per weight version. A row's ids depend on the
    weights, the prompt, `key`, its prompt's uid and its place in the group, not on its neighbours.
    """
    weights = params if isinstance(params["layers"], tuple) else prepare(params, cfg.model)
    fmt = cfg.chain_format
    until = fmt.answer_close if cfg.max_sampled_answer else fmt.answer_open
    ids, logp, length = sample_ids(weights, prompts, key, cfg, until, cfg.max_sampled)
    return splice(prompts, ids, logp, length, cfg, version)


def sample_ids(
    weights: Params, prompts: Prompts, key: Array, cfg: SamplerConfig, until: str, max_tokens: int
) -> tuple[Int[np.ndarray, "P G N"], Float[np.ndarray, "P G N"], Int[np.ndarray, "P G"]]:
    """What follows the prompts, up to the id that completes `until`: ids, log-probs, and how many, on the host."""
    fmt, t = cfg.chain_format, cfg.temperature
    temperature = t if isinstance(t, tuple) else (t,) * cfg.group_size
    stop = stop_table(fmt.vocab_bytes, (until,))
    devices = weights["embed"].devices() if isinstance(weights["embed"], jax.Array) else ()
    if not in_streams(devices, jax.device_count(), cfg.slots, engine.whole_on_each(weights)):
        mesh = getattr(weights["embed"].sharding, "mesh", None)
        out = generate_spread(
            weights,
            cfg.model,
            prompts.tokens,
            prompts.length,
            prompts.uid,
            key,
            jnp.asarray(temperature, jnp.float32),
            stop,
            jnp.asarray(fmt.eos_ids, jnp.int32),
            jnp.int32(cfg.first_chain),
            max_tokens=max_tokens,
            pad_id=fmt.pad_id,
            mesh=mesh,
        )
        return tuple(np.asarray(x) for x in out)
    return engine.sample_rows(
        weights,
        cfg.model,
        prompts,
        key,
        temperature,
        stop,
        fmt.eos_ids,
        max_tokens,
        fmt.pad_id,
        cfg.slots,
        first_chain=cfg.first_chain,
    )


def in_streams(devices: Collection, total: int, slots: int, whole: bool) -> bool:
    """Whether rows are sampled by the engine, each device having a stream of its own, and not by `generate_spread`,
    one program for all. `total`: devices of the run; `whole`: each of several has all the weights.

    One program is compiled once, not once for each device. But it waits for the longest row, so rows that take turns
    are the engine's; and some compilers take programs for one device of a TPU's slice or for all, and none for a part.
    """
    if len(devices) < 2 or slots:
        return True
    return whole and len(devices) < total and next(iter(devices)).platform == "tpu"


@functools.partial(jax.jit, static_argnames="cfg")
def prepare(params: Params, cfg: ModelConfig) -> Params:
    """The sampler's copy of the weights, made once per version."""
    return decoding_layout(params, cfg)


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens", "pad_id"))
def generate(
    weights: Params,
    cfg: ModelConfig,
    prompt: Int[Array, "P S"],
    prompt_length: Int[Array, "P"],
    uid: Int[Array, "P"],
    key: Array,
    temperature: Float[Array, "G"],
    stop: Int[Array, "V states"],
    eos: Int[Array, "E"],
    max_tokens: int,
    pad_id: int,
    first_chain: Int[Array, ""] | int = 0,
) -> tuple[Int[Array, "P G N"], Float[Array, "P G N"], Int[Array, "P G"]]:
    """Sampled ids, their log-probs (at the row's temperature; 1 for greedy rows), and how many there are.

    The plain way, one program for all rows: `engine.sample_rows` gives the same, faster, and is tested against it.
    A row ends after the id that completes a stop string or is an end-of-sequence id; the loop ends when
    all rows have.
    """
    p, g = prompt.shape[0], temperature.shape[0]
    in_prompt = jnp.arange(prompt.shape[1]) < prompt_length[:, None]
    matched = stop.shape[1] - 1
    keys = row_keys(key, uid, jnp.full_like(uid, first_chain), g)
    head = head_matrix(weights)

    def keep(i, hidden, state, done, ids, logps, length):
        token, logp = choose(hidden, head, keys, jnp.full((p, 1), i), temperature[None])
        ids = jax.lax.dynamic_update_slice_in_dim(ids, jnp.where(done, pad_id, token)[..., None], i, 2)
        logps = jax.lax.dynamic_update_slice_in_dim(logps, jnp.where(done, 0.0, logp)[..., None], i, 2)
        length = length + ~done
        state = stop[token, state]
        done = done | (state == matched) | (token[..., None] == eos).any(-1)
        return token, state, done, ids, logps, length

    hidden, shared = prefill(weights, cfg, prompt, prompt_length)
    ids = jnp.full((p, g, max_tokens), pad_id, jnp.int32)
    logps = jnp.zeros((p, g, max_tokens), jnp.float32)
    zero = jnp.zeros((p, g), jnp.int32)
    hidden = jnp.broadcast_to(hidden[:, None], (p, g, hidden.shape[-1]))
    first = keep(0, hidden, zero.astype(stop.dtype), zero.astype(bool), ids, logps, zero)

    def running(carry):
        i, _, (_, _, done, *_) = carry
        return (i < max_tokens) & ~done.all()

    def body(carry):
        i, own, (token, *rest) = carry
        hidden, cache = decode_step(weights, cfg, token, i - 1, prompt_length, in_prompt, Cache(shared, own))
        return i + 1, cache.own, keep(i, hidden, *rest)

    own = empty_cache(cfg, p * g, max_tokens)
    _, _, (_, _, _, ids, logps, length) = jax.lax.while_loop(running, body, (jnp.int32(1), own, first))
    return ids, logps, length


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens", "pad_id", "mesh"))
def generate_spread(
    weights: Params,
    cfg: ModelConfig,
    prompt,
    prompt_length,
    uid,
    key,
    temperature,
    stop,
    eos,
    first_chain,
    max_tokens: int,
    pad_id: int,
    mesh: Mesh | None,
):
    """`generate` on the devices of `mesh`: prompts over its data, the rows of a group over its fsdp.

    Each device does its rows by itself, until these have stopped: there is no collective in the program, which the
    compiler of some TPUs takes from part of a slice only so. Weights that are split over tensor need some.
    """
    rest = dict(max_tokens=max_tokens, pad_id=pad_id)
    arguments = (weights, prompt, prompt_length, uid, key, temperature, stop, eos, first_chain)
    if mesh is None or mesh.size == 1:
        return generate(weights, cfg, *arguments[1:-1], first_chain=first_chain, **rest)
    over = lambda n, axis: axis if n % mesh.shape[axis] == 0 else None
    p, g = over(len(uid), "data"), over(len(temperature), "fsdp")
    if mesh.shape["tensor"] > 1:
        at = tuple(NamedSharding(mesh, PartitionSpec(axis)) for axis in (p, p, p, g))
        prompt, prompt_length, uid, temperature = jax.lax.with_sharding_constraint(
            (prompt, prompt_length, uid, temperature), at
        )
        return generate(
            weights, cfg, prompt, prompt_length, uid, key, temperature, stop, eos, first_chain=first_chain, **rest
        )

    def part(weights, *arguments):
        *arguments, first = arguments
        mine = first + jax.lax.axis_index("fsdp") * len(arguments[4]) if g else first
        return generate(weights, cfg, *arguments, first_chain=mine, **rest)

    whole, rows = PartitionSpec(), PartitionSpec(p, g)
    prompts = PartitionSpec(p)
    specs = (whole, prompts, prompts, prompts, whole, PartitionSpec(g), whole, whole, whole)
    return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=(rows, rows, rows), check_vma=False)(*arguments)


def splice(
    prompts: Prompts, ids: np.ndarray, logp: np.ndarray, length: np.ndarray, cfg: SamplerConfig, version: int = 0
) -> Rollout:
    """Rows [chain, tag, sampled answer, reference answer] from sampled ids [P, G, N]; nothing is re-encoded.

    A chain ends with the id that completes the opening answer tag. One that has none is `truncated`:
    the closing tags are appended as forced ids, so that its reference answer can still be scored.
    """
    fmt = cfg.chain_format
    p, g, _ = ids.shape
    opened = first_match(stop_table(fmt.vocab_bytes, (fmt.answer_open,)), ids, length)
    closed = first_match(stop_table(fmt.vocab_bytes, (fmt.think_close,)), ids, length)
    # With a sampled answer to come, a tag that opens after max_chain ids leaves it too little room.
    truncated = (opened < 0) | (opened > cfg.max_chain)
    longest_tag = max(len(fmt.close_think_ids), len(fmt.open_answer_ids))
    full = cfg.max_sampled + longest_tag + prompts.answer.shape[1]

    completion = np.full((p, g, full), fmt.pad_id, np.int32)
    segment = np.zeros((p, g, full), np.int32)
    sampler_logp = np.zeros((p, g, full), np.float32)
    # Never narrower than the reference answer after an empty chain: the learner scores that too.
    width = longest_tag + int(prompts.answer_length.max())
    for i in range(p):
        answer = prompts.answer[i, : prompts.answer_length[i]]
        for j in range(g):
            n = length[i, j]
            if truncated[i, j]:
                n = min(n, cfg.max_chain)
                tag = fmt.close_think_ids if not 0 < closed[i, j] <= n else fmt.open_answer_ids
                chain, sampled = ids[i, j, :n], ids[i, j, :0]
            else:
                tag = ()
                chain, sampled = ids[i, j, : opened[i, j]], ids[i, j, opened[i, j] : n]
            parts = ((chain, CHAIN), (tag, TAG), (sampled, SAMPLED), (answer, REFERENCE))
            row = np.concatenate([np.asarray(x, np.int32) for x, _ in parts])
            completion[i, j, : len(row)] = row
            segment[i, j, : len(row)] = np.concatenate([np.full(len(x), s, np.int32) for x, s in parts])
            kept = segment[i, j]
            sampler_logp[i, j, (kept == CHAIN) | (kept == SAMPLED)] = logp[i, j, : len(chain) + len(sampled)]
            width = max(width, len(row))
    if cfg.width_multiple:
        full = min(full, -(-width // cfg.width_multiple) * cfg.width_multiple)
    cut = lambda x: x[..., :full]
    return Rollout(prompts, cut(completion), cut(segment), cut(sampler_logp), truncated, version)
