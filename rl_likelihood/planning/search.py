"""If a plan does not fit: search for the cheapest settings that do, by compiling them."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from rl_likelihood.config import changed
from rl_likelihood.errors import UserError
from rl_likelihood.planning import programs
from rl_likelihood.planning.aot import Target
from rl_likelihood.planning.programs import Plan
from rl_likelihood.runtime.devices import Devices, make_devices
from rl_likelihood.settings import Config


def devices_of(c: Config, where: Target) -> Devices:
    """The config's meshes over the target's devices. Sizes that do not divide are refused, as `train` refuses them."""
    return make_devices(c, where.devices, where.devices[0].process_index)


def changes(c: Config, where: Target) -> list[dict[str, Any]]:
    """Settings that make the learner's step smaller, the cheapest first.

    Smaller micro-batches gather the weights more often, remat computes layers twice, a wider mesh sends more.
    """
    p = c.batch_prompts
    size = max(0, c.train.micro_batch_prompts) or p
    micro: list[dict[str, Any]] = [{"train.micro_batch_prompts": k} for k in range(size - 1, 0, -1) if p % k == 0]
    micro = [change for change in micro if _divides(changed(c, change), where)]
    names = ["attention", "full"] if where.chip else ["full"]  # attention: keep what the TPU's kernel computed
    names = names[names.index(c.model.remat) + 1 :] if c.model.remat in names else names
    remat: list[dict[str, Any]] = [{"model.remat": name} for name in names]
    both = [remat[-1] | micro[-1]] if remat and micro else []
    smallest = [*micro, *remat, *both][-1:]
    mixed = [mesh | change for mesh in wider(c, where) for change in ({}, *smallest)]
    return [*micro, *remat, *both, *(change for change in mixed if _divides(changed(c, change), where))]


def wider(c: Config, where: Target) -> list[dict[str, Any]]:
    """Meshes that split parameters and optimizer over more devices."""
    mesh = devices_of(c, where).learner.shape
    data, fsdp = mesh["data"], mesh["fsdp"]
    fewer = [d for d in range(data - 1, 0, -1) if data % d == 0 and d % where.slices == 0]
    meshes = [{"mesh.data": d, "mesh.fsdp": data * fsdp // d} for d in fewer]
    return [change for change in meshes if _divides(changed(c, change), where)]


def sampler_changes(c: Config, where: Target) -> list[dict[str, Any]]:
    """Settings that make the sampler smaller, the cheapest first: fewer rows at once, then a wider mesh."""
    devices = devices_of(c, where)
    rows = len(devices.prompts) * (devices.chains.stop - devices.chains.start)
    most = min(rows, c.sampler.slots or rows)
    slots = [{"sampler.slots": most >> k} for k in (1, 2, 3) if most >> k >= devices.sampler.size]
    meshes = wider(c, where)
    return [*slots, *meshes, *(mesh | few for mesh in meshes[-1:] for few in slots[-1:])]


def _divides(c: Config, where: Target) -> bool:
    """Whether `train` would accept this mesh for this batch."""
    try:
        devices_of(c, where)
    except UserError:
        return False
    return True


Stage = Callable[[Config, Target], list[dict[str, Any]]]  # `changes` of the step, or `sampler_changes`


def advice(plan: Plan, report: dict[str, Any], where: Target, search: bool) -> str:
    """One sentence for a plan that does not fit: the cheapest change that makes it fit, or which settings to try.

    `report` is what --json prints. `search`: compile changes, for the learner's step first, then for the sampler.
    """
    c = plan.config
    if c.train.micro_batch_prompts == 0 and report["batch"]["micro_batch_prompts"] < c.batch_prompts:
        c = changed(c, {"train.micro_batch_prompts": report["batch"]["micro_batch_prompts"]})  # the step's own choice
    bad = [row["name"] for row in report["programs"] if not row["fits"]]
    of_sampler = [name for name in bad if name != "learner step"]
    last = "raise mesh.tensor, or take more chips"
    if of_sampler:
        half = "" if plan.model.compute_dtype == "bfloat16" else "set model.compute_dtype=bfloat16, "
        last = f"lower train.prompts_per_step, sampler.group_size or sampler.max_chain, {half}{last}"
    stages: list[Stage] = [changes] if "learner step" in bad else []
    stages += [sampler_changes] if of_sampler else []
    if "judge" in bad:
        last = f"set judge.where=step, {last}"
    if not search:
        names = dict.fromkeys(name for stage in stages for change in stage(c, where) for name in change)
        instead = f"change {', '.join(names)} (--search finds the cheapest by compiling), {last}"
        return f"too large: {', '.join(bad)}; {instead}"
    helpful, stuck = cheapest(c, where, stages, judge(plan, report, where))
    if stuck is None:
        return f"it fits with {shown(helpful)}"
    large = of_sampler if stuck is sampler_changes else ["learner step"]
    tried = "; ".join(map(shown, stuck(changed(c, helpful), where))) or "nothing, because no other size divides"
    besides = f" besides {shown(helpful)}, with which the learner's step fits," if helpful else ""
    return f"too large: {', '.join(large)}; no change that was tried{besides} makes it fit; tried: {tried}: {last}"


def judge(plan: Plan, report: dict[str, Any], where: Target) -> Callable[[Config, Stage], bool]:
    """A function that compiles a changed config and says whether the programs of one stage fit."""
    memory = report["memory"]
    (others,) = (row["others"] for row in report["programs"] if row["name"] == "learner step")

    def fits(new: Config, stage: Stage) -> bool:
        model = dataclasses.replace(plan.model, remat=new.model.remat)
        devices = devices_of(new, where)
        made = plan._replace(config=new, model=model, devices=devices)
        if stage is changes:
            return not programs.compile_step(made, memory - others).refused
        compiled = programs.compile_all(made, memory, with_step=False)
        return all(x.fits for x in compiled)

    return fits


def cheapest(
    c: Config, where: Target, stages: list[Stage], fits: Callable[[Config, Stage], bool]
) -> tuple[dict[str, Any], Stage | None]:
    """The cheapest changes with which all `stages` fit, one after the other, and None.

    If no change helps a stage, returns the changes for the stages before it, and that stage. Stages that are not in
    `stages` fit already.
    """
    helpful: dict[str, Any] = {}
    fitting: list[Stage] = [stage for stage in (changes, sampler_changes) if stage not in stages]
    for stage in stages:
        base = changed(c, helpful)
        new_mesh = any(name.startswith("mesh.") for name in helpful)  # which may be all that this stage needed
        for change in [*([{}] if new_mesh else []), *stage(base, where)]:
            print(f"trying {shown(helpful | change)} ...", file=sys.stderr, flush=True)
            # Another mesh changes every program: those that fitted have to fit again.
            judged = [stage, *fitting] if any(name.startswith("mesh.") for name in change) else [stage]
            try:
                good = all(fits(changed(base, change), which) for which in judged)
            except UserError as error:  # the compiler failed: try the next change
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
