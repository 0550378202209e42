"""What every main needs once its config is read: model, tokenizer, chain format, questions as ids, devices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rl_likelihood import config as configs
from rl_likelihood import mesh as meshes
from rl_likelihood.config import SIZES, Settings
from rl_likelihood.data import prompts
from rl_likelihood.data import tokenizer as tokenizers
from rl_likelihood.data.byte_tokenizer import BYTES, byte_tokenizer
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.datasets import sources
from rl_likelihood.grading import graders
from rl_likelihood.learner.step import at_once
from rl_likelihood.model import decoder, splash
from rl_likelihood.model.decoder import ModelConfig, Params, param_specs
from rl_likelihood.rewards.mixture import HOST_REWARDS
from rl_likelihood.runtime import checkpoint, distributed
from rl_likelihood.sampler import decode, handover
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.shapes import CHAIN, SAMPLED, Bare, Batch, ChainFormat, Prompts, Rollout, UserError
from rl_likelihood.weights import assets, files

if TYPE_CHECKING:  # data.tokenizer imports it quietly, and this would come before
    from transformers import PreTrainedTokenizerBase

# Purposes of random keys: key = fold_in(fold_in(key(seed), purpose), step).
INIT, SAMPLE, EVALUATE, WARM_START = range(4)


@dataclasses.dataclass(frozen=True)
class Places:
    """Who computes where: the learner's mesh, over all processes; the mesh of this process's sampler; and `own`,
    which of a step's prompts are this process's to sample, and `chains`, which of their chains."""

    learner: Mesh
    sampler: Mesh
    own: np.ndarray
    chains: slice

    @property
    def apart(self) -> bool:
        """Whether sampler and learner share no device."""
        return not set(self.learner.devices.flat) & set(self.sampler.devices.flat)


@dataclasses.dataclass(frozen=True)
class World:
    """Fixed for a run. `train`, `heldout`: questions in ids; `model_path`: where weights and tokenizer came from;
    `places`: the devices, None where all is computed on the first; `fast`: questions of the evaluations during
    training, none where they are the held-out ones."""

    settings: Settings
    model: ModelConfig
    model_path: str
    tokenizer: PreTrainedTokenizerBase
    fmt: ChainFormat
    train: list[EncodedExample]
    heldout: list[EncodedExample]
    data_line: str
    places: Places | None = None
    fast: list[EncodedExample] = dataclasses.field(default_factory=list)

    @property
    def config(self) -> ConfigDict:
        return self.settings.config

    @property
    def answer_room(self) -> int:
        """Tokens that evaluation lets a sampled answer have."""
        return self.config.eval.max_sampled_answer or self.config.prompt.max_answer

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        """The random key of one purpose at one step."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), purpose), step)

    def collate(self, rows: list[EncodedExample], uid: np.ndarray, max_prompt: int = 0) -> Prompts:
        """Rows as fixed-width arrays; `uid` names their random keys."""
        c = self.config.prompt
        return prompts.collate(rows, uid, max_prompt or c.max_prompt, c.max_answer, self.fmt.pad_id)

    def sampler(self, **changes: Any) -> SamplerConfig:
        """The config's sampler for this model and format."""
        c = self.config.sampler
        return SamplerConfig(
            **{
                "model": self.model,
                "chain_format": self.fmt,
                "group_size": c.group_size,
                "max_chain": c.max_chain,
                "max_sampled_answer": configs.sampled_answer(self.config),
                "temperature": c.temperature,
                "width_multiple": c.width_multiple,
                "slots": c.slots,
                **changes,
            }
        )

    def weights(self, params: Params) -> Params:
        """The sampler's copy of parameters, on its devices. Every process calls it at the same point."""
        if self.places is None:
            return decode.prepare(params, self.model)
        return handover.hand_over(params, self.model, self.places.learner, self.places.sampler)

    def batch_size(self, wanted: int) -> int:
        """`wanted` prompts, or as few more as every process and every part of its sampler's mesh get alike."""
        parts = 1 if self.places is None else jax.process_count() * self.places.sampler.shape["data"]
        return -(-wanted // parts) * parts

    def sample(self, weights: Params, prompts: Prompts, key: jax.Array, cfg: SamplerConfig) -> Rollout:
        """`decode.sample`, each process doing its share of the prompts; all of them get the whole."""
        return distributed.gather(decode.sample(weights, share_of(prompts), key, cfg))

    def sampled_text(self, rollout: Rollout) -> list[list[str]]:
        """Text of what was sampled, [P][G]: chain, tags the policy wrote itself, sampled answer."""
        kept = (rollout.segment == CHAIN) | (rollout.segment == SAMPLED)
        return [
            [self.tokenizer.decode(ids[k], skip_special_tokens=True) for ids, k in zip(*group, strict=True)]
            for group in zip(rollout.completion, kept, strict=True)
        ]

    def sampled_answers(self, rollout: Rollout) -> list[list[str | None]]:
        """The sampled answers, [P][G]; None where the row is not in the format."""
        return [[graders.extract_answer(t, self.fmt) for t in group] for group in self.sampled_text(rollout)]


def abstract_batch(world: World) -> Batch:
    """The largest batch of the config, as shapes."""
    c = world.config
    step = world.settings.step
    p, g = c.train.prompts_per_step, c.reward.vote_train or c.sampler.group_size
    tags = max(len(world.fmt.close_think_ids), len(world.fmt.open_answer_ids))
    t = c.sampler.max_chain + configs.sampled_answer(c) + tags + c.prompt.max_answer
    w = len(world.fmt.close_think_ids) + c.prompt.max_answer
    if c.reward.name == "sft":
        g, t = 1, tags + c.prompt.max_answer
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)
    i, f, b = jnp.int32, jnp.float32, jnp.bool_
    return Batch(
        prompt=shape(i, p, c.prompt.max_prompt),
        prompt_length=shape(i, p),
        completion=shape(i, p, g, t),
        segment=shape(i, p, g, t),
        scored=shape(b, p, g, t),
        sampler_logp=shape(f, p, g, t),
        host_rewards={t.name: shape(f, p, g) for t in step.reward.terms if t.name in HOST_REWARDS},
        truncated=shape(b, p, g),
        keep=shape(b, p, g),
        baseline=shape(f, p) if step.baseline == "frozen" else None,
        bare=Bare(shape(i, p, 1, w), shape(i, p, 1, w), shape(b, p, 1, w)) if configs.scores_bare(c) else None,
    )


def portion(world: World) -> int:
    """Prompts that the learner's step takes at one time, of a batch as wide as can be."""
    with using(world.places and world.places.learner):
        return at_once(abstract_batch(world), world.settings.step)


def run_on(model: ModelConfig, c: ConfigDict, platform: str) -> ModelConfig:
    """The model with how to run it, the part of ModelConfig that the config decides, on a platform."""
    dtype, attention = c.model.compute_dtype, c.model.attention
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    why = splash.refused(model.head_dim)
    if attention == "splash" and (why or platform != "tpu"):
        why = why or f"it is for TPUs, and this is {platform}"
        raise UserError(f"model.attention is 'splash', but {why}; set it to auto or dense")
    if attention == "auto":
        attention = "splash" if platform == "tpu" and not why else "dense"
        if platform == "tpu" and why and distributed.first():
            print(f"attention dense, without the splash kernel: {why}", file=sys.stderr, flush=True)
    scan = c.model.layers == "scan" or (c.model.layers == "auto" and platform != "cpu")
    return dataclasses.replace(
        model,
        compute_dtype=dtype,
        scan_layers=scan,
        remat=c.model.remat,
        attention=attention,
        scratch_kib=c.model.scratch_kib,
    )


def share_of(prompts: Prompts) -> Prompts:
    """This process's part of prompts whose number all processes divide."""
    n, i = jax.process_count(), jax.process_index()
    size = len(prompts.length) // n
    return jax.tree.map(lambda x: x[i * size : (i + 1) * size], prompts)


def param_shardings(mesh: Mesh, model: ModelConfig) -> Params:
    """Where each parameter lies on the learner's mesh."""
    return decoder.shardings(param_specs(model), mesh)


def load_model(c: ConfigDict, mesh: Mesh | None = None) -> tuple[ModelConfig, Params, str]:
    """(ModelConfig, parameters, where the tokenizer is), from weights, a workdir, or at random.

    The parameters are made or read shard by shard onto `mesh`; without one they are numpy arrays of this host.
    """
    at = None if mesh is None else functools.partial(param_shardings, mesh)
    if c.model.preset:
        width, layers, heads, kv_heads, mlp = SIZES[c.model.preset]
        vocab = len(byte_tokenizer())
        cfg = ModelConfig("llama", vocab, width, layers, heads, kv_heads, width // heads, mlp, max_position=2048)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), INIT), 0)
        init = jax.jit(decoder.init, static_argnums=1, out_shardings=at and at(cfg))
        params = init(key, cfg) if at else jax.tree.map(np.asarray, init(key, cfg))
        path = BYTES
    elif distributed.share((Path(c.model.path) / checkpoint.FOLDER).is_dir()):  # one host may not see it yet
        cfg, params, _, path = checkpoint.restore_params(c.model.path, at=at)
    else:
        path = str(Path(assets.resolve(c.model.path)).resolve())
        cfg, params = files.load(path, at=at)
    return run_on(cfg, c, jax.default_backend()), params, path


def known_model(
    c: ConfigDict, model: ModelConfig, params: Params, path: str, meta: dict[str, Any]
) -> tuple[ModelConfig, Params, str] | None:
    """The model as a workdir's checkpoints describe it (`checkpoint.describe`), its parameters' shapes and the path
    of its tokenizer: who goes on from one reads no weights of model.path, which need not be there any more; its
    tokenizer must.

    None where they are to be read all the same: --force has named another model, which may not fit.
    """
    old = meta.get("config", {})
    if (old.get("model.path"), old.get("model.preset")) != (c.model.path, c.model.preset):
        return None
    elsewhere = path != BYTES and not Path(path).exists() and not (Path(c.model.path) / checkpoint.FOLDER).is_dir()
    if elsewhere:  # this host has the model in another place than the one that saved
        path = str(Path(assets.resolve(c.model.path)).resolve())
    return run_on(model, c, jax.default_backend()), params, path


def using(mesh: Mesh | None):
    """A context in which programs are traced over `mesh`: the splash kernel and `mesh.gathered` have to know it."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def load_tokenizer(path: str) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """The tokenizer that belongs to `load_model`'s path, and the ids that end a text."""
    if path == BYTES:
        tokenizer = byte_tokenizer()
        return tokenizer, (tokenizer.eos_token_id,)
    tokenizer = tokenizers.load_tokenizer(path, require_template=True)
    return tokenizer, tokenizers.eos_ids(tokenizer, path)


def load(
    settings: Settings,
    training: bool = True,
    places: Places | None = None,
    known: tuple[ModelConfig, Params, str] | None = None,
) -> tuple[World, Params]:
    """The world of a config, and the parameters it starts from. Every refusal about files is made here.

    An evaluation (`training` False) loads no training questions. With `places` the parameters come onto the
    learner's mesh shard by shard, without it as numpy arrays of this host; `known` takes the place of `load_model`.
    """
    c = settings.config
    # Questions first: they are quick to refuse, weights are not.
    train, heldout, report = sources.load(settings.data, training)
    fast = sources.load_fast(settings.data) if training else []
    if not heldout and c.eval.prompts:
        raise UserError("data.heldout_size is 0 but eval.prompts is not; hold some questions out or set eval.prompts=0")
    model, params, path = known or load_model(c, places and places.learner)
    tokenizer, eos_ids = load_tokenizer(path)
    vocab_bytes = tokenizers.vocab_bytes(tokenizer, model.vocab_size)
    fmt = prompts.chain_format(tokenizer, vocab_bytes, eos_ids, settings.prompt)
    sampled_answer = max(configs.sampled_answer(c), c.eval.max_sampled_answer, c.prompt.max_answer)
    room = c.prompt.max_prompt + c.sampler.max_chain + len(fmt.close_think_ids) + sampled_answer
    if room > model.max_position:
        raise UserError(
            f"prompt.max_prompt + sampler.max_chain + tags + answer = {room}, "
            f"more than the {model.max_position} positions of the model; lower one of them"
        )
    rows, too_long = (
        prompts.encode_fitting(train, tokenizer, settings.prompt, fmt)
        if settings.data.skip_bad_rows
        else (prompts.encode_all(train, tokenizer, settings.prompt, fmt), [])
    )
    world = World(
        settings,
        model,
        path,
        tokenizer,
        fmt,
        rows,
        prompts.encode_all(heldout, tokenizer, settings.prompt, fmt),
        sources.describe(settings.data, rows, heldout, report, too_long),
        places,
        prompts.encode_all(fast, tokenizer, settings.prompt, fmt),
    )
    return world, params


def in_batches(rows: list, size: int) -> Iterator[tuple[int, list]]:
    """(where it starts, rows) of batches of exactly `size`: one shape, one program. The last row fills up the last."""
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        yield at, part + part[-1:] * (size - len(part))


def make_places(c: ConfigDict, devices: Sequence[Any] | None = None, process: int | None = None) -> Places:
    """The config's devices: the learner's mesh over all processes, and a process's sampler; by default this one's."""
    devices = list(devices or jax.devices())
    process = jax.process_index() if process is None else process
    n = 0 if c.sampler.devices == "shared" else int(c.sampler.devices)
    of_process: dict[int, list] = {}
    for d in devices:
        of_process.setdefault(d.process_index, []).append(d)
    if process not in of_process:
        raise UserError(
            f"--process_id: process {process} has no device ({len(devices)} devices in {len(of_process)} processes); "
            "start as many processes as there are hosts"
        )
    local = len(of_process[process])
    if n >= local:
        most = f"at most {local - 1}, or to shared" if local > 1 else "shared"
        raise UserError(
            f"sampler.devices is {n} of the {local} devices of a process and leaves the learner none; set it to {most}"
        )
    apart = {d for group in of_process.values() for d in group[len(group) - n :]}
    own = sorted(apart & set(of_process[process]), key=lambda d: d.id)
    devices = [d for d in devices if d not in apart]
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    open_to = meshes.shapes(len(devices), c.mesh.data, c.mesh.fsdp, c.mesh.tensor, slices)
    micro = max(0, c.train.micro_batch_prompts) or c.train.prompts_per_step
    refusals = []
    for shape in open_to:
        try:
            return _places(c, shape, micro, devices, own, process)
        except UserError as error:
            refusals.append(error)
    if len(open_to) == 1:
        raise refusals[0]
    step = c.train.prompts_per_step
    for tensor, size in ((t, k) for t in (c.mesh.tensor, 2, 4, 8) for k in range(step, 0, -1) if step % k == 0):
        for shape in meshes.shapes(len(devices), 0, 0, tensor, slices) if len(devices) % tensor == 0 else ():
            try:
                _places(c, shape, size, devices, own, process)
            except UserError:
                continue
            raise UserError(
                f"train.micro_batch_prompts is {micro}: so many prompts of {_rows(c)} chains do not divide over "
                f"{len(devices)} devices; set mesh.tensor={tensor} and train.micro_batch_prompts={size}, which do"
            )
    raise refusals[0]


def _rows(c: ConfigDict) -> int:
    """Chains of a prompt that are trained on."""
    return 1 if c.reward.name == "sft" else c.reward.vote_train or c.sampler.group_size


def _places(c: ConfigDict, shape: tuple[int, int, int], micro: int, devices: list, own: list, process: int) -> Places:
    """`make_places` with this mesh of the learner's devices, `micro` prompts at a time, and a sampler's devices."""
    learner, rows, step = meshes.make_mesh(shape, devices), _rows(c), c.train.prompts_per_step
    parts = shape[0] * shape[1]
    if not meshes.divides(learner.shape, micro, rows):
        name = "train.micro_batch_prompts" if c.train.micro_batch_prompts > 0 else "train.prompts_per_step"
        raise UserError(
            f"{name} is {micro}, which mesh.data x mesh.fsdp = {parts} does not divide; the nearest that it does "
            f"is {max(1, round(micro / parts)) * parts} (or mesh.data divides it, and mesh.fsdp its {rows} rows)"
        )
    whole = step % parts == 0
    group = c.sampler.group_size
    prompts, chains = meshes.own_rows(learner, step, 1 if whole else group)[process]
    chains = slice(0, group) if whole else chains
    here = own or [d for d in learner.devices.flat if d.process_index == process]
    sampler = handover.sampler_mesh(here, len(prompts), chains.stop - chains.start, c.sampler.tensor)
    return Places(learner, sampler, prompts, chains)
