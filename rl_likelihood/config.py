"""From a ConfigDict to the rooms' frozen settings, once, and every refusal that needs neither data nor model."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from rl_likelihood.data.prompts import INSTRUCTION, PromptConfig
from rl_likelihood.data.sources import DataConfig
from rl_likelihood.learner.optimizer import OptimizerConfig
from rl_likelihood.learner.step import StepConfig
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.pod.checkpoint import CheckpointConfig
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.shapes import UserError

REWARDS = (*OBJECTIVES, "base_rl", "sft")
CHOICES = {
    "reward.name": REWARDS,
    "reward.truncated": ("force_close", "floor", "drop"),
    "loss.advantage": ("loo", "mean", "std"),
    "loss.aggregation": ("seq_sum", "seq_mean", "token_mean", "const"),
    "loss.ratio": ("none", "token", "sequence"),
    "loss.kl": ("none", "k2", "k3"),  # k1 in a loss has no gradient in expectation
    "optim.schedule": ("cosine", "constant"),
    "prompt.score_delims": ("none", "close", "both"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "sampler.devices": ("shared",),
    "data.source": ("reasoning_gym", "jsonl"),
    "warm_start.chains": ("own", "given"),
    "report.wandb": ("off", "offline", "online"),
}
AT_LEAST = {
    "sampler.group_size": 1, "sampler.max_chain": 1, "sampler.max_sampled_answer": 0, "sampler.max_staleness": 0,
    "sampler.queue_depth": 1, "sampler.width_multiple": 0, "train.steps": 0, "train.prompts_per_step": 1,
    "train.micro_batch_prompts": 0, "train.head_chunk": 1, "train.eval_every": 0, "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1, "train.keep_every": 0, "warm_start.steps": 0, "warm_start.examples": 0,
    "warm_start.prompts": 1, "warm_start.prompts_per_step": 1, "eval.prompts": 0, "eval.samples": 1,
    "eval.max_sampled_answer": 0, "eval.batch_prompts": 1, "optim.warmup_steps": 0, "optim.clip_norm": 0,
    "optim.lr": 0, "warm_start.lr": 0, "loss.ratio_cap": 0, "loss.clip_low": 0, "loss.clip_high": 0,
    "loss.kl_coef": 0, "report.samples_every": 0, "report.sample_prompts": 0, "report.console_samples": 0,
    "mesh.data": 1, "mesh.fsdp": 0, "mesh.tensor": 1, "prompt.examples": 0, "prompt.max_prompt": 1,
    "prompt.max_answer": 1,
}  # fmt: skip


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """`key=value,key=value` after a config file's colon, typed like the defaults; unknown keys are refused."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"config argument {key!r} is unknown; this config takes {', '.join(defaults)}")
        if not equals:
            raise UserError(f"config argument {key!r} has no value; write {key}=VALUE")
        kind = type(defaults[key])
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise UserError(f"config argument {key}={text!r} is not of type {kind.__name__}") from None
    return ConfigDict(values)


def get(config: ConfigDict, name: str) -> Any:
    """The field at a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value}, in the order of the file."""
    out = {}
    for key, value in config.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return out


def largest_divisor(n: int, most: int) -> int:
    """The largest number up to `most` that divides n."""
    return max(k for k in range(1, most + 1) if n % k == 0)


def validate(c: ConfigDict) -> None:
    """Refuse, in one sentence, whatever can be seen to be wrong without data and model."""
    for name, options in CHOICES.items():
        value = get(c, name)
        if value not in options:
            near = difflib.get_close_matches(str(value), options, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"{name} is {value!r}; {hint}it must be one of {', '.join(options)}")
    for name, least in AT_LEAST.items():
        if get(c, name) < least:
            raise UserError(f"{name} is {get(c, name)}; it must be at least {least}")
    if bool(c.model.path) == bool(c.model.preset):
        both = "both are set" if c.model.path else "neither is set"
        raise UserError(f"model.path (weights) or model.preset (random weights): {both}; set exactly one of them")
    if c.model.preset and c.model.preset not in PRESETS:
        raise UserError(f"model.preset is {c.model.preset!r}; it must be one of {', '.join(PRESETS)}")
    g, p, m = c.sampler.group_size, c.train.prompts_per_step, c.train.micro_batch_prompts
    if g < 2 and c.reward.name != "sft":
        raise UserError(
            f"sampler.group_size is {g}, but reward {c.reward.name!r} compares a chain with the others of its group "
            "(leave-one-out); it must be at least 2"
        )
    if m and p % m:
        near = largest_divisor(p, m)
        raise UserError(
            f"train.micro_batch_prompts is {m}, which does not divide train.prompts_per_step = {p}; "
            f"the nearest below that does is {near}"
        )
    if c.reward.name == "base_rl" and not c.sampler.max_sampled_answer:
        raise UserError(
            "reward.name is 'base_rl', which grades a sampled answer, but sampler.max_sampled_answer is 0; "
            f"set it to at least prompt.max_answer = {c.prompt.max_answer}"
        )
    if c.sampler.temperature <= 0:
        raise UserError(f"sampler.temperature is {c.sampler.temperature}; it must be above 0 (evaluation has its own)")
    for name in ("eval.max_sampled_answer", "sampler.max_sampled_answer"):
        if 0 < get(c, name) < c.prompt.max_answer:
            raise UserError(
                f"{name} is {get(c, name)}, too short to write every answer of prompt.max_answer = "
                f"{c.prompt.max_answer} tokens; set it to at least that"
            )
    for name in ("optim.b1", "optim.b2", "optim.final_lr_fraction"):
        if not 0 <= get(c, name) <= 1 or (get(c, name) == 1 and name != "optim.final_lr_fraction"):
            raise UserError(f"{name} is {get(c, name)}; it must be from 0 to below 1")
    if c.reward.floor >= 0:
        raise UserError(f"reward.floor is {c.reward.floor}, a log-prob; it must be below 0, for example -10")
    if c.reward.name == "sft" and c.loss.answer_term != 1:
        raise UserError(
            f"loss.answer_term is {c.loss.answer_term}, but with reward.name='sft' it is the only term; set it to 1"
        )
    if len(c.reward.base_rl) != 3:
        raise UserError(f"reward.base_rl is {c.reward.base_rl}; it must be three numbers: right, wrong, unreadable")
    if c.loss.kl == "none" and c.loss.kl_coef:
        raise UserError(f"loss.kl_coef is {c.loss.kl_coef} but loss.kl is 'none'; choose k2 or k3")
    if c.warm_start.steps and c.warm_start.prompts < c.warm_start.prompts_per_step:
        raise UserError(
            f"warm_start.prompts is {c.warm_start.prompts}, fewer than warm_start.prompts_per_step = "
            f"{c.warm_start.prompts_per_step}; it must be at least that"
        )
    if c.eval.prompts > c.data.heldout_size > 0:
        raise UserError(
            f"eval.prompts is {c.eval.prompts} but data.heldout_size is {c.data.heldout_size}; "
            f"set eval.prompts to at most {c.data.heldout_size}"
        )


# Sizes with random weights, over bytes: width, layers, heads, key/value heads, MLP width.
PRESETS: dict[str, tuple[int, int, int, int, int]] = {"tiny": (128, 6, 4, 2, 512), "nano": (32, 2, 2, 1, 64)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The frozen settings of the rooms, and the plain config for what only a main reads."""

    config: ConfigDict = dataclasses.field(repr=False)
    data: DataConfig
    prompt: PromptConfig
    step: StepConfig
    warm_step: StepConfig
    optimizer: OptimizerConfig
    warm_optimizer: OptimizerConfig
    checkpoint: CheckpointConfig


def build(c: ConfigDict) -> Settings:
    """Settings of a validated config."""
    validate(c)
    is_sft, is_rule = c.reward.name == "sft", c.reward.name == "base_rl"
    stale = c.sampler.max_staleness > 0
    loss = LossConfig(
        answer_term=0.0 if is_rule else c.loss.answer_term,
        policy_term=0.0 if is_sft else 1.0,
        aggregation=c.loss.aggregation,
        max_tokens=c.sampler.max_chain + c.sampler.max_sampled_answer,
        advantage=c.loss.advantage,
        ratio="token" if stale and c.loss.ratio == "none" else c.loss.ratio,
        ratio_cap=c.loss.ratio_cap,
        clip_low=c.loss.clip_low or None,
        clip_high=c.loss.clip_high or None,
        kl=c.loss.kl,
        kl_coef=c.loss.kl_coef,
    )
    step = StepConfig(
        objective="outside" if is_rule else "log_prob" if is_sft else c.reward.name,
        loss=loss,
        policy_span="response" if is_rule else "chain",
        two_branches=c.sampler.max_sampled_answer > 0,
        temperature=c.sampler.temperature,
        truncated=c.reward.truncated,
        floor=c.reward.floor,
        micro_batch_prompts=c.train.micro_batch_prompts,
        head_chunk=c.train.head_chunk,
    )
    warm_rows = c.warm_start.prompts_per_step
    warm_step = StepConfig(
        # A mean over tokens per row: chains of every length count alike.
        objective="avg_log_prob",
        loss=LossConfig(policy_term=0.0),
        supervise_chain=True,
        micro_batch_prompts=largest_divisor(warm_rows, 8) if c.train.micro_batch_prompts else 0,
        head_chunk=c.train.head_chunk,
    )
    optimizer = OptimizerConfig(
        lr=c.optim.lr,
        schedule=c.optim.schedule,
        warmup_steps=c.optim.warmup_steps,
        total_steps=c.train.steps,
        final_lr_fraction=c.optim.final_lr_fraction,
        b1=c.optim.b1,
        b2=c.optim.b2,
        weight_decay=c.optim.weight_decay,
        clip_norm=c.optim.clip_norm,
    )
    warm_optimizer = dataclasses.replace(
        optimizer, lr=c.warm_start.lr, schedule="constant", warmup_steps=2, total_steps=max(1, c.warm_start.steps)
    )
    return Settings(
        config=c,
        data=DataConfig(**{**c.data.to_dict(), "tasks": tuple(c.data.tasks)}),
        prompt=PromptConfig(**{**c.prompt.to_dict(), "instruction": c.prompt.instruction or INSTRUCTION}),
        step=step,
        warm_step=warm_step,
        optimizer=optimizer,
        warm_optimizer=warm_optimizer,
        checkpoint=CheckpointConfig(
            every=c.train.checkpoint_every, keep=c.train.keep_checkpoints, keep_every=c.train.keep_every
        ),
    )


def describe(c: ConfigDict, overridden: Sequence[str], base: ConfigDict | None = None) -> str:
    """Every field; `*` marks what the command line set, `+` what the config file set against configs/base.py."""
    base_values = flatten(base) if base is not None else {}
    lines = []
    for name, value in flatten(c).items():
        mark = "*" if name in overridden else "+" if base_values.get(name, value) != value else " "
        lines.append(f"{mark} {name} = {json.dumps(value)}")
    return "\n".join([*lines, "", "* set on the command line   + set by the config file   the rest: configs/base.py"])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of flattened fields that differ; lists and tuples are alike."""
    plain = lambda v: list(v) if isinstance(v, tuple) else v  # noqa: E731
    return [k for k in {**old, **new} if plain(old.get(k)) != plain(new.get(k))]


# ------------------------------------------------------------------------------------------- mains


def run_main(main: Callable[[], None], config_file: bool = True) -> None:
    """Run a main: flags first, then `main()`. Every refusal is one line on stderr and exit code 2."""
    if config_file:
        config_flags.DEFINE_config_file("config", None, "path of a config, as configs/NAME.py[:key=value,...]")

    def parse(argv: list[str]) -> list[str]:
        # What jax tries and does not find is no news; a refusal must be the only line.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
        # Config files import one another as configs.NAME, from wherever the command is run.
        for argument in argv:
            if argument.startswith("--config="):
                file = Path(argument.removeprefix("--config=").partition(":")[0]).resolve()
                if not file.is_file():
                    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], 1)
                    refuse(f"config file {file} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
                sys.path.insert(0, str(file.parent.parent))
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError, UserError) as error:
            refuse(" ".join(str(error.args[0] if error.args else error).split()))
        if len(rest) > 1:
            refuse(f"unknown argument {rest[1]!r}; flags start with --")
        if config_file:
            try:
                if flags.FLAGS["config"].value is None:
                    refuse("--config is missing; for example --config=configs/quickstart.py")
                flags.FLAGS["config"].value["seed"]  # a config that could not be loaded says so when it is read
            except OSError as error:
                refuse(" ".join(str(error).split()))
        return rest

    def guarded(_: list[str]) -> None:
        try:
            main()
        except UserError as error:
            refuse(str(error))

    app.run(guarded, flags_parser=parse)


def refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def base() -> ConfigDict | None:
    """configs/base.py, if the config in use has one beside it."""
    spec = importlib.util.find_spec("configs")
    found = spec is not None and importlib.util.find_spec("configs.base") is not None
    return importlib.import_module("configs.base").get_config() if found else None


def from_flags() -> tuple[ConfigDict, list[str]]:
    """The config of --config with the command line's overrides, and the names overridden."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return flags.FLAGS["config"].value, list(overrides)
