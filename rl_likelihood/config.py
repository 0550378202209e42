"""From a ConfigDict to the rooms' frozen settings, once, and every refusal that needs neither data nor model."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from rl_likelihood.data.prompts import INSTRUCTION, PromptConfig
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.grading.graders import GRADERS
from rl_likelihood.learner.optimizer import OptimizerConfig
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.presets import PRESETS
from rl_likelihood.rewards import mixture
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.rewards.mixture import RewardConfig
from rl_likelihood.rewards.shaping import FilterConfig
from rl_likelihood.shapes import UserError

CHOICES = {
    "preset": ("none", *PRESETS),
    "reward.truncated": ("force_close", "floor", "drop"),
    "reward.baseline": ("none", "frozen", "live"),
    "reward.entropy_base": ("e", "2"),
    "reward.sft_chain": ("none", "answer", "both"),
    "filter.mode": ("none", "std_zero", "std_below", "ema"),
    "loss.span": ("auto", "chain", "response"),
    "loss.advantage": ("loo", "mean", "std", "std_clip"),
    "loss.aggregation": ("seq_sum", "seq_mean", "token_mean", "const"),
    "loss.ratio": ("none", "token", "sequence"),
    "loss.kl": ("none", "k1", "k2", "k3", "reward_k1"),
    "optim.schedule": ("cosine", "constant"),
    "prompt.score_delims": ("none", "close", "both"),
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "dense", "splash"),
    "model.layers": ("auto", "scan", "unroll"),
    "optim.momentum_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "attention", "full"),
    "data.source": ("reasoning_gym", "jsonl", "prepared"),
    "warm_start.chains": ("own", "given"),
    "eval.grader": ("none", *GRADERS),
    "report.wandb": ("off", "offline", "online"),
}
AT_LEAST = {
    "sampler.group_size": 1, "sampler.max_chain": 1, "sampler.max_sampled_answer": -1, "sampler.max_staleness": 0,
    "sampler.queue_depth": 1, "sampler.width_multiple": 0, "sampler.slots": 0,
    "train.steps": 0, "train.prompts_per_step": 1, "model.scratch_kib": -1,
    "train.micro_batch_prompts": -1, "train.head_chunk": 0, "train.eval_every": 0, "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1, "train.keep_every": 0, "warm_start.steps": 0, "warm_start.examples": 0,
    "warm_start.prompts": 1, "warm_start.prompts_per_step": 1, "eval.prompts": 0, "eval.samples": 0,
    "eval.grader_workers": 0, "eval.grader_seconds": 1,
    "eval.max_sampled_answer": 0, "eval.batch_prompts": 1,
    "eval.fast_prompts": 0, "eval.fast_samples": -1, "eval.mc_samples": 0, "eval.mc_prompts": 0,
    "optim.warmup_steps": 0, "optim.clip_norm": 0, "optim.lr": 0, "warm_start.lr": 0, "loss.ratio_cap": 0,
    "loss.clip_low": 0, "loss.clip_high": 0,
    "loss.kl_coef": 0, "report.samples_every": 0, "report.sample_prompts": 0, "report.console_samples": 0,
    "mesh.data": 0, "mesh.fsdp": 0, "mesh.tensor": 1, "prompt.examples": 0, "prompt.max_prompt": 1,
    "prompt.width_multiple": 0,
    "prompt.max_answer": 1, "reward.vote_train": 0, "reward.length_min": 0, "reward.overlong_max": 0,
    "sampler.tensor": 1, "pod.heartbeat": 1,
    "reward.overlong_cache": 0, "filter.threshold": 0, "filter.beta": 0, "proxy.every": 1,
}  # fmt: skip


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """`key=value,key=value` after a config file's colon, typed like the defaults; unknown keys are refused."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            takes = ", ".join(defaults) or "no arguments"
            raise UserError(f"config argument {key!r} is unknown; this config takes {takes}")
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
    devices = str(c.sampler.devices)
    if devices != "shared" and (not devices.isdigit() or int(devices) < 1):
        raise UserError(
            f"sampler.devices is {c.sampler.devices!r}; it must be shared, or how many of each process's devices are "
            "the sampler's alone"
        )
    if c.model.preset and c.model.preset not in SIZES:
        raise UserError(f"model.preset is {c.model.preset!r}; it must be one of {', '.join(SIZES)}")
    g, p, m = c.sampler.group_size, c.train.prompts_per_step, c.train.micro_batch_prompts
    if g < 2 and c.reward.name != "sft":
        raise UserError(
            f"sampler.group_size is {g}, but reward {c.reward.name!r} compares a chain with the others of its group "
            "(leave-one-out); it must be at least 2"
        )
    if m > 0 and p % m:
        near = largest_divisor(p, m)
        raise UserError(
            f"train.micro_batch_prompts is {m}, which does not divide train.prompts_per_step = {p}; "
            f"the nearest below that does is {near}"
        )
    validate_reward(c)
    if c.sampler.temperature <= 0:
        raise UserError(f"sampler.temperature is {c.sampler.temperature}; it must be above 0 (evaluation has its own)")
    for name in ("eval.max_sampled_answer", "sampler.max_sampled_answer"):
        if 0 < get(c, name) < c.prompt.max_answer:
            raise UserError(
                f"{name} is {get(c, name)}, too short to write every answer of prompt.max_answer = "
                f"{c.prompt.max_answer} tokens; set it to at least that"
            )
    for name in ("optim.b1", "optim.b2", "optim.final_lr_fraction", "proxy.decay"):
        if not 0 <= get(c, name) <= 1 or (get(c, name) == 1 and name != "optim.final_lr_fraction"):
            raise UserError(f"{name} is {get(c, name)}; it must be from 0 to below 1")
    if c.loss.ratio != "none" and (c.loss.clip_low or c.loss.clip_high):
        raise UserError(
            f"loss.ratio is {c.loss.ratio!r}, but loss.clip_low or loss.clip_high clips the ratio already; "
            "set one of them off"
        )
    if c.loss.kl == "none" and c.loss.kl_coef:
        raise UserError(f"loss.kl_coef is {c.loss.kl_coef} but loss.kl is 'none'; choose k2, k3 or reward_k1")
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


def validate_reward(c: ConfigDict) -> None:
    """Refuse rewards that cannot be read, or that ask for what the other fields do not give."""
    r, name = c.reward, c.reward.name
    if r.floor >= 0:
        raise UserError(f"reward.floor is {r.floor}, a log-prob; it must be below 0, for example -10")
    if len(r.base_rl) != 3:
        raise UserError(f"reward.base_rl is {r.base_rl}; it must be three numbers: right, wrong, unreadable")
    if r.overlong_max and r.overlong_cache > r.overlong_max:
        raise UserError(
            f"reward.overlong_cache is {r.overlong_cache}, more than reward.overlong_max = {r.overlong_max}; "
            f"set it to at most that"
        )
    if r.vote_train > c.sampler.group_size or r.vote_train == 1:
        raise UserError(
            f"reward.vote_train is {r.vote_train}; it must be 0, or from 2 to sampler.group_size = "
            f"{c.sampler.group_size}"
        )
    if name == "sft":
        if c.loss.answer_term != 1:
            raise UserError(
                f"loss.answer_term is {c.loss.answer_term}, but with reward.name='sft' it is the only term; set it to 1"
            )
        return
    if r.sft_chain != "none":
        raise UserError(f"reward.sft_chain is {r.sft_chain!r}, which goes with reward.name='sft', not {name!r}")
    names = [t.name for t in mixture.parse(name)]
    if c.loss.span == "response" and sampled_answer(c) == 0:
        raise UserError(
            "loss.span is 'response', chain and sampled answer, but sampler.max_sampled_answer is 0; set it to -1"
        )
    if reads_answer(c) and sampled_answer(c) == 0:
        raise UserError(
            f"reward.name is {name!r}, which reads a sampled answer, but sampler.max_sampled_answer is 0; "
            f"set it to -1, or to at least prompt.max_answer = {c.prompt.max_answer}"
        )
    if r.baseline != "none" and "rlpr" not in names:
        raise UserError(
            f"reward.baseline is {r.baseline!r}, which is taken off by the term rlpr, but reward.name is {name!r}; "
            "set it to none"
        )
    if r.baseline == "frozen" and c.prompt.score_delims != "none":
        raise UserError(
            f"reward.baseline is 'frozen', a score of the answer alone, but prompt.score_delims is "
            f"{c.prompt.score_delims!r}; set it to none, so that both scores cover the same tokens"
        )
    if any(n.startswith("nover") for n in names) and "format" not in names:
        raise UserError(
            f"reward.name is {name!r}; the terms of NOVER are gated by the term format: write 'format + {name}'"
        )
    if r.vote_train and "majority_vote" not in names:
        raise UserError(f"reward.vote_train is {r.vote_train}, which goes with the term majority_vote; set it to 0")
    if c.filter.mode == "std_below" and not c.filter.threshold:
        raise UserError("filter.mode is 'std_below' but filter.threshold is 0; set the least standard deviation kept")


# Rewards that by default credit the chain alone; all others credit the whole response.
_OF_CHAIN = {*OBJECTIVES, "length", "overlong", "repetition", "format", "format_open_r1", "tag_count"}


def _terms(c: ConfigDict) -> tuple[mixture.Term, ...]:
    return () if c.reward.name == "sft" else mixture.parse(c.reward.name)


def reads_answer(c: ConfigDict) -> bool:
    """Whether the reward, or the span of the policy term, asks for answers that the policy samples itself."""
    if c.reward.name == "sft":
        return False
    names = {t.name for t in _terms(c)}
    if names & set(mixture.FROM_ANSWER) or c.loss.span == "response":
        return True
    return c.loss.span == "auto" and not names <= _OF_CHAIN


def sampled_answer(c: ConfigDict) -> int:
    """Tokens that a sampled answer may have in training; 0: none is sampled."""
    n = c.sampler.max_sampled_answer
    return n if n >= 0 else c.prompt.max_answer if reads_answer(c) else 0


# Sizes with random weights, over bytes: width, layers, heads, key/value heads, MLP width.
SIZES: dict[str, tuple[int, int, int, int, int]] = {"tiny": (128, 6, 4, 2, 512), "nano": (32, 2, 2, 1, 64)}


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Save every `every` steps; keep the last `keep` and each step that `keep_every` divides (0: none besides)."""

    every: int = 50
    keep: int = 2
    keep_every: int = 0


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


def scores_bare(c: ConfigDict) -> bool:
    """Whether each step also scores the reference answers without a chain."""
    return c.reward.name != "sft" and (c.report.no_chain or c.reward.baseline == "live")


def build(c: ConfigDict) -> Settings:
    """Settings of a validated config."""
    validate(c)
    is_sft = c.reward.name == "sft"
    stale = c.sampler.max_staleness > 0
    answer = sampled_answer(c)
    room = c.sampler.max_chain + answer
    span = "chain" if is_sft or not reads_answer(c) else "response"
    loss = LossConfig(
        answer_term=c.loss.answer_term,
        policy_term=0.0 if is_sft else 1.0,
        aggregation=c.loss.aggregation,
        max_tokens=room,
        advantage=c.loss.advantage,
        ratio="token" if stale and c.loss.ratio == "none" else c.loss.ratio,
        ratio_cap=c.loss.ratio_cap,
        clip_low=c.loss.clip_low or None,
        clip_high=c.loss.clip_high or None,
        kl=c.loss.kl,
        kl_coef=c.loss.kl_coef,
    )
    reward = RewardConfig(
        terms=mixture.parse("log_prob" if is_sft else c.reward.name),
        length_min=c.reward.length_min,
        overlong_max=c.reward.overlong_max or float(room),
        overlong_cache=c.reward.overlong_cache or (c.reward.overlong_max or float(room)) / 4,
        entropy_base=c.reward.entropy_base,
    )
    step = StepConfig(
        reward=reward,
        loss=loss,
        filter=FilterConfig(mode=c.filter.mode, threshold=c.filter.threshold, beta=c.filter.beta),
        policy_span=c.loss.span if c.loss.span != "auto" else span,
        supervise_chain=c.reward.sft_chain == "both",
        two_branches=answer > 0,
        baseline=c.reward.baseline,
        temperature=c.sampler.temperature,
        truncated=c.reward.truncated,
        floor=c.reward.floor,
        proxy_every=c.proxy.every,
        proxy_decay=c.proxy.decay,
        micro_batch_prompts=max(0, c.train.micro_batch_prompts),  # a run that measures sets its own
        head_chunk=c.train.head_chunk,
    )
    warm_rows = c.warm_start.prompts_per_step
    warm_step = StepConfig(
        # A mean over tokens per row: chains of every length count alike.
        reward=RewardConfig(terms=mixture.parse("avg_log_prob")),
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
        momentum_dtype=c.optim.momentum_dtype,
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


def apply_preset(c: ConfigDict, overridden: Sequence[str] = ()) -> None:
    """Set the fields of `c.preset`, but those that the command line set. Fields are known, names may not be."""
    if c.preset not in ("none", *PRESETS):
        near = difflib.get_close_matches(str(c.preset), PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"preset is {c.preset!r}; {hint}it must be none or one of {', '.join(PRESETS)}")
    for name, value in PRESETS.get(c.preset, {}).items():
        if name not in overridden:
            c.update_from_flattened_dict({name: value})


def describe(c: ConfigDict, overridden: Sequence[str], base: ConfigDict | None = None) -> str:
    """Every field, with a mark: * set on the command line, p by the preset, + by the config file."""
    base_values = flatten(base) if base is not None else {}
    preset = PRESETS.get(c.preset, {})
    lines = []
    for name, value in flatten(c).items():
        mark = "*" if name in overridden else "p" if name in preset else " "
        if mark == " " and base_values.get(name, value) != value:
            mark = "+"
        against = f"   (preset: {json.dumps(preset[name])})" if mark == "*" and name in preset else ""
        lines.append(f"{mark} {name} = {json.dumps(value)}{against}")
    legend = "* set on the command line   p by the preset   + by the config file   the rest: configs/base.py"
    return "\n".join([*lines, "", legend])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of flattened fields that differ; lists and tuples are alike."""
    plain = lambda v: list(v) if isinstance(v, tuple) else v  # noqa: E731
    return [k for k in {**old, **new} if plain(old.get(k)) != plain(new.get(k))]


# Fields that may change between the runs of one workdir: they decide where it is computed and in what portions, what
# is shown and what is kept, and every number stays the same, to rounding. Not free: compute_dtype, whose rounding is
# another; queue_depth, which decides how far behind a rollout is; train.steps, on which the learning rate depends.
_FREE = (
    "mesh.", "pod.", "report.", "model.layers", "model.attention", "model.remat", "model.scratch_kib",
    "sampler.devices", "sampler.tensor", "sampler.slots", "sampler.width_multiple", "prompt.width_multiple",
    "train.micro_batch_prompts", "train.head_chunk", "train.checkpoint_every", "train.keep_checkpoints",
    "train.keep_every", "eval.batch_prompts", "eval.grader_workers",
)  # fmt: skip


# Fields of earlier versions that were free, in workdirs that these began.
_GONE = ("model.scan_layers",)


def binding_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`differences` in fields that decide what is computed: those that make it another run."""
    free = lambda name: name in _FREE or name in _GONE or f"{name.partition('.')[0]}." in _FREE  # noqa: E731
    return [name for name in differences(old, new) if not free(name)]
