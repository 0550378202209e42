"""train.micro_batch_prompts=-1: measures once which micro-batch size is fastest, and saves it in the workdir.

It times the forward and backward of two micro-batches of the longest rows (or of one, if that is a whole step), in the
loop of the step. It tries sizes from the smallest up, until one is slower per prompt or does not fit. Work that a step
does once, such as copying unrolled layers, is shared by only two micro-batches here. So sizes below half a step look a
little slower than they are.

A resumed run uses the size in its workdir, so that it continues bit for bit. It measures again if its `conditions`
(devices, settings of the model) have changed, or if an older version saved none. Two runs may choose different sizes.
Their numbers then differ by rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from rl_likelihood.errors import UserError
from rl_likelihood.learner.packing import pack
from rl_likelihood.learner.step import Models, gradients
from rl_likelihood.mesh import by_prompt, compiler_options, cores, divides, put
from rl_likelihood.model.architecture import Params
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, using
from rl_likelihood.shapes import CHAIN, REFERENCE, Batch
from rl_likelihood.task import Task, abstract_batch

FILE = "MICRO_BATCH"
ROUNDS = 3  # timed calls of a program; the fastest counts
LARGER = "rl_likelihood.plan says what would"
AGAIN = "delete it, and the run measures again"
WORSE = 1.05  # slower than the best by more than this factor is not noise


def with_micro_batch(task: Task, devices: Devices, params: Params, models: Models, workdir: Path) -> Task:
    """The task with the micro-batch size saved in the workdir, or else the fastest size. All processes must call it."""
    path = workdir / FILE
    saved = distributed.by_first(lambda: run_files.read_object(path, AGAIN) if path.exists() else None)
    now = conditions(task, devices)
    if saved is None or saved.get("conditions") != now:
        if saved is not None:
            old_conditions = saved.get("conditions", "a machine that is not named")
            say(f"micro-batch {saved['prompts']} prompts at a time were fastest on {old_conditions}; this is {now}")
        seconds = distributed.share({str(k): t for k, t in measured(task, devices, params, models).items()})
        fastest = int(min(seconds, key=seconds.get))
        saved = {"prompts": fastest, "seconds_per_prompt": seconds, "conditions": now}
        distributed.by_first(lambda: run_files.replace(path, json.dumps(saved) + "\n"))
        by_size = ", ".join(f"{k}: {t:.3g}" for k, t in seconds.items())
        say(f"micro-batch {saved['prompts']} prompts at a time, the fastest (seconds a prompt by size: {by_size})")
    c = task.config
    train = dataclasses.replace(c.train, micro_batch_prompts=saved["prompts"])
    return dataclasses.replace(task, config=dataclasses.replace(c, train=train))


def conditions(task: Task, devices: Devices) -> str:
    """Everything that the measurement depends on and that may differ in a resumed run, in words."""
    mesh, m, c = devices.learner, task.model, task.config
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    model_words = f"{m.compute_dtype}, layers {'scanned' if m.scan_layers else 'unrolled'}, remat {m.remat}"
    work = f"{c.batch_prompts} prompts x {c.sampler.group_size} chains, head_chunk {c.train.head_chunk}"
    scratch = "" if m.scratch_kib < 0 else f", scratch_kib {m.scratch_kib}"
    packed = ", packed" if c.train.packing else ""
    kind = mesh.devices.flat[0].device_kind
    kind += f" of {cores()} cores" if kind == "cpu" else ""
    return f"{kind}, {axes}, {work}, {model_words}, attention {m.attention}{scratch}{packed}"


def measured(task: Task, devices: Devices, params: Params, models: Models) -> dict[int, float]:
    """{micro-batch size in prompts: seconds of forward and backward per prompt}. `models`: from `step.models_of`."""
    longest, mesh = longest_batch(task), devices.learner
    p, rows = longest.completion.shape[:2]
    cfg = task.config.step
    options = compiler_options(mesh, task.model.scratch_kib)  # the same as the step's
    timed = jax.jit(gradients, static_argnums=(3, 4), compiler_options=options)
    seconds: dict[int, float] = {}
    # All processes use the times of process 0, so that they leave the loop at the same size.
    for k in (k for k in range(1, p + 1) if p % k == 0 and fits_mesh(mesh, k, rows, task.config.train.packing)):
        count = min(2 * k, p)
        part = jax.tree.map(lambda x, n=count: x[:n], longest)
        step_config = dataclasses.replace(cfg, micro_batch_prompts=k)
        if task.config.train.packing:
            with using(mesh):
                part = pack(part, step_config, task.model.attention != "splash")
        batch = put(part, by_prompt(mesh, part))
        program, times = None, []
        with _unless_full(), using(mesh):
            program = timed.lower(params, models, batch, task.model, step_config).compile()
        if distributed.any_of(program is None):
            break
        with _unless_full():
            for _ in range(1 + ROUNDS):  # the first call only warms up
                start = time.perf_counter()
                jax.block_until_ready(program(params, models, batch))
                times.append(time.perf_counter() - start)
        if len(times) <= ROUNDS:
            # Out of memory in this process, while other processes still wait inside the program.
            if distributed.several():
                raise UserError(refusal(k, f"set train.micro_batch_prompts={max(seconds)}" if seconds else LARGER))
            break
        seconds[k] = distributed.share(min(times[1:]) / count)
        if seconds[k] > WORSE * min(seconds.values()):
            break
    if not seconds:
        raise distributed.SharedRefusal(refusal(k, LARGER))
    return seconds


def fits_mesh(mesh: Mesh, prompts: int, rows: int, packing: bool) -> bool:
    """Whether a micro-batch of `prompts` groups of `rows` rows divides over the mesh. A packed one needs whole groups
    on every device."""
    return prompts % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 if packing else divides(mesh.shape, prompts, rows)


def refusal(prompts: int, instead: str) -> str:
    """The message for a size that does not fit."""
    return f"train.micro_batch_prompts=-1: {prompts} prompts of the longest rows at a time do not fit; {instead}"


@contextlib.contextmanager
def _unless_full() -> Iterator[None]:
    """Leaves its block silently if the device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise


def longest_batch(task: Task) -> Batch:
    """A batch of the longest rows, with random ids. The last tokens of a row are the answer, all others the chain."""
    shapes, rng = abstract_batch(task.config, task.fmt, task.longest_chain), np.random.default_rng(0)
    answer = task.config.prompt.max_answer

    def ids(shape):
        return rng.integers(0, task.model.vocab_size, shape.shape).astype(np.int32)

    def kinds(shape):
        out = np.full(shape.shape, CHAIN, np.int32)
        out[..., -answer:] = REFERENCE
        return out

    ones = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    # The numbers of a judge or a critic in the step: `gradients` takes them like those of one outside.
    judged = {name: np.zeros(shapes.keep.shape, np.float32) for name in task.config.step.reward.host_terms}
    return ones.replace(
        host_rewards=judged | ones.host_rewards,
        judged=None,
        compared=None,
        replayed=None,
        prompt=ids(shapes.prompt),
        prompt_length=np.full(shapes.prompt_length.shape, shapes.prompt.shape[1], np.int32),
        completion=ids(shapes.completion),
        segment=kinds(shapes.segment),
        scored=kinds(shapes.segment) == REFERENCE,
        no_chain=shapes.no_chain
        and shapes.no_chain.replace(
            completion=ids(shapes.no_chain.completion),
            segment=kinds(shapes.no_chain.segment),
            scored=kinds(shapes.no_chain.segment) == REFERENCE,
        ),
    )
