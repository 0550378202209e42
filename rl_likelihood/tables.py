"""The tables of rewards, graders and environments: ours, and those of the user's own files."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.envs.deadline import Failed, in_time
from rl_likelihood.envs.protocol import METHODS, Environment, Reply, Start, number_of, problem_of
from rl_likelihood.envs.table import ENVIRONMENTS, EnvConfig
from rl_likelihood.errors import UserError, located
from rl_likelihood.grading.graders import GRADERS, Grader
from rl_likelihood.grading.worker import run_file
from rl_likelihood.rewards import reward_sum
from rl_likelihood.rewards.reward import Reward, Term
from rl_likelihood.rewards.table import REWARDS, grader_reward
from rl_likelihood.shapes import ENVIRONMENT, Example


def reward_table(file: str = "") -> dict[str, Reward]:
    """The rewards by name: those of `rewards.table`, one for each grader, and the user's own from `file`."""
    graders = {name: grader_reward(row.about) for name, row in grader_table(file).items()}
    return {**REWARDS, **graders, **getattr(user_file(file), "REWARDS", {})}


def grader_table(file: str = "") -> dict[str, Grader]:
    """The graders by name: those of `grading.graders`, and the user's own from `file`."""
    own = getattr(user_file(file), "GRADERS", {})
    for name, row in own.items():
        if not isinstance(row, Grader):
            raise UserError(
                f"reward.file is {file!r}, whose GRADERS has {name!r} = {row!r}; write Grader(function, 'about')"
            )
    return {**GRADERS, **own}


def environment_table(file: str = "") -> Mapping[str, Callable[[EnvConfig], Environment]]:
    """The environments by name: those of `envs.table`, and the user's own from `file`."""
    own = getattr(user_file(file, "env.file", ("ENVIRONMENTS",)), "ENVIRONMENTS", {})
    if not isinstance(own, dict) or not all(isinstance(name, str) and name != "none" for name in own):
        raise UserError(f"env.file is {file!r}, whose ENVIRONMENTS is {own!r}; write {{'name': lambda cfg: Yours()}}")
    return {**ENVIRONMENTS, **own}


@functools.lru_cache(maxsize=4)
def environment_of(cfg: EnvConfig) -> Environment:
    """The environment that the config names, made once: one object plays all conversations."""
    try:
        made = environment_table(cfg.file)[cfg.name](cfg)
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"env.name is {cfg.name!r}, which cannot be made ({type(e).__name__}: {e}); in env.file an environment is "
            "written {'name': lambda cfg: Yours()}"
        ) from e
    missing = [name for name in METHODS if isinstance(made, type) or not callable(getattr(made, name, None))]
    if missing:
        what = f"the class {made.__name__} itself" if isinstance(made, type) else f"a {type(made).__name__}"
        raise UserError(
            f"env.name is {cfg.name!r}, which makes {what} without the method {missing[0]}; return an object "
            f"with the methods {', '.join(METHODS)}"
        )
    for name in METHODS:
        takes = list(inspect.signature(getattr(Environment, name)).parameters)[1:]
        try:
            inspect.signature(getattr(made, name)).bind(*takes)
        except TypeError as e:
            raise UserError(f"env.name is {cfg.name!r}, whose method {name} must take ({', '.join(takes)}): {e}") from e
    return made


def begun(cfg: EnvConfig, example: Example) -> Start:
    """The beginning of the conversation about a row, within env.seconds. UserError names the row."""
    check = json.loads(example.check or "{}")
    if ENVIRONMENT not in check:
        raise UserError(
            f"row {example.id} has no field 'environment', which tells env.name = {cfg.name!r} its task; add it"
        )

    start = functools.partial(environment_of(cfg).start, check[ENVIRONMENT])
    (value,) = in_time([start], cfg.seconds, functools.partial(problem_of, kind=Start))
    if not isinstance(value, Failed):
        return value
    raise UserError(
        f"row {example.id}: the environment {cfg.name} cannot begin with {check[ENVIRONMENT]!r:.200} "
        f"({value.why.removeprefix('UserError: ')}); "
        "mend its method start or the row's field 'environment'"
    )


def try_out(cfg: EnvConfig, example: Example, state: Any) -> None:
    """Sends an empty message to a conversation that has begun, and asks for its reward. UserError if either fails,
    because then all conversations may."""
    environment = environment_of(cfg)
    step, reward = functools.partial(environment.step, state, ""), environment.reward
    (reply,) = in_time([step], cfg.seconds, functools.partial(problem_of, kind=Reply))
    method, failed = "step", reply
    if not isinstance(reply, Failed):
        (failed,) = in_time([lambda: number_of(reward(state, reply.end or "out_of_turns"))], cfg.seconds)
        method = "reward"
    if isinstance(failed, Failed):
        raise UserError(
            f"row {example.id}: the environment {cfg.name} fails in its method {method} after an empty message of the "
            f"model ({failed.why}); mend the method"
        )


def refuse_unscored(cfg: EnvConfig, terms: Sequence[Term], referenced: bool) -> None:
    """UserError if the reward or the credit reads what the environment lacks. `referenced`: a training row's
    conversation begins with a reference."""
    if any(t.name == "calls_f1" for t in terms) and not hasattr(environment_of(cfg), "calls_f1"):
        raise UserError(
            f"reward.name has 'calls_f1', but the environment {cfg.name} has no method calls_f1(state); write it or "
            "choose another reward"
        )
    reading = [
        f"reward.name has {t.name!r}"
        for t in terms
        if "conversation" not in t.reward.needs and "reference" in t.reward.reads
    ]
    reading += ["env.credit is 'turn'"] * (cfg.credit == "turn")
    if reading and not referenced:
        raise UserError(
            f"{reading[0]}, which scores references, but the environment {cfg.name} gives none: Start.reference is "
            "empty in every training row; fill it or choose the reward environment with env.credit=outcome"
        )


def parse_reward(name: str, file: str = "") -> tuple[Term, ...]:
    return reward_sum.parse(name, reward_table(file))


def user_file(file: str, field: str = "reward.file", tables: tuple[str, ...] = ("REWARDS", "GRADERS")) -> Any:
    """The user's Python file that a field names, with one of these tables, executed; None if there is none."""
    if not file:
        return None
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"{field} is {file!r}, which is no file; give the path of a Python file")
    try:
        module = run_file(str(path), path.stat().st_mtime_ns)
    except (Exception, SystemExit) as e:
        raise UserError(f"{field} is {file!r}, which cannot be run ({located(e)})") from e
    if not any(hasattr(module, name) for name in tables):
        raise UserError(f"{field} is {file!r}, which has none of {', '.join(tables)}; CONTRIBUTING.md shows them")
    return module
