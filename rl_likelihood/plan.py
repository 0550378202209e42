"""Plan: python -m rl_likelihood.plan --config=configs/NAME.py --topology=v5e:4x4 [--model=llama-3.2-3b] [--json].

    [--slices=N] [--memory_gib=X] [--search=False] [--mean_tokens=N]

v5e:4x4 is a TPU v5e slice of 4 x 4 chips. The default is cpu:8, eight devices on this CPU.
Compiles the programs that `train` would run, and prints the memory and time that they need. It runs nothing, and needs
no weights and no TPU; to compile for a TPU it needs the package libtpu. Memory is the compiler's number. Time is a
lower bound, and an estimate from the compiler's cycles.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
from absl import flags

from rl_likelihood.cli.command import from_flags, run_main
from rl_likelihood.config import build, changed
from rl_likelihood.errors import UserError
from rl_likelihood.files import gguf_of
from rl_likelihood.learner.step import prompts_per_forward
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.planning import aot, programs
from rl_likelihood.planning.aot import GIB, Target
from rl_likelihood.planning.estimates import estimates, floors
from rl_likelihood.planning.judges import texts_of_step
from rl_likelihood.planning.programs import Plan
from rl_likelihood.planning.search import advice, devices_of
from rl_likelihood.planning.text import table
from rl_likelihood.rollouts.local_judge import AT_ONCE, as_judge
from rl_likelihood.run_model import random_model, run_on
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import using
from rl_likelihood.runtime.disk import disk_of_run
from rl_likelihood.settings import Config
from rl_likelihood.weights import gguf_file, hugging_face
from rl_likelihood.weights.published import published


def model_shapes(c: Config, platform: str = "cpu") -> ModelConfig:
    """The architecture of the config's model, from config.json, a .gguf file's header, a workdir, or a known name."""
    path = Path(c.model.path)
    if c.model.preset:
        model = random_model(c.model.preset)
    elif (path / checkpoint.FOLDER).is_dir():  # the workdir of a run
        old = hugging_face.read_json(path / "config.json")
        return model_shapes(changed(c, {k: old[k] for k in ("model.path", "model.preset")}), platform)
    elif path.exists() and (file := gguf_of(path)):
        model = gguf_file.open_gguf(file).cfg
    elif path.is_dir():
        file = path / hugging_face.CONFIG
        model = hugging_face.config_from_hf(hugging_face.read_json(file), file)
    else:
        model = published(c.model.path)
    return run_on(model, c, platform)


def judge_shapes(c: Config, model: ModelConfig, platform: str = "cpu") -> ModelConfig | None:
    """The architecture of the judge's model; None if the run computes no judge."""
    if not c.judge.model or c.judge.remote:
        return None
    if c.judge.model == "initial":
        return model
    by_path = {"model.path": c.judge.model, "model.preset": "", "model.attention": "dense"}
    return as_judge(model_shapes(changed(c, by_path), platform), platform)


def make_plan(
    c: Config, model: ModelConfig, target: Target, memory: float | None, search: bool, mean_tokens: int = 0
) -> dict[str, Any]:
    """The object that --json prints. `memory`: usable bytes per device; None: unknown, so nothing is compared with it.

    `search`: if the plan does not fit, compiles changes of the config until one fits. `mean_tokens` as in Plan.
    """
    if mean_tokens and not c.train.packing:
        raise UserError(
            f"--mean_tokens is {mean_tokens}, but train.packing is False: every row is padded to the longest; set "
            "--config.train.packing=True"
        )
    devices = devices_of(c, target)
    judge = judge_shapes(c, model, "cpu" if target.chip is None else "tpu")
    plan = Plan(c, model, devices, len(target.devices), judge, mean_tokens)
    rows = program_rows(plan, memory)
    report = {
        "topology": target.name,
        "slices": target.slices,
        "devices": len(target.devices),
        "memory": memory,
        "mesh": dict(devices.learner.shape),
        "sampler_mesh": dict(devices.sampler.shape),
        "model": c.model.preset or c.model.path,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(programs.abstract_params(model))),
        "compute_dtype": model.compute_dtype,
        "remat": model.remat,
        "attention": model.attention,
        "batch": batch_sizes(plan),
        "disk": disk_of_run(c, model)._asdict(),
        "held": programs.held_bytes(plan),
        "activations": rows[0]["temporaries"],
        "cache": {} if c.reward.supervised else programs.cache_bytes(plan),
        "judge_calls": math.ceil(texts_of_step(c, len(devices.prompts)) / AT_ONCE),
        "sampler_streams": programs.in_streams(plan),
        "programs": rows,
        "model_flops": model_flops(plan),
        "fits": None if memory is None else all(row["fits"] for row in rows),
        "short": 0 if memory is None else max(0, *(int(row["total"] - memory) for row in rows)),
    }
    report["floors"] = floors(report, target, devices, 0 if c.reward.supervised else programs.sampling_steps(plan))
    report["estimates"] = estimates(report, target, devices)
    if report["fits"] is False:
        report["advice"] = advice(plan, report, target, search)
    return report


def program_rows(plan: Plan, memory: float | None) -> list[dict[str, Any]]:
    """The sizes of each program, and whether it fits in memory together with the arrays of the other programs."""
    return [
        dataclasses.asdict(x.program) | {"others": x.others, "total": x.program.peak + x.others, "fits": x.fits}
        for x in programs.compile_all(plan, memory)
    ]


def batch_sizes(plan: Plan) -> dict[str, int]:
    """The sizes of the largest batch of a step."""
    p, g, t = plan.batch.completion.shape
    with using(plan.devices.learner):
        micro = prompts_per_forward(plan.batch, plan.config.step)
    s = plan.batch.prompt.shape[1]
    sizes = {"prompts": p, "rows": g, "prompt_tokens": s, "row_tokens": t, "micro_batch_prompts": micro}
    if plan.batch.packing is not None:
        sizes["packed_tokens"] = plan.batch.packing.tokens
    return sizes


def model_flops(plan: Plan) -> float:
    """The floating-point operations of a step, without those that remat repeats."""
    traced = programs.trace_step(plan._replace(model=dataclasses.replace(plan.model, remat="none")))
    return aot.count_flops(aot.live(traced.jaxpr.jaxpr))


def main() -> None:
    f = flags.FLAGS
    # The CPU traces the programs, and is the device of cpu:N. No other device of this machine is used.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs for an absent TPU cannot be read back
    count = f.topology.removeprefix("cpu:")
    if count.isdecimal() and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(1, int(count)))
    values, _ = from_flags()
    if f.model:
        values.model.path, values.model.preset = f.model, ""
    c = build(values)
    target = aot.target(f.topology, f.slices)
    model = model_shapes(c, "cpu" if target.chip is None else "tpu")
    memory = f.memory_gib * GIB if f.memory_gib else target.chip.memory if target.chip else None
    report = make_plan(c, model, target, memory, f.search, f.mean_tokens)
    say(json.dumps(report) if f.json else table(report))


if __name__ == "__main__":
    flags.DEFINE_string("topology", "cpu:8", "a TPU such as v5e:4x4 or v5p:2x2x1, or cpu:N")
    flags.DEFINE_integer("slices", 1, "slices of that topology, mesh.data across them", lower_bound=1)
    flags.DEFINE_string("model", "", "in place of the config's model: a name such as llama-3.2-3b, a folder or a file")
    flags.DEFINE_float("memory_gib", 0, "usable GiB per device, in place of the chip's", lower_bound=0)
    flags.DEFINE_bool("search", True, "if the plan does not fit, compile changes of the config until one fits")
    words = "with train.packing: a row's tokens, log-normal with this mean; 0: all rows are as long as possible"
    flags.DEFINE_integer("mean_tokens", 0, words, lower_bound=0)
    flags.DEFINE_bool("json", False, "print one JSON object")
    run_main(main)
