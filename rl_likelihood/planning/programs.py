"""The programs of a run's loop, traced and compiled from shapes alone: nothing is allocated and nothing runs."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rl_likelihood import mesh as meshes
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step, state_shardings
from rl_likelihood.model.decoder import ModelConfig, is_spec, param_specs
from rl_likelihood.planning import aot
from rl_likelihood.planning.aot import Program
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.sampler import decode, engine, handover
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.engine import Assignment
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Batch, ChainFormat
from rl_likelihood.task import abstract_batch, sampler_config


class Plan(NamedTuple):
    """What is planned: a config, its model, and the devices of one process, of `total` in the run."""

    config: Config
    model: ModelConfig
    devices: Devices
    total: int

    @property
    def sampler(self) -> SamplerConfig:
        return sampler_config(self.config, self.model, byte_format(self.config))

    @property
    def chains(self) -> int:
        """Chains of each prompt that this process samples."""
        return self.devices.chains.stop - self.devices.chains.start

    @property
    def batch(self) -> Batch:
        """The largest batch of the step, as shapes."""
        return abstract_batch(self.config, byte_format(self.config))


def byte_format(c: Config) -> ChainFormat:
    """The chain format as far as shapes need it. Tags are taken to be as many ids as they have bytes, the most that a
    tokenizer over bytes can make of them."""
    p = c.prompt
    close, opened = (text.encode() for text in (f"{p.think_close}\n{p.answer_open}", f"\n{p.answer_open}"))
    ids = (0,) * len(close), (0,) * len(opened)
    return ChainFormat(p.think_open, p.think_close, p.answer_open, p.answer_close, *ids, (0,), 0, ())


def abstract_params(model: ModelConfig, mesh: Mesh | None = None) -> Any:
    """The parameters as shapes, on the learner's mesh if one is given."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=mesh and meshes.sharding(mesh, s.axes, s.shape)),
        param_specs(model),
        is_leaf=is_spec,
    )


def trace_step(c: Config, model: ModelConfig, mesh: Mesh, batch: Batch) -> Any:
    """The learner's step, traced."""
    cfg, optimizer = c.step, make_optimizer(c.optimizer)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), abstract_params(model))
    reference = jax.eval_shape(lambda p: init_reference(p, mesh, model, cfg), state.params)
    with using(mesh):
        return make_step(model, cfg, optimizer, mesh, batch).trace(state, reference, batch)


def held_bytes(c: Config, model: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes a device of what a run keeps there all the time."""
    cfg, optimizer = c.step, make_optimizer(c.optimizer)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), abstract_params(model))
    placed = state_shardings(mesh, model, optimizer, cfg)

    def size(tree: Any, at: Any) -> int:
        local = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, at)
        return sum(jax.tree.leaves(local))

    params = size(state.params, placed.params)
    reference = params if cfg.with_reference else 0
    return {"parameters": params, "optimizer": size(state, placed) - params, "reference": reference}


def in_streams(plan: Plan) -> bool:
    """Whether the sampler's devices have streams of their own (`decode.in_streams`)."""
    mesh = plan.devices.sampler
    whole = mesh.shape["tensor"] == 1
    return decode.in_streams(list(mesh.devices.flat), plan.total, plan.config.sampler.slots, whole)


def assignment(plan: Plan) -> Assignment:
    """Which rows are decoded where, if devices have streams of their own."""
    mesh = plan.devices.sampler
    copies = mesh.size if mesh.shape["tensor"] == 1 else 1
    return engine.assign(len(plan.devices.prompts), plan.chains, plan.config.sampler.slots, copies)


def sampling_steps(plan: Plan) -> int:
    """Steps of decoding at most: one token each for all rows that are decoded at one time."""
    most, assigned = plan.sampler.max_sampled, assignment(plan)
    rows = len(plan.devices.prompts) * plan.chains
    return most * -(-rows // (assigned.slots * assigned.wide)) if in_streams(plan) else most - 1


def cache_bytes(plan: Plan) -> dict[str, int]:
    """Bytes a device of the sampler's keys and values: those of the prompts, and those of full rows."""
    model, mesh, own = plan.model, plan.devices.sampler.shape, len(plan.devices.prompts)
    heads = model.kv_heads / (mesh["tensor"] if model.kv_heads % mesh["tensor"] == 0 else 1)
    a_token = 2 * model.layers * heads * model.head_dim * jnp.dtype(model.compute_dtype).itemsize
    if in_streams(plan):
        assigned = assignment(plan)
        prompts = -(-assigned.slots // assigned.streams)  # each slot has its prompt's
        rows = prompts * assigned.wide
    else:
        rows = own * plan.chains / (mesh["data"] * mesh["fsdp"])
        prompts = own / mesh["data"]
    return {
        "prompts": int(a_token * prompts * plan.config.prompt.max_prompt),
        "rows": int(a_token * rows * plan.sampler.max_sampled),
    }


def decoding_weights(model: ModelConfig, mesh: Mesh, rest: Any, layer: Any) -> Any:
    """The sampler's weights as shapes on its mesh, laid out as the compiled programs of `handover.gather` make them."""
    spec = lambda at: at.spec if isinstance(at, NamedSharding) else PartitionSpec()
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(at))),
        jax.eval_shape(lambda p: decode.decoding_layout(p, model), abstract_params(model)),
        {**rest.output_shardings[0], "layers": (layer.output_shardings[0],) * model.layers},
    )


def trace_generate(plan: Plan, weights: Any) -> Any:
    """Prefill and the decode loop of one process's sampler, one program, traced."""
    mesh, i, p = plan.devices.sampler, jnp.int32, len(plan.devices.prompts)

    def shape(kind, *dims, over=None):
        at = meshes.sharding(mesh, (over, *[None] * (len(dims) - 1)) if dims else (), dims)
        return jax.ShapeDtypeStruct(dims, kind, sharding=at)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return decode.generate_spread.trace(
        weights,
        plan.model,
        Request(
            shape(i, p, plan.config.prompt.max_prompt, over="data"),
            shape(i, p, over="data"),
            shape(i, p, over="data"),
            shape(key.dtype),
            shape(jnp.float32, plan.chains, over="rows"),
            Ends(shape(jnp.int8, *stop_shape(plan)), shape(i, 1)),
            pad_id=shape(i),
            first_chain=shape(i),
        ),
        max_tokens=plan.sampler.max_sampled,
        mesh=mesh,
    )


def stop_shape(plan: Plan) -> tuple[int, int]:
    """Of the table of the text at which sampling stops."""
    fmt = byte_format(plan.config)
    until = fmt.answer_close if plan.sampler.max_sampled_answer else fmt.answer_open
    return plan.model.vocab_size, len(until.encode()) + 1


def trace_stream(plan: Plan, weights: Any) -> tuple[Any, Any]:
    """Prefill and decoding of one stream, the ring at its longest, each traced."""
    model, assigned, most, mesh = plan.model, assignment(plan), plan.sampler.max_sampled, plan.devices.sampler
    at = meshes.replicated(mesh)
    on = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind, sharding=at)
    if mesh.shape["tensor"] == 1:  # a stream on each device
        at = SingleDeviceSharding(mesh.devices.flat[0])
        weights = on(weights)
    n, s, i = -(-assigned.slots // assigned.streams), plan.config.prompt.max_prompt, jnp.int32
    prompts = -(-n * assigned.wide * assigned.parts // plan.chains)
    slots = on(jax.eval_shape(lambda: engine.empty_slots(model, (n, assigned.wide), s, most, most)))
    stop = shape(jnp.int8, *stop_shape(plan))
    return (
        engine.prefill_jit.trace(weights, model, shape(i, prompts, s), shape(i, prompts)),
        engine.decode_until.trace(weights, model, slots, Ends(stop, shape(i, 1)), shape(i), shape(i)),
    )


def compile_step(c: Config, model: ModelConfig, mesh: Mesh, room: float | None) -> Program:
    """The learner's step, compiled to make do with `room` bytes a device."""
    batch = abstract_batch(c, byte_format(c))
    return compiling("learner step", trace_step(c, model, mesh, batch), mesh, room)[0]


class Compiled(NamedTuple):
    """A program, the bytes a device that others' arrays take meanwhile, and the memory that this leaves it."""

    program: Program
    others: float
    room: float | None


def compile_all(plan: Plan, memory: float | None, with_step: bool = True) -> list[Compiled]:
    """The programs of a run's loop; the learner's step first, unless it is not asked for."""
    c, model, devices = plan.config, plan.model, plan.devices
    mesh = devices.learner
    left = lambda others: None if memory is None else max(0.0, memory - others)
    compiled = lambda name, traced, others, trips=1: Compiled(
        compiling(name, traced, devices.sampler, left(others), trips)[0], others, left(others)
    )
    if c.reward.supervised:
        return [Compiled(compile_step(c, model, mesh, memory), 0, memory)]
    sizes = held_bytes(c, model, mesh)
    held = sum(sizes.values())
    (_, rest), (by_layer, layer) = compile_handover(plan, left(held - sizes["parameters"]))
    made = [0 if x is None else x.memory_analysis().output_size_in_bytes for x in (rest, layer)]
    weights = made[0] + model.layers * made[1]
    # Elsewhere, or let go before the learner's step.
    old = 0 if devices.separate or not c.sampler.max_staleness else weights
    beside = 0 if devices.separate else held
    rows = [Compiled(compile_step(c, model, mesh, left(old)), old, left(old))] if with_step else []
    # The last layer is made beside all the others, new and old, and the parameters that belong to no layer.
    others = held - by_layer.arguments + weights - made[1] + old
    rows.append(Compiled(by_layer, others, left(others)))
    if rest is None or layer is None:
        return rows
    shapes, steps = decoding_weights(model, devices.sampler, rest, layer), sampling_steps(plan)
    if not in_streams(plan):
        return [*rows, compiled("sampling", trace_generate(plan, shapes), beside, steps)]
    prefill, decoding = trace_stream(plan, shapes)
    caches = sum(cache_bytes(plan).values())  # at their longest, which they are not yet
    rows.append(compiled("prefill", prefill, beside + caches, steps))
    return [*rows, compiled("sampling", decoding, beside, steps)]


def compile_handover(plan: Plan, room: float | None) -> list[tuple[Program, Any]]:
    """The programs that make the sampler's weights, of what belongs to no layer and of one layer."""
    model, mesh = plan.model, plan.devices.learner
    programs = handover.gather(model, mesh, plan.devices.sampler.shape["tensor"])
    params = abstract_params(model, mesh)
    layers = params.pop("layers")
    traced = programs.outer.trace(params), programs.layer.trace(layers, jax.ShapeDtypeStruct((), jnp.int32))
    return [compiling("sampler weights", t, mesh, room) for t in traced]


def compiling(name: str, traced: Any, mesh: Mesh, room: float | None, trips: int = 1) -> tuple[Program, Any]:
    """aot.compile_program, announced on stderr: it takes minutes."""
    print(f"compiling {name} ...", file=sys.stderr, flush=True)
    return aot.compile_program(name, traced, mesh, room, trips)
