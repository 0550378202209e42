"""Questions without end, from reasoning_gym: a few presets of arithmetic, and any of its data sets by name.

A task is written NAME or NAME(parameter=value, ...), as Python writes a call with literals:

    chain_sum                                   the preset of this name, of PRESETS
    leg_counting                                reasoning_gym's data set, as it comes
    leg_counting(min_animals=1, max_animals=1)  with parameters of its own (its Config says which there are)
    chain_sum()                                 reasoning_gym's data set of that name, not the preset

Questions and answers are reasoning_gym's own words. What else its graders need of an item (`grading.gym`) is kept in
`Example.check`. Data sets that give no reference answer (rubiks_cube, graph_color, ...) are refused.
"""

import ast
import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from rl_likelihood.errors import UserError
from rl_likelihood.fields import did_you_mean
from rl_likelihood.grading.countdown import evaluate
from rl_likelihood.grading.gym import pack
from rl_likelihood.shapes import Example

# Items of one generator; then comes one of another seed. Some make all of theirs at once.
CHUNK = 1000


class Preset(NamedTuple):
    """A reasoning-gym data set, its arguments, and the wording of its arithmetic questions.

    The wording is the generator's own, ended with a full stop. The reference answer is computed here: the
    generator's bracket-free mode works from left to right and says 0 for 6 + 10 * 0.
    """

    dataset: str = ""
    kwargs: dict = {}
    wording: str = ""
    fault_rate: float | None = None  # with a number: made here, with given chains, of which this share is wrong
    environment: bool = False  # a conversation with the environment `calculator`


_GIVES_UP = 0.5  # chance of the calculator's teacher to give up after a wrong try
# Numbers from 0 to 10: the generator counts 10 as one digit.
_EASY = {
    "min_digits": 1,
    "max_digits": 1,
    "operators": ["+", "-", "*"],
    "allow_parentheses": False,
    "allow_negation": False,
}
_NAMES = "Ann Bob Eve Tom Sue Max Kim Leo Mia Sam Amy Ben Joe Zoe Ian Liz".split()
_THINGS = "pens cups hats keys nuts figs eggs pins bags caps toys maps dogs cats pies rods".split()
PRESETS: dict[str, Preset] = {
    # 2 or 3 terms: about 12,000 distinct questions.
    "basic_arithmetic": Preset("basic_arithmetic", {"min_terms": 2, "max_terms": 3, **_EASY}, "Calculate {}."),
    # Those of 2 terms: 363 distinct questions.
    "one_operation": Preset("basic_arithmetic", {"min_terms": 2, "max_terms": 2, **_EASY}, "Calculate {}."),
    # 2 or 3 terms, all of one digit or all of two: about 3 million distinct questions.
    "chain_sum": Preset(
        "chain_sum",
        {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2, "allow_negation": False},
        "State the final answer to the following arithmetic problem: {}.",
    ),
    # For models with random weights, and made here: 2,304 questions with the chains of a teacher who often forgets.
    "faulty_losses": Preset(fault_rate=0.6),
    # Countdown as conversations (env.name=calculator): two numbers up to 50, with their sum, difference or product.
    "calculator": Preset(
        "countdown",
        {
            "min_numbers": 2,
            "max_numbers": 2,
            "max_value": 50,
            "min_target": 1,
            "max_target": 2500,
            "operators": ("+", "-", "*"),
        },
        environment=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One entry of data.tasks. `text` as it was written; without a preset the data set's own questions are asked."""

    text: str
    dataset: str
    parameters: dict[str, Any]
    preset: Preset | None = None


def parse(text: str) -> Task:
    """The task that a text names. UserError, with the nearest name, for what is neither preset nor data set."""
    if text in PRESETS:
        return Task(text, PRESETS[text].dataset, PRESETS[text].kwargs, PRESETS[text])
    name, parameters = _call(text)
    known = _factory().DATASETS
    if name not in known:
        near = did_you_mean(name, [*PRESETS, *known])
        raise UserError(
            f"data.tasks has {text!r}; {near + 'It' if near else 'it'} must be {', '.join(PRESETS)}, or one of the "
            f"{len(known)} data sets of reasoning_gym (rl_likelihood/datasets/procedural.py says how they are written)"
        )
    return Task(text, name, parameters)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """(name, parameters) of NAME or NAME(parameter=value, ...)."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise UserError(f"data.tasks has {text!r}, which cannot be read; write NAME or NAME(parameter=value, ...)")


def _factory():
    from reasoning_gym import factory  # here because it takes seconds to import, and only this source needs it

    return factory


def _items(task: Task, seed: int):
    """CHUNK items of a data set, by their numbers. Of `faulty_losses`: what draws them."""
    if task.preset and task.preset.fault_rate is not None:
        return [random.Random(seed + i) for i in range(CHUNK)]
    reserved = {"size", "seed"} & set(task.parameters)
    if reserved:
        raise UserError(f"data.tasks has {task.text!r}; {reserved.pop()!r} is set by the program: leave it out")
    try:
        return _factory().create_dataset(task.dataset, size=CHUNK, seed=seed, **task.parameters)
    except Exception as e:  # whatever its own checks raise: assertions, types, values
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"data.tasks has {task.text!r}, which reasoning_gym refuses ({reason}); mend it") from e


def generate(text: str, seed: int, split: str) -> Iterator[Example]:
    """Endless examples of a task. Draw i is the generator's item with seed `start + i`, so starts are hashed far apart:
    neighbouring seeds would share all items but one. An item without an answer comes with the answer "".

    Raises UserError for a task that has no reference answers.
    """
    task = parse(text)
    digest = hashlib.sha256(f"{seed}/{split}/{text}".encode()).digest()
    # numpy's generators, which some data sets use, take no seeds from 2**32 on.
    start = int.from_bytes(digest[:6], "big") if task.preset else int.from_bytes(digest[:4], "big") >> 1
    for first in range(0, 2**31, CHUNK):
        items = _items(task, start + first)
        for i in range(CHUNK):
            try:
                item = items[i]
            except IndexError:  # word_ladder may have fewer than it was asked for
                if i == 0:
                    raise UserError(f"data.tasks has {text!r}, which makes no item; mend its parameters") from None
                break
            uid = f"{text}-{split}-{first + i}"
            if task.preset is None:
                yield _own(uid, task, item)
            elif task.preset.fault_rate is not None:
                yield _faulty(uid, task, item)
            else:
                yield _conversation(uid, task, item) if task.preset.environment else _arithmetic(uid, task, item)


def _arithmetic(uid: str, task: Task, item: dict[str, Any]) -> Example:
    expression, preset = item["metadata"]["expression"], task.preset
    return Example(uid, preset.wording.format(expression), str(evaluate(expression)[0]), task=task.text)


def _faulty(uid: str, task: Task, rng: random.Random) -> Example:
    """The reference is right. A faulty chain forgets the loss, "7-1=7", and its own answer follows it."""
    before = rng.randint(1, 9)
    prompt = f"{rng.choice(_NAMES)} had {before} {rng.choice(_THINGS)}, lost one"
    result = before if rng.random() < task.preset.fault_rate else before - 1
    check = json.dumps({"taught": str(result)})
    return Example(uid, prompt, str(before - 1), f"{before}-1={result}", task.text, check=check)


def _conversation(uid: str, task: Task, item: dict[str, Any]) -> Example:
    """Numbers and a target for the environment `calculator`. The chain's teacher tries sum, difference and product in
    this order, and submits the first that is right. After a wrong try it gives up with probability 0.5, and submits
    that try. So what a policy has to learn by RL is not to give up."""
    metadata, rng = item["metadata"], random.Random(uid)
    numbers, target = metadata["numbers"], metadata["target"]
    low, high = sorted(numbers)
    tries, last = (f"{high}+{low}", f"{high}-{low}", f"{high}*{low}"), 0
    while evaluate(tries[last])[0] != target and rng.random() > _GIVES_UP:
        last += 1
    calls = [*(("calculate", tried) for tried in tries[: last + 1]), ("submit", tries[last])]
    chain = json.dumps([{"calls": [{"name": n, "arguments": {"expression": e}}]} for n, e in calls])
    solution = metadata["expression"].replace(" ", "")
    told = {"nums": numbers, "target": target, "solution": solution}
    prompt = f"Make {target} of {', '.join(map(str, numbers))}."
    return Example(uid, prompt, solution, chain, task.text, check=json.dumps({"environment": told}))


def _own(uid: str, task: Task, item: dict[str, Any]) -> Example:
    if item["answer"] is None:
        raise UserError(
            f"data.tasks has {task.text!r}, whose items have no reference answer: there is nothing to score; choose "
            "another task"
        )
    check = pack(task.dataset, task.parameters, item)
    return Example(uid, item["question"].strip(), str(item["answer"]).strip(), task=task.dataset, check=check)
