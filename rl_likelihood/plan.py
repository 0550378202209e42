"""Plan: python -m rl_likelihood.plan --config=configs/NAME.py --topology=v5e:4x4 [--model=llama-3.2-3b] [--json].

    [--slices=N] [--memory_gib=X] [--search=False]

Compiles, here and without weights, the very programs that `train` would run on a described TPU (or on cpu:N),
and says what they need. Nothing runs: memory is the compiler's number, time a floor and an estimate by its cycles.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rl_likelihood import config as configs
from rl_likelihood.cli.command import from_flags, run_main
from rl_likelihood.config import SIZES, Settings
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.learner.step import at_once
from rl_likelihood.model.decoder import ModelConfig
from rl_likelihood.planning import aot, programs
from rl_likelihood.planning.aot import GIB, Target
from rl_likelihood.planning.text import table
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.console import say
from rl_likelihood.shapes import UserError
from rl_likelihood.task import Places, abstract_batch, make_places, run_on, using
from rl_likelihood.weights import gguf_file, hugging_face
from rl_likelihood.weights.published import published


def model_shapes(c: ConfigDict, platform: str = "cpu") -> ModelConfig:
    """The config's model, from a folder's config.json, a .gguf file's header, a run's config, or a name."""
    path = Path(c.model.path)
    if c.model.preset:
        width, layers, heads, kv_heads, mlp = SIZES[c.model.preset]
        model = ModelConfig("llama", len(byte_tokenizer()), width, layers, heads, kv_heads, width // heads, mlp)
    elif (path / checkpoint.FOLDER).is_dir():  # the workdir of a run
        c, old = c.copy_and_resolve_references(), hugging_face.read_json(path / "config.json")
        c.model.path, c.model.preset = old["model.path"], old["model.preset"]
        return model_shapes(c, platform)
    elif path.exists() and gguf_file.find(path):
        model = gguf_file.open_gguf(gguf_file.find(path)).cfg
    elif path.is_dir():
        file = path / hugging_face.CONFIG
        model = hugging_face.config_from_hf(hugging_face.read_json(file), file)
    else:
        model = published(c.model.path)
    return run_on(model, c, platform)


def plan_places(c: ConfigDict, where: Target) -> Places:
    """The config's meshes over the target's devices; what does not divide is refused as `train` refuses it."""
    return make_places(c, where.devices, where.devices[0].process_index)


def plan_mesh(c: ConfigDict, where: Target) -> Mesh:
    """The learner's."""
    return plan_places(c, where).learner


# ------------------------------------------------------------------------------------------ the report


def make_plan(settings: Settings, model: ModelConfig, where: Target, memory: float | None, search: bool) -> dict:
    """What --json prints. `memory`: bytes a device that may be used; None: no limit is known, nothing is judged."""
    c, places = settings.config, plan_places(settings.config, where)
    mesh, rows, total = places.learner, [], len(where.devices)
    world = programs.shape_world(settings, model)
    for program, others, room in programs.compile_all(settings, model, places, total, memory):
        fits = None if room is None else not program.refused and program.peak <= room
        rows.append(dataclasses.asdict(program) | {"others": others, "total": program.peak + others, "fits": fits})
    batch = abstract_batch(world)
    lean = dataclasses.replace(model, remat="none")  # what must be computed, whatever is computed twice
    flops = aot.count_flops(aot.live(programs.trace_step(settings, lean, mesh, batch).jaxpr.jaxpr))
    p, g, t = batch.completion.shape
    with using(mesh):
        at_a_time = at_once(batch, settings.step)
    plan = {
        "topology": where.name,
        "slices": where.slices,
        "devices": len(where.devices),
        "memory": memory,
        "mesh": dict(mesh.shape),
        "sampler_mesh": dict(places.sampler.shape),
        "model": c.model.preset or c.model.path,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(programs.abstract_params(model))),
        "compute_dtype": model.compute_dtype,
        "remat": model.remat,
        "attention": model.attention,
        "batch": {
            "prompts": p,
            "rows": g,
            "prompt_tokens": batch.prompt.shape[1],
            "row_tokens": t,
            "micro_batch_prompts": at_a_time,
        },
        "held": programs.held_bytes(settings, model, mesh),
        "activations": rows[0]["temporaries"],
        "cache": {} if c.reward.name == "sft" else programs.cache_bytes(world, places, total),
        "sampler_streams": programs.in_streams(world, places, total),
        "programs": rows,
        "model_flops": flops,
        "fits": None if memory is None else all(row["fits"] for row in rows),
        "short": 0 if memory is None else max(0, *(int(row["total"] - memory) for row in rows)),
    }
    steps = 0 if c.reward.name == "sft" else programs.sampling_steps(world, places, total)
    plan["floors"] = floors(plan, where, places, steps)
    plan["estimates"] = estimates(plan, where, places)
    if plan["fits"] is False:
        plan["advice"] = advice(settings, model, where, plan, search)
    return plan


def floors(plan: dict, where: Target, places: Places, steps: int) -> dict[str, float] | None:
    """Seconds that no run can go below, from the data sheet: the step's arithmetic, its traffic, and decoding in so
    many steps."""
    if where.chip is None:
        return None
    chip = where.chip
    slices, data = where.slices, places.learner.shape["data"]

    def sent(row: dict, between: bool) -> float:  # bytes a device, inside a slice or to the next one
        return sum(x["sent"] for x in row["collectives"] if ("data" in x["axes"].split("+") and slices > 1) == between)

    by_name = {row["name"]: row for row in plan["programs"]}
    step, sampling = by_name["learner step"], by_name.get("sampling")
    out = {"step_arithmetic": plan["model_flops"] / (chip.flops * places.learner.size)}
    if not step["refused"]:
        out["step_traffic"] = sent(step, False) / chip.links
        if slices > 1 and chip.network:  # of data's ring only every so many-th edge leaves the slice
            out["step_traffic_between_slices"] = sent(step, True) / (data // slices) / chip.network
    if sampling is not None:
        on = 1 if plan["sampler_streams"] else places.sampler.size
        out["sampling_arithmetic"] = sampling["flops"] / (chip.flops * on)
        if not sampling["refused"]:
            # Each step reads the weights and the caches, of which those of the rows are half full on average. A
            # stream's program is given both, one for all devices only the weights.
            read = sampling["arguments"] - plan["cache"]["rows"] / 2
            if not plan["sampler_streams"]:
                read = sampling["arguments"] + plan["cache"]["prompts"] + plan["cache"]["rows"] / 2
            out["sampling_reads"] = read * steps / chip.bandwidth
            out["sampling_traffic"] = sent(sampling, False) / chip.links
    return out


def estimates(plan: dict, where: Target, places: Places) -> dict[str, float] | None:
    """Seconds that the step and sampling may take by the compiler's cycles, what it gives none for (Pallas kernels) at
    peak; and how often each that is its floor, of arithmetic or of reads. Transfers between devices are not in it."""
    if where.chip is None:
        return None
    out = {}
    for row in plan["programs"]:
        name = {"learner step": "step", "prefill": "sampling", "sampling": "sampling"}.get(row["name"])
        if name and not row["refused"]:
            on = places.learner.size if name == "step" else 1  # no kernel samples
            in_kernels = row["kernel_flops"] / (where.chip.flops * on)
            out[name] = out.get(name, 0) + row["cycles"] / where.chip.clock + in_kernels
    for name, floor in (("step", "step_arithmetic"), ("sampling", "sampling_reads")):
        if name in out and floor in plan["floors"]:
            out[f"{name}_over_floor"] = out[name] / plan["floors"][floor]
    return out


def changes(c: ConfigDict, where: Target) -> list[dict[str, Any]]:
    """Settings that make the learner's step smaller, the cheapest first: what they cost is weights gathered more
    often, then layers computed twice, then more traffic between devices."""
    p = c.train.prompts_per_step
    size = max(0, c.train.micro_batch_prompts) or p
    micro = [{"train.micro_batch_prompts": k} for k in range(size - 1, 0, -1) if p % k == 0]
    kept = ("attention", "full") if where.chip else ("full",)  # attention: what the TPU's kernel has made
    kept = kept[kept.index(c.model.remat) + 1 :] if c.model.remat in kept else kept
    remat = [{"model.remat": name} for name in kept]
    micro = [change for change in micro if _divides(changed(c, change), where)]
    both = [remat[-1] | micro[-1]] if remat and micro else []
    smallest = [*micro, *remat, *both][-1:]
    mixed = [wide | change for wide in wider(c, where) for change in ({}, *smallest)]
    return [*micro, *remat, *both, *(change for change in mixed if _divides(changed(c, change), where))]


def wider(c: ConfigDict, where: Target) -> list[dict[str, Any]]:
    """Meshes with parameters and optimizer over more devices."""
    data, fsdp, _ = plan_mesh(c, where).devices.shape
    fewer = [d for d in range(data - 1, 0, -1) if data % d == 0 and d % where.slices == 0]
    found = [{"mesh.data": d, "mesh.fsdp": data * fsdp // d} for d in fewer]
    return [change for change in found if _divides(changed(c, change), where)]


def sampler_changes(c: ConfigDict, where: Target) -> list[dict[str, Any]]:
    """Settings that leave the sampler more room, the cheapest first: fewer rows at one time, then a wider mesh."""
    places = plan_places(c, where)
    rows = len(places.own) * (places.chains.stop - places.chains.start)
    most = min(rows, c.sampler.slots or rows)
    slots = [{"sampler.slots": most >> k} for k in (1, 2, 3) if most >> k >= places.sampler.size]
    widest = wider(c, where)[-1:]
    return [*slots, *wider(c, where), *(wide | few for wide in widest for few in slots[-1:])]


def changed(c: ConfigDict, change: dict[str, Any]) -> ConfigDict:
    """The config with other values of some fields."""
    c = c.copy_and_resolve_references()
    c.update_from_flattened_dict(change)
    return c


def _divides(c: ConfigDict, where: Target) -> bool:
    """Whether `train` would take this mesh for this batch."""
    try:
        plan_places(c, where)
    except UserError:
        return False
    return True


Stage = Callable[[ConfigDict, Target], list[dict[str, Any]]]  # `changes`, the step's, or `sampler_changes`


def advice(settings: Settings, model: ModelConfig, where: Target, plan: dict, search: bool) -> str:
    """One sentence: the cheapest change that makes it fit, found by compiling, the learner's step first and then the
    sampler; or what to turn to."""
    memory, c = plan["memory"], settings.config
    if c.train.micro_batch_prompts == 0 and plan["batch"]["micro_batch_prompts"] < c.train.prompts_per_step:
        c = changed(c, {"train.micro_batch_prompts": plan["batch"]["micro_batch_prompts"]})  # what the step takes
    rows = {row["name"]: row for row in plan["programs"]}
    bad = [name for name, row in rows.items() if not row["fits"]]
    of_sampler = [name for name in bad if name != "learner step"]
    last = "raise mesh.tensor, or take more chips"
    if of_sampler:
        half = "" if model.compute_dtype == "bfloat16" else "set model.compute_dtype=bfloat16, "
        last = f"lower train.prompts_per_step, sampler.group_size or sampler.max_chain, {half}{last}"
    stages = [changes] * (len(bad) > len(of_sampler)) + [sampler_changes] * bool(of_sampler)
    if not search:
        named = dict.fromkeys(name for stage in stages for change in stage(c, where) for name in change)
        turn = f"turn to {', '.join(named)} (--search finds the cheapest by compiling), {last}"
        return f"too large: {', '.join(bad)}; {turn}"

    def fits(new: ConfigDict, stage: Stage) -> bool:
        smaller = dataclasses.replace(model, remat=new.model.remat)
        if stage is changes:
            return _step_fits(configs.build(new), smaller, where, memory - rows["learner step"]["others"])
        return _sampler_fits(configs.build(new), smaller, where, memory)

    found, stuck = cheapest(c, where, stages, fits)
    if stuck is None:
        return f"it fits with {shown(found)}"
    names = of_sampler if stuck is sampler_changes else ["learner step"]
    tried = "; ".join(map(shown, stuck(changed(c, found), where))) or "nothing, as nothing divides"
    besides = f" besides {shown(found)}, with which the learner's step fits," if found else ""
    untold = f"too large: {', '.join(names)}; no change that was tried{besides} makes it fit"
    return f"{untold}; tried: {tried}: {last}"


def cheapest(
    c: ConfigDict, where: Target, stages: list[Stage], fits: Callable[[ConfigDict, Stage], bool]
) -> tuple[dict[str, Any], Stage | None]:
    """The cheapest changes with which all `stages` fit, one after the other, and None; or those found so far, and the
    stage that nothing helps. Of two stages the one that is not given fits as it is."""
    found: dict[str, Any] = {}
    fitting = [stage for stage in (changes, sampler_changes) if stage not in stages]
    for stage in stages:
        base = changed(c, found)
        moved = any(name.startswith("mesh.") for name in found)  # what did not fit may do so on the other mesh
        for change in [*([{}] if moved else []), *stage(base, where)]:
            print(f"trying {shown(found | change)} ...", file=sys.stderr, flush=True)
            # On another mesh no program is the one that was seen to fit.
            judged = [stage, *fitting] if any(name.startswith("mesh.") for name in change) else [stage]
            try:
                good = all(fits(changed(base, change), which) for which in judged)
            except UserError as error:  # what has been found stays worth saying
                print(error, file=sys.stderr, flush=True)
                continue
            if good:
                found |= change
                fitting.append(stage)
                break
        else:
            return found, stage
    return found, None


def _step_fits(settings: Settings, model: ModelConfig, where: Target, room: float) -> bool:
    return not programs.compile_step(settings, model, plan_mesh(settings.config, where), room).refused


def _sampler_fits(settings: Settings, model: ModelConfig, where: Target, memory: float) -> bool:
    places = plan_places(settings.config, where)
    compiled = programs.compile_all(settings, model, places, len(where.devices), memory, with_step=False)
    return all(not program.refused and program.peak <= room for program, _, room in compiled)


def shown(change: dict[str, Any]) -> str:
    """A change as on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in change.items())


def main() -> None:
    f = flags.FLAGS
    # Whatever this machine has, nothing runs on it: its CPU only traces, and stands in for cpu:N.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a program for a described TPU cannot be read back
    count = f.topology.removeprefix("cpu:")
    if count.isdigit() and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(1, int(count)))
    c, _ = from_flags()
    if f.model:
        c.model.path, c.model.preset = f.model, ""
    settings = configs.build(c)
    where = aot.target(f.topology, f.slices)
    model = model_shapes(c, "cpu" if where.chip is None else "tpu")
    memory = f.memory_gib * GIB if f.memory_gib else where.chip.memory if where.chip else None
    plan = make_plan(settings, model, where, memory, f.search)
    say(json.dumps(plan) if f.json else table(plan))


if __name__ == "__main__":
    flags.DEFINE_string("topology", "cpu:8", "a TPU such as v5e:4x4 or v5p:2x2x1, or cpu:N")
    flags.DEFINE_integer("slices", 1, "slices of that topology, mesh.data across them", lower_bound=1)
    flags.DEFINE_string("model", "", "instead of the config's model: a name such as llama-3.2-3b, a folder or a file")
    flags.DEFINE_float("memory_gib", 0, "judge against so many GiB a device instead of the chip's", lower_bound=0)
    flags.DEFINE_bool("search", True, "if it does not fit, compile changes of the config until one does")
    flags.DEFINE_bool("json", False, "print one JSON object")
    run_main(main)
