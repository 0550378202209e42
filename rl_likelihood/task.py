"""The task of a run, built from its config: model, tokenizer, chain format, and questions as ids."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rl_likelihood.data import conversation, prompts, tokenizer
from rl_likelihood.data.byte_tokenizer import BYTES, byte_tokenizer
from rl_likelihood.data.extra_ids import with_alternatives, with_shown
from rl_likelihood.data.given_chains import fitting_chains
from rl_likelihood.data.judged_text import question_of
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.rubrics import by_question
from rl_likelihood.data.token_ids import all_begin_with, common_ids
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.learner.packing import abstract_packing
from rl_likelihood.learner.step import prompts_per_forward
from rl_likelihood.model import architecture
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.model.lora import init_adapters
from rl_likelihood.run_model import param_shardings, random_model, run_on
from rl_likelihood.runtime import checkpoint, distributed
from rl_likelihood.runtime.devices import using
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.settings import Config
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
)
from rl_likelihood.tables import begun, refuse_unscored, try_out
from rl_likelihood.weights import assets, files

if TYPE_CHECKING:  # data.tokenizer imports it quietly, and this would come before
    from transformers import PreTrainedTokenizerBase

# Purposes of random keys: key = fold_in(fold_in(key(seed), purpose), step).
INIT, SAMPLE, EVALUATE, WARM_START, SEARCH, ADAPTERS, CRITIC = range(7)

# (a model's architecture, its parameters or their shapes, the path of its tokenizer).
Model = tuple[ModelConfig, Params, str]


@dataclasses.dataclass(frozen=True)
class Task:
    """The fixed inputs of a run. `train`, `heldout`: questions in ids. `fast`: the questions of evaluations during
    training; empty if these use `heldout`. `model_path`: where the tokenizer came from, and a new run's weights.
    `data_line`: a summary of the data in words. `longest_chain`: the tokens of the longest chain that reward.sft_chain
    trains."""

    config: Config
    model: ModelConfig
    model_path: str
    tokenizer: PreTrainedTokenizerBase
    fmt: ChainFormat
    train: list[EncodedExample]
    heldout: list[EncodedExample]
    data_line: str
    fast: list[EncodedExample] = dataclasses.field(default_factory=list)
    common: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # token_ids.common_ids
    longest_chain: int | None = None

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        return random_key(self.config.seed, purpose, step)

    def collate(self, rows: list[EncodedExample], uid: np.ndarray, max_prompt: int = 0) -> Prompts:
        """The rows as arrays of fixed width. A row's random keys are folded from its `uid`."""
        c = self.config.prompt
        out = prompts.collate(rows, uid, max_prompt or c.max_prompt, c.max_answer, self.fmt.pad_id)
        begin = len(self.common) and all_begin_with([row.prompt_ids for row in rows], self.common)
        return out.replace(common=len(self.common)) if begin else out

    def sampler(self, **changes: Any) -> SamplerConfig:
        return dataclasses.replace(sampler_config(self.config, self.model, self.fmt), **changes)

    def eval_sampler(self, samples: int, **changes: Any) -> SamplerConfig:
        """The sampler of evaluations: one greedy row, then `samples` rows with the settings in `eval`."""
        e = self.config.eval
        cut = {"top_p": e.top_p, "top_k": e.top_k, "min_p": e.min_p}
        return self.sampler(group_size=1 + samples, temperature=(0.0, *(e.temperature,) * samples), **cut, **changes)


def random_key(seed: int, purpose: int, step: int = 0) -> jax.Array:
    """The random key of one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def sampler_config(c: Config, model: ModelConfig, fmt: ChainFormat) -> SamplerConfig:
    """The sampler of training."""
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


def abstract_batch(c: Config, fmt: ChainFormat, longest_chain: int | None = None) -> Batch:
    """The largest batch of the config, as shapes. `longest_chain`: `Task.longest_chain`; without data
    sampler.max_chain stands for it."""
    p, g = c.batch_prompts, c.rows_per_prompt
    tags = max(len(fmt.close_think_ids), len(fmt.open_answer_ids))
    t = c.sampler.max_chain + c.sampled_answer + tags + c.prompt.max_answer
    if c.converses:
        t = c.conversation_tokens
    w = len(fmt.close_think_ids) + c.prompt.max_answer
    if c.reward.supervised:
        given = c.sampler.max_chain if longest_chain is None else longest_chain
        t = c.spoken_tokens if c.converses else w + given * c.trains_chains
    k = c.prompt.max_alternatives
    n = k * (1 + c.prompt.max_answer)
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)
    i, f, b = jnp.int32, jnp.float32, jnp.bool_
    judged = c.reward.judged if c.judge_in_step or c.critic else None  # computed in the step, so not an input
    return Batch(
        prompt=shape(i, p, c.widest_prompt),
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
        weight=shape(f, p) if c.raro else None,
        critic=shape(b, p) if c.raro else None,
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
    """The inputs of a judge in the step, with `rows` rows per prompt, as shapes."""
    j, p = c.judge, c.train.prompts_per_step
    dims = (p, j.max_prompt), (p,), (p, rows, j.max_row), (p, rows)
    return Judged(*(jax.ShapeDtypeStruct(x, jnp.int32) for x in dims))


def step_batch(c: Config, fmt: ChainFormat, mesh: Mesh | None, longest_chain: int | None = None) -> Batch:
    """`abstract_batch` as the step takes it on this mesh: with a packing if train.packing is set."""
    batch = abstract_batch(c, fmt, longest_chain)
    if not c.train.packing:
        return batch
    with using(mesh):
        return batch.replace(packing=abstract_packing(batch, c.step))


def abstract_compared(c: Config, rows: int) -> Compared:
    """The inputs of the critic of adversarial training, with `rows` rows per prompt, as shapes."""
    dims, labels = (c.train.prompts_per_step, rows), c.adversarial.form == "label"
    present, signs = (jax.ShapeDtypeStruct(dims, kind) for kind in (jnp.bool_, jnp.float32))
    ids = jax.ShapeDtypeStruct((dims[0], 3), jnp.int32)
    return Compared(abstract_judged(c, rows), present, *((signs, ids) if labels else ()))


def largest_forward(c: Config, fmt: ChainFormat, mesh: Mesh | None, longest_chain: int | None = None) -> int:
    """Prompts per forward of the learner's step, for a batch of the maximum widths."""
    with using(mesh):
        return prompts_per_forward(step_batch(c, fmt, mesh, longest_chain), c.step)


def trained(task: Task, params: Params) -> Params:
    """What a run trains: new adapters with LoRA, else the parameters themselves."""
    lora = task.config.lora
    return init_adapters(task.key(ADAPTERS), task.model, lora) if lora.rank else params


def load_model(c: Config, mesh: Mesh | None = None) -> Model:
    """The config's model: from weight files, from a workdir, or with random weights.

    The parameters are created or read shard by shard onto `mesh`. Without a mesh they are numpy arrays on this host.
    """
    sharding_of = None if mesh is None else functools.partial(param_shardings, mesh)
    if c.model.preset:
        cfg, path = random_model(c.model.preset), BYTES
        init = jax.jit(architecture.init, static_argnums=1, out_shardings=sharding_of and sharding_of(cfg))
        params = init(random_key(c.seed, INIT), cfg)
        params = params if sharding_of else jax.tree.map(np.asarray, params)
    elif distributed.share((Path(c.model.path) / checkpoint.FOLDER).is_dir()):  # one host may not see it yet
        cfg, params, _, path = checkpoint.restore_params(c.model.path, at=sharding_of)
        path = tokenizer_path(Path(c.model.path), path)
    else:
        path = str(Path(assets.resolve(c.model.path)).resolve())
        stored_as_lora = c.lora.rank and not c.warm_start.steps  # a warm start adds its adapters in float32
        cfg, params = files.load(path, jnp.dtype(c.lora.stored_dtype if stored_as_lora else "float32"), sharding_of)
    return run_on(cfg, c, jax.default_backend()), params, path


def checkpoint_model(c: Config, workdir: Path, model: ModelConfig, params: Params, path: str) -> Model:
    """The model as a workdir's checkpoint describes it (`checkpoint.describe`), with its parameters as shapes.

    So a resumed run does not need the weights and the tokenizer of model.path.
    """
    path = tokenizer_path(workdir, path)
    elsewhere = path != BYTES and not Path(path).exists() and not (Path(c.model.path) / checkpoint.FOLDER).is_dir()
    if elsewhere:  # this host has the model at another path than the host that saved the checkpoint
        path = str(Path(assets.resolve(c.model.path)).resolve())
    return run_on(model, c, jax.default_backend()), params, path


def load_tokenizer(
    path: str, template: str = "model", setting: str = "--config.prompt.template"
) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """(the tokenizer at the path that `load_model` returns, with its chat template set; the ids that end a text).
    `setting`: the setting that gives `template`, for the message."""
    loaded = byte_tokenizer() if path == BYTES else tokenizer.load_tokenizer(path)
    tokenizer.set_template(loaded, template, path, setting)
    return loaded, (loaded.eos_token_id,) if path == BYTES else tokenizer.eos_ids(loaded, path)


def load(
    c: Config, training: bool = True, mesh: Mesh | None = None, saved_model: Model | None = None
) -> tuple[Task, Params]:
    """(the task of a config, the parameters that it starts from). Every problem with files is refused here.

    `training` False: no training questions are loaded, for evaluations. `mesh`: the parameters are read onto it shard
    by shard; without it they are numpy arrays on this host. `saved_model`: the model to use instead of `load_model`'s.
    """
    # Questions first, because they load faster than weights.
    c = dataclasses.replace(c, prompt=sources.resolve_prompt(c.prompt, c.data, c.worked_examples))
    train, heldout, report = sources.load(c.data, training, c.prompt.shots)
    fast = sources.load_fast(c.data, c.prompt.shots) if training else []
    train, left_out_by_rubric = _with_rubrics(train, c) if training and c.rubric.path else (train, [])
    if not heldout and c.eval.prompts:
        raise UserError("data.heldout_size is 0 but eval.prompts is not; hold some questions out or set eval.prompts=0")
    model, params, path = saved_model or load_model(c, mesh)
    text, eos_ids = load_tokenizer(path, c.prompt.template)
    fmt = prompts.chain_format(text, tokenizer.vocab_bytes(text, model.vocab_size), eos_ids, c.prompt)
    _refuse_positions(c, model, fmt)
    encode = functools.partial(_encode_conversations if c.converses else _encode_questions, c=c, text=text, fmt=fmt)
    rows, left_out = encode(train, skip=c.data.skip_bad_rows)
    longest_chain = None
    if training and c.trains_chains:
        rows, too_long, longest_chain = fitting_chains(rows, text, fmt, model.max_position, c.data.skip_bad_rows)
        left_out += too_long
    if training and c.converses and not c.reward.supervised:
        refuse_unscored(c.env, c.reward.terms, any(len(row.answer_ids) for row in rows))
    if c.max_shown:
        rows = with_shown(rows, text, c.prompt, fmt, c.posterior.prompt, c.max_shown)
    if c.reads_alternatives:
        rows = with_alternatives(rows, c.reads_alternatives, text, c.prompt, fmt)
        if training and not any(row.alternatives for row in rows):
            raise UserError(
                f"reward.name is {c.reward.name!r}, but no training row has a field {c.reads_alternatives!r} (a list "
                "of other answers); add it, or choose log_prob"
            )
    heldout_rows, fast_rows = encode(heldout)[0], encode(fast)[0]
    task = Task(
        config=c,
        model=model,
        model_path=path,
        tokenizer=text,
        fmt=fmt,
        train=rows,
        heldout=heldout_rows,
        data_line=sources.describe(c.data, rows, heldout, report, left_out_by_rubric + left_out),
        fast=fast_rows,
        # A batch with critic's prompts has no common beginning.
        common=common_ids([row.prompt_ids for row in (*rows, *heldout_rows, *fast_rows) if not c.raro]),
        longest_chain=longest_chain,
    )
    return task, params


def _with_rubrics(train: list[Example], c: Config) -> tuple[list[Example], list[str]]:
    """(the questions that rubric.path does not leave out, descriptions of those that it does). UserError if it has no
    rubric for a question."""
    rubrics = by_question(c.rubric.path, [question_of(e) for e in train])
    left_out = {question for question, rubric in rubrics.items() if not rubric.criteria}
    others = [e for e in train if question_of(e) not in left_out]
    if not others:
        raise UserError(f"rubric.path is {c.rubric.path!r}, which leaves out every training question; give rubrics")
    return others, [f"{e.id}: left out by its rubric" for e in train if question_of(e) in left_out]


def _refuse_positions(c: Config, model: ModelConfig, fmt: ChainFormat) -> None:
    """UserError if a row may have more tokens than the model has positions."""
    parts = {"prompt.max_prompt": c.prompt.max_prompt}
    if c.widest_prompt > c.prompt.max_prompt:
        parts = {"judge.max_prompt + judge.max_row": c.widest_prompt}
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


# (questions in ids, descriptions of the rows that are left out).
Encoded = tuple[list[EncodedExample], list[str]]


def _encode_questions(
    examples: list[Example], c: Config, text: PreTrainedTokenizerBase, fmt: ChainFormat, skip: bool = False
) -> Encoded:
    """Encodes questions with their answers. `skip`: long rows are left out instead of refused."""
    if skip:
        return prompts.encode_fitting(examples, text, c.prompt, fmt)
    return prompts.encode_all(examples, text, c.prompt, fmt), []


def _encode_conversations(
    examples: list[Example], c: Config, text: PreTrainedTokenizerBase, fmt: ChainFormat, skip: bool = False
) -> Encoded:
    """Encodes the first messages of conversations as prompts, with the reference for the model's first message as the
    answer."""
    rows: list[EncodedExample] = []
    refused, first = [], None
    for example in examples:
        try:
            start = begun(c.env, example)
            first = first or (example, start)
        except UserError as e:
            if not skip:
                raise
            refused.append(str(e))
            continue
        prompt = conversation.prompt_ids(text, fmt, start.messages, c.prompt.date)
        answer = conversation.reference_ids(text, fmt, start.reference, c.prompt.max_answer)
        rows.append(EncodedExample(example, prompt, answer, np.ones(len(answer), bool)))
    if refused and not rows:
        raise UserError(f"none of the {len(examples)} rows can be used; {refused[0]}")
    if first:
        example, start = first
        again = begun(c.env, example)
        if again[1:] != start[1:]:
            raise UserError(
                f"row {example.id}: the environment {c.env.name} begins differently each time; the messages and "
                "the reference of its method start must depend on the row's field 'environment' alone"
            )
        try_out(c.env, example, again.state)
    if skip:
        fitting, too_long = prompts.fitting(rows, c.prompt)
        return fitting, refused + too_long
    prompts.refuse_longer("max_prompt", c.prompt, rows)
    return rows, []
