"""Conversations of telecom tasks cut into rows: what has been called and replied, and which call comes next."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from rl_likelihood.envs import telecom
from rl_likelihood.envs.calls import text_of
from rl_likelihood.envs.telecom_expert import solve
from rl_likelihood.envs.telecom_state import World
from rl_likelihood.envs.tools import Call


class Turn(NamedTuple):
    """Calls are sorted JSON. `alternatives`: other calls that may come next as well.
    `compared`: of each call of the answer the arguments that count, None for all (tau2's compare_args)."""

    history: tuple[tuple[str, str], ...]  # (call, reply)
    answer: str
    alternatives: tuple[str, ...] = ()
    thought: str = ""
    compared: tuple[tuple[str, ...] | None, ...] = (None,)


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
