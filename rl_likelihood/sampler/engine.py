"""Continuous batching: when a row stops, a waiting row starts in its slot, while the other rows continue.

A slot decodes some rows of one prompt: the whole group if all rows fit at once, else one row. When all of them have
stopped, the slot takes the next item. Rows of different ages share one clock. In each step all rows write at the same
index of a ring buffer, so no step copies a cache or scatters into it. A mask by age decides what each row attends to.
The ring grows with the clock. Until it has its full length, no row reads more than the clock has counted.

A row's random numbers come from its own key and the indices of its tokens. So its ids do not depend on the schedule,
except that a matrix product with another number of rows may round differently.
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
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoding import Cache, Positions, decode_step, empty_cache, prefill
from rl_likelihood.sampler.draw import Cut, Ends, Request, choose, row_keys
from rl_likelihood.shapes import AnyArray

# Initial length of the ring on a CPU and on an accelerator. It doubles until it holds the longest completion. Each
# length is compiled separately, which takes minutes on an accelerator.
FIRST_LENGTH, FIRST_ON_ACCELERATOR = 64, 512
# With fewer rows than this, one more stream saves no time.
ROWS_PER_STREAM = 16


class Slots(NamedTuple):
    """The state of decoding: L slots of g rows, completions of at most N ids, a ring of C positions."""

    cache: Cache  # the rows' own keys and values have C positions
    hidden: Float[Array, "L D"]  # state after each prompt, from which the rows' first tokens are drawn
    prompt_length: Int[Array, "L"]
    keys: Array  # random keys [L, g]
    temperature: Float[Array, "L g"]
    token: Int[Array, "L g"]  # the last sampled token
    state: Int[Array, "L g"]  # state of the stop automaton
    count: Int[Array, "L g"]  # number of sampled tokens
    running: Bool[Array, "L g"]
    ids: Int[Array, "L g N"]
    logp: Float[Array, "L g N"]
    clock: Int[Array, ""]  # steps so far
    cut: Cut | None = None


def ring_length(slots: Slots) -> int:
    """C, the positions of the ring."""
    return slots.cache.own[0][0].shape[-1]


def cache_lengths(most: int, first: int) -> list[int]:
    """`first`, twice this, four times this, ..., `most`."""
    return [first << k for k in range(32) if first << k < most] + [most]


class Item(NamedTuple):
    """A unit of work for a slot: rows first, first + 1, ... of prompt number `prompt`."""

    prompt: int
    first: int


class Rows(NamedTuple):
    """The results of all rows, on the host. Values beyond a row's length are meaningless."""

    ids: Int[np.ndarray, "P G N"]
    logp: Float[np.ndarray, "P G N"]
    length: Int[np.ndarray, "P G"]


def sample_rows(
    weights: Params, model: ModelConfig, request: Request, max_tokens: int, slots: int = 0, streams: int = 0
) -> tuple[Int[np.ndarray, "P G N"], Float[np.ndarray, "P G N"], Int[np.ndarray, "P G"]]:
    """(ids, log-probs in nats, the number of ids of each row), on the host, as from `decode.generate`, with at most
    `slots` rows decoded at a time (0: all). Requests with other limits share a program that has room for `max_tokens`.

    Prompts start in their order. `streams`: threads that decode at the same time; 0: chosen for this machine. If
    several devices each hold all weights, each has its own stream. If devices share the weights, one stream uses all.
    """
    p, g = len(request.prompt_length), len(request.temperature)
    weight_copies = copies_of(weights)
    streams = (
        len(weight_copies) if len(weight_copies) > 1 else streams or streams_for(weights, min(p * g, slots or p * g))
    )
    plan = assign(p, g, slots, streams)
    out = Rows(np.zeros((p, g, max_tokens), np.int32), np.zeros((p, g, max_tokens), np.float32), np.zeros((p, g), int))
    arrays = request._replace(ends=Ends(*map(jnp.asarray, request.ends)), temperature=jnp.asarray(request.temperature))
    # One lock per device, held while a program is launched but not while it runs: no program is compiled twice.
    launching = [threading.Lock() for _ in weight_copies]

    def stream(k: int) -> None:
        device_weights = weight_copies[k % len(weight_copies)]
        with jax.default_device(jax.tree.leaves(device_weights)[0].device if len(weight_copies) > 1 else None):
            waiting = Waiting(device_weights, model, arrays, plan, k, launching[k % len(weight_copies)])
            decode_stream(out, waiting)

    if plan.streams == 1:
        stream(0)
    else:
        with concurrent.futures.ThreadPoolExecutor(plan.streams) as pool:
            list(pool.map(stream, range(plan.streams)))
    written = np.arange(max_tokens) < out.length[..., None]
    return np.where(written, out.ids, request.pad_id), np.where(written, out.logp, 0), out.length


class Assignment(NamedTuple):
    """Which stream decodes which rows. It is fixed in advance, so that it does not depend on the speed of threads."""

    wide: int  # rows per slot
    slots: int  # of all streams together; if they do not divide evenly, the first streams have one more
    streams: int
    parts: int  # parts of a group, each for another stream, if there are fewer prompts than streams


def assign(p: int, g: int, slots: int, streams: int) -> Assignment:
    """Distributes P prompts of G rows over at most `streams` streams, with `slots` rows at a time (0: all)."""
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
    """Whether the weights are on CPU devices."""
    return next(iter(weights["embed"].devices())).platform == "cpu"


def whole_on_each(weights: Params) -> bool:
    """Whether there are several devices and each holds all weights."""
    return devices_of(weights) > 1 and all(x.is_fully_replicated for x in jax.tree.leaves(weights))


def copies_of(weights: Params) -> list[Params]:
    """For each device that holds all weights, its copy; or [weights] if the devices share them."""
    if not whole_on_each(weights):
        return [weights]
    count = len(weights["embed"].addressable_shards)
    return [jax.tree.map(lambda x, k=k: x.addressable_shards[k].data, weights) for k in range(count)]


def streams_for(weights: Params, rows: int) -> int:
    """The number of streams that is fastest. On one CPU device, two programs with half the rows each use two cores
    better than one program, if each has enough rows. All streams read the same weights in memory."""
    if devices_of(weights) > 1 or not on_cpu(weights):
        return 1
    return max(1, min(cores(), rows // ROWS_PER_STREAM))


def decode_stream(out: Rows, waiting: Waiting) -> None:
    """Runs one stream: fill idle slots, decode until a slot is idle, collect its results; repeat until all is done."""
    request, n, wide = waiting.request, waiting.slots, waiting.wide
    max_ids = out.ids.shape[-1]
    limit = min(max_ids, int(request.ends.limit))
    length = min(max_ids, FIRST_LENGTH if on_cpu(waiting.weights) else FIRST_ON_ACCELERATOR)
    slots = empty_slots(waiting.model, (n, wide), request.prompt.shape[1], length, max_ids)
    slots = slots._replace(cut=jax.tree.map(jnp.array, request.cut))  # a copy: slots are donated
    items: list[Item | None] = [None] * n
    while True:
        idle = np.flatnonzero(~np.asarray(slots.running).any(1))
        if any(items[i] is not None for i in idle):
            results = [np.array(x) for x in (slots.ids, slots.logp, slots.count)]
            for i in idle:
                if items[i] is not None:
                    prompt, rows = items[i].prompt, slice(items[i].first, items[i].first + wide)
                    out.ids[prompt, rows], out.logp[prompt, rows], out.length[prompt, rows] = (x[i] for x in results)
                    items[i] = None
        for taken, starts, prefilled in waiting.take(idle):
            for slot, item in taken:
                items[slot] = item
            slots = fill(slots, prefilled, starts, request.key, request.temperature, request.first_chain)
        prefilled = None  # frees it: the slots have copies of its keys and values
        if all(item is None for item in items):
            return
        if int(slots.clock) >= ring_length(slots) < limit:
            slots = grow(slots, min(max_ids, 2 * ring_length(slots)))
        # Decode until a slot is idle for the next item or, if none waits, until all slots are idle.
        enough = 1 + sum(item is None for item in items) if waiting.more() else n
        steps = limit + 1 if ring_length(slots) >= limit else ring_length(slots) - int(slots.clock)
        with waiting.launching:
            slots = decode_until(waiting.weights, waiting.model, slots, request.ends, enough, steps)


class Starts(NamedTuple):
    """The items that `fill` starts. Only the first `count` entries of each array are valid."""

    slot: Int[Array, "L"]
    prompt: Int[Array, "L"]  # the prompt's index in the prefilled batch
    length: Int[Array, "L"]  # the prompt's length
    uid: Int[Array, "L"]
    first: Int[Array, "L"]  # the item's first row
    count: int


class Waiting:
    """The items of stream k that have not started, and the prompts prefilled for them. Each prompt is prefilled once,
    when its first rows start."""

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
        # Prompts of which rows still wait: number -> (index in its prefilled batch, that batch).
        self.prefilled: dict[int, tuple[int, tuple]] = {}

    def more(self, at_least: int = 1) -> bool:
        """Whether at least `at_least` items wait. Items are made from prompts when they are needed."""
        while len(self.items) < at_least:
            number = next(self.numbers, None)
            if number is None:
                return False
            self.items += [Item(number, first) for first in self.first_rows]
        return True

    def take(self, idle: np.ndarray) -> Iterator[tuple[list[tuple[int, Item]], Starts, tuple]]:
        """Assigns items to the idle slots, in order. Yields ([(slot, item)], arguments of `fill`, prefilled batch)."""
        self.more(len(idle))
        taken, self.items = self.items[: len(idle)], self.items[len(idle) :]
        pairs = list(zip(idle.tolist(), taken, strict=False))
        for is_prefilled, group in itertools.groupby(pairs, lambda pair: pair[1].prompt in self.prefilled):
            group = list(group)
            numbers = list(dict.fromkeys(item.prompt for _, item in group))
            # The first prompts are prefilled together, later ones one by one: only two sizes are compiled.
            size = len(numbers) if len(group) == self.slots else 1
            for k in range(0, len(numbers), size):
                part = numbers[k : k + size]
                if not is_prefilled:
                    with self.launching:
                        tokens, length = self.request.prompt[part], self.request.prompt_length[part]
                        batch = prefill_jit(self.weights, self.model, tokens, length, self.request.common_length)
                    self.prefilled = {number: (index, batch) for index, number in enumerate(part)}
                starting = [(slot, item) for slot, item in group if item.prompt in part]
                yield starting, self._starts(starting), self.prefilled[part[0]][1]
        if taken:
            last = taken[-1].prompt
            continues = bool(self.items) and self.items[0].prompt == last
            self.prefilled = {last: self.prefilled[last]} if continues else {}

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


prefill_jit = jax.jit(prefill, static_argnames=("cfg", "common"))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_slots(cfg: ModelConfig, shape: tuple[int, int], s: int, length: int, limit: int) -> Slots:
    """n idle slots of g rows. `shape`: (n, g); `s`: tokens of a prompt; `length`: of the ring; `limit`: maximum ids."""
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
        ids=jnp.zeros((n, g, limit), jnp.int32),
        logp=jnp.zeros((n, g, limit), jnp.float32),
        clock=jnp.int32(0),
    )


@functools.partial(jax.jit, donate_argnums=0)
def fill(slots: Slots, prefilled: tuple, starts: Starts, key: Array, temperature, first_chain) -> Slots:
    """Starts items in their slots. The age mask hides keys that earlier rows left there. `first_chain`: the index in
    the group of row 0."""
    hidden, shared = prefilled
    g = slots.token.shape[1]
    keys = row_keys(key, starts.uid, starts.first + first_chain, g)
    temperatures = temperature[starts.first[:, None] + jnp.arange(g)]

    def start_item(k, slots):
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

    return jax.lax.fori_loop(0, starts.count, start_item, slots)


def grow(slots: Slots, length: int) -> Slots:
    """Lengthens the ring and deletes the old one. Only valid before the clock has wrapped around, while the ring is
    still in the order of time."""
    extra, grown = length - ring_length(slots), []
    for pair in slots.cache.own:  # one layer at a time: there may be no memory for two whole rings
        grown.append(longer(*pair, extra))
        for x in pair:
            x.delete()
    return slots._replace(cache=Cache(slots.cache.prompt, tuple(grown)))


@functools.partial(jax.jit, static_argnums=2)
def longer(k: Float[AnyArray, "N K Dh C"], v: Float[AnyArray, "N K C Dh"], extra: int):
    """One layer's ring with `extra` positions at its end."""
    rows, extra = (0, 0), (0, extra)
    return jnp.pad(k, (rows, rows, rows, extra)), jnp.pad(v, (rows, rows, extra, rows))


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=2)
def decode_until(weights: Params, cfg: ModelConfig, slots: Slots, ends: Ends, idle, steps) -> Slots:
    """Decodes until `idle` slots are idle, for at most `steps` steps.

    A row's first token is drawn from the prompt's last state. So the first step of a row ignores what it computes.
    """
    head, matched = head_matrix(weights), ends.table.shape[1] - 1
    length, most = ring_length(slots), slots.ids.shape[2]
    in_prompt = jnp.arange(slots.cache.prompt[0][0].shape[-1]) < slots.prompt_length[:, None]
    end = slots.clock + steps

    def unfinished(s: Slots):
        return (s.clock < end) & ((~s.running.any(1)).sum() < idle)

    def body(s: Slots):
        write = s.clock % length
        age = (write - jnp.arange(length)) % length  # steps since each position was written, 0 for this step's
        positions = Positions(write, s.prompt_length[:, None] + s.count - 1, age < s.count[..., None], in_prompt)
        hidden, cache = decode_step(weights, cfg, s.token, positions, s.cache)
        hidden = jnp.where((s.count == 0)[..., None], s.hidden[:, None], hidden)
        token, logp = choose(hidden, head, s.keys, s.count, s.temperature, s.cut)
        is_new = (jnp.arange(most) == s.count[..., None]) & s.running[..., None]
        count = s.count + s.running
        state = ends.table[token, s.state.astype(jnp.int32)].astype(s.state.dtype)
        stopped = (state == matched) | (token[..., None] == ends.eos).any(-1) | (count >= jnp.minimum(ends.limit, most))
        return s._replace(
            cache=cache,
            token=token,
            state=state,
            count=count,
            running=s.running & ~stopped,
            ids=jnp.where(is_new, token[..., None], s.ids),
            logp=jnp.where(is_new, logp[..., None], s.logp),
            clock=s.clock + 1,
        )

    return jax.lax.while_loop(unfinished, body, slots)
