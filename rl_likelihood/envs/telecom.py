"""tau2-bench's telecom tasks: 43 tools over a carrier's records and a phone, what a task asserts, and its reward.

Our own implementation of tau2's solo mode. One agent reads a ticket and has the tools of both sides. Replies are
identical to tau2's. It needs tau2's files (docs/tools.md); a task starts in microseconds.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rl_likelihood.envs import telecom_agent, telecom_device
from rl_likelihood.envs.calls import Style, answer, make, message
from rl_likelihood.envs.protocol import End, Reply, Start
from rl_likelihood.envs.telecom_faults import FAULTS
from rl_likelihood.envs.telecom_phone import band, data_works, mms_works, speed
from rl_likelihood.envs.telecom_state import State, World, fresh, read_world
from rl_likelihood.envs.tools import Call, Tool, ToolError, schema, signature
from rl_likelihood.errors import UserError

TOOLS = telecom_agent.TOOLS | telecom_device.TOOLS
Prompt = Literal["compact", "full"]
_PROMPTS = Path(__file__).parent / "prompts"
_ENDS: dict[str, End] = {"done": "done", "transfer_to_human_agents": "transfer"}


class Gold(NamedTuple):
    """A reference call. Of its arguments those of `compared` count; None: those that the other call gives."""

    call: Call
    compared: tuple[str, ...] | None = None


class Assertion(NamedTuple):
    name: str
    arguments: Mapping[str, Any]
    holds: bool = True  # what it must be


@dataclasses.dataclass(frozen=True)
class Task:
    id: str
    ticket: str
    faults: tuple[Call, ...]
    gold: tuple[Gold, ...]
    assertions: tuple[Assertion, ...]
    basis: tuple[str, ...]  # ENV_ASSERTION, ACTION

    @property
    def issue(self) -> str:
        """service_issue, mobile_data_issue or mms_issue."""
        return self.id.partition("]")[0].removeprefix("[")

    @property
    def reference(self) -> list[Call]:
        return [gold.call for gold in self.gold]


# ---------------------------------------------------------------------------------------- a task's world


def start(world: World, task: Task) -> State:
    """The world of its own in which the task's faults have happened."""
    state = fresh(world)
    for name, arguments in task.faults:
        try:
            FAULTS[name](state, **arguments)
        except (KeyError, TypeError, ToolError) as e:
            raise UserError(f"task {task.id}: the initialization action {name}({dict(arguments)}) fails ({e})") from e
    return state


def call(state: State, name: str, arguments: Mapping[str, Any]) -> str:
    """What the tool replies; it may change the state. A bad call is replied to in words, and changes nothing."""
    return make(Call(name, arguments), TOOLS, state)[1]


# ---------------------------------------------------------------------------------------- reward


def assertions_hold(state: State, task: Task) -> bool:
    return all(ASSERTIONS[name](state, **arguments) == holds for name, arguments, holds in task.assertions)


def actions_made(task: Task, calls: Sequence[Call]) -> bool:
    """Whether every reference call was made."""
    return all(any(_matches(gold, made) for made in calls) for gold in task.gold)


def remaining(task: Task, calls: Sequence[Call]) -> list[Call]:
    """The reference calls that have not been made, in their order."""
    left = list(calls)
    out = []
    for gold in task.gold:
        made = next((call for call in left if _matches(gold, call)), None)
        if made is None:
            out.append(gold.call)
        else:
            left.remove(made)
    return out


def _matches(gold: Gold, made: Call) -> bool:
    if gold.call.name != made.name:
        return False
    compared = made.arguments if gold.compared is None else gold.compared
    return all(
        (name in made.arguments) == (name in gold.call.arguments)
        and made.arguments.get(name) == gold.call.arguments.get(name)
        for name in compared
    )


def reward(task: Task, state: State, calls: Sequence[Call], ended: bool) -> float:
    """tau2's: 1 if what the task's basis names holds, else 0; and 0 unless the agent ended the conversation."""
    if not ended:
        return 0.0
    right = ("ENV_ASSERTION" not in task.basis or assertions_hold(state, task)) and (
        "ACTION" not in task.basis or actions_made(task, calls)
    )
    return float(right)


def _internet_speed(state: State, expected_speed: float, expected_desc: str | None = None) -> bool:
    mbps = speed(state)
    name = "No Connection" if mbps is None else band(mbps)[0]
    named = expected_desc is None or name.lower() == expected_desc.lower()
    return (mbps or 0.0) >= expected_speed and named


def _data_refueling_amount(state: State, customer_id: str, line_id: str, expected_amount: float) -> bool:
    return abs(telecom_agent.own_line(state, customer_id, line_id)["data_refueling_gb"] - expected_amount) < 1e-6


def _no_overdue_bill(state: State, overdue_bill_id: str) -> bool:
    bill = state.bills.get(overdue_bill_id)
    return bill is None or bill["status"] == "Paid"


ASSERTIONS: dict[str, Callable[..., bool]] = {
    "assert_service_status": lambda state, expected_status: state.phone.network_connection_status == expected_status,
    "assert_mobile_data_status": lambda state, expected_status: data_works(state) == expected_status,
    "assert_internet_speed": _internet_speed,
    "assert_can_send_mms": lambda state, expected_status: mms_works(state) == expected_status,
    "assert_data_refueling_amount": _data_refueling_amount,
    "assert_no_overdue_bill": _no_overdue_bill,
}

# ---------------------------------------------------------------------------------------- the environment


@dataclasses.dataclass
class Conversation:
    task: Task
    world: State
    made: list[Call] = dataclasses.field(default_factory=list)


def done(state: State) -> str:
    return ""


CONVERSATION_TOOLS = TOOLS | {"done": Tool(done, "End: the ticket is solved.")}


@dataclasses.dataclass(frozen=True)
class Telecom:
    """A task is {"task": its id}, as the rows of the data set have it."""

    world: World
    tasks: Mapping[str, Task]
    system: str
    style: Style = "hermes"

    def start(self, task: Mapping) -> Start:
        if task.get("task") not in self.tasks:
            raise UserError(f"the row's task is {task.get('task')!r}, which tau2's tasks.json does not have")
        chosen = self.tasks[task["task"]]
        conversation = Conversation(chosen, start(self.world, chosen))
        messages = [("system", self.system), ("user", chosen.ticket)]
        return Start(conversation, messages, self._reference(conversation))

    def step(self, state: Conversation, text: str) -> Reply:
        reply, made, bad = answer(text, self.style, CONVERSATION_TOOLS, state.world, last=tuple(_ENDS))
        state.made += made
        end = _ENDS.get(made[-1].name, "") if made else ""
        return Reply("" if end else reply, end, len(made), bad, "" if end else self._reference(state))

    def _reference(self, state: Conversation) -> str:
        """The reference calls that have not been made, and the end."""
        calls = remaining(state.task, state.made)
        ended = calls and calls[-1].name in _ENDS
        return message(calls if ended else [*calls, Call("done", {})], self.style)

    def calls_f1(self, state: Conversation) -> float:
        """F1 of the calls made and the reference calls, compared as the reward compares them; `done` does not count."""
        made = [call for call in state.made if call.name != "done"]
        total = len(made) + len(state.task.gold)
        common = len(state.task.gold) - len(remaining(state.task, made))
        return 2 * common / total if total else 1.0

    def reward(self, state: Conversation, end: End) -> float:
        return reward(state.task, state.world, state.made, ended=end in _ENDS.values())


def system_prompt(prompt: Prompt, style: Style, folder: str | Path = "", at_once: bool = False) -> str:
    """What the model is told before the ticket. `full` holds tau2's own policy and workflow, read from its folder.
    `at_once`: the model has one message for all its calls."""
    pace = "all calls in one message" if at_once else "one call at a time"
    look = "- Look the customer and the line up first. Look before you repair, and test after each repair.\n"
    filled = {"call": message([Call("reboot_device", {})], style), "pace": pace, "look": "" if at_once else look}
    if prompt == "compact":
        filled["tools"] = "\n".join(map(signature, CONVERSATION_TOOLS.values()))
    else:
        filled["tools"] = "\n".join(json.dumps(schema(tool)) for tool in CONVERSATION_TOOLS.values())
        filled["main_policy"] = _text(folder, "main_policy_solo.md")
        filled["tech_support_policy"] = _text(folder, "tech_support_workflow_solo.md")
    return (_PROMPTS / f"{prompt}.txt").read_text("utf-8").format(**filled).strip()


def _text(folder: str | Path, name: str) -> str:
    try:
        return (Path(folder) / name).read_text("utf-8").strip()
    except OSError as e:
        raise UserError(f"{Path(folder) / name} cannot be read ({e.strerror}); the prompt full needs it") from e


# ---------------------------------------------------------------------------------------- files


def read(folder: str | Path, prompt: Prompt = "compact", style: Style = "hermes", at_once: bool = False) -> Telecom:
    """The environment of a folder with tau2's telecom files."""
    return Telecom(read_world(folder), read_tasks(folder), system_prompt(prompt, style, folder, at_once), style)


def make_task(record: Mapping) -> Task:
    """A record of tau2's tasks.json. UserError says what it lacks."""
    try:
        begin, end = record.get("initial_state") or {}, record["evaluation_criteria"]
        task = Task(
            id=record["id"],
            ticket=record["ticket"],
            faults=tuple(Call(a["func_name"], a["arguments"]) for a in begin.get("initialization_actions") or ()),
            gold=tuple(_gold(action) for action in end["actions"] or ()),
            assertions=tuple(
                Assertion(a["func_name"], a["arguments"], a["assert_value"]) for a in end["env_assertions"] or ()
            ),
            basis=tuple(end["reward_basis"]),
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"a task of tasks.json lacks or misspells the field {e}; fetch the file again") from e
    unknown = [f.name for f in task.faults if f.name not in FAULTS]
    unknown += [a.name for a in task.assertions if a.name not in ASSERTIONS]
    unknown += [basis for basis in task.basis if basis not in ("ENV_ASSERTION", "ACTION")]
    if unknown:
        raise UserError(f"task {task.id} names {unknown[0]}, which is not known; take the task out")
    return task


def _gold(action: Mapping) -> Gold:
    compared = action.get("compare_args")
    return Gold(Call(action["name"], action["arguments"]), None if compared is None else tuple(compared))


def read_tasks(folder: str | Path) -> dict[str, Task]:
    """id -> task, in the order of tasks.json or tasks.json.gz."""
    tasks = (make_task(record) for record in read_json(Path(folder) / "tasks.json"))
    return {task.id: task for task in tasks}


def read_json(path: Path) -> Any:
    """What a file of JSON holds, which may be packed, with .gz after its name."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); name a folder with tau2's telecom files") from e
    except (ValueError, EOFError) as e:
        raise UserError(f"{path} is not JSON ({e}); fetch it again") from e
