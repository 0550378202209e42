"""The table of environments: one row each, made from the config's section `env`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rl_likelihood.envs import telecom
from rl_likelihood.envs.calculator import Calculator
from rl_likelihood.envs.calls import Style
from rl_likelihood.envs.protocol import Environment
from rl_likelihood.errors import UserError
from rl_likelihood.fields import field


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """A conversation with an environment, instead of one answer."""

    name: str = field("none", "environment that replies to the model (docs/tools.md); none: single-turn answers")
    file: str = field("", "your own Python file with more ENVIRONMENTS (docs/tools.md)")
    path: str = field("", "the folder with the files that the environment needs: tau2's, for telecom")
    style: Style = field("hermes", "how the model writes a tool call")
    prompt: Literal["compact", "full"] = field("compact", "telecom: our summary of the policy, or tau2's whole policy")
    seconds: float = field(
        10.0,
        "limit in seconds for the replies to one message of every conversation; slower conversations are dropped",
        above=0,
        most=86_400,
    )
    credit: Literal["outcome", "turn"] = field(
        "outcome",
        "what each message earns: outcome, the conversation's reward; turn, also its gain in the likelihood of the "
        "reference calls (IGPO)",
    )
    max_turns: int = 0  # sampler.max_turns; the program sets it


def _telecom(cfg: EnvConfig) -> Environment:
    if not cfg.path:
        raise UserError("env.name is 'telecom', but env.path is empty; name the folder with tau2's files")
    return telecom.read(cfg.path, cfg.prompt, cfg.style, at_once=cfg.max_turns == 1)


def _calculator(cfg: EnvConfig) -> Environment:
    if cfg.path:
        raise UserError(f"env.path is {cfg.path!r}, but env.name is 'calculator', which reads no files; leave it empty")
    return Calculator(cfg.style)


ENVIRONMENTS: Mapping[str, Callable[[EnvConfig], Any]] = {
    "calculator": _calculator,
    "telecom": _telecom,
}
