"""What a run is about, once its config is read: model, tokenizer, chain format, questions as ids."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_likelihood.data import conversation, prompts, tokenizer
from rl_likelihood.data.alternatives import with_alternatives
from rl_likelihood.data.byte_tokenizer import BYTES, byte_tokenizer
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.shown import with_shown
from rl_likelihood.datasets import sources
from rl_likelihood.learner.packing import abstract_packing
from rl_likelihood.learner.step import at_once
from rl_likelihood.model import decoder, splash
from rl_likelihood.model.decoder import ModelConfig, Params, param_specs
from rl_likelihood.model.lora import init_adapters
from rl_likelihood.runtime import checkpoint, distributed
from rl_likelihood.runtime.devices import using
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.settings import SIZES, Config
from rl_likelihood.shapes import (
    Alternatives,
    Batch,
    ChainFormat,
    Compared,
    Example,
    Judged,
    NoChainRows,
    Prompts,
    ShownPrompts,
    UserError,
)
from rl_likelihood.tables import environment_of
from rl_likelihood.weights import assets, files

if TYPE_CHECKING:  # data.tokenizer imports it quietly, and this would come before
    from transformers import PreTrainedTokenizerBase

# Purposes of random keys: key = fold_in(fold_in(key(seed), purpose), step).
INIT, SAMPLE, EVALUATE, WARM_START, SEARCH, ADAPTERS = range(6)

# A model's architecture, its parameters or their shapes, and the path of its tokenizer.
Model = tuple[ModelConfig, Params, str]


@dataclasses.dataclass(frozen=True)
class Task:
    """Fixed for a run. `train`, `heldout`: questions in ids; `fast`: those of the evaluations during training, empty
    where they are the held-out ones; `model_path`: where weights and tokenizer came from."""

    config: Config
    model: ModelConfig
    model_path: str
    tokenizer: PreTrainedTokenizerBase
    fmt: ChainFormat
    train: list[EncodedExample]
    heldout: list[EncodedExample]
    data_line: str
    fast: list[EncodedExample] = dataclasses.field(default_factory=list)

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        """The random key of one purpose at one step."""
        return random_key(self.config.seed, purpose, step)

    def collate(self, rows: list[EncodedExample], uid: np.ndarray, max_prompt: int = 0) -> Prompts:
        """Rows as fixed-width arrays; `uid` names their random keys."""
        c = self.config.prompt
        return prompts.collate(rows, uid, max_prompt or c.max_prompt, c.max_answer, self.fmt.pad_id)

    def sampler(self, **changes: Any) -> SamplerConfig:
        """The config's sampler for this model and format."""
        return dataclasses.replace(sampler_config(self.config, self.model, self.fmt), **changes)

    def eval_sampler(self, samples: int, **changes: Any) -> SamplerConfig:
        """How evaluation samples: one greedy row, then `samples` as the config's fields of eval say."""
        e = self.config.eval
        cut = {"top_p": e.top_p, "top_k": e.top_k, "min_p": e.min_p}
        return self.sampler(group_size=1 + samples, temperature=(0.0, *(e.temperature,) * samples), **cut, **changes)


def random_key(seed: int, purpose: int, step: int = 0) -> jax.Array:
    """The random key of one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def sampler_config(c: Config, model: ModelConfig, fmt: ChainFormat) -> SamplerConfig:
    """How training samples."""
    s = c.sampler
    return SamplerConfig(
        model=model,
        chain_format=fmt,
        group_size=s.group_size,
        max_chain=s.max_chain,
        max_sampled_answer=c.sampled_answer,
        temperature=s.temperature,
        width_multiple=s.width_multiple,
        slots=s.slots,
    )


def abstract_batch(c: Config, fmt: ChainFormat) -> Batch:
    """The largest batch of the config, as shapes."""
    p, g = c.train.prompts_per_step, c.rows_per_prompt
    tags = max(len(fmt.close_think_ids), len(fmt.open_answer_ids))
    t = c.sampler.max_chain + c.sampled_answer + tags + c.prompt.max_answer
    if c.converses:
        t = c.conversation_tokens
    w = len(fmt.close_think_ids) + c.prompt.max_answer
    if c.reward.supervised:
        t = tags + c.prompt.max_answer
    k = c.prompt.max_alternatives
    n = k * (1 + c.prompt.max_answer)
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)
    i, f, b = jnp.int32, jnp.float32, jnp.bool_
    judged = c.reward.judged if c.judge_in_step or c.critic else None  # its numbers are made in the step
    return Batch(
        prompt=shape(i, p, c.prompt.max_prompt),
        prompt_length=shape(i, p),
        completion=shape(i, p, g, t),
        segment=shape(i, p, g, t),
        scored=shape(b, p, g, t),
        sampler_logp=shape(f, p, g, t),
        host_rewards={name: shape(f, p, g) for name in c.step.reward.host_terms if name != judged},
        truncated=shape(b, p, g),
        keep=shape(b, p, g),
        baseline=shape(f, p) if c.reward.frozen_score else None,
        baseline_logp=shape(f, p, c.prompt.max_answer) if c.reward.frozen_tokens else None,
        no_chain=NoChainRows(shape(i, p, 1, w), shape(i, p, 1, w), shape(b, p, 1, w)) if c.scores_no_chain else None,
        shown=ShownPrompts(shape(i, p, c.max_shown), shape(i, p)) if c.max_shown else None,
        judged=abstract_judged(c, g) if c.judge_in_step else None,
        compared=abstract_compared(c, g + (c.critic.form == "head")) if c.critic else None,
        replayed=abstract_compared(c, 2) if c.critic and c.critic.replay else None,
        alternatives=Alternatives(shape(i, p, n), shape(i, p, n), shape(b, p, n), shape(b, p, k))
        if c.reads_alternatives
        else None,
    )


def abstract_judged(c: Config, rows: int) -> Judged:
    """What a judge in the step reads, this many rows of each prompt, as shapes."""
    j, p = c.judge, c.train.prompts_per_step
    dims = (p, j.max_prompt), (p,), (p, rows, j.max_row), (p, rows)
    return Judged(*(jax.ShapeDtypeStruct(x, jnp.int32) for x in dims))


def step_batch(c: Config, fmt: ChainFormat, mesh: Mesh) -> Batch:
    """`abstract_batch` as the step takes it on this mesh: with its packing, if train.packing asks for one."""
    batch = abstract_batch(c, fmt)
    if not c.train.packing:
        return batch
    with using(mesh):
        return batch.replace(packing=abstract_packing(batch, c.step))


def abstract_compared(c: Config, rows: int) -> Compared:
    """The same for the critic of adversarial training."""
    dims, labels = (c.train.prompts_per_step, rows), c.adversarial.form == "label"
    there, signs = (jax.ShapeDtypeStruct(dims, kind) for kind in (jnp.bool_, jnp.float32))
    ids = jax.ShapeDtypeStruct((dims[0], 3), jnp.int32)
    return Compared(abstract_judged(c, rows), there, *((signs, ids) if labels else ()))


def prompts_at_once(c: Config, fmt: ChainFormat, mesh: Mesh | None) -> int:
    """Prompts that the learner's step takes at one time, of a batch as wide as can be."""
    with using(mesh):
        return at_once(abstract_batch(c, fmt), c.step)


def _check_experts(c: Config) -> None:
    """Refuses what is not computed for the matrices of experts."""
    targets = [name for name in c.lora.targets if name in ("gate", "up", "down")]
    for field, value, refused, advice in (
        ("lora.targets", " ".join(targets), c.lora.rank and targets, "name only q, k, v and o"),
        ("lora.base_dtype", "int8", c.lora.rank and c.lora.base_dtype == "int8", "set it to bfloat16"),
        ("sampler.weights", "int8", c.sampler.weights == "int8", "set it to compute"),
    ):
        if refused:
            raise UserError(f"{field}: {value} does not work for a mixture of experts; {advice}")


def run_on(model: ModelConfig, c: Config, platform: str) -> ModelConfig:
    """The model with how to run it, the part of ModelConfig that the config decides, on a platform."""
    if model.experts:
        _check_experts(c)
    dtype, attention = c.model.compute_dtype, c.model.attention
    if c.converses or c.reads_alternatives:  # the kernel knows one branch of each kind
        attention = "dense"
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    why = splash.refused(model.head_dim, model.local.window if model.local else 0)
    if attention == "splash" and (why or platform != "tpu"):
        why = why or f"it is for TPUs, and this is {platform}"
        raise UserError(f"model.attention is 'splash', but {why}; set it to auto or dense")
    if attention == "auto":
        attention = "splash" if platform == "tpu" and not why else "dense"
        if platform == "tpu" and why and distributed.first():
            print(f"attention dense, without the splash kernel: {why}", file=sys.stderr, flush=True)
    return dataclasses.replace(
        model,
        compute_dtype=dtype,
        scan_layers=c.model.layers == "scan" or (c.model.layers == "auto" and platform != "cpu"),
        remat=c.model.remat,
        attention=attention,
        scratch_kib=c.model.scratch_kib,
    )


def rollout_model(c: Config, model: ModelConfig) -> ModelConfig:
    """The model whose decoding layout training samples from."""
    return dataclasses.replace(model, int8_decoding=c.sampler.weights == "int8")


def param_shardings(mesh: Mesh, model: ModelConfig) -> Params:
    """Where each parameter lies on the learner's mesh."""
    return decoder.shardings(param_specs(model), mesh)


def trained(task: Task, params: Params) -> Params:
    """What a run trains at its start: new adapters, or the parameters."""
    lora = task.config.lora
    return init_adapters(task.key(ADAPTERS), task.model, lora) if lora.rank else params


def random_model(preset: str) -> ModelConfig:
    """The architecture of a size of `settings.SIZES`, over bytes."""
    width, layers, heads, kv_heads, mlp = SIZES[preset]
    vocab = len(byte_tokenizer())
    return ModelConfig("llama", vocab, width, layers, heads, kv_heads, width // heads, mlp, max_position=2048)


def load_model(c: Config, mesh: Mesh | None = None) -> Model:
    """The model that the config names: weights, a workdir, or a random one.

    The parameters are made or read shard by shard onto `mesh`; without one they are numpy arrays of this host.
    """
    at = None if mesh is None else functools.partial(param_shardings, mesh)
    if c.model.preset:
        cfg, path = random_model(c.model.preset), BYTES
        init = jax.jit(decoder.init, static_argnums=1, out_shardings=at and at(cfg))
        params = init(random_key(c.seed, INIT), cfg)
        params = params if at else jax.tree.map(np.asarray, params)
    elif distributed.share((Path(c.model.path) / checkpoint.FOLDER).is_dir()):  # one host may not see it yet
        cfg, params, _, path = checkpoint.restore_params(c.model.path, at=at)
        path = tokenizer_path(Path(c.model.path), path)
    else:
        path = str(Path(assets.resolve(c.model.path)).resolve())
        half = c.lora.rank and not c.warm_start.steps  # a warm start is added up in float32
        cfg, params = files.load(path, jnp.dtype(c.lora.stored_dtype if half else "float32"), at)
    return run_on(cfg, c, jax.default_backend()), params, path


def known_model(c: Config, workdir: Path, model: ModelConfig, params: Params, path: str) -> Model:
    """The model as a workdir's checkpoints describe it (`checkpoint.describe`), with its parameters' shapes.

    Who goes on from a checkpoint needs neither weights nor tokenizer of model.path.
    """
    path = tokenizer_path(workdir, path)
    elsewhere = path != BYTES and not Path(path).exists() and not (Path(c.model.path) / checkpoint.FOLDER).is_dir()
    if elsewhere:  # this host has the model in another place than the one that saved
        path = str(Path(assets.resolve(c.model.path)).resolve())
    return run_on(model, c, jax.default_backend()), params, path


def load_tokenizer(path: str, template: str = "model") -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """The tokenizer that belongs to `load_model`'s path, with a chat template, and the ids that end a text."""
    loaded = byte_tokenizer() if path == BYTES else tokenizer.load_tokenizer(path)
    tokenizer.set_template(loaded, template, path)
    return loaded, (loaded.eos_token_id,) if path == BYTES else tokenizer.eos_ids(loaded, path)


def load(c: Config, training: bool = True, mesh: Mesh | None = None, known: Model | None = None) -> tuple[Task, Params]:
    """The task of a config, and the parameters it starts from. Every refusal about files is made here.

    An evaluation (`training` False) loads no training questions. With `mesh` the parameters come onto it shard by
    shard, without it as numpy arrays of this host; `known` takes the place of `load_model`.
    """
    # Questions first: they are quick to refuse, weights are not.
    c = dataclasses.replace(c, prompt=sources.resolve_prompt(c.prompt, c.data, c.worked_examples))
    train, heldout, report = sources.load(c.data, training, c.prompt.shots)
    fast = sources.load_fast(c.data, c.prompt.shots) if training else []
    if not heldout and c.eval.prompts:
        raise UserError("data.heldout_size is 0 but eval.prompts is not; hold some questions out or set eval.prompts=0")
    model, params, path = known or load_model(c, mesh)
    text, eos_ids = load_tokenizer(path, c.prompt.template)
    fmt = prompts.chain_format(text, tokenizer.vocab_bytes(text, model.vocab_size), eos_ids, c.prompt)
    _refuse_positions(c, model, fmt)
    encode = functools.partial(_begun if c.converses else _asked, c=c, text=text, fmt=fmt)
    rows, too_long = encode(train, skip=c.data.skip_bad_rows)
    if c.max_shown:
        rows = with_shown(rows, text, c.prompt, fmt, c.posterior.prompt, c.max_shown)
    if c.reads_alternatives:
        rows = with_alternatives(rows, text, c.prompt, fmt)
        if training and not any(row.alternatives for row in rows):
            raise UserError(
                f"reward.name is {c.reward.name!r}, but no training row has a field 'alternatives' (a list of other "
                "answers); add it, or choose log_prob"
            )
    task = Task(
        config=c,
        model=model,
        model_path=path,
        tokenizer=text,
        fmt=fmt,
        train=rows,
        heldout=encode(heldout)[0],
        data_line=sources.describe(c.data, rows, heldout, report, too_long),
        fast=encode(fast)[0],
    )
    return task, params


def _refuse_positions(c: Config, model: ModelConfig, fmt: ChainFormat) -> None:
    """UserError where a row may have more tokens than the model has positions."""
    parts = {"prompt.max_prompt": c.prompt.max_prompt}
    if c.max_shown > c.prompt.max_prompt:
        parts = {"posterior.max_prompt": c.max_shown}
    if c.converses:
        s = c.sampler
        parts["sampler.max_turns x sampler.max_chain"] = s.max_turns * s.max_chain
        parts["(sampler.max_turns - 1) x sampler.max_env_tokens"] = (s.max_turns - 1) * s.max_env_tokens
        parts["prompt.max_answer"] = c.prompt.max_answer
    else:
        parts["sampler.max_chain"] = c.sampler.max_chain
        parts["tags"] = len(fmt.close_think_ids)
        parts["answer"] = max(c.sampled_answer, c.eval_answer, c.prompt.max_answer)
    total = sum(parts.values())
    if total > model.max_position:
        raise UserError(
            f"{' + '.join(parts)} = {total}, more than the {model.max_position} positions of the model; lower one"
        )


# Questions in ids, and the rows that are left out because they are too long.
Encoded = tuple[list[EncodedExample], list[str]]


def _asked(
    examples: list[Example], c: Config, text: PreTrainedTokenizerBase, fmt: ChainFormat, skip: bool = False
) -> Encoded:
    """Questions with their answers. `skip`: long rows are left out, not refused."""
    if skip:
        return prompts.encode_fitting(examples, text, c.prompt, fmt)
    return prompts.encode_all(examples, text, c.prompt, fmt), []


def _begun(
    examples: list[Example], c: Config, text: PreTrainedTokenizerBase, fmt: ChainFormat, skip: bool = False
) -> Encoded:
    """Questions as the first messages of conversations, with what the model should write first as the answer."""
    environment = environment_of(c.env)
    rows = []
    for example in examples:
        told = json.loads(example.check or "{}")
        if "environment" not in told:
            raise UserError(
                f"row {example.id} has no field 'environment', which tells env.name = {c.env.name!r} its task; add it"
            )
        try:
            start = environment.start(told["environment"])
            messages, reference = list(start.messages), start.reference
        except UserError:
            raise
        except Exception as e:
            raise UserError(
                f"row {example.id}: the environment {c.env.name} cannot begin with {told['environment']} "
                f"({type(e).__name__}: {e}); mend the row's field 'environment'"
            ) from e
        prompt = conversation.prompt_ids(text, fmt, messages, c.prompt.date)
        answer = conversation.reference_ids(text, fmt, reference, c.prompt.max_answer)
        rows.append(EncodedExample(example, prompt, answer, np.ones(len(answer), bool)))
    if skip:
        return prompts.fitting(rows, c.prompt)
    prompts.refuse_longer("max_prompt", c.prompt, rows)
    return rows, []
