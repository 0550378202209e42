"""The programs of a training run, traced and compiled from shapes alone. Nothing is allocated and nothing runs."""

import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rl_likelihood.learner.judge import JudgeParams
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_reference, init_state, make_step, reference_shardings, state_shardings
from rl_likelihood.mesh import local_bytes, replicated, sharding
from rl_likelihood.model.architecture import ModelConfig, Spec, is_spec
from rl_likelihood.model.lora import LoraConfig, trained_specs
from rl_likelihood.planning import aot, lengths
from rl_likelihood.planning.aot import Program
from rl_likelihood.planning.judges import held_by_judge, planned_judge, trace_judge
from rl_likelihood.run_model import rollout_model
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.sampler import decode, engine, handover, turns
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.engine import Assignment
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Batch, ChainFormat
from rl_likelihood.task import sampler_config, step_batch


class Plan(NamedTuple):
    """What is planned: a config, its model, and the devices of one process. `total`: devices in the whole run; `judge`:
    the model of the config's judge, where this run computes one. `mean_tokens`: of a packed row; 0: all rows are as
    long as possible."""

    config: Config
    model: ModelConfig
    devices: Devices
    total: int
    judge: ModelConfig | None = None
    mean_tokens: int = 0

    @property
    def sampler(self) -> SamplerConfig:
        return sampler_config(self.config, self.model, byte_format(self.config))

    @property
    def chains(self) -> int:
        """How many chains of each prompt this process samples."""
        return self.devices.chains.stop - self.devices.chains.start

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt that chains are sampled after."""
        c = self.config
        return max(c.widest_prompt, c.max_shown if c.posterior.share else 0)

    @property
    def batch(self) -> Batch:
        """The largest batch of the step, or one of packed rows with `mean_tokens`, as shapes."""
        batch = step_batch(self.config, byte_format(self.config), self.devices.learner)
        if not self.mean_tokens:
            return batch
        with using(self.devices.learner):
            return lengths.packed(batch, self.mean_tokens, self.config.step, self.model.attention != "splash")


def byte_format(c: Config) -> ChainFormat:
    """The part of the chain format that shapes depend on.

    The tokenizer is not read. A tag is assumed to have one id for each of its bytes, the most that any tokenizer makes.
    """
    p = c.prompt
    close, opened = (text.encode() for text in (f"{p.think_close}\n{p.answer_open}", f"\n{p.answer_open}"))
    ids = (0,) * len(close), (0,) * len(opened)
    return ChainFormat(p.think_open, p.think_close, p.answer_open, p.answer_close, *ids, (0,), 0, ())


def abstract_params(model: ModelConfig, mesh: Mesh | None = None, lora: LoraConfig | None = None) -> Any:
    """The parameters, or what is trained with LoRA, as shapes, on the learner's mesh if one is given."""

    def shape(spec: Spec) -> jax.ShapeDtypeStruct:
        at = None if mesh is None else sharding(mesh, spec.axes, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=at)

    return jax.tree.map(shape, trained_specs(model, lora or LoraConfig()), is_leaf=is_spec)


def _state_and_reference(plan: Plan) -> tuple[Any, Any]:
    """The run's state and its reference model as shapes."""
    c, model, optimizer = plan.config, plan.model, make_optimizer(plan.config.optimizer)
    begin = lambda p: init_state(p, optimizer, c.step)
    frozen = lambda p: init_reference(p, plan.devices.learner, model, c.step)
    trained = abstract_params(model, lora=c.lora)
    return jax.eval_shape(begin, trained), jax.eval_shape(frozen, abstract_params(model))


def trace_step(plan: Plan) -> Any:
    c, model, mesh = plan.config, plan.model, plan.devices.learner
    cfg, optimizer, batch = c.step, make_optimizer(c.optimizer), plan.batch
    state, reference = _state_and_reference(plan)
    judge = planned_judge(c, plan.judge) if c.judge_in_step else None
    which, more = (None, ()) if judge is None else (judge.judge, (judge.params,))
    more = (JudgeParams(reference),) if judge is not None and c.judge.model == "initial" else more
    with using(mesh):
        return make_step(model, cfg, optimizer, mesh, batch, which).trace(state, reference, batch, *more)


def held_bytes(plan: Plan) -> dict[str, int]:
    """Bytes per device of the arrays that stay there for the whole run."""
    c, model, mesh = plan.config, plan.model, plan.devices.learner
    cfg = c.step
    state, frozen = _state_and_reference(plan)
    at = state_shardings(mesh, model, make_optimizer(c.optimizer), cfg)
    params = local_bytes(state.params, at.params)
    reference = local_bytes(frozen, reference_shardings(mesh, model, c.lora)) if cfg.with_frozen else 0
    critic = 0 if state.critic is None else local_bytes(state.critic, at.critic)
    held = {"parameters": params, "optimizer": local_bytes(state, at) - params - critic, "reference": reference}
    held |= {"critic": critic} if critic else {}
    judge = planned_judge(c, plan.judge)
    return held if judge is None else held | {"judge": held_by_judge(c, judge, mesh)}


def in_streams(plan: Plan) -> bool:
    """Whether each device of the sampler decodes rows of its own (`decode.in_streams`)."""
    mesh = plan.devices.sampler
    if plan.config.converses:
        return False
    whole = mesh.shape["tensor"] == 1
    return decode.in_streams(list(mesh.devices.flat), plan.total, plan.config.sampler.slots, whole)


def assignment(plan: Plan) -> Assignment:
    """Which device decodes which rows, when each decodes rows of its own."""
    mesh = plan.devices.sampler
    copies = mesh.size if mesh.shape["tensor"] == 1 else 1
    return engine.assign(len(plan.devices.prompts), plan.chains, plan.config.sampler.slots, copies)


def at_once(plan: Plan) -> tuple[int, int]:
    """(prompts, chains of each) that this process samples at the same time, if one program samples them."""
    p, slots = len(plan.devices.prompts), plan.config.sampler.slots if plan.config.converses else 0
    return turns.at_once(p, plan.chains, slots, plan.devices.sampler)


def sampling_steps(plan: Plan) -> int:
    """The most decoding steps that a rollout takes. One step decodes one token of every active row."""
    most = plan.sampler.max_sampled
    if plan.config.converses:
        p, g = at_once(plan)
        return plan.config.sampled_tokens * math.ceil(len(plan.devices.prompts) / p) * math.ceil(plan.chains / g)
    if not in_streams(plan):
        return most - 1
    split, rows = assignment(plan), len(plan.devices.prompts) * plan.chains
    return most * math.ceil(rows / (split.slots * split.wide))


def cache_bytes(plan: Plan) -> dict[str, int]:
    """Bytes per device of the sampler's keys and values, of prompts and of rows at their full length."""
    model, mesh = plan.model, plan.devices.sampler.shape
    heads = model.kv_heads / (mesh["tensor"] if model.kv_heads % mesh["tensor"] == 0 else 1)
    per_token = 2 * model.layers * heads * model.head_dim * jnp.dtype(model.compute_dtype).itemsize
    if in_streams(plan):
        split = assignment(plan)
        prompts: float = math.ceil(split.slots / split.streams)  # every slot has its own copy of a prompt
        rows = prompts * split.wide
    else:
        p, g = at_once(plan)
        prompts, rows = p / mesh["data"], p * g / (mesh["data"] * mesh["fsdp"])
    return {"prompts": int(per_token * prompts * plan.prompt_tokens), "rows": int(per_token * rows * own_tokens(plan))}


def own_tokens(plan: Plan) -> int:
    """Tokens of its own that a row has in the sampler's caches at most: sampled, or replied by an environment."""
    s = plan.config.sampler
    if not plan.config.converses:
        return plan.sampler.max_sampled
    before = (s.max_turns - 1) * s.max_chain + max(0, s.max_turns - 2) * s.max_env_tokens
    return turns.padded(before) + reply_tokens(plan) + s.max_chain


def reply_tokens(plan: Plan) -> int:
    """The width of an environment's longest reply; 0 if the first message is also the last."""
    s = plan.config.sampler
    return turns.padded(s.max_env_tokens) if s.max_turns > 1 else 0


def trace_turn(plan: Plan, weights: Any) -> Any:
    """The last turn of conversations, the longest one: the reply that precedes it and its decode loop, traced."""
    mesh, model, s = plan.devices.sampler, plan.model, plan.config.sampler
    p, g = at_once(plan)

    def shape(x: Any, *over: str | None) -> jax.ShapeDtypeStruct:
        axes = (*over, *[None] * (x.ndim - len(over)))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, axes, x.shape))

    each = lambda x: shape(x, "data", "rows")
    array = jax.ShapeDtypeStruct
    request = abstract_request(plan, (1, 1))
    started = jax.eval_shape(lambda w, r: turns.start_rows(w, model, r), weights, request)
    own = jax.tree.map(lambda x: each(array(tuple(n or own_tokens(plan) for n in x.shape), x.dtype)), started.cache.own)
    rows = turns.Rows(
        cache=started.cache._replace(prompt=jax.tree.map(lambda x: shape(x, "data"), started.cache.prompt), own=()),
        used=each(array((p, g, own_tokens(plan)), jnp.bool_)),
        hidden=each(started.hidden),
        prompt_length=shape(started.prompt_length, "data"),
        keys=each(started.keys),
        sampled=each(started.sampled),
    )
    ids, many = array((p, g, reply_tokens(plan)), jnp.int32), array((p, g), jnp.int32)
    given = turns.TurnPrefix(each(ids), each(many), each(array((p, g), jnp.bool_)))
    return turns.turn.trace(weights, rows, own, given, request, turns.TurnSettings(model, s.max_chain, mesh))


def decoding_weights(model: ModelConfig, mesh: Mesh, shared: Any, layer: Any) -> Any:
    """The sampler's weights as shapes on its mesh, sharded as the compiled programs of `handover.gather` leave them."""

    def shape(x: Any, at: Any) -> jax.ShapeDtypeStruct:
        spec = at.spec if isinstance(at, NamedSharding) else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    weights = jax.eval_shape(lambda p: decode.decoding_layout(p, model), abstract_params(model))
    at = {**shared.output_shardings[0], "layers": (layer.output_shardings[0],) * model.layers}
    return jax.tree.map(shape, weights, at)


def trace_generate(plan: Plan, weights: Any) -> Any:
    """Prefill and the decode loop of one process's sampler, traced as one program."""
    request = abstract_request(plan, stop_shape(plan))
    most, mesh = plan.sampler.max_sampled, plan.devices.sampler
    return decode.generate_spread.trace(weights, plan.model, request, max_tokens=most, mesh=mesh)


def abstract_request(plan: Plan, table: tuple[int, int]) -> Request:
    """The rows that one process samples `at_once`, as shapes on its mesh. `table`: shape of what stops a row."""
    mesh, (p, g), i = plan.devices.sampler, at_once(plan), jnp.int32

    def shape(kind: Any, *dims: int, over: str | None = None) -> jax.ShapeDtypeStruct:
        axes = (over, *[None] * (len(dims) - 1)) if dims else ()
        return jax.ShapeDtypeStruct(dims, kind, sharding=sharding(mesh, axes, dims))

    return Request(
        shape(i, p, plan.prompt_tokens, over="data"),
        shape(i, p, over="data"),
        shape(i, p, over="data"),
        shape(jax.eval_shape(lambda: jax.random.key(0)).dtype),
        shape(jnp.float32, g, over="rows"),
        Ends(shape(jnp.int8, *table), shape(i, 1), shape(i)),
        pad_id=shape(i),
        first_chain=shape(i),
    )


def stop_shape(plan: Plan) -> tuple[int, int]:
    """Shape of the table that matches the text at which sampling stops."""
    fmt = byte_format(plan.config)
    until = fmt.answer_close if plan.sampler.max_sampled_answer else fmt.answer_open
    return plan.model.vocab_size, len(until.encode()) + 1


def trace_stream(plan: Plan, weights: Any) -> tuple[Any, Any]:
    """Prefill and decoding on one device, with the cache at its longest; each traced."""
    model, split, most, mesh = plan.model, assignment(plan), plan.sampler.max_sampled, plan.devices.sampler
    alone = mesh.shape["tensor"] == 1
    at = SingleDeviceSharding(mesh.devices.flat[0]) if alone else replicated(mesh)

    def shape(kind: Any, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, kind, sharding=at)

    def on_device(tree: Any) -> Any:
        return jax.tree.map(lambda x: shape(x.dtype, *x.shape), tree)

    weights = on_device(weights) if alone else weights
    n, s, i = math.ceil(split.slots / split.streams), plan.prompt_tokens, jnp.int32
    prompts = math.ceil(n * split.wide * split.parts / plan.chains)
    slots = on_device(jax.eval_shape(lambda: engine.empty_slots(model, (n, split.wide), s, most, most)))
    ends = Ends(shape(jnp.int8, *stop_shape(plan)), shape(i, 1), shape(i))
    return (
        engine.prefill_jit.trace(weights, model, shape(i, prompts, s), shape(i, prompts)),
        engine.decode_until.trace(weights, model, slots, ends, shape(i), shape(i)),
    )


def compile_step(plan: Plan, limit: float | None) -> Program:
    """The learner's step, compiled to use at most `limit` bytes per device."""
    return compiling("learner step", trace_step(plan), plan.devices.learner, limit)[0]


class Compiled(NamedTuple):
    """A program, the bytes per device of arrays of others, and the bytes that these leave for it."""

    program: Program
    others: float
    limit: float | None

    @property
    def fits(self) -> bool | None:
        """Whether its memory is within the limit; None if no limit is known."""
        return None if self.limit is None else not self.program.refused and self.program.peak <= self.limit


def compile_all(plan: Plan, memory: float | None, with_step: bool = True) -> list[Compiled]:
    """The programs of a run. The learner's step comes first, unless `with_step` is False."""
    c, model, devices = plan.config, plan.model, plan.devices
    if c.reward.supervised:
        return [Compiled(compile_step(plan, memory), 0, memory)]
    sizes = held_bytes(plan)
    outside = 0 if c.judge_in_step else sizes.pop("judge", 0)  # on the sampler's devices
    held = sum(sizes.values())
    (_, shared), (by_layer, layer) = compile_handover(plan, left(memory, held - sizes["parameters"]))
    made = [0 if x is None else x.memory_analysis().output_size_in_bytes for x in (shared, layer)]
    weights = made[0] + model.layers * made[1]
    # The sampler's old weights: on other devices, or freed before the learner's step when the two alternate.
    old = 0 if devices.separate or not c.sampler.max_staleness else weights
    old += 0 if devices.separate else outside
    rows = []
    if with_step:
        limit = left(memory, old)
        rows.append(Compiled(compile_step(plan, limit), old, limit))
    # When the last layer is made, all other layers exist already, new and old, and so do the parameters of no layer.
    others = held - by_layer.arguments + weights - made[1] + old
    rows.append(Compiled(by_layer, others, left(memory, others)))
    if shared is None or layer is None:
        return rows
    shapes = decoding_weights(rollout_model(c, model), devices.sampler, shared, layer)
    others = 0 if devices.separate else held
    rows += compile_sampler(plan, shapes, others + outside, memory)
    return rows + compile_judge(plan, others + weights, memory)


def compile_sampler(plan: Plan, weights: Any, others: float, memory: float | None) -> list[Compiled]:
    """The sampler's programs. `others`: bytes per device of the learner's arrays on its devices."""
    steps = sampling_steps(plan)

    def compiled(name: str, traced: Any, others: float) -> Compiled:
        limit = left(memory, others)
        return Compiled(compiling(name, traced, plan.devices.sampler, limit, steps)[0], others, limit)

    if plan.config.converses:
        return [compiled("last turn", trace_turn(plan, weights), others)]
    if not in_streams(plan):
        return [compiled("sampling", trace_generate(plan, weights), others)]
    prefill, decoding = trace_stream(plan, weights)
    caches = sum(cache_bytes(plan).values())  # an upper bound: at prefill they are still short
    return [compiled("prefill", prefill, others + caches), compiled("sampling", decoding, others)]


def compile_judge(plan: Plan, others: float, memory: float | None) -> list[Compiled]:
    """The judge's program on the sampler's first device, which runs while the sampler waits; none in the step, and none
    for similar_share, which reads a few short texts at a time."""
    judge, limit = planned_judge(plan.config, plan.judge), left(memory, others)
    if judge is None or plan.config.judge_in_step or plan.config.reward.judged == "similar_share":
        return []
    device = plan.devices.sampler.devices.flat[0]
    # All chains of a prompt, also those that another process samples.
    rows = plan.config.sampler.group_size
    traced = trace_judge(plan.config, judge, device, len(plan.devices.prompts), rows)
    return [Compiled(compiling("judge", traced, Mesh([device], ("one",)), limit)[0], others, limit)]


def left(memory: float | None, others: float) -> float | None:
    """Bytes of `memory` that other arrays leave; None if no limit is known."""
    return None if memory is None else max(0.0, memory - others)


def compile_handover(plan: Plan, limit: float | None) -> list[tuple[Program, Any]]:
    """The programs that make the sampler's weights: first of what belongs to no layer, then of one layer."""
    model, mesh = plan.model, plan.devices.learner
    programs = handover.gather(rollout_model(plan.config, model), mesh, plan.devices.sampler.shape["tensor"])
    params = abstract_params(model, mesh)
    layers = params.pop("layers")
    traced = programs.outer.trace(params), programs.layer.trace(layers, jax.ShapeDtypeStruct((), jnp.int32))
    return [compiling("sampler weights", t, mesh, limit) for t in traced]


def compiling(name: str, traced: Any, mesh: Mesh, limit: float | None, trips: int = 1) -> tuple[Program, Any]:
    """`aot.compile_program`, announced on stderr because it takes minutes."""
    print(f"compiling {name} ...", file=sys.stderr, flush=True)
    return aot.compile_program(name, traced, mesh, limit, trips)
