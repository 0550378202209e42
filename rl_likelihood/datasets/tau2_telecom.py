"""tau2-bench telecom (Barres et al. 2025): which tool does a phone line's agent call next?

Read from tasks.json, split_tasks.json, db.toml and user_db.toml together. The environment (envs/telecom.py) plays
every task, so histories hold its real replies. Answers are calls as sorted JSON. `extra` names the task, the
arguments that count where not all do (`compare_args`), and in rows of reference calls the other remaining calls, which
may as well come next (`alternatives`). Splits are tau2's, by task.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.datasets.common import DataSet, Location, Row
from rl_likelihood.envs import telecom
from rl_likelihood.envs.calls import text_of
from rl_likelihood.envs.telecom_expert import solve
from rl_likelihood.envs.telecom_state import World, make_world, read_toml
from rl_likelihood.envs.tools import Call
from rl_likelihood.errors import UserError
from rl_likelihood.grading.code import COMPARED
from rl_likelihood.shapes import Example

_FILES = ("tasks.json", "split_tasks.json", "db.toml", "user_db.toml")
_FOLDER = (
    "https://raw.githubusercontent.com/sierra-research/tau2-bench/"
    "a2c024725189473d2d7cea3a5cfdbcc67478e41f/data/tau2/domains/telecom/"
)
_NEXT = "Which call comes next? Answer with it alone."
_ALL = "Which calls solve this ticket? Answer with a JSON list of these alone, in order, without look-ups and done."


class Turn(NamedTuple):
    """Calls are sorted JSON. `alternatives`: other calls that may come next as well.
    `compared`: of each call of the answer the arguments that count, None for all (tau2's compare_args)."""

    history: tuple[tuple[str, str], ...]  # (call, reply)
    answer: str
    alternatives: tuple[str, ...] = ()
    thought: str = ""
    compared: tuple[tuple[str, ...] | None, ...] = (None,)


Build = Callable[[World, telecom.Task], list[Turn]]
Reader = Callable[[list[tuple[Path, Path]]], Iterator[tuple[Location, dict | str]]]


def turns(world: World, task: telecom.Task, calls: Sequence[Call], thoughts: Sequence[str] = ()) -> list[Turn]:
    """One row for each of the calls, with the environment's real replies to those before it."""
    state = telecom.start(world, task)
    texts = [text_of(call) for call in calls]
    rows, history, compared = [], [], {gold.call.name: gold.compared for gold in task.gold}
    for n, call in enumerate(calls):
        thought = thoughts[n] if thoughts else ""
        rows.append(Turn(tuple(history), texts[n], thought=thought, compared=(compared.get(call.name),)))
        history.append((texts[n], telecom.call(state, *call)))
    return rows


def reference_turns(world: World, task: telecom.Task) -> list[Turn]:
    """One row for each reference call. Its alternatives are the later ones, because their order is nearly free."""
    rows = turns(world, task, task.reference)
    return [row._replace(alternatives=tuple(later.answer for later in rows[n:])) for n, row in enumerate(rows, start=1)]


def expert_turns(world: World, task: telecom.Task) -> list[Turn]:
    """The expert's calls with its thoughts, `done` at the end where it does not transfer."""
    acts = [turn.act for turn in solve(world, task)[0]]
    calls, thoughts = [act.call for act in acts], [act.thought for act in acts]
    if calls[-1].name != "transfer_to_human_agents":
        calls, thoughts = [*calls, Call("done", {})], [*thoughts, "The problem is gone."]
    return turns(world, task, calls, thoughts)


def whole(world: World, task: telecom.Task) -> list[Turn]:
    """One row: all reference calls as one JSON list."""
    texts = [text_of(call) for call in task.reference]
    answer = json.dumps([json.loads(text) for text in texts], ensure_ascii=False)
    return [Turn((), answer, compared=tuple(gold.compared for gold in task.gold))]


def conversation(world: World, task: telecom.Task) -> list[Turn]:
    """One row: all reference calls as one JSON list; the expert's messages, with its thoughts, as JSON too."""
    messages = [{"thought": turn.thought, "calls": [json.loads(turn.answer)]} for turn in expert_turns(world, task)]
    (row,) = whole(world, task)
    return [row._replace(thought=json.dumps(messages, ensure_ascii=False))]


def question(system: str, task: telecom.Task, turn: Turn, asked: str) -> str:
    """What the model reads: the system prompt, the ticket, and the calls so far with their replies."""
    history = "\n".join(f"{call}\n{reply}\n" for call, reply in turn.history)
    so_far = f"Calls so far, each with its reply:\n{history}\n" if history else ""
    return f"{system}\n\nTicket: {task.ticket}\n\n{so_far}{asked}"


def records(build: Build, base_only: bool) -> Reader:
    """The reader of a data set: a record for each row that `build` makes of a task."""

    def read(located: list[tuple[Path, Path]]) -> Iterator[tuple[Location, dict | str]]:
        paths = {path.name.removesuffix(".gz"): path for path, _ in located}
        missing = [name for name in _FILES if name not in paths]
        if missing:
            raise UserError(f"{missing[0]} is missing from --source; name a folder with {', '.join(_FILES)}")
        world = make_world(read_toml(paths["db.toml"]), read_toml(paths["user_db.toml"]))
        splits = telecom.read_json(paths["split_tasks.json"])
        test, base = set(splits["test"]), set(splits["base"])
        for number, record in enumerate(telecom.read_json(paths["tasks.json"]), start=1):
            location = Location(paths["tasks.json"].name, number, "row")
            try:
                task = telecom.make_task(record)
                rows = build(world, task) if task.id in base or not base_only else []
            except UserError as e:
                yield location, str(e)
                continue
            split = "test" if task.id in test else "train"
            yield from (
                (location._replace(split=split), {"task": task, "number": n, "turn": t}) for n, t in enumerate(rows)
            )

    return read


def parse(record: dict, location: Location) -> Row:
    task, turn = record["task"], record["turn"]
    at_once = turn.answer.startswith("[")
    system = telecom.system_prompt("compact", "json", at_once=at_once)
    prompt = question(system, task, turn, _ALL if at_once else _NEXT)
    name = f"{task.id} {record['number']}"
    extra = {"task": task.id, "issue": task.issue, "turn": record["number"]}
    if turn.alternatives:
        extra["alternatives"] = turn.alternatives
    if any(names is not None for names in turn.compared):
        extra[COMPARED] = turn.compared  # of a transfer, whose summary may say anything
    # Many tasks have one ticket, so a question has several answers: task and turn are a row's key.
    return Row(Example(name, prompt, turn.answer, turn.thought, "tau2_telecom"), key=name, group=task.id, extra=extra)


def parse_conversation(record: dict, location: Location) -> Row:
    """A whole task: the ticket, what the environment is told, all reference calls, the expert's messages as chain."""
    task, turn = record["task"], record["turn"]
    extra = {"environment": {"task": task.id}}
    return Row(Example(task.id, task.ticket, turn.answer, turn.thought, task.issue), key=task.id, extra=extra)


def _dataset(name: str, build: Build, max_prompt: int, max_answer: int = 64, base_only: bool = True) -> DataSet:
    return DataSet(
        name=name,
        parse=parse,
        records=records(build, base_only),
        fetch=f"a folder with {', '.join(_FILES)} of sierra-research/tau2-bench (data/tau2/domains/telecom)",
        addresses=tuple(_FOLDER + file for file in _FILES),
        patterns=("*tasks.json*", "*db.toml"),
        split="train",
        grader="tool_call",
        max_prompt=max_prompt,
        max_answer=max_answer,
    )


TURNS = _dataset("tau2_telecom_turns", reference_turns, 1792)
ALL_TURNS = _dataset("tau2_telecom_turns_all", reference_turns, 1792, base_only=False)
EXPERT = _dataset("tau2_telecom_expert", expert_turns, 4096)
WHOLE = _dataset("tau2_telecom_whole", whole, 1024, 320)
CONVERSATIONS = dataclasses.replace(
    _dataset("tau2_telecom", conversation, 1024, 320), parse=parse_conversation, grader="none"
)
