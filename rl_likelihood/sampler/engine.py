"""Continuous batching: rows that stop make room for the next ones, while the others go on.

A lane decodes some rows of one prompt (all of a group when everything fits at once, else one row), and takes the
next item when all of them have stopped. Rows of different ages share one clock: each step all of them write at the
same place of a ring, so that no step copies or scatters into a cache, and a mask by age says what each row sees.
The ring grows with the clock, so that short completions never read a long cache. A row's ids do not depend on any
of this, but where a product of another number of rows rounds otherwise: its uniforms come from its own key and its
tokens' numbers.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood import mesh as meshes
from rl_likelihood.model.decoder import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, decode_rows, empty_cache, prefill
from rl_likelihood.sampler.draw import choose, row_keys
from rl_likelihood.shapes import Prompts

# Places of the ring to begin with on a CPU; it doubles until it holds the longest completion. An accelerator's has all
# from the beginning: each length is another program, and its compilations take minutes.
FIRST_PLACES = 64
# Fewer rows than this are not worth a pass over the weights of their own.
ROWS_OF_A_STREAM = 16


class Lanes(NamedTuple):
    """All that decoding changes: L lanes of g rows, completions of at most N ids, a ring of C places."""

    cache: Cache  # with C places for the rows' own keys and values
    hidden: Float[Array, "L D"]  # after each prompt: what its rows' first tokens are drawn from
    prompt_length: Int[Array, "L"]
    keys: Array  # [L, g]
    temperature: Float[Array, "L g"]
    token: Int[Array, "L g"]  # the last one sampled
    state: Int[Array, "L g"]  # of the stop automaton
    count: Int[Array, "L g"]  # tokens sampled
    running: Bool[Array, "L g"]
    ids: Int[Array, "L g N"]
    logp: Float[Array, "L g N"]
    clock: Int[Array, ""]  # steps so far


def places_of(lanes: Lanes) -> int:
    """C."""
    return lanes.cache.own[0][0].shape[-1]


class Item(NamedTuple):
    """What a lane does: rows first, first + 1, ... of prompt number `prompt`."""

    prompt: int
    first: int


class Rows(NamedTuple):
    """What came of all rows, on the host; beyond a row's length its lane may have left an earlier row's values."""

    ids: Int[np.ndarray, "P G N"]
    logp: Float[np.ndarray, "P G N"]
    length: Int[np.ndarray, "P G"]


def sample_rows(
    weights: Params,
    model: ModelConfig,
    prompts: Prompts,
    key: Array,
    temperature: Float[np.ndarray, "G"],
    stop: Int[np.ndarray, "V states"],
    eos: Int[np.ndarray, "E"],
    max_tokens: int,
    pad_id: int,
    slots: int = 0,
    streams: int = 0,
    first_chain: int = 0,
) -> tuple[Int[np.ndarray, "P G N"], Float[np.ndarray, "P G N"], Int[np.ndarray, "P G"]]:
    """`decode.generate`, with at most `slots` rows at a time (0: all): ids, log-probs, how many, on the host.

    Prompts start in their order; the results are in it too, whole groups, however the rows came to an end.
    `streams` threads decode side by side, 0: as many as pay on this machine. Where several devices hold the weights
    whole, each has a stream of its own; where they share them, the one stream runs on all.
    """
    p, g = len(prompts.length), len(temperature)
    copies = copies_of(weights)
    streams = len(copies) if len(copies) > 1 else streams or streams_for(weights, min(p * g, slots or p * g))
    wide, lanes, streams, parts = deal(p, g, slots, streams)
    out = Rows(np.zeros((p, g, max_tokens), np.int32), np.zeros((p, g, max_tokens), np.float32), np.zeros((p, g), int))
    # Held while a program is launched, so that streams of a device do not compile the same one; it runs outside.
    launching = [threading.Lock() for _ in copies]
    settings = key, *(jnp.asarray(x) for x in (np.float32(temperature), stop, np.int32(eos))), first_chain

    def stream(k: int) -> None:
        n = lanes // streams + (k < lanes % streams)
        part = k // p if parts > 1 else 0
        rows = range(part * g // parts, (part + 1) * g // parts, wide)
        numbers = iter([k % p] if parts > 1 else range(k, p, streams))
        mine = copies[k % len(copies)]
        with jax.default_device(jax.tree.leaves(mine)[0].device if len(copies) > 1 else None):
            waiting = Waiting(mine, model, prompts, numbers, rows, n, launching[k % len(copies)])
            decode_stream(out, waiting, n, wide, settings)

    if streams == 1:
        stream(0)
    else:
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            list(pool.map(stream, range(streams)))
    written = np.arange(max_tokens) < out.length[..., None]
    return np.where(written, out.ids, pad_id), np.where(written, out.logp, 0), out.length


class Deal(NamedTuple):
    """Who decodes what, settled beforehand: which rows share a program must not hang on which thread is faster."""

    wide: int  # rows of a lane
    lanes: int  # of all streams; the first ones have one more where they do not divide
    streams: int
    parts: int  # of a group, each another stream's, where there are fewer prompts than streams


def deal(p: int, g: int, slots: int, streams: int) -> Deal:
    """P prompts of G rows over at most so many streams, `slots` rows at a time (0: all)."""
    whole = slots == 0 or slots >= p * g
    wide = g // math.gcd(g, max(1, streams // p)) if whole else 1
    lanes = min(p * g, slots or p * g) // wide
    streams = min(streams, lanes)
    parts = max(1, streams // p) if wide < g else 1
    return Deal(wide, lanes, min(streams, p * parts), parts)


def devices_of(weights: Params) -> int:
    """Devices that hold the weights."""
    return len(weights["embed"].devices()) if isinstance(weights["embed"], jax.Array) else 1


def on_cpu(weights: Params) -> bool:
    """Whether they are on CPU devices."""
    return next(iter(weights["embed"].devices())).platform == "cpu"


def whole_on_each(weights: Params) -> bool:
    """Whether each of several devices holds all the weights."""
    return devices_of(weights) > 1 and all(x.is_fully_replicated for x in jax.tree.leaves(weights))


def copies_of(weights: Params) -> list[Params]:
    """The weights once for each device that holds all of them; as they are where devices share them."""
    if not whole_on_each(weights):
        return [weights]
    count = len(weights["embed"].addressable_shards)
    return [jax.tree.map(lambda x, k=k: x.addressable_shards[k].data, weights) for k in range(count)]


def streams_for(weights: Params, rows: int) -> int:
    """Streams that pay: on one CPU device two programs of half the rows use two cores better than one program does,
    as long as each has some rows to multiply the weights with. Weights are held once, whatever this says."""
    if devices_of(weights) > 1 or not on_cpu(weights):
        return 1
    return max(1, min(meshes.cores(), rows // ROWS_OF_A_STREAM))


def decode_stream(out: Rows, waiting: Waiting, n: int, wide: int, settings) -> None:
    """One stream of n lanes: fill, decode until one is free, gather, and again, until nothing waits."""
    key, temperature, stop, eos, first_chain = settings
    model, prompts, most = waiting.model, waiting.prompts, out.ids.shape[-1]
    places = min(most, FIRST_PLACES) if on_cpu(waiting.weights) else most
    lanes = empty_lanes(model, n, wide, prompts.tokens.shape[1], places, most)
    held: list[Item | None] = [None] * n
    while True:
        idle = np.flatnonzero(~np.asarray(lanes.running).any(1))
        if any(held[i] is not None for i in idle):
            got = [np.array(x) for x in (lanes.ids, lanes.logp, lanes.count)]
            for i in idle:
                if held[i] is not None:
                    at, rows = held[i].prompt, slice(held[i].first, held[i].first + wide)
                    out.ids[at, rows], out.logp[at, rows], out.length[at, rows] = (x[i] for x in got)
                    held[i] = None
        for lane_of, which, taken, prefilled in waiting.take(idle):
            for lane, item in zip(lane_of, taken, strict=True):
                held[lane] = item
            described = waiting.described(taken, lane_of, which)
            lanes = fill(lanes, prefilled, *described, key, temperature, first_chain)
        prefilled = None  # the lanes have their keys and values
        if all(item is None for item in held):
            return
        if int(lanes.clock) >= places_of(lanes) < most:
            lanes = grow(lanes, min(most, 2 * places_of(lanes)))
        # Until a lane is free for the next item; with none waiting, until all have stopped.
        free = 1 + sum(item is None for item in held) if waiting.more() else n
        steps = most + 1 if places_of(lanes) == most else places_of(lanes) - int(lanes.clock)
        with waiting.launching:
            lanes = segment(waiting.weights, model, lanes, stop, eos, free, steps)


class Waiting:
    """Items of a stream not begun yet, and the prompts prefilled for them: once each, when their first rows start."""

    def __init__(self, weights: Params, model: ModelConfig, prompts: Prompts, numbers, rows: range, n: int, launching):
        self.weights, self.model, self.prompts, self.launching = weights, model, prompts, launching
        self.numbers, self.rows, self.n = numbers, rows, n  # rows: the first ones of a prompt's items
        self.items: list[Item] = []
        self.made: dict[int, tuple] = {}  # the last prompt begun, while rows of it wait: (place in the batch, batch)

    def more(self, wanted: int = 1) -> bool:
        """Whether so many items wait; prompts are made items as they are needed."""
        while len(self.items) < wanted:
            number = next(self.numbers, None)
            if number is None:
                return False
            self.items += [Item(number, j) for j in self.rows]
        return True

    def take(self, idle: np.ndarray):
        """Batches of (lanes, places in the prefilled batch, items, prefilled batch) for the idle lanes, in order."""
        self.more(len(idle))
        taken, self.items = self.items[: len(idle)], self.items[len(idle) :]
        pairs = list(zip(idle, taken, strict=False))
        for old, group in itertools.groupby(pairs, lambda pair: pair[1].prompt in self.made):
            group = list(group)
            numbers = list(dict.fromkeys(item.prompt for _, item in group))
            # Two sizes, each of which compiles once: all of the start's prompts together, later ones one by one.
            size = len(numbers) if len(group) == self.n else 1
            for k in range(0, len(numbers), size):
                part = numbers[k : k + size]
                if not old:
                    with self.launching:
                        tokens, length = self.prompts.tokens[part], self.prompts.length[part]
                        batch = prefill_jit(self.weights, self.model, tokens, length)
                    self.made = {number: (at, batch) for at, number in enumerate(part)}
                mine = [(lane, item) for lane, item in group if item.prompt in part]
                which = [self.made[item.prompt][0] for _, item in mine]
                yield [lane for lane, _ in mine], which, [item for _, item in mine], self.made[part[0]][1]
        if taken:
            last = taken[-1].prompt
            left = bool(self.items) and self.items[0].prompt == last
            self.made = {last: self.made[last]} if left else {}

    def described(self, taken: list[Item], lanes: list[int], which: list[int]):
        """Arrays [n] for `fill`: lane, place in the batch, prompt length, uid, first row; and how many are meant."""
        at = [item.prompt for item in taken]
        columns = (lanes, which, self.prompts.length[at], self.prompts.uid[at], [item.first for item in taken])
        room = self.n - len(taken)
        return *(np.pad(np.asarray(x, np.int32), (0, room)) for x in columns), len(taken)


prefill_jit = jax.jit(prefill, static_argnames="cfg")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def empty_lanes(cfg: ModelConfig, n: int, g: int, s: int, places: int, most: int) -> Lanes:
    """n idle lanes of g rows for prompts of s tokens."""
    whole = lambda x: jnp.full((n, g), x)
    return Lanes(
        cache=Cache(empty_cache(cfg, n, s), empty_cache(cfg, n * g, places)),
        hidden=jnp.zeros((n, cfg.width), cfg.compute_dtype),
        prompt_length=jnp.ones(n, jnp.int32),
        keys=jax.random.split(jax.random.key(0), (n, g)),
        temperature=whole(jnp.float32(1)),
        token=whole(jnp.int32(0)),
        state=whole(jnp.int8(0)),
        count=whole(jnp.int32(0)),
        running=whole(False),
        ids=jnp.zeros((n, g, most), jnp.int32),
        logp=jnp.zeros((n, g, most), jnp.float32),
        clock=jnp.int32(0),
    )


@functools.partial(jax.jit, donate_argnums=0)
def fill(lanes: Lanes, prefilled, lane, which, length, uid, first, count, key: Array, temperature, chain) -> Lanes:
    """The first `count` of these items begin in their lanes, whose own keys are forgotten by their age. `chain`: the
    place in its group of row 0."""
    hidden, shared = prefilled
    g = lanes.token.shape[1]
    keys = row_keys(key, uid, first + chain, g)
    warmth = temperature[first[:, None] + jnp.arange(g)]

    def one(k, lanes):
        put = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new.astype(old.dtype), lane[k], 0)
        row = lambda old, value: put(old, jnp.full(old.shape[1:], value, old.dtype))
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, which[k], 0, keepdims=False)
        kept = jax.tree.map(lambda old, new: put(old, pick(new)), lanes.cache.prompt, shared)
        return lanes._replace(
            cache=Cache(kept, lanes.cache.own),
            hidden=put(lanes.hidden, pick(hidden)),
            prompt_length=lanes.prompt_length.at[lane[k]].set(length[k]),
            keys=lanes.keys.at[lane[k]].set(keys[k]),
            temperature=put(lanes.temperature, warmth[k]),
            state=row(lanes.state, 0),
            count=row(lanes.count, 0),
            running=row(lanes.running, True),
        )

    return jax.lax.fori_loop(0, count, one, lanes)


def grow(lanes: Lanes, places: int) -> Lanes:
    """A longer ring, in place of the old one, which is gone. Only before the clock has gone round: then the places are
    still in the order of time."""
    more, own = places - places_of(lanes), []
    for pair in lanes.cache.own:  # a layer at a time: two whole rings may be more than there is room for
        own.append(longer(*pair, more))
        for x in pair:
            x.delete()
    return lanes._replace(cache=Cache(lanes.cache.prompt, tuple(own)))


@functools.partial(jax.jit, static_argnums=2)
def longer(k: Float[Array, "N K Dh C"], v: Float[Array, "N K C Dh"], more: int):
    """One layer's ring with `more` places behind the others."""
    rows, more = (0, 0), (0, more)
    return jnp.pad(k, (rows, rows, rows, more)), jnp.pad(v, (rows, rows, more, rows))


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=2)
def segment(weights: Params, cfg: ModelConfig, lanes: Lanes, stop, eos, most, steps) -> Lanes:
    """Decode for `steps` steps, or until `most` lanes are idle.

    A row that has just begun spends its first step without a token of its own: its first is drawn from the
    prompt's last state.
    """
    head, matched = head_matrix(weights), stop.shape[1] - 1
    places, room = places_of(lanes), lanes.ids.shape[2]
    in_prompt = jnp.arange(lanes.cache.prompt[0][0].shape[-1]) < lanes.prompt_length[:, None]
    end = lanes.clock + steps

    def going(s: Lanes):
        return (s.clock < end) & ((~s.running.any(1)).sum() < most)

    def body(s: Lanes):
        write = s.clock % places
        age = (write - jnp.arange(places)) % places  # steps since each place was written, this one being now
        seen = age < s.count[..., None]
        position = s.prompt_length[:, None] + s.count - 1
        hidden, cache = decode_rows(weights, cfg, s.token, write, position, seen, in_prompt, s.cache)
        hidden = jnp.where((s.count == 0)[..., None], s.hidden[:, None], hidden)
        token, logp = choose(hidden, head, s.keys, s.count, s.temperature)
        here = (jnp.arange(room) == s.count[..., None]) & s.running[..., None]
        count = s.count + s.running
        state = stop[token, s.state.astype(jnp.int32)].astype(s.state.dtype)
        over = (state == matched) | (token[..., None] == eos).any(-1) | (count >= room)
        return s._replace(
            cache=cache,
            token=token,
            state=state,
            count=count,
            running=s.running & ~over,
            ids=jnp.where(here, token[..., None], s.ids),
            logp=jnp.where(here, logp[..., None], s.logp),
            clock=s.clock + 1,
        )

    return jax.lax.while_loop(going, body, lanes)
