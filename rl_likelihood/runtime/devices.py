"""Which devices compute what: the learner's mesh over all processes, and the mesh of each process's sampler."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rl_likelihood.errors import UserError
from rl_likelihood.mesh import divides, make_mesh, rows_by_process, shapes
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.runtime import distributed
from rl_likelihood.sampler import decode, handover
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class Devices:
    """`learner`: the learner's mesh over all processes. `sampler`: the mesh of this process's sampler. `prompts` and
    `chains`: which prompts of a step, and which chains of each, this process samples."""

    learner: Mesh
    sampler: Mesh
    prompts: np.ndarray
    chains: slice

    @property
    def separate(self) -> bool:
        """Whether sampler and learner have no device in common."""
        return not set(self.learner.devices.flat) & set(self.sampler.devices.flat)


def make_devices(c: Config, devices: Sequence[Any] | None = None, process: int | None = None) -> Devices:
    """The devices of the config, as seen from one process (by default this one).

    If mesh.data and mesh.fsdp leave a choice, it takes the first mesh over which the batch divides. If there is none,
    the UserError names settings that would work.
    """
    devices = list(devices or jax.devices())
    process = jax.process_index() if process is None else process
    by_process: dict[int, list] = {}
    for d in devices:
        by_process.setdefault(d.process_index, []).append(d)
    if process not in by_process:
        raise UserError(
            f"--process_id: process {process} has no device ({len(devices)} devices in {len(by_process)} processes); "
            "start as many processes as there are hosts"
        )
    n = 0 if c.sampler.devices == "shared" else int(c.sampler.devices)
    local = len(by_process[process])
    if n >= local:
        limit = f"at most {local - 1}, or to shared" if local > 1 else "shared"
        raise UserError(
            f"sampler.devices is {n} of the {local} devices of a process and leaves the learner none; set it to {limit}"
        )
    sampling = {d for group in by_process.values() for d in group[len(group) - n :]}
    sampler_only = sorted(sampling & set(by_process[process]), key=lambda d: d.id)
    learning = [d for d in devices if d not in sampling]
    slices = len({getattr(d, "slice_index", 0) for d in learning})
    candidates = shapes(len(learning), c.mesh.data, c.mesh.fsdp, _inner(c, c.mesh.tensor), slices)
    # What divides this divides both the sampler's prompts and a micro-batch.
    micro = math.gcd(max(0, c.train.micro_batch_prompts) or c.batch_prompts, c.train.prompts_per_step)
    refusals = []
    for shape in candidates:
        try:
            return _with_mesh(c, make_mesh(shape, learning), micro, sampler_only, process)
        except UserError as error:
            refusals.append(error)
    if len(candidates) > 1:
        _suggest(c, micro, learning, slices, sampler_only, process)
    raise refusals[0]


def _inner(c: Config, tensor: int) -> tuple[int, ...]:
    """The sizes of the last axes of the learner's mesh: (tensor,), or (context, tensor) if mesh.context is above 1."""
    if c.mesh.context == 1:
        return (tensor,)
    if c.train.packing or c.step.needs("cross"):
        other = "train.packing is True" if c.train.packing else f"reward.name {c.reward.name!r} reads chains as prompts"
        raise UserError(f"mesh.context is {c.mesh.context}, but {other}; set mesh.context=1")
    return c.mesh.context, tensor


def _suggest(c: Config, micro: int, learning: list, slices: int, sampler_only: list, process: int) -> None:
    """Raises a UserError that suggests a mesh and a micro-batch that divide evenly, if there are any."""
    sizes = [k for k in range(c.train.prompts_per_step, 0, -1) if c.train.prompts_per_step % k == 0]
    tensors = [t for t in (c.mesh.tensor, 2, 4, 8) if len(learning) % (c.mesh.context * t) == 0]
    for tensor, size in itertools.product(tensors, sizes):
        for shape in shapes(len(learning), 0, 0, _inner(c, tensor), slices):
            with contextlib.suppress(UserError):
                _with_mesh(c, make_mesh(shape, learning), size, sampler_only, process)
                fits = f"set mesh.tensor={tensor} and train.micro_batch_prompts={size}, which do"
                break
        else:
            continue
        raise UserError(
            f"train.micro_batch_prompts is {c.train.micro_batch_prompts or micro}: so many prompts of "
            f"{c.rows_per_prompt} chains do not divide over {len(learning)} devices; {fits}"
        )


def _with_mesh(c: Config, learner: Mesh, micro: int, sampler_only: list, process: int) -> Devices:
    """The devices with this learner's mesh. `sampler_only`: this process's devices that only sample, if any."""
    rows, step, group = c.rows_per_prompt, c.train.prompts_per_step, c.sampler.group_size
    parts = learner.shape["data"] * learner.shape["fsdp"]
    if not divides(learner.shape, micro, rows):
        name = "train.micro_batch_prompts" if c.train.micro_batch_prompts > 0 else "train.prompts_per_step"
        raise UserError(
            f"{name} is {attrgetter(name)(c)}, which mesh.data x mesh.fsdp = {parts} does not divide; the nearest "
            f"that it does is {max(1, round(micro / parts)) * parts} (or mesh.data divides it, and mesh.fsdp its "
            f"{rows} rows)"
        )
    if c.train.packing and micro % parts:
        raise UserError(
            f"train.packing is True, but {micro} prompts at a time do not divide over mesh.data x mesh.fsdp = {parts} "
            "devices; set train.packing=False, or train.micro_batch_prompts to a multiple of that"
        )
    whole = step % parts == 0
    prompts, chains = rows_by_process(learner, step, 1 if whole else group)[process]
    chains = slice(0, group) if whole else chains
    local = sampler_only or [d for d in learner.devices.flat if d.process_index == process]
    sampler = handover.sampler_mesh(local, len(prompts), chains.stop - chains.start, c.sampler.tensor)
    return Devices(learner, sampler, prompts, chains)


def using(mesh: Mesh | None):
    """A context in which programs are traced over `mesh`. The splash kernel and `mesh.gather_fsdp` read it."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def sampler_weights(params: Params, model: ModelConfig, devices: Devices | None) -> Params:
    """The sampler's copy of the parameters, on its devices. Every process must call it at the same point."""
    if devices is None:
        return decode.prepare(params, model)
    return handover.hand_over(params, model, devices.learner, devices.sampler)


def share_of(prompts: Prompts) -> Prompts:
    """This process's part of the prompts. Their number must be a multiple of the number of processes."""
    n, i = jax.process_count(), jax.process_index()
    size = len(prompts.length) // n
    return jax.tree.map(lambda x: x[i * size : (i + 1) * size], prompts)


def batch_size(wanted: int, devices: Devices | None) -> int:
    """`wanted`, rounded up so that all processes and all data shards of their samplers get equally many prompts."""
    parts = 1 if devices is None else jax.process_count() * devices.sampler.shape["data"]
    return -(-wanted // parts) * parts


def sample_all(weights: Params, prompts: Prompts, key: jax.Array, cfg: SamplerConfig) -> Rollout:
    """`decode.sample`, where each process samples its share of the prompts. All processes get the whole rollout."""
    return distributed.gather(decode.sample(weights, share_of(prompts), key, cfg))


def sample_ids_all(
    weights: Params, prompts: Prompts, key: jax.Array, cfg: SamplerConfig, until: str, max_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`decode.sample_ids`, where each process samples its share of the prompts. All processes get all results."""
    return distributed.gather(decode.sample_ids(weights, share_of(prompts), key, cfg, until, max_tokens))
