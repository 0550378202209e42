"""Countdown with a calculator: try expressions with a tool, then submit one. The smallest environment with tools."""

import dataclasses
from collections.abc import Mapping

from rl_likelihood.envs.calls import Style, answer, message
from rl_likelihood.envs.protocol import End, Reply, Start
from rl_likelihood.envs.tools import Call, Parameter, Tool, ToolError, signature, table
from rl_likelihood.errors import UserError
from rl_likelihood.grading.countdown import evaluate, solves

_LARGEST = 10**12  # of a numerator or denominator that is written out


@dataclasses.dataclass
class Sum:
    numbers: list[int]
    target: int
    solution: str = ""  # an expression that is right, where the task has one
    submitted: str | None = None


def calculate(state: Sum, expression: str) -> str:
    evaluated = evaluate(expression)
    if evaluated is None:
        raise ToolError("too long, a division by zero, or no expression of whole numbers, + - * / and brackets")
    value = evaluated[0]
    if max(abs(value.numerator), value.denominator) > _LARGEST:
        raise ToolError("the value is too large to write out")
    return f"{value}"


def submit(state: Sum, expression: str) -> str:
    state.submitted = expression
    return ""


_EXPRESSION = Parameter("expression", "string", "An expression, (1+2)*3 for instance.")
TOOLS = table(
    (
        Tool(calculate, "The value of an expression.", (_EXPRESSION,)),
        Tool(submit, "Give the expression that makes the target. This ends the game.", (_EXPRESSION,)),
    )
)


@dataclasses.dataclass(frozen=True)
class Calculator:
    """`task` is {"nums": [...], "target": n}, as the data set countdown has it; "solution" may name an expression."""

    style: Style = "hermes"

    def start(self, task: Mapping) -> Start:
        state = Sum(list(task["nums"]), task["target"], task.get("solution", ""))
        if not all(type(n) is int for n in (*state.numbers, state.target)):
            raise UserError(f"nums and target are {state.numbers} and {state.target!r}; write whole numbers")
        if state.solution and self.reward(dataclasses.replace(state, submitted=state.solution), "done") < 1:
            raise UserError(f"the solution {state.solution!r} is wrong; mend it or leave it out")
        example = message([Call("calculate", {"expression": "1+2"})], self.style)
        tools = [f"{signature(tool)}: {tool.about}" for tool in TOOLS.values()]
        system = "\n".join(["Tools:", *tools, "", "Each message is one tool call:", example])
        numbers = ", ".join(map(str, state.numbers))
        question = (
            f"Use each of the numbers {numbers} exactly once, with +, -, *, / and brackets, to make {state.target}."
        )
        return Start(state, [("system", system), ("user", question)], self._reference(state))

    def step(self, state: Sum, text: str) -> Reply:
        reply, made, bad = answer(text, self.style, TOOLS, state, last=("submit",))
        end: End = "" if state.submitted is None else "done"
        return Reply("" if end else reply, end, len(made), bad, "" if end else self._reference(state))

    def _reference(self, state: Sum) -> str:
        return message([Call("submit", {"expression": state.solution})], self.style) if state.solution else ""

    def reward(self, state: Sum, end: End) -> float:
        """1 for a right expression, else 0: pay for a wrong one teaches the model to submit at once."""
        return float(end == "done" and solves(state.submitted or "", state.numbers, state.target))
