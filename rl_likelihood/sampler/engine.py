"""Continuous batching: when rows stop, waiting ones start in their slots while the others go on.

A slot decodes some rows of one prompt: all of a group if everything fits at once, else one row. When all of them have
stopped it takes the next item. Rows of different ages share one clock: in each step all of them write at the same index
of a ring buffer, so no step copies or scatters into a cache, and a mask by age says what each row attends to. The ring
grows with the clock, so that short completions never read a long cache. A row's random numbers come from its own key
and its tokens' indices, so its ids do not depend on any of this, except where a product over another number of rows
rounds differently.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.mesh import cores
from rl_likelihood.model.decoder import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, Positions, decode_step, empty_cache, prefill
from rl_likelihood.sampler.draw import Cut, Ends, Request, choose, row_keys
from rl_likelihood.shapes import AnyArray

# Length of the ring at the start on a CPU; it doubles until it holds the longest completion. On an accelerator it has
# its full length from the start: each length is another program, and compiling takes minutes.
FIRST_LENGTH = 64
# With fewer rows than this a stream of its own does not pay.
ROWS_PER_STREAM = 16


class Slots(NamedTuple):
    """All that decoding changes: L slots of g rows, completions of at most N ids, a ring of C positions."""

    cache: Cache  # with C positions for the rows' own keys and values
    hidden: Float[Array, "L D"]  # after each prompt: its rows' first tokens are drawn from it
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
    cut: Cut | None = None


def ring_length(slots: Slots) -> int:
    """C."""
    return slots.cache.own[0][0].shape[-1]


class Item(NamedTuple):
    """The work of a slot: rows first, first + 1, ... of prompt number `prompt`."""

    prompt: int
    first: int


class Rows(NamedTuple):
    """The results of all rows, on the host. Beyond a row's length there may be values of an earlier row."""

    ids: Int[np.ndarray, "P G N"]
    logp: Float[np.ndarray, "P G N"]
    length: Int[np.ndarray, "P G"]


def sample_rows(
    weights: Params, model: ModelConfig, request: Request, max_tokens: int, slots: int = 0, streams: int = 0
) -> tuple[Int[np.ndarray, "P G N"], Float[np.ndarray, "P G N"], Int[np.ndarray, "P G"]]:
    """`decode.generate`, with at most `slots` rows at a time (0: all): ids, log-probs, how many, on the host.

    Prompts start in their order, and results are in that order, whole groups. `streams` threads decode at the same
    time; 0: as many as pay on this machine. Where several devices each hold all the weights, each has its own stream;
    where they share the weights, one stream runs on all of them.
    """
    p, g = len(request.prompt_length), len(request.temperature)
    copies = copies_of(weights)
    streams = len(copies) if len(copies) > 1 else streams or streams_for(weights, min(p * g, slots or p * g))
    plan = assign(p, g, slots, streams)
    out = Rows(np.zeros((p, g, max_tokens), np.int32), np.zeros((p, g, max_tokens), np.float32), np.zeros((p, g), int))
    arrays = request._replace(ends=Ends(*map(jnp.asarray, request.ends)), temperature=jnp.asarray(request.temperature))
    # Held while a program is launched, so that streams of one device do not compile it twice; not while it runs.
    launching = [threading.Lock() for _ in copies]

    def stream(k: int) -> None:
        own = copies[k % len(copies)]
        with jax.default_device(jax.tree.leaves(own)[0].device if len(copies) > 1 else None):
            waiting = Waiting(own, model, arrays, plan, k, launching[k % len(copies)])
            decode_stream(out, waiting)

    if plan.streams == 1:
        stream(0)
    else:
        with concurrent.futures.ThreadPoolExecutor(plan.streams) as pool:
            list(pool.map(stream, range(plan.streams)))
    written = np.arange(max_tokens) < out.length[..., None]
    return np.where(written, out.ids, request.pad_id), np.where(written, out.logp, 0), out.length


class Assignment(NamedTuple):
    """Which stream decodes what. Fixed beforehand: which rows share a program must not depend on threads' speed."""

    wide: int  # rows of a slot
    slots: int  # of all streams together; the first streams have one more where they do not divide
    streams: int
    parts: int  # of a group, each for another stream, where there are fewer prompts than streams


def assign(p: int, g: int, slots: int, streams: int) -> Assignment:
    """P prompts of G rows over at most so many streams, `slots` rows at a time (0: all)."""
    whole = slots == 0 or slots >= p * g
    wide = g // math.gcd(g, max(1, streams // p)) if whole else 1
    count = min(p * g, slots or p * g) // wide
    streams = min(streams, count)
    parts = max(1, streams // p) if wide < g else 1
    return Assignment(wide, count, min(streams, p * parts), parts)


def devices_of(weights: Params) -> int:
    """How many devices hold the weights."""
    return len(weights["embed"].devices()) if isinstance(weights["embed"], jax.Array) else 1


def on_cpu(weights: Params) -> bool:
    """Whether they are on CPU devices."""
    return next(iter(weights["embed"].devices())).platform == "cpu"


def whole_on_each(weights: Params) -> bool:
    """Whether each of several devices holds all the weights."""
    return devices_of(weights) > 1 and all(x.is_fully_replicated for x in jax.tree.leaves(weights))


def copies_of(weights: Params) -> list[Params]:
    """The weights once for each device that holds all of them; unchanged where devices share them."""
    if not whole_on_each(weights):
        return [weights]
    count = len(weights["embed"].addressable_shards)
    return [jax.tree.map(lambda x, k=k: x.addressable_shards[k].data, weights) for k in range(count)]


def streams_for(weights: Params, rows: int) -> int:
    """How many streams pay. On one CPU device two programs with half the rows each use two cores better than one
    program, if each has enough rows to multiply the weights with. The weights are held once in any case."""
    if devices_of(weights) > 1 or not on_cpu(weights):
        return 1
    return max(1, min(cores(), rows // ROWS_PER_STREAM))


def decode_stream(out: Rows, waiting: Waiting) -> None:
    """One stream: fill idle slots, decode until one is idle, collect, and again, until nothing waits."""
    request, n, wide = waiting.request, waiting.slots, waiting.wide
    most = out.ids.shape[-1]
    length = min(most, FIRST_LENGTH) if on_cpu(waiting.weights) else most
    slots = empty_slots(waiting.model, (n, wide), request.prompt.shape[1], length, most)
    slots = slots._replace(cut=jax.tree.map(jnp.array, request.cut))  # a copy: slots are donated
    held: list[Item | None] = [None] * n
    while True:
        idle = np.flatnonzero(~np.asarray(slots.running).any(1))
        if any(held[i] is not None for i in idle):
            results = [np.array(x) for x in (slots.ids, slots.logp, slots.count)]
            for i in idle:
                if held[i] is not None:
                    at, rows = held[i].prompt, slice(held[i].first, held[i].first + wide)
                    out.ids[at, rows], out.logp[at, rows], out.length[at, rows] = (x[i] for x in results)
                    held[i] = None
        for taken, starts, prefilled in waiting.take(idle):
            for slot, item in taken:
                held[slot] = item
            slots = fill(slots, prefilled, starts, request.key, request.temperature, request.first_chain)
        prefilled = None  # the slots have its keys and values
        if all(item is None for item in held):
            return
        if int(slots.clock) >= ring_length(slots) < most:
            slots = grow(slots, min(most, 2 * ring_length(slots)))
        # Until a slot is idle for the next item; with none waiting, until all have stopped.
        enough = 1 + sum(item is None for item in held) if waiting.more() else n
        steps = most + 1 if ring_length(slots) == most else ring_length(slots) - int(slots.clock)
        with waiting.launching:
            slots = decode_until(waiting.weights, waiting.model, slots, request.ends, enough, steps)


class Starts(NamedTuple):
    """What `fill` starts, [L] each, of which the first `count` are meant."""

    slot: Int[Array, "L"]
    prompt: Int[Array, "L"]  # its index among the prefilled ones
    length: Int[Array, "L"]  # of the prompt
    uid: Int[Array, "L"]
    first: Int[Array, "L"]  # row
    count: int


class Waiting:
    """Items of stream number k that have not started, and the prompts prefilled for them: each once, when its first
    rows start."""

    def __init__(
        self, weights: Params, model: ModelConfig, request: Request, plan: Assignment, k: int, launching: threading.Lock
    ) -> None:
        p, g = len(request.prompt_length), len(request.temperature)
        part = k // p if plan.parts > 1 else 0
        self.weights, self.model, self.request, self.launching = weights, model, request, launching
        self.wide, self.slots = plan.wide, plan.slots // plan.streams + (k < plan.slots % plan.streams)
        self.first_rows = range(part * g // plan.parts, (part + 1) * g // plan.parts, plan.wide)  # of a prompt's items
        self.numbers = iter([k % p] if plan.parts > 1 else range(k, p, plan.streams))
        self.items: list[Item] = []
        # The last prompt started, while rows of it wait: (index in its prefilled batch, that batch).
        self.prefilled: dict[int, tuple[int, tuple]] = {}

    def more(self, wanted: int = 1) -> bool:
        """Whether so many items wait. Items are made from prompts as they are needed."""
        while len(self.items) < wanted:
            number = next(self.numbers, None)
            if number is None:
                return False
            self.items += [Item(number, first) for first in self.first_rows]
        return True

    def take(self, idle: np.ndarray) -> Iterator[tuple[list[tuple[int, Item]], Starts, tuple]]:
        """For the idle slots, in order: ([(slot, item)], what `fill` starts, the prefilled batch)."""
        self.more(len(idle))
        taken, self.items = self.items[: len(idle)], self.items[len(idle) :]
        pairs = list(zip(idle.tolist(), taken, strict=False))
        for known, group in itertools.groupby(pairs, lambda pair: pair[1].prompt in self.prefilled):
            group = list(group)
            numbers = list(dict.fromkeys(item.prompt for _, item in group))
            # Two sizes, each of which compiles once: all prompts of the start together, later ones one by one.
            size = len(numbers) if len(group) == self.slots else 1
            for k in range(0, len(numbers), size):
                part = numbers[k : k + size]
                if not known:
                    with self.launching:
                        tokens, length = self.request.prompt[part], self.request.prompt_length[part]
                        batch = prefill_jit(self.weights, self.model, tokens, length)
                    self.prefilled = {number: (index, batch) for index, number in enumerate(part)}
                starting = [(slot, item) for slot, item in group if item.prompt in part]
                yield starting, self._starts(starting), self.prefilled[part[0]][1]
        if taken:
            last = taken[-1].prompt
            goes_on = bool(self.items) and self.items[0].prompt == last
            self.prefilled = {last: self.prefilled[last]} if goes_on else {}

    def _starts(self, pairs: list[tuple[int, Item]]) -> Starts:
        prompts = [item.prompt for _, item in pairs]
        columns = (
            [slot for slot, _ in pairs],
            [self.prefilled[prompt][0] for prompt in prompts],
            self.request.prompt_length[prompts],
            self.request.uid[prompts],
            [item.first for _, item in pairs],
        )
        unused = self.slots - len(pairs)
        return Starts(*(np.pad(np.asarray(x, np.int32), (0, unused)) for x in columns), len(pairs))


prefill_jit = jax.jit(prefill, static_argnames="cfg")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_slots(cfg: ModelConfig, shape: tuple[int, int], s: int, length: int, most: int) -> Slots:
    """n idle slots of g rows, for prompts of s tokens."""
    n, g = shape

    def full(value):
        return jnp.full((n, g), value)

    return Slots(
        cache=Cache(empty_cache(cfg, n, s), empty_cache(cfg, n * g, length)),
        hidden=jnp.zeros((n, cfg.width), cfg.compute_dtype),
        prompt_length=jnp.ones(n, jnp.int32),
        keys=jax.random.split(jax.random.key(0), (n, g)),
        temperature=full(jnp.float32(1)),
        token=full(jnp.int32(0)),
        state=full(jnp.int8(0)),
        count=full(jnp.int32(0)),
        running=full(False),
        ids=jnp.zeros((n, g, most), jnp.int32),
        logp=jnp.zeros((n, g, most), jnp.float32),
        clock=jnp.int32(0),
    )


@functools.partial(jax.jit, donate_argnums=0)
def fill(slots: Slots, prefilled: tuple, starts: Starts, key: Array, temperature, first_chain) -> Slots:
    """Items start in their slots. Keys that earlier rows left there are masked by their age. `first_chain`: the index
    in its group of row 0."""
    hidden, shared = prefilled
    g = slots.token.shape[1]
    keys = row_keys(key, starts.uid, starts.first + first_chain, g)
    temperatures = temperature[starts.first[:, None] + jnp.arange(g)]

    def one(k, slots):
        slot = starts.slot[k]

        def put(old, new):
            return jax.lax.dynamic_update_index_in_dim(old, new.astype(old.dtype), slot, 0)

        def put_all(old, value):
            return put(old, jnp.full(old.shape[1:], value, old.dtype))

        def source(x):
            return jax.lax.dynamic_index_in_dim(x, starts.prompt[k], 0, keepdims=False)

        prompt = jax.tree.map(lambda old, new: put(old, source(new)), slots.cache.prompt, shared)
        return slots._replace(
            cache=Cache(prompt, slots.cache.own),
            hidden=put(slots.hidden, source(hidden)),
            prompt_length=slots.prompt_length.at[slot].set(starts.length[k]),
            keys=slots.keys.at[slot].set(keys[k]),
            temperature=put(slots.temperature, temperatures[k]),
            state=put_all(slots.state, 0),
            count=put_all(slots.count, 0),
            running=put_all(slots.running, True),
        )

    return jax.lax.fori_loop(0, starts.count, one, slots)


def grow(slots: Slots, length: int) -> Slots:
    """A longer ring; the old one is deleted. Only before the clock has gone round: until then the ring is in the order
    of time."""
    more, own = length - ring_length(slots), []
    for pair in slots.cache.own:  # one layer at a time: there may be no memory for two whole rings
        own.append(longer(*pair, more))
        for x in pair:
            x.delete()
    return slots._replace(cache=Cache(slots.cache.prompt, tuple(own)))


@functools.partial(jax.jit, static_argnums=2)
def longer(k: Float[AnyArray, "N K Dh C"], v: Float[AnyArray, "N K C Dh"], more: int):
    """One layer's ring with `more` positions at its end."""
    rows, more = (0, 0), (0, more)
    return jnp.pad(k, (rows, rows, rows, more)), jnp.pad(v, (rows, rows, more, rows))


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=2)
def decode_until(weights: Params, cfg: ModelConfig, slots: Slots, ends: Ends, idle, steps) -> Slots:
    """Decode until so many slots are idle, for at most `steps` steps.

    The first step of a row computes no token of its own: its first token is drawn from the prompt's last state.
    """
    head, matched = head_matrix(weights), ends.table.shape[1] - 1
    length, most = ring_length(slots), slots.ids.shape[2]
    in_prompt = jnp.arange(slots.cache.prompt[0][0].shape[-1]) < slots.prompt_length[:, None]
    end = slots.clock + steps

    def going(s: Slots):
        return (s.clock < end) & ((~s.running.any(1)).sum() < idle)

    def body(s: Slots):
        write = s.clock % length
        age = (write - jnp.arange(length)) % length  # steps since each position was written, 0 for this step's
        at = Positions(write, s.prompt_length[:, None] + s.count - 1, age < s.count[..., None], in_prompt)
        hidden, cache = decode_step(weights, cfg, s.token, at, s.cache)
        hidden = jnp.where((s.count == 0)[..., None], s.hidden[:, None], hidden)
        token, logp = choose(hidden, head, s.keys, s.count, s.temperature, s.cut)
        new = (jnp.arange(most) == s.count[..., None]) & s.running[..., None]
        count = s.count + s.running
        state = ends.table[token, s.state.astype(jnp.int32)].astype(s.state.dtype)
        over = (state == matched) | (token[..., None] == ends.eos).any(-1) | (count >= most)
        return s._replace(
            cache=cache,
            token=token,
            state=state,
            count=count,
            running=s.running & ~over,
            ids=jnp.where(new, token[..., None], s.ids),
            logp=jnp.where(new, logp[..., None], s.logp),
            clock=s.clock + 1,
        )

    return jax.lax.while_loop(going, body, slots)
