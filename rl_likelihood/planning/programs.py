"""The programs of a run's loop, traced and compiled from shapes alone: nothing is allocated and nothing runs."""

from __future__ import annotations

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rl_likelihood import mesh as meshes
from rl_likelihood.config import Settings
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step, state_shardings
from rl_likelihood.model.decoder import ModelConfig, is_spec, param_specs
from rl_likelihood.planning import aot
from rl_likelihood.planning.aot import Program
from rl_likelihood.sampler import decode, engine, handover
from rl_likelihood.sampler.engine import Deal
from rl_likelihood.shapes import Batch, ChainFormat
from rl_likelihood.task import Places, World, abstract_batch, using


def shape_world(settings: Settings, model: ModelConfig) -> World:
    """The world of a config as far as shapes need it: no tokenizer, no questions.

    Tags are taken to be as many ids as they have bytes, the most that a tokenizer over bytes can make of them.
    """
    p = settings.prompt
    close, opened = (text.encode() for text in (f"{p.think_close}\n{p.answer_open}", f"\n{p.answer_open}"))
    fmt = ChainFormat(p.think_close, p.answer_open, p.answer_close, (0,) * len(close), (0,) * len(opened), (0,), 0, ())
    return World(settings, model, "", None, fmt, [], [], "")


def abstract_params(model: ModelConfig, mesh: Mesh | None = None) -> Any:
    """The parameters as shapes, on the learner's mesh if one is given."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=mesh and meshes.sharding(mesh, s.axes, s.shape)),
        param_specs(model),
        is_leaf=is_spec,
    )


def trace_step(settings: Settings, model: ModelConfig, mesh: Mesh, batch: Batch) -> Any:
    """The learner's step, traced."""
    cfg, optimizer = settings.step, make_optimizer(settings.optimizer)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), abstract_params(model))
    reference = jax.eval_shape(lambda p: init_reference(p, mesh, model, cfg), state.params)
    with using(mesh):
        return make_step(model, cfg, optimizer, mesh, batch).trace(state, reference, batch)


def held_bytes(settings: Settings, model: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes a device of what a run keeps there all the time."""
    cfg, optimizer = settings.step, make_optimizer(settings.optimizer)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), abstract_params(model))
    placed = state_shardings(mesh, model, optimizer, cfg)

    def size(tree: Any, at: Any) -> int:
        local = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, at)
        return sum(jax.tree.leaves(local))

    params = size(state.params, placed.params)
    reference = params if cfg.with_reference else 0
    return {"parameters": params, "optimizer": size(state, placed) - params, "reference": reference}


def in_streams(world: World, places: Places, total: int) -> bool:
    """Whether the sampler's devices, of `total`, have streams of their own (`decode.in_streams`)."""
    mesh = places.sampler
    whole = mesh.shape["tensor"] == 1
    return decode.in_streams(list(mesh.devices.flat), total, world.config.sampler.slots, whole)


def dealt(world: World, places: Places) -> Deal:
    """How the rows are dealt out where devices have streams of their own."""
    mesh, chains = places.sampler, places.chains
    copies = mesh.size if mesh.shape["tensor"] == 1 else 1
    return engine.deal(len(places.own), chains.stop - chains.start, world.config.sampler.slots, copies)


def sampling_steps(world: World, places: Places, total: int) -> int:
    """Steps of decoding at most: one token each for all rows that are decoded at one time."""
    most, deal = world.sampler().max_sampled, dealt(world, places)
    rows = len(places.own) * (places.chains.stop - places.chains.start)
    return most * -(-rows // (deal.lanes * deal.wide)) if in_streams(world, places, total) else most - 1


def cache_bytes(world: World, places: Places, total: int) -> dict[str, int]:
    """Bytes a device of the sampler's keys and values: those of the prompts, and those of full rows."""
    model, mesh, c = world.model, places.sampler.shape, world.config
    heads = model.kv_heads / (mesh["tensor"] if model.kv_heads % mesh["tensor"] == 0 else 1)
    a_token = 2 * model.layers * heads * model.head_dim * jnp.dtype(model.compute_dtype).itemsize
    if in_streams(world, places, total):
        deal = dealt(world, places)
        prompts = -(-deal.lanes // deal.streams)  # each lane has its prompt's
        rows = prompts * deal.wide
    else:
        rows = len(places.own) * (places.chains.stop - places.chains.start) / (mesh["data"] * mesh["fsdp"])
        prompts = len(places.own) / mesh["data"]
    return {
        "prompts": int(a_token * prompts * c.prompt.max_prompt),
        "rows": int(a_token * rows * world.sampler().max_sampled),
    }


def decoding_weights(model: ModelConfig, mesh: Mesh, rest: Any, layer: Any) -> Any:
    """The sampler's weights as shapes on its mesh, laid out as the compiled programs of `handover.gather` make them."""
    spec = lambda at: at.spec if isinstance(at, NamedSharding) else PartitionSpec()
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(at))),
        jax.eval_shape(lambda p: decode.decoding_layout(p, model), abstract_params(model)),
        {**rest.output_shardings[0], "layers": (layer.output_shardings[0],) * model.layers},
    )


def trace_generate(world: World, places: Places, weights: Any) -> Any:
    """Prefill and the decode loop of one process's sampler, one program, traced."""
    model, cfg, c, mesh = world.model, world.sampler(), world.config, places.sampler
    p, g, i = len(places.own), places.chains.stop - places.chains.start, jnp.int32

    def shape(kind, *dims, over=None):
        at = meshes.sharding(mesh, (over, *[None] * (len(dims) - 1)) if dims else (), dims)
        return jax.ShapeDtypeStruct(dims, kind, sharding=at)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return decode.generate_spread.trace(
        weights,
        model,
        shape(i, p, c.prompt.max_prompt, over="data"),
        shape(i, p, over="data"),
        shape(i, p, over="data"),
        shape(key.dtype),
        shape(jnp.float32, g, over="rows"),
        shape(jnp.int8, *stop_shape(world)),
        shape(i, 1),
        shape(i),
        max_tokens=cfg.max_sampled,
        pad_id=0,
        mesh=mesh,
    )


def stop_shape(world: World) -> tuple[int, int]:
    """Of the table of the text at which sampling stops."""
    until = world.fmt.answer_close if world.sampler().max_sampled_answer else world.fmt.answer_open
    return world.model.vocab_size, len(until.encode()) + 1


def trace_stream(world: World, places: Places, weights: Any) -> tuple[Any, Any]:
    """Prefill and decoding of one stream, the ring at its longest, each traced."""
    model, c, deal = world.model, world.config, dealt(world, places)
    most, mesh = world.sampler().max_sampled, places.sampler
    at = meshes.replicated(mesh)
    placed = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind, sharding=at)
    if mesh.shape["tensor"] == 1:  # a stream on each device
        at = SingleDeviceSharding(mesh.devices.flat[0])
        weights = placed(weights)
    n = -(-deal.lanes // deal.streams)
    chains = places.chains.stop - places.chains.start
    prompts = -(-n * deal.wide * deal.parts // chains)
    lanes = placed(jax.eval_shape(lambda: engine.empty_lanes(model, n, deal.wide, c.prompt.max_prompt, most, most)))
    i = jnp.int32
    return (
        engine.prefill_jit.trace(weights, model, shape(i, prompts, c.prompt.max_prompt), shape(i, prompts)),
        engine.segment.trace(
            weights, model, lanes, shape(jnp.int8, *stop_shape(world)), shape(i, 1), shape(i), shape(i)
        ),
    )


def compile_step(settings: Settings, model: ModelConfig, mesh: Mesh, room: float | None) -> Program:
    """The learner's step, compiled to make do with `room` bytes a device."""
    batch = abstract_batch(shape_world(settings, model))
    return compiling("learner step", trace_step(settings, model, mesh, batch), mesh, room)[0]


def compile_all(
    settings: Settings, model: ModelConfig, places: Places, total: int, memory: float | None, with_step: bool = True
) -> list[tuple]:
    """(program, bytes a device that others' arrays take meanwhile, room that leaves) for each of a run's loop, on
    `total` devices; the learner's step first, unless it is not asked for."""
    mesh = places.learner
    if settings.config.reward.name == "sft":
        return [(compile_step(settings, model, mesh, memory), 0, memory)]
    world, sizes = shape_world(settings, model), held_bytes(settings, model, mesh)
    left = lambda others: None if memory is None else max(0.0, memory - others)
    held = sum(sizes.values())
    programs, params = handover.gather(model, mesh, places.sampler.shape["tensor"]), abstract_params(model, mesh)
    layers = params.pop("layers")
    traced = programs.rest.trace(params), programs.layer.trace(layers, jax.ShapeDtypeStruct((), jnp.int32))
    room = left(held - sizes["parameters"])
    (_, rest), (prepare, layer) = (compiling("sampler weights", t, mesh, room) for t in traced)
    made = [0 if x is None else x.memory_analysis().output_size_in_bytes for x in (rest, layer)]
    weights = made[0] + model.layers * made[1]
    # Elsewhere, or let go before the learner's turn.
    old = 0 if places.unstack_layers or not settings.config.sampler.max_staleness else weights
    beside = 0 if places.unstack_layers else held
    rows = [(compile_step(settings, model, mesh, left(old)), old, left(old))] if with_step else []
    # The last layer is made beside all the others, new and old, and the parameters that belong to no layer.
    others = held - prepare.arguments + weights - made[1] + old
    rows.append((prepare, others, left(others)))
    if rest is None or layer is None:
        return rows
    weights, steps = decoding_weights(model, places.sampler, rest, layer), sampling_steps(world, places, total)
    if in_streams(world, places, total):
        prefill, decoding = trace_stream(world, places, weights)
        caches = sum(cache_bytes(world, places, total).values())  # at their longest, which they are not yet
        for name, traced, beside_it in (("prefill", prefill, beside + caches), ("sampling", decoding, beside)):
            program = compiling(name, traced, places.sampler, left(beside_it), steps)[0]
            rows.append((program, beside_it, left(beside_it)))
    else:
        traced = trace_generate(world, places, weights)
        sampling = compiling("sampling", traced, places.sampler, left(beside), steps)[0]
        rows.append((sampling, beside, left(beside)))
    return rows


def compiling(name: str, traced: Any, mesh: Mesh, room: float | None, trips: int = 1) -> tuple[Program, Any]:
    """aot.compile_program, announced on stderr: it takes minutes."""
    print(f"compiling {name} ...", file=sys.stderr, flush=True)
    return aot.compile_program(name, traced, mesh, room, trips)
