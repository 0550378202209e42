"""The telecom tasks as an `Environment`: what the model reads first, what its calls do, and when it is over."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rl_likelihood.envs import telecom
from rl_likelihood.envs.calls import Style, answer, message
from rl_likelihood.envs.protocol import End, Reply, Start
from rl_likelihood.envs.telecom_state import State, World, read_world
from rl_likelihood.envs.tools import Call, Tool, schema, signature
from rl_likelihood.shapes import UserError

Prompt = Literal["compact", "full"]
_PROMPTS = Path(__file__).parent / "prompts"
_ENDS: dict[str, End] = {"done": "done", "transfer_to_human_agents": "transfer"}


@dataclasses.dataclass
class Conversation:
    task: telecom.Task
    world: State
    made: list[Call] = dataclasses.field(default_factory=list)


def done(state: State) -> str:
    return ""


TOOLS = telecom.TOOLS | {"done": Tool(done, "End: the ticket is solved.")}


@dataclasses.dataclass(frozen=True)
class Telecom:
    """A task is {"task": its id}, as the rows of the data set have it."""

    world: World
    tasks: Mapping[str, telecom.Task]
    system: str
    style: Style = "hermes"

    def start(self, task: Mapping) -> Start:
        if task.get("task") not in self.tasks:
            raise UserError(f"the row's task is {task.get('task')!r}, which is no task of tau2's tasks.json")
        chosen = self.tasks[task["task"]]
        conversation = Conversation(chosen, telecom.start(self.world, chosen))
        messages = [("system", self.system), ("user", chosen.ticket)]
        return Start(conversation, messages, self._reference(conversation))

    def step(self, state: Conversation, text: str) -> Reply:
        reply, made, bad = answer(text, self.style, TOOLS, state.world, last=tuple(_ENDS))
        state.made += made
        end = _ENDS.get(made[-1].name, "") if made else ""
        return Reply("" if end else reply, end, len(made), bad, "" if end else self._reference(state))

    def _reference(self, state: Conversation) -> str:
        """The reference calls that have not been made, and the end."""
        calls = telecom.remaining(state.task, state.made)
        ended = calls and calls[-1].name in _ENDS
        return message(calls if ended else [*calls, Call("done", {})], self.style)

    def calls_f1(self, state: Conversation) -> float:
        """F1 of the calls made and the reference calls, compared as the reward compares them; `done` does not count."""
        made = [call for call in state.made if call.name != "done"]
        total = len(made) + len(state.task.gold)
        common = len(state.task.gold) - len(telecom.remaining(state.task, made))
        return 2 * common / total if total else 1.0

    def reward(self, state: Conversation, end: End) -> float:
        return telecom.reward(state.task, state.world, state.made, ended=end in _ENDS.values())


def read(folder: str | Path, prompt: Prompt = "compact", style: Style = "hermes", at_once: bool = False) -> Telecom:
    """The environment of a folder with tau2's telecom files."""
    return Telecom(read_world(folder), telecom.read_tasks(folder), system_prompt(prompt, style, folder, at_once), style)


def system_prompt(prompt: Prompt, style: Style, folder: str | Path = "", at_once: bool = False) -> str:
    """What the model is told before the ticket. `full` holds tau2's own policy and workflow, read from its folder.
    `at_once`: the model has one message for all its calls."""
    pace = "all calls in one message" if at_once else "one call at a time"
    look = "- Look the customer and the line up first. Look before you repair, and test after each repair.\n"
    filled = {"call": message([Call("reboot_device", {})], style), "pace": pace, "look": "" if at_once else look}
    if prompt == "compact":
        filled["tools"] = "\n".join(map(signature, TOOLS.values()))
    else:
        filled["tools"] = "\n".join(json.dumps(schema(tool)) for tool in TOOLS.values())
        filled["main_policy"] = _text(folder, "main_policy_solo.md")
        filled["tech_support_policy"] = _text(folder, "tech_support_workflow_solo.md")
    return (_PROMPTS / f"{prompt}.txt").read_text("utf-8").format(**filled).strip()


def _text(folder: str | Path, name: str) -> str:
    try:
        return (Path(folder) / name).read_text("utf-8").strip()
    except OSError as e:
        raise UserError(f"{Path(folder) / name} cannot be read ({e.strerror}); the prompt full needs it") from e
