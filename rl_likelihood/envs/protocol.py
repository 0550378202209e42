"""What an environment is: a conversation that begins with messages, goes on by replies, and ends with a reward.

Any object with these three methods is one, in about 30 lines (`calculator.py` is an example with two tools). It is
shared by all conversations, so what belongs to a conversation stands in its state. Replies must follow from the state
and the text alone: a resumed run plays its conversations again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

Messages = Sequence[tuple[str, str]]  # (role of ROLES, content)
End = Literal["", "done", "transfer", "out_of_turns"]
ENDS: tuple[End, ...] = get_args(End)
ROLES = ("system", "user", "assistant", "tool")
_OF_ROLES = f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"


class Start(NamedTuple):
    state: Any
    messages: Messages  # what the model reads before its first turn
    reference: str = ""  # what it should write, where that is known: likelihood rewards score it


class Reply(NamedTuple):
    text: str  # what the model reads next; "" at an end
    end: End = ""  # "": the conversation goes on
    calls: int = 0  # tool calls made
    bad: Sequence[str] = ()  # kinds of malformed or refused calls; their number is a metric
    reference: str = ""  # what the model should write now


class Environment(Protocol):
    def start(self, task: Mapping) -> Start:
        """A conversation about one task, which is a row's JSON."""

    def step(self, state: Any, text: str) -> Reply:
        """What follows the model's text, which may be anything. It may change the state, and must not raise."""

    def reward(self, state: Any, end: End) -> float:
        """How well the conversation went, once it is over."""


METHODS = tuple(name for name in vars(Environment) if not name.startswith("_"))


def problem_of(value: Any, kind: type) -> str:
    """What is wrong with the Start or Reply that an environment returned, or ""."""
    if not isinstance(value, kind):
        return f"it returned {type(value).__name__} and not {kind.__name__}"
    name, texts = kind.__name__, [value.reference]
    if isinstance(value, Start):
        is_message = lambda m: isinstance(m, list | tuple) and len(m) == 2 and m[0] in ROLES
        some = isinstance(value.messages, list | tuple) and value.messages
        if not some or not all(map(is_message, some)):
            return f"Start.messages is {value.messages!r:.200}; give a list of (role, text); a role is {_OF_ROLES}"
        texts += [text for _, text in some]
        if not any(texts[1:]):
            return "all texts of Start.messages are empty, so the model has nothing to read"
    else:
        listed = isinstance(value.bad, list | tuple) and all(isinstance(kind, str) for kind in value.bad)
        if value.end not in ENDS:
            return f"Reply has end={value.end!r:.100}; it may be {', '.join(map(repr, ENDS))}"
        if not listed:
            return f"Reply has bad={value.bad!r:.100}; give a list of texts, one for each bad call"
        if not isinstance(value.calls, Integral) or not 0 <= value.calls < 2**31:
            return f"Reply has calls={value.calls!r:.100}; give the number of calls"
        texts.append(value.text)
    for text in texts:
        if not isinstance(text, str):
            return f"{name} has {type(text).__name__} where it should have text"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"its {name} has half of a surrogate pair, which is not text"
    return ""


def number_of(score: Any, name: str = "reward") -> float:
    """A score that an environment returned, as a float. TypeError if it is no number, or too large for float32. Text
    is refused too, although `float` would read "0.5"."""
    try:
        if not isinstance(score, str) and abs(float(score)) <= float(np.finfo(np.float32).max):
            return float(score)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"its {name} is {score!r:.100}; return a finite number")


@dataclasses.dataclass(frozen=True)
class Played:
    """A conversation that is over."""

    messages: Messages
    end: End
    reward: float
    turns: int
    calls: int
    bad: Mapping[str, int]


def play(environment: Environment, task: Mapping, policy: Callable[[Messages], str], max_turns: int) -> Played:
    """One conversation from start to end: `policy` gives the model's next text. A script, a person, or an API."""
    state, messages, _ = environment.start(task)
    messages, end, calls, bad = list(messages), "out_of_turns", 0, {}
    turns = 0
    while turns < max_turns:
        turns += 1
        text = policy(messages)
        reply = environment.step(state, text)
        messages.append(("assistant", text))
        calls += reply.calls
        for kind in reply.bad:
            bad[kind] = bad.get(kind, 0) + 1
        if reply.end:
            end = reply.end
            break
        messages.append(("tool", reply.text))
    return Played(messages, end, environment.reward(state, end), turns, calls, bad)
