"""From a ConfigDict to frozen settings, once.

python -m rl_likelihood.config        writes docs/config.md anew
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rl_likelihood import fields
from rl_likelihood.checks import validate
from rl_likelihood.errors import UserError, user_code
from rl_likelihood.fields import nearest, one_of
from rl_likelihood.grading.worker import run_file
from rl_likelihood.presets import PRESETS
from rl_likelihood.settings import Config
from rl_likelihood.tables import parse_reward


def tree(cls: type = Config) -> ConfigDict:
    """Every field of the settings with its default, as configs/base.py gives it."""
    out = ConfigDict()
    for name, kind, item in fields.user_fields(cls):
        out[name] = tree(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else item.default
    return out


def build(c: ConfigDict) -> Config:
    """The settings of a config, every field checked. UserError, in one sentence, for whatever is wrong without data
    and model."""
    config = fields.read(Config, c)
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, max_turns=config.sampler.max_turns))
    one_of("preset", config.preset, ("none", *PRESETS))
    if not config.reward.supervised:
        terms = parse_reward(config.reward.name, config.reward.file)
        config = dataclasses.replace(config, reward=dataclasses.replace(config.reward, terms=terms))
    validate(config)
    return config


def from_file(name: str) -> ConfigDict:
    """The config of `NAME.py[:key=value,...]`, from its get_config()."""
    file, _, argument = name.partition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"config file {file} does not exist; run from the folder that it is named from")
    root = str(path.parent.parent)
    sys.path.insert(0, root)  # configs import one another as configs.NAME
    try:
        with user_code(file):
            module = run_file(str(path), path.stat().st_mtime_ns)
            if not hasattr(module, "get_config"):
                raise UserError(f"config file {file} has no function get_config()")
            c = module.get_config(argument)
    finally:
        sys.path.remove(root)
    if not isinstance(c, ConfigDict):
        raise UserError(f"{file}: get_config() gives {c!r}; it must return the config that configs/base.py gives")
    return c


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """`key=value,key=value` after a config file's colon, typed like the defaults; unknown keys are refused."""
    values, given = dict(defaults), set()
    for item in arg.split(",") if arg else ():
        if not item:
            raise UserError(f"config arguments {arg!r} have a comma too many; write key=value,key=value")
        key, equals, text = item.partition("=")
        if key not in defaults:
            takes = ", ".join(defaults) or "no arguments"
            raise UserError(f"config argument {key!r} is unknown; this config takes {takes}")
        if not equals:
            raise UserError(f"config argument {key!r} has no value; write {key}=VALUE")
        if key in given:
            raise UserError(f"config argument {key!r} is given twice; give it once")
        given.add(key)
        kind = type(defaults[key])
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise UserError(f"config argument {key}={text!r} is not of type {kind.__name__}") from None
    return ConfigDict(values)


def flatten(config: ConfigDict | Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a ConfigDict or of settings, in the order of their declaration."""
    out: dict[str, Any] = {}
    if isinstance(config, ConfigDict):
        items = list(config.items())
    else:
        items = [(name, getattr(config, name)) for name, _, _ in fields.user_fields(type(config))]
    for key, value in items:
        nested = isinstance(value, ConfigDict) or dataclasses.is_dataclass(value)
        out |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def no_field(name: str, known: Collection[str], prefix: str = "") -> str:
    """What is wrong with a name that is none of the config's fields `known`. `prefix`: of a field in the advice."""
    inside = sorted((f for f in known if f.startswith(f"{name}.")), key=lambda f: not f.endswith(".name"))
    if inside:
        return f"{name} is a group of fields; set one of them, such as {prefix}{inside[0]}"
    if name in ("sampler.top_p", "sampler.top_k", "sampler.min_p"):
        return (
            f"the config has no field {name}: training has no cuts, because with log-probs of the whole distribution "
            f"they would bias the policy gradient; {prefix}{name.replace('sampler', 'eval')} is for evaluations"
        )
    near = nearest(name, known) or next((f for f in known if f.endswith(name.rpartition(".")[2])), "")
    hint = f"did you mean {prefix}{near}?" if near else "docs/config.md lists all fields"
    return f"the config has no field {name}; {hint}"


def apply_preset(c: ConfigDict, overridden: Sequence[str] = ()) -> None:
    """Set the fields of `c.preset`, but those that the command line set. Fields are known, names may not be."""
    one_of("preset", c.preset, ("none", *PRESETS))
    for name, value in PRESETS.get(c.preset, {}).items():
        if name not in overridden:
            c.update_from_flattened_dict({name: value})


def describe(c: ConfigDict, overridden: Sequence[str]) -> str:
    """Every field, with a mark: * set on the command line, p by the preset, + by the config file."""
    defaults = flatten(tree())
    preset = PRESETS.get(c.preset, {})
    lines = []
    for name, value in flatten(c).items():
        mark = "*" if name in overridden else "p" if name in preset else " "
        if mark == " " and defaults.get(name, value) != value:
            mark = "+"
        against = f"   (preset: {json.dumps(preset[name])})" if mark == "*" and name in preset else ""
        lines.append(f"{mark} {name} = {json.dumps(value)}{against}")
    legend = "* set on the command line   p by the preset   + by the config file   the others have their defaults"
    return "\n".join([*lines, "", legend])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of flattened fields that differ; lists and tuples are alike, and so are ~ and the home folder. A field
    that one of them lacks, as workdirs of other versions do, has its default."""
    defaults = flatten(tree())
    plain = lambda v: list(v) if isinstance(v, tuple) else os.path.expanduser(v) if isinstance(v, str) else v
    return [k for k in {**old, **new} if plain(old.get(k, defaults.get(k))) != plain(new.get(k, defaults.get(k)))]


def changed(c: Config, values: dict[str, Any]) -> Config:
    """The settings with other values of some fields, checked again."""
    out = tree()
    out.update_from_flattened_dict(flatten(c) | values)
    return build(out)


# Fields that may change between the runs of one workdir: they decide where it is computed, how much at one time, what
# is shown and what is kept, and every number stays the same, to rounding. Not free: compute_dtype, whose rounding is
# another; queue_depth, which decides how far behind a rollout is; train.steps, on which the learning rate depends.
_FREE = (
    *("mesh.", "pod.", "report.", "model.layers", "model.attention", "model.remat", "model.scratch_kib"),
    *("sampler.devices", "sampler.tensor", "sampler.slots", "sampler.width_multiple", "prompt.width_multiple"),
    *("train.micro_batch_prompts", "train.packing", "train.head_chunk"),
    *("train.checkpoint_every", "train.keep_checkpoints"),
    *("train.keep_every", "train.keep_optimizer", "train.best", "train.patience"),
    *("eval.batch_prompts", "eval.grader_workers"),
    *("judge.where", "judge.concurrency", "judge.timeout", "judge.attempts"),
    *("judge.max_calls", "judge.max_tokens", "judge.cache"),
)


def binding_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`differences` in fields that decide what is computed: those that make it another run."""
    free = lambda name: name in _FREE or f"{name.partition('.')[0]}." in _FREE
    return [name for name in differences(old, new) if not free(name)]


_SIGNS = {"least": "≥", "most": "≤", "above": ">", "below": "<", "zero_or": "0 or ≥"}


def document() -> str:
    """docs/config.md: a table of all fields."""
    out = ["# Every config field", "", "Made by `python -m rl_likelihood.config` from the declarations. Do not edit."]
    groups: dict[str, list[str]] = {}
    for name, (kind, item) in all_fields().items():
        group = name.rpartition(".")[0]
        allowed = " ".join(f"`{c}`" for c in fields.choices(kind))
        bounds = ", ".join(f"{_SIGNS[k]} {v:.10g}" for k, v in item.metadata["bounds"].items())
        row = f"| `{name}` | `{json.dumps(item.default)}` | {allowed or bounds} | {item.metadata['doc']} |"
        groups.setdefault(group, []).append(row)
    for group, rows in groups.items():
        out += [
            "",
            f"## {group or 'the run'}",
            "",
            "| field | default | values | meaning |",
            "|---|---|---|---|",
            *rows,
        ]
    return "\n".join(out) + "\n"


def all_fields(cls: type = Config, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """{dotted name: (type, field)} of every field there is."""
    out: dict[str, tuple[Any, dataclasses.Field]] = {}
    for name, kind, item in fields.user_fields(cls):
        nested = dataclasses.is_dataclass(kind)
        out |= all_fields(kind, f"{prefix}{name}.") if nested else {prefix + name: (kind, item)}
    return out


if __name__ == "__main__":
    Path("docs/config.md").write_text(document())
