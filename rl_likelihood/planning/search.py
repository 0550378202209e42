"""What to change where a plan does not fit: the cheapest settings that do, found by compiling."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from rl_likelihood.config import changed
from rl_likelihood.planning import programs
from rl_likelihood.planning.aot import Target
from rl_likelihood.planning.programs import Plan
from rl_likelihood.runtime.devices import Devices, make_devices
from rl_likelihood.settings import Config
from rl_likelihood.shapes import UserError


def devices_of(c: Config, where: Target) -> Devices:
    """The config's meshes over the target's devices; what does not divide is refused as `train` refuses it."""
    return make_devices(c, where.devices, where.devices[0].process_index)


def changes(c: Config, where: Target) -> list[dict[str, Any]]:
    """Settings that make the learner's step smaller, the cheapest first: what they cost is weights gathered more
    often, then layers computed twice, then more traffic between devices."""
    p = c.train.prompts_per_step
    size = max(0, c.train.micro_batch_prompts) or p
    micro = [{"train.micro_batch_prompts": k} for k in range(size - 1, 0, -1) if p % k == 0]
    further = ("attention", "full") if where.chip else ("full",)  # attention: what the TPU's kernel has made
    further = further[further.index(c.model.remat) + 1 :] if c.model.remat in further else further
    remat = [{"model.remat": name} for name in further]
    micro = [change for change in micro if _divides(changed(c, change), where)]
    both = [remat[-1] | micro[-1]] if remat and micro else []
    smallest = [*micro, *remat, *both][-1:]
    mixed = [wide | change for wide in wider(c, where) for change in ({}, *smallest)]
    return [*micro, *remat, *both, *(change for change in mixed if _divides(changed(c, change), where))]


def wider(c: Config, where: Target) -> list[dict[str, Any]]:
    """Meshes with parameters and optimizer over more devices."""
    data, fsdp, _ = devices_of(c, where).learner.devices.shape
    fewer = [d for d in range(data - 1, 0, -1) if data % d == 0 and d % where.slices == 0]
    meshes = [{"mesh.data": d, "mesh.fsdp": data * fsdp // d} for d in fewer]
    return [change for change in meshes if _divides(changed(c, change), where)]


def sampler_changes(c: Config, where: Target) -> list[dict[str, Any]]:
    """Settings that leave the sampler more room, the cheapest first: fewer rows at one time, then a wider mesh."""
    devices = devices_of(c, where)
    rows = len(devices.prompts) * (devices.chains.stop - devices.chains.start)
    most = min(rows, c.sampler.slots or rows)
    slots = [{"sampler.slots": most >> k} for k in (1, 2, 3) if most >> k >= devices.sampler.size]
    widest = wider(c, where)[-1:]
    return [*slots, *wider(c, where), *(wide | few for wide in widest for few in slots[-1:])]


def _divides(c: Config, where: Target) -> bool:
    """Whether `train` would take this mesh for this batch."""
    try:
        devices_of(c, where)
    except UserError:
        return False
    return True


Stage = Callable[[Config, Target], list[dict[str, Any]]]  # `changes`, the step's, or `sampler_changes`


def advice(plan: Plan, report: dict, where: Target, search: bool) -> str:
    """One sentence: the cheapest change that makes it fit, found by compiling, the learner's step first and then the
    sampler; or what to turn to. `report` is what --json prints."""
    memory, c = report["memory"], plan.config
    if c.train.micro_batch_prompts == 0 and report["batch"]["micro_batch_prompts"] < c.train.prompts_per_step:
        c = changed(c, {"train.micro_batch_prompts": report["batch"]["micro_batch_prompts"]})  # what the step takes
    rows = {row["name"]: row for row in report["programs"]}
    bad = [name for name, row in rows.items() if not row["fits"]]
    of_sampler = [name for name in bad if name != "learner step"]
    last = "raise mesh.tensor, or take more chips"
    if of_sampler:
        half = "" if plan.model.compute_dtype == "bfloat16" else "set model.compute_dtype=bfloat16, "
        last = f"lower train.prompts_per_step, sampler.group_size or sampler.max_chain, {half}{last}"
    stages = [changes] * (len(bad) > len(of_sampler)) + [sampler_changes] * bool(of_sampler)
    if not search:
        named = dict.fromkeys(name for stage in stages for change in stage(c, where) for name in change)
        instead = f"turn to {', '.join(named)} (--search finds the cheapest by compiling), {last}"
        return f"too large: {', '.join(bad)}; {instead}"

    def fits(new: Config, stage: Stage) -> bool:
        smaller = dataclasses.replace(plan.model, remat=new.model.remat)
        devices = devices_of(new, where)
        if stage is changes:
            room = memory - rows["learner step"]["others"]
            return not programs.compile_step(new, smaller, devices.learner, room).refused
        made = programs.compile_all(Plan(new, smaller, devices, plan.total), memory, with_step=False)
        return all(not x.program.refused and x.program.peak <= x.room for x in made)

    helpful, stuck = cheapest(c, where, stages, fits)
    if stuck is None:
        return f"it fits with {shown(helpful)}"
    names = of_sampler if stuck is sampler_changes else ["learner step"]
    tried = "; ".join(map(shown, stuck(changed(c, helpful), where))) or "nothing, as nothing divides"
    besides = f" besides {shown(helpful)}, with which the learner's step fits," if helpful else ""
    untold = f"too large: {', '.join(names)}; no change that was tried{besides} makes it fit"
    return f"{untold}; tried: {tried}: {last}"


def cheapest(
    c: Config, where: Target, stages: list[Stage], fits: Callable[[Config, Stage], bool]
) -> tuple[dict[str, Any], Stage | None]:
    """The cheapest changes with which all `stages` fit, one after the other, and None; or those found so far, and the
    stage that nothing helps. Of two stages the one that is not given fits as it is."""
    helpful: dict[str, Any] = {}
    fitting = [stage for stage in (changes, sampler_changes) if stage not in stages]
    for stage in stages:
        base = changed(c, helpful)
        moved = any(name.startswith("mesh.") for name in helpful)  # what did not fit may do so on the other mesh
        for change in [*([{}] if moved else []), *stage(base, where)]:
            print(f"trying {shown(helpful | change)} ...", file=sys.stderr, flush=True)
            # On another mesh no program is the one that was seen to fit.
            judged = [stage, *fitting] if any(name.startswith("mesh.") for name in change) else [stage]
            try:
                good = all(fits(changed(base, change), which) for which in judged)
            except UserError as error:  # what has been found stays worth saying
                print(error, file=sys.stderr, flush=True)
                continue
            if good:
                helpful |= change
                fitting.append(stage)
                break
        else:
            return helpful, stage
    return helpful, None


def shown(change: dict[str, Any]) -> str:
    """A change as on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in change.items())
