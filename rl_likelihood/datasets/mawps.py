"""MAWPS (Koncel-Kedziorski et al. 2016): 2,065 easy word problems of four collections; a tenth is held out.

Read from JSON lines with input and target (singleop, addsub, multiarith, singleeq), or from the original JSON
with sQuestion and lSolutions. The collections share problems that differ in a word or in spacing, so two
problems are one question if they have the same numbers, in order, and begin with the same words.
"""

import re

from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped, field, number, text
from rl_likelihood.shapes import Example

_FOLDER = (
    "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/"
    "a45202bd16f1ec06f433442dc1152d0074773465/evaluation/data/mawps/"
)
_FIRST_WORDS = 4


def parse(record: dict, location: Location) -> Row | Skipped:
    question = text(record, "input", "sQuestion")
    if "target" in record or "lSolutions" not in record:
        answer = number(record, "target")
    else:
        solutions = field(record, "lSolutions")
        if not isinstance(solutions, list) or len(solutions) != 1:
            raise BadRow("field 'lSolutions' must be a list of one number")
        answer = number({"lSolutions": solutions[0]}, "lSolutions")
    return Row(Example(location.id, question, answer, task="mawps"), key=key(question))


def key(question: str) -> str:
    numbers = re.findall(r"\d+(?:\.\d+)?", question)
    words = re.findall(r"[a-z]+", question.lower())
    return " ".join(["mawps", *words[:_FIRST_WORDS], *numbers])


DATASET = DataSet(
    name="mawps",
    parse=parse,
    fetch="singleop.jsonl, addsub.jsonl, multiarith.jsonl and singleeq.jsonl of QwenLM/Qwen2.5-Math "
    "(evaluation/data/mawps)",
    addresses=tuple(_FOLDER + f"{part}.jsonl" for part in ("singleop", "addsub", "multiarith", "singleeq")),
    patterns=("*mawps*", "*singleop*", "*addsub*", "*multiarith*", "*singleeq*"),
    split="train",
    heldout=0.1,
    grader="numeric",
    max_prompt=192,
    max_answer=24,
)
